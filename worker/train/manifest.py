"""Folders that are whole or not there: files first, manifest.json last, then one rename. Knows nothing about torch."""

import hashlib
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from worker.folder import FileEntry, Manifest

NAME = "manifest.json"


def seal(draft: Path, final: Path) -> Manifest:
    """Write the manifest of ``draft``, force all of it to disk and give it its final name.

    A kill at any moment leaves either no ``final`` or a whole one; a folder of that name is replaced.
    """
    paths = sorted(p for p in draft.rglob("*") if p.is_file())
    manifest = Manifest(
        files=[FileEntry(path=p.relative_to(draft).as_posix(), bytes=p.stat().st_size, sha256=sha256(p)) for p in paths]
    )
    for path in paths:
        _sync(path)
    (draft / NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
    _sync(draft / NAME)
    _sync(draft)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        # A folder can't be renamed onto a full one. What stood here is of the same step, so losing it costs nothing.
        shutil.rmtree(final)
    draft.rename(final)
    _sync(final.parent)
    return manifest


def draft(final: Path) -> Path:
    """An empty folder beside ``final`` to write into; what a killed run left there is removed."""
    folder = final.parent / f"tmp-{final.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def faults(folder: Path) -> list[str]:
    """What is wrong with a sealed folder, as sentences; empty when every byte is what the manifest says."""
    try:
        manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    except FileNotFoundError:
        return ["manifest.json is missing"]
    except ValidationError:
        return ["manifest.json is not a manifest"]
    found = []
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            found.append(f"{entry.path} is missing")
        elif path.stat().st_size != entry.bytes:
            found.append(f"{entry.path} has {path.stat().st_size} bytes instead of {entry.bytes}")
        elif sha256(path) != entry.sha256:
            found.append(f"{entry.path} does not match its sha256")
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
