"""Limits on what untrusted data and templates may use of this process: memory, output, time in all and per row."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MIB = 1024 * 1024
ROW_SECONDS = 2.0
_MEMORY = 3 * 1024 * MIB
_SECONDS = 300
_BYTES_PER_SECOND = 50_000
"""A file this slow to prepare is not data but an attack; real ones go a hundred times faster."""


TOO_SLOW = f"the chat template works on a row for more than {ROW_SECONDS:g} seconds"
TOO_LARGE = "the chat template takes more memory for a row than is allowed"


class Exhausted(Exception):
    """A limit is reached; the sentence says which. ``by_template``: one that only the chat template can reach."""

    def __init__(self, message: str, *, by_template: bool = False) -> None:
        super().__init__(message)
        self.by_template = by_template


def apply(data_bytes: int) -> None:
    """For the whole process, by the size of the data it is given. Memory running out raises MemoryError."""
    seconds = _SECONDS + data_bytes // _BYTES_PER_SECOND
    # Private memory alone: the token spool is mapped from disk and may be larger than this.
    _lower(resource.RLIMIT_DATA, _MEMORY)
    _lower(resource.RLIMIT_CPU, seconds, seconds + 10)
    # Tokens of a byte each, nine bytes a token, spool and result; or a list of findings.
    _lower(resource.RLIMIT_FSIZE, 256 * MIB + 40 * data_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGXCPU, _out_of_time)


def _lower(kind: int, soft: int, hard: int | None = None) -> None:
    """Never above what the process has been given already."""
    _, ceiling = resource.getrlimit(kind)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise Exhausted("preparing this data takes far more processor time than its size explains")


def _row_out_of_time(number: int, frame: FrameType | None) -> None:
    raise Exhausted(TOO_SLOW, by_template=True)


@contextmanager
def row_time() -> Iterator[None]:
    """Stops a template that doesn't end. Only for the main thread: signals are handled there.

    Python handles a signal between two of its own steps, and one step of a template may take hours (`7 ** 1000000000`).
    So a second timer ends the process when the first has not helped: its signal has no handler.
    """
    signal.signal(signal.SIGPROF, _row_out_of_time)
    signal.setitimer(signal.ITIMER_PROF, ROW_SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * ROW_SECONDS)
    try:
        yield
    except MemoryError:
        raise Exhausted(TOO_LARGE, by_template=True) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
