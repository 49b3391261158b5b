"""The real vocabularies of Mistral's models, and files that hold none."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer as ReferencePieces
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from mistral_chat.tokenizers import check_vocabulary, load_tokenizer
from mistral_chat.tokenizers.huggingface import TEKKEN_PATTERN
from quant.errors import CheckpointError

from .hugging_face import llama_like_json
from .reference_files import DATA, FILES, PIECES, TEKKEN, TEXTS, decoded, opened

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "chat_vectors.json").read_text())


@cache
def reference(version: str) -> Any:
    if version in PIECES:
        return ReferencePieces(str(DATA / FILES[version]))
    return Tekkenizer.from_file(str(DATA / FILES[version]))


@pytest.mark.parametrize(
    "vector", VECTORS["raw"], ids=lambda vector: f"{vector['version']}-{vector['text']!r}"
)
def test_the_stored_encodings(vector: dict[str, Any]) -> None:
    tokenizer = opened(vector["version"])
    assert tokenizer.encode(vector["text"]) == vector["ids"]
    assert [tokenizer.show([token]) for token in vector["ids"]] == vector["pieces"]
    # The library turns a typed U+2581 into a space, as its decoding shows.
    assert decoded(tokenizer, vector["ids"]) == vector["decoded"]


@pytest.mark.parametrize("version", FILES)
@settings(max_examples=200)
@given(text=TEXTS)
def test_plain_text_as_the_reference_has_it(version: str, text: str) -> None:
    tokenizer = opened(version)
    ids = tokenizer.encode(text)
    assert ids == reference(version).encode(text, bos=False, eos=False)
    assert not set(tokenizer.controls.values()) & set(ids)
    whole = reference(version).decode(ids)
    assert decoded(tokenizer, ids) == whole
    if version not in PIECES:
        assert whole == text


@pytest.mark.parametrize("version", FILES)
@settings(max_examples=100)
@given(seed=st.randoms(use_true_random=False), count=st.integers(0, 12))
def test_streaming_equals_decoding_at_once(version: str, seed: Any, count: int) -> None:
    tokenizer = opened(version)
    ids = [seed.randrange(tokenizer.vocab_size) for _ in range(count)]
    data = b"".join(map(tokenizer.token_bytes, ids))
    if tokenizer.space_prefix != "never":
        data = data.removeprefix(b" ")
    assert decoded(tokenizer, ids) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("version", FILES)
def test_facts_of_a_vocabulary(version: str) -> None:
    tokenizer = opened(version)
    facts = VECTORS["tokenizer_files"][version]
    assert tokenizer.vocab_size == facts["n_words"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.mistral_version == version.removesuffix("-tekken")
    for piece, token in facts["special"].items():
        assert tokenizer.show([token]) == piece
        assert tokenizer.token_bytes(token) == b""
        assert piece == "<unk>" or tokenizer.control_id(piece) == token
    for token in (-1, tokenizer.vocab_size):
        assert tokenizer.token_bytes(token) == b""
        assert tokenizer.show([token]) == ""


@pytest.mark.parametrize("version", FILES)
def test_saving_and_loading_changes_nothing(version: str, tmp_path: Path) -> None:
    opened(version).save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "hello, wörld [INST] 🙂"
    assert loaded.encode(text) == opened(version).encode(text)
    assert loaded.controls == opened(version).controls
    assert loaded.mistral_version == opened(version).mistral_version


@pytest.mark.parametrize("version", PIECES)
@settings(max_examples=50)
@given(text=TEXTS)
def test_without_the_space_before_a_text(version: str, text: str) -> None:
    tokenizer = opened(version)
    inside = tokenizer.encode(text, first=False)
    # A line feed never merges with what follows, so a text after it is one without a space.
    assert tokenizer.encode("\n" + text)[2:] == inside


def test_absurd_runs_of_one_character() -> None:
    tokenizer = opened("v3-tekken")
    for letter in (" ", "\n", "a", "7", "漢"):
        text = letter * 300_000
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text


def test_the_pattern_is_that_of_the_file() -> None:
    assert json.loads((DATA / TEKKEN).read_text())["config"]["pattern"] == TEKKEN_PATTERN


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no pieces"),
        (b"\xff\xfe\x00garbage", "no SentencePiece model|cannot be used"),
        (b"{", "not JSON"),
        (b"{}", "no tekken.json"),
        (b'{"config": {}, "vocab": []}', "no tekken.json"),
        (b"[" * 100_000, "no SentencePiece model|cannot be used"),
        (b'{"a":' * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_tokenizer(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(CheckpointError, match=said) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 100, 400_000, -10])
@pytest.mark.parametrize("version", ["v3", "v3-tekken"])
def test_a_file_cut_off(version: str, cut: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((DATA / FILES[version]).read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / "file")


def test_tekken_with_holes_is_refused(tmp_path: Path) -> None:
    values = json.loads((DATA / TEKKEN).read_text())
    values["vocab"][300]["rank"] = 301
    (tmp_path / "tekken.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="ranks are missing"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no tekken.json, tokenizer.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path / "none")


def test_which_of_a_folder_s_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama_like_json()))
    (tmp_path / "tokenizer.model").write_bytes((DATA / PIECES["v1"]).read_bytes())
    assert load_tokenizer(tmp_path).mistral_version == "v1"
    (tmp_path / "tokenizer.model.v3").write_bytes((DATA / PIECES["v3"]).read_bytes())
    assert load_tokenizer(tmp_path).mistral_version == "v3"
    (tmp_path / "tekken.json").write_bytes((DATA / TEKKEN).read_bytes())
    assert load_tokenizer(tmp_path).kind == "Tekken"


@pytest.mark.parametrize(("rows", "fits"), [(32000, True), (31999, False), (32001, False)])
def test_an_embedding_belongs_to_its_tokenizer(rows: int, fits: bool) -> None:
    if fits:
        check_vocabulary(opened("v1"), rows)
        return
    with pytest.raises(CheckpointError, match=rf"32000 tokens, .* {rows} rows"):
        check_vocabulary(opened("v1"), rows)
