"""Folders as Hugging Face has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from mistral_chat.tokenizers import Tokenizer, load_tokenizer

from .reference_files import DATA, PIECES


def llama_like_json() -> dict[str, Any]:
    """4000 of v1's pieces as a tokenizer.json in the form that Llama's folders have."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(DATA / PIECES["v1"]))
    # Single characters stand behind the merged pieces.
    chosen = [*range(3000), *range(28705, 29705)]
    vocabulary = {processor.id_to_piece(token): i for i, token in enumerate(chosen)}
    merges = []
    for piece in vocabulary:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
    merges.sort(key=lambda pair: vocabulary[pair[0] + pair[1]])
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    values: dict[str, Any] = json.loads(library.to_str())
    values["added_tokens"] = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]
    return values


def added(token: int, piece: str, special: bool = True) -> dict[str, Any]:
    """An entry of ``added_tokens``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, "special": special, **flags}


def write_folder(folder: Path, values: Any, config: dict[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a folder with this ``tokenizer.json``."""
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return load_tokenizer(folder)
