"""Rows that are nearly the same, in a sample: MinHash over sets of three words, then the true similarity.

MinHash and its bands: A. Broder, "On the resemblance and containment of documents" (1997).
"""

import random
import re
from collections import defaultdict
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SAMPLE = 4000
LEAST = 0.8
"""Jaccard similarity from which two rows count as nearly the same."""
_CHARACTERS = 2000
_BANDS, _ROWS = 20, 5  # finds a pair of similarity 0.8 with a probability of 0.9996
_COMPARED = 4
_PRIME = (1 << 31) - 1


class Pair(NamedTuple):
    line: int
    other: int
    similarity: float


class Sample:
    """Up to 4,000 rows, each of the file's with the same chance, and always the same ones for the same file."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._rows: list[tuple[int, str]] = []
        self._seen = 0

    def add(self, line: int, text: str) -> None:
        self._seen += 1
        if len(self._rows) < SAMPLE:
            self._rows.append((line, text[:_CHARACTERS]))
        elif (place := int(self._random.random() * self._seen)) < SAMPLE:
            self._rows[place] = (line, text[:_CHARACTERS])

    def __len__(self) -> int:
        return len(self._rows)

    def pairs(self) -> list[Pair]:
        """Each row that is like an earlier one, with the earliest such one that was met."""
        rows = sorted(self._rows)
        sets = [_shingles(text) for _, text in rows]
        signatures = _signatures(sets)
        found: dict[int, Pair] = {}
        for band in range(_BANDS):
            buckets: dict[bytes, list[int]] = defaultdict(list)
            for index, signature in enumerate(signatures[:, band * _ROWS : (band + 1) * _ROWS]):
                if len(sets[index]):
                    buckets[signature.tobytes()].append(index)
            for members in buckets.values():
                for position, index in enumerate(members[1:], start=1):
                    # The first few stand for a large bucket: comparing all with all would take the square of it.
                    for other in members[: min(position, _COMPARED)]:
                        _compare(rows, sets, index, other, found)
        return [found[index] for index in sorted(found)]


def _compare(
    rows: list[tuple[int, str]], sets: list[NDArray[np.uint32]], index: int, other: int, found: dict[int, Pair]
) -> None:
    if index in found and found[index].other <= rows[other][0]:
        return
    shared = len(np.intersect1d(sets[index], sets[other], assume_unique=True))
    similarity = shared / (len(sets[index]) + len(sets[other]) - shared)
    # Rows that say exactly the same are told elsewhere.
    if similarity >= LEAST and rows[index][1] != rows[other][1]:
        found[index] = Pair(rows[index][0], rows[other][0], round(similarity, 3))


def _shingles(text: str) -> NDArray[np.uint32]:
    words = re.findall(r"\w+", text.lower())
    parts = {crc32(" ".join(words[at : at + 3]).encode()) for at in range(max(1, len(words) - 2))} if words else set()
    return np.fromiter(parts, np.uint32, len(parts))


def _signatures(sets: list[NDArray[np.uint32]]) -> NDArray[np.uint64]:
    generator = np.random.default_rng(7)
    factors = generator.integers(1, _PRIME, (_BANDS * _ROWS, 1), dtype=np.uint64)
    terms = generator.integers(0, _PRIME, (_BANDS * _ROWS, 1), dtype=np.uint64)
    result = np.zeros((len(sets), _BANDS * _ROWS), np.uint64)
    for index, hashes in enumerate(sets):
        if len(hashes):
            result[index] = ((factors * (hashes.astype(np.uint64) >> np.uint64(1)) + terms) % _PRIME).min(axis=1)
    return result
