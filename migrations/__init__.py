"""The database's history: Alembic revisions, and ``python -m migrations`` to apply them."""
