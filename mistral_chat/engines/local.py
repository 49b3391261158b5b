"""Messages in, typed events out.

The engine keeps what it has already read: of a new prompt only what differs from the last one is
fed to the model.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import quant
from mistral_chat.engines.loops import LoopDetector
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.models.download import Progress
from mistral_chat.models.names import is_here, locate, open_tokenizer, recommended_sampling
from mistral_chat.models.planning import check_memory
from mistral_chat.settings import Paths, Settings
from mistral_chat.templates import (
    ChatTemplate,
    SystemPosition,
    TemplateOptions,
    template_for,
)
from mistral_chat.tokenizers import Detokenizer, Tokenizer, check_vocabulary
from quant.backends.devices import check_device, chosen
from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint
from quant.errors import CacheError


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """How many of the prompt's new tokens have been read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; ``cached_tokens`` of the prompt's were still in the cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and how many tokens they were spent on."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer.

    ``finish_reason`` is ``stop`` (the model was done), ``length`` (max_tokens), ``context`` (the
    context is full), ``loop`` (it repeated itself without end), ``cancelled``, or ``refused`` (by
    the moderation; where that was the question, no token was drawn and ``seed`` may be None).
    """

    text: str
    finish_reason: str
    usage: Usage
    timings: Timings
    seed: int | None

    @property
    def truncated(self) -> bool:
        """Whether the model had more to say than there was room for."""
        return self.finish_reason in ("length", "context")


@dataclass(frozen=True, slots=True)
class _Answer:
    """The last answer as it was written: ``ids`` after those of a prompt, and their text.

    ``pending`` is the beginning of a character that the answer was cut in; ``text`` is without it.
    """

    prompt: list[int]
    ids: list[int]
    text: str
    pending: bytes


@dataclass(frozen=True, slots=True)
class StartsOver:
    """The rolling buffer no longer holds what the prompt begins with: all of it is read again."""


Event = StartsOver | TextDelta | Finished


def sampling_of(settings: Settings) -> quant.Sampling:
    """The settings of an answer as the sampler takes them; raises SamplingError."""
    return quant.Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
    )


def template_options(settings: Settings, neutralize: bool = True) -> TemplateOptions:
    """The settings that a chat template takes."""
    position = settings.system_position
    return TemplateOptions(None if position is None else SystemPosition(position), neutralize)


class ChatEngine:
    """A loaded model with its tokenizer, its template and what it remembers of the last prompt."""

    def __init__(
        self,
        model: quant.Model,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        open_session: Callable[[], quant.Session],
        name: str,
        prefill: str = "exact",
        recommended: Mapping[str, object] | None = None,
        threads: int | None = None,
        backend: str = "cpu",
        gpu_layers: int | None = None,
        complaints: Sequence[str] = (),
    ) -> None:
        self.recommended: Mapping[str, object] = recommended or {}
        self.complaints = complaints
        self._prefill = prefill
        self._placed: dict[str, Any] = {
            "threads": threads,
            "backend": backend,
            "gpu_layers": gpu_layers,
        }
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self._open_session = open_session
        self.session = open_session()
        self._answer: _Answer | None = None
        # A model may name more ends of a text than its template does.
        ends = (*template.stop_ids, *model.config.eos_token_ids)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))

    @classmethod
    def open(
        cls, settings: Settings, paths: Paths, progress: Progress, ignore_memory: bool = False
    ) -> ChatEngine:
        """Find (or fetch) and load the model that the settings name.

        Raises ModelMissingError, UsageError for a context the model was not made for,
        MemoryShortError for what cannot fit (unless ``ignore_memory``), and CheckpointError for
        files that cannot be used.
        """
        path = locate(settings.model, paths, progress)
        with ThreadPoolExecutor(1) as background:
            kernels = background.submit(_load_kernels, settings.kv)
            # Headers first: what does not fit together is told before weights are read.
            checkpoint = open_checkpoint(path)
            config = checkpoint.config
            tokenizer = open_tokenizer(path)
            check_vocabulary(tokenizer, config.vocab_size)
            template = template_for(tokenizer, template_options(settings))
            longest = config.max_position_embeddings
            if settings.context > longest and settings.source("context") != "default":
                raise UsageError(
                    f"{settings.source('context')}: {settings.model} was made for at most "
                    f"{longest} tokens; ask for a context of {longest} or less."
                )
            if not ignore_memory:
                check_memory(checkpoint, settings.context, settings.kv)
            backend = chosen(settings.device)
            if backend == "cuda":
                check_device()
            spec = fitting_spec(config)
            model = quant.load(path, spec)

            def open_session() -> quant.Session:
                return model.session(
                    max_context=min(settings.context, longest),
                    kv=settings.kv,
                    prefill=settings.prefill,
                    threads=settings.threads,
                    backend=backend,
                    gpu_layers=settings.gpu_layers,
                )

            complaints: list[str] = []
            packed = [checkpoint.describe(name)[1] for name in ("embedding", "layers.0.q")]
            if None in packed and spec != DEFAULT_SPEC:
                complaints.append(
                    f"Weights are packed in groups of {spec.group_size}: "
                    f"{DEFAULT_SPEC.group_size} columns do not divide this model's."
                )
            engine = cls(
                model, tokenizer, template, open_session, settings.model, settings.prefill,
                recommended_sampling(path, complaints.append), settings.threads, backend,
                settings.gpu_layers, complaints,
            )  # fmt: skip
            kernels.result()
        if not engine.session.is_compiled:
            what = "Compiling the kernels, once on this computer"
            progress("Copying the model to the GPU" if backend == "cuda" else what, 0, 1)
        engine.session.compile()
        return engine

    def reply(
        self,
        messages: Sequence[Message],
        sampling: quant.Sampling,
        max_tokens: int | None = None,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
        stop_loops: bool = True,
    ) -> Iterator[Event]:
        """Answer a conversation: TextDelta events, then one Finished.

        Where the last message is the model's own, it goes on with it, from the ids that it wrote;
        the events and the text are then what it adds. A character that an answer was cut in is no
        part of its text, and is finished where it goes on. With ``stop_loops`` an answer that
        repeats itself is ended.

        ``cancel`` is asked between tokens and between pieces of the prompt; a cancelled answer
        keeps what was written. Raises UsageError for a conversation that cannot be answered and
        ContextFullError, before anything is computed, for one that does not fit. For example::

            for event in engine.reply([Message(Role.USER, "Hi")], sampling):
                if isinstance(event, TextDelta):
                    print(event.text, end="", flush=True)
        """
        goes_on = bool(messages) and messages[-1].role is Role.ASSISTANT
        ids = self._encode(messages)
        begun = self._begun(messages) if goes_on else None
        before = self.session
        cached = self._rewind(ids)
        if self.session is not before:
            yield StartsOver()

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(PrefillProgress(done, total))

        generation = quant.generate(
            self.session,
            ids[cached:],
            sampling,
            stop=self.stop_ids,
            cancel=cancel,
            max_tokens=max_tokens,
            progress=report,
        )
        drop_space = self.tokenizer.space_prefix != "never" and not goes_on
        loops = LoopDetector() if stop_loops else None
        in_loop = False
        pending = b"" if begun is None else begun.pending
        detokenizer = Detokenizer(self.tokenizer.token_bytes, drop_space, pending)
        pieces: list[str] = []
        written: list[int] = []
        for token in generation:
            written.append(token)
            piece = detokenizer.feed(token)
            if piece:
                pieces.append(piece)
                yield TextDelta(piece)
            if loops is not None and loops.feed(token):
                in_loop = True
                break
        reason = "loop" if in_loop else generation.finish_reason or "cancelled"
        # A character that was cut off is not lost: the model may go on with it.
        tail = detokenizer.flush() if reason == "stop" else ""
        if tail:
            pieces.append(tail)
            yield TextDelta(tail)
        prompt = self.template.encode(messages[:-1]) if goes_on else ids
        before_it = messages[-1].text if goes_on else ""
        self._answer = _Answer(
            prompt, [*ids[len(prompt) :], *written], "".join([before_it, *pieces]),
            detokenizer.pending,
        )  # fmt: skip
        timings = generation.timings
        yield Finished(
            text="".join(pieces),
            finish_reason=reason,
            usage=Usage(len(ids), cached, len(written)),
            timings=Timings(
                timings.prompt_tokens,
                timings.prefill_seconds,
                timings.generated_tokens,
                timings.decode_seconds,
            ),
            seed=generation.seed,
        )

    def scorer(self, context: int) -> SessionScorer:
        """A scorer for ``context`` tokens, or as many as the model sees at once if that is less."""
        config = self.model.config
        widest = (config.max_position_embeddings, *(each for each in config.windows if each))
        settings = self.session.cache.kind, self._prefill
        # A window as long as the context never moves on, so a label can always be taken back.
        session = self.model.session(min(context, *widest), None, *settings, **self._placed)
        return SessionScorer(session)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a conversation is; raises UsageError as the template does."""
        return len(self._encode(messages))

    @property
    def identity(self) -> str:
        """All that keys and values depend on but the ids and the model, which names itself."""
        return f"{self.session.cache.kind} {self._prefill} {self.template.name}"

    def save_cache(self, path: Path, messages: Sequence[Message]) -> int:
        """Write what was read of a conversation to a file; the bytes it takes. Raises OSError.

        ``messages`` end with an answer. What was read beyond it, such as a question that was broken
        off or an answer that was refused, is forgotten first.
        """
        pairs = zip(self.session.ids, self._encode(messages), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        try:
            self.session.trim(shared)
        except CacheError:
            self.session = self._open_session()
        return self.session.save(path, self.identity)

    def restore_cache(self, path: Path) -> None:
        """Take up what an earlier process had read.

        Raises CacheError for a file that is damaged or belongs to another model.
        """
        self.session.restore(path, self.identity)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation; of an answer to go on with, the ids that were read of it."""
        if not messages or messages[-1].role is not Role.ASSISTANT:
            return self.template.encode(messages)
        ids, text = self.template.encode(messages[:-1]), messages[-1].text
        begun = self._begun(messages)
        if begun is not None:
            rest = text[len(begun.text) :]
            return ids + begun.ids + (self.tokenizer.encode(rest, first=False) if rest else [])
        there = self.session.ids
        if there[: len(ids)] == ids:
            data = b"".join(map(self.tokenizer.token_bytes, there[len(ids) :]))
            written = data.decode("utf-8", "replace")
            rest = text.removeprefix(written.removeprefix(" "))
            # The last token of an answer may not have been read yet.
            if written and len(rest) < len(text):
                return there + (self.tokenizer.encode(rest, first=False) if rest else [])
        return ids + self.tokenizer.encode(text)

    def _begun(self, messages: Sequence[Message]) -> _Answer | None:
        """The last answer, if it is what the last message of a conversation begins with."""
        begun, text = self._answer, messages[-1].text
        if begun is None or begun.prompt != self.template.encode(messages[:-1]):
            return None
        goes_beyond = len(text) > len(begun.text)
        if not text.startswith(begun.text) or (goes_beyond and begun.pending):
            return None
        return begun

    def _rewind(self, ids: Sequence[int]) -> int:
        """Forget what the new prompt does not share with the last; the count of ids kept."""
        try:
            return self.session.reuse(ids)
        except CacheError:
            self.session = self._open_session()
            return 0


class SessionScorer:
    """Scores continuations in a session of its own; what is shared with the last prompt stays."""

    def __init__(self, session: quant.Session) -> None:
        self._session = session

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and a continuation may have together."""
        return self._session.max_context

    def score(
        self,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        cancel: Callable[[], bool] | None = None,
    ) -> list[float] | None:
        """Log-probability of each continuation in nats; None where cancelled."""
        scores = quant.score(self._session, ids, continuations, cancel=cancel)
        return None if scores is None else scores.tolist()


def needs_foreground(settings: Settings, paths: Paths) -> bool:
    """Whether opening will fetch a model or compile, which should be seen and can be stopped."""
    names = filter(None, (settings.model, settings.moderator))
    here = all(is_here(name, paths) for name in names)
    return not (here and quant.kernels_compiled(settings.kv))


def _load_kernels(kv: str) -> None:
    """Load the kernels, if they are compiled.

    This runs beside the loading of the model, and whoever gives up waits for it. Compiling takes
    too long for that, and is left to the main thread, where Ctrl-C breaks it off.
    """
    if quant.kernels_compiled(kv):
        quant.compile_kernels(kv)


@contextmanager
def stopped_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C raises nothing; the function it gives says whether Ctrl-C was pressed.

    So an answer stops between two tokens, with the cache whole, instead of anywhere.
    """
    pressed = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        pressed.set()

    # Only the main thread may set handlers; elsewhere Ctrl-C does not arrive either.
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
