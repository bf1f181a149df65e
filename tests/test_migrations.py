"""Revisions build what the tables say, and can be undone and done again on a filled database."""

from alembic import command
from sqlalchemy import inspect, text

from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.db.tables import ApiKey, Table
from core.services import keys, tenants
from core.storage.s3 import S3Store
from migrations.__main__ import alembic_config, migrate, prepare
from tests.conftest import fresh_database


def test_up_down_and_up_again_without_drift(servers: dict[str, str], settings: Settings) -> None:
    bound = engine(settings.model_copy(update={"database_url": fresh_database(servers, "migrations")}))
    migrate(bound)
    with transaction(sessions(bound)) as session:
        project = tenants.default(session, "acme")
        keys.create(session, project.id, "k", ["read"])
    with bound.connect() as connection:
        command.check(alembic_config(connection))
    migrate(bound, "base")
    assert inspect(bound).get_table_names() == ["alembic_version"]
    migrate(bound)
    migrate(bound)
    assert set(inspect(bound).get_table_names()) == {*Table.metadata.tables, "alembic_version"}
    bound.dispose()


def test_preparing_twice_makes_one_of_each(servers: dict[str, str], settings: Settings) -> None:
    from core import ids

    secret = ids.secret_key()
    given = settings.model_copy(
        update={
            "database_url": fresh_database(servers, "prepared"),
            "s3_bucket": "prepared",
            "bootstrap_admin_key": secret,
        }
    )
    bound = engine(given)
    migrate(bound)
    prepare(given, bound)
    prepare(given, bound)
    with transaction(sessions(bound)) as session:
        for table in ("organizations", "projects", "api_keys"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 1
        assert keys.authenticate(session, secret).scopes >= {"admin"}
        assert secret not in str(session.query(ApiKey.hash).all())
    S3Store(given).ready()
    bound.dispose()
