"""Logits of transformers' MistralForCausalLM, and what its configuration takes for absent keys.

Run by hand where torch (CPU) and transformers are installed beside this project's dependencies::

    python -m tests.oracles.transformers_logits
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MinistralConfig, MistralConfig

from ..quant.models import write_huggingface
from .cases import DEFAULTS_FILE, IDS, TRANSFORMERS, TRANSFORMERS_FILE, changes, seed_of

KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps sliding_window "
    "tie_word_embeddings bos_token_id eos_token_id rope_parameters"
).split()


def main() -> None:
    stored = {}
    for name, config in TRANSFORMERS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_huggingface(Path(folder), config, seed_of(name), change=changes(config))
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
            with torch.no_grad():
                logits = model(torch.tensor([IDS])).logits[0]
        stored[name] = logits.numpy().astype(np.float32)
        print(name, type(model).__name__, stored[name].shape, float(stored[name].std()))
    np.savez_compressed(TRANSFORMERS_FILE, **stored)
    defaults = {}
    for kind in (MistralConfig, MinistralConfig, LlamaConfig):
        values = kind().to_dict()
        defaults[kind.model_type] = {key: values[key] for key in KEYS if key in values}
    DEFAULTS_FILE.write_text(json.dumps(defaults, indent=1) + "\n")


if __name__ == "__main__":
    main()
