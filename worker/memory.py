"""Whether the kernel has killed somebody for want of memory: what SIGKILL alone does not say."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")


def kills(cgroup: Path = _CGROUP, vmstat: Path = _VMSTAT) -> int:
    """Processes that the kernel has killed so far: of this container where it counts them, else of this machine."""
    for path in (cgroup / "memory.events", cgroup / "memory" / "memory.oom_control", vmstat):
        found = _count(path)
        if found is not None:
            return found
    return 0


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
