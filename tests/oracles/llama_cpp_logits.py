"""Logits of llama.cpp on GGUF files: full attention, a float32 cache, no flash attention.

Run by hand where llama-cpp-python is installed beside this project's dependencies::

    python -m tests.oracles.llama_cpp_logits
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from ..quant.models import write_gguf
from .cases import IDS, LLAMA_CPP, LLAMA_CPP_FILE, seed_of


def vocabulary(size: int) -> dict[str, object]:
    """A vocabulary that the engine accepts; the ids are what counts."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(size - 3)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_],
        "tokenizer.ggml.scores": [0.0] * size,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * (size - 3)],
    }


def main() -> None:
    stored = {}
    for name, config in LLAMA_CPP.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            dimensions = {
                "llama.rope.dimension_count": config.head_dim,
                "llama.attention.value_length": config.head_dim,
            }
            change = {**vocabulary(config.vocab_size), **dimensions}
            write_gguf(path, config, seed_of(name), change=change)
            engine = llama_cpp.Llama(
                str(path),
                n_ctx=config.max_position_embeddings,
                logits_all=True,
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
                flash_attn=False,
                verbose=False,
            )
            engine.eval(IDS)
            logits = np.array(engine.scores[: len(IDS)], np.float32)
            engine.close()
        stored[name] = logits
        print(name, logits.shape, float(logits.std()))
    np.savez_compressed(LLAMA_CPP_FILE, **stored)


if __name__ == "__main__":
    main()
