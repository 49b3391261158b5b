"""What a model had read, in a damaged file: taken up whole, or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from quant.qtensor import QuantSpec

from ...quant.models import random_model
from ..mutation import (
    DTYPES,
    NUMBERS,
    changed_bytes,
    changed_value,
    join_safetensors,
    split_safetensors,
)
from ..target import Target, require

READ = list(range(3, 50))
"""The ids in the caches."""
NEXT = 7
CONTEXTS = (250, 250, 64, 48, 40)
WORDS = (*map(str, NUMBERS), "", "x", "47", "48", "46", "1e5", " 47", "४७")
OTHER_TYPES = {"I64": 8, "F64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F32": 4, "BF16": 2, "U64": 8}
"""Types that the ids might be told to have, with their bytes."""


def retyped(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """The header with ids of another type and shape, of as many bytes."""
    header = copy.deepcopy(header)
    entry = header["ids"]
    begin, end = entry["data_offsets"]
    kind = random.choice(list(OTHER_TYPES))
    count = (end - begin) // OTHER_TYPES[kind]
    entry["dtype"], entry["shape"] = kind, random.choice(([count], [1, count], [count, 1]))
    if random.random() < 0.5:
        header["__metadata__"].update(position=str(count), furthest=str(count))
    return header


class Cache(Target):
    """Caches of each kind of element; what is taken up is what was read."""

    name = "cache"
    kernels = ("f16", "int8", "f32")

    def make(self) -> None:
        self.model = random_model(spec=QuantSpec(8, 32))

    def start(self) -> None:
        self.files: dict[str, bytes] = {}
        self.logits: dict[str, Any] = {}
        path = self.folder / "whole.cache"
        for kind in self.kernels:
            session = self.model.session(max_context=CONTEXTS[0], kv=kind, threads=1)
            session.feed(READ)
            session.save(path, "identity")
            self.files[kind] = path.read_bytes()
            self.logits[kind] = session.feed([NEXT])

    def case(self, random: Random, scratch: Path) -> None:
        kind = random.choice(self.kernels)
        path = scratch / "a.cache"
        path.write_bytes(self._damaged(random, self.files[kind]))
        session = self.model.session(max_context=random.choice(CONTEXTS), kv=kind, threads=1)
        try:
            session.restore(path, "identity")
        except Exception:
            require(session.position == 0 and not session.ids, "something is left of what failed")
            raise
        require(all(type(token) is int for token in session.ids), f"ids {session.ids[:2]!r}")
        require(len(session.ids) == session.position, "not one id for each position")
        # What was damaged are numbers that nobody can check, or nothing.
        logits = session.feed([*READ, NEXT][session.reuse([*READ, NEXT]) :])
        require(logits.shape == self.logits[kind].shape, "no logits")
        if path.read_bytes() == self.files[kind]:
            np.testing.assert_array_equal(logits, self.logits[kind])

    def _damaged(self, random: Random, whole: bytes) -> bytes:
        header, body = split_safetensors(whole)
        head, kind = len(whole) - len(body), random.randrange(8)
        if kind == 0:
            return changed_bytes(random, whole, 0, head)
        if kind == 1:
            told = header["__metadata__"]
            told[random.choice(list(told))] = random.choice(WORDS)
        elif kind == 2:
            return join_safetensors(changed_value(random, header), body)
        elif kind == 3:
            name = random.choice([name for name in header if name != "__metadata__"])
            header[name]["dtype"] = random.choice(DTYPES)
        elif kind == 4:
            header = retyped(random, header)
        elif kind == 5:
            return whole[: random.randrange(len(whole) + 1)]
        elif kind == 6:
            return changed_bytes(random, whole, head)
        else:
            return whole
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body


TARGET = Cache
