"""The engine of mistral-chat: packed int4/int8 weights, compiled kernels, a rolling cache.

    import quant
    model = quant.load("smollm2.gguf")
    session = model.session(max_context=2048)
    for token in quant.generate(session, ids, quant.Sampling(temperature=0), stop={2}):
        ...

Names are loaded when they are first used, so ``import quant`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.cpu import compile_kernels as compile_kernels
    from .backends.cpu import kernels_compiled as kernels_compiled
    from .batch import SessionOptions as SessionOptions
    from .cache import RollingCache as RollingCache
    from .checkpoints import load as load
    from .checkpoints import quantize as quantize
    from .checkpoints.gguf import read_metadata as read_gguf_metadata
    from .config import ModelConfig as ModelConfig
    from .decoding.answers import Answer as Answer
    from .decoding.generation import Generation as Generation
    from .decoding.generation import generate as generate
    from .decoding.scheduling import Running as Running
    from .decoding.scheduling import Scheduler as Scheduler
    from .decoding.scoring import score as score
    from .decoding.scoring import scoring as scoring
    from .errors import CacheError as CacheError
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import ContextFullError as ContextFullError
    from .errors import InputError as InputError
    from .errors import QuantError as QuantError
    from .errors import SamplingError as SamplingError
    from .errors import SpecError as SpecError
    from .errors import StorageError as StorageError
    from .errors import UnsupportedError as UnsupportedError
    from .model import Model as Model
    from .model import Session as Session
    from .qtensor import QuantSpec as QuantSpec
    from .qtensor import QuantTensor as QuantTensor
    from .sampling import Sampling as Sampling

_HOMES = {
    "cache": ("RollingCache",),
    "checkpoints": ("load", "quantize"),
    "config": ("ModelConfig",),
    "backends.cpu": ("compile_kernels", "kernels_compiled"),
    "errors": (
        "CacheError",
        "CheckpointError",
        "ConfigError",
        "ContextFullError",
        "InputError",
        "QuantError",
        "SamplingError",
        "SpecError",
        "StorageError",
        "UnsupportedError",
    ),
    "decoding.generation": ("Generation", "generate"),
    "batch": ("SessionOptions",),
    "model": ("Model", "Session"),
    "qtensor": ("QuantSpec", "QuantTensor"),
    "sampling": ("Sampling",),
    "decoding.answers": ("Answer",),
    "decoding.scheduling": ("Running", "Scheduler"),
    "decoding.scoring": ("score", "scoring"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "read_gguf_metadata"]


def __getattr__(name: str) -> Any:
    if name == "read_gguf_metadata":
        return import_module(".checkpoints.gguf", __name__).read_metadata
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
