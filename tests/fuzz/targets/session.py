"""Files of talks, damaged: no whole line is lost, and what is said afterwards is kept."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from mistral_chat.settings import Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import (
    SessionFile,
    list_sessions,
    read_talk,
    to_json,
    to_markdown,
)
from quant.errors import QuantError

from ..mutation import changed_bytes, changed_value
from ..mutation import to_json as to_bytes
from ..target import Target, require
from ..tiny import open_engine, write_chat_gguf

HEAD = {"format": "mistral-chat session", "version": 1, "created": "2026-11-24T10:00:00+00:00"}
EVENTS: tuple[dict[str, Any], ...] = (
    {"event": "turn", "user": "Hi", "assistant": "Hello!", "finish_reason": "stop", "time": "x"},
    {"event": "turn", "user": "Two", "assistant": "B", "finish_reason": "length"},
    {"event": "undo"},
    {"event": "system", "text": "Be brief"},
    {"event": "turn", "user": "Hé", "assistant": "é\n```py\nx\n```"},
    {"event": "evict", "turns": 1, "summary": "sum"},
    {"event": "evict", "turns": 1, "summary": None},
    {"event": "clear"},
    {"event": "turn", "user": "last", "assistant": "ok"},
    {"event": "future", "x": 1},
)  # fmt: skip


def damaged_talk(random: Random) -> tuple[list[bytes], bytes]:
    """Lines that were confirmed and are still whole, and a file in which they lie."""
    events = [HEAD, *(random.choice(EVENTS) for _ in range(random.randrange(1, 9)))]
    # Each line can be told from any other, so that one can look for it.
    lines = [json.dumps({**event, "number": random.random()}).encode() for event in events]
    spoilt = random.randrange(len(lines))
    kind = random.random()
    whole = [line for place, line in enumerate(lines) if place != spoilt]
    if kind < 0.5:
        lines[spoilt] = to_bytes(changed_value(random, events[spoilt]), random)
    elif kind < 0.7:
        lines[spoilt] = changed_bytes(random, lines[spoilt])
    elif kind < 0.8:  # torn off, as by a process that was killed
        cut = lines[spoilt][: random.randrange(len(lines[spoilt]))]
        return lines[:spoilt], b"\n".join([*lines[:spoilt], cut])
    elif kind < 0.9:
        lines[spoilt] = random.choice((b"", b"\0" * 40, b"\xff\xfe", b"\r", b"[]", b"null"))
    else:
        whole = lines
    return whole, b"\n".join(lines) + b"\n"


class Session(Target):
    """Talks are read, gone on with, and read again."""

    name = "session"
    short = 60
    kernels = ("f16",)

    def make(self) -> None:
        self.model = write_chat_gguf(self.folder / "m.gguf")

    def start(self) -> None:
        self.engine = open_engine(self.model, self.folder, context=256)
        self.settings = Settings(temperature=0.0, max_tokens=2, context=256)

    def case(self, random: Random, scratch: Path) -> None:
        folder = scratch / "sessions"
        folder.mkdir()
        path = folder / "a.jsonl"
        whole, data = damaged_talk(random)
        path.write_bytes(data)
        try:
            self._talk(folder, path, random.random() < 0.3)
        finally:
            kept = b"\n".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
            lost = [line for line in whole if line not in kept]
            require(not lost, f"a line is gone: {lost[:1]!r}")

    def _talk(self, folder: Path, path: Path, undo: bool) -> None:
        """Go on with a talk; raises WrongResultError unless all of it is there afterwards."""
        self.engine.session.trim(0)
        list_sessions(folder)
        list_sessions(folder, "h")
        talk = read_talk(path)
        to_json(talk)
        to_markdown("a", talk).encode("utf-8", "replace")
        store = SessionFile.open(path)
        try:
            chat = Chat(self.engine, self.settings, store=store)
            chat.parts()
            said = [(turn.user, turn.assistant) for turn in store.talk.turns]
            require(
                said == [(turn.user, turn.assistant) for turn in talk.turns],
                "a talk that is read and one that is gone on with differ",
            )
            self._ask(chat, "the next question")
            if chat.turns:
                for _event in chat.go_on():
                    pass
            chat.save_cache()
            if undo and chat.turns:
                chat.undo()
            self._ask(chat, "another")
            expected = [(turn.user, turn.assistant) for turn in chat.turns]
        finally:
            store.close()
        found = [(turn.user, turn.assistant) for turn in read_talk(path).turns]
        require(found == expected, f"{len(found)} turns of {len(expected)} are kept")

    def _ask(self, chat: Chat, question: str) -> None:
        try:
            for _event in chat.ask(question):
                pass
        except QuantError:
            return  # a damaged system prompt, say: the talk is as it was


TARGET = Session
