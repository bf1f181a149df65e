"""Gives memory back to the system, so that a large upload does not leave the process large."""

import ctypes

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_PART = 4 * 1024 * 1024
_ARENAS = 2


def steady() -> None:
    """Blocks of a part's size are taken from the system and given back to it, and threads share their small ones.

    Left alone, glibc raises the first bound with every block that is freed, and keeps a heap for each thread: many
    threads that each handled a few megabytes once hold them for ever. Other C libraries have no such function.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _PART)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
