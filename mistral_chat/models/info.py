"""What a checkpoint is, told from its headers: nothing is loaded."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from rich.table import Table

from mistral_chat.models.families import family_of
from mistral_chat.models.names import open_tokenizer
from mistral_chat.system.screen import Screen
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import Tokenizer, check_vocabulary
from quant import ModelConfig, QuantError
from quant.checkpoints import open_checkpoint
from quant.checkpoints.names import tensor_names, tensor_shape


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A vocabulary; ``version`` is that of Mistral's own vocabularies, None for others."""

    kind: str
    vocab_size: int
    version: str | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """All that ``info`` tells; sizes are bytes, ``problems`` sentences on what is missing."""

    path: str
    format: str
    family: str | None
    version: str | None
    parameters: int
    config: dict[str, Any]
    tokenizer: TokenizerInfo | None
    template: str | None
    tensors: dict[str, int]
    bytes: int
    bits_per_weight: float
    source: str
    receipt: dict[str, Any] | None
    problems: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def print(self, console: Screen) -> None:
        """A line for each fact, then the problems."""
        table = Table.grid(padding=(0, 2))
        for name, value in self._rows():
            table.add_row(name, value)
        console.print(table)
        for problem in self.problems:
            console.print(problem, style="yellow")

    def _rows(self) -> list[tuple[str, str]]:
        config = self.config
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        family = f"{self.family} {self.version}" if self.family else "not one of the known"
        rows = [
            ("path", self.path),
            ("format", self.format),
            ("family", family),
            ("parameters", f"{self.parameters:,}"),
            ("layers", f"{config['num_hidden_layers']} of width {config['hidden_size']}, "
             f"feed-forward {config['intermediate_size']}"),
            ("heads", f"{heads} of {config['head_dim']}, sharing {shared} keys and values"),
            ("vocabulary", f"{config['vocab_size']} rows"
             + (", shared with the output" if config["tie_word_embeddings"] else "")),
            ("RoPE base", f"{config['rope_theta']:g}"),
            ("window", describe_windows(config["windows"])),
            ("context", f"{config['max_position_embeddings']} tokens"),
            ("tokenizer", self._tokenizer()),
            ("template", self.template or "none"),
            ("tensors", ", ".join(f"{count} {kind}" for kind, count in self.tensors.items())),
            ("size", f"{self.bytes / 1e9:.2f} GB, {self.bits_per_weight:.2f} bits a weight"),
        ]  # fmt: skip
        if self.receipt is not None:
            rows.append(("quantized", f"{self.receipt.get('method')}, from {self.source}"))
        return rows

    def _tokenizer(self) -> str:
        if self.tokenizer is None:
            return "none"
        version = f", Mistral's {self.tokenizer.version}" if self.tokenizer.version else ""
        return f"{self.tokenizer.kind} of {self.tokenizer.vocab_size} tokens{version}"


def inspect(path: Path) -> ModelInfo:
    """What lies at ``path``; raises CheckpointError and ConfigError where that is no model.

    A tokenizer or template that is missing or cannot be used is told in ``problems``.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    problems: list[str] = []
    tokenizer = _tokenizer(path, config, problems)
    template = None
    if tokenizer is not None:
        try:
            template = template_for(tokenizer).name
        except QuantError as error:
            problems.append(str(error))
    names = tensor_names(config)
    family = family_of(config)
    parameters = sum(prod(tensor_shape(config, name)) for name in names)
    stored = [checkpoint.stored(name) for name in names]
    return ModelInfo(
        path=str(path),
        format=checkpoint.format,
        family=family.name if family else None,
        version=family.version if family else None,
        parameters=parameters,
        config=asdict(config),
        tokenizer=_describe(tokenizer),
        template=template,
        tensors=dict(Counter(kind for kind, _ in stored).most_common()),
        bytes=_bytes(path),
        bits_per_weight=8 * sum(size for _, size in stored) / parameters,
        source=checkpoint.source,
        receipt=getattr(checkpoint, "receipt", None),
        problems=tuple(problems),
    )


def _tokenizer(path: Path, config: ModelConfig, problems: list[str]) -> Tokenizer | None:
    try:
        tokenizer = open_tokenizer(path)
        check_vocabulary(tokenizer, config.vocab_size)
    except QuantError as error:
        problems.append(str(error))
        return None
    return tokenizer


def _describe(tokenizer: Tokenizer | None) -> TokenizerInfo | None:
    if tokenizer is None:
        return None
    return TokenizerInfo(tokenizer.kind, tokenizer.vocab_size, tokenizer.mistral_version)


def describe_windows(windows: tuple[int | None, ...]) -> str:
    """The sliding windows of the layers in words.

    >>> describe_windows((4096, 4096))
    '4096 tokens in every layer'
    >>> describe_windows((None, 8, 8, None, 8, 8))
    'all tokens in 1 layer, 8 in 2 layers, all tokens in 1 layer, 8 in 2 layers'
    >>> describe_windows((None, None))
    'none'
    """
    if set(windows) == {None}:
        return "none"
    if len(set(windows)) == 1:
        return f"{windows[0]} tokens in every layer"
    runs = [(window, len(list(run))) for window, run in groupby(windows)]
    return ", ".join(
        f"{'all tokens' if window is None else window} in {count} layer{'s' * (count > 1)}"
        for window, count in runs
    )


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
