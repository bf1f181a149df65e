"""Base models on this machine, by content hash: fetched once, checked file by file, shared by all slots."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import JobError
from core.storage import store as layout
from core.storage.store import Store


class ModelCache:
    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder / "base"
        self._store = store

    def path(self, sha256: str) -> Path:
        return self._folder / sha256

    def fetch(self, sha256: str, files: Iterable[dict[str, Any]], *, weights: bool = True) -> Path:
        """A folder with the model's files; without ``weights``, only the small ones. Entries: {path, bytes, sha256}."""
        target = self.path(sha256)
        with self._locked(sha256):
            for entry in files:
                if not weights and entry["path"].endswith(".safetensors"):
                    continue
                place = target / entry["path"]
                # A file appears under its name only when its hash was right; its size tells of later damage cheaply.
                if place.exists() and place.stat().st_size == entry["bytes"]:
                    continue
                self._download(sha256, entry, place)
        return target

    def missing(self, sha256: str, files: Iterable[dict[str, Any]]) -> int:
        """Bytes that :meth:`fetch` would have to bring here."""
        places = {entry["path"]: self.path(sha256) / entry["path"] for entry in files}
        return sum(
            entry["bytes"]
            for entry in files
            if not (places[entry["path"]].exists() and places[entry["path"]].stat().st_size == entry["bytes"])
        )

    def adopt(self, sha256: str, made: Path) -> None:
        """Keep a folder that was just converted here, instead of fetching it back."""
        with self._locked(sha256):
            target = self.path(sha256)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(made, target)

    def _download(self, sha256: str, entry: dict[str, Any], place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        self._store.download(layout.base_model(sha256, entry["path"]), partial)
        if file_sha256(partial) != entry["sha256"]:
            partial.unlink()
            raise JobError(f"{entry['path']} of the base model arrived damaged.", code="storage_error")
        os.replace(partial, place)

    @contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{sha256}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def file_sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
