"""Σ w·nll over selected tokens, with the vocabulary taken in tiles so that the logits are never all in memory.

For one token with hidden state h, logits z = W h and target y, nll = log Σ exp(z) − z[y], and its gradient with
respect to h is Σ softmax(z)·W − W[y]. Both are sums over the vocabulary, so one pass over its tiles finds both:
keep Σ exp(z − r) and Σ exp(z − r)·W for a reference r near the largest logit, and divide at the end. A tile's logits
are still in the processor's cache when they are used for the second time, and every number is exact.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from worker.train import products
from worker.train.batches import MicroBatch
from worker.train.filtered import BLOCK, Means, Tail

TILE_ELEMENTS = 1 << 20
"""Logits in a tile (4 MiB in float32): small enough to stay in cache, large enough for a fast matrix product."""
ROWS = 512
"""Tokens that meet a tile together."""
HEADROOM = 16.0
"""How far a logit may rise above the reference before it is moved: exp(16) is far from float32's limit."""


@dataclass
class Head:
    """The language-model head and what its model does to the logits."""

    module: nn.Module
    weight: Tensor
    """[vocabulary, width]; the embedding itself where the two are tied"""
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None
    """Logits z become softcap · tanh(z / softcap)."""
    filtered: bool = False
    """Whether the gradient leaves out what ``filtered.py`` says; for a frozen head."""

    @cached_property
    def means(self) -> Means:
        return Means(self.weight)

    @property
    def frozen(self) -> bool:
        return isinstance(self.module, nn.Linear) and not any(p.requires_grad for p in self.module.parameters())

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits the plain way, all of the vocabulary at once, in float32 at least."""
        logits: Tensor = self.module(hidden).to(summed(hidden.dtype)) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def summed(dtype: torch.dtype) -> torch.dtype:
    """What sums over the vocabulary are kept in where hidden states come in ``dtype``: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def tokens(hidden: Tensor, head: Head, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """nll of each selected token of ``hidden`` [rows, longest, width], differentiable, float64 [m]; and whether the
    token has the largest logit, bool [m]."""
    selected = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
    if head.frozen:
        nll, correct = _Tiled.apply(selected, head, batch.targets)  # type: ignore[no-untyped-call]
        return nll, correct
    return _plain(selected, head, batch.targets)


def sums(hidden: Tensor, head: Head, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The differentiable Σ w·nll of ``hidden`` [rows, longest, width], and what is told about it.

    Told, as float64 [5]: Σ w·nll, Σ c·nll, Σ c (c: weight in the completion alone), completion tokens predicted
    rightly, completion tokens.
    """
    each, correct = tokens(hidden, head, batch)
    nll = each.detach()
    completion = batch.completion_weights
    told = torch.stack(
        [
            (batch.weights.double() * nll).sum(),
            (completion.double() * nll).sum(),
            completion.double().sum(),
            (correct & (completion > 0)).sum().double(),
            (completion > 0).sum().double(),
        ]
    )
    return (batch.weights.double() * each).sum(), told


def _plain(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For a head that is trained itself: chunks of tokens, their logits computed again in the backward pass where there
    is more than one."""

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head.logits(hidden)
        return functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

    rows = max(1, 64 * TILE_ELEMENTS // len(head.weight))
    if len(hidden) <= rows:
        nll, correct = chunk(hidden, targets)
        return nll.double(), correct
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    found = [checkpoint(chunk, h, t, use_reentrant=False) for h, t in parts]
    return torch.cat([nll for nll, _ in found]).double(), torch.cat([correct for _, correct in found])


class _Tiled(torch.autograd.Function):
    """A frozen head: the gradient of the hidden states is found in the forward pass, the head's own is never asked."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wanted else None
        nll = torch.empty(len(hidden), dtype=torch.float64, device=hidden.device)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        buffer = torch.empty(TILE_ELEMENTS, dtype=head.weight.dtype, device=hidden.device)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, min(start + ROWS, len(hidden)))
            # Where a whole size is wanted, the last token is there more than once.
            n = rows.stop - start
            chosen = torch.arange(start, start + products.padded(n), device=hidden.device).clamp_(max=rows.stop - 1)
            each, right, pull = _pass(hidden[chosen], head, targets[chosen], buffer, wanted)
            nll[rows], correct[rows] = each[:n], right[:n]
            if gradient is not None and pull is not None:
                gradient[rows] = pull[:n]
        ctx.gradient = gradient
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(upstream.to(gradient.dtype)[:, None]), None, None


def _pass(
    hidden: Tensor, head: Head, targets: Tensor, buffer: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """nll, whether the target has the largest logit, and d nll / d hidden, for up to ``ROWS`` tokens."""
    n, vocabulary = len(hidden), len(head.weight)
    kept_in = summed(hidden.dtype)
    zeros = partial(torch.zeros, dtype=kept_in, device=hidden.device)
    reference = zeros(n, 1) - torch.inf
    largest = zeros(n) - torch.inf
    total = zeros(n, 1)
    of_target = zeros(n)
    pull = zeros(n, hidden.shape[1]) if wanted else None
    every = torch.arange(n, device=hidden.device)
    columns = len(buffer) // n
    tail = None
    if head.filtered and wanted:
        tail = Tail(head.means, n)
        # A token's total is at least what its target adds: that tells what is small from the first tile on.
        known = reference = _of_targets(hidden, head, targets)
        columns = max(1, columns // BLOCK) * BLOCK
    for start in range(0, vocabulary, columns):
        tile = head.weight[start : start + columns]
        logits = torch.mm(hidden, tile.t(), out=buffer[: n * len(tile)].view(n, len(tile)))
        if head.bias is not None:
            logits += head.bias[start : start + columns]
        # No copy where the dtype is that of the sums below.
        logits = logits.to(kept_in)
        if head.scale != 1:
            logits *= head.scale
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)

        here = every[(targets >= start) & (targets < start + columns)]
        of_target[here] = logits[here, targets[here] - start]
        highest = logits.amax(1)
        torch.maximum(largest, highest, out=largest)
        if bool((highest > reference[:, 0] + HEADROOM).any()):
            # exp(-inf) is 0: the first tile's "old" sums vanish, and a row that didn't rise keeps factor 1.
            raised = torch.where(highest[:, None] > reference + HEADROOM, highest[:, None], reference)
            shrink = torch.exp(reference - raised)
            total *= shrink
            if pull is not None:
                pull *= shrink
            if tail is not None:
                tail.shrink(shrink)
            reference = raised

        slope = None if head.softcap is None else 1 - (logits / head.softcap).square()
        mass = logits.sub_(reference).exp_()
        total += mass.sum(1, keepdim=True)
        if pull is not None:
            kept = None if tail is None else tail.kept(mass, torch.maximum(total, torch.exp(known - reference)))
            if slope is not None:
                mass *= slope
            if tail is not None and kept is not None:
                few = mass.index_select(1, kept)
                tail.leave(mass, kept, few, start)
                mass, tile = few, tile.index_select(0, kept)
            if mass.dtype == tile.dtype:
                pull.addmm_(mass, tile)
            else:
                pull += torch.mm(mass.to(tile.dtype), tile)

    nll = reference.double() + total.double().log() - of_target[:, None].double()
    if pull is not None:
        if tail is not None:
            pull += tail.pull()
        pull /= total
        own = head.weight[targets].to(kept_in)
        if head.softcap is not None:
            own *= (1 - (of_target / head.softcap).square())[:, None]
        pull -= own
        pull *= head.scale
    return nll[:, 0], of_target >= largest, pull


def _of_targets(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The logits of the targets alone: float32 [tokens, 1]"""
    logits = (hidden.float() * head.weight[targets].float()).sum(1, keepdim=True)
    if head.bias is not None:
        logits += head.bias[targets, None]
    logits *= head.scale
    return logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap
