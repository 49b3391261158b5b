"""``mistral-chat quantize-weights`` and ``perplexity``: the work behind the commands."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import quant
from mistral_chat.errors import UsageError
from mistral_chat.models.download import Progress
from mistral_chat.models.names import open_tokenizer, save_companions
from mistral_chat.models.planning import check_memory, check_quantizing_memory
from mistral_chat.models.texts import SHORTEST, calibration_text, held_out_text, pieces
from mistral_chat.tokenizers import check_vocabulary
from quant.backends.scratch import HEAD_TOKENS
from quant.batch import available_processors
from quant.checkpoints import Calibration, compare, fitting_spec, open_checkpoint
from quant.checkpoints.names import tensor_names, tensor_shape
from quant.checkpoints.native import NativeCheckpoint
from quant.quantizers.divergence import log_softmax
from quant.quantizers.recipe import METHODS, Recipe


@dataclass(frozen=True)
class Order:
    """What is to be made; ``text`` calibrates (None: the package's own).

    ``force`` replaces a model that this program has made; ``ignore_memory`` tries what seems not to
    fit.
    """

    source: Path
    target: Path
    recipe: Recipe
    text: str | None = None
    check: bool = True
    force: bool = False
    ignore_memory: bool = False
    requantize: bool = False
    rotate: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Quantized:
    """The result of ``quantize-weights``; sizes are bytes, speed in bytes of the source."""

    target: str
    method: str
    bits_per_weight: float
    bytes: int
    seconds: float
    source_bytes_per_second: float
    relative_error: float
    check: dict[str, Any] | None

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    def sentences(self) -> list[str]:
        """What a person wants to know, a line each."""
        lines = [
            f"{self.target}: {self.bytes / 1e9:.2f} GB, {self.bits_per_weight:.2f} bits a weight, "
            f"method {self.method}, {self.seconds:.0f} s "
            f"({self.source_bytes_per_second / 1e6:.0f} MB of the source a second)."
        ]
        if self.method != "lossless":
            lines.append(f"Mean relative error of its tensors: {self.relative_error:.4f}.")
        if self.check is not None:
            lines.append(
                f"Against the source, over {self.check['tokens']} tokens: mean KL "
                f"{self.check['kl_mean']:.2g}, 99th percentile "
                f"{self.check['kl_percentile_99']:.2g}, the same likeliest token in "
                f"{self.check['top_token_agreement']:.1%}."
            )
        return lines


def quantize_weights(order: Order, progress: Progress) -> Quantized:
    """Quantize as ordered, resuming what was interrupted.

    Raises UsageError for a source that is quantized already and a text that is too short, and what
    :func:`quant.quantize` raises.
    """
    checkpoint = open_checkpoint(order.source)
    if checkpoint.format == NativeCheckpoint.format and not order.requantize:
        raise UsageError(
            f"{order.source} is quantized already; take its source, or quantize what is left of it "
            "with --requantize."
        )
    tokenizer = open_tokenizer(order.source)
    check_vocabulary(tokenizer, checkpoint.config.vocab_size)
    if not order.ignore_memory:
        check_quantizing_memory(checkpoint.config, order.recipe.method)
    threads = order.threads or available_processors()
    names = tensor_names(checkpoint.config)
    floats = order.requantize or any(
        checkpoint.describe(name)[1] is None and len(tensor_shape(checkpoint.config, name)) == 2
        for name in names
    )
    calibration = None
    if order.recipe.method != "rtn" and floats:
        text = calibration_text() if order.text is None else order.text
        calibration = Calibration(pieces(tokenizer, text, SHORTEST), threads)
    check = Calibration(pieces(tokenizer, held_out_text()), threads) if order.check else None
    recipe = order.recipe if floats else Recipe(order.recipe.spec)
    source_bytes = sum(checkpoint.stored(name)[1] for name in names)
    started = time.perf_counter()
    finished = started

    def tensors(done: int, total: int) -> None:
        nonlocal finished
        finished = time.perf_counter()
        progress("Quantizing", done, total)

    receipt = quant.quantize(
        order.source,
        order.target,
        progress=tensors,
        companions=lambda folder: save_companions(order.source, tokenizer, folder),
        force=order.force,
        recipe=recipe,
        calibration=calibration,
        check=check,
        checking=lambda done, total: progress("Comparing with the source", done, total),
        resume=True,
        requantize=order.requantize,
        rotate=order.rotate,
    )
    return _quantized(order, receipt, source_bytes, finished - started)


def _quantized(
    order: Order, receipt: dict[str, Any], source_bytes: int, seconds: float
) -> Quantized:
    """What was made, from its ``receipt``."""
    made = open_checkpoint(order.target)
    stored = tensor_names(made.config)
    size = sum(made.stored(name)[1] for name in stored)
    weights = sum(prod(tensor_shape(made.config, name)) for name in stored)
    errors = list(receipt["relative_errors"].values())
    return Quantized(
        target=str(order.target),
        method=receipt["method"],
        bits_per_weight=8 * size / weights,
        bytes=size,
        seconds=seconds,
        source_bytes_per_second=source_bytes / max(seconds, 1e-9),
        relative_error=float(np.mean(errors)) if errors else 0.0,
        check=receipt.get("check"),
    )


@dataclass(frozen=True)
class Comparison:
    """The same order carried out by each method, a row each."""

    rows: tuple[Quantized, ...]

    def to_json(self) -> str:
        """A JSON list of objects in the names of the fields."""
        return json.dumps([asdict(row) for row in self.rows], ensure_ascii=False, allow_nan=False)

    def sentences(self) -> list[str]:
        """A table."""
        lines = ["method  bits/weight  relative error  mean KL  99th perc.  same token  seconds"]
        for row in self.rows:
            check = row.check or {}
            lines.append(
                f"{row.method:<6}  {row.bits_per_weight:>11.2f}  {row.relative_error:>14.4f}  "
                f"{check.get('kl_mean', math.nan):>7.4f}  "
                f"{check.get('kl_percentile_99', math.nan):>10.4f}  "
                f"{check.get('top_token_agreement', math.nan):>10.1%}  {row.seconds:>7.1f}"
            )
        return lines


def compare_methods(order: Order, progress: Progress) -> Comparison:
    """Carry out ``order`` by every method, in ``order.target``, of which nothing is kept.

    Raises what :func:`quantize_weights` raises.
    """
    rows = []
    for method in METHODS:

        def report(label: str, done: int, total: int, method: str = method) -> None:
            progress(f"{label} ({method})", done, total)

        target = order.target / method
        one = replace(order, target=target, recipe=replace(order.recipe, method=method))
        rows.append(quantize_weights(one, report))
        shutil.rmtree(target)
    return Comparison(tuple(rows))


@dataclass(frozen=True)
class Perplexity:
    """``perplexity`` is exp of the mean loss in nats; ``against`` how far another model is."""

    model: str
    tokens: int
    perplexity: float
    against: dict[str, Any] | None

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    def sentences(self) -> list[str]:
        """What a person wants to know, a line each."""
        lines = [f"{self.model}: perplexity {self.perplexity:.3f} over {self.tokens} tokens."]
        if self.against is not None:
            lines.append(
                f"Against {self.against['reference']}: KL mean {self.against['kl_mean']:.3g}, "
                f"median {self.against['kl_median']:.3g}, 99th percentile "
                f"{self.against['kl_percentile_99']:.3g}; the same likeliest token in "
                f"{self.against['top_token_agreement']:.1%}."
            )
        return lines


def measure_perplexity(
    path: Path,
    text: str | None,
    reference: Path | None,
    threads: int | None,
    progress: Progress,
    ignore_memory: bool = False,
) -> Perplexity:
    """The perplexity of a model over a text (None: the package's own), in pieces of 512 tokens.

    With a ``reference`` the two are compared over the same text. Raises UsageError for a text that
    is too short, MemoryShortError for what cannot fit (unless ``ignore_memory``), CheckpointError
    for models that cannot be read or are not the same.
    """
    checkpoint = open_checkpoint(path)
    tokenizer = open_tokenizer(path)
    check_vocabulary(tokenizer, checkpoint.config.vocab_size)
    texts = pieces(tokenizer, held_out_text() if text is None else text)
    if not ignore_memory:
        check_memory(checkpoint, max(map(len, texts)), "f16")
    loss, count = _loss(path, texts, threads, progress)
    against = None
    if reference is not None:
        result = compare(
            open_checkpoint(reference),
            checkpoint,
            texts,
            threads or available_processors(),
            lambda done, total: progress("Comparing", done, total),
        )
        against = {
            "reference": str(reference),
            "tokens": result.tokens,
            "kl_mean": result.mean,
            "kl_median": result.median,
            "kl_percentile_99": result.percentile_99,
            "top_token_agreement": result.agreement,
        }
    return Perplexity(str(path), count, math.exp(loss / count), against)


def _loss(
    path: Path,
    texts: list[list[int]],
    threads: int | None,
    progress: Callable[[str, int, int], None],
) -> tuple[float, int]:
    """The loss in nats, summed over all tokens that have one before them; and their number."""
    model = quant.load(path, fitting_spec(open_checkpoint(path).config))
    session = model.session(max_context=max(map(len, texts)), threads=threads)
    loss, count = 0.0, 0
    for number, ids in enumerate(texts):
        session.trim(0)
        loss -= float(_chances(session, ids).sum())
        count += len(ids) - 1
        progress("Reading", number + 1, len(texts))
    return loss, count


def _chances(session: quant.Session, ids: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities of all ids but the first, each after those before it."""
    targets = np.asarray(ids[1:])
    chances = np.empty(len(targets))
    # A pass at a time: the logits of a whole piece are hundreds of megabytes, which take longer to
    # go through than the piece takes to be read.
    for start in range(0, len(targets), HEAD_TOKENS):
        part = targets[start : start + HEAD_TOKENS]
        rows = log_softmax(session.feed(ids[start : start + len(part)], every=True))
        chances[start : start + len(part)] = rows[np.arange(len(part)), part]
    return chances
