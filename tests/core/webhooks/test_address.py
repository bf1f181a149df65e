"""Where a webhook may go, and where not: many spellings of one machine, and names that lead to it."""

import json
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from core.config import Settings
from core.errors import BadRequest
from core.webhooks import address
from core.webhooks.address import Allowed, check, public
from core.webhooks.post import post
from tests.receiver import Receiver, receiving

NOTHING = Allowed.parse("")

# What a name service of the test answers; names that are not here don't exist.
NAMES = {
    "public.test": ["93.184.215.14"],
    "inside.test": ["127.0.0.1"],
    "lan.test": ["10.0.0.5"],
    "both.test": ["93.184.215.14", "127.0.0.1"],
    "both6.test": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "zone.test": ["fe80::1%lo"],
    "127.0.0.1.nip.test": ["127.0.0.1"],
    "localhost": ["127.0.0.1", "::1"],
    "sub.localhost": ["127.0.0.1"],
    "LOCALHOST": ["127.0.0.1"],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    real = address.lookup

    def lookup(host: str, port: int) -> list[str]:
        if host.endswith(".test") or host.lower().endswith("localhost"):
            if host not in NAMES:
                raise OSError("no such name")
            return NAMES[host]
        return real(host, port)

    monkeypatch.setattr(address, "lookup", lookup)


@pytest.fixture(scope="module")
def inside() -> Iterator[Receiver]:
    """A listener on every address of this machine: whoever gets through to it is counted."""
    with receiving(host="0.0.0.0") as receiver:
        yield receiver


# {} is the listener's port, so that the port alone would stop none of them.
HOSTILE = [
    "http://127.0.0.1:{}/",
    "http://127.0.0.1.:{}/",
    "http://127.1:{}/",
    "http://127.0.1:{}/",
    "http://127.255.255.254:{}/",
    "http://2130706433:{}/",
    "http://0177.0.0.1:{}/",
    "http://0177.0.0.01:{}/",
    "http://017700000001:{}/",
    "http://0x7f.0.0.1:{}/",
    "http://0x7f000001:{}/",
    "http://0x7F.1:{}/",
    "http://127.0.0.0x1:{}/",
    "http://0:{}/",
    "http://0.0.0.0:{}/",
    "http://4294967295:{}/",
    "http://[::1]:{}/",
    "http://[::]:{}/",
    "http://[0:0:0:0:0:0:0:1]:{}/",
    "http://[::127.0.0.1]:{}/",
    "http://[::ffff:127.0.0.1]:{}/",
    "http://[::ffff:7f00:1]:{}/",
    "http://[0:0:0:0:0:ffff:7f00:0001]:{}/",
    "http://[::ffff:0:127.0.0.1]:{}/",
    "http://[64:ff9b::127.0.0.1]:{}/",
    "http://[64:ff9b:1::127.0.0.1]:{}/",
    "http://[2002:7f00:1::]:{}/",
    "http://[2001:0:7f00:1::]:{}/",
    "http://[fe80::1]:{}/",
    "http://[fe80::1%25lo]:{}/",
    "http://[::1%25lo]:{}/",
    "http://[fec0::1]:{}/",
    "http://[fd00:ec2::254]:{}/",
    "http://[ff02::1]:{}/",
    "http://169.254.169.254:{}/latest/meta-data/",
    "http://2852039166:{}/",
    "http://[::ffff:169.254.169.254]:{}/",
    "http://100.100.100.200:{}/",
    "http://168.63.129.16:{}/",
    "http://192.0.0.192:{}/",
    "http://10.0.0.1:{}/",
    "http://172.16.0.1:{}/",
    "http://192.168.1.1:{}/",
    "http://198.18.0.1:{}/",
    "http://192.0.2.1:{}/",
    "http://224.0.0.1:{}/",
    "http://240.0.0.1:{}/",
    "http://255.255.255.255:{}/",
    "http://localhost:{}/",
    "http://LOCALHOST:{}/",
    "http://localhost.:{}/",
    "http://sub.localhost:{}/",
    "http://inside.test:{}/",
    "http://lan.test:{}/",
    "http://both.test:{}/",
    "http://both6.test:{}/",
    "http://mapped.test:{}/",
    "http://zone.test:{}/",
    "http://127.0.0.1.nip.test:{}/",
    "http://missing.test:{}/",
    "http://public.test@127.0.0.1:{}/",
    "http://public.test:80@127.0.0.1:{}/",
    "http://127.0.0.1:{}@public.test/",
    "http://public.test#@127.0.0.1:{}/",
    "http://public.test\\@127.0.0.1:{}/",
    "http://127.0.0.1\\.public.test:{}/",
    "http://public.test?@127.0.0.1:{}/ x",
    "http:127.0.0.1:{}/",
    "http:/127.0.0.1:{}/",
    "http:///127.0.0.1:{}/",
    "//127.0.0.1:{}/",
    "127.0.0.1:{}",
    "http://127.0.0.1:{}:80/",
    "http://127。0。0。1:{}/",
    "http://①②⑦.⓪.⓪.①:{}/",
    "http://127.0.0.1%2f:{}/",
    "http://127%2e0%2e0%2e1:{}/",
    "http://%31%32%37.0.0.1:{}/",
    "http://127.0.0.1\t:{}/",
    "ht\ntp://127.0.0.1:{}/",
    " http://127.0.0.1:{}/",
    "http://[127.0.0.1]:{}/",
    "http://[v1.127.0.0.1]:{}/",
    "http://[::1:{}/",
    "http://:{}/",
    "gopher://127.0.0.1:{}/",
    "ftp://127.0.0.1:{}/",
    "file:///etc/passwd?{}",
    "unix:///run/docker.sock?{}",
    "",
]


@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.usefixtures("names")
def test_no_spelling_of_an_inner_address_is_connected_to(
    form: str, inside: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = form.format(inside.port)
    # So that the address alone is what stops them.
    monkeypatch.setitem(address.PORTS, "test", inside.port)
    with pytest.raises(BadRequest) as refusal:
        check(url, NOTHING)
    assert refusal.value.param == "url"
    assert "10.0.0.5" not in refusal.value.message  # what an inner name means is not told
    before = inside.connects
    answer = post(url, "wh_1", {}, ["whsec_AAAA"], Settings(webhook_timeout_seconds=1))
    assert (answer.status, inside.connects - before, inside.got) == (None, 0, [])


def test_there_are_many_forms() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


@pytest.mark.parametrize(
    "form", ["http://127.0.0.1:{}/", "http://[::ffff:127.0.0.1]:{}/", "http://inside.test:{}/", "http://127.0.0.1.:{}/"]
)
@pytest.mark.usefixtures("names")
def test_the_listener_is_there_and_the_operator_may_allow_it(form: str, inside: Receiver) -> None:
    settings = Settings(webhook_allow="127.0.0.0/8")
    before = inside.connects
    assert post(form.format(inside.port), "wh_1", {}, ["whsec_AAAA"], settings).status == 200
    assert inside.connects == before + 1
    inside.got.clear()


@pytest.mark.parametrize("port", [21, 22, 8080, 6379, 5432, 81, 444, 65535])
@pytest.mark.usefixtures("names")
def test_other_ports_are_refused(port: int) -> None:
    with pytest.raises(BadRequest, match="80 or 443"):
        check(f"https://public.test:{port}/", NOTHING)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://public.test/a/b?c=d&e=%20", "public.test", 443, "/a/b?c=d&e=%20"),
        ("http://public.test", "public.test", 80, "/"),
        ("https://PUBLIC.test.:80?x", "public.test", 80, "/?x"),
        ("https://8.8.8.8:443/", "8.8.8.8", 443, "/"),
        ("http://[2606:4700:4700::1111]/h", "2606:4700:4700::1111", 80, "/h"),
    ],
)
@pytest.mark.usefixtures("names")
def test_public_receivers_are_good(url: str, host: str, port: int, path: str) -> None:
    target = check(url, NOTHING)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    "url", ["https://public.test:0x50/", "https://public.test:99999/", "https://public.test:-1/", "x" * 3000]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        check(url, NOTHING)
    assert refusal.value.param == "url"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::8.8.8.8", True),
        ("2002:808:808::1", True),
        ("64:ff9b::10.0.0.1", False),
        ("2002:a00:1::1", False),
        ("::8.8.8.8", False),
        ("2001:db8::1", False),
        ("4000::1", False),
    ],
)
def test_a_wrapped_address_is_as_public_as_what_it_wraps(text: str, expected: bool) -> None:
    assert public(ip_address(text)) is expected


