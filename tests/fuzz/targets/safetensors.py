"""Folders of safetensors: headers, offsets, indexes of shards, and what native folders tell."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import quant
from quant.checkpoints import open_checkpoint

from ..mutation import (
    NUMBERS,
    TEXTS,
    changed_bytes,
    changed_header,
    changed_value,
    damaged_safetensors,
    join_safetensors,
    split_safetensors,
    to_json,
    unicode_only,
)
from ..target import Target
from ..tiny import (
    answer,
    companions_of,
    write_chat_huggingface,
    write_chat_mistral,
    write_native,
)

INDEX = "model.safetensors.index.json"
FILES = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "model-00001-of-00003.safetensors/",
    "x" * 300, "\x00", "\ud800", "config.json", "tokenizer.json", "~",
)  # fmt: skip
SPECS: tuple[Any, ...] = (
    {"bits": 8}, {"bits": 4, "group_size": 64}, {"bits": "4"}, {"symmetric": "x"},
    {"bits": 4, "group_size": 32, "symmetric": True},
    {"bits": 8, "group_size": 32, "symmetric": False}, [], {"bits": [4]}, {"group_size": True},
    {"x": 1}, None,
)  # fmt: skip


def changed_description(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """The header of a native file whose own description of its tensors is changed."""
    header = copy.deepcopy(header)
    told, kind = header["__metadata__"], random.randrange(8)
    packed = json.loads(told["packed"])
    fields = packed[random.choice(list(packed))]
    if kind < 3:
        told["packed"] = to_json(changed_value(random, packed), random).decode("utf-8", "replace")
    elif kind == 3:
        receipt = changed_value(random, json.loads(told["receipt"]))
        told["receipt"] = to_json(receipt, random).decode("utf-8", "replace")
    elif kind == 4:
        told[random.choice(list(told))] = random.choice(unicode_only())
    elif kind == 5:
        del told[random.choice(list(told))]
    else:
        if kind == 6:
            odd = (*NUMBERS, float("inf"), float("nan"), "64", None)
            fields[random.choice(("rows", "columns"))] = random.choice(odd)
        else:
            fields["spec"] = random.choice(SPECS)
        told["packed"] = json.dumps(packed)
    return header


def changed_index(random: Random, index: dict[str, Any], shards: list[str]) -> Any:
    """An index of shards that names other files, too few tensors or too many."""
    index = copy.deepcopy(index)
    places, kind = index["weight_map"], random.randrange(7)
    name = random.choice(list(places))
    if kind == 0:
        places[name] = random.choice(FILES)
    elif kind == 1:
        del places[name]
    elif kind == 2:
        places[name] = random.choice(shards)
    elif kind == 3:
        places[random.choice(TEXTS)] = random.choice(shards)
    else:
        return changed_value(random, index)
    return index


class Safetensors(Target):
    """Hugging Face's and Mistral's folders and native ones; for some a whole answer."""

    name = "safetensors"
    short = 150
    kernels = ("f16",)

    def make(self) -> None:
        folder = self.folder
        self.singles = [
            write_chat_huggingface(folder / "hf") / "model.safetensors",
            write_chat_mistral(folder / "mistral") / "consolidated.safetensors",
            write_chat_mistral(folder / "pieces", tekken=False) / "consolidated.safetensors",
            write_native(folder / "native") / "weights.safetensors",
        ]
        self.sharded = write_chat_huggingface(folder / "sharded", shards=3)
        shards = sorted(self.sharded.glob("*.safetensors"))
        self.parts = {path: split_safetensors(path.read_bytes()) for path in self.singles + shards}
        self.shards = [path.name for path in shards]
        self.index = json.loads((self.sharded / INDEX).read_text())

    def case(self, random: Random, scratch: Path) -> None:
        model = scratch / "model"
        if random.random() < 0.25:
            self._write_shards(random, companions_of(self.sharded, model))
        else:
            source = random.choice((*self.singles, self.singles[-1]))
            companions_of(source.parent, model)
            (model / source.name).write_bytes(self._damaged(random, source))
        open_checkpoint(model)
        if random.random() < 0.4:
            answer(model, scratch)
        else:
            quant.load(model, quant.QuantSpec(4, 32))

    def _damaged(self, random: Random, source: Path) -> bytes:
        header, body = self.parts[source]
        kind = random.random()
        if kind < 0.2:
            data = join_safetensors(header, body)
            head = len(data) - len(body)
            return changed_bytes(random, data, 0, random.choice((16, head, len(data))))
        if "packed" in header["__metadata__"] and kind < 0.6:
            return damaged_safetensors(random, changed_description(random, header), body)
        if kind < 0.8:
            return damaged_safetensors(random, changed_header(random, header), body)
        return damaged_safetensors(random, changed_value(random, header), body)

    def _write_shards(self, random: Random, model: Path) -> None:
        """Shards of which one may be damaged, and their index, which often is."""
        spoilt = random.choice(self.shards) if random.random() < 0.3 else None
        for name in self.shards:
            header, body = self.parts[self.sharded / name]
            if name == spoilt:
                data = damaged_safetensors(random, changed_header(random, header), body)
            else:
                data = join_safetensors(header, body)
            (model / name).write_bytes(data)
        index = self.index
        if random.random() < 0.8:
            index = changed_index(random, index, self.shards)
        (model / INDEX).write_bytes(to_json(index, random))


TARGET = Safetensors
