"""``config.json``, ``generation_config.json``, ``params.json``, and a native folder's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from quant.checkpoints import open_checkpoint

from ..mutation import changed_value, odd_value, to_json
from ..target import Target
from ..tiny import answer, write_chat_huggingface, write_chat_mistral, write_native

GENERATION: dict[str, Any] = {
    "bos_token_id": 1, "eos_token_id": [2, 1], "temperature": 0.6, "top_p": 0.9, "top_k": 50,
    "repetition_penalty": 1.1, "min_p": 0.1, "do_sample": True,
}  # fmt: skip
MORE_CONFIG: dict[str, Any] = {
    "rope_parameters": {
        "full": {"rope_theta": 1e4, "rope_type": "default"},
        "sliding": {"rope_theta": 1e4},
    },
    "layer_types": ["full_attention", "sliding_attention"],
    "_sliding_window": None,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "quantization_config": None,
}
"""What newer files tell beside."""
MORE_PARAMS = (
    "sliding_window _sliding_window rope_theta moe max_position_embeddings model_type yarn "
    "tied_embeddings vocab_size"
).split()


class Configuration(Target):
    """Configurations that are changed value by value, and the model's answer where it has one."""

    name = "configuration"
    short = 150
    kernels = ("f16",)

    def make(self) -> None:
        self.huggingface = write_chat_huggingface(self.folder / "hf")
        self.mistral = write_chat_mistral(self.folder / "mistral")
        self.native = write_native(self.folder / "native")
        self.config = json.loads((self.huggingface / "config.json").read_text())
        self.params = json.loads((self.mistral / "params.json").read_text())
        self.own = json.loads((self.native / "config.json").read_text())

    def case(self, random: Random, scratch: Path) -> None:
        model = scratch / "model"
        kind = random.randrange(6)
        if kind < 3:
            shutil.copytree(self.huggingface, model)
            values = random.choice((self.config, {**self.config, **MORE_CONFIG}))
            if random.random() < 0.4:
                told = changed_value(random, GENERATION)
                (model / "generation_config.json").write_bytes(to_json(told, random))
                values = random.choice((values, changed_value(random, values)))
            else:
                values = changed_value(random, values)
            (model / "config.json").write_bytes(to_json(values, random))
        elif kind < 5:
            shutil.copytree(self.mistral, model)
            values = changed_value(random, self.params)
            if isinstance(values, dict) and random.random() < 0.3:
                values[random.choice(MORE_PARAMS)] = odd_value(random)
            (model / "params.json").write_bytes(to_json(values, random))
        else:
            shutil.copytree(self.native, model)
            values = changed_value(random, self.own)
            (model / "config.json").write_bytes(to_json(values, random))
        open_checkpoint(model)
        answer(model, scratch)


TARGET = Configuration
