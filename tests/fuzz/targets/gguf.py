"""GGUF files: changed by somebody who knows the format, and as mere bytes."""

from __future__ import annotations

import copy
import io
import struct
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import gguf

import quant
from mistral_chat.messages import Message, Role
from mistral_chat.models.names import open_tokenizer
from mistral_chat.templates import template_for
from quant.checkpoints import open_checkpoint
from quant.errors import QuantError

from ..mutation import FLOATS, NUMBERS, TEXTS, changed_bytes
from ..target import Target
from ..tiny import answer, write_chat_gguf, write_pieces_gguf

CODES = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY, ALIGNMENT = 8, 9, 32

KEYS = (
    ("general.alignment", 4), ("general.name", 8), ("general.type", 8), ("split.count", 2),
    ("llama.rope.scaling.type", 8), ("llama.rope.scaling.factor", 6), ("llama.expert_count", 4),
    ("llama.attention.sliding_window", 4), ("llama.attention.sliding_window", 8),
    ("llama.attention.sliding_window", 9), ("llama.attention.value_length", 4),
    ("llama.attention.scale", 6), ("llama.rope.dimension_count", 4), ("llama.vocab_size", 4),
    ("tokenizer.ggml.add_bos_token", 7), ("tokenizer.ggml.add_space_prefix", 7),
    ("tokenizer.ggml.remove_extra_whitespaces", 7), ("tokenizer.ggml.precompiled_charsmap", 9),
    ("tokenizer.ggml.eot_token_id", 4), ("tokenizer.ggml.pre", 8), ("tokenizer.chat_template", 8),
)  # fmt: skip
"""Keys that the tiny models lack, with the types that they may have."""
LENGTHS = (0, 1, 2, 16, 32, 64, 261, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)


