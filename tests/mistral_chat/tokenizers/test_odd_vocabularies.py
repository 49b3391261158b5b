"""Made-up vocabularies: their ids are those of the reference."""

from __future__ import annotations

import heapq
import itertools
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from mistral_chat.templates.parts import Control, Part, Text, as_text, encode_parts
from mistral_chat.tokenizers import Detokenizer, Tokenizer, load_tokenizer, tokenizer_from_gguf
from mistral_chat.tokenizers.config import TokenizerConfig
from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer, byte_alphabet
from mistral_chat.tokenizers.tekken import TekkenTokenizer

from .odd import BYTE_LEVEL, small_tekken

LETTERS = "ab ▁é日<"
TEXTS = st.one_of(st.text(alphabet=LETTERS + "xyz\n>0", max_size=24), st.text(max_size=12))
WORDS = st.text(alphabet=LETTERS, min_size=1, max_size=3)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def spelled(text: str) -> str:
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    return "".join(letters[byte] for byte in text.encode())


@st.composite
def descriptions(draw: st.DrawFn) -> dict[str, Any]:
    """A ``tokenizer.json``: byte-level, or of characters with or without bytes to fall back on."""
    byte_level = draw(st.booleans())
    spell = spelled if byte_level else str
    pieces = list(
        dict.fromkeys(spell(letter) for letter in draw(st.sets(st.sampled_from(LETTERS))))
    )
    if byte_level and draw(st.booleans()):
        pieces = list(byte_alphabet())
    bytes_ = not byte_level and draw(st.booleans())
    if bytes_:
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = []
    for word in draw(st.lists(WORDS, max_size=8)):
        spelt = spell(word)
        for end in range(2, len(spelt) + 1):
            left, right = spelt[: end - 1], spelt[end - 1 : end]
            if left in pieces and right in pieces and left + right not in pieces:
                merges.append([left, right])
                pieces.append(left + right)
    unknown = draw(st.sampled_from([None, "<unk>", "<none>"]))
    if unknown == "<unk>":
        pieces.insert(draw(st.integers(0, len(pieces))), unknown)
    vocab = {piece: token for token, piece in enumerate(dict.fromkeys(pieces))}
    contents = ["<unk>"] if unknown == "<unk>" else []
    contents += [*draw(st.lists(WORDS, max_size=3, unique=True)), "<|end|>"]
    added, free = [], len(vocab)
    alike = set()
    for content in dict.fromkeys(contents):
        token = vocab.get(content, free)
        free += token == free
        flags = {name: draw(st.booleans()) for name in FLAGS}
        # Of two that are normalized to one text the library takes either, by chance.
        normal = unicodedata.normalize("NFKC", content).replace(" ", "▁")
        flags["normalized"] &= normal not in alike
        alike.add(normal)
        special = content in ("<unk>", "<|end|>")
        added.append({"id": token, "content": content, "special": special, **flags})
    normalizers = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "NFKC"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    steps = draw(st.sampled_from([[], normalizers[:2], normalizers[1:2], normalizers[2:]]))
    return {
        "truncation": draw(st.sampled_from([None, {"max_length": 2, "stride": 0,
                                                   "strategy": "LongestFirst",
                                                   "direction": "Right"}])),
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": {**BYTE_LEVEL, "use_regex": True}
        if byte_level
        else draw(st.sampled_from([None, metaspace])),
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "use_regex": True} if byte_level else {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "unk_token": unknown,
            "fuse_unk": draw(st.booleans()),
            "byte_fallback": bytes_,
            "ignore_merges": draw(st.booleans()),
        },
    }  # fmt: skip


@contextmanager
def no_bad_split() -> Iterator[None]:
    """The library panics where a token that takes in white space ends in what another has taken."""
    try:
        yield
    except BaseException as error:
        assume("bad split" not in str(error))
        raise


def reference_ids(values: dict[str, Any], text: str) -> list[int]:
    """The library's own ids, without the truncation that transformers turns off as well."""
    rest = {**values, "truncation": None}
    if values["model"]["unk_token"] not in values["model"]["vocab"]:
        rest["model"] = {**values["model"], "unk_token": None}
    library = Library.from_str(json.dumps(rest))
    # Of two added tokens that the normalizer makes one, the library takes any.
    contents = [each["content"] for each in values["added_tokens"] if each["normalized"]]
    if library.normalizer is not None:
        contents = [library.normalizer.normalize_str(content) for content in contents]
    assume(len(set(contents)) == len(contents))
    with no_bad_split():
        return list(library.encode(text, add_special_tokens=False).ids)


