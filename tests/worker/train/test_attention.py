"""Attention block by block is the library's attention; what it is not made for goes to the library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests import tiny
from tests.worker.train.conftest import open_job
from worker.train import attention, products


def drawn(tokens: int, heads: int, key_heads: int, rows: int = 1, depth: int = 16) -> list[Tensor]:
    """Queries, keys and values as a layer has them: heads behind tokens in memory."""
    torch.manual_seed(tokens)
    return [torch.randn(rows, tokens, n, depth).transpose(1, 2).requires_grad_() for n in (heads, key_heads, key_heads)]


class Layer(nn.Module):
    is_causal = True

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.num_key_value_groups = shared


def off(ours: Tensor, right: Tensor) -> float:
    return float((ours.double() - right).norm() / right.norm())


def right(query: Tensor, key: Tensor, value: Tensor, scale: float, ends: list[int]) -> Tensor:
    """In float64, row by row, with every weight written down."""
    q, k, v = (t.double() for t in (query, key, value))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    parts, first = [], 0
    for end in ends:
        scores = q[:, :, first:end] @ k[:, :, first:end].transpose(2, 3) * scale
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        parts.append(scores.softmax(-1) @ v[:, :, first:end])
        first = end
    return torch.cat(parts, 2).transpose(1, 2)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("rows", "heads", "key_heads", "ends"),
    [
        (1, 4, 1, [2]),
        (1, 4, 1, [attention.BLOCK]),
        (1, 4, 2, [attention.BLOCK + 1]),
        (1, 3, 3, [300]),
        (3, 4, 2, [70]),
        (1, 4, 1, [1, 9, 200, 201, 500]),
        (1, 6, 2, [attention.BLOCK, 2 * attention.BLOCK]),
    ],
)
def test_outputs_and_gradients_are_those_of_every_weight_written_down(
    rows: int, heads: int, key_heads: int, ends: list[int], quick: bool
) -> None:
    given = drawn(ends[-1], heads, key_heads, rows)
    mask = None if len(ends) == 1 else torch.ones(1, 1, ends[-1], ends[-1], dtype=torch.bool)
    upstream = torch.randn(rows, ends[-1], heads, 16)

    def both() -> list[Tensor]:
        out, _ = attention.attend(
            Layer(heads // key_heads), *given, mask, scaling=0.3, cu_seq_lens_q=torch.tensor([0, *ends])
        )
        return [out, *torch.autograd.grad(out, given, upstream)]

    if quick:
        with products.quick():
            ours = both()
    else:
        ours = both()
    expected = right(*given, 0.3, ends)
    gradients = torch.autograd.grad(expected, given, upstream.double())
    assert max(off(a.detach(), b.detach()) for a, b in zip(ours, [expected, *gradients], strict=True)) < 2e-6


@pytest.mark.parametrize(
    "given",
    [
        {"attention_mask": torch.ones(8, 8, dtype=torch.bool).tril().triu(-3)[None, None]},
        {"dropout": 0.5},
        {"is_causal": False},
        {"position_bias": torch.arange(8.0).expand(1, 1, 8, 8)},
        # Rows longer than the window, which the mask has and the rows' ends have not.
        {
            "attention_mask": torch.ones(8, 8, dtype=torch.bool).tril().triu(-2)[None, None],
            "cu_seq_lens_q": torch.tensor([0, 8]),
            "sliding_window": 3,
        },
    ],
    ids=["mask", "dropout", "not causal", "bias", "window"],
)
def test_what_is_more_than_causal_goes_to_the_library(given: dict[str, Any]) -> None:
    query, key, value = drawn(8, 2, 1)
    mask = given.pop("attention_mask", None)
    found = []
    for function in (attention.attend, sdpa_attention_forward):
        torch.manual_seed(1)
        found.append(function(Layer(2), query, key, value, mask, **given)[0])
    assert torch.equal(*found)
    plain, _ = attention.attend(Layer(2), query, key, value, None)
    assert not torch.allclose(found[0], plain)


def test_a_token_that_looks_back_at_a_cache_sees_all_of_it() -> None:
    query, _, _ = drawn(1, 2, 1)
    _, key, value = drawn(8, 2, 1)
    ours, _ = attention.attend(Layer(2), query, key, value, None)
    assert torch.equal(ours, sdpa_attention_forward(Layer(2), query, key, value, None)[0])


def test_a_model_in_training_attends_by_blocks_and_gives_the_plain_models_outputs(base: Path, tmp_path: Path) -> None:
    _, model, _ = open_job(tiny.build_job(tmp_path / "job", base, tiny.random_rows(2)))
    assert model.network.config._attn_implementation == attention.NAME
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(4, 204)[None] % 512
    with torch.no_grad():
        ours, theirs = model.hidden(ids), plain.base_model(ids).last_hidden_state
    assert off(ours, theirs.double()) < 2e-6
