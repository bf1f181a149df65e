"""`attune up`, `down`, `status`, `logs`, `env`: the stack on this machine."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection, options, output
from cli.exits import Exit, Refused

if TYPE_CHECKING:
    from cli.stack.plan import Plan

DOWN_SECONDS = 15.0
"""A stack stops within 10 s; one that has not after this long is stuck."""

Port = Annotated[int | None, typer.Option("--port", help="Port of the API. Default: last time's, else a free one.")]


def up(
    home: options.Home = None,
    port: Port = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when ready; stop it with `down`.")] = False,
) -> None:
    """Start PostgreSQL, Redis, an S3 server, the API and its workers, and keep them running.

    A server whose URL is in the environment (ATTUNE_DATABASE_URL, ATTUNE_REDIS_URL, ATTUNE_S3_ENDPOINT_URL with
    ATTUNE_S3_ACCESS_KEY and ATTUNE_S3_SECRET_KEY) is used and not started. Ctrl-C or SIGTERM stops all of it.
    """
    where = connection.home_path(home)
    if detach:
        _up_detached(where, port)
    else:
        run(where, port)


def run(where: Path, port: int | None, plan: "Plan | None" = None) -> None:
    """The foreground of `attune up`, with other processes than the usual ones when a plan is given."""
    from cli.stack.errors import Interrupted
    from cli.stack.interrupts import Signals
    from cli.stack.stack import Stack

    signals = Signals()
    stack = Stack(where, port=port, plan=plan, interrupts=signals, quiet=False)
    with signals.watch():
        try:
            stack.start()
        except Interrupted:
            raise Refused("stopped while starting", Exit.INTERRUPTED) from None
        try:
            if stack.serves:
                _print_exports(stack.connection.base_url, stack.connection.api_key)
            stack.run()
        finally:
            stack.stop()


def _up_detached(where: Path, port: int | None) -> None:
    from cli.stack.home import Home
    from cli.stack.plan import python_environment

    home = Home(where)
    command = [sys.executable, "-m", "cli", "up", "--home", str(home.path)]
    if port is not None:
        command += ["--port", str(port)]
    read, write = os.pipe()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=write,
        start_new_session=True,
        env=python_environment(os.environ),
    )
    os.close(write)
    # Its journal is ours to show until it is ready; afterwards it is in DIR/logs/up.log alone.
    os.set_blocking(read, False)
    try:
        while child.poll() is None:
            _forward(read)
            if home.read("run/status.json").get("pid") == child.pid and home.connection_file.exists():
                found = connection.find(where)
                _print_exports(found.base_url, found.api_key)
                return
            time.sleep(0.1)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    _forward(read)
    raise typer.Exit(child.returncode)


def _forward(descriptor: int) -> None:
    try:
        while chunk := os.read(descriptor, 65536):
            sys.stderr.write(chunk.decode(errors="replace"))
    except BlockingIOError:
        pass
    sys.stderr.flush()


def down(home: options.Home = None) -> None:
    """Stop the stack of a home. Its data stay. Nothing to stop is no failure."""
    from cli.stack.home import Home
    from cli.stack.journal import Journal
    from cli.stack.supervise import clear_leftovers

    folder = Home(connection.home_path(home))
    pid = folder.holder()
    if pid is None:
        if folder.path.exists():
            clear_leftovers(folder, Journal())
        output.note(f"nothing runs on {folder.path}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while folder.holder() == pid:
        if time.monotonic() > deadline:
            raise Refused(f"process {pid} did not stop within {DOWN_SECONDS:.0f} s; see {folder.log('up')}")
        time.sleep(0.1)


def status(home: options.Home = None, json: options.Json = False) -> None:
    """Say what runs: each process, and the workers. Exit status 1 when the stack is not ready."""
    from cli.stack.home import Home

    folder = Home(connection.home_path(home))
    pid = folder.holder()
    record = folder.read("run/status.json") if pid is not None else {}
    state = str(record.get("state", "starting")) if pid is not None else "stopped"
    recorded = folder.read("connection.json") if state == "ready" else {}
    workers = _workers(recorded)
    for process in record.get("processes", []):
        process.pop("birth", None)
        kinds = [w for w in workers if w["kind"] == process["name"] and w["status"] == "online"]
        # A worker takes jobs at once; until its idle child has done its imports they begin some seconds later.
        if process["state"] == "running" and kinds and not all(w["warm"] for w in kinds):
            process["state"] = "warming"
    answer = {
        "home": str(folder.path),
        "state": state,
        "pid": pid,
        "base_url": recorded.get("base_url"),
        "processes": record.get("processes", []),
        "workers": workers,
    }
    if json:
        output.as_json(answer)
    else:
        _print_status(answer)
    if state != "ready":
        raise typer.Exit(Exit.FAILED)


def _workers(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    if not recorded:
        return []
    from cli.stack import ready

    base_url = str(recorded["base_url"]).removesuffix("/v1")
    return ready.workers(base_url, str(recorded["admin_key"]))


def _print_status(answer: dict[str, Any]) -> None:
    holder = f" (process {answer['pid']})" if answer["pid"] else ""
    output.line(f"{answer['home']}: {answer['state']}{holder}")
    if answer["base_url"]:
        output.line(str(answer["base_url"]))
    if answer["processes"]:
        output.table(
            ["PROCESS", "STATE", "PID", "RESTARTS"],
            [(p["name"], p["state"], p["pid"], p["restarts"]) for p in answer["processes"]],
        )
    if answer["workers"]:
        output.table(
            ["WORKER", "KIND", "STATUS", "DEVICE", "SLOTS", "BASE MODELS"],
            [
                (
                    w["name"],
                    w["kind"],
                    w["status"] if w["warm"] or w["status"] != "online" else "online, warming",
                    w["device"],
                    w["slots"],
                    ", ".join(w["base_models"]),
                )
                for w in answer["workers"]
            ],
        )


def logs(
    process: Annotated[
        str | None, typer.Argument(help="api, train, postgres, …; default: the supervisor's own.")
    ] = None,
    home: options.Home = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
) -> None:
    """Print a process's log."""
    from cli.stack.home import Home

    folder = Home(connection.home_path(home))
    name = process or "up"
    path = folder.log(name)
    known = sorted(found.stem for found in folder.logs.glob("*.log"))
    if name not in known:
        have = f"there are: {', '.join(known)}" if known else f"{folder.path} has none yet"
        raise Refused(f"no log of {name!r}; {have}")
    with path.open(errors="replace") as file:
        text = file.readlines()
        sys.stdout.writelines(text[len(text) - min(lines, len(text)) :])
        while follow:
            sys.stdout.flush()
            grown = file.read()
            sys.stdout.write(grown)
            if not grown:
                time.sleep(0.25)
                if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    # The log was set aside for a new one: go on there.
                    return logs(process, home, follow, lines)


def env(home: options.Home = None) -> None:
    """Print the two lines that point OpenAI's SDK at this stack: `eval "$(attune env)"`."""
    where = connection.home_path(home)
    found = connection.find(where)
    _print_exports(found.base_url, found.api_key)


def _print_exports(base_url: str, api_key: str) -> None:
    # Plain print: these lines are for a shell, at any width of the terminal.
    print(f"export OPENAI_BASE_URL={shlex.quote(base_url)}")
    print(f"export OPENAI_API_KEY={shlex.quote(api_key)}", flush=True)
