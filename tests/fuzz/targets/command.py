"""Slash commands with arguments that nobody expects, in a talk with a tiny model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

from mistral_chat.settings import Paths, Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile
from mistral_chat.terminal.commands import COMMANDS, Room, completions, run
from quant.errors import QuantError

from ..target import Target, require
from ..tiny import open_engine, paths_in, write_chat_gguf

NAMES = (*(row.name for row in COMMANDS), "exit", "s", "", "nonsense", "SET", "pro")
ARGUMENTS = (
    "", "x", "~", "~/", "~nosuch", "~nosuch/x", "..", "../x", "/etc/passwd", "/etc", "/",
    "a" * 300, "a" * 5000, "\x00", "a\x00b", "\ud800", "é", "é日本", "-1", "0", "1e999", "nan",
    "inf", "1", "on", "off", "9" * 5000, "temperature", "temperature nan", "temperature inf",
    "temperature 1e999", "temperature -0", "top_k 1e3", "top_k " + "9" * 30, "top_k " + "9" * 5000,
    "top-p 0", "top_p 0", "min_p 1", "min_p 1e-320", "repetition_penalty 0",
    "repetition_penalty 0.01", "repetition_penalty 100", "seed " + "9" * 20,
    "seed 18446744073709551615", "seed -1", "max_tokens 0", "max_tokens 1",
    "max_tokens " + "9" * 25,
    "guardrail prompt", "guardrail nonsense", "guardrail moderate", "guardrail strict",
    "categories ~nosuch/x", "categories /etc/passwd", "categories /", "categories llama-guard",
    "categories \x00", "categories " + "a" * 300, "system", "system x", "on_full summarize",
    "on_full stop", "theme dark", "plain on", "loop_detector off", "model /etc/passwd", "help",
    "/help", "\t", "  ", "a b c", "{{ x }}", "<|im_end|>", "[red]x[/red]", "\x1b[31m", "name-ok",
    "CON", "..jsonl", ".hidden", "a/b", "a\\b", "x.jsonl", "ｆｕｌｌ", "١٢", "start",
)  # fmt: skip


def odd_line(random: Random) -> str:
    """A command as somebody might type it who does not know it."""
    words = random.choices(ARGUMENTS, k=1 if random.random() < 0.85 else 2)
    return f"/{random.choice(NAMES)} {' '.join(words)}".rstrip(" ")


class Commands(Target):
    """Some commands in a row, and answers between them."""

    name = "command"
    short = 60
    seconds = 20.0
    system_errors = (OSError,)  # which the prompt tells in a sentence, too
    kernels = ("f16",)

    def make(self) -> None:
        self.model = write_chat_gguf(self.folder / "m.gguf")

    def start(self) -> None:
        self.engine = open_engine(self.model, self.folder, context=256)

    def case(self, random: Random, scratch: Path) -> None:
        room = self._room(paths_in(scratch / "home"))
        try:
            for _line in range(random.randrange(1, 7)):
                # One that is refused leaves the talk as it was, so the next ones count, too.
                with contextlib.suppress(QuantError, *self.system_errors):
                    self._carry_out(random, room, odd_line(random))
        finally:
            if room.chat.store is not None:
                room.chat.store.close()

    def _room(self, paths: Paths) -> Room:
        paths.sessions.mkdir(parents=True)
        self.engine.session.trim(0)
        store = SessionFile.open(paths.sessions / "start.jsonl")
        settings = Settings(temperature=0.0, max_tokens=2, context=256)
        chat = Chat(self.engine, settings, store=store)

        def switch(name: str) -> None:
            chat.engine = open_engine(Path(name), paths.data, context=64)

        for question in ("one", "two"):
            self._ask(chat, question)
        return Room(chat, paths, switch)

    def _carry_out(self, random: Random, room: Room, line: str) -> None:
        completions(room, line[: random.randrange(len(line) + 1)])
        completions(room, line)
        outcome = run(room, line)
        outcome.text.encode("utf-8", "replace")
        if outcome.ask is not None or random.random() < 0.2:
            self._ask(room.chat, outcome.ask or "next")
        if random.random() < 0.1:
            room.chat.save_cache()
            room.chat.restore_cache()

    def _ask(self, chat: Chat, question: str) -> None:
        before = len(chat.turns)
        for _event in chat.ask(question):
            pass
        added = len(chat.turns) - before
        require(added in (0, 1), f"a question makes {added} turns")


TARGET = Commands
