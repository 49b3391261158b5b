"""Vocabularies of a few tokens, to be changed."""

from __future__ import annotations

import base64
import json
from typing import Any

from mistral_chat.tokenizers.tekken import TEKKEN_PATTERN

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def small_tekken(pieces: list[bytes] = [], **change: Any) -> dict[str, Any]:  # noqa: B006
    """A ``tekken.json`` of the bytes, these pieces and five control pieces."""
    tokens = [bytes([byte]) for byte in range(256)] + list(dict.fromkeys(pieces))
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    return {
        "config": {
            "pattern": TEKKEN_PATTERN,
            "default_vocab_size": len(tokens) + len(specials),
            "default_num_special_tokens": len(specials),
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode()}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": piece} for rank, piece in enumerate(specials)
        ],
        **change,
    }


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as ``added_tokens.0.id``."""
    copy = json.loads(json.dumps(values))
    part = copy
    *outer, last = path.split(".")
    for name in outer:
        part = part[int(name) if isinstance(part, list) else name]
    part[int(last) if isinstance(part, list) else last] = value  # type: ignore[index]
    return copy


TINY: dict[str, Any] = {
    "added_tokens": [{"id": 2, "content": "<|end|>", "special": True}],
    "normalizer": {"type": "Prepend", "prepend": "▁"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}
