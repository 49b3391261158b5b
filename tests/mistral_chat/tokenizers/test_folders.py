"""Which of a folder's files is the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistral_chat.tokenizers import load_tokenizer, tokenizer_from_gguf
from mistral_chat.tokenizers.huggingface import byte_alphabet
from quant.errors import CheckpointError

from .odd import BYTE_LEVEL, TINY, changed, small_tekken


def test_a_vocabulary_without_the_template_s_marks_does_not_count(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b"],
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    tokenizer_from_gguf(metadata).save(tmp_path)
    config = {"eos_token": "<|end|>", "chat_template": "{{ 'a<|end|>' }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"writes <\|end\|>, which .*tokenizer.model does"):
        load_tokenizer(tmp_path)
    values = changed(TINY, "added_tokens.0.id", 5)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(tmp_path).control_id("<|end|>") == 5
    (tmp_path / "tekken.json").write_text(json.dumps(small_tekken()))
    assert load_tokenizer(tmp_path).kind == "BPE with byte fallback"


def test_mistral_s_own_vocabulary_counts_where_it_has_the_same_tokens(tmp_path: Path) -> None:
    tekken = small_tekken([b"ab"])
    letters = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    specials = [each["token_str"] for each in tekken["special_tokens"]]
    values = {
        "added_tokens": [
            {"id": token, "content": piece, "special": True} for token, piece in enumerate(specials)
        ],
        "pre_tokenizer": {**BYTE_LEVEL, "use_regex": True},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {piece: token for token, piece in enumerate([*specials, *letters, "ab"])},
            "merges": ["a b"],
        },
    }
    config = {"eos_token": "</s>", "chat_template": "[INST]"}
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).kind == "Tekken"
    (tmp_path / "tekken.json").write_text(json.dumps(small_tekken([b"ba"])))
    assert load_tokenizer(tmp_path).kind == "byte-level BPE"
    config["chat_template"] = "[/INST]"
    tekken["special_tokens"][4]["token_str"] = "[END]"
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).kind == "byte-level BPE"
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).kind == "Tekken"


def test_a_reserved_piece_has_the_name_that_the_configuration_gives_it(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "[control_1]", "b"],
        "tokenizer.ggml.scores": [0.0] * 6,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 3, 1],
    }
    tokenizer_from_gguf(metadata).save(tmp_path)
    decoder = {"4": {"content": "<|end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.control_id("<|end|>"), tokenizer.control_id("[control_1]")) == (4, None)
    assert tokenizer.show([4]) == "<|end|>"
