"""Changes to values as JSON has them, to bytes, and to what begins a safetensors file."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 7, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 257, 1023, 4096, 65535,
    65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    -(2**31), -(2**63), 10**30, -(10**30),
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 1.0, 0.5, 1.5, -1.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"),
    float("-inf"), 5e-324, 1e30, 1e-45,
)  # fmt: skip
TEXTS = (
    "", "a", " ", "\n", "\x00", "\x1b[31m", "\ud800", "\udc80x", "é", "\U0010ffff", "\U000f0000",
    "\u202e", "▁", "../../etc/passwd", "/etc/passwd", "null", "None", "NaN", "1e999", "0x10",
    "9" * 5000, "a" * 70000, "[INST]", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<0x41>",
    "<0xZZ>", "{{ 1 }}", "{% for", "llama", "mistral", "silu", "default", "linear", "F32", "BF16",
    "I64", "U8", "system", "user", "a b", "[1,[[[[[[2", "null," * 50,
)  # fmt: skip
COLLECTIONS: tuple[Any, ...] = (
    [], {}, [[]], {"": ""}, [None], [0, 1], ["a", "b"], {"content": 5}, {"content": "x"},
    {"type": "x"}, [{}], [1] * 1000,
)  # fmt: skip

_DIGITS, _LISTS, _OBJECTS = "\ue000digits", "\ue000lists", "\ue000objects"
_UNWRITABLE = {
    _DIGITS: "9" * 5000,
    _LISTS: "[" * 100_000 + "]" * 100_000,
    _OBJECTS: '{"a":' * 3000 + "1" + "}" * 3000,
}
"""What stands for JSON that Python cannot write: a number too long, and values too deep."""


def unicode_only(texts: Sequence[str] = TEXTS) -> list[str]:
    """Those texts that UTF-8 can hold."""
    return [text for text in texts if not any(0xD800 <= ord(each) < 0xE000 for each in text)]


def odd_value(random: Random, depth: int = 0) -> Any:
    """A value that nobody expects."""
    kind = random.randrange(12)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 5:
        return random.choice(FLOATS)
    if kind < 8:
        return random.choice(TEXTS)
    if kind == 8:
        return random.choice((None, True, False))
    if kind == 9:
        return copy.deepcopy(random.choice(COLLECTIONS))
    if kind == 10 and random.random() < 0.3:
        return random.choice(tuple(_UNWRITABLE))
    return [odd_value(random, depth + 1) for _ in range(random.randrange(4))] if depth < 3 else None


_Path = tuple[Any, ...]


def _paths(value: Any, path: _Path = ()) -> list[_Path]:
    """The keys that lead to every value in ``value``; of many alike the first and the last."""
    found = [path]
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return found
    for key in keys if len(keys) <= 50 else keys[:25] + keys[-25:]:
        found += _paths(value[key], (*path, key))
    return found


def _at(value: Any, path: _Path) -> Any:
    for key in path:
        value = value[key]
    return value


def changed_value(random: Random, value: Any, times: int | None = None) -> Any:
    """A copy of ``value`` with some of its parts replaced, removed, moved, wrapped or repeated."""
    value = copy.deepcopy(value)
    for _ in range(times or random.choice((1, 1, 1, 2, 2, 3, 5))):
        paths = _paths(value)
        if len(paths) == 1 or random.random() < 0.02:
            value = odd_value(random)
            continue
        shallow = [path for path in paths[1:] if len(path) <= 3]
        path = random.choice(paths[1:] if random.random() < 0.6 else shallow)
        _change_part(random, value, _at(value, path[:-1]), path[-1], paths)
    return value


def _change_part(random: Random, whole: Any, parent: Any, key: Any, paths: list[_Path]) -> None:
    """Change one part of ``whole``: what ``parent``, an object or a list, has at ``key``."""
    part, kind = parent[key], random.randrange(14)
    if kind == 6:
        del parent[key]
    elif kind == 7 and isinstance(parent, dict):
        parent[random.choice(TEXTS)] = parent.pop(key)
    elif kind == 7:
        parent.insert(key, odd_value(random))
    elif kind == 8:
        parent[key] = [part]
    elif kind == 9:
        parent[key] = {"x": part}
    elif kind == 10:
        parent[key] = copy.deepcopy(_at(whole, random.choice(paths)))
    elif kind == 11 and isinstance(part, int):
        parent[key] = part + random.choice((-1, 1, 2, -2, 16, -16))
    elif kind == 11 and isinstance(part, str):
        cut = random.randrange(len(part) + 1)
        parent[key] = part[:cut] + random.choice(TEXTS[:18]) + part[cut + random.randrange(3) :]
    elif kind == 12 and isinstance(parent, dict):
        parent[random.choice(TEXTS)] = odd_value(random)
    elif kind == 12:
        parent.extend([copy.deepcopy(part)] * random.choice((1, 2, 50)))
    elif kind == 13 and type(part) in (int, float):
        parent[key] = random.choice((str(part), part * 1.0, -part, part * 2, bool(part)))
    else:
        parent[key] = odd_value(random)


def to_json(value: Any, random: Random | None = None) -> bytes:
    """``value`` as JSON, with what Python cannot write; damaged now and then with ``random``."""
    text = json.dumps(value)
    for stand_in, written in _UNWRITABLE.items():
        text = text.replace(json.dumps(stand_in), written)
    data = text.encode()
    return changed_bytes(random, data) if random and random.random() < 0.15 else data


def changed_bytes(
    random: Random, data: bytes, start: int = 0, end: int | None = None, times: int | None = None
) -> bytes:
    """``data`` with bits turned, numbers written over, parts cut out, put in or repeated.

    Only what begins at ``start`` to ``end`` is changed.
    """
    changed = bytearray(data)
    for _ in range(times or random.choice((1, 1, 2, 3, 8))):
        stop = len(changed) if end is None else min(end, len(changed))
        if stop <= start:
            break
        at, kind = random.randrange(start, stop), random.randrange(9)
        if kind == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind in (2, 3):
            code, size = ("<Q", 8) if kind == 2 else ("<I", 4)
            changed[at : at + size] = struct.pack(code, random.choice(NUMBERS) % 2 ** (8 * size))
        elif kind == 4:
            del changed[at : at + random.choice((1, 2, 4, 8, random.randrange(1, 100)))]
        elif kind == 5:
            changed[at:at] = random.randbytes(random.choice((1, 4, 8)))
        elif kind == 6:
            begin = random.randrange(start, stop)
            changed[at:at] = changed[begin : begin + random.randrange(1, 64)]
        elif kind == 7 and random.random() < 0.3:
            del changed[at:]
        else:
            changed[at] = random.randrange(256)
    return bytes(changed)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: Any, body: bytes) -> bytes:
    """The file of a header and a body."""
    text = to_json(header)
    return len(text).to_bytes(8, "little") + text + body


def damaged_safetensors(random: Random, header: Any, body: bytes) -> bytes:
    """The file of a header and a body, whose text, length and body may each be damaged, too."""
    text = to_json(header)
    if random.random() < 0.1:
        text = changed_bytes(random, text)
    if random.random() < 0.3:
        text += b" " * (-len(text) % 8)
    length = len(text)
    if random.random() < 0.05:
        length = random.choice((*NUMBERS, length - 1, length + 1, length + 8)) % 2**64
    if random.random() < 0.1:
        cut = body[: random.randrange(len(body) + 1)]
        body = random.choice((cut, body + bytes(8), changed_bytes(random, body, times=30)))
    return length.to_bytes(8, "little") + text + body


DTYPES = "F32 F16 BF16 F64 I8 U8 I16 U16 I32 U32 I64 U64 BOOL F8_E4M3 F8_E5M2 F4 E8M0 C64 X".split()
LENGTHS = (0, 1, 16, 64, 261, 2**32, 2**63, 2**64 - 1, -1)
FOREIGN = ("model.layers.0.self_attn.q_proj.bias", "model.layers.9.rotary_emb.inv_freq")


def changed_header(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """A safetensors header changed by somebody who knows what a header is."""
    header = copy.deepcopy(header)
    for _ in range(random.choice((1, 1, 2))):
        names = [name for name in header if name != "__metadata__"]
        name, other, kind = random.choice(names), random.choice(names), random.randrange(11)
        entry = header[name]
        if kind == 0:
            entry["dtype"] = random.choice(DTYPES)
        elif kind == 1:
            entry["shape"] = [random.choice(LENGTHS) for _ in range(random.randrange(7))]
        elif kind == 2:
            entry["shape"] = entry["shape"][::-1]
        elif kind == 3:
            entry["shape"] = [*entry["shape"], 1]
        elif kind == 4:
            entry["shape"] = [1, *entry["shape"]]
        elif kind == 5:
            header[random.choice((*TEXTS, *FOREIGN, "lm_head.weight"))] = header.pop(name)
        elif kind == 6:
            entry["data_offsets"] = [random.choice(NUMBERS), random.choice(NUMBERS)]
        elif kind == 7:
            del header[name]
        elif kind == 8:
            entry["extra"] = 1
        elif kind == 9:
            header[name], header[other] = header[other], header[name]
        else:
            told: tuple[Any, ...] = ({}, {"format": 1}, None, [], {"a": "b"}, {"format": "pt"})
            header["__metadata__"] = random.choice(told)
    return header
