"""Files from the service to disk, each checked against the SHA-256 that was promised for it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from service import Failed

CHUNK_BYTES = 1 << 20


def adapter(client: OpenAI, job: FineTuningJob, to: Path) -> list[dict[str, Any]]:
    """A job's result files: the metrics as ``to/metrics.csv``, the others in ``to/adapter``; path, bytes, sha256."""
    folder = to / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    metrics, *rest = job.result_files
    targets = {metrics: to / "metrics.csv"}
    # A server's file name never leads out of the folder.
    targets |= {id: folder / Path(client.files.retrieve(id).filename).name for id in rest}
    for id, target in targets.items():
        client.files.content(id).write_to_file(target)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        _check(folder / entry["path"], entry["sha256"])
    return [
        {"path": str(target.relative_to(to)), "bytes": target.stat().st_size, "sha256": sha256(target)}
        for target in targets.values()
    ]


def base(files: Iterable[dict[str, Any]], folder: Path) -> None:
    """A base model's files. What is there already and right is not fetched again."""
    for file in files:
        target = folder / file["path"]
        if target.exists() and target.stat().st_size == file["bytes"] and sha256(target) == file["sha256"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        with httpx.stream("GET", file["url"], timeout=60) as answer, partial.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                out.write(chunk)
        _check(partial, file["sha256"])
        partial.replace(target)


def _check(path: Path, promised: str) -> None:
    if not path.exists():
        raise Failed(f"{path.name} was promised and did not come.")
    if sha256(path) != promised:
        raise Failed(f"{path} is damaged: its sha256 is not the promised one.")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
