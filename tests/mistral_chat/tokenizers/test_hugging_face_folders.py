"""Vocabularies in folders as Hugging Face has them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import pre_tokenizers

from mistral_chat.tokenizers import load_tokenizer
from quant.errors import CheckpointError, QuantError, UnsupportedError

from .hugging_face import added, llama_like_json, write_folder
from .reference_files import DATA, PIECES, TEKKEN, decoded, opened


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
