"""A rolling buffer in a file, so that a text that was read once need not be read again.

An ordinary safetensors file: the ids, and for each layer the slots that hold something. Its
metadata say what it belongs to and have a digest of all of it; a file that is damaged or belongs to
something else is refused, and nothing is trusted of it.

The digest is SHA-256, which processors have instructions for: 50 milliseconds for 100 MB, less than
half of what blake2b takes. It finds damage, not malice: whoever may write the file may write a
digest, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .cache import LANES, TILE, RollingCache
from .errors import CacheError

FORMAT = "mistral-chat cache 2"
"""To be changed, too, when the engine computes other keys and values from the same weights."""

PARTS = ("keys", "values", "key_scales", "value_scales")
LONGEST_HEADER = 1 << 24
BLOCK = 1 << 20
"""Bytes that are checked at once: they are still near the processor when they are looked at."""

_TYPES = {"int64": "I64", "float32": "F32", "uint16": "U16", "uint8": "U8"}
_EXPONENT = np.uint16(0x7C00)  # all ones in a float16 that is no number, and in an infinite one
_NO_DIGEST = "0" * 64
_BINARY = getattr(os, "O_BINARY", 0)  # only Windows has it, and changes line ends without


def write_cache(path: Path, cache: RollingCache, ids: list[int], identity: str) -> int:
    """Write ``cache``, in which ``ids`` were read, whole or not at all; the bytes it takes.

    ``identity`` names the model and all else that keys and values depend on. Of what was trimmed
    away nothing is written. Only its owner may read the file. A process that is killed meanwhile
    leaves ``.NAME.*.new`` beside it. Raises OSError.
    """
    # What was trimmed away is left out, unless a ring has wrapped and holds it in between.
    wrapped = any(cache.furthest > layer.slots for layer in cache.layers)
    furthest = cache.furthest if wrapped else cache.position
    told = {
        "format": FORMAT,
        "identity": identity,
        "kind": cache.kind,
        "windows": repr(cache.windows),
        "position": str(cache.position),
        "furthest": str(furthest),
    }
    layout = _layout(cache, len(ids), furthest)
    whole = _digest(told, layout)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        # Nobody else can read it at any moment.
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            size = _write(file, _header(told, layout, _NO_DIGEST))
            for array in _arrays(cache, ids, furthest):
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                whole.update(raw)
                size += _write(file, raw)
            file.seek(0)
            _write(file, _header(told, layout, whole.hexdigest()))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return size


def read_cache(path: Path, cache: RollingCache, identity: str) -> list[int]:
    """Fill ``cache`` with what :func:`write_cache` wrote; the ids that were read in it.

    The context may have another length, as long as no ring had wrapped. Raises
    :class:`~quant.errors.CacheError`, with the cache empty, for a file that does not fit.
    """
    cache.trim(0)
    try:
        with path.open("rb") as file:
            told, header = _read_header(file)
            if told.get("format") != FORMAT or told.get("identity") != identity:
                raise CacheError(f"{path} belongs to another model, format or version.")
            if told["kind"] != cache.kind or told["windows"] != repr(cache.windows):
                raise CacheError(f"{path} holds another kind of cache.")
            position, furthest = int(told["position"]), int(told["furthest"])
            if not 0 <= position <= furthest or position > cache.context:
                raise CacheError(f"{path} does not fit into this context.")
            layout = _layout(cache, position, furthest)
            # A ring that had wrapped keeps positions by its own number of slots.
            if header != _entries(layout):
                raise CacheError(f"{path} does not fit into this context.")
            digest = told.pop("digest")
            ids = _read_checked(
                file, path, cache, position, furthest, _digest(told, layout), digest
            )
    except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CacheError(f"{path} cannot be used: {error}.") from error
    cache.position, cache.furthest = position, furthest
    return ids


Layout = list[tuple[str, str, tuple[int, ...], int]]
"""For each tensor its name, its type in safetensors' words, its shape, and its bytes."""


