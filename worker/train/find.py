"""Looks for a learning rate: a range test on what the job is going to train, which is put back to the bit afterwards.

The rate climbs by a constant factor with each of :data:`STEPS` optimizer steps. After each of them the loss on a few
rows apart, always the same ones, is measured. Where a quarter of all that was learned is lost again the rate is too
high: ``SHARE`` of that rate is what is found, or of the mean of the first and the last such rate, where it is lost more
than once. Where the loss is least says less: some curves are flat about it. Rows, order and everything random follow
from the job's seed, so the same job finds the same rate again.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.cost import FIND_APART as APART
from core.cost import FIND_ROWS as ROWS
from core.cost import FIND_STEPS as STEPS
from worker.folder import TrainSpec
from worker.train import checkpoint, optimizers, scaling
from worker.train.batches import Order
from worker.train.model import Model
from worker.train.objective import Objective
from worker.train.ranks import Ranks

SHARE, _LOST = 0.22, 0.25
_RANGES = {
    "full": (1e-6, 1e-3),
    "layers": (1e-6, 1e-3),
    "ia3": (3e-4, 0.3),
    "prompt": (1e-3, 1.0),
    "prefix": (3e-4, 0.3),
}
_LORA, _SGD = (3e-5, 3e-2), (1e-3, 1.0)
_LEAST_FALL = 0.01
"""Share of the loss by which it must have fallen for the test to say anything."""
_RISEN = 1.5
"""Times the first loss, from which on the test has seen enough."""
_EPOCH = 2**32 - 1
"""No run comes so far: the rows are drawn as an epoch's, and as none that the run has."""


class Point(NamedTuple):
    learning_rate: float
    loss: float
    """On the rows apart, after the step at this rate."""


@dataclass(frozen=True)
class Found:
    learning_rate: float | None
    """None: the loss did not fall at any rate."""
    before: float
    points: list[Point]
    tokens: int
    seconds: float


def find(
    spec: TrainSpec, model: Model, objective: Objective, ranks: Ranks, look: Callable[[], None] = lambda: None
) -> Found:
    """``look`` is called before each micro-batch; it may raise. Model and random state are as before in any case."""
    began, rng = time.perf_counter(), checkpoint.random_state(model)
    kept, scale = {name: p.detach().clone() for name, p in model.trainable.items()}, model.scaler.state_dict()
    try:
        return _climb(spec, model, objective, ranks, look, began)
    finally:
        with torch.no_grad():
            for name, p in model.trainable.items():
                p.copy_(kept[name])
                p.grad = None
        checkpoint.set_random_state(model, rng)
        if model.scaler.is_enabled():
            model.scaler.load_state_dict(scale)


def rates(spec: TrainSpec) -> list[float]:
    low, high = _SGD if spec.optim.optimizer == "sgd" else _RANGES.get(spec.adapter, _LORA)
    return [low * (high / low) ** (n / (STEPS - 1)) for n in range(STEPS)]


def _climb(
    spec: TrainSpec, model: Model, objective: Objective, ranks: Ranks, look: Callable[[], None], began: float
) -> Found:
    apart, steps = _rows(spec, objective)
    optimizer = optimizers.build(spec.optim, model, spec.lora.plus_ratio)
    points: list[Point] = []
    before, tokens = _loss(model, objective, apart, ranks, look), objective.tokens(apart)
    for rate in rates(spec):
        chosen = next(steps)
        model.module.train()
        gradients = _gradients(model, optimizer, objective, chosen, ranks, look)
        # At half the scale as long as float16 overflows; where it does at any, the test has seen enough.
        while gradients is None and model.scaler.get_scale() >= 1:
            gradients = _gradients(model, optimizer, objective, chosen, ranks, look)
        if gradients is None:
            break
        optimizers.clip(gradients, spec.optim.max_grad_norm)
        optimizers.set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(model, objective, apart, ranks, look)
        tokens += objective.tokens(chosen) + objective.tokens(apart)
        if not math.isfinite(loss):
            break
        points.append(Point(rate, loss))
        if loss > _RISEN * before:
            break
    return Found(choose(before, points), before, points, tokens, time.perf_counter() - began)


def _gradients(
    model: Model,
    optimizer: Optimizer,
    objective: Objective,
    chosen: list[int],
    ranks: Ranks,
    look: Callable[[], None],
) -> list[Tensor] | None:
    """None: they have overflown."""
    optimizer.zero_grad(set_to_none=True)
    whole = objective.begin(model, chosen, ranks)
    for micro_batch in objective.cut(ranks.share(chosen)):
        look()
        objective.backward(model, micro_batch, whole)
    gradients = ranks.gradients(model.trainable.values())
    ranks.sum_(gradients)
    return gradients if scaling.fits(model, optimizer) else None


def choose(before: float, points: Sequence[Point]) -> float | None:
    """The rate, two significant digits, from the loss before the first step and after each; None: it never fell."""
    if not points:
        return None
    best = min(points, key=lambda point: point.loss)
    if best.loss > (1 - _LEAST_FALL) * before:
        return None
    lost = best.loss + _LOST * (before - best.loss)
    beyond = [point for point in points if point.learning_rate >= best.learning_rate]
    first = next((n for n, point in enumerate(beyond) if point.loss >= lost), len(beyond) - 1)
    # A batch of hard examples may lose much that the next steps find again.
    again = max(n for n, point in enumerate(beyond) if point.loss < lost)
    last = min(again + 1, len(beyond) - 1)
    return float(f"{SHARE * math.sqrt(beyond[first].learning_rate * beyond[last].learning_rate):.2g}")


def _rows(spec: TrainSpec, objective: Objective) -> tuple[list[int], Iterator[list[int]]]:
    """The examples apart, and those of one step after another."""
    drawn = Order(len(objective), ROWS, spec.seed).epoch(_EPOCH)
    weights = objective.weights
    useful = [int(i) for i in drawn if weights[i] > 0]
    # Of a handful all are measured and all are learned from: there are none to spare.
    count = min(APART, len(useful) // 3) or len(useful)
    apart, others = useful[:count], useful[count:] or useful

    def steps() -> Iterator[list[int]]:
        at = 0
        while True:
            yield [others[(at + n) % len(others)] for n in range(min(ROWS, len(others)))]
            at += ROWS

    return apart, steps()


@torch.no_grad()
def _loss(model: Model, objective: Objective, chosen: list[int], ranks: Ranks, look: Callable[[], None]) -> float:
    model.module.eval()
    whole = objective.begin(model, chosen, ranks)
    told = torch.zeros(objective.told, dtype=torch.float64, device=model.device)
    for micro_batch in objective.cut(ranks.share(chosen)):
        look()
        told += objective.measure(model, micro_batch, whole)
    ranks.sum_([told])
    loss = objective.metrics(told, whole)["loss"]
    assert loss is not None
    return loss
