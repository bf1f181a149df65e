"""Setting up from a fresh clone: the lock file, the virtual environment, the make targets, the script of CI."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements.lock"


def locked() -> dict[str, Requirement]:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def test_the_lock_names_exact_versions_and_nothing_else() -> None:
    """No address, which would tie it to one host; no local version ("+cpu"), which would tie it to one build."""
    for line in LOCK.read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    assert "://" not in LOCK.read_text()


def test_the_lock_leaves_the_accelerator_open() -> None:
    """CUDA packages in the lock would be downloaded, gigabytes of them, on machines without such a device."""
    assert str(locked()["torch"]) == "torch==2.13.0"
    assert not [name for name in locked() if name.startswith(("nvidia", "cuda", "triton", "pytorch-triton"))]


def test_the_lock_satisfies_the_project() -> None:
    """The bug behind it: a dependency added to pyproject.toml alone is missing from every fresh clone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for lines in project["project"]["optional-dependencies"].values():
        asked += lines
    for requirement in map(Requirement, asked):
        (exact,) = locked()[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(exact.version), f"{requirement} is locked at {exact.version}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tree with just what scripts/venv looks at."""
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "venv", tree / "scripts")
    (tree / "requirements.lock").write_text("")
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny"\nversion = "1"\n'
    )
    return tree


def make_venv(tree: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python}
    command: list[str | Path] = [tree / "scripts" / "venv", tree / ".venv", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def fake_python(tree: Path, body: str) -> str:
    path = tree / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_no_python_gets_a_clear_sentence(project: Path) -> None:
    done = make_venv(project, "python-that-is-not-there")
    assert done.returncode == 1
    assert "no Python 3.11 or newer was found (looked for: python-that-is-not-there)" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_an_old_python_is_passed_over(project: Path) -> None:
    done = make_venv(project, fake_python(project, "exit 1"))
    assert "no Python 3.11 or newer was found" in done.stderr


def test_a_python_without_ensurepip_gets_a_clear_sentence(project: Path) -> None:
    """Debian's and Ubuntu's, until python3-venv is installed."""
    hidden = f"""case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac"""
    done = make_venv(project, fake_python(project, hidden))
    assert done.returncode == 1
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
    assert not (project / ".venv").exists()


def test_it_installs_once_for_each_content_of_the_lock(project: Path) -> None:
    """Pip is replaced by a list of its calls: what is installed is the lock's business, when is tested here."""
    calls = project / "calls"
    # Creating the environment makes a python that notes what it is asked to do.
    body = f"""
case "$2" in
venv) mkdir -p "$3/bin"; printf '#!/bin/sh\\necho "$@" >>{calls}\\n' >"$3/bin/python"; chmod +x "$3/bin/python";;
*) exec {sys.executable} "$@";;
esac"""
    python = fake_python(project, body)

    assert make_venv(project, python).returncode == 0
    first = calls.read_text().splitlines()
    assert len(first) == 2
    assert "-r" in first[0]
    assert "--no-deps" in first[1]
    assert make_venv(project, python).returncode == 0
    assert len(calls.read_text().splitlines()) == 2, "nothing changed, so nothing is installed"

    # A clone gives files new times but the same content; only the content counts.
    os.utime(project / "requirements.lock")
    make_venv(project, python)
    assert len(calls.read_text().splitlines()) == 2

    (project / "requirements.lock").write_text("# newer\n")
    make_venv(project, python)
    assert len(calls.read_text().splitlines()) == 4

    make_venv(project, python, "--some-index=elsewhere")
    assert calls.read_text().splitlines()[4].endswith("requirements.lock --some-index=elsewhere")
    assert len(list((project / ".venv").glob("installed-*"))) == 1


def test_a_failed_installation_is_begun_again(project: Path) -> None:
    body = f"""
case "$2" in
venv) mkdir -p "$3/bin"; printf '#!/bin/sh\\nexit 7\\n' >"$3/bin/python"; chmod +x "$3/bin/python";;
*) exec {sys.executable} "$@";;
esac"""
    assert make_venv(project, fake_python(project, body)).returncode == 7
    assert list((project / ".venv").glob("installed-*")) == []


def test_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    listed = set(re.findall(r"^  make ([\w-]+) ", done.stdout, flags=re.MULTILINE))
    assert {"help", "demo", "up", "test", "check", "proof", "lock", "clean"} <= listed
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert listed == set(phony.split())


@pytest.mark.parametrize(("check", "test", "status"), [(0, 0, 0), (2, 0, 1), (0, 2, 1), (2, 2, 1)])
def test_ci_runs_both_and_fails_with_either(tmp_path: Path, check: int, test: int, status: int) -> None:
    summary = "======= 3 passed in 0.12s ======="
    make = tmp_path / "make"
    make.write_text(
        f'#!/bin/sh\necho "$1" >>{tmp_path}/ran\n'
        f'[ "$1" = check ] && exit {check}\n'
        f'echo "{summary}"\n[ {test} -eq 0 ] || echo "make: *** Error {test}" >&2\nexit {test}\n'
    )
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=30)
    assert (tmp_path / "ran").read_text().split() == ["check", "test"]
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == summary
