"""The scale of float16's gradients: where they leave its range, the same step is asked again at half of it.

No step is left out, and the rows it learns from are lost to none: what an overflow costs is the time of a step. Nothing
here is random, so a resumed run meets the same overflows at the same scales.
"""

import math

from torch.optim import Optimizer

from worker.train.events import Events
from worker.train.faults import Refused
from worker.train.model import Model

_ADVICE = "Use precision bf16 or fp32."


def fits(model: Model, optimizer: Optimizer) -> bool:
    """Take the scale out of the gradients; whether they were all finite numbers. The scale is then what the next
    gradients are to have: half where they were not, twice after 2,000 in a row that were."""
    scaler = model.scaler
    if not scaler.is_enabled():
        return True
    before = scaler.get_scale()
    scaler.unscale_(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def overflown(model: Model, events: Events, step: int, loss: float | None) -> None:
    """Throw the gradients of a step away, and say so; raises where there is no use in asking again."""
    for p in model.trainable.values():
        p.grad = None
    if loss is None or not math.isfinite(loss):
        raise Refused("overflow", f"The loss of step {step} is beyond float16's range. {_ADVICE}", "precision")
    scale = model.scaler.get_scale()
    if scale < 1:
        raise Refused("overflow", f"The gradient of step {step} overflows float16 at any scale. {_ADVICE}", "precision")
    events.message(
        "info",
        f"Step {step}: its gradient overflowed float16 and was thrown away; asked again at half the scale, {scale:g}.",
        code="overflow",
        step=step,
        scale=scale,
    )
