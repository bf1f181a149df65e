"""Filling a job's folder before its child starts: rows, tokens, base model, the checkpoint to go on from."""

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import orjson
import structlog

from core import cost
from core.config import Settings
from core.cost import Plan, Shape
from core.db.tables import BaseModel, Checkpoint, Job
from core.errors import JobError, NotFound
from core.options import Hyperparameters, JobOptions
from core.resolved import Resolved
from core.services.data import Named
from core.storage.store import Store
from worker import disk
from worker.cache import ModelCache, file_sha256
from worker.folder import BaseSpec, InitSpec, Manifest, TrainSpec
from worker.prepare import resolve
from worker.prepare.folder import Facts, MixedFile, Model, PrepareJob

log = structlog.get_logger()


def write_spec(folder: Path, spec: Any) -> None:  # Any: a pydantic model of worker/folder or worker/prepare/folder
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1))


def download(store: Store, key: str, sha256: str, path: Path) -> Path:
    """An object as a file, or a JobError when it is gone or not what was stored."""
    try:
        store.download(key, path)
    except NotFound as error:
        raise JobError(f"{path.name} is no longer in the object store.", code="storage_error") from error
    if file_sha256(path) != sha256:
        raise JobError(f"{path.name} arrived damaged from the object store.", code="storage_error")
    return path


def reader_of(cache: ModelCache, base: BaseModel) -> Model:
    """A base model that is ready, as prepare needs it to read rows: its folder without the weights."""
    assert base.facts is not None
    assert base.files is not None
    assert base.content_sha256 is not None
    folder = cache.fetch(base.content_sha256, base.files["files"], weights=False)
    return Model(name=base.name, base=folder, facts=Facts.model_validate(base.facts))


def preparing(
    model: Model,
    named: list[Named],
    paths: dict[str, Path],
    method: str,
    chosen: JobOptions,
    hyperparameters: Hyperparameters,
    seed: int,
    settings: Settings,
) -> PrepareJob:
    """The task of a child that prepares a job's rows; ``paths`` by the fields of the body that name the files."""
    mixed = chosen.data.mix or []
    return PrepareJob(
        method=cast(Literal["supervised", "dpo"], method),
        base=model.base,
        facts=model.facts,
        train=paths["training_file"],
        valid=paths.get("validation_file"),
        mix=[
            MixedFile(path=paths[name.param], file_id=name.file_id, weight=mix.weight)
            for name, mix in zip(named[len(named) - len(mixed) :], mixed, strict=True)
        ],
        options=chosen,
        hyperparameters=hyperparameters,
        seed=seed,
        min_examples=settings.min_examples,
    )


class TokensDamaged(Exception):
    """The job's prepared rows are not in the store as they were written."""


def require_room(folder: Path, job: Job, base: BaseModel, rows: list[Checkpoint], cache: ModelCache) -> None:
    """Before anything is fetched: raise a JobError where base model, tokens and checkpoints won't fit on the disk."""
    assert base.facts is not None
    assert base.files is not None
    assert base.content_sha256 is not None
    assert job.prepared is not None
    model = cache.missing(base.content_sha256, base.files["files"])
    data = sum(entry.get("bytes", 0) for entry in job.prepared["files"].values())
    # An attempt before has written one; else the model's shape tells.
    saved = sum(entry["bytes"] for entry in rows[0].manifest["files"]) if rows else _checkpoint_bytes(base, job)
    kept = round(disk.CHECKPOINTS * saved)
    what = f"base model {model:,}, data {data:,}, checkpoints {kept:,}"
    disk.require(folder, model + data + kept, what)


def _checkpoint_bytes(base: BaseModel, job: Job) -> int:
    """Of weights and two moments; 0 where the model's shape is not known."""
    shape = (base.facts or {}).get("shape")
    if shape is None:
        return 0
    resolved = Resolved.model_validate(job.resolved)
    plan = Plan.of(resolved, steps_per_epoch=resolved.total_steps)
    return 3 * 4 * cost.trained(Shape.model_validate(shape), plan).parameters


def training(
    store: Store, folder: Path, job: Job, base: Path, resume: Path | None, threads: int, settings: Settings
) -> TrainSpec:
    """The folder of a training child: tokens and template from prepare, paths for here and now.

    Raises :class:`TokensDamaged`.
    """
    assert job.prepared is not None
    for name, entry in job.prepared["files"].items():
        try:
            download(store, entry["key"], entry["sha256"], folder / name)
        except JobError as error:
            raise TokensDamaged(error.message.rstrip(".")) from error
    resolved = Resolved.model_validate(job.resolved)
    spec = resolve.train_spec(
        resolved,
        job_id=job.id,
        init=None if job.init is None else origin(store, folder, job.init, resolved.resume_optimizer),
        base=BaseSpec(**job.prepared["base"], path=base),
        threads=threads,
        resume=resume,
    )
    tokens = {name: entry["sha256"] for name, entry in job.prepared["files"].items() if name.endswith(".safetensors")}
    asked = {"generate": job.prepared["prompts"], "generate_rows": 0, "ends": job.prepared["ends"]}
    if not asked["generate"]:
        asked["generate_rows"] = resolved.eval.generate
    recovery = {
        name: getattr(settings, name) for name in ("recovery_seconds", "recovery_fraction", "recovery_overhead")
    }
    spec = spec.model_copy(update={"data_sha256": tokens, **asked, **recovery})
    write_spec(folder, spec)
    return spec


def origin(store: Store, folder: Path, init: dict[str, Any], optimizer: bool) -> InitSpec:
    for entry in init["files"]:
        try:
            download(store, init["prefix"] + entry["path"], entry["sha256"], folder / "init" / entry["path"])
        except (JobError, NotFound) as error:
            message = f"The weights of {init['name']!r}, which the job begins from, are no longer there as they were."
            raise JobError(message, code="model_not_found", param="ext.init_from") from error
    return InitSpec(name=init["name"], path=Path("init"), sha256=init["sha256"], optimizer=optimizer)


class CheckpointDamaged(Exception):
    """A checkpoint is not in the store as it was written; says what of it."""


def checkpoint(store: Store, row: Checkpoint, folder: Path) -> Path:
    """The checkpoint as a folder, every file checked against the manifest its row names.

    Raises :class:`CheckpointDamaged`.
    """
    try:
        return _checkpoint(store, row, folder)
    except CheckpointDamaged:
        # It may have been damaged on its way: a row is not given up for that.
        return _checkpoint(store, row, folder)


def _checkpoint(store: Store, row: Checkpoint, folder: Path) -> Path:
    target = folder / "resume" / f"step-{row.step}"
    try:
        raw = store.get(row.storage_prefix + "manifest.json")
        if hashlib.sha256(raw).hexdigest() != row.manifest_sha256:
            raise JobError("manifest.json is not the one that was written", code="storage_error")
        for entry in Manifest.model_validate(orjson.loads(raw)).files:
            download(store, row.storage_prefix + entry.path, entry.sha256, target / entry.path)
        (target / "manifest.json").write_bytes(raw)
    except (JobError, NotFound) as error:
        log.warning("checkpoint.unusable", job_id=row.job_id, step=row.step, error=str(error))
        raise CheckpointDamaged(str(error).rstrip(".")) from error
    return target
