"""Rows as tokens and weights, and which of them each step sees.

Everything here is a function of (files, seed, step): no state, so a resumed run meets the rows in the same order.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from worker.train.faults import Refused


@dataclass(frozen=True)
class Rows:
    """The content of a token file (``worker/folder.py`` tells its layout)."""

    input_ids: NDArray[np.int32]
    message_weight: NDArray[np.float32]
    completion: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "Rows":
        tensors = load_file(path)
        return cls(**tensors, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

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
        if not (np.isfinite(self.message_weight).all() and (self.message_weight >= 0).all()):
            raise Refused("bad_weight", f"{name} has a token weight that is negative or not finite.", name)
        long = self.lines[self.lengths > max_length]
        if len(long):
            raise Refused("row_too_long", f"{name}: {_lines(long)} longer than max_length {max_length}.", name)

    def weights(self, prompt_loss_weight: float) -> NDArray[np.float32]:
        """A token's weight in the loss. The first token of a row follows nothing, so nothing predicts it: 0."""
        scale = np.where(self.completion == 1, np.float32(1), np.float32(prompt_loss_weight))
        weights: NDArray[np.float32] = self.message_weight * scale
        weights[self.offsets[:-1]] = 0
        return weights


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
    """Rows that go through the layers together, shorter ones padded at their end.

    Under a causal mask no token sees what comes after it, so padding at the end needs no attention mask: its outputs
    are never asked for.
    """

    input_ids: Tensor
    """int64 [rows, longest row]"""
    positions: Tensor
    """int64 [m]: where, in the flattened [rows * longest], a token with weight > 0 is predicted."""
    targets: Tensor
    """int64 [m]: the token predicted there"""
    weights: Tensor
    """float32 [m]"""
    completion_weights: Tensor
    """float32 [m]: the same for the completion alone (0 on prompt tokens)"""


class Batches:
    """Cuts the rows of a step into micro-batches on the device."""

    def __init__(self, rows: Rows, prompt_loss_weight: float, size: int, device: torch.device) -> None:
        self._rows = rows
        self._size = size
        self._device = device
        self._weights = rows.weights(prompt_loss_weight)
        starts = rows.offsets[:-1]
        self.row_weights: NDArray[np.float64] = np.add.reduceat(self._weights.astype(np.float64), starts)
        self.row_trained: NDArray[np.int64] = np.add.reduceat((self._weights > 0).astype(np.int64), starts)

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
        for start in range(0, len(by_length), self._size):
            yield self._micro_batch(by_length[start : start + self._size])

    def _micro_batch(self, chosen: Sequence[int]) -> MicroBatch:
        width = max(int(self._rows.lengths[i]) for i in chosen)
        ids = np.zeros((len(chosen), width), np.int64)
        positions, targets, weights, completion = [], [], [], []
        for n, i in enumerate(chosen):
            part = self._slice(i)
            row, row_weights = self._rows.input_ids[part], self._weights[part]
            ids[n, : len(row)] = row
            learned = np.flatnonzero(row_weights > 0)
            # The token at t is predicted by the output at t - 1.
            positions.append(n * width + learned - 1)
            targets.append(row[learned])
            weights.append(row_weights[learned])
            completion.append(self._rows.completion[part][learned] * self._rows.message_weight[part][learned])
        return MicroBatch(
            input_ids=self._tensor(ids, torch.int64),
            positions=self._tensor(np.concatenate(positions), torch.int64),
            targets=self._tensor(np.concatenate(targets), torch.int64),
            weights=self._tensor(np.concatenate(weights), torch.float32),
            completion_weights=self._tensor(np.concatenate(completion), torch.float32),
        )

    def _slice(self, i: int) -> slice:
        return slice(int(self._rows.offsets[i]), int(self._rows.offsets[i + 1]))

    def _tensor(self, array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(array).to(self._device, dtype)
