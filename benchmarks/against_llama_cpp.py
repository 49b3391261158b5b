"""Our engine and llama.cpp side by side: same machine, same run, in turns.

    python benchmarks/against_llama_cpp.py --peer-python ~/llama/bin/python --smollm2 model.gguf

Each round measures ours, then theirs, then how fast memory can be read; only one of them works at a
time. A ratio is theirs / ours in seconds *of one round*, so above 1 ours is faster, and what is
printed is the median of the rounds' ratios: the machine's moods reach both sides of it.

llama.cpp runs as it is fastest here: repacked weights, batches of 512, without mmap, and with or
without flash attention, whichever is faster at the start of a case. Matrices have Mistral 7B's
shapes and random weights, int4 beside Q4_0 and int8 beside Q8_0, or are those of a real file.

In a prompt llama.cpp leaves out the last layer's MLP for tokens whose logits nobody wants. That
counts for more the fewer ``--layers`` there are: with one, most of its work.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from protocol import Worker, WorkerError
from random_gguf import Kind, write_random_gguf

from quant.batch import available_processors
from quant.bench import GEOMETRIES

HERE = Path(__file__).resolve().parent
GEOMETRY = "mistral-7b"
PAUSE = 0.3
"""Seconds between two measurements, so that one's threads have come to rest before the other's."""


@dataclass(frozen=True)
class Case:
    """What one line of the table measures: ``tokens`` tokens after ``depth``.

    ``model`` is ``int4`` or ``int8`` (random weights), or ``smollm2`` (the real file).
    """

    name: str
    model: str
    test: str
    tokens: int
    depth: int = 0
    precision: str = "exact"
    kv: str = "f16"


CASES = (
    Case("decode-0", "int4", "decode", 16),
    Case("decode-4096", "int4", "decode", 16, depth=4096),
    Case("decode-4096-int8", "int4", "decode", 16, depth=4096, kv="int8"),
    Case("prefill-512-fast", "int4", "prefill", 512, precision="fast"),
    Case("prefill-512-exact", "int4", "prefill", 512),
    Case("prefill-4096-fast", "int4", "prefill", 4096, precision="fast"),
    Case("int8-decode-0", "int8", "decode", 16),
    Case("int8-prefill-512-fast", "int8", "prefill", 512, precision="fast"),
    Case("smollm2-decode-0", "smollm2", "decode", 64),
    Case("smollm2-prefill-512", "smollm2", "prefill", 512),
    Case("smollm2-prefill-512-fast", "smollm2", "prefill", 512, precision="fast"),
)
THEIR_KINDS = {"int4": Kind.Q4_0, "int8": Kind.Q8_0}
THEIR_KV = {"f16": "f16", "int8": "q8_0"}


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers end with us
    report: dict[str, Any] = {
        "processor": processor_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": options.threads,
        "models": {},
        "cases": [],
    }
    print(f"{report['processor']}, {options.threads} threads, {options.rounds} rounds")
    print(
        f"{'':<25} {'ours':>8} {'theirs':>8}  {'ratio':>5} {'(min - max)':<13}"
        f" {'memory':>6} {'share':>6}  flash\n"
        f"{'':<25} {'tok/s':>8} {'tok/s':>8}  {'':>5} {'':<13} {'GB/s':>6} {'':>6}  attention"
    )
    try:
        with contextlib.ExitStack() as stack:
            work = options.work
            if work is None:
                work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for model, cases in groupby(options.cases, lambda case: case.model):
                _run_model(model, list(cases), options, work, report)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _run_model(
    model: str,
    cases: Sequence[Case],
    options: argparse.Namespace,
    work: Path,
    report: dict[str, Any],
) -> None:
    """Run the cases of one model in two fresh processes, and add them to the report."""
    path = options.smollm2 if model == "smollm2" else random_gguf_file(model, options.layers, work)
    with (
        Worker(sys.executable, HERE / "worker_ours.py") as ours,
        Worker(options.peer_python, HERE / "worker_llama_cpp.py") as theirs,
    ):
        report["models"][model] = load_both(model, path, options, ours, theirs)
        for case in cases:
            entry = run_case(case, options.rounds, ours, theirs)
            report["cases"].append(entry)
            print(line(entry), flush=True)


def load_both(
    model: str, path: Path, options: argparse.Namespace, ours: Worker, theirs: Worker
) -> dict[str, Any]:
    """Have both load a model, of which ``path`` is llama.cpp's file; what they say of it."""
    loading: dict[str, Any] = {
        "model": str(path) if model == "smollm2" else GEOMETRY,
        "layers": options.layers,
        "bits": 8 if model == "int8" else 4,
        "group_size": 64 if model == "int8" else options.group_size,
        "symmetric": model == "int8" or options.symmetric,
        "threads": options.threads,
    }
    return {
        "loaded": loading,
        "ours": ours.ask(load=loading),
        "theirs": theirs.ask(load={"path": str(path), "threads": options.threads}),
    }


