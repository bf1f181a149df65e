"""What must hold after a trial, read from database, store, event log and disk. Knows nothing of what was struck."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

import httpx
import openai
import orjson

from tests.chaos.generator import Trial
from tests.chaos.site import Site

Sort = Literal["lost", "stuck", "doubled", "unequal", "litter", "leak"]
SORTS: tuple[Sort, ...] = ("lost", "stuck", "doubled", "unequal", "litter", "leak")


@dataclass(frozen=True)
class Fault:
    sort: Sort
    text: str

    def __str__(self) -> str:
        return f"{self.sort}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run that must be the same however often it was interrupted."""

    weights: str
    steps: tuple[tuple[Any, ...], ...]


def job_of(site: Site, trial: str) -> dict[str, Any] | None:
    return site.one("SELECT * FROM jobs WHERE metadata->>'trial' = %s", trial)


def once(site: Site, trial: str, accepted: str | None, told: list[str]) -> list[Fault]:
    """One job for one wish, however often it was said; and the one that was promised."""
    rows = [row["id"] for row in site.query("SELECT id FROM jobs WHERE metadata->>'trial' = %s", trial)]
    faults = []
    if accepted is not None and accepted not in rows:
        faults.append(Fault("lost", f"{accepted} was accepted and is not there"))
    if len(rows) > 1 or len(set(told)) > 1:
        faults.append(Fault("doubled", f"one create made {rows} and told of {told}"))
    return faults


def outcome(site: Site, job: dict[str, Any]) -> Outcome:
    """As a user sees it: the weights are downloaded."""
    client = site.client
    found = {}
    for id in job["result_files"]:
        file = client.files.retrieve(id)
        content = client.files.content(id).read()
        assert hashlib.sha256(content).hexdigest() == file.ext["sha256"], f"{file.filename} is not what was written"  # type: ignore[attr-defined]
        assert len(content) == file.bytes
        found[file.filename] = content
    weights = found.get("adapter_model.safetensors") or found["model.safetensors"]
    table = found["step_metrics.csv"].decode().splitlines()
    # All columns but the seconds.
    return Outcome(hashlib.sha256(weights).hexdigest(), tuple(tuple(line.split(",")[:-1]) for line in table))


def succeeded(site: Site, trial: Trial, job: dict[str, Any], unkilled: Outcome) -> list[Fault]:
    """The end of a job that nobody cancelled."""
    if job["status"] != "succeeded":
        return [Fault("lost", f"{job['id']} {job['status']}: {job['error']}")]
    id = job["id"]
    faults = [*whole(site, id), *_doubled(site, trial, job)]
    try:
        found = outcome(site, job)
    except (AssertionError, openai.APIError, httpx.HTTPError, KeyError) as error:
        return [*faults, Fault("lost", f"{id}: its results can't be read: {error!r}")]
    if found.weights != unkilled.weights:
        faults.append(Fault("unequal", f"{id}: other weights than the run that nobody disturbed"))
    if found.steps != unkilled.steps:
        different = [a[:1] for a, b in zip(found.steps, unkilled.steps, strict=False) if a != b]
        faults.append(Fault("unequal", f"{id}: {len(found.steps)} lines, other numbers at steps {different[:5]}"))
    return faults


def _doubled(site: Site, trial: Trial, job: dict[str, Any]) -> list[Fault]:
    id, steps = job["id"], trial.work.steps
    faults = []
    metrics = site.query("SELECT step, generation FROM metrics WHERE job_id = %s ORDER BY step", id)
    if [row["step"] for row in metrics] != list(range(1, steps + 1)):
        faults.append(Fault("doubled", f"{id}: steps {[row['step'] for row in metrics]}"))
    if any(a["generation"] > b["generation"] for a, b in pairwise(metrics)):
        faults.append(Fault("doubled", f"{id}: an earlier owner wrote steps after a later one"))
    events = site.query("SELECT number, message, data, type FROM events WHERE job_id = %s ORDER BY number", id)
    if [event["number"] for event in events] != list(range(1, len(events) + 1)):
        faults.append(Fault("doubled", f"{id}: events {[event['number'] for event in events]}"))
    told = Counter(event["data"]["step"] for event in events if event["type"] == "metrics" and _is_step(event["data"]))
    if any(count != 1 for count in told.values()) or len(told) != steps:
        faults.append(Fault("doubled", f"{id}: {len(told)} of {steps} steps told, {told.most_common(3)}"))
    ends = sum("The job has successfully completed" in event["message"] for event in events)
    models = site.query("SELECT id FROM tuned_models WHERE job_id = %s", id)
    results = site.query("SELECT filename FROM files WHERE job_id = %s AND deleted_at IS NULL", id)
    names = Counter(row["filename"] for row in results)
    if ends != 1 or len(models) != 1 or any(count != 1 for count in names.values()):
        faults.append(Fault("doubled", f"{id}: {ends} ends, {len(models)} models, files {dict(names)}"))
    return [*faults, *owners(site, id)]


