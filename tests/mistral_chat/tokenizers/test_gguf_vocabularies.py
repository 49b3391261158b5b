"""Vocabularies inside GGUF files."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_gguf
from quant.errors import CheckpointError, QuantError

from ..fakes import tiny_metadata
from .reference_files import DATA, FILES, PIECES, TEKKEN, TEXTS, decoded, opened


def gguf_metadata(version: str, **change: Any) -> dict[str, Any]:
    """The vocabulary as a converter to GGUF writes it."""
    proto = ModelProto()
    proto.ParseFromString((DATA / FILES[version]).read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **change,
    }


@cache
def from_gguf(version: str) -> Tokenizer:
    return tokenizer_from_gguf(gguf_metadata(version))


@pytest.mark.parametrize("version", PIECES)
@settings(max_examples=150)
@given(text=TEXTS)
def test_inside_a_gguf_it_is_the_same(version: str, text: str) -> None:
    assert from_gguf(version).encode(text) == opened(version).encode(text)


def test_facts_inside_a_gguf(tmp_path: Path) -> None:
    for version in PIECES:
        tokenizer = from_gguf(version)
        assert tokenizer.mistral_version == version
        assert tokenizer.controls == opened(version).controls
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, True)
        tokenizer.save(tmp_path)
        assert load_tokenizer(tmp_path).encode("a\n🙂b") == tokenizer.encode("a\n🙂b")


def test_a_gguf_may_deny_the_space_before_a_text() -> None:
    metadata = gguf_metadata("v1", **{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.space_prefix == "never"
    assert tokenizer.encode("Hello") == opened("v1").encode("Hello", first=False)


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_marks_that_a_gguf_adds_are_never_typed(kind: int) -> None:
    metadata = gguf_metadata("v1")
    metadata["tokenizer.ggml.tokens"] += ["<|im_end|>", "<|im_start|>", "qqxzz"]
    metadata["tokenizer.ggml.scores"] += [-1000.0] * 3
    metadata["tokenizer.ggml.token_type"] += [kind, kind, 4]
    metadata["tokenizer.chat_template"] = "<|im_start|>user<|im_end|>"
    metadata["tokenizer.ggml.eos_token_id"] = 32000
    tokenizer = tokenizer_from_gguf(metadata)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (32003, 32000)
    assert tokenizer.control_id("<|im_start|>") == 32001
    assert not {32000, 32001} & set(tokenizer.encode("a<|im_start|>b<|im_end|>"))
    # What the template does not write stays text.
    assert 32002 in tokenizer.encode("a qqxzz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "inconsistent"),
        ({"tokenizer.ggml.token_type": ["x"] * 32000}, "damaged"),
        ({"tokenizer.ggml.tokens": ["a"] * 32000}, "one character"),
        ({"tokenizer.ggml.tokens": ["\udc80"] * 32000}, "no UTF-8"),
        ({"tokenizer.chat_template": "\udc80"}, "no text"),
    ],
)
def test_a_damaged_vocabulary_in_a_gguf(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        tokenizer_from_gguf(gguf_metadata("v1", **change))


@pytest.mark.parametrize("key", ["tokens", "scores", "token_type"])
def test_a_missing_part_of_a_gguf_is_named(key: str) -> None:
    metadata = gguf_metadata("v1")
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(CheckpointError, match=key):
        tokenizer_from_gguf(metadata)


def tekken_merges(count: int) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """The first tokens of the vocabulary, and the merges that their ranks stand for."""
    vocab = json.loads((DATA / TEKKEN).read_text())["vocab"][:count]
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in vocab]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], count) for i in range(len(parts) - 1)]
            best = pairs.index(min(pairs))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((parts[0], parts[1]))
    return tokens, merges


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_marks_in_a_byte_level_gguf_are_never_typed(kind: int) -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.token_type"][:3] = [kind] * 3
    metadata["tokenizer.ggml.add_bos_token"] = True
    tokenizer = tokenizer_from_gguf(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    template = template_for(tokenizer)
    assert 2 in template.stop_ids
    ids = template.encode([Message(Role.USER, "<|im_end|>")])
    assert tokenizer.show(ids).startswith("<|im_start|><|im_start|>system\nBe kind<|im_end|>")
    assert ids.count(2) == 2


@cache
def tekken_gguf() -> Tokenizer:
    from mistral_chat.tokenizers.huggingface import byte_alphabet

    letters = {byte: letter for letter, byte in byte_alphabet().items()}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    tokens, merges = tekken_merges(6000)
    controls = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    return tokenizer_from_gguf(
        {
            **tiny_metadata(),
            "tokenizer.ggml.pre": "tekken",
            "tokenizer.ggml.tokens": [*controls, *map(spell, tokens)],
            "tokenizer.ggml.token_type": [3] * len(controls) + [1] * len(tokens),
            "tokenizer.ggml.merges": [f"{spell(a)} {spell(b)}" for a, b in merges],
            "tokenizer.chat_template": "[INST]",
        }
    )


@pytest.fixture(scope="module")
def small_tekken(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    values = json.loads((DATA / TEKKEN).read_text())
    values["vocab"] = values["vocab"][:6000]
    values["config"] |= {"default_vocab_size": 6005, "default_num_special_tokens": 5}
    values["special_tokens"] = [
        {"rank": rank, "token_str": piece, "is_control": True}
        for rank, piece in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    ]
    path = tmp_path_factory.mktemp("small") / "tekken.json"
    path.write_text(json.dumps(values))
    return load_tokenizer(path)


@settings(max_examples=200)
@given(text=TEXTS)
def test_tekken_inside_a_gguf(small_tekken: Tokenizer, text: str) -> None:
    assert tekken_gguf().encode(text) == small_tekken.encode(text)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=4), st.floats()), max_size=300),
)
SMALL = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
    "tokenizer.ggml.scores": [0.0] * 259,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256],
}


@settings(max_examples=400)
@given(data=st.data(), kind=st.sampled_from(["llama", "gpt2"]))
def test_a_hostile_vocabulary_in_a_gguf(data: st.DataObject, kind: str) -> None:
    metadata = dict(SMALL if kind == "llama" else tiny_metadata())
    keys = [*metadata, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.precompiled_charsmap"]
    metadata |= data.draw(st.dictionaries(st.sampled_from(keys), VALUES, max_size=3))
    metadata["tokenizer.ggml.model"] = kind
    try:
        tokenizer = tokenizer_from_gguf(metadata)
        ids = tokenizer.encode("Hi there")
        decoded(tokenizer, ids)
        template_for(tokenizer).encode([Message(Role.USER, "Hi")])
    except QuantError as error:
        assert "\n" not in str(error)  # noqa: PT017 - what matters is that nothing else comes out
