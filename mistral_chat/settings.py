"""The table of settings, and where each value comes from.

A value is taken from the first of: command-line flag, environment, ``config.toml``, default.
The fields of :class:`Settings` are the table; flags, keys of the file, ``/set`` names and help
are all read from it, so a default or a name is written once.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import PlatformDirs

from mistral_chat.errors import UsageError
from mistral_chat.system.files import expanded, is_missing, read_text

APPLICATION = "mistral-chat"
HOME_VARIABLE = "MISTRAL_CHAT_HOME"

OFF, PROMPT, MODERATE, STRICT = "off", "prompt", "moderate", "strict"
MODES = (OFF, PROMPT, MODERATE, STRICT)
"""Of the guardrail. Each does what the one before it does, and more: ``prompt`` places the system
prompt, ``moderate`` classifies questions and answers, ``strict`` shows no answer before it is
classified.
"""

MODERATING = (MODERATE, STRICT)

MOST_CONFIG_BYTES = 1_000_000
"""What is read of ``config.toml``; the longest that anybody writes is a system prompt."""

_WORDS = {"on": True, "true": True, "yes": True, "1": True} | dict.fromkeys(
    ("off", "false", "no", "0"), False
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: ``kind`` is str, int, float or bool; bounds are inclusive.

    ``live`` says that it may change between two answers; the others need a new start.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: int | None = None
    live: bool = False

    @property
    def flag(self) -> str:
        """The command-line flag, such as ``--top-p``."""
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        """The environment variable, such as ``MISTRAL_CHAT_TOP_P``."""
        return "MISTRAL_CHAT_" + self.name.upper()

    def check(self, value: object, place: str) -> Any:
        """``value`` as this setting's type.

        Raises UsageError, naming ``place`` (where the value was written), if it is not one.
        """
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # such a number stays what it is, and no float
                value = float(value)
        if type(value) is not self.kind:
            wanted = {str: "text", int: "a whole number", float: "a number", bool: "on or off"}
            raise UsageError(
                f"{place}: {self.name} must be {wanted[self.kind]}, not {brief(value)}."
            )
        if isinstance(value, str):
            check_text(value, f"{place}: {self.name}")
        if self.choices and value not in self.choices:
            raise UsageError(
                f"{place}: {self.name} must be {' or '.join(self.choices)}, not {brief(value)}."
            )
        # Written so that a NaN, which compares false with everything, is refused too.
        if self.minimum is not None and not value >= self.minimum:  # type: ignore[operator]
            raise UsageError(f"{place}: {self.name} must be at least {self.minimum:g}.")
        if self.maximum is not None and value > self.maximum:  # type: ignore[operator]
            raise UsageError(f"{place}: {self.name} must be at most {self.maximum}.")
        return value

    def parse(self, text: str, place: str) -> Any:
        """``text``, as typed by a person, as this setting's type; raises UsageError."""
        value: object = text
        if self.kind is bool:
            value = _WORDS.get(text.lower(), text)
        elif self.kind is not str:
            try:
                value = self.kind(text)
            except ValueError:
                value = text
        return self.check(value, place)


def _row(kind: type, default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "help": text, **more})


