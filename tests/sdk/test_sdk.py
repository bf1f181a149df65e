"""Every SDK that people use walks the whole surface, unmodified, in an environment of its own, with jobs that train.

A walker is a script that ends with a line of JSON: the SDK's version and the parts of the surface it has walked.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from core.db.tables import Project
from core.services import tenants
from tests.conftest import plain_environment
from tests.live import Live
from tests.sdk import environments
from tests.sdk.environments import HERE

pytestmark = pytest.mark.flow

SURFACE = {"files", "uploads", "jobs", "events", "checkpoints", "permissions", "results", "models", "errors"}


@pytest.fixture(scope="session")
def project(live: Live) -> str:
    """Another project of the organisation, to share a checkpoint with."""
    engine = create_engine(live.env["ATTUNE_DATABASE_URL"])
    with Session(engine) as session, session.begin():
        mine = tenants.default(session, "attune")
        session.add(Project(id="proj_sdks", organization_id=mine.organization_id, name="sdks"))
    engine.dispose()
    return "proj_sdks"


def walk(live: Live, project: str, command: Sequence[str | Path], cwd: Path) -> Any:
    env = plain_environment() | {
        "OPENAI_BASE_URL": live.base_url,
        "OPENAI_API_KEY": live.api_key,
        "WALK_PROJECT": project,
        # LiteLLM would ask the network for its price list when it is imported.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PATH": os.environ["PATH"],
    }
    try:
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"not within 180 s\n{expired.stdout}\n{expired.stderr}\n{live.logs()}")
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}\n{live.logs()}")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("version", ["1.109.1", "2.0.0", "3.57.0"])
def test_openai_python(live: Live, project: str, version: str, way: str, tmp_path: Path) -> None:
    interpreter = environments.python(f"openai-{version}")
    told = walk(live, project, [interpreter, HERE / "walk.py", way], tmp_path)
    assert told["version"] == version
    assert set(told["walked"]) == SURFACE | ({"webhooks"} if version.startswith("3.") else set())


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")
def test_openai_node(live: Live, project: str) -> None:
    folder = environments.node()
    told = walk(live, project, ["node", HERE / "walk.mjs"], folder)
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]["openai"]
    assert told["version"] == wanted
    assert set(told["walked"]) == SURFACE | {"webhooks"}


@pytest.mark.parametrize("way", ["sync", "async"])
def test_litellm(live: Live, project: str, way: str, tmp_path: Path) -> None:
    interpreter = environments.python("litellm")
    told = walk(live, project, [interpreter, HERE / "walk_litellm.py", way], tmp_path)
    assert f"litellm=={told['version']}" in (HERE / "requirements-litellm.txt").read_text().split()
    assert set(told["walked"]) == {"files", "jobs", "results", "errors"}
