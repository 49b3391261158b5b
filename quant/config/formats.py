"""Configurations as the formats tell them: GGUF, Hugging Face, Mistral's own.

What a file tells and this engine does not compute is refused by name: passed over, it would be a
wrong answer without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError, UnsupportedError
from .geometry import ARCHITECTURES, MOST_LAYERS, ModelConfig, is_whole


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The configuration in a GGUF's metadata; ``tensors`` maps names to shapes (rows first).

    Raises :class:`~quant.errors.UnsupportedError` for an architecture or a rope scaling that is not
    computed here, :class:`~quant.errors.ConfigError` for a missing or senseless value.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"The model's architecture is {architecture!r}; "
            f"supported are {', '.join(ARCHITECTURES)}."
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise UnsupportedError("The model is a mixture of experts, which is not supported.")

    layers = metadata.get(f"{architecture}.block_count")

    def number(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value) == layers:
            value = value[0]  # told for each layer
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"The file does not say the model's {name}, or says {value!r}.")
        # 1e-5 is stored as a float32, 9.99999974e-06; what was meant is its shortest decimal.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    if metadata.get(f"{architecture}.attention.sliding_window_pattern"):
        raise UnsupportedError(
            "The model has a pattern of sliding windows (attention.sliding_window_pattern), which "
            "is not supported in GGUF files."
        )
    heads, hidden = number("attention.head_count"), number("embedding_length")
    layers = number("block_count")
    window = metadata.get(f"{architecture}.attention.sliding_window") or None
    if len(tensors.get("token_embd.weight", ())) != 2:
        raise ConfigError("The file has no matrix token_embd.weight.")
    head_dim = number("attention.key_length", hidden // heads if heads else 0)
    _refuse_other_widths(number, head_dim)
    start = f"{architecture}."
    told = {key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)}
    # Of heads without dimensions ModelConfig tells.
    scale = head_dim**-0.5 if head_dim > 0 else 0.0
    _refuse_other_mathematics(told, {"attention.scale": scale, "attention.causal": True})
    begin, ends = _begin_and_ends(metadata)
    return ModelConfig(
        vocab_size=tensors["token_embd.weight"][0],
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_theta=float(number("rope.freq_base", 10000.0)),
        max_position_embeddings=number("context_length"),
        windows=windows_of(window, layers),
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=begin,
        eos_token_ids=ends,
    )


def _refuse_other_widths(number: Callable[..., Any], head_dim: int) -> None:
    """Raise UnsupportedError where values, or the part that RoPE turns, are not as wide as keys."""
    for name in ("attention.value_length", "rope.dimension_count"):
        if number(name, head_dim) != head_dim:
            raise UnsupportedError(
                f"The model's {name} is {number(name)}, but its heads have {head_dim} dimensions: "
                "not supported."
            )


def _begin_and_ends(metadata: Mapping[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    """The ids that begin a text and end one: of the text, of a turn, of a message."""
    begin, *ends = (
        _ids(metadata.get(f"tokenizer.ggml.{name}_token_id"))
        for name in ("bos", "eos", "eot", "eom")
    )
    return next(iter(begin), None), tuple(dict.fromkeys(end for some in ends for end in some))


_CHANGES_MATHEMATICS = re.compile(
    "scal|logit|softcap|multiplier|temperature_|clamp|clip|alibi|residual|causal|mscale|yarn"
    "|qk_norm|rotary_pct|nope_"
)
"""In names of what a file tells of a model: what scores, logits or angles go through."""

_TOLD_ONLY = {"original_context_length", "original_max_position_embeddings", "finetuned"}
"""Ends of such names whose values change nothing by themselves."""


def _refuse_other_mathematics(values: Mapping[str, Any], neutral: Mapping[str, Any]) -> None:
    """Raise UnsupportedError, naming it, for a value that changes what is computed.

    Neutral are 0 and 1, what is empty or switched off, and what ``neutral`` tells for a name.
    """
    for key, value in values.items():
        if not _CHANGES_MATHEMATICS.search(key) or re.split(r"[.]", key)[-1] in _TOLD_ONLY:
            continue
        if key in neutral:
            own = neutral[key]
            same = value == own or (
                isinstance(own, float) and isinstance(value, float) and math.isclose(value, own)
            )
            if same or (value == 0 and not isinstance(own, bool)):
                continue
        elif value in (None, False, 0, 1, "", "none", "default", [], {}) and value is not True:
            continue
        elif key.endswith("scaling.type") and value == "linear":
            continue  # its factor tells
        raise UnsupportedError(
            f"The model has {key} = {_short(value)}, which changes what it computes and is not "
            "supported."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_MISTRAL: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HUGGINGFACE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "llama": {
        **_MISTRAL,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "sliding_window": None,
    },
}
"""What transformers' configuration classes take for a key that is absent (one that is null is
null), by ``model_type``."""

_UNCOMPUTED = {
    "attention_bias": "biases in attention",
    "mlp_bias": "biases in the feed-forward layers",
    "num_local_experts": "a mixture of experts",
    "quantization_config": "weights quantized in another format",
}
"""Keys of a config.json that, where they are set, ask for something else than this engine does."""


def from_huggingface(
    values: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The configuration in a Hugging Face ``config.json``; ``generation`` is its
    ``generation_config.json``, which may name more ids that end a text.

    Absent keys mean what transformers' class for the ``model_type`` takes: of Mistral's, a
    ``sliding_window`` of 4096 and an ``rms_norm_eps`` of 1e-6. Windows may also be a list (a
    pattern over the layers), or come with ``layer_types``. Raises
    :class:`~quant.errors.UnsupportedError`, naming it, for what is not computed here (rope scaling,
    another activation, biases), :class:`~quant.errors.ConfigError` for a senseless value.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in HUGGINGFACE_DEFAULTS:
        raise UnsupportedError(
            f"The model is of the type {kind!r}; supported are {', '.join(HUGGINGFACE_DEFAULTS)}."
        )
    for key, meaning in _UNCOMPUTED.items():
        if values.get(key):
            raise UnsupportedError(f"The model has {meaning} ({key}), which is not supported.")
    factor = values.get("partial_rotary_factor", 1.0)
    if factor not in (None, 1, 1.0):
        raise UnsupportedError(f"The model needs partial_rotary_factor {factor!r}: not supported.")
    # Of rope_scaling and its kin see _rope_theta; transformers keeps these two for itself.
    apart = ("rope_scaling", "rope_parameters", "scale_attn_weights", "output_logits")
    _refuse_other_mathematics(
        {key: values[key] for key in values if key not in apart}, {"is_causal": True}
    )
    known = {**HUGGINGFACE_DEFAULTS[kind], **values}
    _check_activation(known["hidden_act"])
    heads = _whole(known, "num_attention_heads")
    layers = _whole(known, "num_hidden_layers")
    hidden = _whole(known, "hidden_size")
    shared = heads if known["num_key_value_heads"] is None else _whole(known, "num_key_value_heads")
    head_dim = known.get("head_dim")
    # Llama's class in transformers knows no window, whatever its file says.
    window = None if kind == "llama" else known["sliding_window"]
    if values.get("_sliding_window") is not None and kind != "llama":
        window = values["_sliding_window"]
    types = None if kind == "llama" else values.get("layer_types")
    ends = [*_ids(known["eos_token_id"]), *_ids((generation or {}).get("eos_token_id"))]
    return ModelConfig(
        vocab_size=_whole(known, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_whole(known, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=hidden // heads if head_dim is None else _whole(known, "head_dim"),
        rms_norm_eps=_positive(known, "rms_norm_eps"),
        rope_theta=_rope_theta(values),
        max_position_embeddings=_whole(known, "max_position_embeddings"),
        windows=windows_of(window, layers, types),
        tie_word_embeddings=bool(known["tie_word_embeddings"]),
        bos_token_id=next(iter(_ids(known["bos_token_id"])), None),
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


PARAMS_CONTEXT = 32768
"""Tokens of context where a ``params.json`` tells none, as those of the 7B models do not."""

_PARAMS_CONTEXTS = ("max_position_embeddings", "max_seq_len", "model_max_length")
_PARAMS_HARMLESS = {
    *"dim n_layers head_dim hidden_dim n_heads n_kv_heads norm_eps vocab_size rope_theta".split(),
    *"sliding_window _sliding_window tied_embeddings max_batch_size model_type causal".split(),
    *"use_cache multiple_of".split(),
    *_PARAMS_CONTEXTS,
}


def from_params(values: Mapping[str, Any], vocabulary: int) -> ModelConfig:
    """The configuration in Mistral's own ``params.json``.

    ``vocabulary`` is the number of the embedding's rows, which counts where ``vocab_size`` is
    absent or -1. A missing ``rope_theta`` is 1e4 where there is a window and 1e6 where there is
    none, as in mistral-inference. Raises :class:`~quant.errors.UnsupportedError` for any key that
    asks for something this engine does not compute (``moe``, ``vision_encoder``, ``yarn``, ...),
    and :class:`~quant.errors.ConfigError` for a senseless or missing value.
    """
    if values.get("model_type") not in (None, "transformer", "mistral"):
        raise UnsupportedError(f"The model is of the type {values['model_type']!r}: not supported.")
    for key, value in values.items():
        if key not in _PARAMS_HARMLESS and value not in (None, False, 0, "", {}, []):
            raise UnsupportedError(
                f"The model's params.json has {key!r}, which is not supported here."
            )
    layers = _whole(values, "n_layers")
    heads, dim = _whole(values, "n_heads"), _whole(values, "dim")
    window = values.get("sliding_window")
    window = values.get("_sliding_window") if window is None else window
    windows = windows_of(window, layers)
    theta = values.get("rope_theta")
    if theta is None:
        theta = 1e6 if set(windows) == {None} else 1e4
    size = values.get("vocab_size", -1)
    context = next((key for key in _PARAMS_CONTEXTS if values.get(key) is not None), None)
    return ModelConfig(
        vocab_size=vocabulary if size in (-1, None) else _whole(values, "vocab_size"),
        hidden_size=dim,
        intermediate_size=_whole(values, "hidden_dim"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_whole({"n_kv_heads": heads, **values}, "n_kv_heads"),
        head_dim=_whole({"head_dim": dim // heads, **values}, "head_dim"),
        rms_norm_eps=_positive(values, "norm_eps"),
        rope_theta=_positive({"rope_theta": theta}, "rope_theta"),
        max_position_embeddings=PARAMS_CONTEXT if context is None else _whole(values, context),
        windows=windows,
        tie_word_embeddings=bool(values.get("tied_embeddings", False)),
        bos_token_id=None,  # the file does not tell; the tokenizer does
        eos_token_ids=(),
    )


def windows_of(window: Any, layers: int, types: Any = None) -> tuple[int | None, ...]:
    """The sliding window of each layer.

    ``window`` is a number, None, a list of both (a pattern that is repeated over the layers) or
    one of these as text; ``types`` are Hugging Face's ``layer_types``. Raises
    :class:`~quant.errors.ConfigError` for anything else.

    >>> windows_of([None, 32768, 32768, 32768], 8)
    (None, 32768, 32768, 32768, None, 32768, 32768, 32768)
    >>> windows_of("4096", 2), windows_of("null, 8", 2)
    ((4096, 4096), (None, 8))
    >>> windows_of(8, 2, ["full_attention", "sliding_attention"])
    (None, 8)
    """
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        raise ConfigError(
            f"The model has {layers!r} layers; {MOST_LAYERS} is the most there can be."
        )
    if isinstance(window, str):
        try:
            window = json.loads(f"[{window.strip().strip('[]').replace('None', 'null')}]")
        except (ValueError, RecursionError):
            raise ConfigError(
                f"The model's sliding_window {window[:40]!r} is not understood."
            ) from None
        window = window[0] if len(window) == 1 else window
    pattern = window if isinstance(window, (list, tuple)) else [window]
    if not pattern or layers % len(pattern):
        raise ConfigError(
            f"The model's sliding_window is a pattern of {len(pattern)} layers, which does not "
            f"divide its {layers} layers."
        )
    for entry in pattern:
        if entry is not None and not is_whole(entry, 1):
            raise ConfigError(f"The model's sliding_window holds {entry!r}, which is no length.")
    windows = tuple(pattern) * (layers // len(pattern))
    if types is None:
        return windows
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError("The model's layer_types do not match its number of layers.")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedError(f"The model has layers of the type {kind!r}: not supported.")
    chosen = zip(types, windows, strict=True)
    return tuple(None if kind == "full_attention" else own for kind, own in chosen)


def _check_activation(name: Any) -> None:
    if name not in ("silu", "swish"):
        raise UnsupportedError(f"The model's activation is {name!r}; supported is silu.")


def _rope_theta(values: Mapping[str, Any]) -> float:
    """RoPE's base; transformers 5 writes it into ``rope_parameters``, maybe one for each type."""
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        entry = values.get(key)
        if entry is None:
            continue
        if not isinstance(entry, dict):
            raise ConfigError(f"The model's {key} is {entry!r}, which is not an object.")
        nested = list(entry.values())
        if not nested or not all(isinstance(part, dict) for part in nested):
            nested = [entry]
        for part in nested:
            kind = part.get("rope_type", part.get("type", "default"))
            neutral = kind == "linear" and part.get("factor") in (1, 1.0)
            if kind not in ("default", "none", None) and not neutral:
                raise UnsupportedError(
                    f"The model needs rope scaling {kind!r}, which is not supported."
                )
            for name, value in part.items():
                known = name in ("rope_theta", "rope_type", "type", *_TOLD_ONLY)
                if not known and value not in (None, False, 0, 1, 1.0):
                    raise UnsupportedError(
                        f"The model's {key} has {name} = {_short(value)}, which is not supported."
                    )
            found += [part["rope_theta"]] if part.get("rope_theta") is not None else []
    if values.get("rope_theta") is not None:
        found.append(values["rope_theta"])
    if len({repr(theta) for theta in found}) > 1:
        raise UnsupportedError("The model has different rope_theta in its layers: not supported.")
    theta = found[0] if found else 10000.0
    return _positive({"rope_theta": theta}, "rope_theta")


def _whole(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or not is_whole(value, 1):
        raise ConfigError(f"The model's {key} is {value!r}; it must be a positive whole number.")
    return value


def _positive(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise ConfigError(f"The model's {key} is {value!r}; it must be a positive number.")
    return float(value)


def _ids(value: Any) -> list[int]:
    """Token ids that are written as a number, a list of them, or null."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    for entry in entries:
        if not is_whole(entry, 0):
            raise ConfigError(f"The model's end or beginning of text is {value!r}: no token ids.")
    return entries
