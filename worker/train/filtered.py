"""The head's gradient without the columns of the softmax that are below float precision: an option of a job.

A column whose probability is below ``SMALL`` for every token in hand leaves the matrix product. What these columns
have in mass is kept: each block of the vocabulary counts with the mean of its rows. The loss itself stays exact.
"""

import torch
from torch import Tensor

from worker.train import products

SMALL = 2.0**-20
"""Of the probability of a column: float32 has 24 bits, and the layers' gradients move by about a thousandth."""
BLOCK = 1024
"""Columns that share a mean row."""


class Means:
    """The mean row of each block of a frozen head's weight, found when it is first asked for."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """float32 [blocks, width]"""
        if self._rows is None:
            self._rows = torch.stack([block.float().mean(0) for block in torch.split(self._weight.detach(), BLOCK)])
        return self._rows


class Tail:
    """The mass that was left out, of some tokens in one pass over the vocabulary."""

    def __init__(self, means: Means, tokens: int) -> None:
        self._means = means
        self._mass = torch.zeros(tokens, len(means.rows), device=means.rows.device)

    def shrink(self, factor: Tensor) -> None:
        """The reference of the masses has moved: [tokens, 1]."""
        self._mass *= factor

    def kept(self, mass: Tensor, least: Tensor) -> Tensor:
        """Columns of a tile's ``mass`` [tokens, columns] that count for a token, and a few more where they should be
        a certain number; ``least``, [tokens, 1], is the total that each token's mass has at least."""
        counts = (mass / least).amax(0) > SMALL
        kept = counts.nonzero()[:, 0]
        if more := products.padded(len(kept)) - len(kept):
            kept = torch.cat([kept, counts.logical_not().nonzero()[:more, 0]])
        return kept

    def leave(self, mass: Tensor, kept: Tensor, of_kept: Tensor, start: int) -> None:
        """Take in the mass of all columns but the kept ones. The tile begins at column ``start``, as a block does."""
        whole = mass.shape[1] // BLOCK * BLOCK
        sums = [mass[:, :whole].view(len(mass), -1, BLOCK).sum(-1)] if whole else []
        if whole < mass.shape[1]:
            sums.append(mass[:, whole:].sum(1, keepdim=True))
        blocks = torch.cat(sums, 1).index_add_(1, kept // BLOCK, of_kept, alpha=-1)
        first = start // BLOCK
        self._mass[:, first : first + blocks.shape[1]] = blocks.clamp_(min=0)

    def pull(self) -> Tensor:
        """What all of it adds to the sum of mass times row: float32 [tokens, width]"""
        return self._mass @ self._means.rows
