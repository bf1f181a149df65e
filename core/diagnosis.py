"""Someone reads the loss curve: measurements of a run → what they say, the evidence, the next thing to try. Pure.

Thresholds were set on the runs of one half of ``bench/diagnosis.py`` and judged on the other; docs/diagnosis.md has the
figures and a picture of each finding.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

Code = Literal[
    "diverged",
    "adapter_still",
    "fluctuating",
    "slow",
    "overfitting",
    "improving",
    "no_end_of_turn",
    "duplicates",
    "validation_shared",
    "validation_small",
    "healthy",
]

FEWEST_STEPS = 8
"""Of a curve that is looked at: a shorter one says nothing."""
FEWEST_EXAMPLES, SENSIBLE = 8, 6.0
"""Of the loss that later ones are held against: that of a single example may be far below what the others have. Above
the second none of them was before anything was learned."""
BLOWN_UP = 1.3, 0.5
"""A loss above the first one times this, plus this, is one that a model has after learning nonsense."""
THROWN, NUMB, LEFT = 6.0, 0.1, 0.3
"""Lengths of its own that an adapter has moved, and shares of its first gradients and of the first loss that are left,
when a rate has thrown it to where nothing leads back"""
STILL = 1e-5
"""Movement of an adapter, as a share of its own length, that is none"""
RISE = 0.12
"""Share of what was gained that a training loss loses again: it learns the same rows, so it has no reason to rise."""
RISE_NOISE, FALL_NOISE = 2.0, 2.0
"""Standard errors that a rise is above besides, and that rows learned by heart fall by"""
WAVES = 0.1
"""Sum of all rises of the validation loss while training rises too, as a share of what was gained"""
GAINED = 0.08
"""Share of its first value that the loss loses in a run that learns something"""
OVER = 0.03
"""Share of its least value, and of what it fell to it, by which a validation loss is above it in a run that overfits"""
SLOW_GAINED, SLOW_HALF = 0.3, 0.3
"""A run that gained less than this, and half of it only after this share of its steps, gained as much with each step:
it was far from where the curve bends."""
STILL_FALLING = 0.025
"""Share of all that was gained that the last fifth of a run gains, when it is too early to stop"""
FEWEST_VALID = 20
"""Rows below which a validation loss depends on which rows they are"""
COPIES = 0.1
"""Share of the rows that repeat an earlier one from which on it matters"""
MEMORISED = 0.8
"""Loss of the rows that are there several times over that of the others"""
ENDS, END_PROBABILITY = 0.5, 0.1
"""Share of answers that end in the same token, and of those whose end the model finds the likeliest; and how likely"""

_CALMER = "Lower the learning rate, three times, or use a schedule that falls (cosine)."


class Finding(BaseModel):
    code: Code
    message: str
    evidence: dict[str, float | int | None]
    """Steps and numbers that the message stands on"""
    advice: str | None
    """The next thing to try"""


@dataclass(frozen=True)
class Curve:
    """What has been measured of a run so far."""

    total_steps: int
    steps_per_epoch: int
    steps: Sequence[int]
    losses: Sequence[float]
    """Training loss at each of ``steps``, the first ones without a gap"""
    grad_norms: Sequence[float]
    evals: Sequence[tuple[int, float]] = ()
    """Step and validation loss"""
    moved: Sequence[tuple[int, float]] = ()
    """Step and how far the adapter is from where it began, as a share of its length"""
    facts: Mapping[str, int] = field(default_factory=dict)
    """rows, duplicates, valid_rows, shared (``worker/train/observe.py``)"""
    learned: Mapping[str, float] = field(default_factory=dict)
    """Of a run at its end: ends, end_common, end_first, duplicate_loss, single_loss (the same)"""
    ended: bool = False
    error: str | None = None
    best_kept: bool = False
    """Whether the result is the best evaluation's model"""
    batch_size: int = FEWEST_EXAMPLES

    @property
    def last_step(self) -> int:
        return self.steps[-1] if self.steps else 0


def diagnose(curve: Curve) -> list[Finding]:
    """What there is to say, the most important first; ``healthy`` stands alone. Nothing while it is too early."""
    found = list(_of_data(curve))
    course = _diverged(curve) or _thrown(curve)
    if course is None and len(curve.losses) >= FEWEST_STEPS:
        course = _still(curve) or _of_curve(curve)
    findings = ([course] if course else []) + found
    if findings or len(curve.losses) < FEWEST_STEPS or not _far_enough(curve):
        return findings
    return [_healthy(curve)]


