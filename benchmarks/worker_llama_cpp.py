"""The worker that measures llama.cpp. ``against_llama_cpp.py`` starts it.

It needs ``llama-cpp-python`` and nothing of ours, and uses the C API that the package wraps.
Requests: ``{"load": {"path", "threads"}}``, ``{"open": {"kv"}, "test": ...}``, ``{"test": ...}``,
where a test is ``{"test": "prefill" or "decode", "tokens", "depth"}``.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

from protocol import serve

try:
    import llama_cpp
    from llama_cpp import llama_cpp as api
except ImportError as error:
    sys.exit(f"{sys.executable} has no llama-cpp-python ({error}); see benchmarks/README.md.")

BATCH = 512
TRIES = 2

log: list[str] = []


@api.llama_log_callback
def _keep(_level: int, text: bytes, _data: object) -> None:
    log.append(text.decode(errors="replace"))


class Context:
    """One context of llama.cpp: a cache of keys and values, and how attention is computed."""

    def __init__(self, model: Any, kv: str, length: int, flash: bool, threads: int) -> None:
        element = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0}[kv]
        on, off = api.LLAMA_FLASH_ATTN_TYPE_ENABLED, api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters = _changed(
            api.llama_context_default_params(),
            n_ctx=length,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=element,
            type_v=element,
            flash_attn_type=on if flash else off,
            no_perf=True,
        )
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._context = api.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError("No context: " + "".join(log[-5:]))
        self._memory = api.llama_get_memory(self._context)
        self._filled = 0

    def close(self) -> None:
        """Give the memory back."""
        api.llama_free(self._context)

    def measure(self, test: str, tokens: int, depth: int) -> float:
        """Seconds for ``tokens`` tokens after ``depth``, which are read only if they are new."""
        if self._filled != depth:
            self._forget(0)
            self._read(depth)
            self._filled = depth
        self._forget(depth)
        start = time.perf_counter()
        if test == "prefill":
            self._read(tokens)
        else:
            for token in range(tokens):
                self._decode([token % self._vocabulary], logits=True)
        return time.perf_counter() - start

    def _forget(self, position: int) -> None:
        if not api.llama_memory_seq_rm(self._memory, 0, position, -1):
            raise RuntimeError(f"llama.cpp cannot forget what follows position {position}.")

    def _read(self, tokens: int) -> None:
        """A prompt in batches; logits of its last token only."""
        ids = [token % self._vocabulary for token in range(tokens)]
        for start in range(0, tokens, BATCH):
            self._decode(ids[start : start + BATCH], logits=start + BATCH >= tokens)

    def _decode(self, ids: list[int], logits: bool) -> None:
        tokens = (api.llama_token * len(ids))(*ids)  # the batch only points to it
        batch = api.llama_batch_get_one(tokens, len(ids))
        wanted = (ctypes.c_int8 * len(ids))()
        wanted[-1] = logits
        batch.logits = wanted
        status = api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode said {status}: " + "".join(log[-5:]))
        if logits:
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
        """Try the test with flash attention and without, in turns, and keep the faster context.

        Keys and values in q8_0 ask for flash attention, so there nothing is tried.
        """
        if self._context is not None:
            self._context.close()
            self._context = None
        length = test["depth"] + test["tokens"]
        contexts = {
            flash: Context(self._model, kv, length, flash, self._threads)
            for flash in ((True,) if kv == "q8_0" else (True, False))
        }
        for context in contexts.values():
            context.measure(**test | {"tokens": min(test["tokens"], BATCH)})
        tried: dict[bool, float] = {}
        for _ in range(TRIES if len(contexts) > 1 else 1):
            for flash, context in contexts.items():
                seconds = context.measure(**test)
                tried[flash] = min(seconds, tried.get(flash, seconds))
        best = min(tried, key=tried.__getitem__)
        self._context = contexts.pop(best)
        for context in contexts.values():
            context.close()
        names = {True: "on", False: "off"}
        return {
            "flash_attention": names[best],
            "tried_seconds": {names[flash]: seconds for flash, seconds in tried.items()},
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
