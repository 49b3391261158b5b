"""``tokenizer.json``: of bytes as GPT-2's, and of pieces as Llama's, with their companions."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from mistral_chat.tokenizers import tokenizer_from_gguf

from ...mistral_chat.fakes import tiny_metadata
from ..mutation import changed_value, to_json
from ..target import Target
from ..vocabularies import exercise, write_companions

CONTROLS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def pieces_values() -> dict[str, Any]:
    """A ``tokenizer.json`` as it is made of Llama's SentencePiece vocabulary."""
    tokens = [
        *CONTROLS,
        *(f"<0x{code:02X}>" for code in range(256)),
        *(chr(code) for code in range(33, 127)),
        "▁", "▁h", "he",
    ]  # fmt: skip
    added = [
        {
            "id": place, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for place, piece in enumerate(CONTROLS)
    ]  # fmt: skip
    added.append(
        {
            "id": len(tokens), "content": "<extra>", "single_word": False, "lstrip": True,
            "rstrip": True, "normalized": True, "special": False,
        }
    )  # fmt: skip
    normalizers = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    single: list[dict[str, Any]] = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": {piece: place for place, piece in enumerate(tokens)},
            "merges": ["▁ h", ["h", "e"]],
        },
    }  # fmt: skip


class TokenizerJson(Target):
    """The library's files, changed value by value."""

    name = "tokenizer_json"

    def make(self) -> None:
        tokenizer_from_gguf(tiny_metadata()).save(self.folder)
        self.sources = [json.loads((self.folder / "tokenizer.json").read_text()), pieces_values()]

    def case(self, random: Random, scratch: Path) -> None:
        values = random.choice(self.sources)
        if random.random() < 0.9:
            values = changed_value(random, values)
        (scratch / "tokenizer.json").write_bytes(to_json(values, random))
        write_companions(random, scratch)
        exercise(random, scratch)


TARGET = TokenizerJson
