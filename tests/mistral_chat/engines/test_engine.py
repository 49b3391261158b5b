"""ChatEngine on a session that only remembers ids: what is fed, kept, hidden and reported."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import quant
from mistral_chat.engines import opening as engine_module
from mistral_chat.engines.events import Finished, PrefillProgress, StartsOver, TextDelta
from mistral_chat.engines.local import ChatEngine
from mistral_chat.engines.opening import open_engine
from mistral_chat.engines.options import sampling_of
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Paths, Settings
from mistral_chat.system.interrupts import stopped_by_interrupt
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import tokenizer_from_gguf
from quant.errors import CacheError, ConfigError, ContextFullError

from ...quant.models import TINY
from ..fakes import tiny_metadata

TOKENIZER = tokenizer_from_gguf(tiny_metadata())
TEMPLATE = template_for(TOKENIZER)
SAMPLING = sampling_of(Settings(temperature=0.0, seed=3))


@dataclass
class RememberingSession:
    """Holds the ids that were fed and not trimmed; ``wrapped`` refuses to trim."""

    max_context: int = 1000
    wrapped: bool = False
    ids: list[int] = field(default_factory=list)

    is_compiled: ClassVar[bool] = False
    compiled: int = 0

    @property
    def position(self) -> int:
        return len(self.ids)

    def compile(self) -> None:
        self.compiled += 1

    def trim(self, position: int) -> None:
        if self.wrapped:
            raise CacheError("The ring has wrapped.")
        del self.ids[position:]

    reuse = quant.Session.reuse


class ScriptedGeneration:
    """Yields the ids it is given, as quant.generate would."""

    def __init__(
        self, session: Any, ids: Sequence[int], script: Sequence[int], **more: Any
    ) -> None:
        if session.position + len(ids) > session.max_context:
            raise ContextFullError(len(ids), session.max_context - session.position)
        session.ids.extend(ids)
        self.session, self.script, self.more = session, script, more
        self.finish_reason = "stop"
        self.seed = 3
        self.timings = SimpleNamespace(
            prompt_tokens=len(ids), prefill_seconds=0.5, generated_tokens=0, decode_seconds=0.0
        )
        more["progress"](len(ids), len(ids))

    def __iter__(self) -> Iterator[int]:
        for token in self.script:
            if self.more["cancel"] is not None and self.more["cancel"]():
                self.finish_reason = "cancelled"
                return
            if token in self.more["stop"]:
                return
            self.session.ids.append(token)
            self.timings.generated_tokens += 1
            self.timings.decode_seconds += 0.25
            yield token


@dataclass
class Script:
    """What the model says next, what it was fed, and the sessions that were opened."""

    ids: list[int] = field(default_factory=list)
    fed: list[list[int]] = field(default_factory=list)
    sessions: list[RememberingSession] = field(default_factory=list)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()

    def generate(session: Any, ids: Sequence[int], sampling: Any, **more: Any) -> Any:
        made.fed.append(list(ids))
        return ScriptedGeneration(session, ids, made.ids, **more)

    monkeypatch.setattr(quant, "generate", generate)
    return made


@pytest.fixture
def chat(script: Script) -> ChatEngine:
    def open_session(options: quant.SessionOptions) -> Any:
        script.sessions.append(RememberingSession())
        return script.sessions[-1]

    config = SimpleNamespace(eos_token_ids=(2, 7))
    model: Any = SimpleNamespace(config=config, open=open_session)
    return ChatEngine(model, TOKENIZER, TEMPLATE, "fake", quant.SessionOptions())


def ask(
    chat: ChatEngine, *texts: str, cancel: Callable[[], bool] | None = None
) -> tuple[str, Finished]:
    """Ask with texts of user and assistant in turn; the streamed text and the end."""
    roles = itertools.cycle((Role.USER, Role.ASSISTANT))
    messages = [Message(role, text) for text, role in zip(texts, roles, strict=False)]
    *deltas, last = list(chat.reply(messages, SAMPLING, cancel=cancel))
    assert isinstance(last, Finished)
    streamed = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return streamed, last


def test_the_answer_streams_and_the_stop_is_hidden(chat: ChatEngine, script: Script) -> None:
    script.ids = [*TOKENIZER.encode("héllo"), 2, *TOKENIZER.encode("never")]
    streamed, finished = ask(chat, "Hi")
    assert streamed == finished.text == "héllo"
    assert (finished.finish_reason, finished.truncated, finished.seed) == ("stop", False, 3)
    prompt = TEMPLATE.encode([Message(Role.USER, "Hi")])
    assert script.fed == [prompt]
    assert finished.usage.prompt_tokens == finished.timings.prefill_tokens == len(prompt)
    assert finished.usage.completion_tokens == finished.timings.decode_tokens == 5


def test_a_character_cut_in_two_ends_as_a_replacement(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("é")[:1]
    assert ask(chat, "Hi")[0] == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("bytes_", range(1, 9))
def test_an_answer_cut_in_a_character_goes_on_from_its_ids(
    chat: ChatEngine, script: Script, bytes_: int
) -> None:
    whole = [id_ for letter in "é😀x" for id_ in TOKENIZER.encode(letter)]
    script.ids = whole
    left = iter(range(bytes_))
    first, cut = ask(chat, "Hi", cancel=lambda: next(left, None) is None)
    assert cut.finish_reason == ("cancelled" if bytes_ < len(whole) else "stop")
    assert "\N{REPLACEMENT CHARACTER}" not in first
    assert "é😀x".startswith(first)
    script.ids = whole[bytes_:]
    second, _ = ask(chat, "Hi", first)
    assert first + second == "é😀x"
    # Fed is what the model had written, not what its text would be encoded as.
    assert script.sessions[-1].ids[-len(whole) :] == whole
    # Another conversation that ends in the same words is encoded.
    script.ids = []
    ask(chat, "Ho", first)
    question = TEMPLATE.encode([Message(Role.USER, "Ho")])
    assert script.sessions[-1].ids == question + TOKENIZER.encode(first)


@pytest.mark.parametrize("text", ["😀 world", "a😀é", "日本"])
def test_an_answer_cut_in_a_character_goes_on_with_its_ids(
    chat: ChatEngine, script: Script, text: str
) -> None:
    whole = TOKENIZER.encode(text)
    question = Message(Role.USER, "Hi")
    prompt = TEMPLATE.encode([question])
    for cut in range(1, len(whole)):
        for again in range(cut, len(whole)):
            script.ids = whole
            steps = iter([*[False] * cut, True])
            said, _ = ask(chat, "Hi", cancel=lambda steps=steps: next(steps))
            steps = iter([*[False] * (again - cut), True])
            script.ids = whole[cut:]
            said += ask(chat, "Hi", said, cancel=lambda steps=steps: next(steps))[0]
            script.ids = whole[again:]
            said += ask(chat, "Hi", said)[0]
            assert said == text
            assert chat.session.ids == prompt + whole


def test_an_answer_that_was_changed_is_read_as_it_is(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("ab😀")
    steps = iter([*[False] * 3, True])
    assert ask(chat, "Hi", cancel=lambda: next(steps))[0] == "ab"
    script.ids = []
    prompt = TEMPLATE.encode([Message(Role.USER, "Hi")])
    for changed in ("abc", "b"):
        ask(chat, "Hi", changed)
        assert chat.session.ids == prompt + TOKENIZER.encode(changed)


def test_only_what_is_new_is_fed(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("Yo")
    ask(chat, "Hi")
    held = len(chat.session.ids)
    _, finished = ask(chat, "Hi", "Yo", "Bye")
    assert finished.usage.cached_tokens == held
    whole = TEMPLATE.encode(
        [Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Yo"), Message(Role.USER, "Bye")]
    )
    assert script.fed[1] == whole[held:]
    assert chat.session.ids[: len(whole)] == whole


def test_the_same_prompt_again_feeds_its_last_id(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("Yo")
    ask(chat, "Hi")
    ask(chat, "Hi")
    assert script.fed[1] == script.fed[0][-1:]


def test_a_changed_turn_feeds_from_the_change_on(chat: ChatEngine, script: Script) -> None:
    ask(chat, "same start, old")
    ask(chat, "same start, new")
    assert script.fed[1] == TOKENIZER.encode("new") + script.fed[0][-len(script.fed[1]) + 3 :]


def test_a_ring_that_wrapped_starts_over(chat: ChatEngine, script: Script) -> None:
    ask(chat, "one")
    script.sessions[0].wrapped = True
    events = list(chat.reply([Message(Role.USER, "two")], SAMPLING))
    assert events[0] == StartsOver()  # which is told
    assert isinstance(events[-1], Finished)
    assert len(script.sessions) == 2
    assert events[-1].usage.cached_tokens == 0
    assert script.fed[1] == TEMPLATE.encode([Message(Role.USER, "two")])


def test_an_answer_that_repeats_itself_is_ended(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("ha") * 200
    script.sessions[0].max_context = 1000
    _, finished = ask(chat, "Joke")
    assert finished.finish_reason == "loop"
    assert finished.text == "ha" * 48
    *_, last = chat.reply([Message(Role.USER, "Joke")], SAMPLING, stop_loops=False)
    assert isinstance(last, Finished)
    assert last.finish_reason != "loop"


@pytest.mark.parametrize("read", [True, False])
def test_it_goes_on_with_its_own_answer(chat: ChatEngine, script: Script, read: bool) -> None:
    script.ids = TOKENIZER.encode("Yo!")
    if read:
        ask(chat, "Hi")
    told = [Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Yo!")]
    prompt = TEMPLATE.encode(told[:1])
    script.ids = TOKENIZER.encode(" More")
    *_, last = chat.reply(told, SAMPLING)
    assert isinstance(last, Finished)
    assert last.text == " More"
    assert chat.session.ids[: len(prompt) + 3] == prompt + TOKENIZER.encode("Yo!")
    assert last.usage.prompt_tokens == len(prompt) + 3


def test_a_cancelled_answer_keeps_what_was_written(chat: ChatEngine, script: Script) -> None:
    script.ids = TOKENIZER.encode("abc")
    answers = iter([False, False, True])
    streamed, finished = ask(chat, "Hi", cancel=lambda: next(answers))
    assert streamed == finished.text == "ab"
    assert finished.finish_reason == "cancelled"


def test_a_prompt_that_does_not_fit_is_refused_first(chat: ChatEngine, script: Script) -> None:
    script.sessions[0].max_context = 10
    with pytest.raises(ContextFullError):
        ask(chat, "Hello")
    assert script.sessions[0].ids == []


def test_progress_is_told(chat: ChatEngine) -> None:
    told: list[PrefillProgress] = []
    list(chat.reply([Message(Role.USER, "Hi")], SAMPLING, progress=told.append))
    assert told[-1].done == told[-1].total > 0


def test_sampling_takes_every_setting() -> None:
    settings = Settings(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, seed=9)
    sampling = sampling_of(settings)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.0, 9)


def test_the_defaults_are_the_samplers_own() -> None:
    assert sampling_of(Settings()) == quant.Sampling()


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Makes every name load a model made for 512 tokens; holds what its session was asked for."""
    asked: dict[str, Any] = {}

    class Model:
        config = replace(TINY, max_position_embeddings=512, vocab_size=272, eos_token_ids=())

        def describe(self, name: str) -> tuple[tuple[int, ...], quant.QuantSpec | None]:
            return (), None

        def open(self, options: quant.SessionOptions) -> RememberingSession:
            asked["options"] = options
            return RememberingSession()

    monkeypatch.setattr(engine_module, "locate", lambda name, paths, progress: Path(name))
    monkeypatch.setattr(engine_module, "open_checkpoint", lambda path: Model())
    monkeypatch.setattr(engine_module, "open_tokenizer", lambda path: TOKENIZER)
    monkeypatch.setattr(engine_module, "check_memory", lambda *arguments: None)
    monkeypatch.setattr(quant, "load", lambda path, spec: Model())
    monkeypatch.setattr(quant, "kernels_compiled", lambda kv: True)
    monkeypatch.setattr(quant, "compile_kernels", lambda kv: None)
    return asked


