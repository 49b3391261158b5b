"""Shapes of models that nobody publishes, and that are valid: both backends must agree."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from quant.config import ModelConfig
from quant.qtensor import QuantSpec

from ...quant.models import random_model
from ..target import Target, require

SPECS = (
    None, QuantSpec(4, 32, True), QuantSpec(4, 32, False), QuantSpec(8, 32, True),
    QuantSpec(8, 64, False), QuantSpec(4, 128, True),
)  # fmt: skip
WIDEST = 4096
"""Rows of the widest query matrix."""
TOLERANCES = {"f32": 5e-3, "f16": 5e-3, "int8": 5e-2}
"""The most that logits may differ, in units of the largest (of 1 at least), by kind of cache."""


def odd_geometry(random: Random, spec: QuantSpec | None) -> ModelConfig:
    """A valid configuration whose matrices ``spec`` can pack."""
    shared = random.choice((1, 1, 2, 3, 5))
    heads = shared * random.choice((1, 2, 3, 7, 8, 16, 33, 64, 128, 200))
    head_dim = random.choice((16, 32, 48, 64, 80, 112, 128, 176, 256, 512, 1024))
    while heads * head_dim > WIDEST:
        head_dim = max(16, head_dim // 2 // 16 * 16)
        heads = max(shared, heads // 2 // shared * shared)
    hidden = random.choice((16, 32, 48, 64, 96, 128, 160))
    inner = random.choice((16, 32, 48, 64, 128, 224))
    if spec is not None:
        group = spec.group_size
        hidden, inner = (max(group, width // group * group) for width in (hidden, inner))
        while heads * head_dim % group:
            head_dim *= 2
    layers = random.choice((1, 2, 3))
    window = random.choice((1, 2, 16, 63, 64, 65, 100))
    return ModelConfig(
        vocab_size=random.choice((1, 2, 15, 16, 17, 33, 96, 261)),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=head_dim,
        rms_norm_eps=random.choice((1e-5, 1e-6, 1.0)),
        rope_theta=random.choice((1.0, 1e4, 1e6, 1e30)),
        max_position_embeddings=random.choice((1, 2, 64, 130, 300)),
        windows=tuple(random.choice((None, window)) for _ in range(layers)),
        tie_word_embeddings=random.random() < 0.5,
        bos_token_id=None,
        eos_token_ids=(),
    )


class Geometry(Target):
    """Logits of a random model by the compiled kernels and by NumPy."""

    name = "geometry"
    short = 12
    seconds = 60.0  # NumPy's way through the largest of them is long
    kernels = ("f32", "f16", "int8")

    def case(self, random: Random, scratch: Path) -> None:
        spec = random.choice(SPECS)
        config = odd_geometry(random, spec)
        model = random_model(config, spec, random.randrange(2**32))
        length = random.choice((1, 2, 13, 64, 65, 129, 200))
        count = min(config.max_position_embeddings, length)
        ids = [random.randrange(config.vocab_size) for _ in range(count)]
        kind, threads = random.choice(self.kernels), random.choice((1, 2, 3, 7))
        fed = random.choice((1, 3, 16, 256)), random.choice((7, 256))
        compiled = model.session(kv=kind, threads=threads, chunk=fed[0]).feed(ids)
        plain = model.session(kv=kind, backend="numpy", chunk=fed[1]).feed(ids)
        require(bool(np.isfinite(compiled).all()), f"not finite: {config} {spec} {kind}")
        most = TOLERANCES[kind] * max(1.0, float(np.abs(plain).max()))
        distance = float(np.abs(compiled - plain).max())
        require(distance < most, f"{distance} apart: {config} {spec} {kind} {count} ids")


TARGET = Geometry
