"""The kill loop: a job, a few blows, and what came of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

import openai

from tests.chaos import checker, generator
from tests.chaos.checker import Fault, Outcome
from tests.chaos.client import Submission
from tests.chaos.generator import Trial, Work
from tests.chaos.nemesis import Nemesis
from tests.chaos.site import Site, Watch


@dataclass
class Times:
    """What was measured on the way, in seconds."""

    detection: list[float] = field(default_factory=list)
    """From a supervisor's death to the next attempt."""
    cancel_waiting: list[float] = field(default_factory=list)
    cancel_running: list[float] = field(default_factory=list)
    """From the request to a slot without a trainer."""
    dispatch: list[float] = field(default_factory=list)
    """From the return of Redis to the first attempt."""
    refused: int = 0
    """Writes of owners that were none any more."""


class Kills:
    def __init__(self, site: Site, seed: int, *, stuck: float = 90.0, leases: float = 1.0) -> None:
        """``stuck``: seconds without owner, place or end after which a job counts as stuck; ``leases``: how many times
        a patience made for leases of six seconds is waited."""
        self.site = site
        self.seed = seed
        self.stuck = stuck
        self.leases = leases
        self.times = Times()
        self.unkilled: dict[str, Outcome] = {}

    def reference(self, work: Work) -> Outcome:
        """The run of this kind that nobody disturbs; made once."""
        if work.name not in self.unkilled:
            name = f"unkilled-{work.name}"
            submission = Submission(self.site.client, work, 0, name)
            if not self.site.until(lambda: submission.over and self._ended(name), 600):
                raise AssertionError(f"{name} does not end\n{self.site.logs()}")
            job = checker.job_of(self.site, name)
            assert job is not None, submission.refusal
            assert job["status"] == "succeeded", (job["error"], self.site.logs())
            self.unkilled[work.name] = checker.outcome(self.site, job)
        return self.unkilled[work.name]

    def run(self, trial: Trial, watch: Watch) -> list[Fault]:
        unkilled = self.reference(trial.work)
        site, name = self.site, f"{self.seed}-{trial.number}"
        nemesis = Nemesis(site, Random(f"{self.seed}/{trial.number}/nemesis"))
        submission = Submission(site.client, trial.work, trial.mark, name)
        seen: list[Fault] = []

        def look() -> None:
            job = checker.job_of(site, name)
            if job is not None:
                seen.extend([*checker.whole(site, job["id"]), *checker.manifests(site, job)])

        cancelled = None
        try:
            for blow in trial.blows:
                if not nemesis.strike(blow, name, trial.work, look):
                    break
                seen += self._orphans(nemesis)
            if trial.cancel is not None:
                held = nemesis.arrive(trial.cancel, name, trial.work)
                cancelled = self._cancel(submission)
                if held:
                    site.gate.release()
            seen += self.wait(submission, name)
        finally:
            site.gate.release()
            submission.give_up()
            for down in site.down():
                site.stack.supervisor.restart_in(down, 0)
            site.until(site.answers, 60 * self.leases)
        seen += checker.once(site, name, submission.job_id, submission.told)
        job = checker.job_of(site, name)
        if job is not None and not any(fault.sort == "stuck" for fault in seen):
            if cancelled is None:
                seen += checker.succeeded(site, trial, job, unkilled)
            elif job["status"] != "cancelled":
                seen.append(Fault("lost", f"{job['id']}: cancelling was accepted, and the job {job['status']}"))
            else:
                seen += checker.owners(site, job["id"])
            seen += checker.owned(site, job["id"])
            self._measure_detection(nemesis, job["id"])
        seen += [Fault("doubled", text) for text in watch.faults]
        watch.faults.clear()
        return list(dict.fromkeys(seen))

    def _orphans(self, nemesis: Nemesis) -> list[Fault]:
        """The trainers of a supervisor that was just killed are gone within five seconds."""
        last = nemesis.history[-1] if nemesis.history else None
        if last is None or not last.orphans:
            return []
        gone = self.site.until(lambda: not {t.pid for t in self.site.trainers()} & last.orphans, 5)
        return [] if gone else [Fault("doubled", f"the trainers {set(last.orphans)} outlived their supervisor by 5 s")]

    def wait(self, submission: Submission, name: str) -> Iterator[Fault]:
        """Until the job has ended, looking at its right to wait."""
        site, lost = self.site, 0.0
        began = looked = time.monotonic()
        while not self._ended(name):
            if submission.refusal is not None:
                yield Fault("lost", f"the create was refused: {submission.refusal}")
                return
            site.pause(0.2)
            job = checker.job_of(site, name)
            now = time.monotonic()
            if job is not None:
                lost = 0.0 if checker.place(job, datetime.now(UTC)) else lost + now - looked
            looked = now
            if lost > self.stuck or now - began > self.stuck + 90 * self.leases:
                what = {k: job[k] for k in ("status", "phase", "wish", "lease_until", "generation")} if job else None
                yield Fault("stuck", f"{name}: {what} after {now - began:.0f} s")
                return

    def _cancel(self, submission: Submission) -> bool | None:
        """Ask for the end; True when it was accepted, None when there was nothing left to cancel."""
        site = self.site
        if not site.until(lambda: submission.over, 60) or submission.job_id is None:
            return None
        id = submission.job_id
        for _ in range(100):
            job = site.one("SELECT status, lease_until FROM jobs WHERE id = %s", id)
            asked = time.monotonic()
            try:
                site.client.fine_tuning.jobs.cancel(id)
            except openai.APIStatusError as error:
                if error.status_code < 500:
                    return None  # it had ended already
            except openai.APIConnectionError:
                pass
            else:
                self._measure_cancel(id, asked, job is not None and job["lease_until"] is not None)
                return True
            site.pause(0.2)
        return None

    def _measure_cancel(self, id: str, asked: float, owned: bool) -> None:
        if not owned:
            if site_status(self.site, id) == "cancelled":
                self.times.cancel_waiting.append(time.monotonic() - asked)
        elif self.site.gate.held.is_set():
            return  # it is the harness that keeps it from ending
        elif self.site.until(lambda: not any(t.job_id == id for t in self.site.trainers()), 60):
            self.times.cancel_running.append(time.monotonic() - asked)

    def _ended(self, name: str) -> bool:
        job = checker.job_of(self.site, name)
        return job is not None and job["status"] in ("succeeded", "failed", "cancelled")

    def _measure_detection(self, nemesis: Nemesis, id: str) -> None:
        starts = [
            row["started_at"].timestamp()
            for row in self.site.query("SELECT started_at FROM attempts WHERE job_id = %s ORDER BY n", id)
        ]
        for strike in nemesis.history:
            later = [start for start in starts if start > strike.at]
            if strike.target == "supervisor" and strike.owner and later and any(s <= strike.at for s in starts):
                self.times.detection.append(later[0] - strike.at)


def site_status(site: Site, id: str) -> str | None:
    row = site.one("SELECT status FROM jobs WHERE id = %s", id)
    return None if row is None else str(row["status"])


def loop(kills: Kills, trials: int, watch: Watch) -> Iterator[tuple[Trial, list[Fault], float]]:
    for number in range(1, trials + 1):
        trial = generator.trial(kills.seed, number)
        began = time.monotonic()
        yield trial, kills.run(trial, watch), time.monotonic() - began
