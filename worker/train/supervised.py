"""Learning from examples: what one micro-batch adds to a step."""

from torch import Tensor

from worker.train import loss
from worker.train.batches import MicroBatch
from worker.train.model import Model


def backward(model: Model, batch: MicroBatch, weight: float) -> Tensor:
    """Add this micro-batch's share of the step's gradient; ``weight`` is Σ w of the whole step, all ranks.

    Returns what is told (:func:`worker.train.loss.sums`), to be added up over the step.
    """
    total, told = loss.sums(model.hidden(batch.input_ids), model.head, batch)
    (total / weight).backward()  # type: ignore[no-untyped-call]
    return told


def measure(model: Model, batch: MicroBatch) -> Tensor:
    """The same sums without a gradient."""
    return loss.sums(model.hidden(batch.input_ids), model.head, batch)[1]
