"""What a name of the hub means, and which files of a repository are a model."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mistral_chat.errors import ModelMissingError, UsageError
from mistral_chat.models.names import HUB_MODELS
from mistral_chat.models.repositories import RemoteFile, Repository
from quant.checkpoints.folders import choose_files

GGUF = ".gguf"
MOST_NAMES = 12
COMPANIONS = (
    "generation_config.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Small files that a model's folder may have beside its weights; patterns."""

_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

_ADDRESS = re.compile(
    r"(?:https?://[^/]+/|hf\.co/|huggingface\.co/)?"
    r"(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob|tree)/(?P<branch>[^/]+))?"
    r"(?:@(?P<revision>[\w.-]+))?"
    r"(?:[/:](?P<file>[^?:@]+))?(?:\?.*)?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of the hub, at a revision (None: its main branch), and a GGUF file in it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, name: str) -> Reference | None:
        """What a name or an address of the hub means; None where it is neither.

        >>> Reference.parse("org/repo")
        Reference(repository='org/repo', revision=None, file=None)
        >>> Reference.parse("org/repo/folder/model.gguf").file
        'folder/model.gguf'
        >>> Reference.parse("hf.co/org/repo@v2:Q4_0")
        Reference(repository='org/repo', revision='v2', file='Q4_0')
        >>> Reference.parse("https://huggingface.co/org/repo/blob/main/m.gguf?download=true")
        Reference(repository='org/repo', revision='main', file='m.gguf')
        """
        if name in HUB_MODELS:
            return cls(HUB_MODELS[name].repository)
        found = _ADDRESS.fullmatch(name)
        if found is None:
            return None
        revision = found["branch"] or found["revision"]
        return cls(found["repository"], revision, found["file"] or None)


def chosen_gguf(repository: Repository, file: str) -> RemoteFile:
    """The GGUF file of that name, or the one that has it as a part of its name.

    Raises ModelMissingError, which tells the GGUF files, where there is not exactly one, and
    UsageError for a part of a file that was split.
    """
    ggufs = _ggufs(repository)
    fitting = [name for name in ggufs if name == file]
    fitting = fitting or [name for name in ggufs if file.lower() in name.lower()]
    parts = [part for part in map(_PART.search, fitting) if part and int(part["count"]) > 1]
    if parts and len(parts) == len(fitting):
        raise UsageError(
            f"{fitting[0]} of {repository.name} is part {int(parts[0]['number'])} of "
            f"{int(parts[0]['count'])} of a GGUF file that was split, and parts are not read; "
            "choose a file that is whole, or fetch all parts by other means and put them together "
            "with llama-gguf-split --merge."
        )
    if len(fitting) != 1:
        several = "several GGUF files" if fitting else "no GGUF file"
        raise ModelMissingError(
            f"{repository.name} has {several} named like {file!r}; it has {_names(ggufs)}."
        )
    return ggufs[fitting[0]]


def _ggufs(repository: Repository) -> dict[str, RemoteFile]:
    return {each.name: each for each in repository.files if each.name.endswith(GGUF)}


def chosen_files(
    repository: Repository, read_index: Callable[[], object]
) -> tuple[RemoteFile, ...]:
    """The files of a model: weights as Hugging Face or Mistral names them, and what belongs there.

    ``read_index`` gives the content of the index, where there is one that counts. Raises
    ModelMissingError, which tells the GGUF files if there is nothing else, or names the file that
    the index names and the repository lacks; and what reading the index raises.
    """
    names = {each.name: each for each in repository.files if "/" not in each.name}
    chosen = choose_files(names, read_index)
    ggufs = _ggufs(repository)
    if chosen is None and ggufs:
        raise ModelMissingError(
            f"{repository.name} holds GGUF files; name one of them, as in {repository.name}/"
            f"{next(iter(ggufs))}: {_names(ggufs)}."
        )
    if chosen is None:
        raise ModelMissingError(
            f"{repository.name} holds no weights in safetensors or GGUF files; choose a repository "
            "that does."
        )
    missing = [name for name in chosen.weights if name not in names]
    if missing:
        raise ModelMissingError(
            f"The index of {repository.name} names {_names(missing)}, which is not in the "
            "repository; choose another repository or revision."
        )
    wanted = [chosen.config, *([chosen.index] if chosen.index else []), *chosen.weights]
    for pattern in COMPANIONS:
        wanted += fnmatch.filter(names, pattern)
    return tuple(names[name] for name in dict.fromkeys(wanted))


def _names(files: Sequence[str] | Mapping[str, object]) -> str:
    shown = sorted(files)[:MOST_NAMES]
    more = len(files) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"
