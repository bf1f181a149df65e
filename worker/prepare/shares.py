"""Which rows are trained on, which are held out, and how often each comes in an epoch. Pure, and fixed by the seed.

Rows are numbers here: indexes into a spool.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class TooFew(ValueError):
    """There are not two different rows to be divided."""


def held_out(digests: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Whether each row is for validation. The digest of its content alone decides, so a row and its duplicates, in
    whatever file, are on one side, and rows that are added later move no other ones."""
    mask = digests < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    if len(digests) and (mask.all() or not mask.any()):
        # So few rows that chance has put all on one side: the nearest one changes over.
        mask = digests == digests.min() if not mask.any() else digests != digests.max()
    if not mask.any() or mask.all():
        raise TooFew
    return mask


def mixed(sources: NDArray[np.uint8], weights: Sequence[float], seed: int, *, repeat: bool) -> Index:
    """The rows of an epoch: all of source 0, and of each other one its weight times as many.

    What a source has too few of comes again: each row equally often, and some, drawn by the seed, once more. Without
    ``repeat`` it just gives all it has.
    """
    own = np.flatnonzero(sources == 0)
    chosen = [own]
    for source, weight in enumerate(weights, 1):
        rows = np.flatnonzero(sources == source)
        if not len(rows):
            continue
        wanted = max(1, round(len(own) * weight))
        if not repeat:
            wanted = min(wanted, len(rows))
        whole, rest = divmod(wanted, len(rows))
        drawn = np.random.default_rng([seed, source]).permutation(len(rows))[:rest]
        chosen += [rows] * whole + [rows[np.sort(drawn)]]
    return np.sort(np.concatenate(chosen))