def _far_enough(curve: Curve) -> bool:
    return curve.ended or curve.last_step >= curve.total_steps / 4


def _diverged(curve: Curve) -> Finding | None:
    if not curve.losses:
        return None
    begun = curve.losses[: -(-FEWEST_EXAMPLES // curve.batch_size)]
    first, factor, more = max(begun[0], min(max(begun), SENSIBLE)), *BLOWN_UP
    recent = curve.losses[-FEWEST_STEPS:]
    limit = factor * first + more
    blown = len(curve.losses) > FEWEST_STEPS and min(recent) > limit
    if curve.error != "diverged" and not blown and all(map(math.isfinite, recent)):
        return None
    since = next((step for step, loss in _pairs(curve) if loss > limit), curve.last_step)
    return Finding(
        code="diverged",
        message=f"The loss began at {first:.2f} and has left it for good: {recent[-1]:.2f} at step {curve.last_step}.",
        evidence={"first_loss": first, "last_loss": recent[-1], "since_step": since, "step": curve.last_step},
        advice="Lower the learning rate ten times, or begin from the last checkpoint before it. "
        + "Look at the rows of that step if it happens again.",
    )


def _thrown(curve: Curve) -> Finding | None:
    """Every loss may be a number, and below the first, and the model yet have lost what it knew."""
    if not curve.moved or curve.moved[-1][1] < THROWN or len(curve.losses) < 2 * FEWEST_STEPS:
        return None
    moved, first = curve.moved[-1][1], _first(curve)
    begun, now = max(curve.grad_norms[:3]), statistics.median(curve.grad_norms[-FEWEST_STEPS:])
    levels = _levels(curve.losses)
    falls = levels[-2] - levels[-1] > GAINED * levels[-1]
    if now > NUMB * begun or falls or levels[-1] < LEFT * first:
        return None
    return Finding(
        code="diverged",
        message=f"The adapter was thrown {moved:.0f} times its own length away, and nearly no gradient is left there: "
        f"{now:.2g} after {begun:.2g} at the beginning.",
        evidence={"moved": moved, "grad_norm": now, "first_grad_norm": begun, "step": curve.last_step},
        advice="Lower the learning rate ten times.",
    )


def _still(curve: Curve) -> Finding | None:
    moved = curve.moved[-1] if curve.moved else None
    zero = not any(curve.grad_norms)
    if not zero and (moved is None or moved[1] >= STILL):
        return None
    why = "every gradient is 0" if zero else f"it is {moved[1]:.1e} of its length from where it began" if moved else ""
    return Finding(
        code="adapter_still",
        message=f"What is trained does not move: after step {curve.last_step} {why}.",
        evidence={"step": curve.last_step, "moved": moved[1] if moved else None, "loss": curve.losses[-1]},
        advice='Use "auto" as the learning rate, or a much higher one.',
    )


def _of_curve(curve: Curve) -> Finding | None:
    """The one thing that its losses say, if any."""
    levels = _levels(curve.losses)
    first, least, last = _first(curve), min(levels), levels[-1]
    gained = first - least
    if _far_enough(curve) and (found := _fluctuating(curve, levels, gained)) is not None:
        return found
    if _slow(curve, levels, first, gained):
        return Finding(
            code="slow",
            message=f"The loss has hardly fallen: from {first:.3g} to {last:.3g} in {curve.last_step} steps.",
            evidence={"first_loss": first, "last_loss": last, "step": curve.last_step},
            advice="Raise the learning rate, three to ten times; "
            + "if it stays so, the model knows these answers already.",
        )
    return _overfitting(curve) or _improving(curve, levels, gained)


def _slow(curve: Curve, levels: list[float], first: float, gained: float) -> bool:
    # Not from the least level, nor from one step: of a flat curve both are far apart by what rows differ.
    if _mean(levels[:1]) - _mean(levels[-3:]) < GAINED * abs(first) and gained < SLOW_GAINED * abs(first):
        return curve.ended or curve.last_step >= 0.4 * curve.total_steps
    if gained <= 0:
        return False
    half = next(n for n, level in enumerate(levels) if level <= first - gained / 2) / len(levels)
    return curve.ended and gained < SLOW_GAINED * abs(first) and half >= SLOW_HALF


def _first(curve: Curve) -> float:
    """The level before anything was learned: the first steps, whose rate is still small."""
    return max(curve.losses[0], _mean(curve.losses[:3]))


def _fluctuating(curve: Curve, levels: list[float], gained: float) -> Finding | None:
    least = levels.index(min(levels))
    rise, noise = levels[-1] - levels[least], _noise(curve.losses, len(levels))
    waves = _waves(curve)
    better = bool(curve.evals) and _over(curve) == 0
    rising = rise > RISE * max(gained, 0) and rise > RISE_NOISE * noise and not better
    if not (rising or (waves > WAVES * max(gained, 0) and rise > 0 and _over(curve) < 0.5 * waves)):
        return None
    steps = _windows(curve.steps, len(levels))
    low = steps[least][-1]
    return Finding(
        code="fluctuating",
        message=f"The training loss rises again: it was {levels[least]:.3g} about step {low} "
        f"and is {levels[-1]:.3g} now.",
        evidence={"least_loss": levels[least], "at_step": low, "last_loss": levels[-1], "step": curve.last_step},
        advice=_CALMER,
    )


def _waves(curve: Curve) -> float:
    """How much the validation loss has risen in all, its way up at the end left out."""
    values = [loss for _, loss in curve.evals][1:]
    if len(values) < 4:
        return 0.0
    return sum(max(0.0, b - a) for a, b in itertools.pairwise(values))


def _over(curve: Curve) -> float:
    return curve.evals[-1][1] - min(loss for _, loss in curve.evals) if curve.evals else 0.0


def _overfitting(curve: Curve) -> Finding | None:
    if len(curve.evals) < 3 or curve.facts.get("valid_rows", FEWEST_VALID) < FEWEST_VALID:
        return None
    step, least = min(curve.evals, key=lambda one: one[1])
    last_step, last = curve.evals[-1]
    # While it trains, one evaluation may be an odd one: the next says whether it was.
    looked_at = curve.evals[-1:] if curve.ended else curve.evals[-2:]
    most = least + OVER * max(least, curve.evals[0][1] - least)
    if step == last_step or min(loss for _, loss in looked_at) <= most:
        return None
    then = [loss for s, loss in _pairs(curve) if s <= step][-FEWEST_STEPS:]
    noise = _noise(curve.losses, max(1, len(curve.losses) // FEWEST_STEPS))
    if then and _mean(then) - _mean(curve.losses[-FEWEST_STEPS:]) <= FALL_NOISE * noise:
        return _both_rise(curve, step, least, last)
    epoch, kept = step / curve.steps_per_epoch, curve.ended and curve.best_kept
    advice = f"Use fewer epochs: about {max(epoch, 0.1):.2g}, or early_stopping; more data helps more."
    return Finding(
        code="overfitting",
        message=f"From step {step} on (epoch {epoch:.2g}) the validation loss rises, from {least:.3g} to {last:.3g}, "
        "while the training loss falls: the model learns its rows by heart."
        + (" The result is the model of that step." if kept else ""),
        evidence={"from_step": step, "least_valid_loss": least, "last_valid_loss": last, "step": last_step},
        advice=advice,
    )


def _both_rise(curve: Curve, step: int, least: float, last: float) -> Finding:
    """Rows that are learned by heart are known better and better: these are not."""
    return Finding(
        code="fluctuating",
        message=f"From step {step} on the validation loss rises, from {least:.3g} to {last:.3g}, and the training loss "
        "does not fall any more.",
        evidence={"from_step": step, "least_valid_loss": least, "last_valid_loss": last, "step": curve.last_step},
        advice=_CALMER,
    )


def _improving(curve: Curve, levels: list[float], gained: float) -> Finding | None:
    if not curve.ended or curve.last_step < curve.total_steps:
        return None
    small = curve.facts.get("valid_rows", 0) < FEWEST_VALID
    told = [(s, v) for s, v in curve.evals] if len(curve.evals) >= 5 and not small else _as_pairs(curve, levels)
    before = [value for step, value in told if step <= 0.8 * curve.last_step]
    if not before:
        return None
    late = before[-1] - told[-1][1]
    if late < STILL_FALLING * gained:
        return None
    return Finding(
        code="improving",
        message=f"It was still getting better when it ended: the loss fell from {before[-1]:.3g} to {told[-1][1]:.3g} "
        "in the last fifth of the steps.",
        evidence={"before": before[-1], "last": told[-1][1], "gained_in_all": gained, "step": curve.last_step},
        advice="Train for more epochs (twice as many), or give more data.",
    )


def _of_data(curve: Curve) -> Iterator[Finding]:
    facts, learned = curve.facts, curve.learned
    if curve.ended and "end_common" in learned:
        if learned["end_common"] < ENDS:
            yield Finding(
                code="no_end_of_turn",
                message=f"Answers do not end alike: {learned['end_common']:.0%} of them end in the same token, so none "
                "teaches the model to end its turn. It will go on and on.",
                evidence={"looked_at": int(learned["ends"]), "share": learned["end_common"]},
                advice="Rows may have been cut: raise max_length. Or the chat template marks no end of turn.",
            )
        elif learned["end_first"] < ENDS or learned["end_probability"] < END_PROBABILITY:
            yield Finding(
                code="no_end_of_turn",
                message="The end of turn is not learned: at the end of an answer it is the likeliest token in "
                f"{learned['end_first']:.0%} of the rows looked at, with a probability of "
                f"{learned['end_probability']:.2f}.",
                evidence={"share": learned["end_first"], "probability": learned["end_probability"]},
                advice="Train longer, or with a higher learning rate.",
            )
    rows, copies = facts.get("rows", 0), facts.get("duplicates", 0)
    if rows and copies >= COPIES * rows:
        twice, once = learned.get("duplicate_loss"), learned.get("single_loss")
        by_heart = twice is not None and once is not None and twice < MEMORISED * once
        seen = f": its loss on them is {twice:.3g}, on the others {once:.3g}" if by_heart else ""
        yield Finding(
            code="duplicates",
            message=f"{copies} of {rows} rows repeat an earlier one, "
            + (f"and the model has memorised them{seen}." if by_heart else "and are learned as many times."),
            evidence={"duplicates": copies, "rows": rows, "duplicate_loss": twice, "single_loss": once},
            advice="Leave duplicates out; the file's report lists them by line.",
        )
    held, shared = facts.get("valid_rows", 0), facts.get("shared", 0)
    if held and shared >= COPIES * held:
        yield Finding(
            code="validation_shared",
            message=f"{shared} of {held} validation rows are trained on: their loss says nothing of new rows.",
            evidence={"shared": shared, "rows": held},
            advice="Hold rows out that are not in the training file (ext.data.validation_fraction does it).",
        )
    if 0 < held < FEWEST_VALID:
        yield Finding(
            code="validation_small",
            message=f"{held} validation rows are too few to tell whether the model gets better.",
            evidence={"rows": held, "wanted": FEWEST_VALID},
            advice=f"Hold out {FEWEST_VALID} rows at least, better 100.",
        )


def _healthy(curve: Curve) -> Finding:
    held = f", validation to {curve.evals[-1][1]:.3g}" if curve.evals else ""
    first, last = _first(curve), _levels(curve.losses)[-1]
    verb = "fell" if curve.ended else "falls"
    return Finding(
        code="healthy",
        message=f"The loss {verb} as it should: from {first:.3g} to {last:.3g}{held}.",
        evidence={"first_loss": first, "last_loss": last, "step": curve.last_step},
        advice=None,
    )


def _levels(losses: Sequence[float]) -> list[float]:
    """Means of up to ten stretches of equal length: one step's loss says more of its rows than of the model."""
    count = max(2, min(10, len(losses) // 4))
    return [_mean(window) for window in _windows(losses, count)]


def _windows(values: Sequence[float], count: int) -> list[Sequence[float]]:
    edges = [round(n * len(values) / count) for n in range(count + 1)]
    return [values[a:b] for a, b in itertools.pairwise(edges)]


def _noise(losses: Sequence[float], count: int) -> float:
    """Standard error of the difference of two stretches' means, from how much neighbours differ."""
    late = losses[len(losses) // 5 :]
    squares = [(b - a) ** 2 / 2 for a, b in itertools.pairwise(late)]
    return math.sqrt(2 * _mean(squares) / max(1, len(losses) // count)) if squares else 0.0


def _as_pairs(curve: Curve, levels: list[float]) -> list[tuple[int, float]]:
    return [(int(window[-1]), level) for window, level in zip(_windows(curve.steps, len(levels)), levels, strict=True)]


def _pairs(curve: Curve) -> Iterator[tuple[int, float]]:
    return zip(curve.steps, curve.losses, strict=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
