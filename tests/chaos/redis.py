"""Redis emptied, killed or cut off while a job is on its way: the rows are the queue, so that costs seconds at most."""

import time
from collections.abc import Iterator
from random import Random

from redis import Redis

from tests.chaos import checker, generator
from tests.chaos.checker import Fault
from tests.chaos.client import Submission
from tests.chaos.generator import Blow, Moment, Trial
from tests.chaos.kills import Kills
from tests.chaos.site import Site, Watch

DISPATCH = 30.0
"""Seconds after the return of Redis within which a job must have begun."""


def loop(kills: Kills, trials: int, watch: Watch) -> Iterator[tuple[Trial, list[Fault], float]]:
    for number in range(1, trials + 1):
        random = Random(f"{kills.seed}/redis/{number}")
        moment = Moment("seconds", round(random.uniform(0, 3), 2))
        fault = ("emptied", "redis", "cut")[number % 3]
        blow = Blow(fault, moment, round(random.uniform(0.2, 6), 1))
        trial = Trial(20_000 + number, generator.SHORT, 0, (blow,))
        began = time.monotonic()
        yield trial, run(kills, trial), time.monotonic() - began


def run(kills: Kills, trial: Trial) -> list[Fault]:
    site, name, (blow,) = kills.site, f"{kills.seed}-{trial.number}", trial.blows
    unkilled = kills.reference(trial.work)
    submission = Submission(site.client, trial.work, 0, name)
    try:
        site.pause(blow.moment.number)
        match blow.target:
            case "emptied":
                _empty(site)
            case "cut":
                site.bell.cut()
                site.pause(blow.down)
                site.bell.heal()
            case _:
                site.kill("redis", blow.down)
                site.until(lambda: site.stack.supervisor.pid("redis") is not None, 30)
        back = time.time()
        faults = [*kills.wait(submission, name)]
    finally:
        site.bell.heal()
        submission.give_up()
    job = checker.job_of(site, name)
    if job is None or faults:
        return faults
    first = site.one("SELECT started_at FROM attempts WHERE job_id = %s AND n = 1", job["id"])
    if first is not None:
        waited = first["started_at"].timestamp() - max(back, job["created_at"].timestamp())
        kills.times.dispatch.append(max(0.0, waited))
        if waited > DISPATCH:
            faults.append(Fault("stuck", f"{job['id']} began {waited:.0f} s after Redis was back"))
    faults += checker.once(site, name, submission.job_id, submission.told)
    return [*faults, *checker.succeeded(site, trial, job, unkilled)]


def _empty(site: Site) -> None:
    from cli.stack.home import Home

    password = Home(site.home).secret("redis_password")
    with Redis(port=site.port("redis"), password=password) as server:
        server.flushall()
