"""``mistral-chat moderate``, and single questions that are moderated, with a scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.engines import opening
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.models import names as models
from mistral_chat.models.planning import AT_ONCE
from mistral_chat.settings import Settings

from ..conftest import Command
from ..fakes import FakeEngine, FakeScorer

HERE = Path(__file__).resolve().parents[1]
LOOKALIKES = (HERE.parent / "data" / "lookalikes.txt").read_text(encoding="utf-8")
HARMFUL = (HERE / "harmful_twins.txt").read_text(encoding="utf-8")
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
        "refuse: hateful, harassing or violent content (probability 0.91, threshold 0.5)"
    )
    row = next(line for line in result.stdout.splitlines() if "illegal activities" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "illegal activities", "0.093", "0.093", "0.5", "refuse",
    ]  # fmt: skip
    assert "add up to 1, these labels had 1 together." in " ".join(result.stdout.split())


def test_a_verdict_as_json(rules: FakeEngine, command: Command) -> None:
    result = command("moderate", "--json", "--role", "assistant", "a bomb")
    record = json.loads(result.stdout)
    assert result.code == 3
    assert record["category"] == "illegal activities"
    assert record["probabilities"]["illegal activities"] == pytest.approx(0.9)
    assert (record["threshold"], record["action"]) == (0.5, "refuse")
    assert (record["window"], record["windows"], record["read"]) == (1, 1, 1)
    assert record["mass"] == pytest.approx(1)
    assert "An assistant wrote:" in rules.tokenizer.show(record["ids"])


def test_many_lines(rules: FakeEngine, command: Command) -> None:
    lines = [{"text": "a kitten", "id": 1}, {"text": "a bomb", "role": "assistant", "id": 2}]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    result = command("moderate", "--jsonl", stdin=data)
    assert result.code == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["id"], row["verdict"]["action"]) for row in rows] == [(1, "allow"), (2, "refuse")]
    assert command("moderate", "--jsonl", stdin=b'{"text": "a kitten"}').code == 0


def test_as_many_at_once_as_are_asked_for(
    rules: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = FakeScorer.score_all

    def noted(scorer: FakeScorer, askings: Any, labels: Any, at_once: int, cancel: Any) -> Any:
        asked.append(at_once)
        return plain(scorer, askings, labels, at_once, cancel)

    monkeypatch.setattr(FakeScorer, "score_all", noted)
    line = b'{"text": "a kitten"}'
    command("moderate", "--jsonl", stdin=line)
    command("moderate", "--jsonl", "--at-once", "3", stdin=line)
    command("moderate", "--evaluate", "examples", "--at-once", "1")
    command("moderate", "--evaluate", "examples")
    assert asked == [AT_ONCE, 3, 1, AT_ONCE]
    assert f"[default: {AT_ONCE}, or as many" in " ".join(
        command("moderate", "--help").stdout.split()
    )


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
        (["--at-once", "4", "a"], b"", "--at-once is for many texts"),
        (["--save-categories", "c.toml", "a text"], b"", "With --save-categories no text is"),
        (["--save-categories", "c.toml", "--jsonl"], b"{}", "With --save-categories no text is"),
        (["--evaluate", "examples", "a text"], b"", "With --evaluate no text is classified"),
        (["--save-categories", "."], b"", ". is a folder; name a file in it"),
        (["--save-categories", "/"], b"", "/ is a folder; name a file in it"),
        (["--save-categories", "no/such/c.toml"], b"", "There is no folder no/such"),
        (["--evaluate", "examples", "--plot", "."], b"", ". is a folder; name a file in it"),
        (["--evaluate", "examples", "--plot", "x" * 300], b"", "x ... cannot be written"),
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
    assert (rules.judged, rules.opened) == ([], 0)


def test_parts_that_were_read_and_not(rules: FakeEngine, command: Command) -> None:
    long = "word " * 800
    said = " ".join(command("moderate", f"{long}bomb {long}").stdout.split())
    assert "threshold 0.5, part 9 of 18; the rest was not read)" in said
    assert "the worst of" not in said
    said = " ".join(command("moderate", long).stdout.split())
    assert "allow: acceptable (probability 0.90, part 1 of 9) (the worst of 9 parts)" in said


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


def test_the_shipped_examples_with_other_categories(rules: FakeEngine, command: Command) -> None:
    result = command("moderate", "--evaluate", "examples", "--categories", "mistral", "--json")
    record = json.loads(result.stdout)
    assert (result.code, record["examples"], record["acceptable"]) == (0, 132, 60)
    assert sorted(record["confusion"]) == ["acceptable", "unacceptable"]


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

    def open_fake(settings: Settings, *more: object) -> FakeEngine:
        opened.append(settings.model)
        return rules

    monkeypatch.setattr(opening, "open_engine", open_fake)
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
    assert command("moderate", "--jsonl", "--at-once", "1", stdin=b'{"text": "a"}').stdout == ""
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


@pytest.mark.parametrize("mode", ["moderate", "strict"])
def test_what_is_not_streamed_is_held_back(rules: FakeEngine, command: Command, mode: str) -> None:
    rules.answers.extend(["They are vermin", "They are people"])
    result = command("--guardrail", mode, "--no-stream", "What are they?")
    assert (result.code, result.stdout) == (3, "")
    assert "The answer was refused: hateful" in result.stderr
    assert "vermin" not in result.stderr
    result = command("--guardrail", mode, "--no-stream", "-q", "What are they?")
    assert (result.code, result.stdout) == (0, "They are people\n")


def test_what_is_streamed_as_json_was_seen(rules: FakeEngine, command: Command) -> None:
    rules.answers.append("They are vermin")
    result = command("--guardrail", "moderate", "--jsonl", "--no-stream", "What are they?")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["verdict", "delta", "verdict", "finished"]
    assert lines[-1]["text"] == "They are vermin"


@pytest.mark.parametrize(("mode", "text"), [("moderate", ""), ("strict", "")])
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
    monkeypatch.setattr(opening, "open_engine", lambda settings, *more: engines[settings.model])
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


def test_a_model_that_moderates_badly_is_told_of_by_moderate_too(
    rules: FakeEngine, command: Command
) -> None:
    rules.name = "smollm2"
    caution = models.SMOLLM2.moderation
    assert caution is not None
    assert caution in command("moderate", "Hi").stderr
    assert caution in command("moderate", "--jsonl", stdin=b'{"text": "a"}').stderr
    assert command("moderate", "-q", "Hi").stderr == ""


PAIRS = list(zip(LOOKALIKES.splitlines(), HARMFUL.splitlines(), strict=True))


@pytest.mark.parametrize(("question", "twin"), PAIRS)
def test_only_probabilities_decide(
    rules: FakeEngine, command: Command, question: str, twin: str
) -> None:
    # Acceptable has a little more than all categories together, or a little less: nothing else
    # tells what passes, no word of a question above all.
    rules.answers.extend(["Gladly"] * 3)
    rules.rules = {question: (0, 0.51), twin: (0, 0.49)}
    result = command("--guardrail", "strict", "-q", question)
    assert (result.code, result.stdout) == (0, "Gladly\n")
    system, asked = rules.asked[0]
    assert (system.text, asked.text) == (GUARDRAIL_PROMPT, question)
    result = command("--guardrail", "strict", "-q", twin)
    assert (result.code, result.stdout) == (3, "")
    assert "The question was refused: illegal activities (probability 0.51" in result.stderr
    # And the other way round, with the very same words.
    rules.rules = {question: (0, 0.49), twin: (0, 0.51)}
    assert command("--guardrail", "strict", "-q", question).code == 3
    assert command("--guardrail", "strict", "-q", twin).stdout == "Gladly\n"
    assert [messages[-1].text for messages in rules.asked] == [question, twin]
