"""A file's content: HEAD is answered here, and the store that the redirect leads to honours ranges and ETags."""

import httpx
import pytest

from core.wiring import Parts
from tests.api.test_files import upload
from tests.conftest import Account, Accounts, chat_rows


def test_head_tells_what_the_store_will_send(account: Account) -> None:
    content = chat_rows(12)
    path = f"/v1/files/{upload(account, content).json()['id']}/content"
    head = account.http.head(path)
    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(content)
    assert head.headers["accept-ranges"] == "bytes"
    assert head.headers["x-request-id"].startswith("req_")
    direct = httpx.get(account.http.get(path).headers["location"])
    assert (direct.headers["etag"], direct.headers["content-type"]) == (
        head.headers["etag"],
        head.headers["content-type"],
    )


@pytest.mark.parametrize(
    ("wanted", "begin", "end"), [("bytes=10-29", 10, 30), ("bytes=100-", 100, None), ("bytes=-50", -50, None)]
)
def test_a_range_comes_after_the_redirect(account: Account, wanted: str, begin: int, end: int | None) -> None:
    content = chat_rows(12)
    path = f"/v1/files/{upload(account, content).json()['id']}/content"
    part = httpx.get(account.http.get(path, headers={"range": wanted}).headers["location"], headers={"range": wanted})
    assert part.status_code == 206
    assert part.content == content[begin:end]
    assert part.headers["content-range"].endswith(f"/{len(content)}")


def test_a_download_goes_on_where_it_broke_off_unless_the_file_changed(account: Account) -> None:
    content = chat_rows(12)
    path = f"/v1/files/{upload(account, content).json()['id']}/content"
    etag = account.http.head(path).headers["etag"]
    url = account.http.get(path).headers["location"]
    assert httpx.get(url, headers={"if-none-match": etag}).status_code == 304
    assert httpx.get(url, headers={"if-match": etag, "range": "bytes=5-"}).content == content[5:]
    assert httpx.get(url, headers={"if-match": '"another"'}).status_code == 412


def test_head_of_what_is_not_there_is_a_404_without_a_body(accounts: Accounts, account: Account, parts: Parts) -> None:
    path = f"/v1/files/{upload(account, chat_rows(12)).json()['id']}/content"
    for client, where in ((account.http, "/v1/files/file-none/content"), (accounts.make("stranger").http, path)):
        assert client.head(where).status_code == 404
    assert account.http.head(path, headers={"authorization": "Bearer nobody"}).status_code == 401
    # The row is there and its object is not: a lost object is no reason for a 500.
    parts.store.delete(*parts.store.list(f"files/{path.split('/')[3]}"))
    assert account.http.head(path).status_code == 404


def test_reading_is_enough_for_head(accounts: Accounts, account: Account) -> None:
    path = f"/v1/files/{upload(account, chat_rows(12)).json()['id']}/content"
    reader = accounts.make("default", ["read"])
    assert reader.http.head(path).status_code == 200
