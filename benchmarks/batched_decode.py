"""Passes over the weights that several tokens share: how wide they may be, and llama.cpp's beside.

    python benchmarks/batched_decode.py --peer-python ~/llama/bin/python

Two tables, or one of them with ``--widths`` or ``--peers``.

- Widths: passes of 1 to 64 tokens of one sequence, and of 1 to 32 sequences, exact and fast, with
  their share of the roofline: the larger of what reading the weights and what multiplying them
  takes, by probes of the machine before and after each pass.
- Peers: 1 to 32 sequences decoded at once by us and by llama.cpp, a token of each in a pass, logits
  of all. Each round measures ours in one precision, then theirs, then ours in the other, and the
  next round the other way round, so that theirs stands beside both. A ratio is theirs / ours in
  seconds *of one round*, so above 1 ours is faster, and what is printed is the median of the
  rounds' ratios.

Shapes are Mistral 7B's with random weights, ours int4, theirs Q4_0. llama.cpp runs as it is fastest
here: with or without flash attention, with one run of cells for all sequences or one for each, and
with either of two sizes of its physical batch, whichever is fastest at the start of a case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from against_llama_cpp import (
    GEOMETRY,
    HERE,
    PAUSE,
    add_options_of_both,
    check_options_of_both,
    load_both,
    processor_name,
    random_gguf_file,
)
from protocol import Worker, WorkerError

from quant import QuantSpec
from quant.batch import PLANES
from quant.bench import GEOMETRIES, Pass, PassResult, measure_passes, random_model

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SEQUENCES = (1, 4, 16, 32)
THEIR_PASSES = 4
"""Passes of llama.cpp that are timed together; each reads all weights again, as ours do."""


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers end with us
    report: dict[str, Any] = {
        "processor": processor_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "geometry": GEOMETRY,
        **{name: getattr(options, name) for name in ("layers", "threads", "rounds", "depth")},
        "passes": [],
        "peers": [],
    }
    print(
        f"{report['processor']}, {GEOMETRY} with {options.layers} layers, {options.threads} "
        f"threads, {options.depth} tokens in the cache, {options.rounds} rounds"
    )
    try:
        if options.widths or not options.peers:
            run_widths(options, report)
        if options.peers or not options.widths:
            with contextlib.ExitStack() as stack:
                work = options.work
                if work is None:
                    work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                run_peers(options, work, report)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


# Passes of ours.


def run_widths(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure our passes of all widths, print them and add them to the report."""
    spec = QuantSpec(4, options.group_size, options.symmetric)
    model = random_model(GEOMETRY, options.layers, spec)
    passes = [Pass(tokens=width) for width in WIDTHS]
    passes += [Pass(sequences=count) for count in SEQUENCES[1:]]
    print(
        f"\n{'':<16} {'precision':<9} {'ms':>8} {'tok/s':>8} {'beside 1':>8} {'share':>6}"
        f" {'GB/s':>6} {'GMAC/s':>7}"
    )
    results = []
    for result in measure_passes(
        model, passes, [options.depth], threads=options.threads, rounds=options.rounds
    ):
        results.append(result)
        report["passes"].append(asdict(result))
        print(pass_line(result), flush=True)
    for sentence in comparisons(results):
        print(sentence)


def pass_line(result: PassResult) -> str:
    """A kind of pass as a line of the table; ``beside 1`` is its time beside one token's."""
    name = f"{result.tokens} of one" if result.sequences == 1 else f"{result.sequences} sequences"
    return (
        f"{name:<16} {result.precision:<9} {result.milliseconds:8.1f}"
        f" {result.tokens_per_second:8.1f} {_time_beside_one(result):8.2f}"
        f" {result.roofline_share:6.0%} {result.read_gigabytes_per_second:6.1f}"
        f" {result.dot_gigamacs_per_second:7.0f}"
    )


def comparisons(results: Iterable[PassResult]) -> list[str]:
    """What three tokens cost beside one, and 16 sequences at once beside one after the other."""
    lines = []
    for result in results:
        if (result.sequences, result.tokens) == (1, 3):
            lines.append(
                f"3 tokens in a pass take {_time_beside_one(result):.2f} times as long as 1"
                f" ({result.precision})"
            )
        if (result.sequences, result.tokens) == (16, 1):
            lines.append(
                f"16 sequences at once are {result.times_one:.2f} times as fast as one after the"
                f" other ({result.precision})"
            )
    return sorted(lines)


def _time_beside_one(result: PassResult) -> float:
    return result.sequences * result.tokens / result.times_one


# Theirs beside ours.