@pytest.mark.usefixtures("names")
def test_the_operator_allows_names_and_networks_and_nothing_beside_them() -> None:
    allowed = Allowed.parse(" Lan.test, 192.168.0.0/16,fd00::/8 ,")
    for url in ("http://lan.test:9000/", "https://192.168.7.7:1/", "http://[fd00::1]:8080/"):
        assert check(url, allowed).port in (9000, 1, 8080)
    for url in ("http://inside.test/", "http://10.0.0.5/", "http://[fc00::1]/", "http://x.lan.test/"):
        with pytest.raises(BadRequest):
            check(url, allowed)
    # Its port is free only where every address of the name is allowed.
    with pytest.raises(BadRequest):
        check("http://both.test:8080/", Allowed.parse("127.0.0.1"))


@pytest.mark.parametrize("listed", ["10.0.0.0/33", "a b", "http://x", "1.2.3.4/x"])
def test_a_wrong_setting_ends_the_process_that_reads_it(listed: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        Settings(webhook_allow=listed)


def test_the_answer_that_was_checked_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug behind it: a name that is public when it is asked for and inside when it is connected to."""
    answers = [["127.0.0.2"], ["127.0.0.1"]]
    asked = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), 2) - 1]

    monkeypatch.setattr(address, "lookup", lookup)
    settings = Settings(webhook_allow="127.0.0.2")
    with receiving(host="127.0.0.2") as good, receiving(host="127.0.0.1", port=good.port) as bad:
        url = good.url("/h", host="rebind.test")
        assert post(url, "wh_1", {"a": 1}, ["whsec_AAAA"], settings).status == 200
        assert asked == ["rebind.test"]
        (got,) = good.got
        assert (got.path, got.headers["host"], json.loads(got.body)) == ("/h", f"rebind.test:{good.port}", {"a": 1})
        assert post(url, "wh_1", {}, ["whsec_AAAA"], settings).status is None
        assert (good.connects, bad.connects) == (1, 0)
