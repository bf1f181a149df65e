"""Room on this machine's disk: whether more work is taken, whether a job fits, and what an error says of it."""

import errno
import shutil
from pathlib import Path

import structlog

from core.errors import JobError

log = structlog.get_logger()

CODE = "disk_full"
CHECKPOINTS = 2.5
"""A checkpoint that is written, one that is uploaded, and half a one for the artifact."""

# A full disk, a full quota, and a file that may not grow.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def crowded(folder: Path, most: float) -> bool:
    """Whether more than this share of the disk is used: then no more work is taken."""
    usage = shutil.disk_usage(folder)
    # Of what this process may use: some of a disk is kept for root alone.
    share = usage.used / (usage.used + usage.free)
    if share <= most:
        return False
    log.warning("disk.crowded", used_percent=round(100 * share, 1), free_bytes=usage.free)
    return True


def require(folder: Path, needed: int, what: str) -> None:
    """Raise a JobError when there is less room than that; nothing has been written yet."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise JobError(
            f"The worker's disk has {free:,} bytes left, and this job needs about {needed:,} ({what}). "
            "Free some space on it, or train less: an adapter of a lower rank has smaller checkpoints.",
            code=CODE,
        )


def is_full(error: BaseException) -> bool:
    """Whether this is what a full disk answers, whichever library was writing."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors has an error class of its own with the number in its text.
    return type(error).__name__ == "SafetensorError" and any(f"os error {number})" in str(error) for number in _FULL)


def fault(folder: Path) -> JobError:
    free = shutil.disk_usage(folder).free
    return JobError(
        f"The worker's disk was full: a file of the job could not be written ({free:,} bytes are left now). "
        "Free some space on it and create the job again.",
        code=CODE,
    )