@settings(max_examples=400)
@given(values=descriptions(), texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_ids_of_a_tokenizer_json_are_the_library_s(
    values: dict[str, Any], texts: list[str]
) -> None:
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig())
    specials = [entry["content"] for entry in values["added_tokens"] if entry["special"]]
    for text in texts:
        with no_bad_split():
            ids = tokenizer.encode(text)
        if not any(special in text for special in specials):
            assert ids == reference_ids(values, text)
        assert not set(tokenizer.controls.values()) & set(ids)
        assert tokenizer.least_tokens(text) <= len(ids)


@settings(max_examples=300)
@given(
    values=descriptions(),
    flags=st.tuples(st.booleans(), st.booleans()),
    texts=st.lists(st.text(alphabet=" \n\u3000\x1cab日", max_size=8), min_size=1, max_size=4),
)
def test_white_space_beside_a_mark_is_swallowed_as_by_the_library(
    values: dict[str, Any], flags: tuple[bool, bool], texts: list[str]
) -> None:
    # A text that runs into the mark would hide it from the library.
    assume(all("<" not in each["content"] or each["special"] for each in values["added_tokens"]))
    values["added_tokens"][-1] |= dict(zip(FLAGS, (False, *flags, False), strict=True))
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig())
    parts: list[Part] = [Text(texts[0], None)]
    for text in texts[1:]:
        parts += [Control("<|end|>"), Text(text, None)]
    right = reference_ids(values, as_text(parts))
    with no_bad_split():
        segments = encode_parts(tokenizer, parts)
    assert [token for segment in segments for token in segment.ids] == right


@pytest.mark.parametrize("text", [" \n x", "x \n ", " \n ", "\n\n", " a", " ab", "b a "])
@pytest.mark.parametrize("alone", [False, True])
def test_white_space_that_is_a_token_is_not_swallowed(text: str, alone: bool) -> None:
    values: dict[str, Any] = {
        "added_tokens": [
            {"id": 3 + place, "content": content, "special": content == "<|end|>", **flags}
            for place, content in enumerate(["\n", " a", "<|end|>"])
            for flags in [dict.fromkeys(FLAGS, False) | {"single_word": alone and content == " a"}]
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2}, "merges": [], "unk_token": None
        },
    }  # fmt: skip
    values["added_tokens"][-1] |= {"lstrip": True, "rstrip": True}
    tokenizer = HuggingFaceTokenizer(values, TokenizerConfig())
    library = Library.from_str(json.dumps(values))
    for parts in ([Control("<|end|>"), Text(text, None)], [Text(text, None), Control("<|end|>")]):
        segments = encode_parts(tokenizer, parts)
        ids = [token for segment in segments for token in segment.ids]
        assert ids == library.encode(as_text(parts), add_special_tokens=False).ids


def llama_ids(metadata: dict[str, Any], text: str) -> list[int]:
    """The rules of llama.cpp's SPM tokenizer, on metadata whose control pieces no text spells."""
    pieces = metadata["tokenizer.ggml.tokens"]
    scores, types = metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
    known = {piece: token for token, piece in enumerate(pieces) if piece}
    fragments: list[str | int] = [text]
    user = {piece: token for token, piece in enumerate(pieces) if piece and types[token] == 4}
    for token in sorted(user.values(), key=lambda each: -len(pieces[each].encode())):
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
                continue
            for place, part in enumerate(fragment.split(pieces[token])):
                cut += [*([token] if place else []), *([part] if part else [])]
        fragments = cut
    ids: list[int] = []
    begins = True
    for fragment in fragments:
        if isinstance(fragment, int):
            ids.append(fragment)
            begins = True
        elif fragment:
            space = " " if begins and metadata["tokenizer.ggml.add_space_prefix"] else ""
            ids += merged(list((space + fragment).replace(" ", "▁")), known, scores)
            begins = False
    return ids


