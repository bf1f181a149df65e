"""Keyset pages: a row that is there all the time is seen exactly once, whatever comes and goes."""

from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from core.errors import BadRequest

Row = TypeVar("Row")


def page(
    session: Session,
    query: Select[Row],
    position: tuple[Any, ...],  # Any: the columns of the sort key, whatever their types
    after: tuple[Any, ...] | None,
    limit: int,
    *,
    newest_first: bool = True,
) -> tuple[list[Row], bool]:
    """Up to ``limit`` rows that come after this position in the order, and whether there are more."""
    if after is not None:
        query = query.where(tuple_(*position) < after if newest_first else tuple_(*position) > after)
    order = (column.desc() if newest_first else column.asc() for column in position)
    rows = list(session.scalars(query.order_by(*order).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def unknown_cursor(after: str) -> BadRequest:
    # Page one instead would send a client that follows ``has_more`` around for ever.
    return BadRequest(f"No such object to continue after: {after!r}.", param="after", code="invalid_cursor")
