"""Database time: the only clock that leases and rows may trust, and its conversion for the wire."""

from datetime import datetime

from sqlalchemy import ColumnElement, DateTime, func


def now() -> ColumnElement[datetime]:
    """The database's clock as an SQL expression (``clock_timestamp``: moves on within a transaction)."""
    return func.clock_timestamp(type_=DateTime(timezone=True))


def in_seconds(seconds: float) -> ColumnElement[datetime]:
    return now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def unix(moment: datetime) -> int:
    """Integer Unix seconds, as OpenAI's wire has them."""
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)
