"""What lies beside a vocabulary in a Hugging Face folder: its special tokens and chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mistral_chat.tokenizers.fields import LARGEST_ID, Record, are_texts, is_text, write_json
from quant.config import read_json
from quant.errors import CheckpointError

CONFIG_FILE = "tokenizer_config.json"

# GGUF's names of special tokens, one of them misspelled.
_GGUF_NAMES = {
    "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip

_MARK = re.compile(r"<\|[^<>|\s]+\|>|<(?:start|end)_of_turn>|</?s>")


@dataclass(frozen=True)
class TokenizerConfig:
    """``added`` maps pieces that were added to a vocabulary to their ids; those in ``special`` too.

    ``add_bos`` is None where nothing is said about it. ``named`` has the other special tokens by
    the names under which transformers gives them to a chat template, such as ``pad_token``.
    """

    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    chat_template: str | None = None
    added: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    named: Mapping[str, str | list[str]] = field(default_factory=dict)

    def names(self, piece: str) -> bool:
        """Whether a piece is a mark rather than text: declared so, or written by the template.

        White space and single characters are text even where the template writes them.
        """
        if piece in self.special or piece in (self.bos, self.eos):
            return True
        return self.writes(piece)

    def writes(self, piece: str) -> bool:
        """Whether the chat template spells a piece that is more than white space or a character."""
        template = self.chat_template or ""
        return len(piece) > 1 and not piece.isspace() and piece in template

    def spells_mark(self, piece: str) -> bool:
        """Whether a piece is a mark by its spelling, and declared so or written by the template.

        Some GGUF files have such a piece among the ordinary ones, and llama.cpp corrects that, too.
        """
        return _MARK.fullmatch(piece) is not None and self.names(piece)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer_config.json`` in Hugging Face's names."""
        values = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            **self.named,
            "add_bos_token": self.add_bos,
            "added_tokens_decoder": {
                str(token): {"content": piece, "special": piece in self.special}
                for piece, token in self.added.items()
            },
            "chat_template": self.chat_template,
        }
        write_json(folder / CONFIG_FILE, _present(values))


def gguf_list(metadata: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> list[Any]:
    """The list ``tokenizer.ggml.<key>`` of a GGUF header, all of whose entries are of ``kind``.

    Raises CheckpointError where it is missing or holds something else, such as a text that is no
    UTF-8.
    """
    name = f"tokenizer.ggml.{key}"
    if name not in metadata:
        raise CheckpointError(f"The model file has no {name}; it is incomplete, fetch it again.")
    values = metadata[name]
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise CheckpointError(f"The model file's {name} is damaged; fetch it again.")
    if kind is str and not are_texts(values):
        raise CheckpointError(
            f"The model file's {name} is damaged: an entry is no UTF-8; fetch it again."
        )
    return values


def gguf_flag(metadata: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    """The flag ``tokenizer.ggml.<key>``; raises CheckpointError where it is something else."""
    name = f"tokenizer.ggml.{key}"
    return Record(metadata, "The model file").flag(name, otherwise)


def config_from_gguf(metadata: Mapping[str, Any], add_bos: bool) -> TokenizerConfig:
    """The same of a GGUF header; ``add_bos`` is what holds where it says nothing."""
    pieces = gguf_list(metadata, "tokens", str)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not is_text(template):
        raise CheckpointError("The model file's chat template is no text; fetch it again.")

    def named(key: str) -> str | None:
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if not isinstance(token, int) or not 0 <= token < len(pieces):
            return None
        return str(pieces[token])

    return TokenizerConfig(
        bos=named("bos"),
        eos=named("eos"),
        add_bos=gguf_flag(metadata, "add_bos_token", add_bos),
        chat_template=template,
        named={
            f"{name}_token": piece
            for name, key in _GGUF_NAMES.items()
            if (piece := named(key)) is not None
        },
    )


def read_config(folder: Path) -> TokenizerConfig:
    """What the folder's files say, all of which may be missing.

    Those are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``,
    ``chat_template.jinja`` and ``chat_template.json``. Raises CheckpointError and ConfigError for
    broken ones.
    """
    config = _object(folder / CONFIG_FILE)
    marks = _object(folder / "special_tokens_map.json")
    added: dict[str, int] = {}
    special: set[str] = set()
    decoder = config.record("added_tokens_decoder", {})
    for token in decoder.values:
        # A number of thousands of digits is more than Python turns into one.
        if not (token.isdecimal() and len(token) <= len(str(LARGEST_ID))):
            decoder.fail(repr(token[:20]), "an id")
        piece = _piece(decoder, token)
        if piece is None:
            decoder.fail(token, "a token")
        added[piece] = int(token)
        if isinstance(decoder.values[token], dict) and decoder.record(token).flag("special", False):
            special.add(piece)
    beside = _object(folder / "added_tokens.json")
    for piece in beside.values:
        if not is_text(piece):
            beside.fail(repr(piece), "a text")
        added.setdefault(piece, beside.whole(piece))
    # As for transformers: the map counts for files older than those that list added tokens.
    records = (marks, config) if decoder.values else (config, marks)
    both = Record(
        {name: value for each in records for name, value in _present(each.values).items()},
        config.place,
    )
    named: dict[str, str | list[str]] = {
        name: piece
        for name in (f"{short}_token" for short in _GGUF_NAMES)
        if (piece := _piece(both, name)) is not None
    }
    bos, eos = _piece(both, "bos_token"), _piece(both, "eos_token")
    special.update(piece for piece in (bos, eos) if piece is not None)
    special.update(str(named[name]) for name in ("unk_token", "pad_token") if name in named)
    if both.values.get("additional_special_tokens") is not None:
        more = both.items("additional_special_tokens")
        entries = Record({str(place): entry for place, entry in enumerate(more)}, both.place)
        pieces = [piece for name in entries.values if (piece := _piece(entries, name)) is not None]
        named["additional_special_tokens"] = pieces
        special.update(pieces)
    says_bos = both.values.get("add_bos_token") is not None
    return TokenizerConfig(
        bos=bos,
        eos=eos,
        add_bos=both.flag("add_bos_token") if says_bos else None,
        chat_template=_chat_template(folder, both.values),
        added=added,
        special=frozenset(special),
        named=named,
    )


def _object(path: Path) -> Record:
    return Record(read_json(path) if path.exists() else {}, str(path))


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _piece(record: Record, name: str) -> str | None:
    """A token, written as its text or as an object with ``content``; None where there is none."""
    value = record.values.get(name)
    if value is None:
        return None
    return record.record(name).text("content") if isinstance(value, dict) else record.text(name)


def _chat_template(folder: Path, values: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file} is no text in UTF-8; fetch it again.") from error
    template = _object(folder / "chat_template.json").values.get("chat_template")
    template = values.get("chat_template") if template is None else template
    if isinstance(template, list):
        default = [
            entry.get("template")
            for entry in template
            if isinstance(entry, dict) and entry.get("name") == "default"
        ]
        template = default[-1] if default else None
        if default and not isinstance(template, str):
            raise CheckpointError(
                f"The default chat template in {folder / CONFIG_FILE} is no text; fetch it again."
            )
    return template if isinstance(template, str) else None
