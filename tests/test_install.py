"""An ordinary installation: the wheel carries all it needs, and works from any folder, far from the source tree."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "api", "worker", "cli", "migrations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # Built from a copy of what git knows: setuptools leaves build/ and egg-info beside what it builds, and a stale
    # build/ would put files into the wheel that the tree no longer has.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(lambda name: name and (ROOT / name).is_file(), listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content. Dependencies are the test environment's own."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def environment(installed: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    return {**kept, "PYTHONPATH": str(installed), "PATH": f"{installed / 'bin'}:{kept['PATH']}"}


def run(installed: Path, folder: Path, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(installed), capture_output=True, text=True, timeout=timeout
    )


def test_the_wheel_carries_every_module_template_and_migration(wheel: Path) -> None:
    """The bug behind it: package data that an editable installation finds in the tree and a wheel leaves behind."""
    carried = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".jinja", ".mako", ".ini", ".typed"}
    }
    assert {name.partition("/")[0] for name in needed} == set(PACKAGES)
    assert any(name.startswith("migrations/versions/") for name in needed)
    assert needed - carried == set()


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    """The bug behind it: ``tests`` as a top-level package in everybody's site-packages."""
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_modules_come_from_the_installation(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, sys.executable, "-c", f"import {', '.join(PACKAGES)}; print(core.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


def test_migrations_run_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, sys.executable, "-m", "migrations", "--help")
    assert done.returncode == 0, done.stderr
    assert "upgrade" in done.stdout


def test_the_command_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "attune", "--help")
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("up", "down", "status", "models", "keys", "files", "jobs"))


@pytest.mark.flow
def test_the_stack_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """Migrations included: they are the part that looks for files beside itself."""
    home = tmp_path / "home"
    up = run(installed, tmp_path, "attune", "up", "--home", str(home), "--detach", timeout=180)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        connection = json.loads((home / "connection.json").read_text())
        request = urllib.request.Request(
            f"{connection['base_url']}/models", headers={"Authorization": f"Bearer {connection['api_key']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["object"] == "list"
    finally:
        down = run(installed, tmp_path, "attune", "down", "--home", str(home))
        purge = "import sys; from cli.stack.stack import Stack; Stack(sys.argv[1]).purge()"
        run(installed, tmp_path, sys.executable, "-c", purge, str(home))
    assert down.returncode == 0, down.stdout + down.stderr
