"""Keeps processes running: restarts what died, with growing pauses, and stops everything in order.

One thread, no timers: `turn` looks at every process once and is called in a loop.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cli.stack import process
from cli.stack.errors import StackError
from cli.stack.home import Home
from cli.stack.journal import Journal
from cli.stack.process import Program, Running

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY = 60.0
"""A process that ran this long has recovered: its next death is its first again."""
EARLY_DEATHS = 4
"""Deaths in a row while the stack starts after which it gives up and says so."""


@dataclass
class Watched:
    """A program that should be running, and how that goes."""

    program: Program
    stage: int
    """Processes stop stage by stage, the lowest first."""
    running: Running | None = None
    restarts: int = 0
    deaths: int = 0
    """In a row, since it last ran steadily."""
    due: float = 0.0
    last_exit: int | None = None

    @property
    def state(self) -> str:
        if self.running is not None:
            return "running"
        return "restarting" if self.last_exit is not None else "stopped"


class Supervisor:
    def __init__(self, home: Home, journal: Journal) -> None:
        self._home = home
        self._journal = journal
        self._watched: dict[str, Watched] = {}
        self._state = "starting"

    # Watching.

    def add(self, program: Program, stage: int) -> None:
        """Start a program and watch over it from now on."""
        watched = Watched(program, stage)
        self._watched[program.name] = watched
        self._start(watched)

    def turn(self) -> None:
        """See who died, restart who is due."""
        now = time.monotonic()
        for watched in self._watched.values():
            running = watched.running
            if running is not None:
                status = running.exited()
                if status is not None:
                    self._died(watched, running, status)
            if watched.running is None and now >= watched.due:
                watched.restarts += 1
                self._start(watched)

    def turn_while_starting(self) -> None:
        """A turn that gives up on a process which dies again and again."""
        self.turn()
        for name, watched in self._watched.items():
            if watched.deaths >= EARLY_DEATHS:
                raise StackError(
                    f"{name} ended {watched.deaths} times while starting ({explain(watched.last_exit)}). "
                    f"Its log, {self._home.log(name)}, ends with:\n{tail(self._home.log(name))}"
                )

    def run_once(self, program: Program) -> Running:
        """Start a program that is meant to end; the caller waits for it."""
        log = self._home.open_log(program.name)
        try:
            return process.start(program, log)
        finally:
            os.close(log)

    def pid(self, name: str) -> int | None:
        running = self._watched[name].running
        return running.pid if running is not None else None

    def restart_in(self, name: str, seconds: float) -> None:
        """A process that has just died is started so much later, whatever pause its deaths have earned it."""
        watched = self._watched[name]
        if watched.running is None:
            watched.deaths = 0
            watched.due = time.monotonic() + seconds

    def say_state(self, state: str) -> None:
        """What `attune status` answers: starting, ready, stopping."""
        self._state = state
        self._journal.say(f"stack.{state}")
        self._write()

    def _start(self, watched: Watched) -> None:
        log = self._home.open_log(watched.program.name)
        try:
            watched.running = process.start(watched.program, log)
        except OSError as error:
            watched.last_exit = 127
            self._plan_restart(watched)
            self._journal.say("process.not_started", name=watched.program.name, why=error)
            return
        finally:
            os.close(log)
        event = "process.started" if watched.restarts == 0 else "process.restarted"
        self._journal.say(event, name=watched.program.name, pid=watched.running.pid, restarts=watched.restarts)
        self._write()

    def _died(self, watched: Watched, running: Running, status: int) -> None:
        # Children that it left behind hold its ports and its files.
        running.finish()
        if time.monotonic() - running.started >= STEADY:
            watched.deaths = 0
        watched.running = None
        watched.last_exit = status
        self._plan_restart(watched)
        self._journal.say(
            "process.died",
            name=watched.program.name,
            pid=running.pid,
            why=explain(status),
            restart_in_s=max(0.0, watched.due - time.monotonic()),
        )
        self._write()

    def _plan_restart(self, watched: Watched) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**watched.deaths)
        watched.deaths += 1
        watched.due = time.monotonic() + pause

    # Ending.

    def stop(self, patience: dict[int, float]) -> None:
        """Stop stage by stage; each stage has ``patience`` seconds to end by itself."""
        self.say_state("stopping")
        for stage in sorted({watched.stage for watched in self._watched.values()}):
            members = [w for w in self._watched.values() if w.stage == stage and w.running is not None]
            self._stop_all(members, patience.get(stage, 1.0))
        self._watched.clear()
        self._state = "stopped"
        self._write()
        self._journal.say("stack.stopped")

    def _stop_all(self, members: list[Watched], patience: float) -> None:
        deadline = time.monotonic() + patience
        for watched in members:
            if watched.running is not None:
                watched.running.ask()
        while time.monotonic() < deadline and any(w.running and w.running.exited() is None for w in members):
            time.sleep(0.02)
        for watched in members:
            running = watched.running
            if running is None:
                continue
            polite = running.exited() is not None
            running.finish()
            watched.running = None
            self._journal.say(
                "process.stopped" if polite else "process.killed",
                name=watched.program.name,
                pid=running.pid,
                after_s=time.monotonic() - deadline + patience,
            )

    # What it says about itself.

    def _write(self) -> None:
        self._home.write(
            "run/status.json",
            {
                "pid": os.getpid(),
                "state": self._state,
                "processes": [
                    {
                        "name": name,
                        "pid": watched.running.pid if watched.running else None,
                        "birth": process.birth(watched.running.pid) if watched.running else None,
                        "state": watched.state,
                        "restarts": watched.restarts,
                        "last_exit": watched.last_exit,
                    }
                    for name, watched in self._watched.items()
                ],
            },
        )


def clear_leftovers(home: Home, journal: Journal) -> None:
    """End processes of an earlier stack on this home that was killed: the caller holds the home's lock.

    PostgreSQL is left alone here: a kill would cost it a recovery, and its own start ends it properly.
    """
    for entry in home.read("run/status.json").get("processes", []):
        pid, born = entry["pid"], entry["birth"]
        if pid is None or born is None or process.birth(pid) != born or entry["name"] == "postgres":
            continue
        journal.say("leftover.killed", name=entry["name"], pid=pid)
        process.kill_group(pid)


def explain(status: int | None) -> str:
    if status is None:
        return "still running"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def tail(path: Path, lines: int = 15) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join("    " + line for line in text.splitlines()[-lines:])
