"""The outbox: an end of a job and its webhooks are one transaction, and each reaches its receiver at least once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import select

from core import clock
from core.db.session import transaction
from core.db.tables import BaseModel, Job, WebhookDelivery, WebhookEndpoint
from core.services import deliveries, runs
from core.states import Phase, Status, Wish
from core.webhooks import signature
from core.webhooks.post import Answer
from core.wiring import Parts
from tests.api.test_jobs import upload
from tests.conftest import Account
from tests.receiver import Receiver, receiving
from worker import reconciler
from worker.deliverer import Deliverer

TYPES = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
client = OpenAI(api_key="x", base_url="http://127.0.0.1:1")


@pytest.fixture(autouse=True)
def _settings(base_model: BaseModel, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers of this machine, and a base model to name."""
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    monkeypatch.setattr(parts.settings, "webhook_timeout_seconds", 20)


@pytest.fixture
def job(account: Account) -> str:
    answer = account.http.post("/v1/fine_tuning/jobs", json={"model": "attune-tiny", "training_file": upload(account)})
    id: str = answer.json()["id"]
    return id


def endpoint(account: Account, url: str, types: list[str] = TYPES) -> dict[str, Any]:
    answer = account.http.post("/v1/webhook_endpoints", json={"name": "n", "url": url, "event_types": types})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def shown(account: Account, id: str) -> dict[str, Any]:
    answer: dict[str, Any] = account.http.get(f"/v1/webhook_endpoints/{id}").json()
    return answer


def rows(parts: Parts) -> list[WebhookDelivery]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at)))


def add(parts: Parts, endpoint_id: str, *, n: int = 1) -> None:
    """Rows in the outbox, without jobs."""
    with transaction(parts.sessions) as session:
        session.add_all(
            WebhookDelivery(
                id=f"wh_{endpoint_id}_{i}",
                endpoint_id=endpoint_id,
                body=deliveries.event(f"evt_{i}", 1700000000, TYPES[0], f"ftjob-{i}"),
            )
            for i in range(n)
        )


def due_now(parts: Parts) -> None:
    with transaction(parts.sessions) as session:
        for row in session.scalars(select(WebhookDelivery)):
            row.available_at = clock.now()


def deliver(parts: Parts) -> int:
    """One round, to its end; how many tries it made."""
    threads = Deliverer(parts).round()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return len(threads)


def test_a_cancelled_job_is_told_once_and_verified_by_the_sdk(account: Account, parts: Parts, job: str) -> None:
    with receiving() as receiver:
        secret = endpoint(account, receiver.url())["signing_secret"]
        assert account.http.post(f"/v1/fine_tuning/jobs/{job}/cancel").json()["status"] == "cancelled"
        assert deliver(parts) == 1
        assert deliver(parts) == 0
    (got,) = receiver.got
    event = client.webhooks.unwrap(got.body, got.headers, secret=secret)
    (row,) = rows(parts)
    assert (event.type, event.data.id, got.headers["webhook-id"]) == ("fine_tuning.job.cancelled", job, row.id)
    finished = account.http.get(f"/v1/fine_tuning/jobs/{job}").json()["finished_at"]
    assert set(json.loads(got.body)) == {"id", "object", "created_at", "type", "data"}
    assert json.loads(got.body)["created_at"] == finished
    assert (row.attempts, row.last_answer, row.delivered_at is not None) == (1, "status 200", True)


def running(job: Job) -> None:
    job.status, job.phase, job.generation, job.worker_id = Status.RUNNING, Phase.TRAINING, 1, "worker_x"
    job.lease_until = clock.in_seconds(60)


def end_by_success(session: Any, parts: Parts, job: Job) -> None:
    running(job)
    runs.succeeded(session, job, prefix="p", manifest={}, results=[], line={"trained_tokens": 1})


def end_by_failure(session: Any, parts: Parts, job: Job) -> None:
    runs.failed(session, job, "server_error", "It failed.")


def end_by_losses(session: Any, parts: Parts, job: Job) -> None:
    running(job)
    job.losses = parts.settings.max_attempts - 1
    runs.lost(session, job, parts.settings, "killed")


