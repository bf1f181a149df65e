"""Real servers, started once a run; a migrated database and a bucket; an application in this process; a live stack."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from api.main import create_app, install
from cli.stack.plan import SERVERS_ONLY
from cli.stack.stack import Stack
from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.db.tables import BaseModel, Organization, Project, Table
from core.db.tenancy import Tenant
from core.services import keys, tenants
from core.storage.s3 import S3Store
from core.wiring import Parts, configure_logging
from migrations.__main__ import migrate
from tests.live import Live, free_ports, running
from tests.tiny import build_tiny
from worker.prepare.folder import Facts


class Rings:
    """A doorbell that writes down who was rung."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def ring(self, kind: str) -> None:
        self.kinds.append(kind)


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ATTUNE_", "OPENAI_"))}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The engine's tests come first: they compute, and late in a run the process is large and slow to look through.

    Under ``-n 2 --dist loadgroup`` all that uses the live stack goes to one process, and the rest to the other.
    """
    items.sort(key=lambda item: not item.nodeid.startswith("tests/worker/train/"))
    for item in items:
        if item.nodeid.startswith(("tests/flow/", "tests/sdk/")):
            item.add_marker(pytest.mark.xdist_group("live"))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """PostgreSQL, Redis and S3 for the whole run; gives the environment that names them."""
    stack = Stack(tmp_path_factory.mktemp("servers") / "home", plan=SERVERS_ONLY, env=plain_environment())
    stack.start()
    try:
        yield {name: value for name, value in stack.env.items() if name.startswith("ATTUNE_")}
    finally:
        stack.stop()
        stack.purge()


def fresh_database(servers: dict[str, str], name: str) -> str:
    """The URL of a new, empty database on the running server."""
    url = servers["ATTUNE_DATABASE_URL"]
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    admin.dispose()
    return url.rsplit("/", 1)[0] + "/" + name


@pytest.fixture(scope="session")
def settings(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    url = fresh_database(servers, "units")
    fields = {name.removeprefix("ATTUNE_").lower(): value for name, value in servers.items()}
    made = Settings(**(fields | {"database_url": url, "s3_bucket": "units", "home": tmp_path_factory.mktemp("home")}))
    configure_logging(made)
    bound = engine(made)
    migrate(bound)
    bound.dispose()
    S3Store(made).create_bucket()
    return made


@pytest.fixture(scope="session")
def _parts(settings: Settings) -> Iterator[Parts]:
    made = Parts(settings, sessions(engine(settings)), S3Store(settings), Rings())
    yield made
    made.close()


@pytest.fixture
def parts(_parts: Parts) -> Iterator[Parts]:
    """The parts on an empty database."""
    yield _parts
    assert isinstance(_parts.doorbell, Rings)
    _parts.doorbell.kinds.clear()
    with transaction(_parts.sessions) as session:
        # Deleting a few rows is quick, where truncating fifteen tables writes fifteen files.
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())


@dataclass(frozen=True)
class Account:
    """A project with a key, and a client that uses it."""

    tenant: Tenant
    key: str
    http: TestClient


class Accounts:
    """Makes projects of one organisation, each with a client of its own."""

    def __init__(self, parts: Parts, app: TestClient) -> None:
        self._parts = parts
        self._app = app

    def make(self, name: str, scopes: list[str] | None = None) -> Account:
        with transaction(self._parts.sessions) as session:
            first = tenants.default(session, "acme")
            project = first
            if name != tenants.DEFAULT_PROJECT:
                organization = session.get_one(Organization, first.organization_id)
                project = Project(id=f"proj_{name}", organization_id=organization.id, name=name)
                session.add(project)
                session.flush()
            row, secret = keys.create(session, project.id, name, scopes or ["read", "train"])
            tenant = tenants.of_key(row, session.get_one(Organization, project.organization_id))
        client = TestClient(
            self._app.app,
            headers={"Authorization": f"Bearer {secret}"},
            raise_server_exceptions=False,
            follow_redirects=False,
        )
        return Account(tenant, secret, client)


@pytest.fixture
def accounts(parts: Parts) -> Accounts:
    app = create_app(parts)
    # The application's own end would close the pool that the whole run shares.
    install(app, parts)
    return Accounts(parts, TestClient(app))


@pytest.fixture
def account(accounts: Accounts) -> Account:
    return accounts.make(tenants.DEFAULT_PROJECT)


@pytest.fixture
def admin(accounts: Accounts) -> Account:
    return accounts.make("operators", ["read", "train", "admin"])


@pytest.fixture
def base_model(parts: Parts) -> BaseModel:
    """A base model that is ready, as far as rows go."""
    with transaction(parts.sessions) as session:
        row = BaseModel(
            id="base_tiny",
            name="attune-tiny",
            source="path:/nowhere",
            aliases=["gpt-4o-mini-2024-07-18"],
            status="ready",
            facts={"sha256": "0" * 64, "files": []},
            files={"files": []},
            content_sha256="0" * 64,
        )
        session.add(row)
    return row


@pytest.fixture(scope="session")
def live(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Live]:
    """One stack for the whole run, flows and SDKs alike."""
    env = plain_environment() | servers
    env |= {"ATTUNE_DATABASE_URL": fresh_database(servers, "live"), "ATTUNE_S3_BUCKET": "live"}
    env |= {"ATTUNE_METRICS_PORT": str(free_ports(4))}
    with running(tmp_path_factory.mktemp("live") / "home", env, tiny) as stack:
        yield stack


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "attune-tiny")


@pytest.fixture(scope="session")
def registered(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facts]:
    """The tiny model's folder and facts after registration."""
    from worker.prepare import register

    out = tmp_path_factory.mktemp("registered") / "model"
    return out, register.convert(f"path:{tiny}", out)


def preference_rows(count: int) -> bytes:
    """JSONL of ``count`` questions with an answer that is preferred and one that isn't."""
    rows = (
        {
            "input": {"messages": [{"role": "user", "content": f"What is {n} plus one?"}]},
            "preferred_output": [{"role": "assistant", "content": f"It is {n + 1}."}],
            "non_preferred_output": [{"role": "assistant", "content": "I would rather not say what that is."}],
        }
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def chat_rows(count: int, **extra: Any) -> bytes:
    """JSONL of ``count`` small conversations."""
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"What comes after {n}?"},
                {"role": "assistant", "content": f"{n + 1}"},
            ],
            **extra,
        }
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
