"""Learning from preferences: over pairs DPO (sigmoid), IPO, hinge, SimPO and ORPO, over single judged answers KTO.

Of each answer only Σ log p over its tokens is looked at: s under the policy, r under the reference, which is the policy
as it was before its first step. With n tokens in the answer, β and γ from the job, and Δ = wanted − unwanted:

    sigmoid  −log σ(β Δ(s − r))                          arXiv 2305.18290, label smoothing as in cDPO
    hinge    max(0, 1 − β Δ(s − r))                      arXiv 2309.06657
    ipo      (Δ((s − r) / n) − 1/(2β))²                  arXiv 2310.12036, per token as its authors do it
    simpo    −log σ(β Δ(s / n) − γ)                      arXiv 2405.14734, no reference
    orpo     nll − β log σ(Δ log odds(exp(s / n)))       arXiv 2403.07691, no reference; nll of prompt and wanted answer
    kto      1 − σ(±(β (s − r) − β z))                   arXiv 2402.01306, + for a wanted answer

KTO's z ≥ 0 is the mean of s − r over the step's prompts, each with the answer of the row before it in the file. A loss
is the mean over the examples of a whole step. TRL's trainers are the peers that the tests compare with.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from worker.folder import PreferenceSpec
from worker.train import loss
from worker.train.batches import Batches, MicroBatch, Rows, Weighted
from worker.train.model import Model
from worker.train.objective import Step
from worker.train.ranks import Ranks

WITH_REFERENCE = ("sigmoid", "hinge", "ipo", "kto")


class Preference:
    """``reference``: what :func:`score` gave before the first step; None where the loss has no reference."""

    told = 8

    def __init__(
        self, rows: Rows, spec: PreferenceSpec, size: int, device: torch.device, reference: Tensor | None = None
    ) -> None:
        assert rows.label is not None
        self._rows, self._label, self._spec, self._size = rows, rows.label, spec, size
        self._paired = spec.loss != "kto"
        self._answers = Batches(rows, 0.0, size, device)
        # ORPO learns the wanted answer with its prompt as well, as its authors do.
        self._wanted = Batches(rows, 1.0, size, device) if spec.loss == "orpo" else self._answers
        self.reference = reference

    def __len__(self) -> int:
        return len(self._rows) // 2 if self._paired else len(self._rows)

    @property
    def weights(self) -> NDArray[np.float64]:
        heavy = self._answers.row_weights > 0
        return (heavy[0::2] & heavy[1::2] if self._paired else heavy).astype(np.float64)

    def lines(self, chosen: Sequence[int]) -> list[int]:
        return [int(self._rows.lines[2 * i if self._paired else i]) for i in chosen]

    def tokens(self, chosen: Sequence[int]) -> int:
        return self._answers.tokens(self._of(chosen))

    def trained(self, chosen: Sequence[int]) -> int:
        return self._answers.trained(self._of(chosen))

    def begin(self, model: Model, chosen: Sequence[int], ranks: Ranks) -> Step:
        wanted = [row for row in self._of(chosen) if self._label[row]]
        drift = self._drift(model, chosen, ranks) if self._spec.loss == "kto" else 0.0
        return Step(float(len(chosen)), answer_tokens=float(self._wanted.row_weights[wanted].sum()), drift=drift)

    def cut(self, chosen: Sequence[int]) -> Iterator[MicroBatch]:
        """``size`` examples at once, neighbours in length together."""
        lengths = self._rows.lengths
        by_length = sorted(chosen, key=lambda i: (max(int(lengths[row]) for row in self._of([i])), i))
        for start in range(0, len(by_length), self._size):
            rows = self._of(by_length[start : start + self._size])
            weighted = [(self._wanted if self._label[row] else self._answers).row(row) for row in rows]
            yield self._answers.together(weighted, rows)

    def backward(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        share, told = self._share(model, batch, step)
        model.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
        return told

    def measure(self, model: Model, batch: MicroBatch, step: Step) -> Tensor:
        return self._share(model, batch, step)[1]

    def metrics(self, told: Tensor, step: Step) -> dict[str, float | None]:
        loss, nll, tokens, right, wanted, unwanted, n_wanted, n_unwanted = told.tolist()
        rewards = (wanted / n_wanted if n_wanted else None, unwanted / n_unwanted if n_unwanted else None)
        return {
            "loss": loss,
            "completion_loss": nll / tokens if tokens else None,
            "accuracy": right / step.weight,
            "reward_chosen": rewards[0],
            "reward_rejected": rewards[1],
            "reward_margin": None if rewards[0] is None or rewards[1] is None else rewards[0] - rewards[1],
        }

    def score(self, model: Model, ranks: Ranks, look: Callable[[], None] = lambda: None) -> Tensor:
        """Σ log p of each row's answer, and for KTO of each mismatched one, float64 [1 or 2, rows]. ``look`` is called
        before each micro-batch; it may raise."""
        scores = torch.zeros(1 if self._paired else 2, len(self._rows), dtype=torch.float64, device=model.device)
        everything = ranks.share(sorted(range(len(self._rows)), key=lambda row: int(self._rows.lengths[row])))
        for start in range(0, len(everything), self._size):
            look()
            rows = everything[start : start + self._size]
            own = [self._answers.row(row) for row in rows]
            for kind, weighted in enumerate((own, None if self._paired else [self._mismatched(row) for row in rows])):
                if weighted is not None:
                    scores[kind, rows] = self._sums(model, self._answers.together(weighted, rows))[0]
        ranks.sum_([scores])
        return scores

    def _of(self, chosen: Sequence[int]) -> list[int]:
        """The rows of these examples"""
        return [row for i in chosen for row in (2 * i, 2 * i + 1)] if self._paired else list(chosen)

    def _share(self, model: Model, batch: MicroBatch, step: Step) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the step's loss, and what is told."""
        sums, counts, wholes = self._sums(model, batch)
        drawn = torch.zeros_like(sums) if self.reference is None else self.reference[0, list(batch.rows)]
        wanted = torch.tensor([bool(self._label[row]) for row in batch.rows], device=sums.device)
        spec, per_token = self._spec, self._spec.loss in ("ipo", "simpo", "orpo")
        moved = (sums - drawn) / (counts if per_token else 1.0)
        if self._paired:
            losses = pair_losses(spec, moved[wanted], moved[~wanted])
            right = (moved[wanted] > moved[~wanted]).sum()
        else:
            losses = 1 - torch.sigmoid(spec.beta * torch.where(wanted, moved - step.drift, step.drift - moved))
            right = ((moved > step.drift) == wanted).sum()
        share = losses.sum() / step.weight
        learned = 1.0 if spec.loss == "orpo" else spec.sft_weight
        if learned and step.answer_tokens:
            share = share + learned * wholes[wanted].sum() / step.answer_tokens
        rewards = spec.beta * moved.detach()
        told = [
            *(share.detach(), -sums.detach()[wanted].sum(), counts[wanted].sum(), right),
            *(rewards[wanted].sum(), rewards[~wanted].sum(), wanted.sum(), (~wanted).sum()),
        ]
        return share, torch.stack([one.double() for one in told])

    def _sums(self, model: Model, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: Σ log p of its answer, the answer's tokens, and Σ w·nll of all that it is learned with."""
        nll, _ = loss.tokens(model.hidden(batch.input_ids), model.head, batch)
        answer, all_of_it = batch.completion_weights.double(), batch.weights.double()
        # Each row's own sum, in its own order: the same bits each time, which adding by index has not everywhere.
        parts = zip(*(torch.split(one, list(batch.counts)) for one in (nll, answer, all_of_it)), strict=True)
        rows = [(-(n * a).sum(), a.sum(), (n * w).sum()) for n, a, w in parts]
        sums, counts, wholes = (torch.stack(column) for column in zip(*rows, strict=True))
        return sums, counts, wholes

    @torch.no_grad()
    def _drift(self, model: Model, chosen: Sequence[int], ranks: Ranks) -> float:
        """KTO's z, from all rows of the step whatever the micro-batch."""
        assert self.reference is not None
        total = torch.zeros(1, dtype=torch.float64, device=model.device)
        mine = ranks.share(sorted(chosen))
        for start in range(0, len(mine), self._size):
            rows = mine[start : start + self._size]
            sums, _, _ = self._sums(model, self._answers.together([self._mismatched(row) for row in rows], rows))
            total += (sums - self.reference[1, rows]).sum()
        ranks.sum_([total])
        return max(0.0, float(total) / len(chosen))

    def _mismatched(self, row: int) -> Weighted:
        """A prompt with the answer of the row before it in the file."""
        prompt, answer = self._answers.row(row), self._answers.row((row - 1) % len(self._rows))
        to, start = _answer_start(prompt), _answer_start(answer)
        return Weighted(
            *(np.concatenate([a[:to], b[start:]]) for a, b in zip(prompt, answer, strict=True)),
        )


def _answer_start(row: Weighted) -> int:
    return int(np.flatnonzero(row.completion > 0)[0])


def pair_losses(spec: PreferenceSpec, wanted: Tensor, unwanted: Tensor) -> Tensor:
    """Loss of each pair from its answers' s − r (or (s − r) / n): float64 [pairs]."""
    margin = wanted - unwanted
    match spec.loss:
        case "sigmoid":
            return _smoothed(spec.beta * margin, spec.label_smoothing)
        case "hinge":
            return torch.relu(1 - spec.beta * margin)
        case "ipo":
            return (margin - 1 / (2 * spec.beta)).square()
        case "simpo":
            return _smoothed(spec.beta * margin - spec.gamma, spec.label_smoothing)
        case "orpo":
            log_odds = margin - (_log1mexp(wanted) - _log1mexp(unwanted))
            return -spec.beta * functional.logsigmoid(log_odds)
        case "kto":
            raise ValueError("KTO has no pairs")


def _smoothed(x: Tensor, smoothing: float) -> Tensor:
    return -functional.logsigmoid(x) * (1 - smoothing) - functional.logsigmoid(-x) * smoothing


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, each half by the form that keeps its digits."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
