"""Commands that measure, or that prepare for speed."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from mistral_chat.cli.application import app, tell_json
from mistral_chat.cli.options import AsJson, Quiet, with_settings
from mistral_chat.errors import ExitCode
from mistral_chat.settings import Paths, resolve, setting

MOST_TOKENS, MOST_ROUNDS, MOST_LAYERS, MOST_AT_ONCE = 1 << 20, 1000, 1000, 256
"""What may be measured: more is a slip of the finger, and would take all memory or days."""

Prefill = Annotated[
    list[int] | None,
    typer.Option(
        help="Length of a prompt to read; may be repeated.",
        min=1,
        max=MOST_TOKENS,
        metavar="TOKENS",
    ),
]

AtOnce = Annotated[
    list[int] | None,
    typer.Option(
        help="Sequences answered at once, beside one; may be repeated. Prompts then only with "
        "--prefill.",
        min=1,
        max=MOST_AT_ONCE,
        metavar="SEQUENCES",
    ),
]


@app.command()
@with_settings("model", "threads", "kv", "device", "gpu_layers")
def bench(
    prefill: Prefill = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens in the cache while decoding; may be repeated.", min=0, max=MOST_TOKENS
        ),
    ] = None,
    at_once: AtOnce = None,
    rounds: Annotated[
        int, typer.Option(help="Measurements of each; medians are shown.", min=1, max=MOST_ROUNDS)
    ] = 5,
    geometry: Annotated[
        str | None,
        typer.Option(help="Random weights of known shapes, without a file: mistral-7b, ..."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="With --geometry: layers, instead of all.", min=1, max=MOST_LAYERS),
    ] = None,
    bits: Annotated[int, typer.Option(help="With --geometry: 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="With --geometry: 32, 64 or 128.")] = 64,
    symmetric: Annotated[bool, typer.Option(help="With --geometry: scales only.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Measure how fast a model reads and writes on this computer."""
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)

    from mistral_chat.system.screen import Screen
    from mistral_chat.terminal.bench import Plan, run_benchmark
    from mistral_chat.terminal.render import Notes

    plan = Plan(
        prefill or ([] if at_once else [128, 512]), depth or [0, 1024], rounds, geometry, layers,
        bits, group_size, symmetric, at_once or [],
    )  # fmt: skip
    with Notes(quiet).progress() as progress:
        report = run_benchmark(plan, settings, paths, progress)
    if as_json:
        tell_json(report.to_json())
    else:
        report.print(Screen())
    return ExitCode.DONE


@app.command()
def warmup(
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help=f"Only for this kind of cache: {' or '.join(setting('kv').choices)}. "
            "[default: all]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Compile the kernels now, once on this computer; no model is needed."""
    row = setting("kv")
    kinds = row.choices if kv is None else [row.check(kv, row.flag)]

    from mistral_chat.models.warmup import warm_up
    from mistral_chat.terminal.render import Notes

    notes = Notes(quiet)
    with notes.progress() as progress:
        report = warm_up(kinds, progress)
    notes.say(report.sentence())
    if as_json:
        tell_json(report.to_json())
    return ExitCode.DONE
