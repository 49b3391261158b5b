"""Commands for the models on this computer."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from mistral_chat.cli.application import app
from mistral_chat.errors import ExitCode
from mistral_chat.settings import Paths


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
