"""The worker's row: what it says of its machine."""

from pathlib import Path
from typing import Any, cast

from core.config import Settings
from core.cost import Machine
from worker.registry import MEASUREMENTS, Registration
from worker.slot import Slot

MACHINE = Machine(flops={"fp32": 1e11}, bytes_per_second=1e10, op_seconds=1e-5, resident_bytes=4 * 10**8)


class Busy:
    """A slot whose child is given a job before it can answer, the first ``lost`` times."""

    warm = True

    def __init__(self, lost: int) -> None:
        self.lost, self.asked = lost, 0

    def measure(self) -> None:
        self.asked += 1

    @property
    def measured(self) -> Machine | None:
        return MACHINE if self.asked > self.lost else None


def test_a_worker_that_is_given_jobs_before_it_can_answer_is_asked_until_it_has(tmp_path: Path) -> None:
    """The bug behind it: five questions in its first minute, each lost to a job, and it was never asked again."""
    slot = Busy(lost=3 * MEASUREMENTS)
    sessions: Any = None
    registration = Registration(
        sessions, Settings(home=tmp_path), warm=lambda: True, cache=tmp_path, measuring=cast(Slot, slot)
    )
    for _ in range(10 * MEASUREMENTS):
        registration._measure()
    assert registration._machine == MACHINE
    # And no more than needed: a measurement takes the machine for a second.
    assert slot.asked == slot.lost + MEASUREMENTS
