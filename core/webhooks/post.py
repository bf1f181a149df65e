"""One signed POST to a webhook's receiver: to an address that was checked, within a time, without redirects."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config import Settings
from core.errors import BadRequest
from core.webhooks import address, signature
from core.webhooks.address import Allowed, Target


@dataclass(frozen=True, slots=True)
class Answer:
    """``status``: the receiver's, or None where it gave none. ``said``: the same for people."""

    status: int | None
    said: str


def post(url: str, id: str, body: dict[str, Any], secrets: Sequence[str], settings: Settings) -> Answer:
    """Deliver one event. Every failure is an answer: nothing that a receiver or a network does raises here."""
    try:
        target = address.check(url, Allowed.parse(settings.webhook_allow))
    except BadRequest as refusal:
        return Answer(None, refusal.message)
    content = json.dumps(body, separators=(",", ":")).encode()
    headers = {
        "host": _authority(target),
        "content-type": "application/json",
        "user-agent": "Attune-Webhooks/1",
        # The time of this try: receivers refuse what is older than five minutes. The id stays the same.
        **signature.headers(id, int(time.time()), content, secrets),
    }
    return _exchange(target, content, headers, settings.webhook_timeout_seconds)


def _authority(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == address.PORTS[target.scheme] else f"{host}:{target.port}"


def _exchange(target: Target, content: bytes, headers: dict[str, str], seconds: float) -> Answer:
    deadline = _Deadline(seconds)
    try:
        with deadline, _dial(target, deadline) as raw, _secured(raw, target, deadline) as line:
            # The connection is handed over ready, so http.client has no name to look up and nowhere else to go.
            talk = http.client.HTTPConnection(target.host, target.port)
            talk.sock, talk.auto_open = line, 0
            talk.request("POST", target.path, content, headers)
            # Status and headers are all that counts; whatever follows is not read.
            with talk.getresponse() as response:
                status = response.status
        # A cut line looks like one that the receiver ended, and headers that it never ended like all there were.
        return Answer(None, f"no answer within {seconds:g} s") if deadline.over else Answer(status, f"status {status}")
    except (OSError, http.client.HTTPException) as error:
        if deadline.over or isinstance(error, TimeoutError):
            return Answer(None, f"no answer within {seconds:g} s")
        return Answer(None, _reason(error))


def _dial(target: Target, deadline: "_Deadline") -> socket.socket:
    """The first of the addresses that takes the connection."""
    failure: OSError = TimeoutError()
    for candidate in target.addresses:
        try:
            return socket.create_connection((str(candidate), target.port), timeout=deadline.left())
        except OSError as error:
            failure = error
    raise failure


def _secured(raw: socket.socket, target: Target, deadline: "_Deadline") -> socket.socket:
    if target.scheme == "http":
        deadline.guards(raw)
        return raw
    # The certificate must be the name's, wherever the connection went.
    line = ssl.create_default_context().wrap_socket(raw, server_hostname=target.host, do_handshake_on_connect=False)
    deadline.guards(line)
    try:
        line.do_handshake()
    except BaseException:
        line.close()
        raise
    return line


class _Deadline:
    """An end for the whole exchange. A socket's own timeout is for each read, and a byte a second would never end."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._line: socket.socket | None = None

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def left(self) -> float:
        # Zero would mean "do not block" to a socket.
        return max(self._end - time.monotonic(), 0.001)

    def guards(self, line: socket.socket) -> None:
        line.settimeout(self.left())
        self._line = line

    def _cut(self) -> None:
        line = self._line
        if line is not None:
            try:
                # Below TLS, whose own shutdown would pull its state away under the reading thread.
                socket.socket.shutdown(line, socket.SHUT_RDWR)
            except OSError:
                return  # It has ended by itself in the meantime.


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, ConnectionRefusedError):
        return "it refused the connection"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return "it closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return "its answer is not HTTP"
    return "it can't be reached"