def merged(symbols: list[str], known: dict[str, int], scores: list[float]) -> list[int]:
    """Pairs are merged by score, the leftmost first; what is no piece becomes bytes."""
    while True:
        pairs = [
            (-scores[known[a + b]], place)
            for place, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in known
        ]
        if not pairs:
            break
        place = heapq.nsmallest(1, pairs)[0][1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = []
    for symbol in symbols:
        if symbol in known:
            ids.append(known[symbol])
        else:
            ids += [known[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


@st.composite
def gguf_vocabularies(draw: st.DrawFn) -> dict[str, Any]:
    """Pieces with every oddity: empty and doubled ones, bytes of other types, no unknown piece."""
    byte_kind = draw(st.sampled_from([6, 6, 1]))
    entries = [(f"<0x{byte:02X}>", 0.0, byte_kind) for byte in range(256)]
    words = draw(st.lists(st.text(alphabet="ab▁é日<", min_size=0, max_size=3), max_size=14))
    kinds = st.sampled_from([1, 1, 1, 4, 5, 6])
    scores = st.sampled_from([-1.0, -2.0, -3.0, 0.0, -0.5])
    entries += [(word, draw(scores), draw(kinds)) for word in words]
    entries += [("</s>", 0.0, 3), *draw(st.sampled_from([[], [("<unk>", 0.0, 2)]]))]
    entries = draw(st.permutations(entries)) if draw(st.booleans()) else entries
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in entries],
        "tokenizer.ggml.scores": [score for _, score, _ in entries],
        "tokenizer.ggml.token_type": [kind for _, _, kind in entries],
        "tokenizer.ggml.add_space_prefix": draw(st.booleans()),
    }


@settings(max_examples=300)
@given(
    metadata=gguf_vocabularies(),
    texts=st.lists(st.text(alphabet="ab ▁é日<c\n", max_size=14), min_size=1, max_size=4),
)
def test_ids_of_a_sentencepiece_gguf_are_llama_cpp_s(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any], texts: list[str]
) -> None:
    tokenizer = tokenizer_from_gguf(metadata)
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    saved = load_tokenizer(folder)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == llama_ids(metadata, text)
        assert saved.encode(text) == ids
        assert tokenizer.least_tokens(text) <= len(ids)
        assert tokenizer.token_bytes(ids[0]) if ids else not text


@settings(max_examples=100)
@given(data=st.data(), text=st.text(alphabet="ab<>/s|ix", max_size=12))
def test_a_piece_that_is_spelled_like_a_control_piece_never_gives_it(
    data: st.DataObject, text: str
) -> None:
    metadata = data.draw(gguf_vocabularies())
    for word in ("ab", "</s>", "<s"):
        metadata["tokenizer.ggml.tokens"] += [word, word]
        metadata["tokenizer.ggml.scores"] += [0.0, 0.0]
        metadata["tokenizer.ggml.token_type"] += data.draw(st.permutations([1, 3]))
    tokenizer = tokenizer_from_gguf(metadata)
    ids = tokenizer.encode(text + "ab</s>")
    assert not set(tokenizer.controls.values()) & set(ids)


@given(
    pieces=st.lists(st.binary(min_size=2, max_size=4), max_size=8),
    texts=st.lists(TEXTS, max_size=3),
)
def test_any_tekken_gives_a_text_back(pieces: list[bytes], texts: list[str]) -> None:
    tokenizer = TekkenTokenizer(b"", small_tekken(pieces), "tekken.json")
    for text in texts:
        ids = tokenizer.encode(text)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
        assert tokenizer.least_tokens(text) <= len(ids)


def with_added(folder: Path, metadata: dict[str, Any], gap: int) -> Tokenizer:
    """The vocabulary with added tokens behind it, and ids between them that nobody has."""
    tokenizer_from_gguf(metadata).save(folder)
    size = len(metadata["tokenizer.ggml.tokens"])
    (folder / "added_tokens.json").write_text(json.dumps({"<|a|>": size, "<|b|>": size + gap}))
    return load_tokenizer(folder)


def drained(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = Detokenizer(tokenizer.token_bytes)
    return "".join([*map(stream.feed, ids), stream.flush()])


@settings(max_examples=60)
@given(data=st.data())
def test_every_id_is_some_text(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    kind = data.draw(st.sampled_from(["json", "gguf", "added", "tekken"]))
    if kind == "json":
        values = data.draw(descriptions())
        size = 1 + max(each["id"] for each in values["added_tokens"])
        values["model"]["vocab"] |= {"日本": size, "<unused 1>": size + 2, "<0xZZ>": size + 3}
        values["added_tokens"] += [{"id": size + 9, "content": "<|far|>", "special": True}]
        tokenizer: Tokenizer = HuggingFaceTokenizer(values, TokenizerConfig())
        assert tokenizer.token_bytes(size) == "日本".encode()
        assert tokenizer.token_bytes(size + 2) == b"<unused 1>"
        assert tokenizer.token_bytes(size + 3) == b"<0xZZ>"
    elif kind == "tekken":
        tokenizer = TekkenTokenizer(b"", small_tekken([b"\xc3\xa9", b"\xff\xff"]), "x")
    else:
        metadata = data.draw(gguf_vocabularies())
        tokenizer = tokenizer_from_gguf(metadata)
        if kind == "added":
            folder = tmp_path_factory.mktemp("added")
            tokenizer = with_added(folder, metadata, data.draw(st.integers(1, 9)))
    everything = range(-1, tokenizer.vocab_size + 300)
    whole = b"".join(tokenizer.token_bytes(token) for token in everything)
    assert drained(tokenizer, list(everything)) == whole.decode("utf-8", "replace")
    for token in everything:
        tokenizer.show([token]).encode()
    for piece, token in tokenizer.controls.items():
        assert tokenizer.token_bytes(token) == b""
        assert tokenizer.show([token]) == piece
