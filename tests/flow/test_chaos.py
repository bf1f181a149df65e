"""Processes are killed, stopped and cut off at random, and no job is lost, doubled or changed (``tests/chaos``)."""

import os
import subprocess
import sys

import pytest

from tests.chaos.mutants import MUTANTS
from tests.chaos.schedules import SCHEDULES
from tests.live import ROOT

pytestmark = pytest.mark.flow


def chaos(*arguments: object) -> str:
    """What the harness said at last, if all was well; a seed that failed is in its first line."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout.splitlines()[-1]


def well(trials: int) -> str:
    return f"trials {trials}, lost 0, stuck 0, doubled 0, unequal 0"


def test_no_job_is_lost_doubled_or_changed_by_kills() -> None:
    assert chaos("--seed", 6, "--trials", 10) == well(10)


def test_schedules_that_chance_would_need_long_for_come_out_right() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.chaos.schedules"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert done.stdout.splitlines()[-1] == f"schedules {len(SCHEDULES)}, failed 0"


@pytest.mark.proof
def test_two_hundred_trials_of_kills() -> None:
    assert chaos("--trials", 200) == well(200)


@pytest.mark.proof
def test_five_trials_at_the_default_periods() -> None:
    assert chaos("--trials", 5, "--defaults") == well(5)


@pytest.mark.proof
def test_fifty_zombies_change_nothing() -> None:
    assert chaos("--trials", 0, "--zombies", 50) == well(50)


@pytest.mark.proof
def test_a_hundred_losses_of_redis_cost_seconds() -> None:
    assert chaos("--trials", 0, "--redis", 100) == well(100)


@pytest.mark.proof
def test_every_mutant_is_caught() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.chaos.mutants"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]


def test_every_mutant_still_finds_what_it_breaks() -> None:
    for mutant in MUTANTS:
        for file, old, _ in mutant.edits:
            assert (ROOT / file).read_text().count(old) == 1, f"{mutant.name}: {file} has not once {old!r}"
