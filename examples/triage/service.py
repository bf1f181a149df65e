"""The service of the demo: started through the command line, spoken to with the official SDK."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openai import NotFoundError, OpenAI

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5


class Failed(Exception):
    """Something the demo can't go on without did not work; the message says what and where to look."""


@dataclass
class Service:
    """A stack on this machine. Whoever finds it running leaves it running."""

    home: Path
    ours: bool = False
    client: OpenAI = field(init=False)
    """With a user's key: only base_url and api_key are set."""
    admin: OpenAI = field(init=False)

    def start(self, say: Callable[[str], None]) -> None:
        """Returns when jobs are accepted; ``say`` is told what happens meanwhile."""
        if self._attune("status", "--json").returncode != 0:
            self._up(say)
            self.ours = True
        connection = json.loads((self.home / "connection.json").read_text())
        self.client = OpenAI(base_url=connection["base_url"], api_key=connection["api_key"])
        self.admin = OpenAI(base_url=connection["base_url"], api_key=connection["admin_key"])

    def _up(self, say: Callable[[str], None]) -> None:
        up = subprocess.Popen(
            self._command("up", "--detach"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert up.stderr is not None
        told = []
        try:
            # The stack outlives this command and keeps no copy of the pipe's end, so the loop ends with the command.
            for line in up.stderr:
                told.append(line)
                say(line.strip())
        except BaseException:
            # As Ctrl-C would: the command takes back what it has begun.
            up.send_signal(signal.SIGINT)
            up.wait()
            raise
        if up.wait() != 0:
            raise Failed(f"The stack did not start:\n{''.join(told[-15:])}Its logs are in {self.home / 'logs'}.")

    def stop(self) -> None:
        if self.ours:
            self._attune("down")

    def base_model(self, name: str, source: str, license: str, watch: Callable[[float, str], None]) -> dict[str, Any]:
        """The base model, registered if it is not yet. The first time, a worker converts it: about two minutes."""
        path = f"/admin/models/{quote(name, safe='')}"
        try:
            model = self._get(path)
        except NotFoundError:
            model = {"status": "failed"}
        if model["status"] == "failed":
            body = {"name": name, "source": source, "license": license}
            model = self.admin.post("/admin/models", cast_to=dict[str, Any], body=body)
        while model["status"] == "registering":
            progress = model.get("progress") or {}
            watch(progress.get("percent") or 0.0, progress.get("message") or "waiting for a worker")
            time.sleep(POLL_SECONDS)
            model = self._get(path)
        if model["status"] != "ready":
            raise Failed(f"{name} could not be registered: {(model.get('error') or {}).get('message')}")
        return model

    def base_files(self, name: str) -> list[dict[str, Any]]:
        """Where each file of a base model can be fetched: path, bytes, sha256, url."""
        files: list[dict[str, Any]] = self._get(f"/admin/models/{quote(name, safe='')}?artifacts=true")["artifacts"]
        return files

    def _get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.admin.get(path, cast_to=dict[str, Any])
        return answer

    def _attune(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self._command(*arguments), cwd=ROOT, capture_output=True, check=False)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli", *arguments, "--home", str(self.home)]
