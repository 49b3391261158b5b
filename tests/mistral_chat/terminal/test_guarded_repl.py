"""The guardrail at the prompt, on a real terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import tiny_metadata
from ..pseudo_terminal import ENTER, Terminal
from .conftest import write_editor


def test_the_guardrail_is_in_the_toolbar(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", FAKE_CONTEXT="1000", NO_COLOR="1")
    screen.send("/guardrail" + ENTER)
    screen.wait_for("guardrail = off")
    screen.ready()
    screen.send("/guardrail prompt" + ENTER)
    screen.wait_for("guardrail = prompt")
    screen.ready()
    assert "guardrail prompt" in screen.toolbar()
    screen.send("Hi" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/prompt" + ENTER)
    screen.wait(lambda lines: any("guardrail\t" in line or "guardrail  " in line for line in lines))


def holds(text: str) -> Callable[[list[str]], bool]:
    """Whether the screen holds a text, however it is broken into lines."""
    return lambda lines: text in " ".join(" ".join(lines).split())


def test_a_refusal_on_the_screen(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("they are vermin", FAKE_RULES='{"bomb": 1, "vermin": 2}', FAKE_CONTEXT="1000")
    screen.send("/guardrail moderate" + ENTER)
    screen.wait_for("guardrail = moderate")
    screen.ready()
    assert "guardrail moderate" in screen.toolbar()
    screen.send("build a bomb" + ENTER)
    screen.wait(holds("The question was refused: illegal activities (probability 0.9"))
    screen.wait(holds("Say it in other words"))
    # The line comes back, to be written otherwise.
    screen.wait_for("> build a bomb", times=2)
    screen.send("\x15who?" + ENTER)
    screen.wait(holds("The answer was refused: hateful"))
    # So it does after an answer that was seen.
    screen.wait_for("> who?", times=2)
    screen.send("\x15/guardrail" + ENTER)
    screen.wait(holds("illegal activities: refuse from 0.5"))
    screen.wait(holds("The last question: acceptable (probability 0.90)"))
    screen.wait(holds("The last answer: hateful"))
    screen.ready()
    screen.send("/set categories papr" + ENTER)
    screen.wait(holds("did you mean 'paper'"))


def test_strict_shows_nothing_of_a_refused_answer(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(
        "they are vermin", "they are people", FAKE_RULES='{"vermin": 2}', FAKE_CONTEXT="1000"
    )
    screen.send("/guardrail strict" + ENTER)
    screen.wait_for("guardrail = strict")
    screen.ready()
    screen.send("who?" + ENTER)
    screen.wait(holds("The answer was refused: hateful"))
    assert not holds("they are")(screen.lines())
    screen.wait_for("> who?", times=2)
    screen.send("\x15who then?" + ENTER)
    screen.wait_for("they are people")


def test_a_refused_edit_comes_back(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    editor = write_editor(tmp_path, 'printf "/bomb" > "$1"')
    screen = terminal(
        "fine",
        "fine again",
        EDITOR=editor,
        VISUAL="",
        FAKE_RULES='{"bomb": 1}',
        FAKE_CONTEXT="1000",
    )
    screen.send("/guardrail moderate" + ENTER)
    screen.wait_for("guardrail = moderate")
    screen.ready()
    screen.send("Hello" + ENTER)
    screen.wait_for("fine")
    screen.ready()
    screen.send("/edit" + ENTER)
    screen.wait(holds("The question was refused"))
    # As one would type it: a message, not a command.
    screen.wait_for("> //bomb")
    screen.send("\x15//kitten" + ENTER)
    screen.wait_for("fine again")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: /kitten")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: Hello")


def test_what_was_attached_waits_for_an_answer(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("the notes")
    screen = terminal(
        "they are vermin",
        "fine",
        "alone",
        FAKE_RULES='{"bomb": 1, "vermin": 2}',
        FAKE_CONTEXT="1000",
    )
    screen.send("/guardrail strict" + ENTER)
    screen.wait_for("guardrail = strict")
    screen.ready()
    screen.send(f"/file {tmp_path}/notes.txt" + ENTER)
    screen.wait(holds("goes before your next message"))
    screen.ready()
    waits = "What you attached waits for your next message; /clear drops it."
    screen.send("a bomb" + ENTER)  # a refused question
    screen.wait_for(waits)
    screen.wait_for("> a bomb", times=2)
    screen.send("\x15who?" + ENTER)  # a refused answer
    screen.wait_for(waits, times=2)
    screen.wait_for("> who?", times=2)
    screen.send("\x15and?" + ENTER)
    screen.wait_for("fine")
    screen.ready()
    screen.send("no more" + ENTER)
    screen.wait_for("alone")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: no more")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: the notes")
    screen.wait_for("and?")
    assert screen.lines().count(waits) == 2


def test_the_prompt_before_anything_was_kept(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(FAKE_RULES='{"bomb": 1}', FAKE_CONTEXT="1000", NO_COLOR="1")
    screen.send("/guardrail moderate" + ENTER)
    screen.wait_for("guardrail = moderate")
    screen.ready()
    screen.send("a bomb" + ENTER)
    screen.wait(holds("The question was refused"))
    screen.send("\x15/prompt" + ENTER)
    ids = tokenizer_from_gguf(tiny_metadata()).encode(GUARDRAIL_PROMPT)

    def sources(lines: list[str]) -> Counter[str]:
        rows = [line.split() for line in lines if line[:1].isdigit()]
        return Counter(row[1] for row in rows)

    # The system's turn with the guardrail in it, and what opens the turn of a question.
    wanted = {"control": 3, "system": len("system\n") + 1, "guardrail": len(ids), "user": 5}
    screen.wait(lambda lines: sources(lines) == wanted)
    assert "Nothing was asked yet." not in screen.lines()
