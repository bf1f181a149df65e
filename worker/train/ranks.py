"""How many processes share an optimizer step. One, unless a launcher (``torchrun``) says otherwise.

Gradients and the loss's denominator are *summed* over the ranks, never averaged: the loss of a step is a sum over
all of its tokens divided by the weight of all of them, wherever they were computed.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Ranks":
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), size)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: list[Item]) -> list[Item]:
        return items[self.rank :: self.size]

    def gradients(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """Those that the last backward passes have left."""
        found = list(parameters)
        if self.size > 1:
            for p in found:
                # A rank without a row in a small last batch has none; the sum over the ranks needs one from each.
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return [p.grad for p in found if p.grad is not None]

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add up over the ranks in place, in one message."""
        if self.size == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        distributed.all_reduce(flat)
        for part, total in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
