"""Who goes first on a machine that does several things: what answers people before what works through a heap."""

import contextlib
import os
from pathlib import Path


def stand_back(by: int) -> None:
    """Lower this process's claim to the processor by so many steps (nice values, up to 19), for good.

    A no more than polite process still gets all of a processor that nobody else wants.
    """
    os.nice(by)
    # Linux shares the processor between sessions first where it groups by them, and nice counts only within one.
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        with contextlib.suppress(OSError):
            autogroup.write_text(str(by))