def _is_step(data: dict[str, Any]) -> bool:
    return "valid_loss" not in data


def owners(site: Site, id: str) -> list[Fault]:
    """Tries follow one another."""
    tries = site.query("SELECT * FROM attempts WHERE job_id = %s ORDER BY n", id)
    faults = []
    for one, next in pairwise(tries):
        if one["ended_at"] is None or one["ended_at"] > next["started_at"] or one["generation"] >= next["generation"]:
            faults.append(Fault("doubled", f"{id}: attempts {one['n']} and {next['n']} overlap"))
    if any(row["ended_at"] is None for row in tries[-1:]):
        faults.append(Fault("doubled", f"{id}: its last attempt never ended"))
    return faults


def whole(site: Site, id: str) -> list[Fault]:
    """Whatever a row names is in the store."""
    before = _naming(site, id)
    there = set(site.store.list(f"jobs/{id}/"))
    # Rows go before their objects: one that went while the store was listed had the right to miss some.
    after = {row["storage_prefix"] for row in _naming(site, id)}
    faults = []
    for row in (row for row in before if row["storage_prefix"] in after):
        wanted = {row["storage_prefix"] + entry["path"] for entry in row["manifest"]["files"]}
        wanted.add(row["storage_prefix"] + "manifest.json")
        if missing := wanted - there:
            faults.append(Fault("lost", f"{id}: a row names what is not in the store: {sorted(missing)[:3]}"))
    return faults


def _naming(site: Site, id: str) -> list[dict[str, Any]]:
    return site.query(
        "SELECT storage_prefix, manifest FROM checkpoints WHERE job_id = %s AND deleted_at IS NULL UNION ALL "
        "SELECT storage_prefix, manifest FROM tuned_models WHERE job_id = %s AND deleted_at IS NULL",
        id,
        id,
    )


def manifests(site: Site, job: dict[str, Any]) -> list[Fault]:
    """Where the present owner has written a manifest, all that it names is there.

    Of earlier owners there may be litter, and that goes file by file.
    """
    store = site.store
    there = set(store.list(f"jobs/{job['id']}/gen-{job['generation']}/"))
    faults = []
    for key in (key for key in there if key.endswith("manifest.json")):
        folder = key.removesuffix("manifest.json")
        named = orjson.loads(store.get(key))["files"]
        if missing := [entry["path"] for entry in named if folder + entry["path"] not in there]:
            faults.append(Fault("lost", f"{key} names what is not in the store: {missing[:3]}"))
    return faults


def owned(site: Site, id: str) -> list[Fault]:
    """Another project's key finds no such job."""
    try:
        site.stranger().fine_tuning.jobs.retrieve(id)
    except openai.NotFoundError:
        return []
    except openai.APIError:
        return []
    return [Fault("leak", f"{id} was shown to another project")]


def place(job: dict[str, Any], now: datetime) -> bool:
    """Whether the job has what it needs to go on: an owner with a lease, a place in the queue, or an end."""
    if job["status"] in ("succeeded", "failed", "cancelled"):
        return True
    if job["lease_until"] is not None:
        return bool(job["lease_until"] > now)
    return job["status"] in ("validating_files", "queued") and job["wish"] != "cancel"


def litter(site: Site) -> list[Fault]:
    """What nothing names any more, in the store and on disk."""
    named = {row["storage_key"] for row in site.query("SELECT storage_key FROM files WHERE deleted_at IS NULL")}
    for row in site.query(
        "SELECT storage_prefix, manifest FROM checkpoints WHERE deleted_at IS NULL UNION ALL "
        "SELECT storage_prefix, manifest FROM tuned_models WHERE deleted_at IS NULL"
    ):
        named |= {row["storage_prefix"] + entry["path"] for entry in row["manifest"]["files"]}
        named.add(row["storage_prefix"] + "manifest.json")
    for row in site.query("SELECT files FROM token_sets"):
        named |= {entry["key"] for entry in row["files"].values()}
    tries = site.query("SELECT job_id, generation FROM attempts")
    named |= {f"jobs/{row['job_id']}/gen-{row['generation']}/trainer.log" for row in tries}
    store = site.store
    left = [key for prefix in ("jobs/", "prepared/", "files/", "uploads/") for key in store.list(prefix)]
    faults = [Fault("litter", f"{key} is named by no row") for key in left if key not in named]
    faults += [Fault("litter", f"an unfinished upload to {one.key}") for one in store.unfinished()]
    return faults + [Fault("litter", f"{path} was left on disk") for path in site.scratch()]