@dataclass(frozen=True)
class Settings:
    """Every setting, resolved. ``None`` means: left to the model or to chance.

    >>> Settings().model
    'smollm2'
    """

    model: str = _row(str, "smollm2", "Name of a model, or path of one.")
    context: int = _row(
        int,
        4096,
        "Tokens the context holds, at most; the model may have been made for fewer.",
        minimum=1,
    )
    threads: int | None = _row(
        int, None, "Processor threads (default: one for each core).", minimum=1, maximum=1024
    )
    device: str = _row(
        str,
        "cpu",
        "What computes: the processor, an NVIDIA GPU, or the GPU if there is one.",
        choices=("cpu", "cuda", "auto"),
    )
    gpu_layers: int | None = _row(
        int, None, "Layers on the GPU; the others stay on the processor (default: all).", minimum=0
    )
    temperature: float = _row(
        float, 0.7, "Randomness; 0 always takes the likeliest token.", minimum=0, live=True
    )
    top_k: int = _row(
        int, 0, "Choose among this many likeliest tokens; 0 for all.", minimum=0, live=True
    )
    top_p: float = _row(
        float, 1.0, "Choose among the likeliest tokens of this total.", minimum=0, live=True
    )
    min_p: float = _row(
        float, 0.05, "Drop tokens below this share of the likeliest.", minimum=0, live=True
    )
    repetition_penalty: float = _row(
        float, 1.0, "Above 1, words already used become less likely.", minimum=0, live=True
    )
    seed: int | None = _row(
        int, None, "Seed of the randomness (default: a new one each time).", minimum=0, live=True
    )
    max_tokens: int | None = _row(
        int, None, "Tokens an answer may have (default: what the context holds).", minimum=1,
        live=True,
    )  # fmt: skip
    loop_detector: bool = _row(
        bool, True, "Stop an answer that repeats itself without end.", live=True
    )
    on_full: str = _row(
        str,
        "slide",
        "What to do where a talk no longer fits: stop and say so, let the oldest turns slide out, "
        "or put a summary in their place.",
        choices=("stop", "slide", "summarize"),
        live=True,
    )
    guardrail: str = _row(
        str,
        OFF,
        "prompt puts the paper's safety prompt before the system prompt, moderate classifies "
        "questions and answers, too, and strict shows no answer before it is classified.",
        choices=MODES,
        live=True,
    )
    categories: str | None = _row(
        str,
        None,
        "What moderation tells apart: paper, mistral, llama-guard or a TOML file (default: the "
        "paper's, or Llama Guard's for a moderator of its kind).",
        live=True,
    )
    moderator: str | None = _row(str, None, "Model that moderates (default: the one that answers).")
    system: str | None = _row(str, None, "System prompt (default: the model's own).")
    system_position: str | None = _row(
        str,
        None,
        "Where Mistral's formats before v7 put the system prompt: before the first message of the "
        "user, which keeps what is cached, or before the last (default: as Mistral's reference).",
        choices=("first", "last"),
    )
    kv: str = _row(
        str, "f16", "How the cache is held; int8 takes half the memory.", choices=("f16", "int8")
    )
    prefill: str = _row(
        str, "exact", "How the prompt is read; fast rounds more.", choices=("exact", "fast")
    )
    private: bool = _row(bool, False, "Keep nothing of this talk on the disk.")
    cache: bool = _row(
        bool, True, "Keep what was read of a session, so that resuming it costs no prefill."
    )
    plain: bool = _row(
        bool, False, "Print answers as they are, without colours or moving the cursor.", live=True
    )
    theme: str = _row(
        str, "auto", "Colours of code, for a dark or a light terminal.",
        choices=("auto", "dark", "light"), live=True,
    )  # fmt: skip
    vi: bool = _row(bool, False, "Edit the line with the keys of vi.")
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def source(self, name: str) -> str:
        """Where a value was written: a flag, a variable, a file, or ``default``."""
        return self.sources.get(name, "default")

    def with_recommended(self, values: Mapping[str, object], place: str) -> Settings:
        """These settings, with a model's own ``values`` where nobody has said anything.

        Raises UsageError, naming ``place``, for a value that cannot be.
        """
        rows = _rows()
        chosen = {
            name: rows[name].check(value, place)
            for name, value in values.items()
            if name in rows and rows[name].live and self.source(name) == "default"
        }
        sources = {**self.sources, **dict.fromkeys(chosen, place)}
        return replace(self, **chosen, sources=sources)


def _rows() -> dict[str, Setting]:
    return {
        row.name: Setting(name=row.name, default=row.default, **row.metadata)
        for row in fields(Settings)
        if row.default is not MISSING
    }


