"""What is said of real runs that were made so that it is known what is wrong with them (``bench/diagnosis.py``)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import diagnosis as labelled
from bench.diagnosis import HALVES, WAYS
from core import diagnosis

RUNS = labelled.kept()


@pytest.mark.parametrize("half", [half for half in HALVES if half != "tune"])
def test_runs_that_no_threshold_was_set_on_are_named_rightly(half: str) -> None:
    runs = [run for run in RUNS if run["half"] == half]
    assert len(runs) == len(WAYS) * len(HALVES[half][1])
    named = [run for run in runs if run["label"] in labelled.codes(run)]
    assert len(named) >= 0.9 * len(runs)


HEALTHY = [run for run in RUNS if run["label"] == "healthy"]
# It ends as healthy; before, its validation loss rises by a fifth and calms down.
WRONGED = ("healthy-last", 42)


@pytest.mark.parametrize(
    "run", [run for run in HEALTHY if (run["name"], run["seed"]) != WRONGED], ids=lambda run: run["name"]
)
def test_nothing_is_said_of_a_healthy_run_at_its_end_or_before(run: labelled.Json) -> None:
    assert labelled.codes(run) == ["healthy"]
    assert labelled.alarms(run) == []


def test_the_kept_curves_are_of_the_ways_that_the_script_has() -> None:
    assert len(RUNS) >= 60
    assert {(run["name"], run["label"]) for run in RUNS} == {(name, way.label) for name, way in WAYS.items()}


def test_every_finding_but_healthy_says_what_to_try_and_stands_on_numbers() -> None:
    found = [finding for run in RUNS for finding in diagnosis.diagnose(labelled.curve(run))]
    assert {finding.code for finding in found} == set(get_args(diagnosis.Code)) - {"validation_shared"}
    for finding in found:
        assert finding.message.endswith(".")
        assert finding.evidence
        assert (finding.advice is None) == (finding.code == "healthy")


def one(name: str) -> labelled.Json:
    return next(run for run in RUNS if run["name"] == name)


def test_overfitting_names_the_step_of_the_least_validation_loss() -> None:
    run = one("overfitting-last")
    (finding,) = diagnosis.diagnose(labelled.curve(run))
    step, least = min(run["evals"], key=lambda told: told[1])
    assert (finding.evidence["from_step"], finding.evidence["least_valid_loss"]) == (step, least)


def test_a_run_that_overfits_says_so_before_its_end() -> None:
    run = one("overfitting-last")
    told = [step for step in range(1, run["total_steps"]) if "overfitting" in labelled.codes(run, step)]
    assert told[0] < run["total_steps"] / 2


def test_validation_rows_that_are_trained_on_are_told() -> None:
    curve = labelled.curve(one("healthy-last"))
    shared = dataclasses.replace(curve, facts={**curve.facts, "shared": 30})
    assert [finding.code for finding in diagnosis.diagnose(shared)] == ["validation_shared"]


def test_too_few_steps_say_nothing() -> None:
    run = one("slow-last")
    assert all(labelled.codes(run, step) == [] for step in range(diagnosis.FEWEST_STEPS))


def _curve(losses: Sequence[float], total_steps: int | None = None, **more: Any) -> diagnosis.Curve:
    """Of a run that has done all its steps, unless it is said how many there are."""
    count = len(losses)
    return diagnosis.Curve(
        total_steps=total_steps or count,
        steps_per_epoch=8,
        steps=range(1, count + 1),
        losses=losses,
        grad_norms=[1.0] * count,
        **more,
    )


def test_a_loss_that_rises_with_that_of_the_validation_rows_is_not_called_learning_by_heart() -> None:
    evals = [(8, 2.5), (16, 2.0), (24, 2.2), (32, 2.6)]
    steps = range(1, 33)
    # Too little a rise to be one by itself.
    rising = [max(1.0, 3 - 0.2 * step) + 0.005 * step for step in steps]
    falling = [3 - 0.06 * step for step in steps]
    for losses, code in ((rising, "fluctuating"), (falling, "overfitting")):
        curve = _curve(losses, evals=evals, ended=True)
        assert [finding.code for finding in diagnosis.diagnose(curve)] == [code]


def test_an_easy_first_example_makes_no_run_diverged() -> None:
    losses = [0.01, 1.2, 2.0, 0.9, 1.4, 1.6, 0.8, 1.9, *[1.0] * 40]
    curve = _curve(losses, batch_size=1)
    assert "diverged" not in [finding.code for finding in diagnosis.diagnose(curve)]
    assert "diverged" in [finding.code for finding in diagnosis.diagnose(dataclasses.replace(curve, batch_size=8))]


def test_an_adapter_that_was_thrown_where_no_gradient_is_has_diverged_and_one_that_went_far_and_learned_has_not() -> (
    None
):
    diverged = [run for run in RUNS if run["label"] == "diverged" and run["error"] is None]
    thrown = [run for run in diverged if run["half"].startswith("later")]
    assert len(thrown) > 5
    assert all(labelled.codes(run)[0] == "diverged" for run in thrown)
    for run in thrown:
        curve = labelled.curve(run)
        learned = dataclasses.replace(
            curve, losses=[loss / 10 if n > 40 else loss for n, loss in enumerate(curve.losses)]
        )
        near = dataclasses.replace(curve, moved=[(step, 3.0) for step, _ in curve.moved])
        alive = dataclasses.replace(curve, grad_norms=[1.0] * len(curve.losses))
        for other in (learned, near, alive):
            assert "diverged" not in [finding.code for finding in diagnosis.diagnose(other)]


def test_a_small_rise_after_a_long_fall_is_no_overfitting() -> None:
    steps = range(1, 41)
    losses = [max(0.1, 2 - 0.08 * step) - 0.001 * step for step in steps]
    for evals, code in (
        ([(8, 2.0), (16, 1.0), (24, 0.1), (32, 0.12), (40, 0.12)], "healthy"),
        ([(8, 0.12), (16, 0.11), (24, 0.1), (32, 0.12), (40, 0.12)], "overfitting"),
    ):
        curve = _curve(losses, evals=evals, ended=True)
        assert [finding.code for finding in diagnosis.diagnose(curve)] == [code]


def test_one_odd_evaluation_while_a_run_trains_is_no_overfitting() -> None:
    losses = [3 - 0.05 * step for step in range(40)]
    curve = _curve(losses, total_steps=80, evals=[(10, 2.8), (20, 2.0), (30, 2.0), (40, 2.4)])
    assert "overfitting" not in [finding.code for finding in diagnosis.diagnose(curve)]
    again = dataclasses.replace(curve, evals=[*curve.evals[:2], (30, 2.4), (40, 2.4)])
    assert "overfitting" in [finding.code for finding in diagnosis.diagnose(again)]


_LOSS = st.floats(0, 100) | st.sampled_from([0.0, 1e-12, 1e30])


@given(data=st.data(), losses=st.lists(_LOSS, max_size=60), ended=st.booleans())
@settings(deadline=None, max_examples=300)
def test_whatever_is_measured_something_can_be_said(data: st.DataObject, losses: list[float], ended: bool) -> None:
    """What raises here would end somebody's job."""
    count, share = len(losses), st.floats(0, 1)
    evaluated = data.draw(st.lists(st.integers(1, count), unique=True)) if count else []
    learned = {"ends": st.just(48.0), "end_common": share, "end_first": share, "end_probability": share}
    twins = {"duplicate_rows": st.just(3.0), "duplicate_loss": _LOSS, "single_loss": _LOSS}
    curve = diagnosis.Curve(
        total_steps=data.draw(st.integers(max(1, count), 200)),
        steps_per_epoch=data.draw(st.integers(1, 50)),
        steps=range(1, count + 1),
        losses=losses,
        grad_norms=[data.draw(_LOSS) for _ in losses],
        evals=[(step, data.draw(_LOSS)) for step in sorted(evaluated)],
        moved=[(step, data.draw(_LOSS)) for step in sorted(evaluated)],
        facts=data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(_FACTS, st.integers(0, 30)))),
        learned=data.draw(st.just({}) | st.fixed_dictionaries(learned, optional=twins)),
        ended=ended,
        error=data.draw(st.sampled_from([None, "diverged", "out_of_memory"])),
        batch_size=data.draw(st.integers(1, 16)),
    )
    for finding in diagnosis.diagnose(curve):
        assert finding.message


_FACTS = ("rows", "duplicates", "valid_rows", "shared")
