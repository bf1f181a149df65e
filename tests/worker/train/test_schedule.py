import math

import pytest

from worker.folder import OptimSpec
from worker.train.schedule import learning_rate

PEAK, FLOOR, WARM, TOTAL = 2e-4, 0.1, 10, 110


def rate(schedule: str, step: int, warmup: int = WARM) -> float:
    optim = OptimSpec.model_validate(
        {"learning_rate": PEAK, "schedule": schedule, "warmup_steps": warmup, "min_lr_ratio": FLOOR}
    )
    return learning_rate(optim, step, TOTAL)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "inverse_sqrt", "wsd"])
def test_warm_up_rises_evenly_to_the_peak(schedule: str) -> None:
    assert [rate(schedule, step) / PEAK for step in range(1, WARM + 1)] == pytest.approx(
        [step / WARM for step in range(1, WARM + 1)]
    )


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("cosine", lambda step: FLOOR + (1 - FLOOR) * math.cos(math.pi / 2 * (step - 10) / 100) ** 2),
        ("linear", lambda step: 1 - (1 - FLOOR) * (step - 10) / 100),
        ("constant", lambda step: 1.0),
        ("inverse_sqrt", lambda step: max(FLOOR, math.sqrt(10 / step))),
        ("wsd", lambda step: 1.0 if step <= 90 else 1 - (1 - FLOOR) * (step - 90) / 20),
    ],
)
def test_after_warm_up_each_schedule_follows_its_formula(schedule: str, formula: "object") -> None:
    assert callable(formula)
    for step in (11, 35, 60, 90, 91, 100, 109, 110):
        assert rate(schedule, step) / PEAK == pytest.approx(formula(step)), step


def test_without_warm_up_the_first_step_is_nearly_the_peak() -> None:
    assert rate("linear", 1, warmup=0) == pytest.approx(PEAK * (1 - 0.9 / 110))
    assert rate("inverse_sqrt", 1, warmup=0) == PEAK


def test_a_warm_up_longer_than_the_run_is_no_error() -> None:
    assert rate("cosine", TOTAL, warmup=1000) == PEAK
