"""Owners that were stopped until the job had ended without them, and then woke up: nothing of theirs may count."""

import signal
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.chaos import checker, generator
from tests.chaos.checker import Fault
from tests.chaos.client import Submission
from tests.chaos.generator import Moment, Trial
from tests.chaos.kills import Kills
from tests.chaos.nemesis import Nemesis, children
from tests.chaos.site import Site, Watch, signal_to

REFUSED = "fence.refused"

_TABLES = {
    "jobs": "SELECT * FROM jobs WHERE id = %s",
    "metrics": "SELECT * FROM metrics WHERE job_id = %s ORDER BY step",
    "events": "SELECT * FROM events WHERE job_id = %s ORDER BY number",
    "attempts": "SELECT * FROM attempts WHERE job_id = %s ORDER BY n",
    # Recovery points of an ended job go by themselves.
    "checkpoints": "SELECT * FROM checkpoints WHERE job_id = %s AND kind = 'epoch' ORDER BY step",
    "tuned_models": "SELECT * FROM tuned_models WHERE job_id = %s ORDER BY id",
    "files": "SELECT * FROM files WHERE job_id = %s ORDER BY id",
}


def loop(kills: Kills, trials: int, watch: Watch) -> Iterator[tuple[Trial, list[Fault], float]]:
    for number in range(1, trials + 1):
        random = Random(f"{kills.seed}/zombie/{number}")
        moment = random.choice(
            (
                Moment("step", round(random.uniform(0.05, 0.6), 2)),
                Moment("checkpoint", random.randint(1, 12)),
                Moment("artifact", random.randint(1, 6)),
                Moment("saving"),
            )
        )
        # The first two of a run are always the two that write most: a step's rows, and the end.
        if number <= 2:
            moment = (Moment("step", 0.3), Moment("artifact", 3))[number - 1]
        trial = Trial(10_000 + number, random.choice(generator.WORKS), 0, (), asleep=moment)
        began = time.monotonic()
        yield trial, run(kills, trial, random, watch), time.monotonic() - began


def run(kills: Kills, trial: Trial, random: Random, watch: Watch) -> list[Fault]:
    assert trial.asleep is not None
    site, name = kills.site, f"{kills.seed}-{trial.number}"
    unkilled = kills.reference(trial.work)
    nemesis = Nemesis(site, random)
    submission = Submission(site.client, trial.work, 0, name)
    held = False
    faults: list[Fault] = []
    with watch.blind():
        try:
            held = nemesis.arrive(trial.asleep, name, trial.work)
            owner = nemesis.owner(name)
            if owner is None:
                return [*kills.wait(submission, name)]
            asleep = stop(site, owner)
            slept = time.monotonic()
            faults += kills.wait(submission, name)
            site.pause(max(0.0, slept + 2 * site.settings.lease_seconds - time.monotonic()))
            job = checker.job_of(site, name)
            assert job is not None
            before = rows(site, job["id"])
            refused = site.counted(REFUSED)
            if held and random.random() < 0.5:
                site.gate.release()
            for pid in reversed(asleep):
                # The trainer first: what it writes now, its supervisor finds and would like to report.
                signal_to(pid, signal.SIGCONT)
                site.pause(0.1)
            site.gate.release()
            site.until(lambda: not any(t.pid in asleep for t in site.trainers()), 15)
            site.until(lambda: site.counted(REFUSED) > refused, 3)
        finally:
            site.gate.release()
            submission.give_up()
            for pid in site.workers():
                signal_to(pid, signal.SIGCONT)
    if any(t.pid in asleep for t in site.trainers()):
        faults.append(Fault("doubled", f"{job['id']}: a trainer trains on 15 s after it woke up without a job"))
    after = rows(site, job["id"])
    changed = [table for table in before if before[table] != after[table]]
    faults += [Fault("doubled", f"{job['id']}: a zombie changed {table}") for table in changed]
    kills.times.refused += site.counted(REFUSED) - refused
    return [*faults, *checker.succeeded(site, trial, job, unkilled), *checker.owned(site, job["id"])]


def stop(site: Site, owner: str) -> list[int]:
    """SIGSTOP for a worker and then for its child; returns their ids in that order."""
    pid = site.pids()[owner]
    signal_to(pid, signal.SIGSTOP)
    asleep = [pid, *children(pid)]
    for child in asleep[1:]:
        signal_to(child, signal.SIGSTOP)
    return asleep


def rows(site: Site, id: str) -> dict[str, list[dict[str, Any]]]:
    return {name: site.query(query, id) for name, query in _TABLES.items()}
