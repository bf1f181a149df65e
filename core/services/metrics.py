"""A job's measurements as a series of at most so many points."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from core.db import tenancy
from core.db.tables import Job, Metric
from core.db.tenancy import Tenant
from core.schemas.metrics import KEYS, Metrics, Point


def series(
    session: Session, tenant: Tenant, job_id: str, *, keys: list[str], first: int, last: int | None, resolution: int
) -> Metrics:
    """Every step of the range where there are no more than ``resolution``; else as many stretches of equal length.

    A stretch tells its last step, the last measurement of each key, and the least and the greatest one.
    """
    tenancy.get(session, Job, tenant, job_id)
    columns = [getattr(Metric, KEYS[key]) for key in keys]
    wanted = select(Metric.step, *columns).where(Metric.job_id == job_id, Metric.step >= first)
    if last is not None:
        wanted = wanted.where(Metric.step <= last)
    steps = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    if steps <= resolution:
        points = [
            Point(step=step, values=dict(zip(keys, values, strict=True)))
            for step, *values in session.execute(wanted.order_by(Metric.step))
        ]
        return Metrics(job_id=job_id, keys=keys, steps=steps, data=points)
    cut = wanted.add_columns(func.ntile(resolution).over(order_by=Metric.step).label("stretch")).subquery()
    told = []
    for key in keys:
        column = cut.c[KEYS[key]]
        # Validation is measured at few steps only: the last value of a stretch is seldom its last step's.
        newest_first = func.array_agg(aggregate_order_by(column, cut.c.step.desc())).filter(column.is_not(None))
        told += [newest_first[1], func.min(column), func.max(column)]
    rows = session.execute(select(func.max(cut.c.step), *told).group_by(cut.c.stretch).order_by(func.max(cut.c.step)))
    return Metrics(job_id=job_id, keys=keys, steps=steps, data=[_stretch(keys, list(row)) for row in rows])


def _stretch(keys: list[str], row: list[float]) -> Point:
    step, told = int(row[0]), row[1:]
    newest = dict(zip(keys, told[0::3], strict=True))
    extremes = zip(keys, told[1::3], told[2::3], strict=True)
    return Point(step=step, values=newest, range={key: (low, high) for key, low, high in extremes if low is not None})
