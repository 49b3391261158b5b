"""TOML that a person writes: the settings, and categories."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from random import Random

from mistral_chat.engines.options import sampling_of, template_options
from mistral_chat.guardrail.categories import load_taxonomy, parse_taxonomy, to_toml
from mistral_chat.settings import Settings, all_settings, resolve

from ..mutation import changed_bytes
from ..target import Target, require
from ..tiny import paths_in

CONFIG = """model = "smollm2"
context = 4096
temperature = 0.7
top_p = 0.9
seed = 5
guardrail = "off"
cache = true
plain = false
theme = "auto"
max_tokens = 100
kv = "f16"
"""
CATEGORIES = """acceptable = "acceptable"
[[category]]
name = "fraud"
description = "scams and forgeries"
action = "refuse"
threshold = 0.5
code = "S2"
[[category]]
name = "other"
action = "warn"
threshold = 0.25
"""
VALUES = (
    "0", "1", "-1", "0.5", "nan", "inf", "-inf", "1e999", "1e-400", "9" * 30, "9" * 5000, "0x10",
    "true", "false", '""', '"x"', '"on"', "[]", "{}", "[1, 2]", "1979-05-27", "07:32:00",
    '"\\u0000"', '"\\uD800"', '"""a\nb"""', "'''x'''", "+5", "1_000", "0.0", "2147483648",
    "18446744073709551616", '"acceptable"', '"fraud"', '"S2"', '" "', '"\u202e"', "[[[[[[]]]]]]",
    "[" * 2000 + "]" * 2000, "{a=1}", "=", "",
)  # fmt: skip
KEYS = (
    *(row.name for row in all_settings()), "x", "acceptable", "category", '"a b"', "a.b", "model.x",
)  # fmt: skip
LINES = ("[category]", "[[category]]", "[[category.x]]", "[x]", "[[x]]", "", "# c", "\x00", "=")
WORDS = (
    "", "0", "1", "-1", "nan", "inf", "1e999", "on", "off", "x", "9" * 30, "9" * 5000, "\x00",
    "1_0", " 1", "٣", "auto", "é",
)  # fmt: skip


def changed_toml(random: Random, text: str) -> bytes:
    """The text with values, keys and lines exchanged, and sometimes bytes."""
    lines = text.split("\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        place, kind = random.randrange(len(lines)), random.randrange(8)
        key = lines[place].partition("=")[0]
        if kind < 4 and "=" in lines[place]:
            lines[place] = f"{key}= {random.choice(VALUES)}"
        elif kind == 4:
            lines.insert(place, random.choice(lines))
        elif kind == 5 and len(lines) > 1:
            del lines[place]
        elif kind == 6:
            lines[place] = f"{random.choice(KEYS)} = {random.choice(VALUES)}"
        else:
            lines.insert(place, random.choice(LINES))
    data = "\n".join(lines).encode()
    return changed_bytes(random, data) if random.random() < 0.2 else data


class SettingsFiles(Target):
    """What is read can be used and written: settings as JSON, categories as TOML again."""

    name = "settings"

    def case(self, random: Random, scratch: Path) -> None:
        if random.random() < 0.5:
            self._resolve(random, scratch)
            return
        path = scratch / "categories.toml"
        path.write_bytes(changed_toml(random, CATEGORIES))
        read = load_taxonomy(str(path))
        again = parse_taxonomy(to_toml(read), str(path))
        require(again == read, "what was written is read otherwise")

    def _resolve(self, random: Random, scratch: Path) -> None:
        paths = paths_in(scratch / "home")
        paths.config.mkdir(parents=True)
        text = changed_toml(random, CONFIG) if random.random() < 0.8 else CONFIG.encode()
        paths.config_file.write_bytes(text)
        environment = {}
        if random.random() < 0.4:
            row = random.choice(all_settings())
            environment[row.environment] = random.choice(WORDS)
        settings = resolve({}, environment, paths)
        sampling_of(settings)
        template_options(settings)
        names = [row.name for row in fields(Settings) if row.name != "sources"]
        json.dumps({name: getattr(settings, name) for name in names}, allow_nan=False)
        if settings.categories is not None:
            load_taxonomy(settings.categories)


TARGET = SettingsFiles
