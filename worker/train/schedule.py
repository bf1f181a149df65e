"""The learning rate of a step as a pure function: nothing to save, nothing to restore."""

import math

from worker.folder import OptimSpec

WSD_DECAY_SHARE = 0.2
"""The last fifth of a warm-up–stable–decay run decays (arXiv 2405.18392 finds 10–20 % enough)."""


def factor(optim: OptimSpec, step: int, total: int) -> float:
    """Share of the peak learning rate used at ``step`` (1 … total).

    Warm-up rises linearly and reaches the peak at step ``warmup_steps``; after it, ``x`` in [0, 1] is how much of the
    rest has passed, 1 at the last step, where cosine, linear and wsd have come down to ``min_lr_ratio``.
    """
    warmup = min(optim.warmup_steps, total)
    if step <= warmup:
        return step / warmup
    x = (step - warmup) / max(1, total - warmup)
    floor = optim.min_lr_ratio
    match optim.schedule:
        case "constant":
            return 1.0
        case "linear":
            return floor + (1 - floor) * (1 - x)
        case "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x))
        case "inverse_sqrt":
            # Without warm-up the decay would start at an infinite slope; one step stands in for it.
            return max(floor, math.sqrt(max(1, warmup) / step))
        case "wsd":
            return floor + (1 - floor) * min(1.0, (1 - x) / WSD_DECAY_SHARE)


def learning_rate(optim: OptimSpec, step: int, total: int) -> float:
    return optim.learning_rate * factor(optim, step, total)
