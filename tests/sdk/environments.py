"""An environment for each SDK under ``.cache/sdk``: made once, and anew when its pins change.

The pins name every package that is in it, so nothing is resolved here and two clones get the same.
"""

import fcntl
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live import ROOT

HERE = Path(__file__).resolve().parent
_CACHE = ROOT / ".cache" / "sdk"


def python(name: str) -> Path:
    """The interpreter that has what ``requirements-<name>.txt`` lists."""
    pins = HERE / f"requirements-{name}.txt"
    folder = _CACHE / name
    interpreter = folder / "bin" / "python"

    def make() -> None:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], ROOT)
        # The pins are complete, and older than what some packages ask of each other: they are taken at their word.
        wanted = ["install", "-qq", "--no-deps", "--disable-pip-version-check", "-r", str(pins)]
        _run([sys.executable, "-m", "pip", "--python", str(interpreter), *wanted], ROOT)

    _once(folder, f"{platform.python_version()} {sys.executable}\n{pins.read_text()}", make)
    return interpreter


def node() -> Path:
    """The folder whose ``node_modules`` has what ``package-lock.json`` lists."""
    folder = _CACHE / "node"

    def make() -> None:
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)

    _once(folder, (HERE / "package-lock.json").read_text(), make)
    return folder


def _once(folder: Path, pins: str, make: Callable[[], None]) -> None:
    stamp = folder / "made-from.txt"
    with _alone():
        if stamp.exists() and stamp.read_text() == pins:
            return
        shutil.rmtree(folder, ignore_errors=True)
        make()
        # Last: an environment that was broken off half way is made anew.
        stamp.write_text(pins)


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs of the tests don't make the same environment at once."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
