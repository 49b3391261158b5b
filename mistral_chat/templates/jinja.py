"""Any other chat template: the Jinja text of the model's file, run by an interpreter that counts.

A template makes one string of the conversation, in which the control pieces it wrote and those a
person typed look alike. The interpreter's texts know the owner of each letter
(:mod:`~mistral_chat.templates.owned`), so whatever control piece the template itself wrote becomes
an id, and the texts between are encoded, which gives no control id.

The owners also tell whether all that was said was written. Where it was not, the template is asked
once more with each message as a list of parts, as some expect it. A template that writes no system
messages, or refuses them, gets their text before the first message of the user, as Mistral's v1
format has it. What vanishes in spite of that is refused: nobody is answered on half a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import TemplateSyntaxError, nodes

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.printable import without_controls
from mistral_chat.templates.budget import (
    Budget,
    TemplateFaultError,
    TemplateLimitError,
    TemplateRefusalError,
)
from mistral_chat.templates.interpreter import Interpreter, parse
from mistral_chat.templates.ledger import Ledger, end_of
from mistral_chat.templates.owned import TEMPLATE, Owned
from mistral_chat.templates.parts import (
    ChatTemplate,
    Control,
    Part,
    Segment,
    Text,
    check_roles,
    encode_parts,
    middle_of,
)
from mistral_chat.templates.values import ContentPart
from mistral_chat.tokenizers import Tokenizer
from quant.errors import CheckpointError

LONGEST_SOURCE = 1 << 17
"""Letters of a template; the longest that models come with have a quarter of these."""

_ANSWERS = tuple(re.compile(f"[\"'`‘“]{word}[\"'`’”]") for word in ("safe", "unsafe"))
"""How Llama Guard's templates, and those made after them, name the answers that they ask for."""

_LONGEST_REASON = 300

_SYSTEM, _QUESTION = Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "Hello")
_PROBES = tuple(
    (*system, *talk)
    for talk in ((_QUESTION, Message(Role.ASSISTANT, "Hi"), _QUESTION), (_QUESTION,))
    for system in ((), (_SYSTEM,))
)
"""Conversations that tell how a template ends an answer; some demand a system prompt, and what
takes a single question ends an answer as it ends that."""


class _EndlessError(CheckpointError):
    """A template takes more time or memory than it may; asking it in another way is of no use."""


