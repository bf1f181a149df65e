"""What a run learns from its rows: the seam between the loop, which knows steps, and a method, which knows losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.train.batches import MicroBatch
from worker.train.model import Model
from worker.train.ranks import Ranks


@dataclass(frozen=True)
class Step:
    """Sums over all examples of a step, on all ranks: what each part of its loss is divided by, so that the loss does
    not depend on how the step is split."""

    weight: float
    answer_tokens: float = 0.0
    """Of the answers that a preference loss also learns as a supervised one would."""
    drift: float = 0.0
    """KTO: how far the policy has moved from the reference on answers to other prompts."""


class Objective(Protocol):
    """A method on the rows of one token file. ``told``: how many numbers a micro-batch tells, to be added up."""

    told: int

    def __len__(self) -> int:
        """Examples: what ``batch_size`` counts."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """Of each example: 0 where nothing is learned from it."""

    def lines(self, chosen: Sequence[int]) -> list[int]:
        """In the user's file"""

    def tokens(self, chosen: Sequence[int]) -> int: ...

    def trained(self, chosen: Sequence[int]) -> int:
        """Tokens with a weight above 0"""

    def begin(self, model: Model, chosen: Sequence[int], ranks: Ranks) -> Step: ...

    def cut(self, chosen: Sequence[int]) -> Iterator[MicroBatch]: ...

    def backward(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        """Add this micro-batch's share of the step's gradient; returns what is told, float64 [told]."""

    def measure(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        """The same sums without a gradient."""

    def metrics(self, told: Tensor, step: Step) -> dict[str, float | None]:
        """From what all micro-batches told: ``loss``, ``completion_loss``, ``accuracy``, and the method's own."""
