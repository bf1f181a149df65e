"""Checkpoints wait for their upload in order; of recovery points that pile up only the newest counts."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from sqlalchemy.exc import OperationalError

import worker.uploader
from worker.uploader import Uploader


def line(step: int, kind: str = "recovery") -> dict[str, Any]:
    return {"step": step, "kind": kind}


class Store:
    """Takes an upload when it is let."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.skipped: list[int] = []
        self.open = threading.Event()

    def take(self, line: dict[str, Any], look: Callable[[], None]) -> None:
        while not self.open.wait(0.01):
            look()
        self.taken.append(line["step"])

    def skip(self, line: dict[str, Any]) -> None:
        self.skipped.append(line["step"])


def until_idle(uploader: Uploader) -> None:
    deadline = time.monotonic() + 5
    while not uploader.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_recovery_points_that_pile_up_give_way_to_the_newest_and_the_users_never_do() -> None:
    store = Store()
    uploader = Uploader(store.take, store.skip)
    assert uploader.idle
    uploader.add(line(1))
    while uploader._waiting:
        time.sleep(0.01)
    # What is on its way is not there yet.
    assert not uploader.idle
    for n, kind in ((2, "recovery"), (3, "epoch"), (4, "recovery"), (5, "recovery")):
        uploader.add(line(n, kind))
    assert not uploader.idle
    store.open.set()
    until_idle(uploader)
    assert (store.taken, store.skipped) == ([1, 3, 5], [2, 4])
    uploader.abandon()


def test_an_abandoned_upload_ends_at_once() -> None:
    store = Store()
    uploader = Uploader(store.take, store.skip)
    uploader.add(line(1))
    began = time.monotonic()
    uploader.abandon()
    assert time.monotonic() - began < 0.9
    assert store.taken == []


@pytest.mark.parametrize(
    "away", [EndpointConnectionError(endpoint_url="http://store"), OperationalError("select 1", {}, Exception("gone"))]
)
def test_a_store_or_database_that_is_away_costs_nothing_but_time(
    away: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.uploader, "_AGAIN_SECONDS", 0.01)
    tries: list[int] = []

    def take(line: dict[str, Any], look: Callable[[], None]) -> None:
        tries.append(line["step"])
        if len(tries) < 3:
            raise away

    uploader = Uploader(take, lambda line: None)
    uploader.add(line(1))
    until_idle(uploader)
    assert tries == [1, 1, 1]
    uploader.abandon()


def test_an_upload_that_has_failed_for_good_is_told() -> None:
    def refuse(line: dict[str, Any], look: Callable[[], None]) -> None:
        raise ValueError("no")

    uploader = Uploader(refuse, lambda line: None)
    uploader.add(line(1))
    with pytest.raises(ValueError, match="no"):
        until_idle(uploader)


def test_the_last_checkpoint_that_is_known_to_be_good_is_not_left_out() -> None:
    store = Store()
    uploader = Uploader(store.take, store.skip)
    uploader.add(line(1))
    while uploader._waiting:
        time.sleep(0.01)
    for n, good in ((2, 1), (3, 2), (4, 2), (5, 2)):
        uploader.add(line(n) | {"good_step": good})
    store.open.set()
    until_idle(uploader)
    assert (store.taken, store.skipped) == ([1, 2, 5], [3, 4])
    uploader.abandon()
