"""A rolling buffer in a file, so that a text that was read once need not be read again.

An ordinary safetensors file: the ids, and for each layer the slots that hold something. Its
metadata say what it belongs to; a file that is damaged or belongs to something else is refused, and
nothing is trusted of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from .cache import LANES, TILE, RollingCache
from .errors import CacheError

FORMAT = "mistral-chat cache 1"
PARTS = ("keys", "values", "key_scales", "value_scales")


def write_cache(path: Path, cache: RollingCache, ids: list[int], identity: str) -> int:
    """Write ``cache``, in which ``ids`` were read, whole or not at all; the bytes it takes.

    ``identity`` names the model and all else that keys and values depend on. Of what was trimmed
    away nothing is written. Only its owner may read the file. Raises OSError.
    """
    tensors: dict[str, Any] = {"ids": np.asarray(ids, np.int64)}
    # What was trimmed away is left out, unless a ring has wrapped and holds it in between.
    wrapped = any(cache.furthest > layer.slots for layer in cache.layers)
    furthest = cache.furthest if wrapped else cache.position
    for number, layer in enumerate(cache.layers):
        held = min(-(-furthest // TILE) * TILE, layer.slots)
        tensors[f"{number}.keys"] = layer.keys[:, : held // LANES].copy()
        tensors[f"{number}.values"] = layer.values[:, :held].copy()
        if layer.key_scales.size:
            tensors[f"{number}.key_scales"] = layer.key_scales[:, :held].copy()
            tensors[f"{number}.value_scales"] = layer.value_scales[:, :held].copy()
        # What was trimmed is nobody's, and may be what a person did not want to keep.
        end = held if furthest <= layer.slots else furthest
        slots = np.arange(cache.position, min(end, cache.position + layer.slots)) % layer.slots
        tensors[f"{number}.keys"][:, slots // LANES, :, slots % LANES] = 0
        for part in PARTS[1:]:
            if f"{number}.{part}" in tensors:
                tensors[f"{number}.{part}"][:, slots] = 0
    description = {
        "format": FORMAT,
        "identity": identity,
        "kind": cache.kind,
        "windows": repr(cache.windows),
        "position": str(cache.position),
        "furthest": str(furthest),
    }
    new = path.with_name(f".{path.name}.new")
    try:
        # Made first, so that nobody else can read it at any moment.
        os.close(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        save_file(tensors, new, description)
        new.chmod(0o600)
        new.replace(path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        new.unlink(missing_ok=True)
    return path.stat().st_size


def read_cache(path: Path, cache: RollingCache, identity: str) -> list[int]:
    """Fill ``cache`` with what :func:`write_cache` wrote; the ids that were read in it.

    The context may have another length, as long as no ring had wrapped. Raises
    :class:`~quant.errors.CacheError`, with the cache empty, for a file that does not fit.
    """
    cache.trim(0)
    try:
        with safetensors.safe_open(path, "np") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT or told.get("identity") != identity:
                raise CacheError(f"{path} belongs to another model, format or version.")
            if told["kind"] != cache.kind or told["windows"] != repr(cache.windows):
                raise CacheError(f"{path} holds another kind of cache.")
            ids = file.get_tensor("ids").tolist()
            position, furthest = int(told["position"]), int(told["furthest"])
            if not 0 <= position == len(ids) <= furthest or position > cache.context:
                raise CacheError(f"{path} does not fit into this context.")
            for number, layer in enumerate(cache.layers):
                held = min(-(-furthest // TILE) * TILE, layer.slots)
                for part in PARTS:
                    array = getattr(layer, part)
                    if not array.size:
                        continue
                    stored = file.get_tensor(f"{number}.{part}")
                    length = held // LANES if part == "keys" else held
                    if stored.shape != (array.shape[0], length, *array.shape[2:]):
                        # A ring that had wrapped keeps positions by its own number of slots.
                        raise CacheError(f"{path} does not fit into this context.")
                    array[:, :length] = stored
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CacheError(f"{path} cannot be used: {error}.") from error
    cache.position, cache.furthest = position, furthest
    return list(ids)
