"""Whether a run has gone astray for good: no number any more, or a loss far above where it began, to stay."""

import math

from pydantic import BaseModel

from core.diagnosis import BLOWN_UP, FEWEST_EXAMPLES, SENSIBLE
from worker.train.faults import Diverged

_PATIENCE = 16
"""Steps in a row far above the first loss after which a run is given up. One that only jumps comes back sooner."""


class Course(BaseModel):
    """Part of a run's progress, so a resumed run gives up at the same step."""

    first: float | None = None
    """The loss before anything was learned; of several small steps the highest"""
    astray: int = 0
    """Steps in a row whose loss was far above it"""
    good_step: int = 0
    """The newest checkpoint after which the loss was still a good one"""

    def look(
        self, step: int, loss: float | None, grad_norm: float, saved_at: int, batch_size: int, *, blows_up: bool
    ) -> None:
        """``saved_at``: the newest checkpoint's step. ``blows_up``: this loss is one that a model could only have after
        learning nonsense. Raises Diverged."""
        assert loss is not None
        if not math.isfinite(loss):
            raise Diverged(_not_finite(step, "loss"), self.good_step)
        if self.first is None or (step - 1) * batch_size < FEWEST_EXAMPLES:
            self.first = loss if self.first is None else max(self.first, min(loss, SENSIBLE))
        good = not (blows_up and loss > BLOWN_UP[0] * self.first + BLOWN_UP[1])
        self.astray = 0 if good else self.astray + 1
        if good and saved_at == step - 1:
            # This loss is that of the checkpoint's very weights: one of a bad stretch is no good one later on.
            self.good_step = saved_at
        if not math.isfinite(grad_norm):
            raise Diverged(_not_finite(step, "gradient"), self.good_step)
        if self.astray >= _PATIENCE:
            message = (
                f"The loss was {self.first:.2f} at its beginning and is {loss:.2f} at step {step}, for {self.astray} "
                "steps far above it: the run diverged. Lower the learning rate."
            )
            raise Diverged(message, self.good_step)


def _not_finite(step: int, what: str) -> str:
    if step == 1:
        return f"The {what} is not a finite number at the first step, before anything was learned."
    return f"The {what} is no longer a finite number at step {step}: the run diverged. Lower the learning rate."
