"""``make mutants``: the code is broken one way at a time, in a copy, and a trial must notice. Status 1 when one lives.

A proof of nothing going wrong is worth what it notices. The copy that nothing was broken in must pass the same trials.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "core", "worker", "cli", "migrations", "tests")


@dataclass(frozen=True)
class Mutant:
    name: str
    edits: tuple[tuple[str, str, str], ...]
    """(file, what stands there exactly once, what takes its place)"""
    trials: tuple[str, ...]
    """Arguments of ``python -m``."""


def _named(*names: str) -> tuple[str, ...]:
    return ("tests.chaos", "--seed", "1", "--stuck", "25", "--named", *names)


_ZOMBIES = ("tests.chaos", "--seed", "1", "--trials", "0", "--zombies", "2")


def _schedule(name: str) -> tuple[str, ...]:
    return ("tests.chaos.schedules", name)


_FENCE = "core/queue/fence.py"

MUTANTS = (
    Mutant(
        "no fence",
        (
            (
                _FENCE,
                ".where(table.id == id, table.generation == generation, table.lease_until.is_not(None))",
                ".where(table.id == id)",
            ),
        ),
        _ZOMBIES,
    ),
    Mutant(
        "fence without the row's lock",
        ((_FENCE, "            .with_for_update(key_share=True)\n", ""),),
        _schedule("zombie_commits_after_the_next_claim"),
    ),
    Mutant(
        "fence without a look at the lease",
        ((_FENCE, ", table.lease_until.is_not(None))", ")"),),
        _schedule("zombie_writes_between_sweep_and_claim"),
    ),
    Mutant(
        "claim without a look at the lease",
        (
            (
                "core/queue/claims.py",
                "            Job.status == status,\n            Job.lease_until.is_(None),\n",
                "            Job.status == status,\n",
            ),
            ("core/queue/shares.py", " AND lease_until IS NULL\n    AND phase", "\n    AND phase"),
        ),
        _schedule("two_claims_of_one_row"),
    ),
    Mutant(
        "manifest before the files",
        (
            (
                "worker/publish.py",
                "    for entry in manifest.files:\n        look()\n        store.put_file(",
                "    store.put(prefix + MANIFEST, raw)\n"
                "    for entry in manifest.files:\n        look()\n        store.put_file(",
            ),
        ),
        _named("upload-dies"),
    ),
    Mutant(
        "row before the manifest",
        (
            (
                "worker/reporter.py",
                'manifest, sha256 = publish.folder(self._store, self._folder / line["path"], prefix, look)\n',
                'raw = (self._folder / line["path"] / "manifest.json").read_bytes()\n'
                "            with self._fenced() as (session, job):\n"
                "                found = orjson.loads(raw)\n"
                "                progress.checkpointed(session, job, line, prefix, found, publish.sha256(raw))\n"
                '            publish.folder(self._store, self._folder / line["path"], prefix, look)\n'
                "            self._remove(line)\n"
                "            return\n",
            ),
        ),
        _named("upload-dies"),
    ),
    Mutant(
        "no sweep",
        (("worker/reconciler.py", "sweeps.expired_jobs(session, parts.settings)", "0"),),
        _named("machine-dies"),
    ),
    Mutant(
        "cancel ignored while results are uploaded",
        (("worker/runner.py", "            if job.wish == Wish.CANCEL:\n", "            if False:\n"),),
        _named("cancel-artifact"),
    ),
    Mutant(
        "cancel ignored while it trains",
        (
            (
                "worker/lease.py",
                "            if self.cancelled and not cancelled:\n                self._stop()\n",
                "",
            ),
            (
                "worker/runner.py",
                "        if lease.cancelled:\n            with self._job(claim) as (session, job):\n"
                "                runs.cancelled(session, job)\n        elif reporter",
                "        if reporter",
            ),
            ("worker/runner.py", "lease.lost.is_set() or lease.cancelled or (until", "lease.lost.is_set() or (until"),
            ("worker/runner.py", "            if job.wish == Wish.CANCEL:\n", "            if False:\n"),
        ),
        _named("cancel-step"),
    ),
    Mutant(
        "orphaned trainer left alive",
        (
            ("worker/child.py", "    die_with_parent()\n    stand_back", "    stand_back"),
            (
                "worker/child.py",
                "    # End of file: the supervisor is gone, and with it this process's right to the slot.\n"
                "    os._exit(0)\n",
                "",
            ),
        ),
        _named("machine-dies"),
    ),
    Mutant(
        "idempotency key outside the transaction",
        (
            ("core/services/jobs.py", "    idempotency.remember(session, tenant, once, job)\n", ""),
            (
                "api/routes/jobs.py",
                "    # After the commit, and best effort: the row is the work, the ring only saves a few seconds.\n"
                '    parts.doorbell.ring("prepare")\n',
                "    try:\n"
                "        with transaction(parts.sessions) as session:\n"
                "            idempotency.remember(session, tenant, once, job)\n"
                "    except Exception:\n"
                "        pass  # the record is there\n"
                '    parts.doorbell.ring("prepare")\n',
            ),
        ),
        _named("quiet"),
    ),
    Mutant(
        "no filter by tenant",
        (("core/db/tenancy.py", "select(table).where(table.project_id == tenant.project_id)", "select(table)"),),
        _named("quiet"),
    ),
    Mutant(
        "random state not restored",
        (
            (
                "worker/train/checkpoint.py",
                "    set_random_state(model, state.rng)\n    if model",
                "    if model",
            ),
        ),
        _named("trainer-dies"),
    ),
    Mutant(
        "what came after the checkpoint is left there",
        (
            (
                "core/services/runs.py",
                "    session.execute(delete(Metric).where(Metric.job_id == job.id, Metric.step > step))\n",
                "",
            ),
        ),
        _named("trainer-dies"),
    ),
)

CONTROLS = (
    _named(
        "quiet",
        "trainer-dies",
        "machine-dies",
        "upload-dies",
        "artifact-dies",
        "cancel-preparing",
        "cancel-starting",
        "cancel-step",
        "cancel-checkpoint",
        "cancel-saving",
        "cancel-artifact",
    ),
    _ZOMBIES,
    ("tests.chaos.schedules",),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__)
    parser.add_argument("--only", help="mutants whose name has this in it")
    parser.add_argument("--no-controls", action="store_true")
    asked = parser.parse_args()
    alive = 0
    with tempfile.TemporaryDirectory(prefix="attune-mutants-") as folder:
        if not asked.no_controls:
            copy = copied(Path(folder) / "whole")
            for trials in CONTROLS:
                status, said, seconds = show(copy, trials)
                print(f"{'ok  ' if status == 0 else 'FAIL'} {seconds:4.0f} s  nothing broken: {said[-1]}", flush=True)
                alive += status != 0
                if status != 0:
                    print("\n".join(said[-30:]))
        chosen = [m for m in MUTANTS if asked.only is None or asked.only in m.name]
        for mutant in chosen:
            copy = copied(Path(folder) / "copy")
            for file, old, new in mutant.edits:
                edit(copy / file, old, new)
            status, said, seconds = show(copy, mutant.trials)
            # A harness that broke has noticed nothing: it must have counted a fault itself.
            caught = status == 1 and said[-1].startswith(("trials", "schedules"))
            alive += not caught
            why = next((line.strip() for line in said if _is_fault(line)), said[-1])
            what = f"caught by {' '.join(mutant.trials[5:] or mutant.trials)}: {why}" if caught else "LIVES"
            print(f"{'ok  ' if caught else 'FAIL'} {seconds:4.0f} s  {mutant.name}: {what[:200]}", flush=True)
            if not caught:
                print("\n".join(said[-30:]))
            shutil.rmtree(copy)
    print(f"mutants {len(chosen)}, alive {alive}")
    return int(alive > 0)


def _is_fault(line: str) -> bool:
    return line.startswith(("     ", "FAIL zombie", "FAIL two"))


def copied(folder: Path) -> Path:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{path.name} has {text.count(old)} times, not once: {old!r}")
    path.write_text(text.replace(old, new))


def show(copy: Path, trials: tuple[str, ...]) -> tuple[int, list[str], float]:
    began = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    done = subprocess.run(
        [sys.executable, "-m", *trials],
        cwd=copy,
        env={**environment, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    said = done.stdout.splitlines() or done.stderr.splitlines() or ["nothing said"]
    if done.returncode not in (0, 1) or not said[-1].startswith(("trials", "schedules")):
        said += done.stderr.splitlines()[-20:]
    return done.returncode, said, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
