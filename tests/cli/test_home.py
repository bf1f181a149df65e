"""The folder of a stack: who holds it, what it remembers, which ports it gets."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.stack import ports
from cli.stack.errors import HomeInUse, StackError
from cli.stack.home import LOG_BYTES, Home
from core import ids
from tests.cli.running import environment


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.acquire()
    return home


def test_a_secret_is_made_once_and_private(home: Home) -> None:
    first = home.secret("admin_key", make=ids.secret_key)
    assert ids.looks_like_key(first)
    assert Home(home.path).secret("admin_key") == first
    assert (home.path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_second_holder_is_told_who_holds_it(home: Home) -> None:
    with pytest.raises(HomeInUse, match=f"process {os.getpid()}"):
        Home(home.path).acquire()
    home.release()
    Home(home.path).acquire()


def test_the_lock_ends_with_its_process_though_a_child_lives_on(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from pathlib import Path
from cli.stack.home import Home
Home(Path(sys.argv[1])).acquire()
print(subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False).pid)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        Home(tmp_path / "home").acquire()
    finally:
        os.kill(int(done.stdout), 9)


def test_a_home_of_another_user_is_refused(home: Home) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's files")
    home.release()
    home.remember()
    os.chown(home.path / "home.json", 65534, -1)
    with pytest.raises(StackError, match="belongs to the user with id 65534"):
        Home(home.path).acquire()


def test_a_private_folder_stays_private(tmp_path: Path) -> None:
    """PostgreSQL's user must get at its data some other way."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    before = tmp_path.stat().st_mode
    Home(folder).acquire()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode == before


def test_ports_are_distinct_and_come_again(home: Home) -> None:
    names = [f"p{n}" for n in range(20)]
    first = ports.choose(home, names)
    assert len(set(first.values())) == 20
    assert ports.choose(home, names) == first


def test_a_port_that_was_taken_meanwhile_is_replaced(home: Home) -> None:
    first = ports.choose(home, ["api", "redis"])
    with socket.create_server((ports.LOOPBACK, first["api"])):
        second = ports.choose(home, ["api", "redis"])
    assert second["api"] != first["api"]
    assert second["redis"] == first["redis"]


def test_a_given_port_that_is_taken_is_an_error_that_names_it(home: Home) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} can't be used: Address already in use"):
            ports.choose(home, ["api"], {"api": port})


def test_a_large_log_is_set_aside_at_the_next_start(home: Home) -> None:
    log = home.log("api")
    with log.open("wb") as file:
        file.truncate(LOG_BYTES + 1)
    os.close(home.open_log("api"))
    assert log.stat().st_size == 0
    assert (home.logs / "api.log.1").stat().st_size == LOG_BYTES + 1
