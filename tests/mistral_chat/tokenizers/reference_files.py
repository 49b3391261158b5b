"""The vocabularies that come with Mistral's own library."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mistral_common
from hypothesis import strategies as st

from mistral_chat.tokenizers import Detokenizer, Tokenizer, load_tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
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
    """This program's tokenizer of a version, opened once."""
    return load_tokenizer(DATA / FILES[version])


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids, as it streams."""
    stream = Detokenizer(tokenizer.token_bytes, drop_space=tokenizer.space_prefix != "never")
    return "".join([*map(stream.feed, ids), stream.flush()])