def run_case(case: Case, rounds: int, ours: Worker, theirs: Worker) -> dict[str, Any]:
    """Prepare both workers, measure ``rounds`` rounds, and sum them up."""
    test = {"test": case.test, "tokens": case.tokens, "depth": case.depth}
    prepared = ours.ask(open={"kv": case.kv, "precision": case.precision}, test=test)
    chosen = theirs.ask(open={"kv": THEIR_KV[case.kv]}, test=test)
    raw = []
    for _ in range(rounds):
        measured = {}
        for name, worker in (("ours_seconds", ours), ("theirs_seconds", theirs)):
            time.sleep(PAUSE)
            measured[name] = worker.ask(test=test)["seconds"]
        time.sleep(PAUSE)
        measured["memory"] = ours.ask(probe=True)["gigabytes_per_second"]
        raw.append(measured)
    ratios = [each["theirs_seconds"] / each["ours_seconds"] for each in raw]
    bytes_per_token = prepared["bytes_per_token"]
    share = statistics.median(
        bytes_per_token * case.tokens / each["ours_seconds"] / 1e9 / each["memory"] for each in raw
    )
    return {
        **asdict(case),
        "ours": case.tokens / statistics.median(each["ours_seconds"] for each in raw),
        "theirs": case.tokens / statistics.median(each["theirs_seconds"] for each in raw),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "memory": statistics.median(each["memory"] for each in raw),
        "share": share if case.test == "decode" else None,
        "our_bytes_per_token": bytes_per_token,
        "their_kv": THEIR_KV[case.kv],
        **chosen,
        "rounds": raw,
    }


def line(entry: dict[str, Any]) -> str:
    """A case as a line of the table."""
    share = "" if entry["share"] is None else f"{entry['share']:.0%}"
    span = f"({entry['ratio_min']:.2f} - {entry['ratio_max']:.2f})"
    return (
        f"{entry['name']:<25} {entry['ours']:8.2f} {entry['theirs']:8.2f}  {entry['ratio']:5.2f}"
        f" {span:<13} {entry['memory']:6.1f} {share:>6}  {entry['flash_attention']}"
    )


def random_gguf_file(model: str, layers: int, work: Path) -> Path:
    """The generated file for llama.cpp, from an earlier run if there is one."""
    kind = THEIR_KINDS[model]
    path = work / f"{GEOMETRY}-{layers}-layers-{kind.name.lower()}.gguf"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        config = GEOMETRIES[GEOMETRY]
        windows = config.windows[:1] * layers
        write_random_gguf(path, replace(config, num_hidden_layers=layers, windows=windows), kind)
    return path


def processor_name() -> str:
    """The processor as the system calls it."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def add_options_of_both(parser: argparse.ArgumentParser) -> None:
    """Add the options of whatever is measured beside llama.cpp."""
    add = parser.add_argument
    add(
        "--peer-python",
        default=sys.executable,
        help="an interpreter that has llama-cpp-python (default: this one)",
    )
    add("--rounds", type=int, default=5, help="rounds a case (default: 5)")
    add("--layers", type=int, default=8, help="layers of the random models (default: 8)")
    add("--group-size", type=int, default=64, choices=(32, 64, 128), help="our int4 (default: 64)")
    add("--symmetric", action=argparse.BooleanOptionalAction, default=True, help="our int4")
    add("--asymmetric", action="store_false", dest="symmetric", help="as --no-symmetric")
    add("--threads", type=int, default=available_processors(), help="of both (default: all)")
    add("--work", type=Path, help="where generated GGUFs are kept (default: they are not)")
    add("--json", type=Path, help="write everything measured to this file")


def check_options_of_both(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program, with a sentence, where a number cannot be."""
    if min(options.rounds, options.layers, options.threads) < 1:
        parser.error("rounds, layers and threads are at least 1")


def _options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        description="Our engine and llama.cpp side by side: same machine, same run, in turns.",
        epilog=f"Cases: {', '.join(names)}.",
    )
    add = parser.add_argument
    add("--smollm2", type=Path, metavar="GGUF", help="the default model, for the smollm2 cases")
    add("--cases", nargs="+", choices=names, metavar="CASE", help="only these (default: all)")
    add_options_of_both(parser)
    options = parser.parse_args()
    check_options_of_both(parser, options)
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    if options.smollm2 is None:
        if options.cases is not None and any(case.model == "smollm2" for case in chosen):
            parser.error("the smollm2 cases need --smollm2 GGUF")
        chosen = [case for case in chosen if case.model != "smollm2"]
    options.cases = chosen
    return options


if __name__ == "__main__":
    sys.exit(main())