def setting(name: str) -> Setting:
    """The row of that name; raises UsageError with the nearest name if there is none.

    >>> setting("top_p").flag
    '--top-p'
    """
    rows = _rows()
    if name not in rows:
        raise UsageError(f"There is no setting named {name!r}{nearest(name, rows)}")
    return rows[name]


def all_settings() -> tuple[Setting, ...]:
    """All rows, in the order of the table."""
    return tuple(_rows().values())


def live_settings() -> tuple[Setting, ...]:
    """The rows that may change between two answers, in the order of the table."""
    return tuple(row for row in _rows().values() if row.live)


def nearest(name: str, names: Mapping[str, object]) -> str:
    """The end of a sentence about an unknown name: the likeliest of ``names``, or a full stop.

    >>> nearest("temprature", {"temperature": 0, "seed": 1})
    "; did you mean 'temperature'?"
    """
    matches = get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else "."


def check_text(value: str, name: str) -> None:
    """Raise UsageError for a text that was not UTF-8; its bytes arrive as halves of pairs."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (character {error.start}); write it in UTF-8."
        ) from error


def brief(value: object) -> str:
    """A value as a sentence about it shows it, cut off where it is long.

    >>> brief("two"), brief(10**100)
    ("'two'", '10000000000000000000000000000000000000000000000000 ...')
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]} ..."


@dataclass(frozen=True, slots=True)
class Paths:
    """The four folders the application writes to; none is made until something is written."""

    config: Path
    data: Path
    state: Path
    cache: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Paths:
        """The platform's folders, or four below MISTRAL_CHAT_HOME where that is set."""
        home = environ.get(HOME_VARIABLE)
        if home:
            root = expanded(home).absolute()
            return cls(root / "config", root / "data", root / "state", root / "cache")
        folders = PlatformDirs(APPLICATION, appauthor=False)
        return cls(
            folders.user_config_path,
            folders.user_data_path,
            folders.user_state_path,
            folders.user_cache_path,
        )

    @property
    def config_file(self) -> Path:
        """The person's own settings."""
        return self.config / "config.toml"

    @property
    def models(self) -> Path:
        """One folder for each installed model."""
        return self.data / "models"

    @property
    def sessions(self) -> Path:
        """One file for each talk that was kept."""
        return self.state / "sessions"

    @property
    def history_file(self) -> Path:
        """What was typed at the prompt."""
        return self.state / "history"


def _read_config(path: Path) -> dict[str, object]:
    if is_missing(path):
        return {}
    return parse_toml(read_text(path, MOST_CONFIG_BYTES), str(path))


def parse_toml(text: str, place: str) -> dict[str, Any]:
    """The values of a TOML text; raises UsageError that names ``place``."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{place} is not valid TOML: {error}.") from error
    except (ValueError, RecursionError) as error:
        # Python reads no number of thousands of digits, and its parser calls itself for each level.
        raise UsageError(
            f"{place} cannot be read: a number in it is too long, or its values are nested too "
            "deeply."
        ) from error


def resolve(flags: Mapping[str, object], environ: Mapping[str, str], paths: Paths) -> Settings:
    """Settings from flags (``None`` where not given), environment and the config file.

    Raises UsageError for a broken file, an unknown key or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    rows = _rows()
    place = str(paths.config_file)
    for name, value in _read_config(paths.config_file).items():
        if name not in rows:
            raise UsageError(f"{place}: there is no setting named {name!r}{nearest(name, rows)}")
        values[name] = rows[name].check(value, place)
        sources[name] = place
    for name, row in rows.items():
        if environ.get(row.environment):
            values[name] = row.parse(environ[row.environment], row.environment)
            sources[name] = row.environment
        if flags.get(name) is not None:
            values[name] = row.check(flags[name], row.flag)
            sources[name] = row.flag
    return Settings(**values, sources=sources)
