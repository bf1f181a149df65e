"""Restarts, giving up, and the order of ending, with small programs."""

import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.stack.errors import StackError
from cli.stack.home import Home
from cli.stack.journal import Journal
from cli.stack.process import Program
from cli.stack.supervise import EARLY_DEATHS, Supervisor, clear_leftovers
from tests.cli.running import alive, environment, eventually


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.acquire()
    return home


@pytest.fixture
def supervisor(home: Home) -> Iterator[Supervisor]:
    supervisor = Supervisor(home, Journal(home.log("up")))
    yield supervisor
    supervisor.stop({})


def program(home: Home, name: str, code: str, **more: object) -> Program:
    return Program(name, [sys.executable, "-S", "-c", code], environment(), home.run, **more)  # type: ignore[arg-type]


def says_up(log: Path) -> bool:
    return log.read_text() == "up\n"


def turn_until(supervisor: Supervisor, home: Home, event: str, count: int) -> None:
    def seen() -> bool:
        supervisor.turn()
        return home.log("up").read_text().count(event) >= count

    eventually(seen, 10, f"{count} of {event}")


def test_pauses_grow_from_death_to_death(home: Home, supervisor: Supervisor) -> None:
    supervisor.add(program(home, "short", "raise SystemExit(7)"), stage=0)
    turn_until(supervisor, home, "process.died", 3)
    died = [line for line in home.log("up").read_text().splitlines() if "process.died" in line]
    assert [line.rpartition("restart_in_s=")[2] for line in died] == ["0.5", "1.0", "2.0"]
    assert all("'exit status 7'" in line for line in died)


def test_a_start_gives_up_on_a_process_that_keeps_dying_and_shows_its_log(home: Home, supervisor: Supervisor) -> None:
    code = "import sys; print('the disk is full', flush=True); sys.exit(1)"
    supervisor.add(program(home, "doomed", code), stage=0)

    def keep_trying() -> None:
        for _ in range(200):
            supervisor.turn_while_starting()
            time.sleep(0.05)

    with pytest.raises(StackError, match=rf"doomed ended {EARLY_DEATHS} times[^$]*the disk is full"):
        keep_trying()


def test_stages_end_one_after_the_other_and_the_stubborn_are_killed(home: Home) -> None:
    supervisor = Supervisor(home, Journal(home.log("up")))
    say = "import signal,sys,time,pathlib; p=pathlib.Path('order')\n"
    polite = say + (
        "def end(*a):\n with p.open('a') as f: f.write(sys.argv[1])\n sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    for name, stage in (("c", 2), ("a", 0), ("b", 1)):
        part = program(home, name, polite)
        supervisor.add(Program(name, [*part.command, name], part.env, part.cwd), stage)
    stubborn = (
        "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    supervisor.add(program(home, "stubborn", stubborn), stage=1)
    for name in ("a", "b", "c", "stubborn"):
        eventually(partial(says_up, home.log(name)), 10, f"{name} being up")
    began = time.monotonic()
    supervisor.stop({0: 2, 1: 0.5, 2: 2})
    assert time.monotonic() - began < 2
    assert (home.run / "order").read_text() == "abc"
    assert "process.killed name=stubborn" in home.log("up").read_text()


def test_a_killed_process_takes_its_own_children_with_it(home: Home, supervisor: Supervisor) -> None:
    code = "import subprocess,time; print(subprocess.Popen(['sleep','60']).pid, flush=True); time.sleep(60)"
    supervisor.add(program(home, "parent", code), stage=0)
    eventually(lambda: home.log("parent").read_text().strip(), 10, "the grandchild's pid")
    grandchild = int(home.log("parent").read_text())
    assert alive(grandchild)
    supervisor.stop({0: 0.0})
    eventually(lambda: not alive(grandchild), 5, "the end of the grandchild")


def test_leftovers_are_ended_and_strangers_with_their_pid_are_not(home: Home) -> None:
    supervisor = Supervisor(home, Journal())
    supervisor.add(program(home, "left", "import time; time.sleep(60)"), stage=0)
    pid = supervisor.pid("left")
    record = home.read("run/status.json")

    record["processes"][0]["birth"] += 1
    home.write("run/status.json", record)
    clear_leftovers(home, Journal())
    time.sleep(0.1)
    assert alive(pid)

    record["processes"][0]["birth"] -= 1
    home.write("run/status.json", record)
    clear_leftovers(home, Journal())
    eventually(lambda: not alive(pid), 5, "the end of the leftover")
    supervisor.stop({})


def test_a_signal_to_stop_is_the_programs_own(home: Home) -> None:
    code = (
        "import signal,sys,time\n"
        "signal.signal(signal.SIGINT, lambda *a: (print('fast shutdown', flush=True), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    supervisor = Supervisor(home, Journal())
    supervisor.add(program(home, "db", code, stop_signal=signal.SIGINT), stage=0)
    eventually(lambda: home.log("db").read_text(), 10, "the program being up")
    supervisor.stop({0: 5})
    assert "fast shutdown" in home.log("db").read_text()
