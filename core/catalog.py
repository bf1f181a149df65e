"""What this release can tune, and how: methods, their adapters and rows, limits, values to begin with. Pure."""

from typing import Any, Literal, NamedTuple

from core import options
from core.options import JobOptions


class Method(NamedTuple):
    adapters: tuple[str, ...]
    formats: tuple[str, ...]


class Adapter(NamedTuple):
    """``output``: what comes out. ``mergeable``: whether an adapter can become part of the base's weights.
    ``vllm``: whether vLLM loads what comes out."""

    output: Literal["adapter", "model"]
    mergeable: bool
    vllm: bool


ADAPTERS = {
    name: Adapter(
        "model" if name in options.OWN_WEIGHTS else "adapter",
        mergeable=name in options.MERGEABLE,
        vllm=name in (*options.LOW_RANK, *options.OWN_WEIGHTS),
    )
    for name in options.ADAPTERS
}
"""What a job's ``ext.adapter`` may be. (LoRA with ``dora`` is mergeable, but vLLM can't load it.)"""

METHODS = {
    "supervised": Method(adapters=options.ADAPTERS, formats=("chat", "completion", "text")),
    "dpo": Method(adapters=options.ADAPTERS, formats=("preference", "labelled")),
}
"""What a job's ``method.type`` may be."""


def formats(method: str, chosen: JobOptions) -> tuple[str, ...]:
    """Rows that a job of this method and options learns from: single judged answers are for KTO alone, which takes a
    pair for two of them."""
    if method == "dpo" and chosen.preference.loss != "kto":
        return ("preference",)
    return METHODS[method].formats


def limits(context_length: int | None, min_examples: int) -> dict[str, tuple[float, float | None]]:
    """Least and greatest value of what a job is given, the greatest empty where there is no bound."""
    return {
        "examples": (min_examples, None),
        "n_epochs": (1, 50),
        "batch_size": (1, 256),
        "epochs": (0, 100),
        "max_length": (8, context_length),
        "lora.rank": (1, 512),
    }


def recommended() -> dict[str, Any]:
    """Values to begin with, as the parts of a job's body; "auto" is worked out from the data, and the job tells it."""
    chosen, lora = JobOptions(), JobOptions().lora
    return {
        "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
        "ext": {
            "adapter": chosen.adapter,
            "lora": {"rank": lora.rank, "alpha": 2 * lora.rank, "target_modules": lora.target_modules},
            "prompt_loss_weight": chosen.prompt_loss_weight,
            "optim": {"learning_rate": chosen.optim.learning_rate, "schedule": chosen.optim.schedule},
            "max_length": chosen.max_length,
        },
    }
