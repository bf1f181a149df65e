"""The optimizer of a run: one group of parameters, two where LoRA+ has B learn faster than A."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from worker.folder import OptimSpec
from worker.train.model import Model


def build(optim: OptimSpec, model: Model, plus_ratio: float = 1.0) -> Optimizer:
    """Each group's ``ratio`` is its learning rate over the schedule's."""
    groups = _groups(model.trainable, plus_ratio)
    match optim.optimizer:
        case "sgd":
            return SGD(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
        case "adafactor":
            return Adafactor(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay)
        case "adamw_8bit":
            # Loaded where it is asked for: it takes a second, and most runs don't need it.
            from bitsandbytes.optim.adamw import AdamW8bit

            eight_bit: Optimizer = AdamW8bit(  # type: ignore[no-untyped-call]
                groups, lr=optim.learning_rate, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
            )
            return eight_bit
        case "adamw":
            return AdamW(
                groups,
                lr=optim.learning_rate,
                betas=optim.betas,
                eps=optim.eps,
                weight_decay=optim.weight_decay,
                fused=True,
            )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def clip(gradients: list[Tensor], longest: float) -> float:
    """Shorten the gradient to ``longest`` (0: leave it); returns its norm before that."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if longest > 0:
        scale = torch.clamp(longest / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, scale)
    return float(norm)


def _groups(trainable: dict[str, nn.Parameter], plus_ratio: float) -> list[dict[str, Any]]:
    fast = [p for name, p in trainable.items() if plus_ratio != 1 and ".lora_B." in name]
    chosen = {id(p) for p in fast}
    slow = [p for p in trainable.values() if id(p) not in chosen]
    groups = [{"params": slow, "ratio": 1.0}, {"params": fast, "ratio": plus_ratio}]
    return [group for group in groups if group["params"]]
