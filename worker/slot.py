"""A slot: room for one child at a time, and the child that waits in it with its imports done.

A child takes one folder and exits; only then is the next one spawned, so two never hold the accelerator's memory.
The parent-death signal follows the *thread* that spawned the child, so a slot belongs to one thread that lives as
long as the worker.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import orjson
import structlog

from core.config import Settings
from core.cost import Machine

log = structlog.get_logger()

MODULES = {"train": "worker.train", "prepare": "worker.prepare"}

# What a child may know of this process's environment: no credential, no address of a server.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH")
_INHERITED_PREFIXES = ("CUDA_", "NVIDIA_", "OMP_", "GOMP_", "OPENBLAS_", "MKL_", "NVPL_", "KMP_")
# glibc keeps big blocks for the next step instead of giving them back; worth a third of a step's time on a CPU.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "536870912",
}


class Child:
    """One child process, from spawn to exit."""

    def __init__(self, kind: str, folder: Path, threads: int, memory: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "child.log"
        self._ready = threading.Event()
        self.loaded: str | None = None
        self.started = False
        self.machine: dict[str, Any] | None = None
        """What a trainer measured of this machine (``core.cost.Machine``), once it was asked and has answered."""
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULES[kind]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=folder,
                env=_environment(kind, threads),
                # A process group of its own: whatever it starts ends with it.
                start_new_session=True,
            )
        if memory is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (memory, memory))
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def warm(self) -> bool:
        return self._ready.is_set() and self._process.poll() is None

    def preload(self, base: Path) -> None:
        self._say(f"PRELOAD {base}")

    def measure(self) -> None:
        self._say("MEASURE")

    def start(self, folder: Path) -> None:
        self.started = True
        self._say(f"START {folder}")

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None when it still runs after this time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """SIGTERM: a trainer saves where it is and ends."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the whole group. Called from any thread; a second call does nothing."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The group lives as long as its leader is not reaped, so this can't hit a stranger's group.
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It died; whoever waits for its exit status learns that.
            log.warning("child.gone", pid=self.pid)

    def _listen(self, output: IO[bytes]) -> None:
        for line in output:
            verb, _, argument = line.decode().strip().partition(" ")
            if verb == "READY":
                self._ready.set()
            elif verb == "LOADED":
                self.loaded = argument
            elif verb == "MEASURED":
                self.machine = orjson.loads(argument)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # A command that the child did not live to read is flushed once more, into nothing.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Slot:
    def __init__(self, index: int, kind: str, settings: Settings) -> None:
        self.index = index
        self.kind = kind
        self.folder = settings.scratch_dir / f"{kind}-{index}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.threads = settings.worker_threads or max(1, (os.cpu_count() or 1) // settings.worker_slots)
        self._memory = settings.trainer_memory_bytes if kind == "train" else None
        self._child: Child | None = None
        self._last_base: Path | None = None

    @property
    def warm(self) -> bool:
        child = self._child
        return child is not None and child.warm

    @property
    def measured(self) -> Machine | None:
        """What the idle child has measured since this was asked last, if anything."""
        child = self._child
        if child is None or child.machine is None:
            return None
        found, child.machine = Machine.model_validate(child.machine), None
        return found

    def measure(self) -> None:
        """Have the idle child find out what this machine can do."""
        child = self._child
        if child is not None and child.warm and not child.started:
            child.measure()

    def prepare(self) -> Child:
        """The idle child; spawns one when there is none. A child that died idle is replaced."""
        if self._child is not None and self._child.poll() is not None:
            log.warning("child.died_idle", slot=self.index, status=self._child.poll())
            self._drop()
        if self._child is None:
            self._child = Child(self.kind, self.folder, self.threads, self._memory)
            if self._last_base is not None and self._last_base.exists():
                self._child.preload(self._last_base)
        return self._child

    def remember(self, base: Path) -> None:
        """The next child loads this base model, or its tokenizer, while it waits."""
        self._last_base = base

    def done(self) -> None:
        """The child has ended, or must: the next one is spawned when the slot is asked for it.

        One that was given nothing to do stays, warm as it is.
        """
        if self._child is not None and self._child.started:
            self._drop()

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _environment(kind: str, threads: int) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    own = {
        "PYTHONUNBUFFERED": "1",
        # A child never reaches for a hub: what it needs lies in its folder.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    if kind == "train":
        own |= ALLOCATOR
    return kept | own
