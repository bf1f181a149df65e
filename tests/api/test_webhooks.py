"""/v1/webhook_endpoints, through the official SDK in strict mode and by hand."""

import base64
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from openai import BadRequestError, NotFoundError, OpenAI

from api.main import create_app, install
from core.db.session import transaction
from core.db.tables import WebhookEndpoint
from core.services import webhooks
from core.wiring import Parts
from tests.conftest import Account, Accounts
from tests.receiver import receiving

TYPES = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
PUBLIC = "https://8.8.8.8/hook"


@pytest.fixture(autouse=True)
def _settings(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.settings, "webhook_timeout_seconds", 20)


def create(account: Account, **body: Any) -> httpx.Response:
    wanted = {"name": "trainings", "url": PUBLIC, "event_types": TYPES, **body}
    return account.http.post("/v1/webhook_endpoints", json=wanted)


@pytest.fixture
def client(account: Account, parts: Parts) -> Iterator[OpenAI]:
    """The SDK against a real server. Strict: a field that is not as OpenAI's types have it raises."""
    app = create_app(parts)
    install(app, parts)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with OpenAI(
        api_key=account.key,
        base_url=f"http://127.0.0.1:{port}/v1",
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made
    server.should_exit = True
    thread.join(10)


def test_the_sdk_walks_the_whole_surface_in_strict_mode(
    client: OpenAI, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    assert client.webhooks.event_types.list().data == TYPES
    with receiving(204) as receiver:
        made = client.webhooks.create(name="n", url=receiver.url(), event_types=["fine_tuning.job.failed"])
        assert len(base64.b64decode(made.signing_secret.removeprefix("whsec_"))) == 32
        assert made.updated_at == made.created_at
        got = client.webhooks.retrieve(made.id)
        assert "signing_secret" not in got.model_dump()
        assert got.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
        assert [one.id for one in client.webhooks.list()] == [made.id]
        changed = client.webhooks.update(made.id, name="m", event_types=["fine_tuning.job.succeeded"])
        assert (changed.name, changed.url, changed.event_types) == ("m", receiver.url(), ["fine_tuning.job.succeeded"])
        # The SDK sends no field at all where nothing is asked for.
        rotated = client.webhooks.rotate_secret(made.id)
        assert rotated.signing_secret != made.signing_secret
        tested = client.webhooks.test(made.id, event_type="fine_tuning.job.cancelled")
        assert (tested.status_code, tested.webhook_endpoint_id) == (204, made.id)
        (sample,) = receiver.got
        event = client.webhooks.unwrap(sample.body, sample.headers, secret=rotated.signing_secret)
        assert event.type == "fine_tuning.job.cancelled"
        client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        client.webhooks.test(made.id, event_type="fine_tuning.job.cancelled")
        client.webhooks.unwrap(receiver.got[1].body, receiver.got[1].headers, secret=rotated.signing_secret)
    removed = client.webhooks.delete(made.id)
    assert (removed.id, removed.deleted) == (made.id, True)
    with pytest.raises(NotFoundError):
        client.webhooks.retrieve(made.id)


def test_the_secret_is_shown_once(account: Account) -> None:
    made = create(account).json()
    secret = made["signing_secret"]
    for answer in (
        account.http.get(f"/v1/webhook_endpoints/{made['id']}"),
        account.http.get("/v1/webhook_endpoints"),
        account.http.post(f"/v1/webhook_endpoints/{made['id']}", json={"name": "x"}),
    ):
        assert answer.status_code == 200
        assert secret not in answer.text
        assert secret[6:-4] not in answer.text


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"url": "http://127.0.0.1/"}, "url", "not public"),
        ({"url": "http://169.254.169.254/latest/meta-data/"}, "url", "not public"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, "url", "not public"),
        ({"url": "http://localhost/"}, "url", "not public"),
        ({"url": "http://2130706433/"}, "url", "no host"),
        ({"url": "https://user:password@8.8.8.8/"}, "url", "user name"),
        ({"url": "https://8.8.8.8:8443/"}, "url", "80 or 443"),
        ({"url": "ftp://8.8.8.8/"}, "url", "https://"),
        ({"url": "https://8.8.8.8/\n"}, "url", "percent-encoded"),
        ({"url": ""}, "url", "at least 1"),
        ({"url": 7}, "url", "string"),
        ({"url": "https://8.8.8.8/" + "x" * 3000}, "url", "2048"),
        ({"name": ""}, "name", "at least 1"),
        ({"name": None}, "name", "string"),
        ({"event_types": []}, "event_types", "at least 1"),
        ({"event_types": ["fine_tuning.job.done"]}, "event_types[0]", "'fine_tuning.job.succeeded'"),
        ({"event_types": [TYPES[0], "batch.completed"]}, "event_types[1]", "'fine_tuning.job.cancelled'"),
        ({"event_types": "fine_tuning.job.failed"}, "event_types", "list"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(account: Account, body: dict[str, Any], param: str, words: str) -> None:
    good = create(account).json()["id"]
    for answer in (create(account, **body), account.http.post(f"/v1/webhook_endpoints/{good}", json=body)):
        if answer.request.url.path.endswith(good) and body == {"name": None}:
            continue  # In a change, null is as good as nothing.
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert words in error["message"]
        assert set(error) == {"message", "type", "param", "code"}
    assert len(account.http.get("/v1/webhook_endpoints").json()["data"]) == 1


def test_event_types_are_kept_once_and_in_order(account: Account) -> None:
    assert create(account, event_types=[TYPES[2], TYPES[0], TYPES[2]]).json()["event_types"] == [TYPES[2], TYPES[0]]


def test_pages_show_every_endpoint_once_newest_first(account: Account) -> None:
    made = [create(account, name=f"n{n}").json()["id"] for n in range(5)]
    seen: list[str] = []
    query = {"limit": "2"}
    while True:
        page = account.http.get("/v1/webhook_endpoints", params=query).json()
        ids = [one["id"] for one in page["data"]]
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        seen += ids
        # The endpoint that the cursor names may go in the meantime.
        account.http.delete(f"/v1/webhook_endpoints/{ids[-1]}")
        if not page["has_more"]:
            break
        query["after"] = ids[-1]
    assert seen == made[::-1]
    unknown = account.http.get("/v1/webhook_endpoints", params={"after": "we_unknown"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "invalid_cursor")


def test_an_unchanged_update_is_no_change(account: Account, parts: Parts) -> None:
    made = create(account).json()
    path = f"/v1/webhook_endpoints/{made['id']}"

    def updated() -> object:
        with transaction(parts.sessions) as session:
            return session.get_one(WebhookEndpoint, made["id"]).updated_at

    first = updated()
    account.http.post(path, json={"name": "trainings", "url": PUBLIC, "event_types": TYPES})
    account.http.post(path, json={})
    assert updated() == first
    account.http.post(path, json={"name": "other"})
    second = updated()
    assert second != first
    account.http.post(f"{path}/rotate_secret")
    assert updated() != second


def test_rotating_without_a_body_ends_the_old_secret(account: Account, parts: Parts) -> None:
    made = create(account).json()
    answer = account.http.post(f"/v1/webhook_endpoints/{made['id']}/rotate_secret")
    assert answer.status_code == 200
    with transaction(parts.sessions) as session:
        row = session.get_one(WebhookEndpoint, made["id"])
    assert (row.secret, row.previous_secret) == (answer.json()["signing_secret"], None)
    wrong = account.http.post(
        f"/v1/webhook_endpoints/{made['id']}/rotate_secret", json={"keep_old_secret_active_for_24_hours": "yes"}
    )
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "keep_old_secret_active_for_24_hours")


@pytest.mark.parametrize("status", [200, 302, 404, 410, 500])
def test_a_test_says_what_the_receiver_said_and_changes_nothing(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    with receiving(status) as receiver:
        receiver.location = receiver.url("/elsewhere")
        made = create(account, url=receiver.url()).json()
        answer = account.http.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": TYPES[0]})
        assert [got.path for got in receiver.got] == ["/hook"]
    assert answer.json() == {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": made["id"],
        "event_type": TYPES[0],
        "status_code": status,
        "success": True,
    }
    del made["signing_secret"]
    assert account.http.get(f"/v1/webhook_endpoints/{made['id']}").json() == made


def test_a_test_without_an_answer_is_a_400_that_says_why(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    with receiving() as receiver:
        made = create(account, url=receiver.url()).json()
        monkeypatch.setattr(parts.settings, "webhook_allow", "")
        path = f"/v1/webhook_endpoints/{made['id']}/test"
        refused = account.http.post(path, json={"event_type": TYPES[0]})
        assert receiver.connects == 0
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "webhook_unreachable")
    assert "not public" in refused.json()["error"]["message"]
    monkeypatch.setattr(parts.settings, "webhook_allow", "127.0.0.1")
    away = account.http.post(path, json={"event_type": TYPES[0]})
    assert away.status_code == 400
    assert "refused the connection" in away.json()["error"]["message"]


def test_a_test_of_an_unknown_type_is_refused(client: OpenAI, account: Account) -> None:
    made = create(account).json()["id"]
    with pytest.raises(BadRequestError) as refusal:
        client.webhooks.test(made, event_type="batch.completed")
    assert refusal.value.param == "event_type"


def test_another_projects_endpoint_is_not_there(accounts: Accounts, account: Account) -> None:
    made = create(account).json()["id"]
    other = accounts.make("other").http
    path = f"/v1/webhook_endpoints/{made}"
    for answer in (
        other.get(path),
        other.post(path, json={"name": "x"}),
        other.delete(path),
        other.post(f"{path}/rotate_secret", json={}),
        other.post(f"{path}/test", json={"event_type": TYPES[0]}),
    ):
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, f"No such webhook endpoint: {made!r}.")
    assert other.get("/v1/webhook_endpoints").json()["data"] == []
    assert other.get("/v1/webhook_endpoints", params={"after": made}).status_code == 400
    assert account.http.get(path).json()["name"] == "trainings"


def test_a_removed_endpoint_keeps_no_secret(account: Account, parts: Parts) -> None:
    made = create(account).json()
    account.http.post(
        f"/v1/webhook_endpoints/{made['id']}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}
    )
    assert account.http.delete(f"/v1/webhook_endpoints/{made['id']}").json() == {
        "id": made["id"],
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    with transaction(parts.sessions) as session:
        row = session.get_one(WebhookEndpoint, made["id"])
    assert (row.secret, row.previous_secret) == ("", None)
    assert account.http.delete(f"/v1/webhook_endpoints/{made['id']}").status_code == 404


def test_a_project_has_so_many_and_no_more(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MAX_ENDPOINTS", 2)
    made = [create(account) for _ in range(3)]
    assert [answer.status_code for answer in made] == [200, 200, 403]
    assert made[2].json()["error"]["code"] == "too_many_webhooks"
    account.http.delete(f"/v1/webhook_endpoints/{made[0].json()['id']}")
    assert create(account).status_code == 200


def test_a_read_only_key_changes_nothing(accounts: Accounts, account: Account) -> None:
    reader = accounts.make("reader", ["read"])
    assert reader.http.get("/v1/webhook_endpoints").status_code == 200
    assert create(reader).status_code == 403


def test_the_routes_are_in_the_document(account: Account) -> None:
    paths = account.http.get("/openapi.json").json()["paths"]
    one = "/v1/webhook_endpoints/{webhook_endpoint_id}"
    assert {path: set(paths[path]) for path in paths if "webhook" in path} == {
        "/v1/webhook_event_types": {"get"},
        "/v1/webhook_endpoints": {"get", "post"},
        one: {"get", "post", "delete"},
        f"{one}/rotate_secret": {"post"},
        f"{one}/test": {"post"},
    }
    assert paths["/v1/webhook_endpoints"]["post"]["requestBody"]["required"]
    assert not paths[f"{one}/rotate_secret"]["post"]["requestBody"]["required"]
