"""Alembic's entry: runs revisions on the connection that ``migrations/__main__.py`` hands over."""

from alembic import context

from core.db.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
