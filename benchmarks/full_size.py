"""Mistral 7B at full size through a small memory: random weights in Hugging Face's shards.

    python benchmarks/full_size.py make FOLDER [--layers N]     # 14.5 GB for all 32 layers
    python benchmarks/full_size.py quantize FOLDER TARGET       # memory and time of quantizing
    python benchmarks/full_size.py load TARGET                  # of loading and one token

``make`` writes bfloat16 weights of v0.1's geometry in shards below 5 GB, from a seed, a few MB at a
time. The others run in a process of their own and print its greatest resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

import quant
from quant.bench import GEOMETRIES
from quant.checkpoints.names import huggingface_name, tensor_names, tensor_shape
from quant.config import ModelConfig

SHARD_BYTES = 5 * 10**9
PIECE = 1 << 22


def mistral_7b(layers: int) -> ModelConfig:
    """The geometry of Mistral 7B v0.1."""
    return replace(
        GEOMETRIES["mistral-7b"],
        num_hidden_layers=layers,
        windows=(4096,) * layers,
        rope_theta=1e4,
        vocab_size=32000,
    )


def make(folder: Path, layers: int) -> None:
    """Write the model; every weight is normal with a spread of 0.02."""
    config = mistral_7b(layers)
    names = tensor_names(config)
    sizes = {name: 2 * prod(tensor_shape(config, name)) for name in names}
    total = sum(sizes.values())
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < total + 10**9:
        sys.exit(f"{folder} has no room for {total / 1e9:.1f} GB.")
    shards: list[list[str]] = [[]]
    for name in names:
        if sum(sizes[other] for other in shards[-1]) + sizes[name] > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    random = np.random.default_rng(7)
    index = {}
    for number, group in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for name in group:
            header[huggingface_name(name)] = {
                "dtype": "BF16",
                "shape": tensor_shape(config, name),
                "data_offsets": [offset, offset + sizes[name]],
            }
            offset += sizes[name]
            index[huggingface_name(name)] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in group:
                write_random(stream, random, tensor_shape(config, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    values = {
        "model_type": "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    print(f"{total / 1e9:.2f} GB in {len(shards)} shards, {sum(sizes.values()) // 2:,} weights")


def write_random(stream: object, random: np.random.Generator, shape: tuple[int, ...]) -> None:
    """bfloat16 numbers, ``PIECE`` at a time; norms are ones."""
    count = prod(shape)
    if len(shape) == 1:
        ones = np.ones(count, np.float32)
        stream.write((ones.view(np.uint32) >> 16).astype("<u2").tobytes())
        return
    for start in range(0, count, PIECE):
        part = random.standard_normal(min(PIECE, count - start), np.float32) * np.float32(0.02)
        stream.write((part.view(np.uint32) >> 16).astype("<u2").tobytes())


def report(what: str, started: float, size: int) -> None:
    """Seconds, megabytes of the source a second, and the greatest resident memory."""
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{what}: {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s, "
        f"greatest resident memory {peak / 1e9:.2f} GB"
    )


def quantize(source: Path, target: Path) -> None:
    """Quantize to a native folder."""
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    started = time.perf_counter()

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            report(f"{done} of {total} tensors", started, size * done // total)

    quant.quantize(source, target, progress=progress, force=True)


def load(path: Path) -> None:
    """Load what was quantized and read one token with it."""
    started = time.perf_counter()
    model = quant.load(path)
    report("loaded", started, model.weight_bytes)
    model.session(max_context=512).feed([1])
    report("one token read", started, model.weight_bytes)


def main() -> None:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--layers", type=int, default=32)
    quantizer = commands.add_parser("quantize")
    quantizer.add_argument("folder", type=Path)
    quantizer.add_argument("target", type=Path)
    loader = commands.add_parser("load")
    loader.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.folder, arguments.layers)
    elif arguments.command == "quantize":
        quantize(arguments.folder, arguments.target)
    else:
        load(arguments.folder)


if __name__ == "__main__":
    main()
