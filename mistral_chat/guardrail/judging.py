"""Verdicts in a talk: what a person is told of them, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mistral_chat.guardrail.moderation import Loaded, Moderator, open_moderator
from mistral_chat.guardrail.prompt import Action, Verdict
from mistral_chat.messages import Role
from mistral_chat.settings import Settings


@dataclass(frozen=True, slots=True)
class Judged:
    """What the moderation found a question (``role`` user) or an answer to be."""

    role: Role
    verdict: Verdict

    @property
    def what(self) -> str:
        """``question`` or ``answer``."""
        return "question" if self.role is Role.USER else "answer"

    def sentence(self) -> str | None:
        """What a person is told: nothing where the text passes without a word."""
        match self.verdict.action:
            case Action.REFUSE:
                return f"The {self.what} was refused: {self.verdict.reason()}."
            case Action.WARN:
                return f"Note: the {self.what} was classified as {self.verdict.reason()}."
        return None

    def record(self) -> dict[str, object]:
        """The verdict as JSON prints it."""
        return {"role": self.role.value, **self.verdict.record()}


@dataclass
class Moderators:
    """The moderator of a talk. No model is loaded twice, and none is opened where nothing changed.

    ``passed`` is the last question that was let pass, and by whom.
    """

    passed: tuple[Moderator, str] | None = None
    _loaded: tuple[str, Loaded] | None = None
    _present: Moderator | None = None
    _present_of: tuple[Loaded, str | None] | None = None

    def choose(
        self, engine: Loaded, settings: Settings, load: Callable[[str], Loaded] | None
    ) -> Moderator:
        """Who judges with these settings: the model that they name, by ``load``, or ``engine``.

        Raises UsageError, and what loading raises.
        """
        loaded = engine
        if settings.moderator is not None and load is not None:
            if self._loaded is None or self._loaded[0] != settings.moderator:
                self._loaded = settings.moderator, load(settings.moderator)
            loaded = self._loaded[1]
        key = loaded, settings.categories
        if self._present is None or self._present_of != key:
            self._present, self._present_of = open_moderator(loaded, settings.categories), key
        return self._present
