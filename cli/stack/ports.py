"""Free TCP ports on the loopback address, the same ones again while nobody else took them."""

import socket
from collections.abc import Iterable

from cli.stack.errors import StackError
from cli.stack.home import Home

LOOPBACK = "127.0.0.1"


def choose(home: Home, names: Iterable[str], given: dict[str, int | None] | None = None) -> dict[str, int]:
    """A port for each name: the given one, else last time's when it is free, else any free one.

    All are held open until each is chosen, so that no two names share one. A stack keeps its ports over restarts,
    and with them the addresses that its users have written down.
    """
    remembered: dict[str, int] = home.read("home.json").get("ports", {})
    held: dict[str, socket.socket] = {}
    try:
        for name in names:
            wanted = (given or {}).get(name)
            if wanted is not None:
                try:
                    held[name] = _bind(wanted)
                except OSError as error:
                    raise StackError(f"port {wanted} can't be used: {error.strerror}. Give another --port.") from None
                continue
            try:
                held[name] = _bind(remembered.get(name, 0))
            except OSError:
                held[name] = _bind(0)
        ports = {name: int(held[name].getsockname()[1]) for name in held}
    finally:
        for listener in held.values():
            listener.close()
    home.remember(ports={**remembered, **ports})
    return ports


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Connections of the last run may linger in TIME_WAIT; they do not make the port taken.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
