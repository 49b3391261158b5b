"""Damaged files of a vocabulary: each is one sentence that names the file and the field."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.tokenizers import load_tokenizer
from mistral_chat.tokenizers.config import TokenizerConfig
from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer
from mistral_chat.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_chat.tokenizers.tekken import TekkenTokenizer
from quant.errors import CheckpointError, QuantError

from .odd import BYTE_LEVEL, TINY, changed, small_tekken


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("special_tokens.0.rank", 20, r"special_tokens\[0\], is damaged: rank"),
        ("special_tokens.0.rank", "0", "rank is not a whole number from 0 to 4"),
        ("special_tokens.0.rank", True, "rank is not a whole number"),
        ("special_tokens.0.token_str", ["x"], "token_str is not a text"),
        ("special_tokens.0.token_str", "</s>", "one name"),
        ("special_tokens.0.token_str", "\ud800x", "token_str is not a text"),
        ("special_tokens", {}, "special_tokens is not a list"),
        ("special_tokens", [3], r"special_tokens\[0\] is not an object"),
        ("config.default_num_special_tokens", 3, "rank is not a whole number from 0 to 2"),
        ("config.default_num_special_tokens", 10**8, "from 0 to 4096"),
        ("config.default_vocab_size", 10**9, "lists 256 tokens"),
        ("config.default_vocab_size", 262.0, "default_vocab_size is not a whole number"),
        ("config.pattern", "(", "cannot be used"),
        ("config.version", 3, "version is not a text"),
        ("vocab.104.token_bytes", "enpo", "the byte 0x68 has no token"),
        ("vocab.104.token_bytes", "", "ranks are missing"),
        ("vocab.104.token_bytes", "!", "token_bytes is not base64"),
        ("vocab.104.rank", 105, "ranks are missing"),
        ("vocab.104", [], r"vocab\[104\] is not an object"),
    ],
)
def test_a_damaged_tekken_names_its_field(path: str, value: Any, said: str) -> None:
    values = changed(small_tekken(), path, value)
    with pytest.raises(CheckpointError, match=said) as caught:
        TekkenTokenizer(b"", values, "tekken.json")
    assert str(caught.value).startswith("tekken.json")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("added_tokens.0.id", "0", r"added_tokens\[0\], is damaged: id is not a whole number"),
        ("added_tokens.0.id", [0], "id is not a whole number"),
        ("added_tokens.0.id", 1 << 40, "id is not a whole number"),
        ("added_tokens.0.content", "<|\ud800|>", "content is not a text"),
        ("added_tokens.0.content", "x", "one character"),
        ("added_tokens.0.special", "yes", "special is not true or false"),
        ("added_tokens.0.rstrip", 1, "rstrip is not true or false"),
        ("added_tokens", {"a": 1}, "added_tokens is not a list"),
        ("model.vocab", {"a": -1}, "vocab is not an object of pieces and ids"),
        ("model.vocab", {"\udcff": 1}, "vocab is not an object of pieces and ids"),
        ("model.vocab", {"a": 0, "b": 0}, "'a' and 'b' have one id"),
        ("model.merges", [["a", "b", "c"]], r"merges\[0\] is not two pieces"),
        ("model.merges", [5], r"merges\[0\] is not two pieces"),
        ("model.fuse_unk", [], "fuse_unk is not true or false"),
        ("model.unk_token", 7, "unk_token is not a text"),
        ("normalizer", 3, "normalizer is not an object"),
        ("normalizer.type", None, "type is not a text"),
        ("normalizer", {"type": "Sequence", "normalizers": 3}, "normalizers is not a list"),
        ("pre_tokenizer.prepend_scheme", "now", "unknown variant `now`"),
        ("decoder.pattern", {"Regex": "a"}, "regular expression"),
        ("decoder.content", 5, "content is not a text"),
    ],
)
def test_a_damaged_tokenizer_json_names_its_field(path: str, value: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        HuggingFaceTokenizer(changed(TINY, path, value), TokenizerConfig())


@pytest.mark.parametrize("step", ["Replace", "ByteLevel"])
def test_a_text_that_would_grow_without_end_is_refused(step: str) -> None:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}
    values: dict[str, Any] = dict(TINY)
    if step == "Replace":
        values["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 40}
    else:
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 40}
    with pytest.raises(CheckpointError, match="longer and longer"):
        HuggingFaceTokenizer(values, TokenizerConfig())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}, "'9{20}' is not an id"),
        ({"added_tokens_decoder": {"9": 5}}, "9 is not a text"),
        ({"added_tokens_decoder": {"9": {"content": ["x"]}}}, "content is not a text"),
        ({"added_tokens_decoder": {"9": {"content": "xy", "special": "no"}}}, "special is not"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder is not an object"),
        ({"eos_token": 5}, "eos_token is not a text"),
        ({"bos_token": {"content": "\ud800"}}, "content is not a text"),
        ({"add_bos_token": "true"}, "add_bos_token is not true or false"),
        ({"additional_special_tokens": "<x>"}, "additional_special_tokens is not a list"),
        ({"additional_special_tokens": [7]}, "0 is not a text"),
        ({"added_tokens_decoder": {"0": {"content": "<x>", "special": True}}},
         "disagree about the token 0: it is 'a' and '<x>'"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_names_its_field(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TINY))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(QuantError, match=said):
        load_tokenizer(tmp_path)


def test_a_piece_that_is_no_text_is_a_sentence() -> None:
    proto = ModelProto()
    proto.pieces.add(piece="<unk>", score=0, type=2)
    proto.pieces.add(piece="abc", score=0, type=1)
    with pytest.raises(CheckpointError, match="no UTF-8"):
        SentencePieceTokenizer(proto.SerializeToString().replace(b"abc", b"a\xffc"))


def test_a_small_file_takes_little_memory() -> None:
    values = changed(small_tekken(), "config.default_num_special_tokens", 4096)
    values["config"]["default_vocab_size"] = 4096 + 256
    tracemalloc.start()
    try:
        assert TekkenTokenizer(b"", values, "tekken.json").vocab_size == 4352
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
