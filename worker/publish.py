"""Out of a job's folder into the store: files, then the manifest. The caller's row comes last and makes it count."""

import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.tables import Event, Metric
from core.errors import Conflict
from core.schemas.metrics import KEYS
from core.storage.store import Store
from worker.cache import file_sha256
from worker.folder import Manifest

MANIFEST = "manifest.json"

# OpenAI's five columns in their order, then ours: a heading and the column of the table.
_COLUMNS = {"step": "step", **KEYS}


class Damaged(Exception):
    """A file on this machine's disk is no longer what was written; says which."""


def folder(
    store: Store, source: Path, prefix: str, look: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], str]:
    """Upload a folder that has a manifest; returns the manifest and its sha256. ``look`` may end it by raising.

    Raises :class:`Damaged`: what a disk has changed meanwhile is never published under the hash of what was written.
    """
    try:
        raw = (source / MANIFEST).read_bytes()
        manifest = Manifest.model_validate(orjson.loads(raw))
        for entry in manifest.files:
            look()
            if file_sha256(source / entry.path) != entry.sha256:
                raise Damaged(f"{entry.path} does not match its sha256")
    except (FileNotFoundError, ValidationError, orjson.JSONDecodeError) as error:
        raise Damaged(f"{source.name} is not whole: {type(error).__name__}") from error
    for entry in manifest.files:
        look()
        store.put_file(prefix + entry.path, source / entry.path, look)
    # Last, and only once: where there is a manifest, everything it names is there.
    try:
        store.put(prefix + MANIFEST, raw, only_new=True)
    except Conflict:
        # The same upload, tried again after the database was away: the prefix is this generation's own.
        if store.get(prefix + MANIFEST) != raw:
            raise
    return manifest.model_dump(), sha256(raw)


def result(store: Store, filename: str, key: str, data: bytes) -> dict[str, Any]:
    """Store what was made here as one of a job's result files."""
    store.put(key, data)
    return {"filename": filename, "key": key, "bytes": len(data), "sha256": sha256(data)}


def results(manifest: dict[str, Any], manifest_sha256: str, manifest_bytes: int, prefix: str) -> list[dict[str, Any]]:
    """The artifact's files as a job's result files: weights first, the manifest last."""
    first = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json")
    entries = sorted(
        manifest["files"],
        key=lambda entry: (first.index(entry["path"]) if entry["path"] in first else len(first), entry["path"]),
    )
    entries.append({"path": MANIFEST, "bytes": manifest_bytes, "sha256": manifest_sha256})
    return [
        {
            "filename": entry["path"],
            "key": prefix + entry["path"],
            "bytes": entry["bytes"],
            "sha256": entry["sha256"],
        }
        for entry in entries
    ]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answers(session: Session, job_id: str) -> bytes | None:
    """What was answered at each evaluation, a line of JSON for each prompt; None where nothing was asked."""
    rows = session.scalars(
        select(Event).where(Event.job_id == job_id, Event.data.has_key("answers")).order_by(Event.number)
    )
    # A run that went on from a checkpoint answered some evaluations twice: its last word counts.
    told = {(row.data["step"], row.data["by"]): row.data["answers"] for row in rows if row.data is not None}
    lines = [
        orjson.dumps({"step": step, "by": by, "number": n, **answer}) + b"\n"
        for (step, by), each in sorted(told.items())
        for n, answer in enumerate(each, 1)
    ]
    return b"".join(lines) or None


def metrics_csv(session: Session, job_id: str) -> bytes:
    """Every step as a line; a cell is empty where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in session.scalars(select(Metric).where(Metric.job_id == job_id).order_by(Metric.step)):
        values = (getattr(row, name) for name in _COLUMNS.values())
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue().encode()
