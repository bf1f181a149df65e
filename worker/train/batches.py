"""Rows as tokens and weights, and which of them each step sees.

Everything here is a function of (files, seed, step): no state, so a resumed run meets the rows in the same order.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.cost import TOGETHER
from worker import token_file
from worker.train.faults import Refused

_AT_ONCE = 1 << 20
"""Tokens whose weights are in memory together while those of all rows are added up."""


@dataclass(frozen=True)
class Rows:
    """The content of a token file (``worker/folder.py`` tells its layout), mapped from disk: a file of any size
    costs a run no memory but for the rows it looks at."""

    input_ids: NDArray[np.int32]
    message_weight: NDArray[np.float32]
    completion: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    sha256: str
    label: NDArray[np.uint8] | None = None
    """Of rows for learning from preferences: 1 where the answer is the one that is wanted."""

    @classmethod
    def read(cls, path: Path) -> "Rows":
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(**token_file.mapped(path), sha256=sha256)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def check(self, name: str, vocabulary: int, max_length: int) -> None:
        """Refuse what would train wrongly or crash late; the step that prepares the rows should have seen to it."""
        if len(self) == 0:
            raise Refused("no_rows", f"{name} has no rows.", name)
        if (self.lengths < 2).any():
            short = _lines(self.lines[self.lengths < 2])
            raise Refused("row_too_short", f"{name}: {short} too short to learn from.", name)
        if int(self.input_ids.max(initial=0)) >= vocabulary or int(self.input_ids.min(initial=0)) < 0:
            raise Refused("token_out_of_range", f"{name} has tokens beyond the base model's {vocabulary}.", name)
        # Least and greatest need no array of their own size, and are not finite when any number isn't.
        least, greatest = self.message_weight.min(initial=0), self.message_weight.max(initial=0)
        if not (np.isfinite(greatest) and least >= 0):
            raise Refused("bad_weight", f"{name} has a token weight that is negative or not finite.", name)
        long = self.lines[self.lengths > max_length]
        if len(long):
            raise Refused("row_too_long", f"{name}: {_lines(long)} longer than max_length {max_length}.", name)

    def weights(self, prompt_loss_weight: float, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """The weight in the loss of each token of the rows ``first`` <= row < ``last``. The first token of a row
        follows nothing, so nothing predicts it: 0."""
        starts = self.offsets[first : len(self) if last is None else last]
        end = self.offsets[len(self) if last is None else last]
        part = slice(int(starts[0]), int(end))
        scale = np.where(self.completion[part] == 1, np.float32(1), np.float32(prompt_loss_weight))
        weights: NDArray[np.float32] = self.message_weight[part] * scale
        weights[starts - starts[0]] = 0
        return weights

    def groups(self, tokens: int) -> Iterator[tuple[int, int]]:
        """All rows in order, some at a time: as few as hold this many tokens."""
        first = 0
        while first < len(self):
            reached = int(np.searchsorted(self.offsets, self.offsets[first] + tokens))
            last = min(len(self), max(first + 1, reached))
            yield first, last
            first = last


def _lines(lines: NDArray[np.int64]) -> str:
    shown = ", ".join(str(line) for line in lines[:10])
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return f"line {shown} is" if len(lines) == 1 else f"lines {shown}{more} are"


@dataclass(frozen=True)
class Order:
    """Which rows a step learns from. Each epoch is a permutation drawn from (seed, epoch) alone."""

    rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        # A raw bit stream, ranked: numpy promises that PCG64's bits never change, and not so for its permutations.
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.rows)
        return np.argsort(bits, kind="stable")

    def steps(self, after: int, until: int) -> Iterator[tuple[int, list[int]]]:
        """(step, rows) for each step in ``after`` < step ≤ ``until``. An epoch's last batch may be smaller."""
        order, drawn = np.empty(0, np.int64), -1
        for step in range(after + 1, until + 1):
            epoch, index = divmod(step - 1, self.steps_per_epoch)
            if epoch != drawn:
                order, drawn = self.epoch(epoch), epoch
            yield step, order[index * self.batch_size : (index + 1) * self.batch_size].tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the layers together: side by side, shorter ones padded at their end, or one after another.

    Under a causal mask no token sees what comes after it, so padding at the end needs no attention mask: its outputs
    are never asked for. Rows that follow one another are told apart by positions that begin anew.
    """

    input_ids: Tensor
    """int64 [rows, longest row], packed [1, all tokens]"""
    positions: Tensor
    """int64 [m]: where, in the flattened [rows * longest], a token with weight > 0 is predicted."""
    targets: Tensor
    """int64 [m]: the token predicted there"""
    weights: Tensor
    """float32 [m]"""
    completion_weights: Tensor
    """float32 [m]: the same for the completion alone (0 on prompt tokens)"""
    counts: tuple[int, ...] = ()
    """How many of the m are each row's"""
    rows: tuple[int, ...] = ()
    """Which of the file's they are"""
    position_ids: Tensor | None = None
    """int64 [1, all tokens]: of packed rows, each token's place in its own"""


