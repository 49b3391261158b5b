"""Our engine and torch's int4 products side by side, on a processor or a GPU, in turns.

    python benchmarks/against_torch.py --device cuda --layers 32 --peer-python ~/torch/bin/python

Matrices have Mistral 7B's shapes. Ours is the whole forward pass, attention and all; torch's side
is ``_weight_int4pack_mm`` for every matrix and nothing else, on a GPU as one CUDA graph. Each round
measures ours, then theirs; a ratio is theirs / ours in seconds of one round, above 1 ours is
faster, and the median of the rounds' ratios is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from protocol import Worker, WorkerError

from quant.batch import available_processors
from quant.bench import GEOMETRIES

HERE = Path(__file__).resolve().parent
GEOMETRY = "mistral-7b"
PAUSE = 0.3
CASES = {
    "decode": {"test": "decode", "tokens": 16, "precision": "exact"},
    "prefill-512-exact": {"test": "prefill", "tokens": 512, "precision": "exact"},
    "prefill-512-fast": {"test": "prefill", "tokens": 512, "precision": "fast"},
}


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    options = _options()
    config = GEOMETRIES[GEOMETRY]
    shapes = list(config.matrices().values())
    ours_load = {
        "model": GEOMETRY,
        "layers": options.layers,
        "bits": 4,
        "group_size": options.group_size,
        "symmetric": True,
        "threads": options.threads,
        "backend": options.device,
    }
    theirs_load = {
        "device": options.device,
        "layer": shapes,
        "output": (config.vocab_size, config.hidden_size),
        "layers": options.layers,
        "group_size": options.group_size,
        "threads": options.threads,
    }
    report: dict[str, Any] = {"cases": []}
    try:
        with (
            Worker(sys.executable, HERE / "worker_ours.py") as ours,
            Worker(options.peer_python, HERE / "worker_torch.py") as theirs,
        ):
            report |= {"ours": ours.ask(load=ours_load), "theirs": theirs.ask(load=theirs_load)}
            print(f"torch {report['theirs']['version']} on {report['theirs']['device']}")
            print(f"{'':<20} {'ours tok/s':>11} {'theirs':>9}  {'ratio':>5}  (min - max)")
            for name, case in CASES.items():
                entry = run_case(name, case, options.rounds, ours, theirs)
                report["cases"].append(entry)
                print(
                    f"{name:<20} {entry['ours']:11.1f} {entry['theirs']:9.1f}  "
                    f"{entry['ratio']:5.2f}  ({entry['ratio_min']:.2f} - {entry['ratio_max']:.2f})",
                    flush=True,
                )
            probe = ours.ask(probe=True)["gigabytes_per_second"]
            print(f"The device's memory: {probe:.1f} GB/s.")
            report["gigabytes_per_second"] = probe
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def run_case(
    name: str, case: dict[str, Any], rounds: int, ours: Worker, theirs: Worker
) -> dict[str, Any]:
    """Measure ``rounds`` rounds in turns; tokens per second and ratios."""
    tokens = case["tokens"]
    decoding = case["test"] == "decode"
    test = {"test": case["test"], "tokens": tokens, "depth": 0}
    ours.ask(open={"kv": "f16", "precision": case["precision"]}, test=test)
    raw = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        mine = ours.ask(test=test)["seconds"] / tokens
        time.sleep(PAUSE)
        once = theirs.ask(test={"tokens": 1 if decoding else tokens})["seconds"]
        raw.append((mine, once / (1 if decoding else tokens)))
    ratios = [other / mine for mine, other in raw]
    return {
        "case": name,
        "ours": 1 / statistics.median(mine for mine, _ in raw),
        "theirs": 1 / statistics.median(other for _, other in raw),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": raw,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Our engine and torch's int4 products side by side, in turns."
    )
    add = parser.add_argument
    add("--peer-python", default=sys.executable, help="an interpreter that has torch")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="of both (default: cpu)")
    add("--rounds", type=int, default=5, help="rounds a case (default: 5)")
    add("--layers", type=int, default=8, help="layers (default: 8; Mistral 7B has 32)")
    add("--group-size", type=int, default=64, choices=(32, 64, 128))
    add("--threads", type=int, default=available_processors(), help="of both (default: all)")
    add("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if min(options.rounds, options.layers, options.threads) < 1:
        parser.error("rounds, layers and threads are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
