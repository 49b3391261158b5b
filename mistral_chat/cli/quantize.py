"""Commands that quantize models and measure what that does to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mistral_chat.cli.application import app, tell_result
from mistral_chat.cli.options import AsJson, IgnoreMemory, ModelArgument, NoCheck, Quiet, Threads
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths, brief
from quant.errors import SpecError

if TYPE_CHECKING:
    from mistral_chat.models.download import Progress
    from mistral_chat.models.quantizing import Comparison, Order, Quantized
    from quant import QuantSpec
    from quant.quantizers.recipe import Recipe


Source = Annotated[str, typer.Argument(help="A model's folder, GGUF file, or name.")]
Target = Annotated[
    Path | None,
    typer.Argument(help="The folder to make; none with --compare.", show_default=False),
]
Bits = Annotated[int, typer.Option(help="4 or 8.")]
GroupSize = Annotated[
    int | None,
    typer.Option(
        help="Weights that share a scale: 32, 64, 128.  [default: 64, or 32 where 64 do not "
        "divide the model's columns]",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(help="gptq (the best, slow), mse (searched grids) or rtn (rounding, at once)."),
]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="Scales only, no minimums.")]
HeadBits = Annotated[int, typer.Option(help="Bits of the embedding and the output.")]
TensorRules = Annotated[
    list[str] | None,
    typer.Option(
        help="PATTERN=BITS for some tensors, such as 'layers.0.*=8'; may be repeated.",
        show_default=False,
    ),
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(
        help="A text to calibrate with.  [default: one of the package]", show_default=False
    ),
]
Requantize = Annotated[
    bool, typer.Option("--requantize", help="Quantize anew what is quantized already.")
]
Rotate = Annotated[
    bool, typer.Option("--rotate", help="Turn the residual stream first; see the docs.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Only show what each method would give.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace the target, if it is a model made by this program."),
]


@app.command("quantize-weights")
def quantize_weights(
    source: Source,
    target: Target = None,
    bits: Bits = 4,
    group_size: GroupSize = None,
    method: Method = "gptq",
    symmetric: Symmetric = False,
    head_bits: HeadBits = 8,
    tensor: TensorRules = None,
    calibrate: CalibrationText = None,
    no_check: NoCheck = False,
    requantize: Requantize = False,
    rotate: Rotate = False,
    compare: Compare = False,
    force: Force = False,
    ignore_memory: IgnoreMemory = False,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Make a small model of a large one, in bounded memory; goes on where it was interrupted."""
    from mistral_chat.models.names import locate
    from mistral_chat.models.quantizing import Order
    from mistral_chat.terminal.render import Notes
    from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint

    if compare == (target is not None):
        raise UsageError("Name a target to make, or ask for --compare without one.")
    recipe_for = partial(_recipe, bits, head_bits, symmetric, method, tensor or ())
    recipe = recipe_for(group_size or DEFAULT_SPEC.group_size)
    text = _content(calibrate)
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
        result = _carry_out(order, compare, paths, progress)
    tell_result(result, as_json)
    return ExitCode.DONE


def _recipe(
    bits: int,
    head_bits: int,
    symmetric: bool,
    method: str,
    rules: Sequence[str],
    group_size: int,
) -> Recipe:
    """What is asked for, in groups of so many columns; raises UsageError for what cannot be."""
    from quant import QuantSpec
    from quant.quantizers.recipe import Recipe

    try:
        return Recipe(
            spec=QuantSpec(bits, group_size, symmetric),
            head=QuantSpec(head_bits, group_size, symmetric),
            method=method,
            rules=tuple(_rule(each, group_size, symmetric) for each in rules),
        )
    except SpecError as error:
        raise UsageError(str(error)) from error


def _carry_out(
    order: Order, compare: bool, paths: Paths, progress: Progress
) -> Quantized | Comparison:
    from mistral_chat.models.download import workspace
    from mistral_chat.models.quantizing import compare_methods
    from mistral_chat.models.quantizing import quantize_weights as carry_out

    if not compare:
        return carry_out(order, progress)
    with workspace(paths.data / "comparisons", "methods") as folder:
        return compare_methods(replace(order, target=folder), progress)


def _content(path: Path | None) -> str | None:
    """The text of a file, or of standard input for '-'; None where none is named."""
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.system.files import decode
    from mistral_chat.talk.inputs import read_input

    return None if path is None else decode(read_input(path, MOST_BYTES), str(path))


Text = Annotated[
    Path | None,
    typer.Argument(
        help="A text; '-' is standard input.  [default: one of the package]", show_default=False
    ),
]
Against = Annotated[
    str | None,
    typer.Option(help="Another model of the same shape to compare with.", show_default=False),
]


@app.command()
def perplexity(
    model: ModelArgument,
    text: Text = None,
    against: Against = None,
    ignore_memory: IgnoreMemory = False,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Measure how well a model predicts a text, and how far it is from another."""
    from mistral_chat.models.names import locate
    from mistral_chat.models.quantizing import measure_perplexity
    from mistral_chat.terminal.render import Notes

    paths = Paths.from_environment(os.environ)
    content = _content(text)
    with Notes(quiet).progress() as progress:
        path = locate(model, paths, progress)
        reference = None if against is None else locate(against, paths, progress)
        result = measure_perplexity(path, content, reference, threads, progress, ignore_memory)
    tell_result(result, as_json)
    return ExitCode.DONE


def _rule(text: str, group_size: int, symmetric: bool) -> tuple[str, QuantSpec]:
    from quant import QuantSpec

    pattern, equals, bits = text.partition("=")
    # Any number of more digits is no count of bits; Python reads none of thousands of them.
    if not (pattern and equals and bits.isdecimal() and len(bits) < 4):
        raise UsageError(f"--tensor is PATTERN=BITS, such as 'layers.0.*=8', not {brief(text)}.")
    return pattern, QuantSpec(int(bits), group_size, symmetric)
