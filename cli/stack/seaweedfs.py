"""The embedded S3-compatible server: SeaweedFS's master, volume, filer and S3 gateway in one process."""

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

from cli.stack import binaries
from cli.stack.home import Home
from cli.stack.ports import LOOPBACK
from cli.stack.process import Program

PARTS = ("master", "volume", "filer", "s3")
PORTS = tuple(f"{part}{suffix}" for part in PARTS for suffix in ("", "_grpc"))
ACCESS_KEY = "attune"


def prepare(home: Home, ports: dict[str, int]) -> Program:
    data = home.path / "seaweedfs"
    data.mkdir(mode=0o700, exist_ok=True)
    cwd = home.run / "seaweedfs"
    cwd.mkdir(mode=0o700, exist_ok=True)
    _private(cwd / "identities.json", _identities(home))
    _private(cwd / "security.toml", _security(home))
    # Named here, so that a filer.toml somewhere in the system can't choose another store.
    _private(cwd / "filer.toml", f"[leveldb2]\nenabled = true\ndir = {json.dumps(str(data / 'filer'))}\n")
    options: dict[str, object] = {
        "dir": data,
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "s3": "true",
        "s3.config": cwd / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # Relative to its working folder: the path of a Unix socket may be at most 107 bytes long.
        "filer.localSocket": "filer.sock",
        "s3.localSocket": "s3.sock",
        # There is one master: it need not wait for others before it leads.
        "master.peers": "none",
        "master.electionTimeout": "300ms",
        "master.heartbeatInterval": "50ms",
        "master.telemetry": "false",
        # Volumes grow as they are written, so a small limit costs no space; 0: as many as the disk holds.
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 0,
    }
    for part in PARTS:
        options[f"{part}.port"] = ports[part]
        options[f"{part}.port.grpc"] = ports[f"{part}_grpc"]
    return Program(
        name="seaweedfs",
        command=[
            str(binaries.weed()),
            "-logtostderr=true",
            "server",
            *(f"-{name}={value}" for name, value in options.items()),
        ],
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(cwd), "LC_ALL": "C", "TMPDIR": str(cwd)},
        cwd=cwd,
        # Asked politely it waits 15 s for streams to itself. It answers a write only once the system has it, so
        # that ending it at once loses nothing; every client has ended before it.
        stop_signal=signal.SIGKILL,
        # Bulk: an upload of gigabytes may not keep those waiting who only ask how their job stands.
        stands_back=5,
        before=lambda: _remove_sockets(cwd, ports),
        after=lambda: _remove_sockets(cwd, ports),
    )


def url(ports: dict[str, int]) -> str:
    return f"http://{LOOPBACK}:{ports['s3']}"


def answers(ports: dict[str, int]) -> bool:
    """Whether the gateway is up: without a signature it refuses the list of buckets, and that is an answer."""
    try:
        with urllib.request.urlopen(url(ports), timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 403
    except OSError:
        return False


def secret_key(home: Home) -> str:
    return home.secret("s3_secret_key")


def _identities(home: Home) -> str:
    return json.dumps(
        {
            "identities": [
                {
                    "name": ACCESS_KEY,
                    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": secret_key(home)}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }
    )


def _security(home: Home) -> str:
    """Volume and filer listen beside the gateway; they too answer nobody on this machine without a signed token."""
    sections = ("signing", "signing.read", "filer_signing", "filer_signing.read")
    return "".join(f'[jwt.{name}]\nkey = "{home.secret("seaweedfs_" + name)}"\n' for name in sections)


def _remove_sockets(cwd: Path, ports: dict[str, int]) -> None:
    """It puts sockets of fixed names into /tmp and leaves them there."""
    for part in PARTS:
        Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}_grpc']}.sock").unlink(missing_ok=True)
    for name in ("filer.sock", "s3.sock"):
        (cwd / name).unlink(missing_ok=True)


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