def _held(cache: RollingCache, furthest: int) -> Iterator[tuple[str, Any]]:
    """Names and views of what each layer holds of positions up to ``furthest``."""
    for number, layer in enumerate(cache.layers):
        held = min(-(-furthest // TILE) * TILE, layer.slots)
        for part in PARTS:
            array = getattr(layer, part)
            if array.size:
                yield f"{number}.{part}", array[:, : held // LANES if part == "keys" else held]


def _layout(cache: RollingCache, ids: int, furthest: int) -> Layout:
    layout: Layout = [("ids", "I64", (ids,), 8 * ids)]
    for name, array in _held(cache, furthest):
        layout.append((name, _TYPES[array.dtype.name], array.shape, array.nbytes))
    return layout


def _entries(layout: Layout) -> dict[str, Any]:
    """The tensors' entries in the header."""
    start, entries = 0, {}
    for name, kind, shape, size in layout:
        place = [start, start + size]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": place}
        start += size
    return entries


def _header(told: dict[str, str], layout: Layout, digest: str) -> bytes:
    """The file up to the first tensor; as long for each digest."""
    text = json.dumps({"__metadata__": {**told, "digest": digest}, **_entries(layout)}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(told: dict[str, str], layout: Layout) -> Any:
    """A digest of what the file says of itself, to which the tensors' bytes are to be added."""
    return hashlib.sha256(json.dumps([sorted(told.items()), layout]).encode())


def _arrays(cache: RollingCache, ids: list[int], furthest: int) -> Iterator[npt.NDArray[Any]]:
    """What is written, tensor by tensor: zeros in place of what was trimmed away.

    That is nobody's, and may be what a person did not want to keep.
    """
    yield np.asarray(ids, np.int64)
    for name, view in _held(cache, furthest):
        number, part = name.split(".")
        slots = cache.layers[int(number)].slots
        held = view.shape[1] * (LANES if part == "keys" else 1)
        end = held if furthest <= slots else furthest
        gone = np.arange(cache.position, min(end, cache.position + slots)) % slots
        array = view.copy()
        if part == "keys":
            array[:, gone // LANES, :, gone % LANES] = 0
        else:
            array[:, gone] = 0
        yield array


def _write(file: Any, data: bytes | memoryview) -> int:
    """Write all of ``data``; its bytes. Raises OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += file.write(view[done : done + (1 << 28)])
    return done


def _read_header(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of itself, and its tensors' entries. Raises ValueError, OSError."""
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise ValueError("its header is too long")
    header = json.loads(file.read(length))
    told = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    if not isinstance(told, dict) or not all(isinstance(each, str) for each in told.values()):
        raise ValueError("it does not say what it is")
    return told, header


def _read_checked(
    file: IO[bytes],
    path: Path,
    cache: RollingCache,
    ids: int,
    furthest: int,
    whole: Any,
    digest: str,
) -> list[int]:
    """Read the tensors into ``cache``, and the ids; where anything is wrong it is zeros again."""
    try:
        told = np.empty(ids, np.int64)
        _read_into(file, told, whole)
        finite = True
        for _, view in _held(cache, furthest):
            # Rows of a head lie side by side; a view of fewer slots has gaps between the heads.
            for head in view:
                finite = _read_into(file, head, whole) and finite
        if file.read(1) or whole.hexdigest() != digest:
            raise CacheError(f"{path} is damaged.")
        if not finite or (told < 0).any():
            raise CacheError(f"{path} holds values that are no numbers, or no ids.")
    except BaseException:
        # Also slots that no position has are multiplied, by zero, and must be finite.
        for layer in cache.layers:
            for part in PARTS:
                getattr(layer, part)[...] = 0
        raise
    ids_read: list[int] = told.tolist()
    return ids_read


def _read_into(file: IO[bytes], array: npt.NDArray[Any], whole: Any) -> bool:
    """Fill an array from the file, and add its bytes to the digest; whether all are numbers."""
    flat = array.reshape(-1).view(np.uint8)
    finite = True
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if file.readinto(block.data) != block.size:  # type: ignore[attr-defined]
            raise ValueError("it is cut off")
        whole.update(block)
        if array.dtype == np.uint16:  # float16, held as its bits
            finite = finite and bool((block.view(np.uint16) & _EXPONENT).max() < _EXPONENT)
        elif array.dtype == np.float32:
            finite = finite and bool(np.isfinite(block.view(np.float32)).all())
    return finite