class JinjaTemplate(ChatTemplate):
    """The template in a model's file.

    ``markers`` are words of the template that are plain text in its vocabulary; one of which a
    letter was typed is broken up. Raises CheckpointError for Jinja text that does not parse or runs
    without end.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, source: str, markers: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._tree = _parsed(source.removeprefix("\ufeff"))  # a byte-order mark is no text
        literal = _literal_text(self._tree)
        self.judges = all(answer.search(literal) for answer in _ANSWERS)
        self._pieces = re.compile(
            "|".join(map(re.escape, sorted(tokenizer.controls, key=len, reverse=True))) or r"(?!)"
        )
        ends = [tokenizer.eos_id, *self._ends()]
        self.stop_ids = tuple(dict.fromkeys(token for token in ends if token is not None))

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The parts and their ids, BOS once; raises UsageError where the template refuses."""
        check_roles(messages)
        return self._segments(messages)

    def transcript(self, messages: Sequence[Message]) -> list[Segment]:
        """The parts and their ids, for a template that judges."""
        return self._segments(messages) if self.judges else super().transcript(messages)

    def _segments(self, messages: Sequence[Message]) -> list[Segment]:
        parts = self.parts(messages)
        bos = self._tokenizer.bos_id
        if bos is not None and self._tokenizer.adds_bos:
            begin = Control(self._tokenizer.show([bos]))
            parts = parts if parts[:1] == [begin] else [begin, *parts]
        return encode_parts(self._tokenizer, parts)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """What the template writes: control pieces that are its own, and texts.

        Raises UsageError where the template refuses the conversation or leaves out some of it,
        CheckpointError where it cannot be run.
        """
        return self._cut(*self._written(messages))

    def writes_system(self) -> bool:
        """Whether the template writes a system message by itself."""
        messages = [_SYSTEM, _QUESTION]
        try:
            return len(self._written(messages)[1].texts) == len(messages)
        except (UsageError, CheckpointError):
            return False

    def _written(self, messages: Sequence[Message]) -> tuple[Owned, Ledger]:
        """What the template writes, in the first of the ways to ask it that leaves nothing out."""
        ways = [(messages, False), (messages, True)]
        if any(message.role is Role.SYSTEM for message in messages):
            with_user = system_with_user(messages)
            ways += [(with_user, False), (with_user, True)]
        errors: list[UsageError | CheckpointError] = []
        for given, in_parts in ways:
            ledger = Ledger(given)
            try:
                written = self._render(given, ledger, in_parts)
            except _EndlessError:
                raise
            except (UsageError, CheckpointError) as error:
                errors.append(error)
                continue
            place = ledger.left_out(written)
            if place is None:
                return written, ledger
            role = given[place].role.value
            errors.append(
                UsageError(
                    f"The model's chat template leaves out what message {place + 1} says, which "
                    f"is from {role}; choose another model, or another file of this one."
                )
            )
        raise errors[0]

    def _cut(self, written: Owned, ledger: Ledger) -> list[Part]:
        """The parts of what was written; a control piece is one that the template alone wrote."""
        parts: list[Part] = []
        begin = end = 0
        for own, run in written.runs():
            for match in self._pieces.finditer(run.text) if own else ():
                parts += self._text(written[begin : end + match.start()], ledger)
                parts += [Control(match.group())]
                begin = end + match.end()
            end += len(run)
        return parts + self._text(written[begin:], ledger)

    def _text(self, written: Owned, ledger: Ledger) -> list[Part]:
        """The part for a text, if there is one."""
        breaks = tuple(
            match.start() + middle_of(marker)
            for marker in self._markers
            for match in re.finditer(f"(?={re.escape(marker)})", written.text)
            if written[match.start() : match.start() + len(marker)].owners.strip(TEMPLATE)
        )
        return [Text(written.text, ledger.role(written), breaks=breaks)] if written else []

    def _ends(self) -> list[int]:
        """The control id that follows an answer, after white space at most, where one does."""
        for probe in _PROBES:
            try:
                written, ledger = self._written(probe)
            except _EndlessError:
                raise
            except (UsageError, CheckpointError):  # told where a real conversation has it, too
                continue
            roles = [message.role for message in ledger.messages]
            ending = Role.ASSISTANT if Role.ASSISTANT in roles else Role.USER
            after = written[end_of(written, ledger, roles.index(ending)) :].strip(right=False)
            own, run = next(iter(after.runs()), (False, after))
            match = self._pieces.match(run.text) if own else None
            return [] if match is None else [self._tokenizer.controls[match.group()]]
        return []

    def _render(self, messages: Sequence[Message], ledger: Ledger, in_parts: bool) -> Owned:
        said: list[object] = list(ledger.texts)
        if in_parts:
            kind = Owned.of("text")
            said = [[ContentPart(_mapping(type=kind, text=text))] for text in ledger.texts]
        values = {
            **self._marks(),
            "messages": [
                _mapping(role=Owned.of(message.role.value), content=text)
                for message, text in zip(messages, said, strict=True)
            ],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        budget = Budget(len(messages), sum(len(message.text) for message in messages))
        try:
            return Interpreter(budget).run(self._tree, values)
        except TemplateRefusalError as error:
            raise UsageError(
                f"The model's chat template refuses this conversation: {_reason(error)}"
            ) from error
        except TemplateLimitError as error:
            raise _EndlessError(
                f"The model's chat template {error}; choose another file of this model."
            ) from error
        # A template is a program from elsewhere: what it does wrong comes as any exception.
        except (TemplateFaultError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The model's chat template cannot be run ({_reason(error)}); choose another file "
                "of this model."
            ) from error
        except (AttributeError, RecursionError, MemoryError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise CheckpointError(
                f"The model's chat template cannot be run ({reason}); choose another file of this "
                "model."
            ) from error

    def _marks(self) -> dict[str, object]:
        """What transformers tells a template of the special tokens; what is not there is absent."""
        marks: dict[str, object] = {
            name: Owned.of(piece) if isinstance(piece, str) else [Owned.of(each) for each in piece]
            for name, piece in self._tokenizer.special_tokens.items()
        }
        ids = {"bos_token": self._tokenizer.bos_id, "eos_token": self._tokenizer.eos_id}
        shown = {
            name: Owned.of(self._tokenizer.show([token]))
            for name, token in ids.items()
            if token is not None
        }
        return {**marks, **shown}


def _parsed(source: str) -> nodes.Template:
    """The tree of a template; raises CheckpointError for text that is none."""
    try:
        if len(source) > LONGEST_SOURCE:
            raise ValueError(f"it has {len(source)} letters, and may have {LONGEST_SOURCE}")
        tree = parse(source)
        _literal_text(tree).encode("utf-8")
    # Numbers of thousands of digits and halves of surrogate pairs are ValueErrors.
    except (TemplateSyntaxError, RecursionError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"The model's chat template does not parse ({_reason(error)}); choose another file of "
            "this model."
        ) from error
    return tree


def _reason(error: Exception) -> str:
    """What an exception says, on one line that steers no terminal and is not long."""
    text = " ".join(without_controls(str(error)).split())
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def _mapping(**values: object) -> dict[Owned, object]:
    return {Owned.of(name): value for name, value in values.items()}


def system_with_user(messages: Sequence[Message]) -> list[Message]:
    r"""The conversation with its system messages put before the first one from the user.

    >>> system_with_user([Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "Hi")])[0].text
    'Be brief\n\nHi'
    """
    system = [message.text for message in messages if message.role is Role.SYSTEM and message.text]
    others = [message for message in messages if message.role is not Role.SYSTEM]
    first = next((place for place, each in enumerate(others) if each.role is Role.USER), None)
    if first is not None:
        others[first] = Message(Role.USER, "\n\n".join([*system, others[first].text]))
    return others


def _literal_text(tree: nodes.Template) -> str:
    """What a template holds to be written: its text and the strings in it, without comments."""
    texts = [each.data for each in tree.find_all(nodes.TemplateData)]
    strings = [each.value for each in tree.find_all(nodes.Const) if isinstance(each.value, str)]
    return "\n".join([*texts, *strings])
