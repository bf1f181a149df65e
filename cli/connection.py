"""Where the service is and with which key: from the environment, else from a stack's home."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import output
from cli.exits import Refused
from cli.stack.home import Home

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_HOME = ".attune"


@dataclass(frozen=True)
class Address:
    base_url: str
    api_key: str
    admin_key: str


def home_path(given: Path | None) -> Path:
    """The home a command means: --home, ATTUNE_HOME_DIR, ./.attune."""
    return given or Path(os.environ.get("ATTUNE_HOME_DIR") or DEFAULT_HOME)


def find(home: Path | None) -> Address:
    """--home wins over OPENAI_BASE_URL and OPENAI_API_KEY, they win over the default home."""
    base_url, api_key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    recorded = Home(home_path(home)).read("connection.json")
    if home is None and base_url and api_key:
        # A home's admin key is of use only for that home's service.
        own = recorded.get("admin_key") if recorded.get("base_url") == base_url.rstrip("/") else None
        return Address(base_url, api_key, os.environ.get("ATTUNE_ADMIN_KEY") or own or api_key)
    if not recorded:
        where = home_path(home)
        raise Refused(
            f"no service: {where} has no running stack. Start one with `attune up --home {where}`, "
            "or set OPENAI_BASE_URL and OPENAI_API_KEY."
        )
    return Address(str(recorded["base_url"]), str(recorded["api_key"]), str(recorded["admin_key"]))


def client(home: Path | None) -> "OpenAI":
    """The official SDK with a user's key."""
    from openai import OpenAI

    address = find(home)
    return OpenAI(base_url=address.base_url, api_key=address.api_key)


def admin(home: Path | None) -> "OpenAI":
    """The official SDK with an admin key."""
    from openai import OpenAI

    address = find(home)
    return OpenAI(base_url=address.base_url, api_key=address.admin_key)


def get(client: "OpenAI", path: str) -> dict[str, Any]:
    """A GET of ours through the SDK: same address, key, retries and errors."""
    answer: dict[str, Any] = client.get(path, cast_to=dict[str, Any])
    return answer


def post(client: "OpenAI", path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(path, cast_to=dict[str, Any], body=body)
    return answer


def delete(client: "OpenAI", path: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.delete(path, cast_to=dict[str, Any])
    return answer


def ask(client: "OpenAI", path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a question about data, however long it is worked on. Any: JSON."""
    import httpx

    while True:
        if body is None:
            answer = client.get(path, cast_to=httpx.Response)
        else:
            answer = client.post(path, cast_to=httpx.Response, body=body)
        if answer.status_code != 202:
            return answer.json()
        output.note("still being worked on …")
        time.sleep(float(answer.headers.get("retry-after", 2)))
