"""The worker that measures llama.cpp. ``against_llama_cpp.py`` starts it.

It needs ``llama-cpp-python`` and nothing of ours, and uses the C API that the package wraps.
Requests: ``{"load": {"path", "threads"}}``, ``{"open": {"kv"}, "test": ...}``, ``{"test": ...}``,
where a test is ``{"test": "prefill" or "decode", "tokens", "depth"}``. A decode may have
``sequences``, too: so many are decoded at once, a token of each in a batch.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from protocol import serve

try:
    import llama_cpp
    from llama_cpp import llama_cpp as api
except ImportError as error:
    sys.exit(f"{sys.executable} has no llama-cpp-python ({error}); see benchmarks/README.md.")

BATCH = 512
UBATCHES = (BATCH, 64)
"""Tried where sequences are decoded at once; buffers of the smaller one are smaller, too."""
TRIES = 2

log: list[str] = []


@api.llama_log_callback
def _keep(_level: int, text: bytes, _data: object) -> None:
    log.append(text.decode(errors="replace"))


@dataclass(frozen=True)
class Choice:
    """What llama.cpp lets one choose. ``unified``: sequences share one run of cells, or each has
    its own; ``ubatch``: tokens that are computed together at most.
    """

    flash: bool
    unified: bool = True
    ubatch: int = BATCH

    def __str__(self) -> str:
        words = ["flash" if self.flash else "no flash", "unified" if self.unified else "streams"]
        return f"{', '.join(words)}, ubatch {self.ubatch}"


class Context:
    """One context of llama.cpp: a cache of keys and values, and how attention is computed."""

    def __init__(
        self, model: Any, kv: str, length: int, choice: Choice, threads: int, sequences: int = 1
    ) -> None:
        element = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0}[kv]
        on, off = api.LLAMA_FLASH_ATTN_TYPE_ENABLED, api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters = _changed(
            api.llama_context_default_params(),
            n_ctx=length * sequences,
            n_batch=BATCH,
            n_ubatch=choice.ubatch,
            n_seq_max=sequences,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=element,
            type_v=element,
            flash_attn_type=on if choice.flash else off,
            kv_unified=choice.unified,
            no_perf=True,
        )
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._context = api.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError("No context: " + "".join(log[-5:]))
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(BATCH, 0, 1)
        self._sequences = range(sequences)
        self._filled = 0

    def close(self) -> None:
        """Give the memory back."""
        api.llama_batch_free(self._batch)
        api.llama_free(self._context)

    def measure(self, test: str, tokens: int, depth: int, sequences: int = 1) -> float:
        """Seconds for ``tokens`` tokens after ``depth``, which are read only if they are new.

        With ``sequences`` so many tokens of each: what differs between them is read for each.
        """
        if sequences != len(self._sequences):
            raise RuntimeError(f"The context is one of {len(self._sequences)} sequences.")
        if self._filled != depth:
            self._forget(0)
            for sequence in self._sequences:
                self._read(0, depth, sequence)
            self._filled = depth
        self._forget(depth)
        start = time.perf_counter()
        if test == "prefill":
            self._read(depth, tokens)
        else:
            for position in range(depth, depth + tokens):
                self._decode(
                    [(self._id(position, each), position, each, True) for each in self._sequences]
                )
        return time.perf_counter() - start

    def _id(self, position: int, sequence: int) -> int:
        return (position + sequence) % int(self._vocabulary)

    def _forget(self, position: int) -> None:
        for sequence in self._sequences:
            if not api.llama_memory_seq_rm(self._memory, sequence, position, -1):
                raise RuntimeError(f"llama.cpp cannot forget what follows position {position}.")

    def _read(self, start: int, tokens: int, sequence: int = 0) -> None:
        """A prompt in batches; logits of its last token only."""
        last = start + tokens - 1
        rows = [
            (self._id(position, sequence), position, sequence, position == last)
            for position in range(start, start + tokens)
        ]
        for first in range(0, tokens, BATCH):
            self._decode(rows[first : first + BATCH])

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """One batch; a row is an id, its position, its sequence, and whether logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        status = api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode said {status}: " + "".join(log[-5:]))
        if rows[-1][3]:
            api.llama_get_logits_ith(self._context, -1)  # waits until they are there
        else:
            api.llama_synchronize(self._context)


class Theirs:
    """One model and the faster context of those that were tried."""

    def __init__(self) -> None:
        self._model: Any = None
        self._context: Context | None = None
        self._threads = 0
        api.llama_log_set(_keep, ctypes.c_void_p(0))
        api.llama_backend_init()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if "load" in request:
            return self._load(**request["load"])
        if "open" in request:
            return self._open(**request["open"], test=request["test"])
        if self._context is None:
            raise RuntimeError("There is no context yet.")
        return {"seconds": self._context.measure(**request["test"])}

    def _load(self, path: str, threads: int) -> dict[str, Any]:
        self._threads = threads
        parameters = _changed(
            api.llama_model_default_params(), n_gpu_layers=0, use_extra_bufts=True
        )
        if hasattr(api, "LLAMA_LOAD_MODE_NONE"):
            _changed(parameters, load_mode=api.LLAMA_LOAD_MODE_NONE)
        else:
            _changed(parameters, use_mmap=False)  # what older releases call it
        self._model = api.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}: " + "".join(log[-5:]))
        return {
            "versions": {"llama-cpp-python": llama_cpp.__version__, "llama.cpp": _version()},
            "system": api.llama_print_system_info().decode(),
            "weight_bytes": api.llama_model_size(self._model),
            "buffers": [line.strip() for line in log if "model buffer size" in line],
        }

    def _open(self, kv: str, test: dict[str, Any]) -> dict[str, Any]:
        """Try the test with each choice, in turns, and keep the fastest context.

        Keys and values in q8_0 ask for flash attention; one sequence leaves nothing else to choose.
        """
        if self._context is not None:
            self._context.close()
            self._context = None
        length, sequences = test["depth"] + test["tokens"], test.get("sequences", 1)
        flashes = (True,) if kv == "q8_0" else (True, False)
        shared = product((True, False), UBATCHES) if sequences > 1 else [(True, BATCH)]
        contexts = {
            choice: Context(self._model, kv, length, choice, self._threads, sequences)
            for choice in (Choice(flash, *rest) for rest in shared for flash in flashes)
        }
        for context in contexts.values():
            context.measure(**test | {"tokens": min(test["tokens"], BATCH)})
        tried: dict[Choice, float] = {}
        for _ in range(TRIES if len(contexts) > 1 else 1):
            for choice, context in contexts.items():
                seconds = context.measure(**test)
                tried[choice] = min(seconds, tried.get(choice, seconds))
        best = min(tried, key=tried.__getitem__)
        self._context = contexts.pop(best)
        for context in contexts.values():
            context.close()
        return {
            "flash_attention": "on" if best.flash else "off",
            "choice": asdict(best) | {"in_words": str(best)},
            "tried_seconds": {str(choice): seconds for choice, seconds in tried.items()},
        }


def _changed(parameters: Any, **values: Any) -> Any:
    """Set fields of a ctypes structure, which would take a name it does not have in silence."""
    known = {name for name, *_ in parameters._fields_}
    for name, value in values.items():
        if name not in known:
            raise RuntimeError(
                f"{type(parameters).__name__} of llama-cpp-python {llama_cpp.__version__} has no "
                f"{name}; install a newer one."
            )
        setattr(parameters, name, value)
    return parameters


def _version() -> str:
    return api.llama_version().decode() if hasattr(api, "llama_version") else "unknown"


if __name__ == "__main__":
    serve(Theirs().answer)
