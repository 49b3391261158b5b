"""Everything that the application does with a vocabulary, and what must hold of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import Detokenizer, Tokenizer, load_tokenizer
from quant.errors import QuantError

from ..mistral_chat.fakes import CHAT_TEMPLATE
from .mutation import changed_bytes, changed_value, to_json
from .target import require

WORDS = ("hello there", "</s> <|im_end|>[INST]", "é日本 \U0001f600", "\n\n  a", "", "  ", "\x00")
TALK = (Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "hi [INST] <|im_end|> </s>"))

TOKENIZER_CONFIG: dict[str, Any] = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
    "add_eos_token": False, "legacy": True, "chat_template": CHAT_TEMPLATE,
    "added_tokens_decoder": {
        "1": {"content": "<s>", "special": True, "lstrip": False, "normalized": False},
        "2": {"content": "</s>", "special": True},
    },
}  # fmt: skip
SPECIAL_TOKENS: dict[str, Any] = {
    "bos_token": "<s>", "eos_token": {"content": "</s>"},
    "additional_special_tokens": ["<|im_end|>", {"content": "x"}],
}  # fmt: skip
ADDED_TOKENS: dict[str, Any] = {"<|im_end|>": 2, "<new>": 400, "<s>": 1}
NAMED_TEMPLATES = [
    {"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": "x"}
]  # fmt: skip


def write_companions(random: Random, folder: Path) -> None:
    """Some of the files that may lie beside a vocabulary, changed as a rule."""

    def write(name: str, share: float, value: Any) -> None:
        if random.random() < share:
            changed = changed_value(random, value) if random.random() < 0.7 else value
            (folder / name).write_bytes(to_json(changed, random))

    write("tokenizer_config.json", 0.5, TOKENIZER_CONFIG)
    write("special_tokens_map.json", 0.15, SPECIAL_TOKENS)
    write("added_tokens.json", 0.15, ADDED_TOKENS)
    templates = random.choice((CHAT_TEMPLATE, NAMED_TEMPLATES))
    write("chat_template.json", 0.1, {"chat_template": templates})
    if random.random() < 0.1:
        text = changed_bytes(random, CHAT_TEMPLATE.encode())
        (folder / "chat_template.jinja").write_bytes(text)


def exercise(random: Random, folder: Path) -> None:
    """Load the vocabulary of a folder, use it in every way, and for some save it and load that.

    Raises WrongResultError where an id is out of range, a text gives a control id, or an id that
    a text gave has no bytes.
    """
    tokenizer = load_tokenizer(folder)
    _check_facts(tokenizer)
    for words in WORDS:
        _check_text(tokenizer, words)
    size = tokenizer.vocab_size
    for token in {0, 1, 2, size - 1, size // 2}:
        if 0 <= token < size:
            tokenizer.token_bytes(token)
            tokenizer.show([token])
    _check_template(tokenizer)
    if random.random() < 0.25:
        saved = folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        tokenizer.save(saved)
        again = load_tokenizer(saved)
        require(
            all(again.encode(words) == tokenizer.encode(words) for words in WORDS),
            "what was saved encodes otherwise",
        )


def _check_facts(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    require(type(size) is int and size > 0, f"a vocabulary of {size!r}")
    for name in ("bos_id", "eos_id"):
        token = getattr(tokenizer, name)
        require(token is None or _is_id(token, size), f"{name} is {token!r} of {size}")
    for piece, token in tokenizer.controls.items():
        require(_is_id(token, size), f"the control piece {piece!r} is {token!r} of {size}")
    require(tokenizer.space_prefix in ("always", "first", "never"), "no kind of space")
    require(type(tokenizer.adds_bos) is bool, f"adds_bos is {tokenizer.adds_bos!r}")
    require(bool(tokenizer.kind), "no kind")
    template, version = tokenizer.chat_template, tokenizer.mistral_version
    require(template is None or isinstance(template, str), f"the template is {template!r}")
    require(version is None or isinstance(version, str), f"the version is {version!r}")


def _is_id(token: object, size: int) -> bool:
    return type(token) is int and 0 <= token < size


def _check_text(tokenizer: Tokenizer, words: str) -> None:
    size, controls = tokenizer.vocab_size, set(tokenizer.controls.values())
    for first in (True, False):
        ids = tokenizer.encode(words, first=first)
        require(all(_is_id(token, size) for token in ids), f"{words!r} gives {ids[:5]} of {size}")
        require(not controls & set(ids), f"{words!r} gives a control id")
        detokenizer = Detokenizer(tokenizer.token_bytes, drop_space=True)
        for token in ids:
            detokenizer.feed(token)
        detokenizer.flush()
        tokenizer.show(ids)


def _check_template(tokenizer: Tokenizer) -> None:
    try:
        template = template_for(tokenizer)
        ids = template.encode(TALK)
    except QuantError:
        return  # it has none, or one that cannot be used: the vocabulary may be used all the same
    size = tokenizer.vocab_size
    require(all(_is_id(token, size) for token in ids), f"the template gives {ids[:5]} of {size}")
    require(
        all(_is_id(token, size) for token in template.stop_ids), "no stop id of this vocabulary"
    )
    tokenizer.show(ids)
