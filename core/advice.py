"""What somebody who has tuned many models would say of a job, each with its reason. Pure: counts and options in.

The thresholds are rules of thumb of the trade, not measurements: always start with prompts; a few hundred rows are a
case for an adapter, training every weight takes thousands; few rows want more passes and many want few; a prompt counts
for less than an answer.
"""

from typing import Any

from pydantic import BaseModel

from core.resolved import Resolved

TINY, SMALL, LARGE = 50, 1_000, 1_000_000
ALL_WEIGHTS = 5_000
"""Rows from which training every weight may be worth its price."""


class Advice(BaseModel):
    code: str
    message: str
    change: dict[str, Any] | None = None  # Any: parts of a job's body
    """What to send instead, where there is something to change."""


def advise(resolved: Resolved, *, examples: int, prompt_tokens: int, completion_tokens: int) -> list[Advice]:
    found = [
        _prompting(examples),
        _method(examples),
        _epochs(resolved, examples),
        _prompt_loss_weight(resolved, prompt_tokens, completion_tokens),
        _batch(resolved, examples),
    ]
    return [one for one in found if one is not None]


def _prompting(examples: int) -> Advice | None:
    if examples >= TINY:
        return None
    return Advice(
        code="try_prompting_first",
        message=f"{examples} examples are few enough to be put into a prompt. Try that first: it costs minutes, and "
        "what it can't do tells which examples to collect.",
    )


def _method(examples: int) -> Advice:
    if examples < ALL_WEIGHTS:
        message = (
            f"LoRA suits {examples:,} examples: training every weight usually takes thousands of them, and with few "
            "hundred it is rarely better and always dearer."
        )
    else:
        message = (
            f"{examples:,} examples would be enough to train every weight. Begin with LoRA all the same: it comes "
            "close for much less, and tells whether the data are good."
        )
    return Advice(code="method", message=message)


def _epochs(resolved: Resolved, examples: int) -> Advice | None:
    passes = resolved.epochs
    if examples < SMALL and passes < 2:
        return Advice(
            code="more_epochs",
            message=f"{passes:g} epochs over {examples} examples show each of them seldom; small sets often want 3 to "
            "5. More are worth it as long as the validation loss falls.",
            change={"ext": {"epochs": 3}},
        )
    if examples >= LARGE and passes > 2:
        return Advice(
            code="fewer_epochs",
            message=f"One or two epochs are enough for {examples:,} examples.",
            change={"ext": {"epochs": 1}},
        )
    if passes > 10:
        return Advice(
            code="overfitting",
            message=f"{passes:g} epochs are many: give a validation file, and use fewer when its loss rises while the "
            "training loss falls.",
        )
    return None


def _prompt_loss_weight(resolved: Resolved, prompt_tokens: int, completion_tokens: int) -> Advice | None:
    weight, short = resolved.prompt_loss_weight, completion_tokens < prompt_tokens
    if weight > 0.5 and resolved.train_on != "all":
        return Advice(
            code="prompt_loss_weight",
            message=f"prompt_loss_weight {weight:g}: users write the prompts, so answers should count for more; 0.1 "
            "is usual.",
            change={"ext": {"prompt_loss_weight": 0.1}},
        )
    if weight == 0 and short:
        return Advice(
            code="prompt_loss_weight",
            message="The answers are shorter than the prompts: learning a little from the prompts too (0.1) tends to "
            "help there.",
            change={"ext": {"prompt_loss_weight": 0.1}},
        )
    if weight > 0 and not short:
        return Advice(
            code="prompt_loss_weight",
            message="The answers are longer than the prompts: leaving the prompts out of the loss (0) loses nothing "
            "there and is quicker.",
            change={"ext": {"prompt_loss_weight": 0}},
        )
    return None


def _batch(resolved: Resolved, examples: int) -> Advice | None:
    if resolved.batch_size >= 8 or examples < 8 * 8:
        return None
    return Advice(
        code="batch_size",
        message=f"Steps of {resolved.batch_size} examples are uneasy: fewer than eight can make the loss jump. Memory "
        "goes by micro_batch_size, not by this.",
        change={"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 8}}}},
    )
