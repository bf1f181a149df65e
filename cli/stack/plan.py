"""Which processes a stack consists of beside its servers. Order is the order of starting."""

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cli


@dataclass(frozen=True)
class Service:
    name: str
    command: Sequence[str]
    stage: int
    env: Mapping[str, str] = field(default_factory=dict)
    patience: float = 2.0
    """Seconds it may take to end when asked."""


@dataclass(frozen=True)
class Plan:
    """What to run. A plan without services has the servers only."""

    migrate: Sequence[str] | None
    services: Sequence[Service]
    worker_kinds: frozenset[str] = frozenset()
    """Kinds of which a worker must have registered before the stack is ready: only then is a job accepted."""


def module(name: str, *arguments: str) -> list[str]:
    """A module of this installation, run by this interpreter: no folder of the source tree is needed."""
    return [sys.executable, "-m", name, *arguments]


def python_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `python -m` finds this installation, whatever folder it is called from."""
    # The folder somebody stands in may have an `api` or a `core` of its own.
    found = {**env, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    root = str(Path(cli.__file__).resolve().parent.parent)
    # Packages of site-packages must not come before the standard library's, as they would on PYTHONPATH.
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return found


SERVERS_ONLY = Plan(migrate=None, services=())


def whole() -> Plan:
    return Plan(
        migrate=module("migrations", "upgrade"),
        services=(
            Service("api", module("api"), stage=0, patience=2.0),
            Service("prepare", module("worker"), stage=1, env={"ATTUNE_WORKER_KINDS": "prepare"}, patience=4.5),
            Service("train", module("worker"), stage=1, env={"ATTUNE_WORKER_KINDS": "train"}, patience=4.5),
            Service("reconciler", module("worker.reconciler"), stage=1, patience=4.5),
        ),
        worker_kinds=frozenset({"prepare", "train"}),
    )
