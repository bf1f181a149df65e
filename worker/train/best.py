"""The best evaluation of a run, its weights, and how long a better one is waited for (early stopping)."""

import math

import torch
from pydantic import BaseModel
from torch import Tensor

from worker.folder import EarlyStoppingSpec
from worker.train.model import Model


class Best(BaseModel):
    """Part of a run's progress, so a resumed run knows what the killed one knew."""

    step: int | None = None
    """None: nothing has been evaluated yet."""
    loss: float | None = None
    """Of that evaluation, over all validation rows"""
    mark: float | None = None
    """The loss that an evaluation has to be under, by more than ``min_delta``, to count as better."""
    evaluations: int = 0
    waited: int = 0
    """Evaluations in a row that were not better"""


class Keeper:
    """Keeps a copy of what is trained as it was at the best evaluation: in main memory, since by then the checkpoint of
    that step may lie in a store that a trainer doesn't know."""

    def __init__(self, spec: EarlyStoppingSpec, model: Model) -> None:
        self.spec = spec
        self.model = model
        self.weights: dict[str, Tensor] = {}

    def look(self, best: Best, step: int, loss: float) -> bool:
        """Take an evaluation into account; whether it is the best so far. A loss that is no number never is."""
        best.evaluations += 1
        if loss < _or_any(best.mark) - self.spec.min_delta:
            best.mark, best.waited = loss, 0
        elif best.evaluations > self.spec.warmup_evals:
            best.waited += 1
        if not loss < _or_any(best.loss):
            return False
        best.step, best.loss = step, loss
        self.keep()
        return True

    def over(self, best: Best) -> bool:
        return best.waited >= self.spec.patience

    def keep(self) -> None:
        self.weights = {name: p.detach().cpu().clone() for name, p in self.model.trainable.items()}

    @torch.no_grad()
    def restore(self) -> None:
        for name, p in self.model.trainable.items():
            p.copy_(self.weights[name])


def _or_any(loss: float | None) -> float:
    """JSON has no infinity."""
    return math.inf if loss is None else loss
