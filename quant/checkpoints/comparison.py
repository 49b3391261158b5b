"""Two checkpoints of one model side by side, layer by layer, in the memory of two layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import CheckpointError
from ..quantizers.calibration import LayerPass
from ..quantizers.divergence import Divergence
from ..weights import MATRICES, Matrix
from .checkpoint import Checkpoint
from .conversion import rows_of


def compare(
    reference: Checkpoint,
    other: Checkpoint,
    texts: Sequence[Sequence[int]],
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """How far the next-token distribution of ``other`` is from that of ``reference``.

    ``texts`` are token ids, each read by itself; ``progress(done, total)`` counts layers. Raises
    :class:`~quant.errors.CheckpointError` where the two are not one model's.
    """
    one, two = reference.config, other.config
    if (one.hidden_size, one.num_hidden_layers, one.vocab_size) != (
        two.hidden_size,
        two.num_hidden_layers,
        two.vocab_size,
    ):
        raise CheckpointError(
            f"{reference.source} and {other.source} are not the same model: their shapes differ."
        )
    passes = [_begin(checkpoint, texts, threads) for checkpoint in (reference, other)]
    layers = one.num_hidden_layers
    for i in range(layers):
        for checkpoint, running in zip((reference, other), passes, strict=True):
            names = ("attention_norm", "mlp_norm", *MATRICES)
            layer = {name: checkpoint.read(f"layers.{i}.{name}") for name in names}
            running.add_attention(layer, checkpoint.config.windows[i])
            running.add_mlp(layer)
        if progress is not None:
            progress(i + 1, layers)
    divergence = Divergence()
    logits = [
        running.logits(np.asarray(checkpoint.read("norm")), _head(checkpoint))
        for checkpoint, running in zip((reference, other), passes, strict=True)
    ]
    for ours, theirs in zip(*logits, strict=True):
        divergence.add(ours, theirs)
    return divergence


def _begin(checkpoint: Checkpoint, texts: Sequence[Sequence[int]], threads: int) -> LayerPass:
    embedding = checkpoint.read("embedding")
    return LayerPass(checkpoint.config, lambda ids: rows_of(embedding, ids), texts, threads=threads)


def _head(checkpoint: Checkpoint) -> Matrix:
    return checkpoint.read("embedding" if checkpoint.config.tie_word_embeddings else "head")