def test_opening_takes_the_settings(loadable: dict[str, Any], paths: Paths) -> None:
    settings = Settings(kv="int8", prefill="fast", threads=2)
    opened = open_engine(settings, paths, lambda label, done, total: None)
    assert opened.name == "smollm2"
    assert not opened.complaints
    wanted = quant.SessionOptions(512, kv="int8", prefill="fast", threads=2)
    assert loadable == {"options": wanted}


def test_smaller_groups_are_told(
    loadable: dict[str, Any], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = engine_module.open_checkpoint(Path())
    narrow.config = replace(narrow.config, hidden_size=96)
    monkeypatch.setattr(engine_module, "open_checkpoint", lambda path: narrow)
    asked: list[quant.QuantSpec] = []
    monkeypatch.setattr(quant, "load", lambda path, spec: asked.append(spec) or narrow)
    opened = open_engine(Settings(), paths, lambda label, done, total: None)
    assert [spec.group_size for spec in asked] == [32]
    assert [told.split(":")[0] for told in opened.complaints] == [
        "Weights are packed in groups of 32"
    ]


@pytest.mark.parametrize("ready", [False, True])
def test_kernels_load_beside_the_model_and_compile_in_sight(
    loadable: dict[str, Any], paths: Paths, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    threads: list[str] = []
    labels: list[str] = []

    def compile_kernels(kv: str) -> None:
        assert kv == "f16"
        threads.append(threading.current_thread().name)

    monkeypatch.setattr(quant, "kernels_compiled", lambda kv: ready)
    monkeypatch.setattr(quant, "compile_kernels", compile_kernels)
    monkeypatch.setattr(RememberingSession, "is_compiled", ready)
    opened = open_engine(Settings(), paths, lambda label, done, total: labels.append(label))
    assert len(threads) == ready
    assert threading.current_thread().name not in threads
    assert labels == ([] if ready else ["Compiling the kernels, once on this computer"])
    assert opened.session.compiled == 1  # type: ignore[attr-defined]


def test_an_error_of_the_kernels_comes_out(
    loadable: dict[str, Any], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(kv: str) -> bool:
        raise ConfigError("No such instruction set.")

    monkeypatch.setattr(quant, "kernels_compiled", fail)
    with pytest.raises(ConfigError, match="No such instruction set"):
        open_engine(Settings(), paths, lambda label, done, total: None)


def test_a_context_the_model_was_not_made_for_is_refused(
    loadable: dict[str, Any], paths: Paths
) -> None:
    settings = Settings(context=513, sources={"context": "--context"})
    with pytest.raises(UsageError, match="at most 512"):
        open_engine(settings, paths, lambda label, done, total: None)


def test_ctrl_c_is_noted_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_by_interrupt() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
    assert signal.getsignal(signal.SIGINT) is before
