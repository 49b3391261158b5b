"""What the terminal costs: starting, drawing, and going on with a session.

    python benchmarks/terminal.py [--rounds N]

Prints medians: seconds to ``--help`` and to the prompt of a second start, the share of a token's
time at 200 tokens a second that drawing Markdown takes, and the first token of a session of some
2,000 tokens with what was kept of it and without. The default model must be installed.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import quant
from mistral_chat.settings import Paths
from mistral_chat.terminal.markdown import MarkdownWriter

COMMAND = [sys.executable, "-m", "mistral_chat"]
TOKENS_A_SECOND = 200


class TerminalStream(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def help_seconds() -> float:
    """Of one ``--help``."""
    started = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def prompt_seconds() -> float:
    """Until the prompt is drawn on a terminal."""
    started = time.perf_counter()
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [*COMMAND, "--private"])  # noqa: S606 - this program
    seen = b""
    # The line editor is there, and has drawn its prompt.
    while b">" not in seen.partition(b"\x1b[?2004h")[2]:
        seen += os.read(descriptor, 65536)
        if b"\x1b[6n" in seen:  # where is the cursor?
            os.write(descriptor, b"\x1b[2;1R")
            seen = seen.replace(b"\x1b[6n", b"")
    seconds = time.perf_counter() - started
    os.write(descriptor, b"\x04")
    try:
        while data := os.read(descriptor, 65536):
            if b"\x1b[6n" in data:
                os.write(descriptor, b"\x1b[2;1R")
    except OSError:  # the terminal is closed
        pass
    os.waitpid(pid, 0)
    return seconds


def drawing_share() -> float:
    """The share of the time that drawing takes while tokens come at 200 a second."""
    text = (
        "Some *words* with `code` in a paragraph.\n\n- one\n- two\n\n```python\nx = 1\n"
        "y = 2\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    ) * 8
    pieces = [text[start : start + 4] for start in range(0, len(text), 4)]
    writer = MarkdownWriter(TerminalStream(), "dark")
    spent = 0.0
    for piece in pieces:
        started = time.perf_counter()
        writer.write(piece)
        took = time.perf_counter() - started
        spent += took
        time.sleep(max(0.0, 1 / TOKENS_A_SECOND - took))
    return spent / (len(pieces) / TOKENS_A_SECOND)


def first_token_seconds(model: quant.Model, folder: Path) -> tuple[float, float, float]:
    """Of 2,000 tokens read anew, of the same out of a file, and how far their logits are apart."""
    ids = np.random.default_rng(1).integers(100, 40000, 2010).tolist()
    session = model.session(max_context=4096)
    session.feed(ids[:2000])
    session.save(folder / "cache", "benchmark")
    anew = model.session(max_context=4096)
    started = time.perf_counter()
    expected = anew.feed(ids)
    read = time.perf_counter() - started
    resumed = model.session(max_context=4096)
    started = time.perf_counter()
    resumed.restore(folder / "cache", "benchmark")
    logits = resumed.feed(ids[2000:])
    return read, time.perf_counter() - started, float(np.abs(logits - expected).max())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    paths = Paths.from_environment(os.environ)
    model = quant.load(paths.models / "smollm2")
    helps, prompts = ([f() for _ in range(rounds)] for f in (help_seconds, prompt_seconds))
    print(f"--help: {statistics.median(helps):.2f} s")
    print(f"prompt of a second start: {statistics.median(prompts):.2f} s")
    shares = [drawing_share() for _ in range(3)]
    print(f"drawing at {TOKENS_A_SECOND} tokens/s: {statistics.median(shares):.1%} of the time")
    with tempfile.TemporaryDirectory(dir=paths.data) as folder:
        rows = [first_token_seconds(model, Path(folder)) for _ in range(rounds)]
    read, resumed, apart = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"first token after 2,000: read {read:.2f} s, resumed {resumed:.3f} s "
        f"({read / resumed:.1f} times sooner), logits at most {apart:.1e} apart"
    )


if __name__ == "__main__":
    main()
