"""A machine that has too little: memory runs out for real, files can't grow, disks are full."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.worker.train.conftest import Ran
from worker import disk, memory
from worker.folder import EXIT_DISK_FULL, EXIT_USER_ERROR
from worker.train.load import Resident
from worker.train.run import run

LENGTH = 900


def limited(folder: Path, kind: int, room: int) -> int:
    """Run the folder in a copy of this process that may have so much and no more; returns its exit status."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            resource.setrlimit(kind, (room, room))
            status = run(folder, Resident())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_STARVED = """
import resource, sys
from pathlib import Path
from worker.train.load import Resident
from worker.train.run import run

warm, folder, more = sys.argv[1:]
assert run(Path(warm), Resident()) == 0
status = Path("/proc/self/status").read_text()
held = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (held + int(more),) * 2)
sys.exit(run(Path(folder), Resident()))
"""


def starving(warm: Path, folder: Path, more: int) -> int:
    """Run the folder where only so many bytes more can be had than ``warm`` took; returns the exit status.

    In a fresh process: one that has done bigger things keeps their memory, and nothing would run out.
    """
    return subprocess.run([sys.executable, "-c", _STARVED, warm, folder, str(more)]).returncode


def test_memory_that_runs_out_is_said_and_with_fewer_rows_at_once_the_result_is_the_same(
    base: Path, tmp_path: Path
) -> None:
    def job(name: str, micro_batch_size: int) -> Path:
        rows = tiny.random_rows(16, shortest=LENGTH, longest=LENGTH + 8)
        return tiny.build_job(
            tmp_path / name, base, rows, batch_size=16, micro_batch_size=micro_batch_size, max_length=LENGTH + 16,
            optim={"optimizer": "sgd"},
        )  # fmt: skip

    whole = job("whole", 16)
    assert run(whole, Resident()) == 0
    # Sixteen rows want some hundred MB more than a single one.
    room = 48 * 1024 * 1024
    starved = job("starved", 16)
    assert starving(job("warm", 1), starved, room) == EXIT_USER_ERROR
    (error,) = tiny.read_events(starved, "error")
    assert (error["code"], error["param"]) == ("out_of_memory", "micro_batch_size")
    assert tiny.read_events(starved, "step") == []
    smaller = job("smaller", 1)
    assert starving(job("warm too", 1), smaller, room) == 0
    one, other = (load_file(folder / "artifact" / "adapter_model.safetensors") for folder in (whole, smaller))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-6)
    # And no step counts differently.
    assert [e["tokens"] for e in Ran(whole, 0).events("step")] == [e["tokens"] for e in Ran(smaller, 0).events("step")]


@pytest.mark.parametrize("room", [100, 20_000, 100_000])
def test_a_file_that_cannot_grow_ends_the_run_as_a_full_disk_does(base: Path, tmp_path: Path, room: int) -> None:
    """Inside the first event, and inside a checkpoint's files."""
    folder = tiny.build_job(tmp_path / "job", base, tiny.random_rows(8))
    assert limited(folder, resource.RLIMIT_FSIZE, room) == EXIT_DISK_FULL
    assert not list(folder.glob("checkpoints/step-*"))
    assert tiny.read_events(folder, "checkpoint") == [] if room > 100 else True


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        # Without the right to mount, a device that is always full says the same in the same way.
        pytest.skip("nobody but root may mount a small disk")
    return place


def test_a_small_disk_ends_the_run_and_holds_no_half_checkpoint(base: Path, tmp_path: Path, small_disk: Path) -> None:
    try:
        folder = tiny.build_job(tmp_path / "job", base, tiny.random_rows(8))
        (folder / "checkpoints").symlink_to(small_disk)
        child = limited(folder, resource.RLIMIT_NOFILE, 1024)
        assert child == EXIT_DISK_FULL
        assert not list(small_disk.glob("step-*"))
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def test_full_disks_are_recognised_by_whoever_was_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full, open("/dev/full", "wb", buffering=0) as device:
        device.write(b"x")
    assert disk.is_full(full.value)
    (tmp_path / "full.safetensors").symlink_to("/dev/full")
    try:
        save_file({"a": torch.zeros(100)}, tmp_path / "full.safetensors")
    except (SafetensorError, OSError) as error:
        assert disk.is_full(error), error  # noqa: PT017  # the class depends on the version
    assert not disk.is_full(OSError(errno.EACCES, "no"))
    assert not disk.is_full(ValueError("os error 28)"))


def test_the_kernels_kills_are_counted_where_it_counts_them(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 12\noom_kill 3\n")
    assert memory.kills(tmp_path / "none", vmstat) == 3
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert memory.kills(tmp_path, vmstat) == 1
    assert memory.kills() >= 0
    assert memory.kills(tmp_path / "none", tmp_path / "none") == 0