def run_peers(options: argparse.Namespace, work: Path, report: dict[str, Any]) -> None:
    """Measure ours and llama.cpp's in turns, print them and add them to the report."""
    path = random_gguf_file("int4", options.layers, work)
    with (
        Worker(sys.executable, HERE / "worker_ours.py") as ours,
        Worker(options.peer_python, HERE / "worker_llama_cpp.py") as theirs,
    ):
        report["model"] = load_both("int4", path, options, ours, theirs)
        versions = report["model"]["theirs"]["versions"]
        print(f"\n{', '.join(f'{name} {version}' for name, version in versions.items())}")
        ours.ask(batch={"widest": max(SEQUENCES), "depth": options.depth, "kv": "f16"})
        columns = "".join(
            f" {precision:>7} {'ratio':>6} {'(min - max)':<13} {'share':>5}" for precision in PLANES
        )
        print(f"{'at once':>7} {'theirs':>7} {columns} {'GB/s':>6} {'GMAC/s':>7}  theirs with")
        for sequences in SEQUENCES:
            entry = run_at_once(sequences, options, ours, theirs)
            report["peers"].append(entry)
            print(peer_line(entry), flush=True)


def run_at_once(
    sequences: int, options: argparse.Namespace, ours: Worker, theirs: Worker
) -> dict[str, Any]:
    """So many sequences at once, in rounds; seconds are those of one pass."""
    test = {
        "test": "decode",
        "tokens": THEIR_PASSES,
        "depth": options.depth,
        "sequences": sequences,
    }
    chosen = theirs.ask(open={"kv": "f16"}, test=test)
    # A single token is the same in both precisions.
    precisions = list(PLANES) if sequences > 1 else ["exact"]
    asked = {"sequences": sequences, "tokens": 1}

    def measure(precision: str) -> dict[str, Any]:
        time.sleep(PAUSE)
        return ours.ask(**{"pass": asked}, precision=precision, depth=options.depth)

    for precision in precisions:
        measure(precision)  # warms up
    rounds = []
    for number in range(options.rounds):
        first, *others = precisions if number % 2 == 0 else precisions[::-1]
        measured = {first: measure(first)}
        time.sleep(PAUSE)
        seconds = theirs.ask(test=test)["seconds"] / THEIR_PASSES
        measured |= {precision: measure(precision) for precision in others}
        rounds.append({"theirs_seconds": seconds, **measured})
    return {"sequences": sequences, "depth": options.depth, **summary(rounds), **chosen}


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, for llama.cpp and for each precision of ours."""
    told: dict[str, Any] = {
        "theirs_seconds": statistics.median(each["theirs_seconds"] for each in rounds),
        "ours": {},
        "rounds": rounds,
    }
    for precision in [name for name in PLANES if name in rounds[0]]:
        ratios = [each["theirs_seconds"] / each[precision]["seconds"] for each in rounds]
        told["ours"][precision] = {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            **{
                name: statistics.median(each[precision][name] for each in rounds)
                for name in ("seconds", "share", "read", "dots")
            },
        }
    return told


def peer_line(entry: dict[str, Any]) -> str:
    """A number of sequences as a line of the table; speeds are tokens a second in all."""
    sequences = entry["sequences"]
    cells = [f"{sequences:7d} {sequences / entry['theirs_seconds']:7.1f} "]
    for precision in PLANES:
        each = entry["ours"].get(precision)
        if each is None:
            cells.append(" " * 36)
            continue
        span = f"({each['ratio_min']:.2f} - {each['ratio_max']:.2f})"
        cells.append(
            f" {sequences / each['seconds']:7.1f} {each['ratio']:6.2f} {span:<13}"
            f" {each['share']:5.0%}"
        )
    exact = entry["ours"]["exact"]
    cells.append(f" {exact['read']:6.1f} {exact['dots']:7.0f}  {entry['choice']['in_words']}")
    return "".join(cells)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Passes that tokens or sequences share: our widths, and llama.cpp's beside.",
        epilog="Without --widths and --peers both tables are made.",
    )
    add = parser.add_argument
    add("--widths", action="store_true", help="passes of ours, of 1 to 64 tokens")
    add("--peers", action="store_true", help="1 to 32 sequences, ours and llama.cpp's in turns")
    add("--depth", type=int, default=0, help="tokens of each sequence in the cache (default: 0)")
    add_options_of_both(parser)
    options = parser.parse_args()
    check_options_of_both(parser, options)
    longest = GEOMETRIES[GEOMETRY].max_position_embeddings - max(WIDTHS)
    if not 0 <= options.depth <= longest:
        parser.error(f"the depth is 0 to {longest}")
    return options


if __name__ == "__main__":
    sys.exit(main())
