"""What every vocabulary checks: the ids it gives, how few they may be, the rows they need."""

from __future__ import annotations

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.errors import UsageError
from mistral_chat.tokenizers import check_vocabulary
from mistral_chat.tokenizers.config import TokenizerConfig
from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer
from mistral_chat.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_chat.tokenizers.tekken import TekkenTokenizer
from quant.errors import CheckpointError, UnsupportedError

from .odd import small_tekken


def test_a_piece_of_text_with_the_id_of_a_control_piece_is_refused() -> None:
    values = {
        "added_tokens": [{"id": 1, "content": "<|end|>", "special": True}],
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    with pytest.raises(UnsupportedError, match=r"the id 1 of the control token '<\|end\|>'"):
        HuggingFaceTokenizer(values, TokenizerConfig())


def test_a_control_id_that_a_library_gives_after_all_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = TekkenTokenizer(b"", small_tekken(), "tekken.json")
    monkeypatch.setattr(tokenizer, "_cut", lambda text, first: [2])
    with pytest.raises(UnsupportedError, match="control token 2 for plain text"):
        tokenizer.encode("x")


def test_half_a_character_in_a_text_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="half of a character"):
        TekkenTokenizer(b"", small_tekken(), "tekken.json").encode("a\ud800")


def test_a_pattern_that_tries_forever_is_a_sentence() -> None:
    pattern = {"Regex": "(a|a|aa)+$"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    values = {
        "pre_tokenizer": split,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig())
    with pytest.raises(CheckpointError, match="cannot cut this text"):
        tokenizer.encode("a" * 60 + "!")


# The number of tokens from below.


def test_the_least_number_of_tokens() -> None:
    tokenizer = TekkenTokenizer(b"", small_tekken([b"abcd"]), "tekken.json")
    assert [tokenizer.least_tokens(text) for text in ("", "abcd", "abcde", "é" * 6)] == [0, 1, 2, 3]


def test_nothing_is_said_of_texts_that_may_shrink() -> None:
    values = small_tekken()
    values["config"]["pattern"] = "a+"
    assert TekkenTokenizer(b"", values, "tekken.json").least_tokens("b" * 99) == 0
    proto = ModelProto()
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.pieces.add(piece="<unk>", score=0, type=2)
    proto.pieces.add(piece="a", score=0, type=1)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    assert SentencePieceTokenizer(proto.SerializeToString()).least_tokens("  " * 9) == 0


# Rows of the embedding.


def test_rows_and_tokens() -> None:
    values = {
        "added_tokens": [
            {"id": 2, "content": "<|end|>", "special": True},
            {"id": 3, "content": "<pad>", "special": True},
        ],
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig(eos="<|end|>", chat_template="x"))
    for rows in (3, 4, 5, 1024):
        check_vocabulary(tokenizer, rows)
    for rows in (1, 2, 9000):
        with pytest.raises(CheckpointError, match=f"4 tokens, .* {rows} rows"):
            check_vocabulary(tokenizer, rows)
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig(chat_template="{{ 'a<pad>' }}"))
    with pytest.raises(CheckpointError, match="3 rows, none of them for <pad>"):
        check_vocabulary(tokenizer, 3)
