"""What the sliding window saves: the figures of Mistral 7B's paper (section 2), on this machine.

    python benchmarks/sliding_window.py --json window.json --plot window.svg

For prompts of N tokens, the same random weights with the window and without it:

- attention: seconds of attention alone, every step of it that the prompt needs;
- prompt: seconds to read the whole prompt;
- decode: milliseconds for the next token after it;
- cache: bytes of keys and values for a context of N.

In each round one is measured right after the other, and which comes first alternates; times are
medians of the rounds. Of the last layer only the last token is computed after its keys and values,
so with two layers attention is that of one layer, and a prompt that of a little more than one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quant import Model, QuantSpec, RollingCache, Session
from quant.batch import PLANES, available_processors
from quant.bench import (
    GEOMETRIES,
    attention_seconds,
    decode_seconds,
    prefill_seconds,
    random_model,
)
from quant.cache import STORED

GEOMETRY = "mistral-7b"
LENGTHS = (4096, 8192, 16384)
LONG = 32768
SPEC = QuantSpec(4, 64, symmetric=True)
KINDS = ("window", "full")
MEASURES = ("attention", "prompt", "decode")
"""In seconds; ``decode`` for one token."""


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    options = _options()
    report: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "geometry": GEOMETRY,
        **{
            name: getattr(options, name)
            for name in ("layers", "window", "chunk", "kv", "prefill", "threads", "rounds")
        },
        "lengths": [],
    }
    print(
        f"{GEOMETRY}, {options.layers} layers, window {options.window}, chunks of {options.chunk}, "
        f"{options.kv} cache, {options.threads} threads, medians of {options.rounds} rounds"
    )
    columns = ("attention s", "prompt s", "decode ms", "cache MB")
    print((f"{'':>7}" + "".join(f"  {name:<25}" for name in columns)).rstrip())
    print((f"{'tokens':>7}" + f"  {'window':>8} {'full':>8} {'ratio':>6} " * len(columns)).rstrip())
    models = _models(options)
    try:
        for tokens in options.lengths:
            entry = measure(models, tokens, options)
            report["lengths"].append(entry)
            print(line(entry), flush=True)
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot is not None:
        plot(report, options.plot)
    return 0


def measure(models: dict[str, Model], tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """One prompt of ``tokens`` tokens, with and without the window."""
    sessions = {
        kind: model.session(
            tokens + options.decode_tokens,
            kv=options.kv,
            prefill=options.prefill,
            threads=options.threads,
            chunk=options.chunk,
        )
        for kind, model in models.items()
    }
    ids = np.arange(tokens) % GEOMETRIES[GEOMETRY].vocab_size
    for session in sessions.values():  # brings weights and kernels into memory
        prefill_seconds(session, ids[: 2 * options.chunk])
    rounds = []
    for number in range(options.rounds):
        order = KINDS if number % 2 == 0 else KINDS[::-1]
        rounds.append({kind: _measure(sessions[kind], ids, options) for kind in order})
    return {
        "tokens": tokens,
        **{
            kind: {
                **{
                    name: statistics.median(each[kind][name] for each in rounds)
                    for name in MEASURES
                },
                "cache_bytes": RollingCache(model.config, tokens, None, options.kv).nbytes,
            }
            for kind, model in models.items()
        },
        "ratios": {
            name: statistics.median(each["full"][name] / each["window"][name] for each in rounds)
            for name in MEASURES
        },
        "rounds": rounds,
    }


def _measure(session: Session, ids: Any, options: argparse.Namespace) -> dict[str, float]:
    prompt = prefill_seconds(session, ids)
    decode = decode_seconds(session, ids.size, options.decode_tokens) / options.decode_tokens
    # Last, since it leaves no text in the cache.
    return {"attention": attention_seconds(session, ids.size), "prompt": prompt, "decode": decode}


def line(entry: dict[str, Any]) -> str:
    """A length as a line of the table."""
    cells = [f"{entry['tokens']:7d}"]
    for name, unit in (("attention", 1), ("prompt", 1), ("decode", 1e3)):
        window, full = (entry[kind][name] * unit for kind in KINDS)
        cells.append(f"  {window:8.2f} {full:8.2f} {entry['ratios'][name]:6.2f} ")
    window, full = (entry[kind]["cache_bytes"] for kind in KINDS)
    cells.append(f"  {window / 1e6:8.1f} {full / 1e6:8.1f} {full / window:6.2f} ")
    return "".join(cells).rstrip()


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the four measures over the lengths."""
    from matplotlib import pyplot

    lengths = [entry["tokens"] for entry in report["lengths"]]
    panels = (
        ("attention", 1, "attention of a prompt (s)"),
        ("prompt", 1, "whole prompt (s)"),
        ("decode", 1e3, "next token (ms)"),
        ("cache_bytes", 1e-6, "cache (MB)"),
    )
    labels = {"window": f"window of {report['window']}", "full": "no window"}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 3.4), layout="constrained")
    for axis, (name, unit, title) in zip(axes, panels, strict=True):
        for kind in KINDS:
            values = [entry[kind][name] * unit for entry in report["lengths"]]
            axis.plot(lengths, values, marker="o", label=labels[kind])
        axis.set(title=title, xlabel="tokens", xticks=lengths, ylim=(0, None))
        axis.tick_params(axis="x", rotation=45)
    axes[0].legend(frameon=False)
    figure.savefig(path)


def _models(options: argparse.Namespace) -> dict[str, Model]:
    """The model with its window and without; they share the weights."""
    random = random_model(GEOMETRY, options.layers, SPEC)
    context = max(options.lengths) + options.decode_tokens
    return {
        kind: Model(
            replace(
                random.config,
                windows=(window,) * options.layers,
                max_position_embeddings=context,
            ),
            random.weights,
            random.source,
            lambda: "",
        )
        for kind, window in (("window", options.window), ("full", None))
    }


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What the sliding window saves: attention, prompt, decode and cache."
    )
    add = parser.add_argument
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=list(LENGTHS),
        metavar="N",
        help=f"tokens of the prompts (default: {' '.join(map(str, LENGTHS))})",
    )
    add("--long", action="store_true", help=f"{LONG} tokens too")
    add("--window", type=int, default=4096, help="tokens of the window (default: 4096)")
    add("--layers", type=int, default=2, help="layers, at least 2 (default: 2)")
    add("--chunk", type=int, default=512, help="tokens of a prompt read at once (default: 512)")
    add("--rounds", type=int, default=3, help="rounds a length (default: 3)")
    add("--decode-tokens", type=int, default=16, help="tokens decoded a round (default: 16)")
    add("--kv", choices=tuple(STORED), default="f16", help="the cache's element (default: f16)")
    add("--prefill", choices=tuple(PLANES), default="exact", help="precision (default: exact)")
    add("--threads", type=int, default=available_processors(), help="(default: all)")
    add("--json", type=Path, help="write everything measured to this file")
    add("--plot", type=Path, metavar="SVG", help="draw it too; needs matplotlib")
    options = parser.parse_args(arguments)
    if options.layers < 2:
        parser.error("the last layer attends for the last token only; take at least 2 layers")
    numbers = (options.window, options.chunk, options.rounds, options.decode_tokens)
    if min(*options.lengths, *numbers, options.threads) < 1:
        parser.error("every number is at least 1")
    if options.plot is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib: pip install matplotlib")
    if options.long:
        options.lengths.append(LONG)
    return options


if __name__ == "__main__":
    sys.exit(main())
