"""The Dockerfiles: linted, pinned, without root, and with dependencies that suffice for what each image runs."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))

# image -> (extras of pyproject.toml it installs, modules it runs; the worker's children are started by it)
IMAGES = {
    "api": ("api", ["api.main", "api.__main__", "migrations.__main__", "worker.reconciler"]),
    "worker": ("worker", ["worker.__main__", "worker.train.__main__", "worker.prepare.__main__"]),
}


def instructions(path: Path, verb: str) -> list[str]:
    """Arguments of every ``verb`` instruction, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", path.read_text())
    return re.findall(rf"^{verb} (.*)$", joined, flags=re.MULTILINE)


def distributions(extra: str) -> set[str]:
    """Every distribution that ``attune[extra]`` brings, as installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"][extra]]]
    followed: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for chosen in {"", *requirement.extras}:
            if (name, chosen) not in followed:
                followed.add((name, chosen))
                needed = (Requirement(line) for line in requires(name) or [])
                waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": chosen})]
    return {name for name, _ in followed}


def test_there_are_two() -> None:
    assert [path.name for path in DOCKERFILES] == ["api.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_is_content(path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_bases_are_pinned_and_the_last_stage_runs_without_root(path: Path) -> None:
    images = [line.split()[0] for line in instructions(path, "FROM")]
    assert len(images) == 2, "one stage builds, one runs"
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image) for image in images), images
    last_stage = path.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", last_stage, flags=re.MULTILINE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_reaches_the_builder(path: Path) -> None:
    """The bug behind it: .dockerignore lets nothing through by default, so a new COPY fails only in the builder."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {
        word for line in instructions(path, "COPY") if not line.startswith("--from") for word in shlex.split(line)[:-1]
    }
    assert copied <= kept
    assert all((ROOT / name).exists() for name in copied)


# The worker's children import torch, transformers and PEFT, which takes its time.
@pytest.mark.parametrize("image", ["api", pytest.param("worker", marks=pytest.mark.flow)])
def test_an_images_extras_suffice_for_what_it_runs(image: str) -> None:
    """Imports each module with every distribution hidden that the image won't have.

    The bug behind it: everything is installed on a developer's machine, so a module that imports one extra's library
    from another extra's process works everywhere but in the image.
    """
    extra, modules = IMAGES[image]
    there = distributions(extra) | {"setuptools"}
    hidden = sorted(
        top
        for top, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & (there | {"attune"})
    )
    assert ("torch" in hidden) == (image == "api")
    # Hidden as an absent package is: libraries ask find_spec() about optional ones and want None, not an error.
    code = f"""
import importlib, importlib.machinery, sys
hidden = set({hidden!r})
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = lambda name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest)
for module in {modules!r}:
    importlib.import_module(module)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.proof
def test_the_api_images_steps_install_without_torch(tmp_path: Path) -> None:
    """No Docker engine is needed to run what the build stage runs: the same commands, in a folder instead."""
    path = ROOT / "deploy" / "api.Dockerfile"
    environment = {**os.environ, "PATH": f"{tmp_path}/opt/attune/bin:{os.environ['PATH']}"}
    source = tmp_path / "src"
    source.mkdir()
    build_stage = re.sub(r"\\\n\s*", "", path.read_text()).split("\nFROM ")[1]
    for verb, arguments in re.findall(r"^(COPY|RUN) (.*)$", build_stage, flags=re.MULTILINE):
        if verb == "COPY":
            *names, _ = shlex.split(arguments)
            command = f"cp -r {' '.join(str(ROOT / name) for name in names)} ."
        else:
            command = arguments.replace("/opt/attune", f"{tmp_path}/opt/attune")
        subprocess.run(["sh", "-ec", command], cwd=source, env=environment, check=True, timeout=600)
    python = tmp_path / "opt" / "attune" / "bin" / "python"
    for code, complaint in (
        ("import api.main, migrations.__main__, worker.reconciler", ""),
        ("import torch", "No module named 'torch'"),
    ):
        done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == (complaint == "")
        assert complaint in done.stderr
