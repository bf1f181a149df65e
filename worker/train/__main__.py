"""``python -m worker.train DIR`` runs a job folder; without an argument, the idle child of a slot."""

import ctypes
import os
import sys
from pathlib import Path

from worker import child

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_SPINS = "5000"
"""Rounds: a tenth of a millisecond, or less."""


def keep_memory() -> None:
    """Have glibc keep big blocks for the next step instead of giving them back: a third of a step's time otherwise.

    Does what ``MALLOC_MMAP_MAX_=0`` and its sisters do in the environment, for whoever starts this without them.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 512 * 1024 * 1024)


def yield_cores() -> None:
    """Have OpenMP threads that wait for work spin for a moment and then sleep, unless the environment says otherwise.

    To sleep at once costs a quarter of a step: most pieces of work are shorter than waking up. To spin for long, as is
    the default, is no better on an idle machine; where anything else wants a core, threads that wait for one another
    spin through whole time slices, and a step takes several times as long. Read when the library is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def main() -> int:
    yield_cores()
    keep_memory()
    # Torch is loaded here: both settings must come before it.
    from worker.train import measure
    from worker.train.load import Resident
    from worker.train.run import run

    resident = Resident()
    if len(sys.argv) == 2:
        return run(Path(sys.argv[1]).resolve(), resident)
    if len(sys.argv) > 2:
        print("usage: python -m worker.train [DIR]", file=sys.stderr)
        return 2
    child.serve(resident.preload, lambda folder: run(folder, resident), lambda: measure.machine().model_dump_json())


if __name__ == "__main__":
    sys.exit(main())
