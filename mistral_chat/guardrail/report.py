"""What ``mistral-chat moderate`` prints: verdicts, and how good they are."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mistral_chat.errors import UsageError
from mistral_chat.guardrail.categories import to_toml
from mistral_chat.guardrail.evaluation import Evaluation, Rates, json_lines
from mistral_chat.guardrail.moderation import Said
from mistral_chat.guardrail.prompt import Taxonomy, Verdict, shown, weight
from mistral_chat.messages import Role
from mistral_chat.settings import brief
from mistral_chat.system.screen import Screen
from quant.files import write_whole

PLOT_ROWS = 10


@dataclass(frozen=True, slots=True)
class Line:
    """A text of a file of many; ``values`` is the object it stands in."""

    values: Mapping[str, object]
    said: Said


def read_lines(data: bytes, place: str, role: Role) -> list[Line]:
    """Lines of JSON, each with a ``text``, perhaps a ``role`` of its own and a ``question``.

    Raises UsageError that names ``place`` and the line at fault.
    """
    lines = []
    for number, values in json_lines(data, place):
        text, own = values.get("text"), values.get("role", role.value)
        question = values.get("question", "")
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f'{place}, line {number} has no "text" to classify.')
        if not isinstance(own, str) or own not in (Role.USER, Role.ASSISTANT):
            raise UsageError(
                f"{place}, line {number}: the role of a text is user or assistant, not {own!r}."
            )
        if not isinstance(question, str):
            raise UsageError(f"{place}, line {number}: the question is not a text.")
        lines.append(Line(values, Said(text, Role(own), question)))
    if not lines:
        raise UsageError(f"There is no line to classify in {place}.")
    return lines


def verdict_table(verdict: Verdict, taxonomy: Taxonomy) -> Group:
    """A verdict to be read: a row for each label, then what it comes to.

    What a label weighs is told as :func:`mistral_chat.guardrail.prompt.weight` has it; that of
    acceptable is its probability.
    """
    table = Table("category", "probability", "weight", "threshold", "action")
    chance = verdict.probabilities[taxonomy.acceptable]
    table.add_row(Text(taxonomy.acceptable), f"{chance:.3f}", f"{chance:.3f}")
    for each in taxonomy.categories:
        chance = verdict.probabilities[each.name]
        table.add_row(
            Text(each.name),
            f"{chance:.3f}",
            f"{weight(chance, each.threshold):.3f}",
            shown(each.threshold),
            each.action.value,
            style="bold" if each.name == verdict.category else None,
        )
    known = f"Before they were made to add up to 1, these labels had {verdict.mass:.2g} together."
    whole = verdict.windows > 1 and verdict.read == verdict.windows
    parts = f" (the worst of {verdict.windows} parts)" if whole else ""
    return Group(table, Text(known), Text(f"{verdict.action.value}: {verdict.reason()}{parts}"))


def evaluation_report(evaluation: Evaluation) -> Group:
    """An evaluation to be read."""
    rates = Table("thresholds", "precision", "recall", "F1")
    rates.add_row("as they are", *_percent(evaluation.rates))
    validated = evaluation.cross_validated()
    if validated is not None:
        rates.add_row("calibrated, cross-validated", *_percent(validated))
    confusion = Table("is \\ found", *evaluation.taxonomy.labels)
    for label, row in evaluation.confusion.items():
        confusion.add_row(Text(label), *(str(count) for count in row.values()))
    thresholds = Table("category", "threshold", "calibrated on all examples")
    calibrated = evaluation.calibrated().categories
    for before, after in zip(evaluation.taxonomy.categories, calibrated, strict=True):
        thresholds.add_row(Text(before.name), shown(before.threshold), shown(after.threshold))
    count = int(evaluation.acceptable.sum())
    head = (
        f"{evaluation.model}, categories of {evaluation.taxonomy.source}, "
        f"{len(evaluation.examples)} examples, {count} of them acceptable, which is positive."
    )
    return Group(Text(head), rates, confusion, thresholds, plot(evaluation))


def _percent(rates: Rates) -> tuple[str, str, str]:
    return f"{rates.precision:.1%}", f"{rates.recall:.1%}", f"{rates.f1:.1%}"


def plot(evaluation: Evaluation) -> Text:
    """Precision (P) and recall (R) over one threshold for all categories; both in a place: B."""
    curve = evaluation.curve()
    rows = [[" "] * len(curve) for _ in range(PLOT_ROWS + 1)]
    for column, (_, rates) in enumerate(curve):
        marks = [("R", rates.recall)]
        if rates.true_positives + rates.false_positives:  # else there is no precision
            marks.append(("P", rates.precision))
        for mark, value in marks:
            row = rows[PLOT_ROWS - round(PLOT_ROWS * value)]
            row[column] = mark if row[column] == " " else "B"
    lines = ["P precision, R recall, B both, over one threshold for all categories"]
    for number, row in enumerate(rows):
        level = f"{100 - number * 100 // PLOT_ROWS:>4}% |" if number % 5 == 0 else "      |"
        lines.append(level + "  ".join(row).rstrip())
    lines.append("      +" + "-" * (3 * len(curve) - 2))
    lines.append("       " + "".join(f"{threshold:<15.2f}" for threshold, _ in curve[::5]).rstrip())
    return Text("\n".join(lines))


def check_target(path: Path) -> None:
    """Raise UsageError for a path at which no file can be written.

    It is asked before the work whose result goes there.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UsageError(f"{brief(str(path))} cannot be written; choose another name.") from error
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}; make it first.")


def save_plot(evaluation: Evaluation, path: Path) -> None:
    """The plot as an SVG file; raises OSError, and UsageError as :func:`check_target` does."""
    console = Screen(record=True, file=io.StringIO(), width=80)
    console.print(plot(evaluation))
    title = f"{evaluation.model}, {evaluation.taxonomy.source}"
    check_target(path)
    write_whole(path, console.export_svg(title=title).encode("utf-8"))


def save_categories(taxonomy: Taxonomy, path: Path) -> None:
    """The categories as a TOML file; raises as :func:`save_plot` does."""
    check_target(path)
    write_whole(path, to_toml(taxonomy).encode("utf-8"))


def to_json(values: Mapping[str, object]) -> str:
    """One line of JSON."""
    return json.dumps(values, ensure_ascii=False)
