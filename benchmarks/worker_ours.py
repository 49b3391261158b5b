"""The worker that measures our engine, and the memory's speed. ``against_*.py`` start it.

Requests: ``{"load": {"model", "layers", "bits", "group_size", "symmetric", "threads"}}``, perhaps
with a ``backend``,
``{"open": {"kv", "precision"}, "test": ...}``, ``{"test": ...}``, ``{"probe": true}``. A test is
``{"test": "prefill" or "decode", "tokens", "depth"}``.

For passes that sequences share: ``{"batch": {"widest", "depth", "kv"}}``, then ``{"pass":
{"sequences", "tokens"}, "precision", "depth"}``, which tells the seconds of one, its share of the
roofline and the two probes around it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from protocol import serve

import quant
from quant.backends.devices import copy_bandwidth
from quant.batch import PLANES
from quant.bench import (
    GEOMETRIES,
    Pass,
    PassTimer,
    Probes,
    Roofline,
    decode_seconds,
    prefill_seconds,
    random_model,
    read_bandwidth,
)


class Ours:
    """One model and one session of it."""

    def __init__(self) -> None:
        self._model: quant.Model
        self._session: quant.Session
        self._timers: dict[str, PassTimer] = {}
        self._threads = 0
        self._backend = "cpu"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if "load" in request:
            return self._load(**request["load"])
        if "open" in request:
            return self._open(**request["open"], test=request["test"])
        if "batch" in request:
            return self._open_batch(**request["batch"])
        if "pass" in request:
            return self._pass(Pass(**request["pass"]), request["precision"], request["depth"])
        if "probe" in request:
            on_gpu = self._backend == "cuda"
            return {
                "gigabytes_per_second": copy_bandwidth()
                if on_gpu
                else read_bandwidth(self._threads)
            }
        return {"seconds": self._measure(**request["test"])}

    def _load(
        self,
        model: str,
        layers: int,
        bits: int,
        group_size: int,
        symmetric: bool,
        threads: int,
        backend: str = "cpu",
    ) -> dict[str, Any]:
        """Load a file, or make a random model where ``model`` is the name of a geometry."""
        self._threads = threads
        self._backend = backend
        if model in GEOMETRIES:
            spec = quant.QuantSpec(bits, group_size, symmetric)
            self._model = random_model(model, layers, spec)
        else:
            self._model = quant.load(model)
        return {
            "versions": {name: _version(name) for name in ("mistral-chat", "numba", "numpy")},
            "weight_bytes": self._model.weight_bytes,
        }

    def _open(self, kv: str, precision: str, test: dict[str, Any]) -> dict[str, Any]:
        """Make the session, run the test once to warm up, and say what a token reads."""
        depth = test["depth"]
        self._session = self._model.session(
            depth + test["tokens"],
            kv=kv,
            prefill=precision,
            threads=self._threads,
            backend=self._backend,
        )
        self._session.compile()
        self._measure(**test)
        cache = self._session.cache
        filled = sum(
            layer.nbytes * min(depth, layer.slots) // layer.slots for layer in cache.layers
        )
        return {"bytes_per_token": self._model.weights.bytes_per_token + filled}

    def _open_batch(self, widest: int, depth: int, kv: str) -> dict[str, Any]:
        probes = Probes(self._threads)
        self._timers = {
            precision: PassTimer(
                self._model,
                widest,
                depth,
                precision=precision,
                kv=kv,
                threads=self._threads,
                backend=self._backend,
                probes=probes,
            )
            for precision in PLANES
        }
        return {}

    def _pass(self, one: Pass, precision: str, depth: int) -> dict[str, Any]:
        sample = self._timers[precision].sample(one, depth)
        share = sample.share(Roofline.of(self._model.weights), one, precision)
        return {
            "seconds": sample.seconds,
            "share": share,
            "read": sample.read,
            "dots": sample.dots,
        }

    def _measure(self, test: str, tokens: int, depth: int) -> float:
        """Seconds for ``tokens`` tokens after ``depth``."""
        if test == "prefill":
            ids = np.arange(tokens) % self._model.config.vocab_size
            return prefill_seconds(self._session, ids)
        return decode_seconds(self._session, depth, tokens)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    serve(Ours().answer)
