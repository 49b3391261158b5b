"""``python -m tests.fuzz [TARGET...] --cases N --seed S --seeds K``, or ``--only NUMBER``.

It prints a line for each target and seed, then each kind of fault with how to run it again, and
ends with exit code 1 where there was one. It needs fork, which Windows does not have.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

from .runner import prepared, run, run_one
from .target import Target
from .targets import ENGINE, NAMES, find


def main() -> int:
    """Run what the arguments ask for; 1 where something was wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET",
        help=f"one of {', '.join(NAMES)}; 'engine' for those of quant; all where none is named",
    )  # fmt: skip
    parser.add_argument("--cases", type=int, help="cases of each target and seed (default: few)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run this case, with traceback")
    asked = parser.parse_args()
    names = [
        name
        for word in asked.targets or NAMES
        for name in (ENGINE if word == "engine" else (word,))
    ]
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"there is no target {unknown[0]}; targets are {', '.join(NAMES)}")
    faults = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-home-") as home:
        os.environ["MISTRAL_CHAT_HOME"] = home
        for name in names:
            with prepared(find(name)) as target:
                if asked.only is not None:
                    faults += _run_alone(target, asked.seed, asked.only)
                    continue
                for seed in range(asked.seed, asked.seed + asked.seeds):
                    report = run(target, seed, range(asked.cases or target.short))
                    print(report.line(), *report.kinds(), sep="\n", flush=True)
                    faults += len(report.faults)
    return 1 if faults else 0


def _run_alone(target: Target, seed: int, number: int) -> int:
    try:
        run_one(target, seed, number)
    except target.refusals() as error:
        print(f"{target.name} {number} was refused: {type(error).__name__}: {error}")
        return 0
    print(f"{target.name} {number} passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
