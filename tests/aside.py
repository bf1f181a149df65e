"""Packages that a few long checks need and the project doesn't: each set in a folder of its own, installed once."""

import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def installed(name: str, *requirements: str) -> Path:
    """The folder that has these packages, and none of what they would bring along, to be put into the path."""
    folder = CACHE / name
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            install = ["install", "-qq", "--no-deps", "--disable-pip-version-check", "--target", f"{made}/it"]
            subprocess.run([sys.executable, "-m", "pip", *install, *requirements], check=True)
            Path(made, "it").rename(folder)
    return folder
