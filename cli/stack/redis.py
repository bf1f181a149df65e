"""The embedded Redis: the doorbell's broker. It keeps nothing: the rows in PostgreSQL say what there is to do."""

import os
import socket
from pathlib import Path

from cli.stack import binaries
from cli.stack.home import Home
from cli.stack.ports import LOOPBACK
from cli.stack.process import Program


def prepare(home: Home, port: int) -> Program:
    folder = home.path / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a file, since anybody can read another process's command line.
    settings = home.run / "redis.conf"
    settings.touch(mode=0o600)
    settings.write_text(
        f"bind {LOOPBACK}\n"
        f"port {port}\n"
        f"requirepass {home.secret('redis_password')}\n"
        'save ""\n'
        "appendonly no\n"
        "daemonize no\n"
        'dir "' + _quoted(folder) + '"\n'
    )
    return Program(
        name="redis",
        command=[str(binaries.redis_server()), str(settings)],
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        cwd=folder,
    )


def url(home: Home, port: int) -> str:
    return f"redis://:{home.secret('redis_password')}@{LOOPBACK}:{port}/0"


def answers(home: Home, port: int) -> bool:
    """Whether it takes our password and a command; in its inline protocol, so that no client is imported."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            connection.sendall(f"AUTH {home.secret('redis_password')}\r\nPING\r\nQUIT\r\n".encode())
            answer = b""
            while chunk := connection.recv(1024):
                answer += chunk
    except OSError:
        return False
    return answer.startswith(b"+OK\r\n+PONG")


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
