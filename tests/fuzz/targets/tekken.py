"""``tekken.json``: ranks, bytes, special tokens and counts that do not fit together."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from random import Random
from typing import Any

from ..mutation import NUMBERS, TEXTS, changed_value, to_json
from ..target import Target
from ..tiny import tekken_values
from ..vocabularies import exercise, write_companions

PATTERNS = (
    "(a+)+$", "(", "a{99999}", "(?<=a*)b", ".*", "", "(?:a|a)*b", "\\p{Foo}", "[", "x" * 10000,
    "(?i)(?:)", "(?=a)",
)  # fmt: skip
BYTES = ("", "====", "QQ", "QUJD", "!!!!", "QQ==", "\u0100")
VERSIONS: tuple[Any, ...] = ("v1", "v3", "v7", "v11", "v13", "v99", None, 5, [], {})
PIECES: tuple[Any, ...] = ("[INST]", "</s>", "<s>", "a", " ", "\n", "", 5, None, ["a"])


def changed_vocabulary(random: Random, values: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary changed by somebody who knows what is in one."""
    values = copy.deepcopy(values)
    config, tokens, specials = values["config"], values["vocab"], values["special_tokens"]
    token, special = random.choice(tokens), random.choice(specials)
    kind = random.randrange(13)
    if kind == 0:
        config["pattern"] = random.choice(PATTERNS)
    elif kind == 1:
        name = random.choice(("default_vocab_size", "default_num_special_tokens"))
        config[name] = random.choice((*NUMBERS, 1e9, 10**7))
    elif kind == 2:
        token["rank"] = random.choice(NUMBERS)
    elif kind == 3:
        token["token_bytes"] = random.choice(BYTES)
    elif kind == 4:
        tokens.remove(token)
    elif kind == 5:
        special["rank"] = random.choice(NUMBERS)
    elif kind == 6:
        special["token_str"] = random.choice((*TEXTS, *PIECES))
    elif kind == 7:
        config["version"] = random.choice(VERSIONS)
    elif kind == 8:  # a byte is lost, and the counts are right
        lost = random.randrange(256)
        tokens[lost]["token_bytes"] = base64.b64encode(b"zzz" + bytes([lost])).decode()
    elif kind == 9:
        values["special_tokens"] = random.choice((None, specials[: random.randrange(20)]))
    elif kind == 10:
        count = random.randrange(25)
        config["default_num_special_tokens"] = count
        config["default_vocab_size"] = len(tokens) + count
    elif kind == 11:
        values["vocab"] = tokens[: random.randrange(len(tokens))]
        config["default_vocab_size"] = len(specials) + len(values["vocab"])
    else:
        special["is_control"] = random.choice((False, None, 1, "yes"))
    return values


class Tekken(Target):
    """Tekken files, with their companions."""

    name = "tekken"

    def make(self) -> None:
        self.values = tekken_values()

    def case(self, random: Random, scratch: Path) -> None:
        change = changed_value if random.random() < 0.5 else changed_vocabulary
        values = change(random, self.values)
        (scratch / "tekken.json").write_bytes(to_json(values, random))
        if random.random() < 0.2:
            write_companions(random, scratch)
        exercise(random, scratch)


TARGET = Tekken
