"""Keys: without a good one, no route under /v1 says anything else than 401."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from core import ids
from core.db.session import transaction
from core.db.tables import ApiKey
from core.wiring import Parts
from tests.conftest import Account, Accounts


def routes(app: TestClient) -> list[tuple[str, str]]:
    """Every route under /v1, from the service's own document."""
    paths = app.app.openapi()["paths"]  # type: ignore[attr-defined]  # TestClient keeps the application untyped
    return [(method.upper(), path) for path, methods in paths.items() if path.startswith("/v1") for method in methods]


@pytest.mark.parametrize(
    "authorization",
    # One of the right form, with a name that is the same in all processes of a run.
    [None, "", "Bearer", "Bearer nonsense", pytest.param(f"Bearer {ids.secret_key()}", id="unknown"), "Basic dTpw"],
)
def test_every_route_wants_a_good_key_before_anything_else(account: Account, authorization: str | None) -> None:
    found = routes(account.http)
    assert len(found) > 15
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in found:
        bare = TestClient(account.http.app, headers=headers, raise_server_exceptions=False)
        answer = bare.request(method, path.replace("{", "").replace("}", ""), content=b"{")
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["x-request-id"].startswith("req_")
        # The answer to HEAD has no body.
        if method != "HEAD":
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_keys_are_shown_once_and_stored_hashed(admin: Account, parts: Parts) -> None:
    made = admin.http.post("/v1/admin/keys", json={"name": "ci", "scopes": ["read"]}).json()
    assert ids.looks_like_key(made["key"])
    listed = admin.http.get("/v1/admin/keys").json()["data"]
    assert made["id"] in [key["id"] for key in listed]
    assert all("key" not in key for key in listed)
    with transaction(parts.sessions) as session:
        for row in session.scalars(select(ApiKey)):
            assert made["key"] not in {str(value) for value in vars(row).values()}


def test_a_revoked_key_stops_at_once(admin: Account) -> None:
    made = admin.http.post("/v1/admin/keys", json={"name": "ci"}).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    assert admin.http.get("/v1/files", headers=headers).status_code == 200
    admin.http.delete(f"/v1/admin/keys/{made['id']}")
    assert admin.http.get("/v1/files", headers=headers).status_code == 401


def test_scopes_are_kept(accounts: Accounts) -> None:
    reader = accounts.make("readers", ["read"])
    assert reader.http.get("/v1/fine_tuning/jobs").status_code == 200
    for method, path in (("POST", "/v1/fine_tuning/jobs"), ("POST", "/v1/files"), ("DELETE", "/v1/files/file-x")):
        answer = reader.http.request(method, path)
        assert answer.status_code == 403, path
        assert "train" in answer.json()["error"]["message"]
    writer = accounts.make("writers", ["read", "train"])
    assert writer.http.get("/v1/admin/keys").status_code == 403


def test_a_mistyped_key_is_known_without_a_look_up() -> None:
    key = ids.secret_key()
    assert ids.looks_like_key(key)
    swapped = key[:-8] + ("a" if key[-8] != "a" else "b") + key[-7:]
    assert not ids.looks_like_key(swapped)
