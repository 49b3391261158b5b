"""Tiny whole models of every format, with vocabularies, and engines for them."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

import quant
from mistral_chat.engines import opening
from mistral_chat.engines.local import ChatEngine
from mistral_chat.messages import Message, Role
from mistral_chat.models.names import open_tokenizer
from mistral_chat.settings import Paths, Settings
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..mistral_chat.fakes import CHAT_TEMPLATE, tiny_metadata, tiny_pieces
from ..quant.models import TINY, write_gguf, write_huggingface, write_mistral

CONFIG = replace(
    TINY,
    vocab_size=len(tiny_metadata()["tokenizer.ggml.tokens"]),
    intermediate_size=64,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=2048,
)
"""The smallest model that a whole answer can be had of."""

PIECES = tiny_pieces(CHAT_TEMPLATE)
PIECES_CONFIG = replace(CONFIG, vocab_size=len(PIECES["tokenizer.ggml.tokens"]))

TEKKEN_SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] "
    "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def tekken_values() -> dict[str, Any]:
    """A ``tekken.json`` of the 256 bytes and two merges."""
    tokens = [*(bytes([code]) for code in range(256)), b"he", b"ll"]
    vocabulary = [
        {
            "rank": rank,
            "token_bytes": base64.b64encode(token).decode(),
            "token_str": token.decode("utf-8", "replace"),
        }
        for rank, token in enumerate(tokens)
    ]
    specials = [
        {"rank": rank, "token_str": piece, "is_control": True}
        for rank, piece in enumerate(TEKKEN_SPECIALS)
    ]
    config = {
        "pattern": (
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "num_vocab_tokens": len(vocabulary),
        "default_vocab_size": len(vocabulary) + len(specials),
        "default_num_special_tokens": len(specials),
        "version": "v7",
    }
    return {"config": config, "vocab": vocabulary, "special_tokens": specials}


def write_chat_gguf(
    path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> Path:
    """A GGUF with a byte-level vocabulary."""
    write_gguf(path, CONFIG, kind=kind, change=tiny_metadata())
    return path


def write_pieces_gguf(path: Path) -> Path:
    """A GGUF with a SentencePiece vocabulary."""
    write_gguf(path, PIECES_CONFIG, change=PIECES)
    return path


def write_chat_huggingface(folder: Path, shards: int = 1) -> Path:
    """A Hugging Face folder with a ``tokenizer.json``."""
    write_huggingface(folder, CONFIG, shards=shards)
    tokenizer_from_gguf(tiny_metadata()).save(folder)
    return folder


def write_chat_mistral(folder: Path, tekken: bool = True) -> Path:
    """A Mistral folder with a ``tekken.json``, or a SentencePiece ``tokenizer.model``."""
    values = tekken_values()
    size = values["config"]["default_vocab_size"]
    write_mistral(folder, replace(CONFIG, vocab_size=size) if tekken else PIECES_CONFIG)
    if tekken:
        (folder / "tekken.json").write_text(json.dumps(values))
    else:
        tokenizer_from_gguf(PIECES).save(folder)
    return folder


def write_native(folder: Path) -> Path:
    """A folder of this program's own."""
    source = write_chat_gguf(folder.with_suffix(".gguf"))
    tokenizer = open_tokenizer(source)
    quant.quantize(source, folder, quant.QuantSpec(4, 32), companions=tokenizer.save)
    source.unlink()
    return folder


def companions_of(source: Path, target: Path) -> Path:
    """A copy of a model's folder without its weights."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
    return target


def paths_in(folder: Path) -> Paths:
    """The application's folders, below one."""
    return Paths.from_environment({"MISTRAL_CHAT_HOME": str(folder)})


def open_engine(path: Path, home: Path, context: int = 128) -> ChatEngine:
    """An engine on one thread, so that the order of what is computed is always the same."""
    settings = Settings(model=str(path), context=context, threads=1)
    return opening.open_engine(settings, paths_in(home), lambda label, done, total: None)


def answer(path: Path, home: Path) -> None:
    """Open a model and have it write one token."""
    engine = open_engine(path, home)
    sampling = quant.Sampling(temperature=0.0)
    for _event in engine.reply([Message(Role.USER, "hi")], sampling, max_tokens=1):
        pass
