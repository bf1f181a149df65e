"""All rows and all objects into a folder, and back into an empty service. ``docs/runbook.md`` says when.

Rows are read first, in one snapshot: an object without a row is waste, a row without its object would be a loss.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from core.db.tables import Table
from core.storage.s3 import S3Store

_PIECE = 1 << 20


def backup(bound: Engine, store: S3Store, folder: Path) -> tuple[int, int]:
    """Returns how many rows and objects there are. The manifest comes last: without it a folder is no backup."""
    (folder / "rows").mkdir(parents=True)
    (folder / "objects").mkdir()
    with bound.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        revision = _revision(connection)
        rows = {name: _dump(connection, name, columns, folder) for name, columns in _tables()}
    objects = []
    for key in store.list(""):
        path = _object(folder, key)
        store.download(key, path)
        objects.append({"key": key, "bytes": path.stat().st_size, "sha256": _sha256(path)})
    manifest = {"revision": revision, "rows": rows, "objects": objects}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return sum(entry["count"] for entry in rows.values()), len(objects)


def restore(bound: Engine, store: S3Store, folder: Path) -> tuple[int, int]:
    """Into a migrated database without rows; every file is held to its hash before anything is written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise SystemExit(f"{folder} has no manifest.json: it is no backup, or one that was not finished.") from None
    damaged = [path for path, sha256 in _files(folder, manifest) if not path.exists() or _sha256(path) != sha256]
    if damaged:
        raise SystemExit(f"{len(damaged)} files of the backup are damaged or missing, the first: {damaged[0]}")
    with bound.connect() as connection:
        if (revision := _revision(connection)) != manifest["revision"]:
            raise SystemExit(
                f"The backup is of revision {manifest['revision']}, the database of {revision}: migrate it."
            )
        if any(_count(connection, name) for name in ("jobs", "files", "base_models")):
            raise SystemExit("The database has jobs, files or models: a backup is restored into an empty one only.")
    # Objects first: whoever sees a row must find what it names.
    for entry in manifest["objects"]:
        store.put_file(entry["key"], _object(folder, entry["key"]))
    with bound.begin() as connection:
        for name, _ in reversed(list(_tables())):
            # What the migrations step made: the default tenant, the operator's key.
            connection.execute(text(f'DELETE FROM "{name}"'))
        for name, columns in _tables():
            _load(connection, name, columns, folder)
            if (count := _count(connection, name)) != manifest["rows"][name]["count"]:
                raise SystemExit(f"{name}: {count} rows came back of {manifest['rows'][name]['count']}.")
    return sum(entry["count"] for entry in manifest["rows"].values()), len(manifest["objects"])


def _tables() -> Iterator[tuple[str, str]]:
    """Names and columns, a table after those that its rows refer to."""
    for table in Table.metadata.sorted_tables:
        yield table.name, ", ".join(f'"{column.name}"' for column in table.columns)


def _dump(connection: Connection, name: str, columns: str, folder: Path) -> dict[str, Any]:  # Any: JSON
    path = _rows(folder, name)
    with (
        path.open("wb") as file,
        _cursor(connection).copy(f'COPY "{name}" ({columns}) TO STDOUT (FORMAT binary)') as out,
    ):
        for piece in out:
            file.write(piece)
    return {"count": _count(connection, name), "sha256": _sha256(path)}


def _load(connection: Connection, name: str, columns: str, folder: Path) -> None:
    copying = _cursor(connection).copy(f'COPY "{name}" ({columns}) FROM STDIN (FORMAT binary)')
    with _rows(folder, name).open("rb") as file, copying as into:
        while piece := file.read(_PIECE):
            into.write(piece)


def _cursor(connection: Connection) -> Any:  # Any: psycopg's own cursor, since SQLAlchemy knows no COPY
    return connection.connection.cursor()


def _count(connection: Connection, name: str) -> int:
    return int(connection.execute(text(f'SELECT count(*) FROM "{name}"')).scalar_one())


def _revision(connection: Connection) -> str:
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    for name, entry in manifest["rows"].items():
        yield _rows(folder, name), entry["sha256"]
    for entry in manifest["objects"]:
        yield _object(folder, entry["key"]), entry["sha256"]


def _rows(folder: Path, name: str) -> Path:
    return folder / "rows" / f"{name}.copy"


def _object(folder: Path, key: str) -> Path:
    # One key may be the beginning of another, which files and folders can't be.
    return folder / "objects" / hashlib.sha256(key.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
