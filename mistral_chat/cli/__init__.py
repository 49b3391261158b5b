"""The ``mistral-chat`` command.

Heavy modules are imported by the commands that need them, so ``--help`` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mistral_chat import __version__
from mistral_chat.errors import ClosedPipeError, ExitCode, UsageError, exit_code, sentence
from mistral_chat.settings import Paths, resolve, setting
from quant.errors import QuantError

PROGRAM = "mistral-chat"
DEFAULT_COMMAND = "chat"


class _Group(typer.core.TyperGroup):
    """The commands. At a closed pipe Typer would end the process; here it is an error like any."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ClosedPipeError from error


app = typer.Typer(
    name=PROGRAM,
    cls=_Group,
    help="Chat with a language model in this terminal: private, offline, on this computer.",
    epilog=f"'{PROGRAM} chat --help' lists the options of a question.",
    add_completion=False,
    # Rich help would import Rich before it is needed.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(name: str, *more: str) -> Any:
    """The option of a setting: its flag and help come from the table of settings."""
    row = setting(name)
    words = [row.help]
    if row.choices:
        words.append(f"One of: {', '.join(row.choices)}.")
    if row.default is not None:
        words.append(f"[default: {row.default}]")
    if row.environment:
        words.append(f"[env: {row.environment}]")
    return typer.Option(row.flag, *more, help=" ".join(words), show_default=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Chat with a language model in this terminal: private, offline, on this computer."""


@app.command(DEFAULT_COMMAND)
def chat(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="The question; '-' is standard input.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Put a file before the question; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
    ] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is complete.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing beside the answer.")
    ] = False,
    model: Annotated[str | None, _option("model", "-m")] = None,
    system: Annotated[str | None, _option("system", "-s")] = None,
    context: Annotated[int | None, _option("context")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    temperature: Annotated[float | None, _option("temperature", "-t")] = None,
    top_k: Annotated[int | None, _option("top_k")] = None,
    top_p: Annotated[float | None, _option("top_p")] = None,
    min_p: Annotated[float | None, _option("min_p")] = None,
    repetition_penalty: Annotated[float | None, _option("repetition_penalty")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    max_tokens: Annotated[int | None, _option("max_tokens", "-n")] = None,
    kv: Annotated[str | None, _option("kv")] = None,
    prefill: Annotated[str | None, _option("prefill")] = None,
) -> int:
    """Answer a question, or talk where there is none. The word 'chat' may be left out."""
    flags = {
        "model": model,
        "system": system,
        "context": context,
        "threads": threads,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
        "kv": kv,
        "prefill": prefill,
    }
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)

    from mistral_chat.commands import Chat
    from mistral_chat.engine import ChatEngine, sampling_of
    from mistral_chat.oneshot import Form, answer, gather, standard_input
    from mistral_chat.render import Notes

    # Made to be checked: a value out of range is told before anything is fetched or loaded.
    sampling_of(settings)
    notes = Notes(quiet)
    words, files = prompt or [], file or []
    stdin = standard_input(words, files)

    def open_engine() -> ChatEngine:
        with notes.progress() as progress:
            return ChatEngine.open(settings, paths, progress)

    if words or files or stdin is not None:
        text = gather(words, files, stdin)
        form = Form(json=as_json, stream=not no_stream)
        return answer(text, settings, open_engine, notes, form, sys.stdout)
    if sys.stdin is None or not sys.stdout.isatty() or as_json:
        raise UsageError(
            f'There is nothing to answer; write a question: {PROGRAM} "your question".'
        )

    from mistral_chat.repl import open_repl

    open_repl(Chat(open_engine(), settings), paths.history_file, notes)
    return ExitCode.DONE


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> int:
    """List the models that are here and those that can be fetched."""
    from mistral_chat.models import list_models

    entries = list_models(Paths.from_environment(os.environ))
    if as_json:
        rows = [
            {
                "name": entry.name,
                "description": entry.description,
                "installed": entry.path is not None,
                "path": str(entry.path) if entry.path else None,
                "bytes": entry.size,
            }
            for entry in entries
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return ExitCode.DONE
    for entry in entries:
        size = f"{entry.size / 1e6:.0f} MB"
        state = size if entry.path else f"not here yet, {size} to download"
        typer.echo(f"{entry.name}\t{state}\t{entry.description}")
    return ExitCode.DONE


@app.command()
def bench(
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Length of a prompt to read; may be repeated.", min=1, metavar="TOKENS"),
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Tokens in the cache while decoding; may be repeated.", min=0),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="Measurements of each; medians are shown.", min=1)
    ] = 5,
    geometry: Annotated[
        str | None,
        typer.Option(help="Random weights of known shapes, without a file: mistral-7b, ..."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="With --geometry: layers, instead of all.", min=1)
    ] = None,
    bits: Annotated[int, typer.Option(help="With --geometry: 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="With --geometry: 32, 64 or 128.")] = 64,
    symmetric: Annotated[bool, typer.Option(help="With --geometry: scales only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing beside the result.")
    ] = False,
    model: Annotated[str | None, _option("model", "-m")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    kv: Annotated[str | None, _option("kv")] = None,
) -> int:
    """Measure how fast a model reads and writes on this computer."""
    flags = {"model": model, "threads": threads, "kv": kv}
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)

    from rich.console import Console

    from mistral_chat.bench import Plan, run_benchmark
    from mistral_chat.render import Notes

    plan = Plan(
        prefill or [128, 512], depth or [0, 1024], rounds, geometry, layers, bits, group_size,
        symmetric,
    )  # fmt: skip
    with Notes(quiet).progress() as progress:
        report = run_benchmark(plan, settings, paths, progress)
    if as_json:
        typer.echo(report.to_json())
    else:
        report.print(Console())
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing beside the result.")
    ] = False,
) -> int:
    """Compile the kernels now, once on this computer; no model is needed."""
    row = setting("kv")
    kinds = row.choices if kv is None else [row.check(kv, row.flag)]

    from mistral_chat.render import Notes
    from mistral_chat.warmup import warm_up

    notes = Notes(quiet)
    with notes.progress() as progress:
        report = warm_up(kinds, progress)
    notes.say(report.sentence())
    if as_json:
        typer.echo(report.to_json())
    return ExitCode.DONE


def with_default_command(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments, after ``chat`` unless they begin with a command or a global option.

    >>> with_default_command(["What is this?"], ["chat", "models"])
    ['chat', 'What is this?']
    >>> with_default_command(["models", "--json"], ["chat", "models"])
    ['models', '--json']
    """
    first = arguments[0] if arguments else ""
    if first in names or first in ("--help", "-h", "--version"):
        return list(arguments)
    return [DEFAULT_COMMAND, *arguments]


def _run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors come out as one sentence on stderr."""
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    try:
        # Python gives None where standard output was closed from the start.
        if sys.stdout is None:
            raise UsageError("Standard output is closed, so an answer has nowhere to go.")
        result = app(
            with_default_command(arguments, names), prog_name=PROGRAM, standalone_mode=False
        )
        sys.stdout.flush()
        return int(result or 0)
    except typer.TyperException as error:
        typer.echo(f"{error.format_message()} See '{PROGRAM} --help'.", err=True)
        return ExitCode.USAGE
    except (BrokenPipeError, ClosedPipeError):
        _drop_output()
        return ExitCode.DONE
    except (QuantError, OSError) as error:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # a full disk under standard output, most likely the error itself
            _drop_output()
        typer.echo(sentence(error), err=True)
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter flushes at exit and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks becomes a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(int(_run(sys.argv[1:])))