class Weighted(NamedTuple):
    """A row's tokens, their weights in the loss, and the completion's own (0 on prompt tokens)."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    completion: NDArray[np.float32]


class Batches:
    """Cuts the rows of a step into micro-batches on the device."""

    def __init__(
        self, rows: Rows, prompt_loss_weight: float, size: int, device: torch.device, packed: bool = False
    ) -> None:
        self._rows = rows
        self._packed = packed
        self._size = size
        self._device = device
        self._prompt_loss_weight = prompt_loss_weight
        self.row_weights = np.empty(len(rows), np.float64)
        self.row_trained = np.empty(len(rows), np.int64)
        for first, last in rows.groups(_AT_ONCE):
            weights = rows.weights(prompt_loss_weight, first, last)
            starts = rows.offsets[first:last] - rows.offsets[first]
            self.row_weights[first:last] = np.add.reduceat(weights.astype(np.float64), starts)
            self.row_trained[first:last] = np.add.reduceat((weights > 0).astype(np.int64), starts)

    @property
    def weights(self) -> NDArray[np.float64]:
        return self.row_weights

    def lines(self, chosen: Sequence[int]) -> list[int]:
        return [int(self._rows.lines[i]) for i in chosen]

    def weight(self, chosen: Sequence[int]) -> float:
        """Σ w over these rows: what a step's loss is divided by. Every rank knows all rows, so none has to ask."""
        return float(self.row_weights[chosen].sum())

    def trained(self, chosen: Sequence[int]) -> int:
        return int(self.row_trained[chosen].sum())

    def tokens(self, chosen: Sequence[int]) -> int:
        return int(self._rows.lengths[chosen].sum())

    def cut(self, chosen: Sequence[int]) -> Iterator[MicroBatch]:
        """Micro-batches of these rows, neighbours in length together, so that little is padded.

        The order within a step changes no sum but its rounding, and is the same each time.
        """
        by_length = sorted(chosen, key=lambda i: (int(self._rows.lengths[i]), i))
        start = 0
        while start < len(by_length):
            end = min(len(by_length), start + self._size)
            if self._packed and self._device.type == "cpu":
                tokens = np.cumsum(self._rows.lengths[by_length[start:end]])
                end = start + max(1, int(np.searchsorted(tokens, TOGETHER, "right")))
            yield self._micro_batch(by_length[start:end])
            start = end

    def _micro_batch(self, chosen: Sequence[int]) -> MicroBatch:
        return self.together([self.row(i) for i in chosen], chosen)

    def row(self, i: int) -> Weighted:
        part = slice(int(self._rows.offsets[i]), int(self._rows.offsets[i + 1]))
        return Weighted(
            self._rows.input_ids[part],
            self._rows.weights(self._prompt_loss_weight, i, i + 1),
            self._rows.completion[part] * self._rows.message_weight[part],
        )

    def together(self, rows: Sequence[Weighted], numbers: Sequence[int]) -> MicroBatch:
        """These rows as one micro-batch, in this order; ``numbers``: which of the file's they are."""
        lengths = [len(row.ids) for row in rows]
        if self._packed:
            ids, starts = np.concatenate([row.ids for row in rows])[None], np.cumsum([0, *lengths[:-1]])
        else:
            ids, starts = np.zeros((len(rows), max(lengths)), np.int64), np.arange(len(rows)) * max(lengths)
        positions, targets, weights, completion = [], [], [], []
        for n, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if not self._packed:
                ids[n, : len(row.ids)] = row.ids
            learned = np.flatnonzero(row.weights > 0)
            # The token at t is predicted by the output at t - 1; a row's first token has no weight.
            positions.append(start + learned - 1)
            targets.append(row.ids[learned])
            weights.append(row.weights[learned])
            completion.append(row.completion[learned])
        return MicroBatch(
            input_ids=self._tensor(ids, torch.int64),
            positions=self._tensor(np.concatenate(positions), torch.int64),
            targets=self._tensor(np.concatenate(targets), torch.int64),
            weights=self._tensor(np.concatenate(weights), torch.float32),
            completion_weights=self._tensor(np.concatenate(completion), torch.float32),
            counts=tuple(len(learned) for learned in targets),
            rows=tuple(numbers),
            position_ids=self._places(lengths) if self._packed else None,
        )

    def _places(self, lengths: Sequence[int]) -> Tensor:
        return self._tensor(np.concatenate([np.arange(length) for length in lengths])[None], torch.int64)

    def _tensor(self, array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(array).to(self._device, dtype)
