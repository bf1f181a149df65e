"""TCP that passes through here on its way to a server, and can be cut off, or held at a chosen request.

Knows nothing of what passes but the first line of a request.
"""

import contextlib
import re
import socket
import threading
from collections.abc import Callable


class Proxy:
    """Listens on a port of its own from the start; where it leads to is asked at each connection."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._pattern: re.Pattern[bytes] | None = None
        self._left = 0
        self._drops = False
        self.held = threading.Event()
        """A request of the wanted sort waits here."""
        self._released = threading.Event()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """From now on nothing passes: connections stay open, and new ones are never answered."""
        self._flows.clear()

    def heal(self) -> None:
        self._flows.set()

    def hold(self, pattern: str, count: int) -> None:
        """The ``count``-th request from now on that begins like this waits until it is let go."""
        with self._lock:
            self.held.clear()
            self._released.clear()
            self._pattern, self._left = re.compile(pattern.encode()), count

    def release(self, *, drop: bool = False) -> None:
        """Let the held request through, late as it is, or end its connection."""
        with self._lock:
            self._pattern, self._drops = None, drop
        self._released.set()

    def close(self) -> None:
        self._listener.close()
        self.heal()
        self.release(drop=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target()), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()
        self._pump(client, server, True)

    def _pump(self, source: socket.socket, sink: socket.socket, requests: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                if requests and self._is_wanted(data):
                    self.held.set()
                    self._released.wait()
                    if self._drops:
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_wanted(self, data: bytes) -> bool:
        with self._lock:
            if self._pattern is None or not self._pattern.match(data):
                return False
            self._left -= 1
            if self._left > 0:
                return False
            self._pattern = None
            return True