@dataclass
class Layout:
    """The parts of a GGUF; ``counts`` are those of tensors and values, where they are not true."""

    values: list[list[Any]]
    tensors: list[list[Any]]
    body: bytes
    version: int = 3
    counts: list[int | None] = field(default_factory=lambda: [None, None])
    alignment: int = ALIGNMENT

    @classmethod
    def of(cls, data: bytes) -> tuple[Layout, int]:
        """The layout of a whole file, and how many bytes its header has."""
        stream = io.BytesIO(data)

        def number(code: str) -> Any:
            return struct.unpack("<" + code, stream.read(struct.calcsize("<" + code)))[0]

        def value(kind: int) -> Any:
            if kind == STRING:
                return stream.read(number("Q"))
            if kind == ARRAY:
                inner = number("I")
                return inner, [value(inner) for _ in range(number("Q"))]
            return number(CODES[kind])

        stream.seek(8)
        tensors, values = number("Q"), number("Q")
        told = []
        for _ in range(values):
            name, kind = value(STRING), number("I")
            told.append([name, kind, value(kind)])
        places = []
        for _ in range(tensors):
            name, dimensions = value(STRING), number("I")
            places.append(
                [name, [number("Q") for _ in range(dimensions)], number("I"), number("Q")]
            )
        end = stream.tell()
        return cls(told, places, data[-(-end // ALIGNMENT) * ALIGNMENT :]), end

    def to_bytes(self) -> bytes:
        """The file, whatever its parts are."""
        tensors, values = self.counts
        head = [
            b"GGUF" + _packed("I", self.version),
            _packed("Q", len(self.tensors) if tensors is None else tensors),
            _packed("Q", len(self.values) if values is None else values),
        ]
        for name, kind, value in self.values:
            head += [_written(STRING, name), _packed("I", kind), _written(kind, value)]
        for name, lengths, kind, offset in self.tensors:
            head += [_written(STRING, name), _packed("I", len(lengths))]
            head += [_packed("Q", length) for length in lengths]
            head += [_packed("I", kind), _packed("Q", offset)]
        header = b"".join(head)
        return header + bytes(-len(header) % self.alignment) + self.body


def _packed(code: str, value: Any) -> bytes:
    """A number as that code has it; one that does not fit loses its upper bits."""
    size = struct.calcsize("<" + code)
    if code in "fd":
        try:
            return struct.pack("<" + code, value)
        except (OverflowError, struct.error):
            return b"\xff" * size
    whole = value if isinstance(value, int) else 2**63
    return (whole % (1 << 8 * size)).to_bytes(size, "little")


def _written(kind: int, value: Any) -> bytes:
    if kind == STRING:
        text: bytes = (
            value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        )
        return struct.pack("<Q", len(text)) + text
    if kind == ARRAY:
        inner, entries = value if isinstance(value, tuple) else (4, [value])
        head = _packed("I", inner) + _packed("Q", len(entries))
        return head + b"".join(_written(inner, entry) for entry in entries)
    return bytes(4) if kind not in CODES else _packed(CODES[kind], value)


def _odd(random: Random, kind: int) -> Any:
    """A value of that type that nobody expects."""
    if kind == STRING:
        return random.choice(TEXTS)
    if kind == ARRAY:
        inner = random.choice((4, 5, 6, 8, 10, 11, 12, 0, 7))
        return inner, [_odd(random, inner) for _ in range(random.randrange(5))]
    return random.choice(FLOATS if kind in (6, 12) else NUMBERS)


def changed_layout(random: Random, layout: Layout) -> bytes:
    """A file whose values, tensors, counts, array entries or body are changed."""
    layout = copy.deepcopy(layout)
    for _ in range(random.choice((1, 1, 2, 3))):
        if not layout.values or not layout.tensors:
            break
        kind = random.randrange(20)
        if kind < 7:
            _change_values(random, layout, kind)
        elif kind < 14:
            _change_tensors(random, layout, kind)
        elif kind == 14:
            layout.counts[random.randrange(2)] = random.choice(NUMBERS)
        elif kind == 15:
            layout.version = random.choice((0, 1, 2, 3, 4, 2**31, 3 << 24))
        elif kind == 16:
            layout.body = layout.body[: random.randrange(len(layout.body) + 1)]
        elif kind == 17:
            layout.alignment = random.choice((1, 8, 16, 64, 4096))
        else:
            _change_entries(random, layout)
    return layout.to_bytes()


def _change_values(random: Random, layout: Layout, kind: int) -> None:
    place = random.randrange(len(layout.values))
    entry = layout.values[place]
    if kind == 0:
        entry[2] = _odd(random, entry[1])
    elif kind == 1:
        entry[1] = random.choice((*range(14), 99))
        entry[2] = _odd(random, entry[1])
    elif kind == 2:
        del layout.values[place]
    elif kind == 3:
        layout.values.append(list(entry))
    elif kind == 4:
        entry[0] = random.choice((*TEXTS, "general.alignment"))
    else:
        name, told = random.choice(KEYS)
        layout.values.append([name, told, _odd(random, told)])


def _change_tensors(random: Random, layout: Layout, kind: int) -> None:
    place = random.randrange(len(layout.tensors))
    entry = layout.tensors[place]
    if kind == 7:
        entry[1] = [random.choice(LENGTHS) for _ in range(random.randrange(6))]
    elif kind == 8 and entry[1]:
        entry[1][random.randrange(len(entry[1]))] = random.choice(NUMBERS)
    elif kind == 9:
        entry[2] = random.choice((*range(41), 255, 2**32 - 1))
    elif kind == 10:
        entry[3] = random.choice((*NUMBERS, entry[3] + 1, entry[3] + 32))
    elif kind == 11:
        entry[0] = random.choice((*TEXTS, "rope_freqs.weight", "blk.0.attn_q.bias"))
    elif kind == 12:
        del layout.tensors[place]
    else:
        layout.tensors.append(copy.deepcopy(entry))


def _change_entries(random: Random, layout: Layout) -> None:
    """Replace, remove or repeat an entry of an array: of a vocabulary, as a rule."""
    arrays = [entry for entry in layout.values if isinstance(entry[2], tuple) and entry[2][1]]
    if not arrays:
        return
    inner, entries = random.choice(arrays)[2]
    place, kind = random.randrange(len(entries)), random.randrange(4)
    if kind == 0:
        entries[place] = _odd(random, inner)
    elif kind == 1:
        del entries[place]
    elif kind == 2:
        entries.append(entries[place])
    else:
        entries[place] = random.choice(entries)


class GGUF(Target):
    """Metadata, checkpoint, the tokenizer inside, and for some a whole answer."""

    name = "gguf"
    short = 150
    kernels = ("f16",)

    def make(self) -> None:
        kinds = gguf.GGMLQuantizationType
        made = [write_chat_gguf(self.folder / "chat.gguf"), write_pieces_gguf(self.folder / "sp")]
        made += [
            write_chat_gguf(self.folder / f"{kind.name}.gguf", kind)
            for kind in (kinds.Q4_0, kinds.Q8_0, kinds.F16)
        ]
        self.raw = [path.read_bytes() for path in made]
        self.layouts = [Layout.of(data) for data in self.raw]

    def case(self, random: Random, scratch: Path) -> None:
        path = scratch / "m.gguf"
        path.write_bytes(self._damaged(random))
        whole = random.random() < 0.5
        quant.read_gguf_metadata(path)
        open_checkpoint(path)
        try:
            template_for(open_tokenizer(path)).encode([Message(Role.USER, "hi there")])
        except QuantError:
            if not whole:
                raise
        if whole:
            answer(path, scratch)
        else:
            quant.load(path, quant.QuantSpec(4, 32))

    def _damaged(self, random: Random) -> bytes:
        choice = random.randrange(len(self.raw))
        data, (layout, head) = self.raw[choice], self.layouts[choice]
        kind = random.randrange(10)
        if kind < 4:
            return changed_layout(random, layout)
        if kind < 7:
            return changed_bytes(random, data, 0, head)
        if kind == 7:
            return changed_bytes(random, data, 0, 200)
        if kind == 8:
            return changed_bytes(random, data, head, None, random.choice((1, 10, 50)))
        if random.random() < 0.3:
            return data[: random.randrange(len(data))]
        return changed_bytes(random, changed_layout(random, layout), 0, head, 1)


TARGET = GGUF
