"""From settings to an engine that is ready to answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import quant
from mistral_chat.engines.local import ChatEngine
from mistral_chat.engines.options import template_options
from mistral_chat.errors import UsageError
from mistral_chat.models.download import Progress
from mistral_chat.models.names import is_here, locate, open_tokenizer, recommended_sampling
from mistral_chat.models.planning import check_memory
from mistral_chat.settings import Paths, Settings
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import check_vocabulary
from quant.backends.devices import check_device, chosen
from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint
from quant.checkpoints.checkpoint import Checkpoint


def open_engine(
    settings: Settings, paths: Paths, progress: Progress, ignore_memory: bool = False
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
        tokenizer = open_tokenizer(path)
        check_vocabulary(tokenizer, checkpoint.config.vocab_size)
        template = template_for(tokenizer, template_options(settings))
        options = session_options(settings, checkpoint.config.max_position_embeddings)
        if not ignore_memory:
            check_memory(checkpoint, settings.context, settings.kv)
        if options.backend == "cuda":
            check_device()
        spec = fitting_spec(checkpoint.config)
        model = quant.load(path, spec)
        complaints = _smaller_groups(checkpoint, spec)
        engine = ChatEngine(
            model,
            tokenizer,
            template,
            settings.model,
            options,
            recommended=recommended_sampling(path, complaints.append),
            complaints=complaints,
        )
        kernels.result()
    if not engine.session.is_compiled:
        what = "Compiling the kernels, once on this computer"
        progress("Copying the model to the GPU" if options.backend == "cuda" else what, 0, 1)
    engine.session.compile()
    return engine


def session_options(settings: Settings, longest: int) -> quant.SessionOptions:
    """A session as the settings want it, of a model that was made for ``longest`` tokens.

    Raises UsageError where somebody has asked for more than those.
    """
    if settings.context > longest and settings.source("context") != "default":
        raise UsageError(
            f"{settings.source('context')}: {settings.model} was made for at most "
            f"{longest} tokens; ask for a context of {longest} or less."
        )
    return quant.SessionOptions(
        max_context=min(settings.context, longest),
        kv=settings.kv,
        prefill=settings.prefill,
        threads=settings.threads,
        backend=chosen(settings.device),
        gpu_layers=settings.gpu_layers,
    )


def _smaller_groups(checkpoint: Checkpoint, spec: quant.QuantSpec) -> list[str]:
    packed = [checkpoint.describe(name)[1] for name in ("embedding", "layers.0.q")]
    if spec == DEFAULT_SPEC or None not in packed:
        return []
    return [
        f"Weights are packed in groups of {spec.group_size}: "
        f"{DEFAULT_SPEC.group_size} columns do not divide this model's."
    ]


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
