"""A model in this process: messages in, typed events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import quant
from mistral_chat.engines.events import Event, Finished, PrefillProgress, StartsOver, Timings, Usage
from mistral_chat.engines.memory import Memory
from mistral_chat.engines.scorer import SessionScorer
from mistral_chat.engines.writing import Writing
from mistral_chat.messages import Message, Role
from mistral_chat.templates import ChatTemplate
from mistral_chat.tokenizers import Tokenizer


class ChatEngine:
    """A loaded model with its tokenizer, its template and what it remembers of the last prompt.

    ``recommended`` are the settings of sampling that came with the model, ``complaints`` sentences
    about its files that a person should read.
    """

    def __init__(
        self,
        model: quant.Model,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        name: str,
        options: quant.SessionOptions,
        *,
        recommended: Mapping[str, object] | None = None,
        complaints: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self.recommended: Mapping[str, object] = recommended or {}
        self.complaints = complaints
        self._options = options
        self._memory = Memory(lambda: model.open(options), tokenizer, template)
        # A model may name more ends of a text than its template does.
        ends = (*template.stop_ids, *model.config.eos_token_ids)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))

    @property
    def session(self) -> quant.Session:
        """The session that has read the last prompt."""
        return self._memory.session

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
        ids = self._memory.encode(messages)
        begun = self._memory.begun(messages) if goes_on else None
        kept = self._memory.rewind(ids)
        if kept is None:
            yield StartsOver()
        cached = kept or 0

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
        pending = b"" if begun is None else begun.pending
        writing = Writing(self.tokenizer, generation, goes_on, pending, stop_loops)
        yield from writing
        prompt = self.template.encode(messages[:-1]) if goes_on else ids
        before = messages[-1].text if goes_on else ""
        self._memory.note(
            prompt, [*ids[len(prompt) :], *writing.ids], before + writing.text, writing.pending
        )
        yield Finished(
            text=writing.text,
            finish_reason=writing.finish_reason,
            usage=Usage(len(ids), cached, len(writing.ids)),
            timings=_timings(generation),
            seed=generation.seed,
        )

    def scorer(self, context: int) -> SessionScorer:
        """A scorer for ``context`` tokens, or as many as the model sees at once if that is less."""
        config = self.model.config
        widest = (config.max_position_embeddings, *(each for each in config.windows if each))
        # A window as long as the context never moves on, so a label can always be taken back.
        options = replace(self._options, max_context=min(context, *widest))
        return SessionScorer(self.model, options)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a conversation is; raises UsageError as the template does."""
        return len(self._memory.encode(messages))

    @property
    def identity(self) -> str:
        """All that keys and values depend on but the ids and the model, which names itself."""
        return f"{self.session.cache.kind} {self._options.prefill} {self.template.name}"

    def save_cache(self, path: Path, messages: Sequence[Message]) -> int:
        """Write what was read of a conversation to a file; the bytes it takes. Raises OSError.

        ``messages`` end with an answer. What was read beyond it is forgotten first.
        """
        return self._memory.save(path, messages, self.identity)

    def restore_cache(self, path: Path) -> None:
        """Take up what an earlier process had read.

        Raises CacheError for a file that is damaged or belongs to another model.
        """
        self.session.restore(path, self.identity)


def _timings(generation: quant.Generation) -> Timings:
    timings = generation.timings
    return Timings(
        timings.prompt_tokens,
        timings.prefill_seconds,
        timings.generated_tokens,
        timings.decode_seconds,
    )
