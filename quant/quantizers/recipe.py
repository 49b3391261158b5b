"""What is to become of each tensor of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import SpecError
from ..qtensor import QuantSpec

METHODS = ("rtn", "mse", "gptq")
"""Round to the nearest; the same on searched grids; GPTQ on searched grids."""


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized: ``spec`` for its matrices, ``head`` for embedding and output.

    ``rules`` are (pattern, spec) pairs for the engine's tensor names, as ``layers.0.*``; the first
    that fits counts. Embedding and output are read one row a token, or once, so 8 bits cost little
    there.

    >>> Recipe(rules=(("*.down", QuantSpec(8, 64)),)).spec_of("layers.3.down").bits
    8
    >>> Recipe().spec_of("head").bits, Recipe().spec_of("layers.0.q").bits
    (8, 4)
    """

    spec: QuantSpec = QuantSpec(bits=4, group_size=64, symmetric=False)  # noqa: RUF009 - frozen
    head: QuantSpec = QuantSpec(bits=8, group_size=64, symmetric=False)  # noqa: RUF009 - frozen
    method: str = "rtn"
    rules: tuple[tuple[str, QuantSpec], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError(f"The method is {' or '.join(METHODS)}, not {self.method!r}.")

    def spec_of(self, name: str) -> QuantSpec:
        """The spec for the matrix of that name."""
        for pattern, spec in self.rules:
            if fnmatchcase(name, pattern):
                return spec
        return self.head if name in ("embedding", "head") else self.spec

    def describe(self) -> dict[str, Any]:
        """All of it in plain values, for a receipt."""
        values = asdict(self)
        values["rules"] = [[pattern, asdict(spec)] for pattern, spec in self.rules]
        return values
