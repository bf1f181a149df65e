"""Adapter files under PEFT's own names, the same bytes for the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from worker.train.load import Model

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write(model: Model, folder: Path) -> None:
    """As ``PeftModel.save_pretrained``, without its model card, its questions to the network about the base model,
    and its sets written in whatever order they come."""
    config = model.peft.peft_config["default"]
    fields: dict[str, Any] = config.to_dict()
    fields["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    embeddings = any("embed" in name or "lm_head" in name for name in plain["target_modules"])
    weights = get_peft_model_state_dict(model.peft, save_embedding_layers=False)
    if embeddings:
        weights = {name: tensor for name, tensor in weights.items() if "lora_" in name}
    save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def read(model: Model, weights: dict[str, torch.Tensor]) -> None:
    """Put saved weights into the model; a name that is missing or too many raises ``KeyError``."""
    current = get_peft_model_state_dict(model.peft, save_embedding_layers=False)
    if current.keys() != weights.keys():
        raise KeyError(next(iter(current.keys() ^ weights.keys())))
    with torch.no_grad():
        for name, tensor in current.items():
            # The state dict's tensors share the parameters' memory.
            tensor.copy_(weights[name])
