"""Which published model a geometry is that of.

A checkpoint does not say "Mistral 7B v0.3" anywhere, but its numbers do: vocabulary, widths, RoPE
base and window. Base and instruct models cannot be told apart by them.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant import ModelConfig


@dataclass(frozen=True, slots=True)
class Family:
    """A published model, and the numbers of a configuration that only it has."""

    name: str
    version: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float
    windows: tuple[int | None, ...] = (None,)
    """The pattern of the sliding windows, repeated over the layers."""

    def fits(self, config: ModelConfig) -> bool:
        """Whether ``config`` has this geometry; added tokens may have widened the vocabulary."""
        repeated = self.windows * (config.num_hidden_layers // len(self.windows))
        return (
            self.hidden_size == config.hidden_size
            and self.num_hidden_layers == config.num_hidden_layers
            and self.num_attention_heads == config.num_attention_heads
            and self.intermediate_size == config.intermediate_size
            and self.vocab_size <= config.vocab_size < self.vocab_size + 256
            and self.rope_theta == config.rope_theta
            and repeated == config.windows
        )


_SEVEN = (4096, 32, 32, 14336)
FAMILIES = (
    Family("Mistral 7B", "v0.1", *_SEVEN, 32000, 1e4, (4096,)),
    Family("Mistral 7B", "v0.2", *_SEVEN, 32000, 1e6),
    Family("Mistral 7B", "v0.3", *_SEVEN, 32768, 1e6),
    Family("Mistral 22B", "Codestral, Small 2409", 6144, 56, 48, 16384, 32768, 1e6),
    Family("Ministral 8B", "2410", 4096, 36, 32, 12288, 131072, 1e8, (None, 32768, 32768, 32768)),
    Family("Mistral Nemo 12B", "2407", 5120, 40, 32, 14336, 131072, 1e6),
    Family("Mistral Small 24B", "2501", 5120, 40, 32, 32768, 131072, 1e8),
    Family("SmolLM2", "135M", 576, 30, 9, 1536, 49152, 1e5),
)


def family_of(config: ModelConfig) -> Family | None:
    """The published model with this geometry, or None."""
    return next((family for family in FAMILIES if family.fits(config)), None)
