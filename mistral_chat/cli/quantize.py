"""Commands that quantize models and measure what that does to them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mistral_chat.cli.application import (
    AsJson,
    IgnoreMemory,
    Quiet,
    app,
    option,
    tell,
    tell_json,
)
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths, brief
from quant.errors import SpecError

if TYPE_CHECKING:
    from quant import QuantSpec


@app.command("quantize-weights")
def quantize_weights(
    source: Annotated[str, typer.Argument(help="A model's folder, GGUF file, or name.")],
    target: Annotated[
        Path | None,
        typer.Argument(help="The folder to make; none with --compare.", show_default=False),
    ] = None,
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale: 32, 64, 128.  [default: 64, or 32 where 64 do not "
            "divide the model's columns]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="gptq (the best, slow), mse (searched grids) or rtn (rounding, at once)."
        ),
    ] = "gptq",
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Scales only, no minimums.")
    ] = False,
    head_bits: Annotated[int, typer.Option(help="Bits of the embedding and the output.")] = 8,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=BITS for some tensors, such as 'layers.0.*=8'; may be repeated.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A text to calibrate with.  [default: one of the package]", show_default=False
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not compare the result with its source.")
    ] = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Quantize anew what is quantized already.")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Turn the residual stream first; see the docs.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Only show what each method would give.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace the target, if it is a model made by this program."),
    ] = False,
    ignore_memory: IgnoreMemory = False,
    threads: Annotated[int | None, option("threads")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Make a small model of a large one, in bounded memory; goes on where it was interrupted."""
    from mistral_chat.models.download import workspace
    from mistral_chat.models.names import locate
    from mistral_chat.models.quantizing import Comparison, Order, Quantized, compare_methods
    from mistral_chat.models.quantizing import quantize_weights as carry_out
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.system.files import decode
    from mistral_chat.talk.inputs import read_input
    from mistral_chat.terminal.render import Notes
    from quant import QuantSpec
    from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint
    from quant.quantizers.recipe import Recipe

    if compare == (target is not None):
        raise UsageError("Name a target to make, or ask for --compare without one.")

    def recipe_for(columns: int) -> Recipe:
        """What is asked for, in groups of so many columns."""
        try:
            return Recipe(
                spec=QuantSpec(bits, columns, symmetric),
                head=QuantSpec(head_bits, columns, symmetric),
                method=method,
                rules=tuple(_rule(each, columns, symmetric) for each in tensor or ()),
            )
        except SpecError as error:
            raise UsageError(str(error)) from error

    recipe = recipe_for(group_size or DEFAULT_SPEC.group_size)
    text = None
    if calibrate is not None:
        data = read_input(calibrate, MOST_BYTES)
        text = decode(data, str(calibrate))
    paths = Paths.from_environment(os.environ)
    with Notes(quiet).progress() as progress:
        place = locate(source, paths, progress)
        if group_size is None:
            recipe = recipe_for(fitting_spec(open_checkpoint(place).config).group_size)
        order = Order(
            place,
            target or place,
            recipe,
            text,
            check=not no_check,
            force=force,
            ignore_memory=ignore_memory,
            requantize=requantize,
            rotate=rotate,
            threads=threads,
        )
        result: Quantized | Comparison
        if compare:
            with workspace(paths.data / "comparisons", "methods") as folder:
                result = compare_methods(replace(order, target=folder), progress)
        else:
            result = carry_out(order, progress)
    if as_json:
        tell_json(result.to_json())
    else:
        for line in result.sentences():
            tell(line)
    return ExitCode.DONE


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="A model's name, folder or GGUF file.")],
    text: Annotated[
        Path | None,
        typer.Argument(
            help="A text; '-' is standard input.  [default: one of the package]", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another model of the same shape to compare with.", show_default=False),
    ] = None,
    ignore_memory: IgnoreMemory = False,
    threads: Annotated[int | None, option("threads")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Measure how well a model predicts a text, and how far it is from another."""
    from mistral_chat.models.names import locate
    from mistral_chat.models.quantizing import measure_perplexity
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.system.files import decode
    from mistral_chat.talk.inputs import read_input
    from mistral_chat.terminal.render import Notes

    paths = Paths.from_environment(os.environ)
    content = None
    if text is not None:
        content = decode(read_input(text, MOST_BYTES), str(text))
    with Notes(quiet).progress() as progress:
        path = locate(model, paths, progress)
        reference = None if against is None else locate(against, paths, progress)
        result = measure_perplexity(path, content, reference, threads, progress, ignore_memory)
    if as_json:
        tell_json(result.to_json())
    else:
        for line in result.sentences():
            tell(line)
    return ExitCode.DONE


def _rule(text: str, group_size: int, symmetric: bool) -> tuple[str, QuantSpec]:
    from quant import QuantSpec

    pattern, equals, bits = text.partition("=")
    # Any number of more digits is no count of bits; Python reads none of thousands of them.
    if not (pattern and equals and bits.isdecimal() and len(bits) < 4):
        raise UsageError(f"--tensor is PATTERN=BITS, such as 'layers.0.*=8', not {brief(text)}.")
    return pattern, QuantSpec(int(bits), group_size, symmetric)