def end_by_cancel_of_its_worker(session: Any, parts: Parts, job: Job) -> None:
    running(job)
    runs.cancelled(session, job)


def end_by_loss_while_cancelling(session: Any, parts: Parts, job: Job) -> None:
    running(job)
    job.wish = Wish.CANCEL
    runs.lost(session, job, parts.settings, "killed")


ENDS = {
    end_by_success: "succeeded",
    end_by_failure: "failed",
    end_by_losses: "failed",
    end_by_cancel_of_its_worker: "cancelled",
    end_by_loss_while_cancelling: "cancelled",
}


@pytest.mark.parametrize(("way", "status"), ENDS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_every_way_to_end_writes_the_outbox_in_its_own_transaction(
    account: Account, parts: Parts, job: str, way: Any, status: str
) -> None:
    endpoint(account, "http://127.0.0.1:1/")
    with parts.sessions() as session:
        way(session, parts, session.get_one(Job, job))
        session.flush()
        session.rollback()  # its worker is lost before the commit
    assert rows(parts) == []
    with transaction(parts.sessions) as session:
        way(session, parts, session.get_one(Job, job))
    (row,) = rows(parts)
    assert (row.body["type"], row.body["data"]) == (f"fine_tuning.job.{status}", {"id": job})


def test_the_sweep_of_a_cancelled_job_nobody_owns_tells_too(account: Account, parts: Parts, job: str) -> None:
    endpoint(account, "http://127.0.0.1:1/")
    with transaction(parts.sessions) as session:
        row = session.get_one(Job, job)
        running(row)
        row.lease_until = clock.now() - timedelta(seconds=1)
        row.wish = Wish.CANCEL
    reconciler.sweep(parts)
    assert [row.body["type"] for row in rows(parts)] == ["fine_tuning.job.cancelled"]


def test_only_who_asked_is_told(account: Account, accounts: Any, parts: Parts, job: str) -> None:
    with receiving() as receiver:
        wanted = endpoint(account, receiver.url("/wanted"), ["fine_tuning.job.cancelled"])
        again = endpoint(account, receiver.url("/again"))
        endpoint(account, receiver.url("/other-type"), ["fine_tuning.job.failed"])
        endpoint(accounts.make("other"), receiver.url("/other-project"))
        removed = endpoint(account, receiver.url("/removed"))
        account.http.delete(f"/v1/webhook_endpoints/{removed['id']}")
        disabled = endpoint(account, receiver.url("/disabled"))
        with transaction(parts.sessions) as session:
            session.get_one(WebhookEndpoint, disabled["id"]).disabled_reason = "gone"
        account.http.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        deliver(parts)
    assert sorted(got.path for got in receiver.got) == ["/again", "/wanted"]
    # One event, told twice: each endpoint has a delivery of its own.
    assert len({json.loads(got.body)["id"] for got in receiver.got}) == 1
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 2
    assert {row.endpoint_id for row in rows(parts)} == {wanted["id"], again["id"]}


@pytest.mark.parametrize("status", [199, 301, 302, 307, 400, 404, 429, 500, 503])
def test_everything_but_2xx_is_tried_again_with_the_same_id(account: Account, parts: Parts, status: int) -> None:
    with receiving(status, 202) as receiver:
        made = endpoint(account, receiver.url())
        receiver.location = receiver.url("/elsewhere")
        add(parts, made["id"])
        deliver(parts)
        (row,) = rows(parts)
        assert (row.attempts, row.delivered_at, row.failed_at) == (1, None, None)
        assert shown(account, made["id"])["ext"] == {
            "disabled_reason": None,
            "waiting": 1,
            "last_answer": f"status {status}",
        }
        due_now(parts)
        deliver(parts)
    assert [got.path for got in receiver.got] == ["/hook", "/hook"]
    first, second = receiver.got
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert shown(account, made["id"])["ext"] == {"disabled_reason": None, "waiting": 0, "last_answer": "status 202"}


def test_ten_tries_over_three_days_and_then_no_more(account: Account, parts: Parts) -> None:
    with receiving(500) as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        pauses = []
        for n in range(1, 11):
            assert deliver(parts) == 1
            with transaction(parts.sessions) as session:
                row, pause = session.execute(select(WebhookDelivery, WebhookDelivery.available_at - clock.now())).one()
            assert row.attempts == n
            assert (row.failed_at is None) is (n < 10)
            pauses.append(pause.total_seconds())
            due_now(parts)
        assert deliver(parts) == 0
    assert len(receiver.got) == 10
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    wanted = parts.settings.webhook_pauses
    assert all(least - 1 <= pause <= least * 1.1 for least, pause in zip(wanted, pauses, strict=False))
    assert 75 * 3600 <= sum(wanted) <= 76 * 3600


def test_a_failure_to_connect_and_a_refused_address_are_tried_again(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        # What was allowed when the endpoint was made is asked again at every try.
        monkeypatch.setattr(parts.settings, "webhook_allow", "")
        deliver(parts)
        assert receiver.connects == 0
        assert "not public" in shown(account, made["id"])["ext"]["last_answer"]
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    due_now(parts)
    deliver(parts)
    assert shown(account, made["id"])["ext"]["last_answer"] == "it refused the connection"
    (row,) = rows(parts)
    assert (row.attempts, row.failed_at) == (2, None)


def test_410_disables_the_endpoint_and_a_url_enables_it_again(account: Account, parts: Parts, job: str) -> None:
    with receiving(410, 200) as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"], n=2)
        assert deliver(parts) == 1
        assert shown(account, made["id"])["ext"]["disabled_reason"] == "Its receiver answered 410 (Gone)."
        # What was waiting is not sent, and new events are not written.
        assert deliver(parts) == 0
        account.http.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        assert len(receiver.got) == 1
        assert [row.failed_at is not None for row in rows(parts)] == [True, True]
        answer = account.http.post(f"/v1/webhook_endpoints/{made['id']}", json={"url": receiver.url()})
        assert answer.json()["ext"]["disabled_reason"] is None
        with transaction(parts.sessions) as session:
            session.add(WebhookDelivery(id="wh_after", endpoint_id=made["id"], body={}))
        assert deliver(parts) == 1
        assert receiver.got[-1].headers["webhook-id"] == "wh_after"


def test_a_removed_endpoint_gets_nothing_that_waited(account: Account, parts: Parts) -> None:
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        account.http.delete(f"/v1/webhook_endpoints/{made['id']}")
        assert deliver(parts) == 0
        assert receiver.connects == 0
    assert rows(parts)[0].failed_at is not None


def test_both_secrets_sign_while_they_overlap(account: Account, parts: Parts) -> None:
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
        new = account.http.post(path, json={"keep_old_secret_active_for_24_hours": True}).json()["signing_secret"]
        add(parts, made["id"])
        deliver(parts)
        got = receiver.got[-1]
        for secret in (made["signing_secret"], new):
            client.webhooks.unwrap(got.body, got.headers, secret=secret)
        with transaction(parts.sessions) as session:
            session.get_one(WebhookEndpoint, made["id"]).previous_secret_until = clock.now()
            session.add(WebhookDelivery(id="wh_later", endpoint_id=made["id"], body={"id": "evt"}))
        deliver(parts)
        signatures = receiver.got[-1].headers["webhook-signature"].split()
        assert len(receiver.got) == 2
        assert len(signatures) == 1


def test_no_transaction_is_open_while_the_receiver_thinks(account: Account, parts: Parts) -> None:
    pool = parts.sessions.kw["bind"].pool
    seen: list[int] = []
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        receiver.before_answer = lambda: seen.append(pool.checkedout())
        deliver(parts)
    assert seen == [0]


def test_several_copies_send_each_event_once(account: Account, parts: Parts) -> None:
    with receiving() as receiver:
        made = [endpoint(account, receiver.url(f"/{n}")) for n in range(8)]
        for one in made:
            add(parts, one["id"], n=5)
        copies = [Deliverer(parts) for _ in range(4)]
        for copy in copies:
            copy.start()
        patience = time.monotonic() + 60
        while any(row.delivered_at is None for row in rows(parts)) and time.monotonic() < patience:
            time.sleep(0.05)
        for copy in copies:
            copy.stop()
    sent = [got.headers["webhook-id"] for got in receiver.got]
    assert len(sent) == len(set(sent)) == 40


def test_a_receiver_that_hangs_delays_only_its_own(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.settings, "webhook_timeout_seconds", 60)
    ended = threading.Event()
    with receiving() as slow, receiving() as quick:
        slow.before_answer = lambda: ended.wait(60)
        hanging, healthy = endpoint(account, slow.url()), endpoint(account, quick.url())
        add(parts, hanging["id"], n=50)
        add(parts, healthy["id"], n=10)
        deliverer = Deliverer(parts)
        deliverer.start()
        patience = time.monotonic() + 30
        while len(quick.got) < 10 and time.monotonic() < patience:
            time.sleep(0.02)
        # It has a place of its own, and no more than one.
        told = len(quick.got), len(slow.got)
        deliverer.stop()
        ended.set()
        assert told == (10, 1)


def test_a_try_that_nobody_settled_is_made_again(account: Account, parts: Parts) -> None:
    """A copy that dies between posting and writing down: the event comes twice, with one id, and is never lost."""
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        with transaction(parts.sessions) as session:
            (lost,) = deliveries.claim(session, set(), 10, lease_seconds=0.3)
        assert deliver(parts) == 0
        time.sleep(0.35)
        assert deliver(parts) == 1
        # What the first copy says afterwards, if it lives after all, changes nothing.
        with transaction(parts.sessions) as session:
            deliveries.settle(session, lost, Answer(None, "late"), parts.settings)
    (row,) = rows(parts)
    assert (row.attempts, row.last_answer, row.delivered_at is not None) == (1, "status 200", True)


def test_the_reconcilers_process_delivers_and_a_killed_one_loses_nothing(
    account: Account, parts: Parts, servers: dict[str, str]
) -> None:
    environment = {**os.environ, **servers}
    environment |= {
        "ATTUNE_DATABASE_URL": parts.settings.database_url,
        "ATTUNE_S3_BUCKET": parts.settings.s3_bucket,
        "ATTUNE_WEBHOOK_ALLOW": "127.0.0.1",
        "ATTUNE_WEBHOOK_POLL_SECONDS": "0.1",
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "worker.reconciler"], env=environment, stderr=subprocess.DEVNULL)

    def wait_for(receiver: Receiver, count: int) -> None:
        patience = time.monotonic() + 60
        while len(receiver.got) < count and time.monotonic() < patience:
            time.sleep(0.02)
        assert len(receiver.got) == count

    release = threading.Event()
    with receiving() as receiver:
        made = endpoint(account, receiver.url())
        add(parts, made["id"])
        receiver.before_answer = lambda: release.wait(60)
        first = start()
        try:
            wait_for(receiver, 1)
            os.kill(first.pid, signal.SIGKILL)
        finally:
            first.kill()
            first.wait(10)
        release.set()
        (row,) = rows(parts)
        assert (row.attempts, row.delivered_at) == (0, None)
        due_now(parts)  # as the end of its lease would
        second = start()
        try:
            wait_for(receiver, 2)
            patience = time.monotonic() + 30
            while rows(parts)[0].delivered_at is None and time.monotonic() < patience:
                time.sleep(0.05)
        finally:
            second.terminate()
            assert second.wait(30) == 0
    assert rows(parts)[0].delivered_at is not None
    assert {got.headers["webhook-id"] for got in receiver.got} == {row.id}


def test_old_rows_are_forgotten(account: Account, parts: Parts) -> None:
    made = endpoint(account, "http://127.0.0.1:1/")
    add(parts, made["id"], n=3)
    with transaction(parts.sessions) as session:
        delivered, failed, waiting = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id))
        session.add(WebhookDelivery(id="wh_new", endpoint_id=made["id"], body={}, delivered_at=clock.now()))
        for row in (delivered, failed, waiting):
            row.created_at = clock.now() - timedelta(days=31)
        delivered.delivered_at = failed.failed_at = clock.now()
    reconciler.sweep(parts)
    assert {row.id for row in rows(parts)} == {waiting.id, "wh_new"}


def test_secrets_are_long_and_differ() -> None:
    made = {signature.new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("whsec_") and len(secret) == 50 for secret in made)
