"""A row that is there all the time is seen exactly once, while others come and go between the pages and under them.

One walker follows ``has_more`` through the API; beside it threads insert and delete on connections of their own. The
order of what happens is seeded, so that a failure can be had again.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import insert, select

from core import ids
from core.db import tenancy
from core.db.session import transaction
from core.db.tables import BaseModel, Event, File, Job, WebhookEndpoint
from core.services import events
from core.states import FileStatus, Phase, Status
from core.wiring import Parts
from tests.conftest import Account, Accounts

_LISTS = {
    "jobs": "/v1/fine_tuning/jobs",
    "files": "/v1/files",
    "files, oldest first": "/v1/files?order=asc",
    "endpoints": "/v1/webhook_endpoints",
}


class Crowd:
    """Inserts and deletes rows of one list: a few at a time share their second and their place in the order."""

    def __init__(self, parts: Parts, account: Account, name: str, seed: int) -> None:
        self.parts = parts
        self.dice = random.Random(seed)
        self.passing: list[str] = []
        self._account = account
        self._kind = name.partition(",")[0]

    def insert(self, count: int) -> list[str]:
        """Rows of one transaction have one ``created_at``: only their ids set them apart."""
        made = [self._row() for _ in range(count)]
        table = {"jobs": Job, "files": File, "endpoints": WebhookEndpoint}[self._kind]
        with transaction(self.parts.sessions) as session:
            session.execute(insert(table), made)
        return [row["id"] for row in made]

    def delete(self, id: str) -> None:
        path = _LISTS[self._kind]
        answer = self._account.http.delete(f"{path}/{id}")
        assert answer.status_code == 200, answer.text

    def stir(self, cursor: str = "") -> None:
        """Somebody comes, or somebody who came leaves; a row that a cursor points at leaves if it can."""
        if cursor in self.passing:
            self.passing.remove(cursor)
            self.delete(cursor)
        if self.passing and (self.dice.random() < 0.5 or len(self.passing) > 50):
            self.delete(self.passing.pop(self.dice.randrange(len(self.passing))))
        else:
            self.passing += self.insert(self.dice.randint(1, 3))

    def _row(self) -> dict[str, Any]:
        project = self._account.tenant.project_id
        if self._kind == "files":
            return file_row(project)
        if self._kind == "endpoints":
            return {
                "id": ids.webhook_endpoint(),
                "project_id": project,
                "name": "passing",
                "url": "https://example.com/",
                "event_types": ["fine_tuning.job.failed"],
                "secret": "whsec_AAAA",
            }
        return job_row(project)


def file_row(project_id: str, id: str | None = None) -> dict[str, Any]:
    id = id or ids.file()
    return {
        "id": id,
        "project_id": project_id,
        "purpose": "user_data",
        "filename": "a.txt",
        "bytes": 1,
        "sha256": "0" * 64,
        "storage_key": f"files/{id}",
        "status": FileStatus.PROCESSED,
    }


def job_row(project_id: str) -> dict[str, Any]:
    return {
        "id": ids.job(),
        "project_id": project_id,
        "model": "attune-tiny",
        "base_model_id": "base_tiny",
        "training_file": "file-shared",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
        "options": {},
        # Ended: a job that lives can't be deleted.
        "status": Status.CANCELLED,
        "phase": Phase.CANCELLED,
    }


@pytest.fixture
def _base(parts: Parts, account: Account, base_model: BaseModel) -> None:
    with transaction(parts.sessions) as session:
        session.execute(insert(File), [file_row(account.tenant.project_id, "file-shared")])


def walk(account: Account, path: str, dice: random.Random, between: Callable[[str], None]) -> list[str]:
    """The ids on all pages, each of another length, from the first to the one that says that it is the last."""
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = account.http.get(path, params={"limit": dice.randint(1, 7), **after}).json()
        seen += [row["id"] for row in page["data"]]
        assert len(seen) < 10_000, "it goes round"
        if not page["has_more"]:
            return seen
        after = {"after": page["data"][-1]["id"]}
        between(after["after"])


@contextmanager
def busy(*stirs: Callable[[], None]) -> Iterator[None]:
    """Threads that do this again and again for as long as it is entered."""
    ended = threading.Event()
    faults: list[BaseException] = []

    def run(stir: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                stir()
        except Exception as error:  # noqa: BLE001  # raised below, in the test's own thread
            faults.append(error)

    threads = [threading.Thread(target=run, args=(stir,)) for stir in stirs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]


@pytest.mark.usefixtures("_base")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.proof) for n in range(3, 100))])
@pytest.mark.parametrize("name", _LISTS)
def test_what_stays_is_seen_once(parts: Parts, account: Account, name: str, seed: int) -> None:
    crowd = Crowd(parts, account, name, seed)
    staying: list[str] = []
    for _ in range(8):
        # Mixed, so that those who stay share their moments with those who leave.
        together = crowd.insert(crowd.dice.randint(2, 6))
        staying += together[::2]
        crowd.passing += together[1::2]
    others = [Crowd(parts, account, name, seed * 1000 + n) for n in range(2)]
    with busy(*(other.stir for other in others)):
        seen = walk(account, _LISTS[name], crowd.dice, crowd.stir)
    counted = Counter(seen)
    assert {id: counted[id] for id in staying} == dict.fromkeys(staying, 1)
    # Nobody who passes is seen twice either.
    assert set(counted.values()) == {1}
    assert len(crowd.passing) > 0


@pytest.mark.usefixtures("_base")
def test_events_are_seen_once_while_more_come(parts: Parts, account: Account) -> None:
    (job_id,) = Crowd(parts, account, "jobs", 0).insert(1)

    def append(count: int = 2) -> None:
        with transaction(parts.sessions) as session:
            job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
            for _ in range(count):
                events.append(session, job, "Something happened.")

    append(60)
    path = f"{_LISTS['jobs']}/{job_id}/events"
    with busy(append, append):
        seen = walk(account, path, random.Random(0), lambda _: append(1))
    with transaction(parts.sessions) as session:
        rows = session.execute(select(Event.id, Event.number).where(Event.job_id == job_id)).all()
    numbers = {row.id: row.number for row in rows}
    # From the newest of the first page down to the first, each of them once.
    walked = [numbers[id] for id in seen]
    assert walked == list(range(walked[0], 0, -1))
    assert 60 <= walked[0] < max(numbers.values())


@pytest.mark.usefixtures("_base")
def test_a_cursor_that_is_not_there_is_an_error(parts: Parts, account: Account, accounts: Accounts) -> None:
    """Page one instead would send a client round for ever; another project's row is not there either."""
    stranger = accounts.make("strangers")
    (job_id,) = Crowd(parts, account, "jobs", 0).insert(1)
    for name, path in _LISTS.items():
        (theirs,) = Crowd(parts, stranger, name, 0).insert(1)
        for after in ("nothing", theirs):
            refused(account, path, after)
    for path in ("events", "checkpoints"):
        refused(account, f"{_LISTS['jobs']}/{job_id}/{path}", "nothing")


def refused(account: Account, path: str, after: str) -> None:
    answer = account.http.get(path, params={"after": after})
    assert answer.status_code == 400, (path, answer.text)
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("after", "invalid_cursor")
