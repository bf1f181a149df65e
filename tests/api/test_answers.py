"""Questions about data: who waits, what is kept, and when it goes. Reports stand for all of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event, select, update

from core import clock
from core.db.session import transaction
from core.db.tables import Answer, File, WorkItem
from core.services import answers
from core.wiring import Parts
from tests.api.test_jobs import upload
from tests.api.test_live import served
from tests.conftest import Account, Accounts, chat_rows
from worker import reconciler
from worker.runner import Runner

pytestmark = pytest.mark.usefixtures("no_wait")


def ask(account: Account, file_id: str) -> httpx.Response:
    return account.http.get(f"/v1/files/{file_id}/report")


def rows(parts: Parts) -> list[Answer]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(Answer)))


@contextmanager
def working(runner: Runner) -> Iterator[None]:
    """A worker in a thread of its own, for as long as this is entered."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            if not runner.work_once():
                time.sleep(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_unanswered_question_is_a_202_that_says_when_to_come_again(parts: Parts, account: Account) -> None:
    file_id = upload(account)
    first = ask(account, file_id)
    assert first.status_code == 202
    assert int(first.headers["retry-after"]) >= 1
    assert first.json() == {"id": first.json()["id"], "object": "answer", "kind": "report", "status": "in_progress"}
    assert ask(account, file_id).json() == first.json()
    with transaction(parts.sessions) as session:
        (item,) = session.scalars(select(WorkItem))
    assert (item.kind, item.subject_id) == ("answer", first.json()["id"])
    assert parts.doorbell.kinds.count("prepare") == 1  # type: ignore[attr-defined]  # tests' own


def test_an_answer_is_worked_out_once_and_given_to_every_asker(parts: Parts, account: Account, runner: Runner) -> None:
    file_id = upload(account)
    ask(account, file_id)
    assert runner.work_once()
    answer = ask(account, file_id)
    assert answer.status_code == 200
    assert answer.json()["rows"] == 12
    # The same bytes under another id have the same answer, which names the file that was asked for.
    twin = ask(account, upload(account)).json()
    assert twin["rows"] == 12
    assert twin["file_id"] != file_id
    assert not runner.work_once()
    assert len(rows(parts)) == 1


def test_a_waiting_request_is_woken_and_holds_no_connection_meanwhile(
    parts: Parts, account: Account, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.settings, "answer_wait_seconds", 30)
    runner.slot.prepare()
    file_id = upload(account)
    with served(parts) as (url, app):
        taken: list[int] = []
        pool = app.state.parts.sessions.kw["bind"].pool
        event.listen(pool, "checkout", lambda *_: taken.append(1))
        answers_got: list[httpx.Response] = []
        headers = {"authorization": f"Bearer {account.key}"}

        def get() -> None:
            answers_got.append(httpx.get(f"{url}/v1/files/{file_id}/report", headers=headers, timeout=40))

        threads = [threading.Thread(target=get) for _ in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        before = len(taken)
        assert pool.checkedout() == 0
        time.sleep(2.5)
        # Nobody looks while there is a listener.
        assert len(taken) == before
        began = time.monotonic()
        assert runner.work_once()
        done = time.monotonic()
        for thread in threads:
            thread.join(20)
    assert [answer.status_code for answer in answers_got] == [200] * 5
    assert done - began < 25
    assert time.monotonic() - done < 10


def test_the_answer_goes_with_the_file_it_quotes(parts: Parts, account: Account, runner: Runner) -> None:
    file_id = upload(account)
    ask(account, file_id)
    runner.work_once()
    (row,) = rows(parts)
    (key,) = row.objects.values()
    assert parts.store.size(key) is not None
    assert account.http.delete(f"/v1/files/{file_id}").status_code == 200
    assert rows(parts) == []
    assert parts.store.size(key) is None
    with transaction(parts.sessions) as session:
        assert session.scalars(select(WorkItem)).all() == []
    assert ask(account, file_id).status_code == 404


def test_a_file_deleted_while_it_is_worked_on_leaves_nothing_behind(
    parts: Parts, account: Account, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = upload(account)
    answer_id = ask(account, file_id).json()["id"]
    put = parts.store.put_file

    def deleted_meanwhile(key: str, path: Path) -> None:
        put(key, path)
        assert account.http.delete(f"/v1/files/{file_id}").status_code == 200

    monkeypatch.setattr(parts.store, "put_file", deleted_meanwhile)
    runner.work_once()
    assert rows(parts) == []
    assert list(parts.store.list(f"answers/{answer_id}/")) == []


def test_other_projects_neither_see_nor_share_an_answer(
    parts: Parts, account: Account, accounts: Accounts, runner: Runner
) -> None:
    file_id = upload(account)
    ask(account, file_id)
    runner.work_once()
    rival = accounts.make("rival")
    assert ask(rival, file_id).status_code == 404
    # The same bytes: an answer at once would tell that somebody else has them.
    assert ask(rival, upload(rival)).status_code == 202


def test_an_answer_that_nobody_asks_for_is_forgotten(parts: Parts, account: Account, runner: Runner) -> None:
    kept, left = upload(account), upload(account, chat_rows(11))
    for id in (kept, left):
        ask(account, id)
        runner.work_once()
    old = clock.in_seconds(-24 * 3600 * parts.settings.answer_days - 60)
    with transaction(parts.sessions) as session:
        session.execute(update(Answer).values(used_at=old))
        keys = {row.question["data"]: row.objects["findings.jsonl"] for row in session.scalars(select(Answer))}
        sha256 = session.get_one(File, left).sha256
    assert ask(account, kept).status_code == 200
    reconciler.sweep(parts)
    (row,) = rows(parts)
    assert row.question["data"] != sha256
    assert parts.store.size(keys[sha256]) is None
    assert ask(account, left).status_code == 202


def test_a_failure_is_told_and_tried_again_later(
    parts: Parts, account: Account, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = upload(account)
    ask(account, file_id)
    with transaction(parts.sessions) as session:
        file = session.get_one(File, file_id)
    content = parts.store.get(file.storage_key)
    parts.store.delete(file.storage_key)
    runner.work_once()
    failed = ask(account, file_id)
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "unavailable"
    parts.store.put(file.storage_key, content)
    assert ask(account, file_id).status_code == 503
    monkeypatch.setattr(answers, "ERROR_SECONDS", 0)
    assert ask(account, file_id).status_code == 202
    runner.work_once()
    assert ask(account, file_id).status_code == 200


def test_a_lost_worker_is_not_the_end_of_a_question(parts: Parts, account: Account) -> None:
    file_id = upload(account)
    ask(account, file_id)
    short = replace(parts, settings=parts.settings.model_copy(update={"max_attempts": 2, "backoff_seconds": 0}))
    from core.queue import claims

    for expected in (202, 503):
        with transaction(parts.sessions) as session:
            item = claims.next_item(session, "worker_gone", parts.settings)
            assert item is not None
            item.lease_until = clock.in_seconds(-1)
        reconciler.sweep(short)
        assert ask(account, file_id).status_code == expected


def test_open_questions_of_a_project_are_limited(
    parts: Parts, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "OPEN_AT_ONCE", 1)
    first, second = upload(account), upload(account, chat_rows(11))
    assert ask(account, first).status_code == 202
    refused = ask(account, second)
    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    assert ask(account, first).status_code == 202


def test_only_data_files_are_asked_about(account: Account) -> None:
    answer = account.http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a.txt", b"abc")})
    refused = ask(account, answer.json()["id"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "file_id"
