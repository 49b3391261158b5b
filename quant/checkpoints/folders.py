"""Float checkpoints in one or several safetensors files, as Hugging Face and Mistral publish them.

Both lay out the same tensors under other names (``names.py``). Hugging Face's rows of ``q`` and
``k`` are in this engine's order, Mistral's interleave the pairs that RoPE turns.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig, from_huggingface, from_params, read_json
from ..errors import CheckpointError, ConfigError
from ..qtensor import Floats, QuantSpec
from ..weights import Matrix
from .names import half_split_order, huggingface_name, mistral_name, tensor_names, tensor_shape
from .tensors import SafetensorsFile, digest_of

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PARAMS, CONSOLIDATED = "params.json", "consolidated*.safetensors"

MOST_INDEX = 1 << 25
"""Bytes of the largest index that is read."""

SAFETENSORS = ".safetensors"

_HARMLESS = re.compile(r".*rotary_emb\.inv_freq|lm_head\.weight|output\.weight")
"""Tensors that may be stored beside those that are read: RoPE's frequencies follow from its base,
and with tied embeddings the head is a copy."""


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """The files of a folder that are its model: all others beside them do not count.

    ``index`` is the name of the index where one names the ``weights``, else None.
    """

    config: str
    weights: tuple[str, ...]
    index: str | None = None


def choose_files(names: Collection[str], read_index: Callable[[], object]) -> ChosenFiles | None:
    """Which files are the model in a folder that holds files of these names; None for no model.

    Hugging Face's come before Mistral's, and the one file before an index, as in transformers: its
    ``save_pretrained`` leaves the index of an earlier, larger save behind. ``read_index`` is called
    for the content of the index where it counts. Raises what :func:`shards` raises.

    >>> choose_files({"config.json", "model.safetensors", INDEX}, dict).weights
    ('model.safetensors',)
    """
    if CONFIG in names and SINGLE in names:
        return ChosenFiles(CONFIG, (SINGLE,))
    if CONFIG in names and INDEX in names:
        return ChosenFiles(CONFIG, tuple(sorted(set(shards(read_index()).values()))), INDEX)
    consolidated = sorted(fnmatch.filter(names, CONSOLIDATED))
    if PARAMS in names and consolidated:
        return ChosenFiles(PARAMS, tuple(consolidated))
    return None


def shards(index: object, place: object = INDEX) -> dict[str, str]:
    """The file that an index, which lies at ``place``, names for each tensor.

    Raises :class:`~quant.errors.ConfigError` where it names none, and
    :class:`~quant.errors.CheckpointError` where a name is not that of a safetensors file in the
    same folder.
    """
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named:
        raise ConfigError(f"{place} has no weight_map; fetch it again.")
    if not all(isinstance(file, str) for file in named.values()):
        raise ConfigError(f"{place} has no weight_map of names; fetch it again.")
    for file in named.values():
        if Path(file).name != file or "\\" in file:
            raise CheckpointError(f"{place} names {file!r}, which is outside the folder.")
        if not file.endswith(SAFETENSORS):
            raise CheckpointError(f"{place} names {file!r}, which is no safetensors file.")
    return named


class FolderCheckpoint:
    """A checkpoint of floats; see :class:`~quant.checkpoints.checkpoint.Checkpoint`.

    ``files`` maps each tensor's name to the file that holds it. Raises
    :class:`~quant.errors.CheckpointError`, naming the tensor, where one is missing, has a wrong
    shape, or is one that the model of this ``config`` does not have.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        config: ModelConfig,
        files: Mapping[str, SafetensorsFile],
        rename: Callable[[str], str],
        interleaved: bool,
    ) -> None:
        self.format = kind
        self.source = folder.resolve().name
        self.config = config
        self.import_errors: dict[str, float] = {}
        self._files = files
        self._rename = rename
        self._interleaved = interleaved
        names = tensor_names(config)
        for name in names:
            self._check(folder, name)
        foreign = sorted(set(files) - {rename(name) for name in names})
        for name in foreign:
            if not _HARMLESS.fullmatch(name):
                raise CheckpointError(
                    f"{folder} holds the tensor {name}, which a model of its configuration does "
                    "not have; it would be computed wrongly."
                )

    def digest(self) -> str:
        paths = {file.path for file in self._files.values()}
        return digest_of(sorted(paths))

    def stored(self, name: str) -> tuple[str, int]:
        place = self._files[self._rename(name)].tensors[self._rename(name)]
        return place.dtype, place.end - place.start

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        return tensor_shape(self.config, name), None

    def read(self, name: str) -> Matrix:
        return self.read_rows(name, 0, tensor_shape(self.config, name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        there = self._rename(name)
        rows = self._files[there].read_rows(there, start, stop)
        if self._interleaved and name.endswith((".q", ".k")):
            return rows[half_split_order(stop - start, self.config.head_dim)]
        return rows

    def _check(self, folder: Path, name: str) -> None:
        there = self._rename(name)
        if there not in self._files:
            raise CheckpointError(
                f"{folder} has no tensor {there}; a file of the model is missing or its "
                "configuration is another's."
            )
        shape = self._files[there].float_place(there).shape
        expected = tensor_shape(self.config, name)
        if shape != expected:
            raise CheckpointError(
                f"{folder}: the tensor {there} has the shape {shape}; the model's geometry asks "
                f"for {expected}."
            )


def open_huggingface(folder: Path) -> FolderCheckpoint:
    """A Hugging Face folder: ``config.json`` and one or several safetensors files.

    Raises :class:`~quant.errors.CheckpointError` and :class:`~quant.errors.ConfigError`.
    """
    generation = folder / GENERATION_CONFIG
    more = read_json(generation) if generation.exists() else None
    config = from_huggingface(read_json(folder / CONFIG), more)
    chosen = choose_files(_names_in(folder), lambda: read_json(folder / INDEX))
    is_sharded = chosen is not None and chosen.index is not None
    files = _sharded(folder) if is_sharded else _all([folder / SINGLE])
    return FolderCheckpoint(
        folder, "Hugging Face folder", config, files, huggingface_name, interleaved=False
    )


def open_mistral(folder: Path) -> FolderCheckpoint:
    """Mistral's own folder: ``params.json`` and ``consolidated.safetensors``.

    Raises :class:`~quant.errors.CheckpointError` and :class:`~quant.errors.ConfigError`.
    """
    files = _all(sorted(folder.glob(CONSOLIDATED)))
    embedding = files.get(mistral_name("embedding"))
    if embedding is None:
        raise CheckpointError(f"{folder} has no tensor {mistral_name('embedding')}.")
    shape = embedding.tensors[mistral_name("embedding")].shape
    config = from_params(read_json(folder / PARAMS), shape[0] if shape else 0)
    return FolderCheckpoint(folder, "Mistral folder", config, files, mistral_name, interleaved=True)


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _all(paths: Sequence[Path]) -> dict[str, SafetensorsFile]:
    """Every tensor of the files, by its name; raises CheckpointError for one that is in two."""
    found: dict[str, SafetensorsFile] = {}
    for path in paths:
        file = SafetensorsFile(path)
        for name in file.tensors:
            if name in found:
                raise CheckpointError(f"{path}: {found[name].path.name} holds {name}, too.")
            found[name] = file
    return found


def _is_there(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is none."""
    try:
        return path.exists()
    except OSError:
        return False


def _sharded(folder: Path) -> dict[str, SafetensorsFile]:
    """Every tensor of the shards that the index names, and of those alone."""
    index = shards(read_json(folder / INDEX, MOST_INDEX), folder / INDEX)
    found: dict[str, SafetensorsFile] = {}
    for file in sorted(set(index.values())):
        if not _is_there(folder / file):
            raise CheckpointError(
                f"The shard {file} is missing in {folder}; fetch it from where the others came."
            )
        found[file] = SafetensorsFile(folder / file)
    for name, file in index.items():
        if name not in found[file].tensors:
            raise CheckpointError(
                f"{folder / INDEX} says that {file} holds {name}, but it does not; fetch it again."
            )
    return {name: shard for shard in found.values() for name in shard.tensors}
