"""Commands for the models on this computer."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from mistral_chat.cli.application import app, tell, tell_json, tell_result
from mistral_chat.cli.options import AsJson, NoCheck, Quiet, Threads
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> int:
    """List the models that are here and those that can be fetched."""
    from mistral_chat.models.names import list_models

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
        tell_json(json.dumps(rows, ensure_ascii=False))
        return ExitCode.DONE
    for entry in entries:
        size = f"{entry.size / 1e6:.0f} MB"
        state = size if entry.path else f"not here yet, {size} to download"
        tell(f"{entry.name}\t{state}\t{entry.description}")
    return ExitCode.DONE


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A short name ('mistral-chat models'), org/repository, a GGUF file in one "
            "(org/repository/FILE.gguf, or a part of its name: org/repository:Q4_0), or a path."
        ),
    ],
    quantize: Annotated[
        int | None,
        typer.Option(help="Make it 4 or 8 bits and keep only that.", show_default=False),
    ] = None,
    method: Annotated[
        str, typer.Option(help="With --quantize: gptq, mse or rtn; see quantize-weights.")
    ] = "gptq",
    no_check: NoCheck = False,
    force: Annotated[bool, typer.Option("--force", help="Replace one that is here.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Fetch a model, checked byte for byte; goes on where it was interrupted."""
    from mistral_chat.models.pulling import Wish
    from mistral_chat.models.pulling import pull as carry_out
    from mistral_chat.terminal.render import Notes
    from quant import QuantSpec
    from quant.errors import SpecError
    from quant.quantizers.recipe import Recipe

    try:
        recipe = None if quantize is None else Recipe(QuantSpec(quantize), method=method)
    except SpecError as error:
        raise UsageError(str(error)) from error
    with Notes(quiet).progress() as progress:
        wish = Wish(recipe, force, not no_check, threads)
        result = carry_out(name, wish, Paths.from_environment(os.environ), progress)
    tell_result(result, as_json)
    return ExitCode.DONE


@app.command("rm")
def remove_model(
    name: Annotated[list[str], typer.Argument(help="Names of installed models.")],
    quiet: Quiet = False,
) -> int:
    """Remove installed models. What the hub's own cache holds stays there."""
    from mistral_chat.models.names import remove
    from mistral_chat.terminal.render import Notes

    paths = Paths.from_environment(os.environ)
    for each in name:
        freed = remove(each, paths)
        Notes(quiet).say(f"{each} is removed, {freed / 1e6:.0f} MB are free again.")
    return ExitCode.DONE
