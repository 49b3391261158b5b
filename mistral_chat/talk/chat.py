"""A conversation under way: what was said, what of it the model is told, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mistral_chat.engines.events import Event, Finished, PrefillProgress, TextDelta, Timings, Usage
from mistral_chat.engines.options import sampling_of
from mistral_chat.engines.protocol import Engine
from mistral_chat.errors import NotKeptError, TextTooLongError, UsageError, sentence
from mistral_chat.guardrail.judging import Judged, Moderators
from mistral_chat.guardrail.moderation import Loaded, Moderator
from mistral_chat.guardrail.prompt import system_prompt
from mistral_chat.messages import Message, Role
from mistral_chat.models.names import caution
from mistral_chat.settings import MODERATING, OFF, STRICT, Settings
from mistral_chat.talk.events import Talk, Turn
from mistral_chat.talk.fitting import SUMMARY_REQUEST, Part, make_room, parts_of
from mistral_chat.talk.inputs import least_tokens
from mistral_chat.talk.sessions import SessionFile, now, prune_caches
from quant.errors import CacheError, QuantError

ChatEvent = Event | Judged


def _say_nothing(_text: str) -> None:
    """Nobody is told."""


@dataclass
class Chat:
    """A talk with an engine; ``store`` keeps it on the disk (None: private), ``last`` is the end of
    the latest answer, ``attached`` texts go before the next question, ``notice`` is a sentence that
    was not told yet. ``load_moderator`` loads a model that judges in place of the engine, and
    ``verdicts`` are those on the latest question and answer. With ``whole`` nobody sees an answer
    before it is complete, so where the guardrail moderates one that is refused is held back.
    """

    engine: Engine
    settings: Settings
    talk: Talk = field(default_factory=Talk)
    store: SessionFile | None = None
    last: Finished | None = None
    attached: list[str] = field(default_factory=list)
    notice: str | None = None
    load_moderator: Callable[[str], Loaded] | None = None
    verdicts: list[Judged] = field(default_factory=list)
    whole: bool = False
    _moderators: Moderators = field(default_factory=Moderators)
    _cautioned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.settings = self.settings.with_recommended(self.engine.recommended, self.engine.name)
        self.notice = " ".join(filter(None, (self.notice, *self.engine.complaints))) or None
        if self.store is not None:
            self.talk = self.store.talk

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers, also those that the model is no longer told."""
        return self.talk.turns

    @property
    def system(self) -> str | None:
        """The person's system prompt: the talk's own, else that of the settings."""
        return self.talk.system if self.talk.system is not None else self.settings.system

    def check_length(self, text: str) -> None:
        """Raise TextTooLongError for a text that cannot fit, before its tokens are made."""
        context = self.engine.session.max_context
        needed = least_tokens(self.engine.tokenizer, text)
        if needed > context:
            raise TextTooLongError(needed, context)

    def messages(self, question: str | None = None, again: bool = False) -> list[Message]:
        """What the model is told: the system prompt, the turns that are left, the question.

        With ``again`` the question takes the place of the last one.
        """
        return self._messages(self.talk.evicted, self.talk.summary, question, again)

    def _messages(
        self, evicted: int, summary: str | None, question: str | None, again: bool
    ) -> list[Message]:
        system = system_prompt(self.settings.guardrail, self.system)
        messages = [] if system is None else [Message(Role.SYSTEM, system)]
        if summary is not None:
            messages += Turn(SUMMARY_REQUEST, summary).messages()
        turns = self.turns[evicted : len(self.turns) - again]
        messages += [each for turn in turns for each in turn.messages()]
        return messages if question is None else [*messages, Message(Role.USER, question)]

    def ask(
        self,
        question: str,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
        tell: Callable[[str], None] | None = None,
        again: bool = False,
    ) -> Iterator[ChatEvent]:
        """Answer a question and keep the turn; an answer of nothing leaves all as it was.

        Where the guardrail moderates, a Judged event comes before the answer and one after it; what
        is refused is not kept, and the last event, Finished, says ``refused``.

        With ``again`` the turn takes the place of the last one. Where the talk no longer fits, what
        ``on_full`` says is done first, and ``tell`` gets a sentence for each turn that goes. Raises
        ContextFullError for what does not fit all the same, and NotKeptError, after the last event,
        where the turn cannot be written to the session; the talk is then as it was before.
        """
        self.check_length((self.system or "") + question)
        self.last, self.verdicts = None, []
        if not (yield from self._question_passes(question, cancel, progress)):
            return
        evicted, summary = self._room_for(question, cancel, tell or _say_nothing, again)
        messages = self._messages(evicted, summary, question, again)
        kept = yield from self._reply(messages, question, "", cancel, progress)
        if kept and self.last is not None:
            events: list[Mapping[str, object]] = [{"event": "undo"}] if again else []
            # Only now: a question that was broken off must not cost a turn.
            if (evicted, summary) != (self.talk.evicted, self.talk.summary):
                events.append({"event": "evict", "turns": evicted, "summary": summary})
            turn = Turn(question, self.last.text, self.last.finish_reason, now())
            self._record_turn([*events, turn.event()])

    def go_on(
        self,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
    ) -> Iterator[ChatEvent]:
        """Let the model go on with its last answer, and keep both parts as one.

        Where the guardrail moderates, both parts are judged as one, too, and before them the
        question, if nobody judged it yet. Raises UsageError where there is no answer, and
        NotKeptError as :meth:`ask` does.
        """
        if not self.turns:
            raise UsageError("There is no answer yet to go on with.")
        turn = self.turns[-1]
        self.last, self.verdicts = None, []
        moderated = self.settings.guardrail in MODERATING
        unjudged = moderated and self._moderators.passed != (self.moderator(), turn.user)
        if unjudged and not (yield from self._question_passes(turn.user, cancel, progress)):
            return
        kept = yield from self._reply(self.messages(), turn.user, turn.assistant, cancel, progress)
        if kept and self.last is not None:
            text = turn.assistant + self.last.text
            longer = Turn(turn.user, text, self.last.finish_reason, now())
            self._record_turn([{"event": "undo"}, longer.event()])

    def moderator(self) -> Moderator:
        """Who judges with the present settings. Raises UsageError, and what loading raises."""
        moderator = self._moderators.choose(self.engine, self.settings, self.load_moderator)
        if moderator.name not in self._cautioned:
            self._cautioned.add(moderator.name)
            told = filter(None, (self.notice, caution(moderator.name)))
            self.notice = " ".join(told) or None
        return moderator

    def _question_passes(
        self,
        question: str,
        cancel: Callable[[], bool] | None,
        progress: Callable[[PrefillProgress], None] | None,
    ) -> Generator[ChatEvent, None, bool]:
        """Judge a question, where the guardrail does; where it is not to pass, that is the end."""
        stopped = yield from self._judge(Role.USER, question, "", cancel, progress)
        if stopped is None:
            if self.settings.guardrail in MODERATING:
                self._moderators.passed = self.moderator(), question
            return True
        nothing = Usage(0, 0, 0), Timings(0, 0.0, 0, 0.0)
        self.last = Finished("", stopped, *nothing, self.settings.seed)
        yield self.last
        return False

    def _judge(
        self,
        role: Role,
        text: str,
        question: str,
        cancel: Callable[[], bool] | None,
        progress: Callable[[PrefillProgress], None] | None,
    ) -> Generator[ChatEvent, None, str | None]:
        """Judge a text, where the guardrail does; the finish_reason where it is not to pass."""
        if self.settings.guardrail not in MODERATING or not text.strip():
            return None

        def report(done: int, total: int) -> None:
            if progress is not None and total > 1:
                progress(PrefillProgress(done, total))

        verdict = self.moderator().judge(text, role, question, report, cancel)
        if verdict is None:
            return "cancelled"
        judged = Judged(role, verdict)
        self.verdicts.append(judged)
        yield judged
        return "refused" if verdict.refused else None

    def _reply(
        self,
        messages: Sequence[Message],
        question: str,
        before: str,
        cancel: Callable[[], bool] | None,
        progress: Callable[[PrefillProgress], None] | None,
    ) -> Generator[ChatEvent, None, bool]:
        """The answer, which goes on after ``before``; whether there is one to keep."""
        settings = self.settings
        moderated = settings.guardrail in MODERATING
        held_back = moderated and (self.whole or settings.guardrail == STRICT)
        for event in self.engine.reply(
            messages,
            sampling_of(settings),
            settings.max_tokens,
            cancel,
            progress,
            settings.loop_detector,
        ):
            if not isinstance(event, Finished):
                if not (held_back and isinstance(event, TextDelta)):
                    yield event
                continue
            # What was broken off is judged all the same; only Ctrl-C while judging leaves it open.
            broken_off = event.finish_reason == "cancelled"
            stopped = yield from self._judge(
                Role.ASSISTANT,
                before + event.text if event.text else "",
                question,
                None if broken_off else cancel,
                progress,
            )
            if stopped is not None:
                shown = "" if held_back else event.text
                event = replace(event, text=shown, finish_reason=stopped)
            elif held_back and event.text:
                yield TextDelta(event.text)
            self.last = event
            yield event
            return stopped is None and bool(event.text)
        return False

    def _room_for(
        self,
        question: str,
        cancel: Callable[[], bool] | None,
        tell: Callable[[str], None],
        again: bool,
    ) -> tuple[int, str | None]:
        """How many turns go, and what stands for them, as ``on_full`` says."""

        def told(evicted: int, summary: str | None) -> list[Message]:
            return self._messages(evicted, summary, question, again)

        may_go = len(self.turns) - again
        return make_room(self.engine, self.settings, self.talk, may_go, told, cancel, tell)

    def undo(self) -> str:
        """Take back the last question and its answer; the question. Raises UsageError if none."""
        if not self.turns:
            raise UsageError("There is nothing to take back yet.")
        question = self.turns[-1].user
        self._record("undo")
        return question

    def composed(self, question: str) -> str:
        """The question after what was attached to it."""
        return "\n\n".join([*self.attached, question])

    def clear(self) -> None:
        """Forget all turns."""
        self._record("clear")
        self.last = None

    def set_system(self, text: str) -> None:
        """Set the talk's system prompt."""
        self._record("system", text=text)

    def fork(self, store: SessionFile) -> None:
        """Go on in another session that begins with all of this one.

        Raises OSError, with the talk where it was and the other session closed.
        """
        old = self.talk
        events: list[Mapping[str, object]] = []
        if old.system is not None:
            events.append({"event": "system", "text": old.system})
        events += [turn.event() for turn in old.turns]
        if old.evicted:
            events.append({"event": "evict", "turns": old.evicted, "summary": old.summary})
        try:
            if events:
                store.record_all(events)
        except BaseException:
            store.close()
            raise
        if self.store is not None:
            self.store.close()
        self.store, self.talk = store, store.talk

    def switch(self, store: SessionFile) -> None:
        """Go on with another session."""
        if self.store is not None:
            self.store.close()
        self.store, self.talk, self.last = store, store.talk, None

    def restore_cache(self) -> None:
        """Take up what was read of the session; a ``notice`` says why not."""
        if self.store is None or not self.settings.cache or not self.store.cache_path.exists():
            return
        try:
            self.engine.restore_cache(self.store.cache_path)
        except CacheError:
            told = "What was kept of this session is of another model or damaged; it is read anew."
            self.notice = " ".join(filter(None, (self.notice, told)))

    def keep_cache(self, warn: Callable[[str], None]) -> int:
        """As :meth:`save_cache`, where a failure is a sentence for ``warn``: it costs no turn."""
        try:
            return self.save_cache()
        except (OSError, QuantError) as error:
            warn(f"What was read could not be kept: {sentence(error)}")
            return 0

    def save_cache(self) -> int:
        """Keep what was read for the next start; its bytes, 0 where nothing is kept.

        Raises OSError.
        """
        told = self.messages()
        if self.store is None or not self.settings.cache:
            return 0
        if not told or told[-1].role is not Role.ASSISTANT:
            return 0
        # Of the conversation only: a refused answer was read, too, and is not to be kept.
        size = self.engine.save_cache(self.store.cache_path, told)
        prune_caches(self.store.path.parent)
        return size

    def parts(self) -> list[Part]:
        """What fills the context, in order; the last part is what is free."""
        # Some templates encode nothing without a question.
        messages = self.messages(None if len(self.turns) > self.talk.evicted else "?")
        guarded = self.settings.guardrail != OFF
        return parts_of(self.engine, self.talk, messages, self.system, guarded)

    def _record(self, event: str, **values: object) -> None:
        self._add({"event": event, **values})

    def _record_turn(self, events: Sequence[Mapping[str, object]]) -> None:
        """Record a turn, and what goes for it, in one line: a kill keeps all of it or nothing."""
        try:
            self._add(events[0] if len(events) == 1 else {"event": "together", "events": events})
        except (OSError, UsageError) as error:
            raise NotKeptError(error) from error

    def _add(self, event: Mapping[str, object]) -> None:
        if self.store is not None:
            self.store.record_all([event])
        else:
            self.talk.apply(event)
