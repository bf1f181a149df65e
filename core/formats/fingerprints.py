"""Which rows say the same: 16-byte hashes in buckets on disk, so that the size of a file doesn't matter."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

_BUCKETS = 64
_BUFFER = 48 * 1024
_RECORD = np.dtype([("a", "<u8"), ("b", "<u8"), ("line", "<i8")])


def of(content: object) -> bytes:
    """By what it says, whatever the order of its keys: a row, or a text."""
    return hashlib.blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


class Group(NamedTuple):
    digest: bytes
    rows: int
    lines: list[int]
    """The first hundred."""


class Fingerprints:
    """Written once, then read bucket by bucket: a bucket has a 64th of the rows and is all that is in memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = [folder / f"{name}.{number:02}.hashes" for number in range(_BUCKETS)]
        self._buffers = [bytearray() for _ in range(_BUCKETS)]

    def add(self, digest: bytes, line: int) -> None:
        number = digest[0] % _BUCKETS
        buffer = self._buffers[number]
        buffer += digest
        buffer += line.to_bytes(8, "little")
        if len(buffer) >= _BUFFER:
            self._flush(number)

    def _flush(self, number: int) -> None:
        with self._paths[number].open("ab") as file:
            file.write(self._buffers[number])
        self._buffers[number].clear()

    def _sorted(self) -> Iterator[NDArray[Any]]:
        """Each bucket's records by hash, then by line."""
        for number in range(_BUCKETS):
            if self._buffers[number]:
                self._flush(number)
            path = self._paths[number]
            records = np.fromfile(path, _RECORD) if path.exists() else np.zeros(0, _RECORD)
            yield records[np.lexsort((records["line"], records["b"], records["a"]))]

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """(line, the first line that says the same), in no order."""
        for records in self._sorted():
            starts, groups = _groups(records)
            later = np.ones(len(records), bool)
            later[starts] = False
            first = records["line"][starts][groups]
            yield from zip(records["line"][later].tolist(), first[later].tolist(), strict=True)

    def shared(self, others: "Fingerprints") -> Iterator[tuple[int, int]]:
        """(line here, first line of ``others`` that says the same), in no order."""
        for own, theirs in zip(self._sorted(), others._sorted(), strict=True):
            if not len(own) or not len(theirs):
                continue
            places = np.minimum(np.searchsorted(theirs["a"], own["a"]), len(theirs) - 1)
            # Two hashes that agree in their first half only would be missed, which one pair in 2^64 does.
            same = (theirs["a"][places] == own["a"]) & (theirs["b"][places] == own["b"])
            yield from zip(own["line"][same].tolist(), theirs["line"][places[same]].tolist(), strict=True)

    def frequent(self, least: int) -> Iterator[Group]:
        """What at least so many rows say."""
        for records in self._sorted():
            starts, _ = _groups(records)
            sizes = np.diff(starts, append=len(records))
            for start, size in zip(starts[sizes >= least].tolist(), sizes[sizes >= least].tolist(), strict=True):
                group = records[start : start + size]
                yield Group(group[:1].tobytes()[:16], size, group["line"][:100].tolist())

    def close(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)


def _groups(records: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each group of equal hashes starts, and for each record its group's number."""
    if not len(records):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    new = np.ones(len(records), bool)
    new[1:] = (records["a"][1:] != records["a"][:-1]) | (records["b"][1:] != records["b"][:-1])
    return np.flatnonzero(new), np.cumsum(new) - 1
