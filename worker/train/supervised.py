"""Learning from examples: Σ w·nll / Σ w over the tokens of a step."""

from collections.abc import Sequence

from torch import Tensor

from worker.train import loss
from worker.train.batches import Batches, MicroBatch
from worker.train.model import Model
from worker.train.objective import Step
from worker.train.ranks import Ranks


class Supervised(Batches):
    told = 5

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, model: Model, chosen: Sequence[int], ranks: Ranks) -> Step:
        return Step(self.weight(chosen))

    def backward(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        return backward(model, batch, step.weight)

    def measure(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        return loss.sums(model.hidden(batch.input_ids, batch.position_ids), model.head, batch)[1]

    def metrics(self, told: Tensor, step: Step) -> dict[str, float | None]:
        """The last two are None where no completion token has weight."""
        total, completion, completion_weight, correct, count = told.tolist()
        return {
            "loss": total / step.weight,
            "completion_loss": completion / completion_weight if count else None,
            "accuracy": correct / count if count else None,
        }


def backward(model: Model, batch: MicroBatch, weight: float) -> Tensor:
    """``weight`` is Σ w of the whole step, all ranks. Returns what is told (:func:`worker.train.loss.sums`)."""
    total, told = loss.sums(model.hidden(batch.input_ids, batch.position_ids), model.head, batch)
    model.scaler.scale(total / weight).backward()  # type: ignore[no-untyped-call]
    return told
