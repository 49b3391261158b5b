"""Settings of a person, as sampler and template take them."""

from __future__ import annotations

import quant
from mistral_chat.settings import Settings
from mistral_chat.templates import SystemPosition, TemplateOptions


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
