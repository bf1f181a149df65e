"""Folders of claims on this machine: one each, and what dead claims have left behind."""

import re
import shutil
import time
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.session import transaction
from core.db.tables import Job, WorkItem
from core.queue.claims import Claim
from core.wiring import Parts

log = structlog.get_logger()

_CLAIM = re.compile(r"(?P<id>[A-Za-z0-9_-]+)-gen-(?P<generation>\d{1,18})")


def folder(slot: Path, claim: Claim) -> Path:
    return slot / f"{claim.id}-gen-{claim.generation}"


def clear(parts: Parts) -> int:
    """Remove the folders of claims that nobody has any more, in every slot of this home; returns how many.

    A worker that was killed could not do it. Workers of other names may share the home: what a live claim has stays.
    """
    if parts.settings.keep_scratch:
        return 0
    found = {
        path: (match["id"], int(match["generation"]))
        for path in parts.settings.scratch_dir.glob("*/*-gen-*")
        if (match := _CLAIM.fullmatch(path.name)) is not None and path.is_dir()
    }
    with transaction(parts.sessions) as session:
        live = _live(session, [id for id, _ in found.values()])
    dead = [path for path, claim in found.items() if claim not in live]
    for path in dead:
        _remove(path)
    _remove_partial(parts.settings.cache_dir, parts.settings.litter_grace_seconds)
    if dead:
        log.info("scratch.cleared", folders=len(dead))
    return len(dead)


def _live(session: Session, ids: list[str]) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for table in (Job, WorkItem):
        rows = select(table.id, table.generation).where(table.id.in_(ids), table.lease_until.is_not(None))
        found |= {(id, generation) for id, generation in session.execute(rows)}
    return found


def _remove(path: Path) -> None:
    # A trainer whose supervisor was killed may still be dying, and writing.
    for _ in range(10):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.5)
    log.warning("scratch.not_removed", folder=path.name)


def _remove_partial(cache: Path, grace_seconds: float) -> None:
    """Downloads of base models that were cut off long ago."""
    for path in cache.glob("base/*/.*.partial"):
        try:
            if path.stat().st_mtime < time.time() - grace_seconds:
                path.unlink()
        except FileNotFoundError:
            continue
