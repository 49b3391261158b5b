"""``mistral-chat moderate``, and chats that moderate, with a scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral_chat import models
from mistral_chat.chat import Chat, Judged
from mistral_chat.engine import ChatEngine, Finished, TextDelta
from mistral_chat.guardrail import GUARDRAIL_PROMPT
from mistral_chat.messages import Role
from mistral_chat.settings import Settings

from .conftest import Command
from .fakes import FakeEngine

LOOKALIKES = (Path(__file__).resolve().parents[1] / "data" / "lookalikes.txt").read_text(
    encoding="utf-8"
)
ILLEGAL, HATE, ADVICE = 1, 2, 3


@pytest.fixture
def rules(engine: FakeEngine) -> FakeEngine:
    engine.rules = {"bomb": ILLEGAL, "vermin": (HATE, 0.72), "insulin": ADVICE}
    return engine


# --- the command


def test_a_text_that_passes(rules: FakeEngine, command: Command) -> None:
    result = command("moderate", "How do I kill a Linux process?")
    assert (result.code, result.stderr) == (0, "")
    assert "allow: acceptable (probability 0.90)" in result.stdout
    assert rules.judged == ["How do I kill a Linux process?"]


def test_a_text_that_is_refused(rules: FakeEngine, command: Command) -> None:
    result = command("moderate", stdin=b"They are vermin")
    assert result.code == 3
    last = result.stdout.strip().splitlines()[-1]
    assert last == (
        "refuse: hateful, harassing or violent content (probability 0.89, threshold 0.5)"
    )


def test_a_verdict_as_json(rules: FakeEngine, command: Command) -> None:
    result = command("moderate", "--json", "--role", "assistant", "a bomb")
    record = json.loads(result.stdout)
    assert result.code == 3
    assert record["category"] == "illegal activities"
    assert record["probabilities"]["illegal activities"] == pytest.approx(0.9)
    assert (record["threshold"], record["action"]) == (0.5, "refuse")
    assert (record["window"], record["windows"]) == (1, 1)
    assert "An assistant wrote:" in rules.tokenizer.show(record["ids"])


def test_many_lines(rules: FakeEngine, command: Command) -> None:
    lines = [{"text": "a kitten", "id": 1}, {"text": "a bomb", "role": "assistant", "id": 2}]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    result = command("moderate", "--jsonl", stdin=data)
    assert result.code == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["id"], row["verdict"]["action"]) for row in rows] == [(1, "allow"), (2, "refuse")]
    assert command("moderate", "--jsonl", stdin=b'{"text": "a kitten"}').code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([""], b"", "The prompt is empty"),
        ([], b" \n", "The prompt is empty"),
        (["--jsonl"], b"", "no line to classify"),
        (["--jsonl"], b'{"text": ""}', 'line 1 has no "text"'),
        (["--jsonl"], b'{"text": "a"}\n{"text": "a", "role": "system"}', "line 2: the role"),
        (["--jsonl"], b'{"text": "a", "role": []}', "line 1: the role"),
        (["--jsonl"], b'{"text": "a", "question": 1}', "the question is not a text"),
        (["--jsonl"], b"text", "line 1 is not JSON"),
        (["--jsonl", "a text"], b"", "from standard input"),
        (["--role", "system", "a"], b"", "--role is user or assistant"),
        (["--plot", "x.svg", "a"], b"", "--evaluate"),
        (["--categories", "papr", "a"], b"", "did you mean 'paper'"),
        (["--evaluate", "none.jsonl"], b"", "none.jsonl cannot be read"),
    ],
)
def test_bad_input(
    rules: FakeEngine, command: Command, arguments: list[str], stdin: bytes, words: str
) -> None:
    result = command("moderate", *arguments, stdin=stdin)
    assert (result.code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not rules.judged


def test_an_evaluation(rules: FakeEngine, command: Command, tmp_path: Path) -> None:
    examples, plot, categories = (tmp_path / name for name in ("e.jsonl", "p.svg", "c.toml"))
    rows = [("a kitten", "acceptable"), ("bomb disposal", "acceptable")] * 5
    rows += [("a bomb", "illegal activities"), ("vermin", "unacceptable")] * 5
    lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
    examples.write_text("\n".join(lines), encoding="utf-8")
    arguments = ("moderate", "--evaluate", str(examples))
    result = command(*arguments, "--plot", str(plot), "--save-categories", str(categories))
    assert result.code == 0
    assert "50.0%" in result.stdout  # recall
    assert "100.0%" in result.stdout  # precision
    assert "calibrated" in result.stdout
    assert "P precision, R recall" in result.stdout
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    assert command("moderate", "--categories", str(categories), "a kitten").code == 0
    record = json.loads(command(*arguments, "--json").stdout)
    assert (record["precision"], record["recall"]) == (1.0, 0.5)
    assert record["confusion"]["acceptable"]["illegal activities"] == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "c.toml", "e.jsonl", "p.svg",
    ]  # fmt: skip


def test_categories_to_begin_with(engine: FakeEngine, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    result = command("moderate", "--categories", "mistral", "--save-categories", str(path))
    assert (result.code, engine.opened) == (0, 0)
    path.write_text(path.read_text(encoding="utf-8").replace("malware", "viruses"), "utf-8")
    record = json.loads(command("moderate", "--categories", str(path), "--json", "a").stdout)
    assert "viruses" in record["probabilities"]


def test_the_model_that_moderates(
    rules: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_fake(cls: type, settings: Settings, *more: object) -> FakeEngine:
        opened.append(settings.model)
        return rules

    monkeypatch.setattr(ChatEngine, "open", classmethod(open_fake))
    command("moderate", "a")
    command("moderate", "-m", "one", "a")
    command("moderate", "-m", "one", "--moderator", "two", "a")
    assert opened == ["smollm2", "one", "two"]


def test_ctrl_c(rules: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(context: int) -> Any:
        scorer = FakeEngine.scorer(rules, context)
        scorer.interrupted = True
        return scorer

    monkeypatch.setattr(rules, "scorer", interrupted)
    assert command("moderate", "a").code == 130
    assert command("moderate", "--jsonl", stdin=b'{"text": "a"}').code == 130
    assert command("moderate", "--evaluate", "examples").code == 130


# --- one question


@pytest.mark.parametrize("mode", ["moderate", "strict"])
def test_a_question_is_refused(rules: FakeEngine, command: Command, mode: str) -> None:
    result = command("--guardrail", mode, "How do I build a bomb?")
    assert (result.code, result.stdout) == (3, "")
    assert "The question was refused: illegal activities (probability 0.9" in result.stderr
    assert "--guardrail" in result.stderr
    assert rules.asked == []


def test_an_answer_is_refused_after_it_was_shown(rules: FakeEngine, command: Command) -> None:
    rules.answers.append("They are vermin")
    result = command("--guardrail", "moderate", "What are they?")
    assert (result.code, result.stdout) == (3, "They are vermin\n")
    assert "The answer was refused: hateful" in result.stderr


def test_strict_holds_an_answer_back(rules: FakeEngine, command: Command) -> None:
    rules.answers.extend(["They are vermin", "People\nare they"])
    result = command("--guardrail", "strict", "What are they?")
    assert (result.code, result.stdout) == (3, "")
    assert "The answer was refused: hateful" in result.stderr
    assert "They are" not in result.stderr
    result = command("--guardrail", "strict", "-q", "What are they?")
    assert (result.code, result.stdout, result.stderr) == (0, "People\nare they\n", "")


@pytest.mark.parametrize(("mode", "text"), [("moderate", "They are vermin"), ("strict", "")])
def test_json_carries_the_verdicts(
    rules: FakeEngine, command: Command, mode: str, text: str
) -> None:
    rules.answers.append("They are vermin")
    result = command("--guardrail", mode, "--json", "What are they?")
    record = json.loads(result.stdout)
    assert (result.code, record["text"], record["finish_reason"]) == (3, text, "refused")
    assert record["guardrail"]["mode"] == mode
    verdicts = record["guardrail"]["verdicts"]
    assert [(each["role"], each["action"]) for each in verdicts] == [
        ("user", "allow"), ("assistant", "refuse"),
    ]  # fmt: skip
    record = json.loads(command("--guardrail", mode, "--json", "a bomb").stdout)
    assert (record["text"], record["finish_reason"]) == ("", "refused")


def test_jsonl_has_a_line_for_each_verdict(rules: FakeEngine, command: Command) -> None:
    rules.answers.append("They are vermin")
    result = command("--guardrail", "strict", "--jsonl", "What are they?")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["verdict", "verdict", "finished"]
    assert lines[1]["category"].startswith("hateful")


def test_a_warning_goes_on(rules: FakeEngine, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[[category]]\nname = 'advice'\naction = 'warn'\n", encoding="utf-8")
    rules.rules = {"insulin": 1}
    rules.answers.append("Ask a doctor")
    result = command("--guardrail", "strict", "--categories", str(path), "-q", "insulin?")
    assert (result.code, result.stdout) == (0, "Ask a doctor\n")
    assert result.stderr == (
        "Note: the question was classified as advice (probability 0.90, threshold 0.5).\n"
    )


def test_categories_are_checked_before_the_model_is_loaded(
    engine: FakeEngine, command: Command
) -> None:
    result = command("--categories", "papr", "--guardrail", "strict", "Hi")
    assert (result.code, engine.opened) == (2, 0)


def test_a_moderator_of_its_own(
    rules: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = FakeEngine(["An answer"])
    engines = {"smollm2": chats, "guard": rules}
    monkeypatch.setattr(
        ChatEngine, "open", classmethod(lambda cls, settings, *more: engines[settings.model])
    )
    assert command("--guardrail", "moderate", "--moderator", "guard", "Hi").code == 0
    assert rules.judged == ["Hi", "An answer"]
    assert (chats.judged, rules.asked) == ([], [])


def test_a_model_that_moderates_badly_is_told_of(
    rules: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules.name = "smollm2"
    rules.answers.append("An answer")
    result = command("--guardrail", "moderate", "-q", "Hi")
    assert models.SMOLLM2.moderation is not None
    assert models.SMOLLM2.moderation in result.stderr


@pytest.mark.parametrize("question", LOOKALIKES.splitlines())
def test_harmless_questions_pass(rules: FakeEngine, command: Command, question: str) -> None:
    # Only probabilities decide; no word of a question does.
    rules.rules = {}
    rules.answers.append("Gladly")
    result = command("--guardrail", "strict", "-q", question)
    assert (result.code, result.stdout) == (0, "Gladly\n")
    system, asked = rules.asked[0]
    assert (system.text, asked.text) == (GUARDRAIL_PROMPT, question)


# --- a talk


def make(engine: FakeEngine, mode: str = "moderate", **values: Any) -> Chat:
    return Chat(engine, Settings(guardrail=mode, **values))  # type: ignore[arg-type]


def finished(events: list[Any]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_the_order_of_events(rules: FakeEngine) -> None:
    rules.answers.extend(["one\ntwo"] * 2)
    events = list(make(rules).ask("Hi"))
    kinds = [type(event) for event in events]
    assert kinds == [Judged, TextDelta, TextDelta, Judged, Finished]
    events = list(make(rules, "strict").ask("Hi"))
    assert [type(event) for event in events] == [Judged, Judged, TextDelta, Finished]
    assert events[2] == TextDelta("one\ntwo")


def test_what_is_refused_is_not_kept(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.extend(["fine", "they are vermin", "fine too"])
    list(chat.ask("one"))
    assert finished(list(chat.ask("a bomb"))).finish_reason == "refused"
    assert finished(list(chat.ask("who?"))).text == "they are vermin"
    list(chat.ask("two"))
    assert [turn.user for turn in chat.turns] == ["one", "two"]
    assert not any("vermin" in message.text for message in rules.asked[-1])
    assert [each.what for each in chat.verdicts] == ["question", "answer"]


def test_again_and_on(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.extend(["fine", "they are vermin", "and ver", "min"])
    list(chat.ask("one"))
    assert finished(list(chat.ask("one", again=True))).finish_reason == "refused"
    assert [turn.assistant for turn in chat.turns] == ["fine"]
    list(chat.go_on())
    assert chat.turns[-1].assistant == "fineand ver"
    # Both parts are judged as one.
    assert finished(list(chat.go_on())).finish_reason == "refused"
    assert rules.judged[-1] == "fineand vermin"
    assert chat.turns[-1].assistant == "fineand ver"


def test_an_answer_that_was_broken_off_is_judged(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.append(...)
    asked = iter([False, False, True, True, True])  # judging asks once, then each word does
    done = finished(list(chat.ask("Hi", cancel=lambda: next(asked))))
    assert (done.finish_reason, done.text) == ("cancelled", "word ")
    assert rules.judged == ["Hi", "word "]
    assert len(chat.turns) == 1


@pytest.mark.parametrize(("mode", "text"), [("moderate", "an answer"), ("strict", "")])
def test_ctrl_c_while_judging(rules: FakeEngine, mode: str, text: str) -> None:
    chat = make(rules, mode)
    rules.answers.append("an answer")
    done = finished(list(chat.ask("Hi", cancel=lambda: True)))
    assert (done.finish_reason, done.text, rules.asked) == ("cancelled", "", [])
    events = []
    for event in chat.ask("Hi"):
        events.append(event)
        rules.scorers[-1].interrupted = True
    done = finished(events)
    assert (done.finish_reason, done.text) == ("cancelled", text)
    assert not chat.turns  # what nobody judged is not kept


def test_nothing_is_judged_without_moderation(rules: FakeEngine) -> None:
    rules.answers.append("they are vermin")
    chat = make(rules, "prompt")
    assert finished(list(chat.ask("a bomb"))).finish_reason == "stop"
    assert (rules.judged, chat.verdicts) == ([], [])


def test_an_answer_of_nothing_is_not_judged(rules: FakeEngine) -> None:
    rules.answers.append("")
    assert finished(list(make(rules).ask("Hi"))).text == ""
    assert rules.judged == ["Hi"]


def test_another_engine_judges_for_itself(rules: FakeEngine) -> None:
    chat = make(rules)
    first = chat.moderator()
    assert chat.moderator() is first
    chat.engine = FakeEngine(["x"])  # type: ignore[assignment]
    assert chat.moderator() is not first


def test_a_role_is_recorded(rules: FakeEngine) -> None:
    rules.answers.append("fine")
    chat = make(rules)
    list(chat.ask("Hi"))
    assert [each.record()["role"] for each in chat.verdicts] == [Role.USER, Role.ASSISTANT]
    assert [each.sentence() for each in chat.verdicts] == [None, None]
