"""Files of what was trained, the same bytes for the same weights: an adapter's under PEFT's own names, or a model's."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.train.model import Model

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL = "model*.safetensors"
SHARD = "5GB"
"""A file of a model's weights is cut at this size, as the hub's are."""


def write(model: Model, folder: Path) -> None:
    if model.peft is None:
        _write_model(model, folder)
    else:
        _write_adapter(model.peft, folder)


def read(model: Model, folder: Path) -> None:
    """Put saved weights into the model; a name that is missing or too many raises ``KeyError`` before any is put."""
    if model.peft is None:
        _read_model(model, folder)
    else:
        _read_adapter(model.peft, load_file(folder / ADAPTER))


def _write_model(model: Model, folder: Path) -> None:
    model.network.save_pretrained(folder, max_shard_size=SHARD)


def _read_model(model: Model, folder: Path) -> None:
    paths = sorted(folder.glob(MODEL))
    saved = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    # Tied weights are in the file once.
    current = dict(model.network.named_parameters()) | dict(model.network.named_buffers())
    if missing := model.trainable.keys() - saved.keys():
        raise KeyError(next(iter(missing)))
    if more := saved.keys() - current.keys():
        raise KeyError(next(iter(more)))
    with torch.no_grad():
        for name, tensor in saved.items():
            current[name].copy_(tensor)


def _write_adapter(peft: PeftModel, folder: Path) -> None:
    """As ``PeftModel.save_pretrained``, without its model card, its questions to the network about the base model,
    and its sets written in whatever order they come."""
    fields: dict[str, Any] = peft.peft_config["default"].to_dict()
    fields["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    weights = _adapter(peft)
    save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, folder / ADAPTER, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _adapter(peft: PeftModel) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = get_peft_model_state_dict(peft, save_embedding_layers=False)
    targets = getattr(peft.peft_config["default"], "target_modules", None) or ()
    if any("embed" in name or "lm_head" in name for name in targets):
        weights = {name: tensor for name, tensor in weights.items() if "lora_" in name}
    return weights


def _read_adapter(peft: PeftModel, weights: dict[str, Tensor]) -> None:
    current = _adapter(peft)
    if current.keys() != weights.keys():
        raise KeyError(next(iter(current.keys() ^ weights.keys())))
    if peft.peft_config["default"].is_prompt_learning:
        # What PEFT gives as learned tokens is a copy.
        set_peft_model_state_dict(peft, weights)
        return
    with torch.no_grad():
        for name, tensor in current.items():
            # The state dict's tensors share the parameters' memory.
            tensor.copy_(weights[name])
