"""The guardrail at the prompt, on a real terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import tiny_metadata
from ..pseudo_terminal import CTRL_U, OpenTerminal
from .conftest import write_editor


def test_the_toolbar_and_the_prompt_of_the_model(terminal: OpenTerminal) -> None:
    screen = terminal("first", FAKE_RULES='{"bomb": 1}', FAKE_CONTEXT="1000", NO_COLOR="1")
    screen.ask("/guardrail", "guardrail = off")
    screen.ask("/guardrail moderate", "guardrail = moderate")
    # Before anything was kept.
    screen.enter("a bomb")
    screen.see("The question was refused")
    screen.enter(CTRL_U + "/prompt")
    ids = tokenizer_from_gguf(tiny_metadata()).encode(GUARDRAIL_PROMPT)

    def sources(lines: list[str]) -> Counter[str]:
        rows = [line.split() for line in lines if line[:1].isdigit()]
        return Counter(row[1] for row in rows)

    # The system's turn with the guardrail in it, and what opens the turn of a question.
    wanted = {"control": 3, "system": len("system\n") + 1, "guardrail": len(ids), "user": 5}
    screen.wait(lambda lines: sources(lines) == wanted)
    assert "Nothing was asked yet." not in screen.lines()
    screen.ready()
    screen.ask("/guardrail prompt", "guardrail = prompt")
    assert "guardrail prompt" in screen.toolbar()
    screen.ask("Hi", "first")
    screen.enter("/prompt")
    screen.wait(lambda lines: sources(lines)["guardrail"] == 2 * len(ids))


def test_a_refusal_on_the_screen(terminal: OpenTerminal) -> None:
    vermin = "they are vermin"
    rules = '{"bomb": 1, "vermin": 2}'
    screen = terminal(vermin, "they are people", vermin, FAKE_RULES=rules, FAKE_CONTEXT="1000")
    # Strict shows nothing of a refused answer.
    screen.ask("/guardrail strict", "guardrail = strict")
    screen.enter("who?")
    screen.see("The answer was refused: hateful")
    assert not screen.holds("they are")
    screen.wait_for("> who?", times=2)
    screen.ask(CTRL_U + "who then?", "they are people")
    screen.ask("/guardrail moderate", "guardrail = moderate")
    assert "guardrail moderate" in screen.toolbar()
    screen.enter("build a bomb")
    screen.see("The question was refused: illegal activities (probability 0.9")
    screen.see("Say it in other words", times=2)
    # The line comes back, to be written otherwise.
    screen.wait_for("> build a bomb", times=2)
    screen.enter(CTRL_U + "and who?")
    screen.see("The answer was refused: hateful", times=2)
    # So it does after an answer that was seen.
    assert screen.holds(vermin)
    screen.wait_for("> and who?", times=2)
    screen.enter(CTRL_U + "/guardrail")
    screen.see("illegal activities: refuse from 0.5")
    screen.see("The last question: acceptable (probability 0.90)")
    screen.see("The last answer: hateful")
    screen.ready()
    screen.enter("/set categories papr")
    screen.see("did you mean 'paper'")


def test_a_refused_edit_comes_back(terminal: OpenTerminal, tmp_path: Path) -> None:
    editor = write_editor(tmp_path, 'printf "/bomb" > "$1"')
    screen = terminal(
        "fine",
        "fine again",
        EDITOR=editor,
        VISUAL="",
        FAKE_RULES='{"bomb": 1}',
        FAKE_CONTEXT="1000",
    )
    screen.ask("/guardrail moderate", "guardrail = moderate")
    screen.ask("Hello", "fine")
    screen.enter("/edit")
    screen.see("The question was refused")
    # As one would type it: a message, not a command.
    screen.wait_for("> //bomb")
    screen.ask(CTRL_U + "//kitten", "fine again")
    screen.take_back("/kitten", "Hello")


def test_what_was_attached_waits_for_an_answer(terminal: OpenTerminal, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the notes")
    screen = terminal(
        "they are vermin",
        "fine",
        "alone",
        FAKE_RULES='{"bomb": 1, "vermin": 2}',
        FAKE_CONTEXT="1000",
    )
    screen.ask("/guardrail strict", "guardrail = strict")
    screen.enter(f"/file {tmp_path}/notes.txt")
    screen.see("goes before your next message")
    screen.ready()
    waits = "What you attached waits for your next message; /clear drops it."
    screen.enter("a bomb")  # a refused question
    screen.wait_for(waits)
    screen.wait_for("> a bomb", times=2)
    screen.enter(CTRL_U + "who?")  # a refused answer
    screen.wait_for(waits, times=2)
    screen.wait_for("> who?", times=2)
    screen.ask(CTRL_U + "and?", "fine")
    screen.ask("no more", "alone")
    screen.take_back("no more", "the notes")
    screen.wait_for("and?")
    assert screen.lines().count(waits) == 2
