"""When a stack is ready: the API answers, and a worker of each kind has registered, so that a job is accepted."""

import httpx
import psycopg

from cli.stack.errors import StackError
from cli.stack.home import Home


def database_time(url: str) -> float:
    """Unix seconds on the database's clock, the one by which workers register."""
    with psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), connect_timeout=10) as connection:
        row = connection.execute("select extract(epoch from now())::float8").fetchone()
    return float(row[0]) if row is not None else 0.0


def api(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def api_key(home: Home, base_url: str, admin_key: str) -> str:
    """The key of this home's users: last time's while it is good, else a new one."""
    known = home.read("secrets.json").get("api_key")
    if known is not None:
        asked = httpx.get(f"{base_url}/v1/models", headers=_bearer(str(known)), timeout=30)
        if asked.status_code == 200:
            return str(known)
    made = httpx.post(
        f"{base_url}/v1/admin/keys",
        json={"name": "attune up", "scopes": ["read", "train"]},
        headers=_bearer(admin_key),
        timeout=30,
    )
    if made.status_code != 200:
        raise StackError(f"the API made no key: {made.status_code} {made.text[:300]}")
    key = str(made.json()["key"])
    home.keep_secret("api_key", key)
    return key


def workers(base_url: str, admin_key: str) -> list[dict[str, object]]:
    """The worker registry; empty while the API can't answer."""
    try:
        answer = httpx.get(f"{base_url}/v1/admin/workers", headers=_bearer(admin_key), timeout=5)
    except httpx.HTTPError:
        return []
    if answer.status_code != 200:
        return []
    listed: list[dict[str, object]] = answer.json()["data"]
    return listed


def worker(base_url: str, admin_key: str, kind: str, since: float) -> bool:
    """Whether a worker of that kind has registered after ``since``: an older row may be of one that was killed."""
    return any(
        entry["kind"] == kind and entry["status"] == "online" and _seconds(entry["started_at"]) >= int(since)
        for entry in workers(base_url, admin_key)
    )


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
