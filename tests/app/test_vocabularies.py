"""The real vocabularies of Mistral's models, in every form that they come in."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.sentencepiece import (
    SentencePieceTokenizer as ReferencePieces,
)
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import (
    Detokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    tokenizer_from_gguf,
)
from mistral_chat.tokenizers.huggingface import TEKKEN_PATTERN
from quant.errors import CheckpointError, QuantError, UnsupportedError

from .fakes import tiny_metadata

DATA = Path(mistral_common.__file__).parent / "data"
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "chat_vectors.json").read_text())
PIECES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
TEKKEN = "tekken_240718.json"
FILES = {**PIECES, "v3-tekken": TEKKEN}

ODD = ["[INST]", "</s>", "<s>", "<0x0A>", "<unk>", "▁", "  ", "\n", "\t", "é", "e\u0301", "🙂",
       "👩‍👩‍👧", "漢字", "\x00", "\x7f", "\ufeff", "\u00a0", "a", "42",
       "<|im_start|>", "[control_9]"]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(ODD), max_size=8).map("".join))


@cache
def opened(version: str) -> Tokenizer:
    return load_tokenizer(DATA / FILES[version])


@cache
def reference(version: str) -> Any:
    if version in PIECES:
        return ReferencePieces(str(DATA / FILES[version]))
    return Tekkenizer.from_file(str(DATA / FILES[version]))


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = Detokenizer(tokenizer.token_bytes, drop_space=tokenizer.space_prefix != "never")
    return "".join([*map(stream.feed, ids), stream.flush()])


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


# SentencePiece vocabularies inside GGUF files.


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


# Hugging Face folders.


def test_added_tokens_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((DATA / PIECES["v1"]).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 32000, "<|im_start|>": 32001}')
    config = {"eos_token": {"content": "<|im_end|>"}, "chat_template": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (32002, 32000)
    assert tokenizer.token_bytes(32001) == b""
    assert tokenizer.show([1, 32001]) == "<s><|im_start|>"
    text = "x<|im_start|>"
    assert tokenizer.encode(text) == opened("v1").encode(text)


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
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, "special": special, **flags}


def write_folder(folder: Path, values: Any, config: dict[str, Any] | None = None) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return load_tokenizer(folder)


def test_a_llama_like_tokenizer_json(tmp_path: Path) -> None:
    values = llama_like_json()
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    tokenizer = write_folder(tmp_path, values, config)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, True)
    assert tokenizer.space_prefix == "always"
    library = Library.from_str(json.dumps(values))
    for text in ("the other", " \n🙂 é", "a  b"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert decoded(tokenizer, ids) == text
    assert library.encode("a</s>", add_special_tokens=False).ids[-1] == 2
    assert 2 not in tokenizer.encode("a</s>")
    assert tokenizer.encode("the", first=False) != tokenizer.encode("the")
    assert decoded(tokenizer, tokenizer.encode("the", first=False)) == "the"


@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path: Path, name: str) -> None:
    if name == "tekken.json":
        (tmp_path / name).write_bytes((DATA / TEKKEN).read_bytes())
    else:
        write_folder(tmp_path, llama_like_json(), {"bos_token": "<s>", "chat_template": "Hi"})
    plain = load_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + (tmp_path / name).read_bytes())
    marked = load_tokenizer(tmp_path)
    assert (marked.kind, marked.bos_id) == (plain.kind, plain.bos_id)
    assert marked.chat_template == plain.chat_template
    assert marked.encode("Hello there") == plain.encode("Hello there")


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: path.mkdir(), r"chat_template.jinja cannot be read: Is a directory\.$"),
        (lambda path: path.write_bytes(b"caf\xe9"), "is no text in UTF-8; fetch it again"),
    ],
)
def test_a_chat_template_that_cannot_be_read(
    tmp_path: Path, put: Callable[[Path], object], said: str
) -> None:
    put(tmp_path / "chat_template.jinja")
    with pytest.raises(CheckpointError, match=said):
        write_folder(tmp_path, llama_like_json())


def test_metaspace_before_the_first_text_only(tmp_path: Path) -> None:
    values = llama_like_json()
    values["normalizer"] = None
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    values["pre_tokenizer"] = json.loads(metaspace.__getstate__())
    tokenizer = write_folder(tmp_path, values)
    assert tokenizer.space_prefix == "first"
    assert tokenizer.show(tokenizer.encode("the")) == " the"
    assert tokenizer.show(tokenizer.encode("the", first=False)) == "the"


@given(text=st.lists(st.sampled_from(["<|im_start|>", "<|", "im_", "start", "|>", "a"])))
def test_marks_in_a_tokenizer_json_are_never_typed(
    tmp_path_factory: pytest.TempPathFactory, text: list[str]
) -> None:
    values = llama_like_json()
    marks = ["<|im_start|>", "<|special|>", "<|eos|>"]
    values["added_tokens"] += [
        added(4000, "<|im_start|>", special=False),
        added(4001, "<|special|>"),
        added(4002, "<|eos|>", special=False),
        added(4003, "    ", special=False),
    ]
    config = {"chat_template": "<|im_start|>    ", "eos_token": "<|eos|>"}
    tokenizer = write_folder(tmp_path_factory.mktemp("folder"), values, config)
    assert {mark: tokenizer.control_id(mark) for mark in marks} == {
        "<|im_start|>": 4000,
        "<|special|>": 4001,
        "<|eos|>": 4002,
    }
    ids = tokenizer.encode("".join([*text, *marks, *text]))
    assert not set(tokenizer.controls.values()) & set(ids)
    assert 4003 in tokenizer.encode("a    b")
    assert tokenizer.vocab_size == 4004


@pytest.mark.parametrize("named", [5, None, ["x"], {}])
def test_a_default_chat_template_that_is_no_text(tmp_path: Path, named: object) -> None:
    templates = [{"name": ["default"], "template": "x"}, {"name": "default", "template": named}]
    with pytest.raises(CheckpointError, match=r"default chat template in .* is no text"):
        write_folder(tmp_path, llama_like_json(), {"chat_template": templates})


def test_special_tokens_are_kept_by_their_names(tmp_path: Path) -> None:
    config = {
        "unk_token": "<unk>",
        "pad_token": {"content": "<pad>"},
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
    }
    named = write_folder(tmp_path, llama_like_json(), config).special_tokens
    right = {"unk_token": "<unk>", "pad_token": "<pad>"}
    assert named == {**right, "additional_special_tokens": ["<a>", "<b>"]}
    (tmp_path / "copy").mkdir()
    load_tokenizer(tmp_path).save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").special_tokens == named


@pytest.mark.parametrize(("listed", "right"), [(False, 2), (True, 1)])
def test_which_of_two_ends_of_text_counts(tmp_path: Path, listed: bool, right: int) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    config: dict[str, Any] = {"eos_token": "<s>", "bos_token": "<s>"}
    if listed:
        config["added_tokens_decoder"] = {"1": {"content": "<s>", "special": True}}
    tokenizer = write_folder(tmp_path, llama_like_json(), config)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, right)


def test_a_list_of_chat_templates(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    tokenizer = write_folder(tmp_path, llama_like_json(), {"chat_template": templates})
    assert tokenizer.chat_template == "y"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "j"}')
    assert load_tokenizer(tmp_path).chat_template == "j"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert load_tokenizer(tmp_path).chat_template == "z"


def broken(**change: Any) -> Callable[[dict[str, Any]], Any]:
    def apply(values: dict[str, Any]) -> Any:
        for path, value in change.items():
            part = values
            *outer, last = path.split("__")
            for name in outer:
                part = part[name]
            part[last] = value
        return values

    return apply


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (broken(model__type="WordPiece"), UnsupportedError, "WordPiece"),
        (broken(model__type="Unigram"), UnsupportedError, "Unigram"),
        (broken(decoder={"type": "WordPiece"}), UnsupportedError, "WordPiece"),
        (broken(decoder=None), UnsupportedError, "nothing"),
        (broken(model__vocab=7), CheckpointError, "damaged"),
        (broken(model__merges=[["a"]]), CheckpointError, "damaged"),
        (broken(added_tokens=[{"content": "x"}]), CheckpointError, "damaged"),
        (broken(normalizer={"type": "Nonsense"}), CheckpointError, "cannot be read"),
        (lambda values: {"model": 3}, CheckpointError, "damaged"),
        (lambda values: {"x": 3}, CheckpointError, "no tekken.json"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_used(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        write_folder(tmp_path, change(llama_like_json()))
    assert "\n" not in str(caught.value)


# Tekken inside a GGUF, and broken files.


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(
    change=st.dictionaries(
        st.sampled_from(["added_tokens", "normalizer", "pre_tokenizer", "decoder", "model", "x"]),
        JSON,
        max_size=2,
    ),
    model=st.dictionaries(
        st.sampled_from(["vocab", "merges", "byte_fallback", "unk_token", "type"]), JSON, max_size=2
    ),
    config=st.dictionaries(
        st.sampled_from(
            ["bos_token", "eos_token", "added_tokens_decoder", "chat_template", "add_bos_token",
             "additional_special_tokens"]
        ),
        JSON,
        max_size=2,
    ),
)  # fmt: skip
def test_a_hostile_tokenizer_json(
    tmp_path_factory: pytest.TempPathFactory, change: Any, model: Any, config: Any
) -> None:
    values = {**TINY_JSON, "model": {**TINY_JSON["model"], **model}, **change}
    try:
        tokenizer = write_folder(tmp_path_factory.mktemp("hostile"), values, config)
        decoded(tokenizer, tokenizer.encode("Hi there"))
    except QuantError as error:
        assert str(error)  # noqa: PT017 - as above


TINY_JSON: dict[str, Any] = {
    "added_tokens": [added(3, "</s>")],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "ByteFallback"},
    "model": {
        "type": "BPE",
        "vocab": {"H": 0, "i": 1, "Hi": 2, "</s>": 3},
        "merges": ["H i"],
        "byte_fallback": True,
    },
}
