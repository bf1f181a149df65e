"""Causal attention on a processor, in float32, of rows that follow one another: a block of queries at a time.

Registered with transformers under :data:`NAME`. Where nothing but causality and the ends of packed rows says who sees
whom, it gives what the library's scaled-dot-product attention gives; everything else is left to that one. It multiplies
whole blocks, which is quicker than the small pieces of torch's own kernel, computes nothing beyond a block's diagonal,
and needs no mask: a packed row costs what it would alone.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "attune_causal"
BLOCK = 128
"""Queries that meet their keys together: half a block's products are beyond the diagonal, for nothing."""
ROUND = 128
"""A block's keys begin at a multiple of this, so that few sizes of matrices are met (``products.padded``)."""


def use(network: PreTrainedModel) -> None:
    """Have the network attend by this, where its code lets anybody say how."""
    if network._supports_attention_backend and network.device.type == "cpu":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        network.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **more: Any,  # as transformers' own functions: each architecture passes some of its own
) -> tuple[Tensor, None]:
    """``query`` [rows, heads, tokens, depth], ``key`` and ``value`` with fewer heads where some share them; gives
    [rows, tokens, heads, depth]. ``cu_seq_lens_q``: where packed rows begin, and the end of the last."""
    tokens = query.shape[2]
    ends = None
    if attention_mask is None:
        ends = [tokens]
    elif cu_seq_lens_q is not None and len(query) == 1:
        # The mask says the same, and where a row is longer than the window, more.
        ends = cu_seq_lens_q.tolist()[1:]
        if sliding_window is not None and max(map(int.__sub__, ends, [0, *ends])) > sliding_window:
            ends = None
    plain = (
        key.shape[2] == tokens > 1
        and query.dtype == torch.float32
        and query.device.type == "cpu"
        and dropout == 0
        and getattr(module, "is_causal", True)
        and not more.get("softcap")
        and more.get("is_causal") is not False
        and more.get("position_bias") is None
    )
    if ends is None or not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **more
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    output: Tensor = _Causal.apply(query, key, value, scale, tuple(ends))  # type: ignore[no-untyped-call]
    return output, None


class _Causal(torch.autograd.Function):
    """Heads that share keys stand side by side as rows of one matrix: [rows · key heads, tokens · sharing, depth].

    Nothing of a block is kept: its weights are computed again on the way back.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, ends: tuple[int, ...]) -> Tensor:
        rows, heads, tokens, _ = query.shape
        shared = heads // key.shape[1]
        q = _beside(query.transpose(1, 2), key.shape[1]) * scale
        k, v = (each.reshape(-1, tokens, each.shape[-1]) for each in (key, value))
        out = q.new_empty(len(k), tokens * shared, v.shape[-1])
        for block in _blocks(ends):
            torch.bmm(_weights(q, k, block, shared), v[:, block.keys], out=_of(out, block, shared))
        ctx.save_for_backward(q, k, v, out)
        ctx.rest = scale, ends, query.shape, key.shape, value.shape
        return out.view(rows, -1, tokens, shared, v.shape[-1]).transpose(1, 2).reshape(rows, tokens, heads, -1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out = ctx.saved_tensors
        scale, ends, of_query, of_key, of_value = ctx.rest
        rows, heads, tokens, depth = of_query
        shared = heads // of_key[1]
        up = _beside(upstream, of_key[1])
        mean = torch.linalg.vecdot(up, out).unsqueeze_(-1)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in _blocks(ends):
            seen = block.keys
            weights, up_here = _weights(q, k, block, shared), _of(up, block, shared)
            to_v[:, seen].baddbmm_(weights.transpose(1, 2), up_here)
            slope = torch.bmm(up_here, v[:, seen].transpose(1, 2)).sub_(_of(mean, block, shared)).mul_(weights)
            torch.bmm(slope, k[:, seen], out=_of(to_q, block, shared))
            to_k[:, seen].baddbmm_(slope.transpose(1, 2), _of(q, block, shared))
        to_q = to_q.mul_(scale).view(rows, -1, tokens, shared, depth).transpose(2, 3).reshape(of_query)
        return to_q, to_k.view(of_key), to_v.view(of_value), None, None


class _Block(NamedTuple):
    """Some queries that follow one another and all keys that any of them sees."""

    queries: slice
    keys: slice
    hidden: Tensor
    """Which of the last keys a query does not see: bool [queries, 1, keys]"""


@functools.lru_cache(16)
def _blocks(ends: tuple[int, ...]) -> list[_Block]:
    """All layers of a network go by the same."""
    place = torch.arange(ends[-1])
    row = torch.bucketize(place, torch.tensor(ends), right=True)
    begins = torch.tensor([0, *ends])
    found = []
    for start in range(0, ends[-1], BLOCK):
        after = min(ends[-1], start + BLOCK)
        first = int(begins[row[start]]) // ROUND * ROUND
        i, j = slice(start, after), slice(first, after)
        hidden = (row[i, None] != row[None, j]) | (place[i, None] < place[None, j])
        # The keys that all of them see come first, and need no mask.
        seen = int(hidden.any(0).int().argmax())
        found.append(_Block(i, j, hidden[:, None, seen:].clone()))
    return found


def _weights(q: Tensor, k: Tensor, block: _Block, shared: int) -> Tensor:
    """[rows · key heads, queries · sharing, keys]"""
    scores = torch.bmm(_of(q, block, shared), k[:, block.keys].transpose(1, 2))
    hidden = block.hidden
    unseen = scores.view(len(scores), len(hidden), shared, -1)[..., -hidden.shape[-1] :]
    unseen.masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, -1)


def _of(each: Tensor, block: _Block, shared: int) -> Tensor:
    """The block's queries, or what belongs to them."""
    return each[:, block.queries.start * shared : block.queries.stop * shared]


def _beside(each: Tensor, key_heads: int) -> Tensor:
    """[rows, tokens, heads, depth] as [rows · key heads, tokens · sharing, depth]"""
    rows, tokens, heads, depth = each.shape
    split = each.reshape(rows, tokens, key_heads, heads // key_heads, depth)
    return split.transpose(1, 2).reshape(rows * key_heads, -1, depth)
