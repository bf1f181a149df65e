"""One POST: signed as the SDK verifies it, never led elsewhere, never longer than its time; TLS for the name."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from core.config import Settings
from core.webhooks import address, signature
from core.webhooks.post import post
from tests.receiver import receiving

BODY = {
    "id": "evt_1",
    "object": "event",
    "created_at": 1700000000,
    "type": "fine_tuning.job.succeeded",
    "data": {"id": "ftjob-ü"},
}
SETTINGS = Settings(webhook_allow="127.0.0.1,hooks.test", webhook_timeout_seconds=20)
client = OpenAI(api_key="x", base_url="http://127.0.0.1:1")


def test_the_sdk_verifies_and_reads_it() -> None:
    secret = signature.new_secret()
    with receiving() as receiver:
        answer = post(receiver.url("/hook?x=1"), "wh_1", BODY, [secret], SETTINGS)
    assert (answer.status, answer.said) == (200, "status 200")
    (got,) = receiver.got
    assert (got.path, got.headers["content-type"], got.headers["webhook-id"]) == (
        "/hook?x=1",
        "application/json",
        "wh_1",
    )
    event = client.webhooks.unwrap(got.body, got.headers, secret=secret)
    assert event.type == "fine_tuning.job.succeeded"
    assert event.model_dump() == BODY
    for changed in (
        {"payload": got.body + b" ", "headers": got.headers},
        {"payload": got.body, "headers": got.headers | {"webhook-id": "wh_2"}},
        {"payload": got.body, "headers": got.headers | {"webhook-timestamp": str(int(time.time()) + 7)}},
    ):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(**changed, secret=secret)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body, got.headers, secret=signature.new_secret())


def test_each_of_several_secrets_verifies() -> None:
    secrets = [signature.new_secret(), signature.new_secret()]
    with receiving() as receiver:
        post(receiver.url(), "wh_1", BODY, secrets, SETTINGS)
    (got,) = receiver.got
    for secret in secrets:
        client.webhooks.unwrap(got.body, got.headers, secret=secret)


def test_the_published_vector() -> None:
    """From the specification's reference implementations."""
    headers = signature.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    with receiving() as elsewhere, receiving(status) as receiver:
        receiver.location = elsewhere.url()
        assert post(receiver.url(), "wh_1", BODY, ["whsec_AAAA"], SETTINGS).status == status
    assert elsewhere.connects == 0


@contextmanager
def talking(talk: Callable[[socket.socket], object]) -> Iterator[str]:
    """A receiver of one connection that says what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            line, _ = server.accept()
            with line:
                try:
                    talk(line)
                except OSError:
                    return  # The other side has gone, as it should.

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(timeout=30)
        assert not thread.is_alive()


def drip(line: socket.socket) -> None:
    line.recv(65536)
    line.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    for _ in range(300):
        line.sendall(b"x")
        time.sleep(0.05)


def continues(line: socket.socket) -> None:
    line.recv(65536)
    for _ in range(200):
        line.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


def silence(line: socket.socket) -> None:
    while line.recv(65536):
        pass


@pytest.mark.parametrize("talk", [drip, continues, silence])
def test_a_receiver_that_never_ends_is_left(talk: Callable[[socket.socket], object]) -> None:
    """The bug behind it: a timeout that each byte starts anew."""
    with talking(talk) as url:
        begun = time.monotonic()
        answer = post(url, "wh_1", BODY, ["whsec_AAAA"], SETTINGS.model_copy(update={"webhook_timeout_seconds": 0.4}))
        assert time.monotonic() - begun < 5
    assert (answer.status, answer.said) == (None, "no answer within 0.4 s")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000, "not HTTP"),
        (b"HTTP/1.1 200 " + b"x" * 100000, "not HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "not HTTP"),
        (b"\xff\xfe\x00", "not HTTP"),
    ],
)
def test_nonsense_is_a_failure_with_a_reason(said: bytes, reason: str) -> None:
    def nonsense(line: socket.socket) -> None:
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        # To close with bytes unread is to reset the connection, and that may overtake what was said.
        while line.recv(65536):
            pass

    with talking(nonsense) as url:
        answer = post(url, "wh_1", BODY, ["whsec_AAAA"], SETTINGS)
    assert answer.status is None
    assert reason in answer.said


def test_nobody_there() -> None:
    with receiving() as receiver:
        url = receiver.url()
    assert post(url, "wh_1", BODY, ["whsec_AAAA"], SETTINGS).said == "it refused the connection"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of hooks.test in one file, its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    pem = folder / "both.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hooks.test -addext subjectAltName=DNS:hooks.test"
    )
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    pem.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return pem


def test_tls_is_for_the_name_although_the_connection_goes_to_the_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "lookup", lambda host, port: ["127.0.0.1"])
    server_names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda line, name, context: server_names.append(name)
    with receiving(tls=context) as receiver:
        url = receiver.url(host="hooks.test", scheme="https")
        # Nobody vouches for it yet.
        answer = post(url, "wh_1", BODY, ["whsec_AAAA"], SETTINGS)
        assert answer.status is None
        assert "certificate is not good" in answer.said
        assert receiver.got == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert post(url, "wh_1", BODY, ["whsec_AAAA"], SETTINGS).status == 200
        assert server_names == ["hooks.test", "hooks.test"]
        assert receiver.got[0].headers["host"] == f"hooks.test:{receiver.port}"
        # The same machine by another name is not who the certificate is for.
        other = post(receiver.url(scheme="https"), "wh_1", BODY, ["whsec_AAAA"], SETTINGS)
        assert "certificate is not good" in other.said
        assert len(receiver.got) == 1


def test_a_receiver_that_hangs_in_the_handshake_is_left() -> None:
    with talking(silence) as url:
        begun = time.monotonic()
        few = SETTINGS.model_copy(update={"webhook_timeout_seconds": 0.3})
        answer = post(url.replace("http:", "https:"), "wh_1", BODY, ["whsec_AAAA"], few)
        assert time.monotonic() - begun < 5
    assert answer.said == "no answer within 0.3 s"
