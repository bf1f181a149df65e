"""``python -m migrations upgrade``: bring database and bucket to what this version needs. Safe to run again."""

import argparse
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from core import config, ids, wiring
from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.services import keys, tenants
from core.storage.s3 import S3Store
from migrations import backup

# Any number of processes may start at once; one migrates, the others wait and find nothing left to do.
_LOCK = 0x417474756E65


def alembic_config(connection: Connection) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    made.attributes["connection"] = connection
    return made


def migrate(bound: Engine, revision: str = "head") -> None:
    with bound.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.commit()
        try:
            run = command.downgrade if revision.startswith(("-", "base")) else command.upgrade
            run(alembic_config(connection), revision)
            connection.commit()
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
            connection.commit()


def prepare(settings: Settings, bound: Engine) -> None:
    """Everything beside the schema that a fresh service needs: the default tenant, the operator's key, the bucket."""
    with transaction(sessions(bound)) as session:
        project = tenants.default(session, settings.organization)
        if settings.bootstrap_admin_key:
            if not ids.looks_like_key(settings.bootstrap_admin_key):
                # It would be stored and then never be accepted: better to say so now than to wonder later.
                raise SystemExit(
                    "ATTUNE_BOOTSTRAP_ADMIN_KEY is not a key of this service: make one with python -m core.ids"
                )
            keys.ensure_admin(session, project.id, settings.bootstrap_admin_key)
    S3Store(settings).create_bucket()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("upgrade", help="apply what is missing, and make default tenant, admin key and bucket")
    verbs.add_parser("backup", help="all rows and objects into a new folder").add_argument("folder", type=Path)
    verbs.add_parser("restore", help="a backup into an empty service").add_argument("folder", type=Path)
    verbs.add_parser("downgrade", help="undo revisions").add_argument("revision")
    verbs.add_parser("check", help="exit 1 when tables and revisions differ")
    verbs.add_parser("revision", help="write a new revision from the difference").add_argument("message")
    given = parser.parse_args()
    settings = config.load()
    wiring.configure_logging(settings)
    bound = engine(settings)
    if given.verb == "upgrade":
        migrate(bound)
        prepare(settings, bound)
    elif given.verb == "downgrade":
        migrate(bound, given.revision)
    elif given.verb in ("backup", "restore"):
        act = backup.backup if given.verb == "backup" else backup.restore
        rows, objects = act(bound, S3Store(settings), given.folder)
        print(f"{given.verb}: {rows} rows, {objects} objects")
    else:
        with bound.connect() as connection:
            if given.verb == "check":
                command.check(alembic_config(connection))
            else:
                command.revision(alembic_config(connection), given.message, autogenerate=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
