"""Text to ids and back, on a tiny vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.tokenizers import Detokenizer, Tokenizer, load_tokenizer, tokenizer_from_gguf
from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer, byte_alphabet
from quant.errors import CheckpointError, QuantError, UnsupportedError

from ..fakes import CONTROLS, tiny_metadata

TOKENIZER: Tokenizer = tokenizer_from_gguf(tiny_metadata())


def stream(ids: list[int]) -> str:
    detokenizer = Detokenizer(TOKENIZER.token_bytes)
    return "".join([*(detokenizer.feed(token) for token in ids), detokenizer.flush()])


def whole(ids: list[int]) -> str:
    return b"".join(TOKENIZER.token_bytes(token) for token in ids).decode("utf-8", "replace")


def test_the_alphabet_is_one_character_for_each_byte() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_merges_apply() -> None:
    pieces = [TOKENIZER.token_bytes(token) for token in TOKENIZER.encode("hello 42")]
    assert pieces == [b"he", b"ll", b"o", b" ", b"4", b"2"]


@given(st.text())
def test_streaming_gives_back_any_text(text: str) -> None:
    assert stream(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_streaming_equals_decoding_at_once_for_any_ids(ids: list[int]) -> None:
    assert stream(ids) == whole(ids)


@given(st.lists(st.sampled_from([*CONTROLS, "<|", "im_", "|>", "a", " "])).map("".join))
def test_no_text_gives_a_control_id(text: str) -> None:
    controls = {TOKENIZER.control_id(piece) for piece in CONTROLS}
    assert controls.isdisjoint(TOKENIZER.encode(text))


def test_a_merge_cannot_build_a_control_piece() -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"] += ["ab"]
    metadata["tokenizer.ggml.token_type"] += [3]
    metadata["tokenizer.ggml.merges"] += ["a b"]
    tokenizer = tokenizer_from_gguf(metadata)
    assert len(tokenizer.encode("ab")) == 2


def test_control_pieces_show() -> None:
    tokenizer = HuggingFaceTokenizer.from_gguf(tiny_metadata())
    ids = [1, *tokenizer.encode("he"), 2]
    assert tokenizer.show(ids) == "<|im_start|>he<|im_end|>"


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    first = TOKENIZER.encode("é")[0]
    assert stream([first]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size, 1 << 40])
def test_an_id_that_the_vocabulary_does_not_have_is_no_text(token: int) -> None:
    assert TOKENIZER.token_bytes(token) == b""
    assert TOKENIZER.show([token]) == ""


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "hello, wörld <|im_end|> 🙂"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.vocab_size == TOKENIZER.vocab_size
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.eos_id == TOKENIZER.eos_id == 2
    assert loaded.control_id("<|im_end|>") == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_or_broken_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(QuantError, match=f"{name} is not JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("tokenizer.ggml.model", "wordpiece", UnsupportedError, "'wordpiece'"),
        ("tokenizer.ggml.pre", "strange", UnsupportedError, "'strange'"),
        ("tokenizer.ggml.token_type", [1], CheckpointError, "inconsistent"),
        ("tokenizer.ggml.merges", ["no such"], CheckpointError, "out of vocabulary"),
        ("tokenizer.ggml.merges", ["nospace"], CheckpointError, "damaged"),
    ],
)
def test_an_unknown_vocabulary_is_named(
    key: str, value: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        tokenizer_from_gguf({**tiny_metadata(), key: value})


@pytest.mark.parametrize("key", ["tokens", "token_type", "merges"])
def test_a_missing_part_is_named(key: str) -> None:
    metadata = tiny_metadata()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(CheckpointError, match=key):
        tokenizer_from_gguf(metadata)


@pytest.mark.parametrize(("piece", "kind"), [("x y", 1), ("user", 2), ("!!", 9)])
def test_a_token_that_means_something_else_is_refused(piece: str, kind: int) -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"] += [piece]
    metadata["tokenizer.ggml.token_type"] += [kind]
    with pytest.raises(CheckpointError):
        tokenizer_from_gguf(metadata)


def test_a_control_token_of_one_character_is_refused() -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.token_type"][3] = 3
    with pytest.raises(UnsupportedError, match="one character"):
        tokenizer_from_gguf(metadata)
