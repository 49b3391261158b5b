"""Categories as data: the presets that ship, and TOML files of a person's own.

::

    acceptable = "acceptable"            # may be left out

    [[category]]
    name = "fraud"                       # a label that the model can answer with
    description = "scams and forgeries"
    action = "refuse"                    # refuse (where left out), warn or allow
    threshold = 0.5                      # 0 to 1; 0.5 where left out
    code = "S2"                          # a dedicated classifier's name for it, if there is one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mistral_chat.errors import UsageError
from mistral_chat.guardrail.prompt import ACCEPTABLE, DEFAULT_THRESHOLD, Action, Category, Taxonomy
from mistral_chat.settings import brief, nearest, parse_toml
from mistral_chat.system.files import expanded, is_missing, read_text

PAPER, MISTRAL, LLAMA_GUARD = "paper", "mistral", "llama-guard"
PRESETS = (PAPER, MISTRAL, LLAMA_GUARD)

_KEYS = ("name", "description", "action", "threshold", "code")


def load_taxonomy(source: str) -> Taxonomy:
    """The categories of a preset, or of the file at a path.

    Raises UsageError that names the file and what is wrong in it.
    """
    return parse_taxonomy(taxonomy_text(source), source)


def taxonomy_text(source: str) -> str:
    """The TOML text of a preset, or of the file at a path; raises UsageError."""
    if source in PRESETS:
        data = resources.files("mistral_chat") / "data" / "categories" / f"{source}.toml"
        return data.read_text(encoding="utf-8")
    path = expanded(source)
    if is_missing(path):
        hint = nearest(source, dict.fromkeys(PRESETS))
        raise UsageError(
            f"There are no categories {source!r}{hint} Presets are {', '.join(PRESETS)}; the path "
            "of a TOML file works, too."
        )
    return read_text(path)


def parse_taxonomy(text: str, source: str) -> Taxonomy:
    """Categories from TOML; ``source`` names them in errors. Raises UsageError."""
    values = parse_toml(text, source)
    _check_keys(values, ("acceptable", "category"), source)
    rows = values.get("category", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{source}: each category begins with a line [[category]].")
    acceptable = _label(values.get("acceptable", ACCEPTABLE), "acceptable", source)
    categories = tuple(
        _category(row, f"{source}, category {place}") for place, row in enumerate(rows, 1)
    )
    codes = [each.code for each in categories if each.code is not None]
    for code in codes:
        if codes.count(code) > 1:
            raise UsageError(f"{source} has two categories of the code {code!r}; change one.")
    return Taxonomy(source, categories, acceptable)


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in values:
        if key not in known:
            hint = nearest(key, dict.fromkeys(known))
            raise UsageError(f"{place}: there is no key {key!r}{hint} Keys are {', '.join(known)}.")


def _category(row: Mapping[str, Any], place: str) -> Category:
    _check_keys(row, _KEYS, place)
    if "name" not in row:
        raise UsageError(f"{place} has no name; give it one.")
    name = _label(row["name"], "name", place)
    action = row.get("action", Action.REFUSE)
    if action not in [each.value for each in Action]:
        known = ", ".join(Action)
        raise UsageError(f"{place}: {brief(action)} is no action; actions are {known}.")
    threshold = row.get("threshold", DEFAULT_THRESHOLD)
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    # Before it is made a float, which a whole number may be too large for.
    if not (number and 0 <= threshold <= 1):
        raise UsageError(
            f"{place}: threshold must be a number from 0 to 1, not {brief(threshold)}."
        )
    code = row.get("code")
    if code is not None:
        code = _label(code, "code", place)
        if not code:
            raise UsageError(f"{place} has an empty code; write one, or leave the key out.")
    return Category(
        name,
        _label(row.get("description", name), "description", place),
        Action(action),
        float(threshold),
        code,
    )


def _label(value: object, key: str, place: str) -> str:
    if not isinstance(value, str) or len(value.splitlines()) > 1:
        raise UsageError(f"{place}: {key} must be a text of one line, not {brief(value)}.")
    return value.strip()


def to_toml(taxonomy: Taxonomy) -> str:
    """The categories as a file of their own.

    >>> text = to_toml(load_taxonomy("mistral"))
    >>> parse_taxonomy(text, "mistral") == load_taxonomy("mistral")
    True
    """
    lines = [f"acceptable = {_quoted(taxonomy.acceptable)}"]
    for each in taxonomy.categories:
        lines += ["", "[[category]]", f"name = {_quoted(each.name)}"]
        if each.code is not None:
            lines.append(f"code = {_quoted(each.code)}")
        lines += [
            f"description = {_quoted(each.description)}",
            f"action = {_quoted(each.action)}",
            f"threshold = {each.threshold!r}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # What JSON escapes in a text of one line, TOML reads the same way; DEL alone it does not allow.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
