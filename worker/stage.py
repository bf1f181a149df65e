"""Filling a job's folder before its child starts: rows, tokens, base model, the checkpoint to go on from."""

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import orjson
import structlog

from core.config import Settings
from core.db.tables import BaseModel, Checkpoint, Job
from core.errors import JobError, NotFound
from core.options import Hyperparameters, JobOptions
from core.resolved import Resolved
from core.services.data import Named
from core.storage.store import Store
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


def training(store: Store, folder: Path, job: Job, base: Path, resume: Path | None, threads: int) -> TrainSpec:
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
        init=None if job.init is None else _origin(store, folder, job.init, resolved.resume_optimizer),
        base=BaseSpec(**job.prepared["base"], path=base),
        threads=threads,
        resume=resume,
    )
    tokens = {name: entry["sha256"] for name, entry in job.prepared["files"].items() if name.endswith(".safetensors")}
    asked = {"generate": job.prepared["prompts"], "generate_rows": 0, "ends": job.prepared["ends"]}
    if not asked["generate"]:
        asked["generate_rows"] = resolved.eval.generate
    spec = spec.model_copy(update={"data_sha256": tokens, **asked})
    write_spec(folder, spec)
    return spec


def _origin(store: Store, folder: Path, init: dict[str, Any], optimizer: bool) -> InitSpec:
    for entry in init["files"]:
        try:
            download(store, init["prefix"] + entry["path"], entry["sha256"], folder / "init" / entry["path"])
        except (JobError, NotFound) as error:
            message = f"The weights of {init['name']!r}, which the job begins from, are no longer there as they were."
            raise JobError(message, code="model_not_found", param="ext.init_from") from error
    return InitSpec(name=init["name"], path=Path("init"), sha256=init["sha256"], optimizer=optimizer)


def checkpoint(store: Store, row: Checkpoint, folder: Path) -> Path | None:
    """The checkpoint as a folder, every file checked against the manifest its row names; None if it is not whole."""
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
        return None
    return target
