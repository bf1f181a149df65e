"""Whatever goes wrong, the answer is OpenAI's envelope with a request id."""

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core.config import Settings
from core.db.session import engine, sessions
from core.db.tables import Job
from core.wiring import Parts
from tests.conftest import Account, Accounts, chat_rows


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/v1/nothing", 404, "no such route"),
        ("GET", "/elsewhere", 404, "no such route"),
        ("POST", "/v1/chat/completions", 404, "vLLM"),
        ("GET", "/v1/batches", 404, "not offered"),
        ("POST", "/v1/evals", 404, "validation file"),
        ("POST", "/v1/fine_tuning/alpha/graders/run", 404, "not offered"),
        ("PUT", "/v1/files", 405, "PUT"),
        ("GET", "/v1/fine_tuning/jobs?limit=abc", 400, "limit"),
        ("GET", "/v1/fine_tuning/jobs?limit=101", 400, "limit"),
        ("GET", "/v1/files/%00", 400, "NUL"),
        ("GET", "/v1/files?after=", 400, "after"),
    ],
)
def test_every_refusal_is_the_envelope(account: Account, method: str, path: str, status: int, word: str) -> None:
    answer = account.http.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word in error["message"]
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, POST"),
        ("/v1/files/file-abc/content", "GET, HEAD"),
        ("/v1/models/org/name", "GET, DELETE"),
        ("/v1/fine_tuning/jobs/estimate", "POST"),
        ("/healthz", "GET"),
    ],
)
def test_a_405_names_every_method_of_the_path(account: Account, path: str, allowed: str) -> None:
    answer = account.http.put(path)
    assert answer.status_code == 405
    assert answer.headers.get_list("allow") == [allowed]


def test_a_database_that_is_away_is_a_503_with_retry_after(accounts: Accounts, account: Account, parts: Parts) -> None:
    dead = parts.settings.model_copy(update={"database_url": "postgresql+psycopg://x@127.0.0.1:9/x"})
    account.http.app.state.parts = Parts(dead, sessions(engine(dead)), parts.store, parts.doorbell)  # type: ignore[attr-defined]  # TestClient keeps the application untyped
    answer = account.http.get("/v1/files")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "unavailable"
    assert account.http.get("/readyz").status_code == 503
    assert account.http.get("/healthz").status_code == 200


def test_a_commit_that_fails_is_seen_by_the_client(account: Account, base_model: object) -> None:
    """FastAPI can run code after ``yield`` when the answer is out already; then a lost job would have been a 200."""
    file = account.http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", chat_rows(12))}
    ).json()
    job = account.http.post("/v1/fine_tuning/jobs", json={"model": "attune-tiny", "training_file": file["id"]}).json()

    def notice(session: Session, _: object) -> None:
        session.info["wrote"] = any(isinstance(row, Job) for row in session.dirty)

    def fail(session: Session) -> None:
        if session.info.pop("wrote", False):
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

    event.listen(Session, "after_flush", notice)
    event.listen(Session, "before_commit", fail)
    try:
        answer = account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    finally:
        event.remove(Session, "after_flush", notice)
        event.remove(Session, "before_commit", fail)
    assert answer.status_code == 503
    after = account.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert after["status"] == "validating_files"


def test_an_unforeseen_error_is_a_500_without_its_words(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("core.services.files.list_of", fail)
    answer = account.http.get("/v1/files")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"].startswith("req_")


def test_health_touches_nothing(settings: Settings, account: Account) -> None:
    assert account.http.get("/healthz").json() == {"status": "ok"}
    ready = account.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"] == {"database": "ok", "redis": "ok", "s3": "ok"}
