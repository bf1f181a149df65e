"""The loss is Σ w·nll / Σ w of the whole step, however the step is split and whatever the head looks like."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests import tiny
from tests.worker.train.conftest import open_job
from worker.train import filtered, loss, supervised
from worker.train.batches import MicroBatch, Rows
from worker.train.faults import Refused
from worker.train.model import Model

WEIGHTED = [
    (tokens, completion, [0.5 if i % 3 else 1.0 for i in range(len(tokens))])
    for tokens, completion, *_ in tiny.random_rows(8, seed=1)
]


def dense(model: Model, folder: Path, prompt_loss_weight: float) -> dict[str, Any]:
    """The definition, written out: every logit, one row at a time, nothing shared with the engine."""
    rows = Rows.read(folder / "train.safetensors")
    total, weight, right, spoken = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
    for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        ids = torch.tensor(rows.input_ids[a:b].astype("int64"))
        logits = model.network(input_ids=ids[None]).logits[0, :-1].double()
        nll = functional.cross_entropy(logits, ids[1:], reduction="none")
        for t in range(1, b - a):
            w = float(rows.message_weight[a + t]) * (1.0 if rows.completion[a + t] else prompt_loss_weight)
            total = total + w * nll[t - 1]
            weight += w
            if rows.completion[a + t]:
                spoken += 1
                right += int(logits[t - 1].argmax() == ids[t])
    mean = total / weight
    mean.backward()
    gradients = {name: p.grad.clone() for name, p in model.trainable.items() if p.grad is not None}
    model.module.zero_grad()
    return {"loss": float(mean), "accuracy": right / spoken, "gradients": gradients}


def ours(folder: Path, micro_batch_size: int, prepare: Any = None) -> dict[str, Any]:
    _, model, batches = open_job(folder, micro_batch_size)
    if prepare is not None:
        prepare(model)
    chosen = list(range(8))
    weight = batches.weight(chosen)
    told = sum(supervised.backward(model, micro, weight) for micro in batches.cut(chosen))
    gradients = {name: p.grad for name, p in model.trainable.items() if p.grad is not None}
    return {"loss": float(told[0]) / weight, "accuracy": float(told[3] / told[4]), "gradients": gradients}


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    assert a
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    size = sum(float(b[name].double().square().sum()) for name in a)
    return float((difference / size) ** 0.5)


def move(model: Model) -> None:
    """B starts at zero, and with it A's gradient: a moved adapter shows more."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.trainable.values():
            p += 0.05 * torch.randn(p.shape, generator=generator).to(p.device)


@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.1, 1.0])
def test_loss_and_gradient_equal_a_dense_reference(base: Path, tmp_path: Path, prompt_loss_weight: float) -> None:
    folder = tiny.build_job(tmp_path / "job", base, WEIGHTED, prompt_loss_weight=prompt_loss_weight)
    _, model, _ = open_job(folder)
    move(model)
    expected = dense(model, folder, prompt_loss_weight)
    found = ours(folder, 1, move)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["accuracy"] == expected["accuracy"]
    assert relative(found["gradients"], expected["gradients"]) < 1e-6


def test_the_split_into_micro_batches_changes_nothing(base: Path, tmp_path: Path) -> None:
    folder = tiny.build_job(tmp_path / "job", base, WEIGHTED, prompt_loss_weight=0.1)
    one = ours(folder, 1, move)
    for size in (2, 4, 8):
        other = ours(folder, size, move)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert relative(other["gradients"], one["gradients"]) < 1e-6


def test_gradient_checkpointing_changes_nothing_and_reaches_every_matrix(base: Path, tmp_path: Path) -> None:
    plain = tiny.build_job(tmp_path / "plain", base, WEIGHTED)
    saving = tiny.build_job(tmp_path / "saving", base, WEIGHTED, gradient_checkpointing=True)

    def training(model: Model) -> None:
        move(model)
        model.module.train()

    found = ours(saving, 2, training)
    assert relative(found["gradients"], ours(plain, 2, training)["gradients"]) < 1e-6
    assert all(float(gradient.abs().max()) > 0 for gradient in found["gradients"].values())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, False), (0.25, True)])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_tiles_give_what_all_logits_at_once_give(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, scale: float, bias: bool, spread: float
) -> None:
    """``spread``: logits far enough apart that the reference has to move from tile to tile."""
    monkeypatch.setattr(loss, "TILE_ELEMENTS", 4000)
    monkeypatch.setattr(loss, "ROWS", 40)
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(16, 1003, bias=bias).requires_grad_(False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(1003, 16, generator=generator) * torch.linspace(0.1, 1, 1003)[:, None])
    hidden = (torch.randn(1, 97, 16, generator=generator) * spread).requires_grad_()
    targets = torch.randint(1003, (97,), generator=generator)
    weights = torch.rand(97, generator=generator)
    head = loss.Head(linear, linear.weight, linear.bias, scale, softcap)
    assert head.frozen
    batch = MicroBatch(torch.zeros(1, 97, dtype=torch.long), torch.arange(97), targets, weights, weights.clone())

    total, told = loss.sums(hidden, head, batch)
    (found,) = torch.autograd.grad(total, hidden)
    logits = head.logits(hidden.double().float()[0]).double()
    nll = functional.cross_entropy(logits, targets, reduction="none")
    expected = (weights.double() * nll).sum()
    (gradient,) = torch.autograd.grad(expected, hidden)

    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert float(told[1]) == pytest.approx(float(expected), rel=1e-6)
    # A soft cap lets many logits meet at its top; a target among the largest counts as predicted.
    assert int(told[3]) == int((logits.gather(1, targets[:, None])[:, 0] == logits.amax(1)).sum())
    assert float((found - gradient).norm() / gradient.norm()) < 2e-6
    with torch.no_grad():
        assert float(loss.sums(hidden, head, batch)[0]) == float(total)


def test_an_adapted_head_is_trained_too(base: Path, tmp_path: Path) -> None:
    """lm_head is tied to the embedding here; naming it takes the plain path, whose numbers are the same."""
    lora = {"target_modules": ["q_proj", "v_proj", "lm_head"]}
    folder = tiny.build_job(tmp_path / "job", base, WEIGHTED, lora=lora)
    _, model, _ = open_job(folder)
    assert not model.head.frozen
    move(model)
    expected = dense(model, folder, 0.1)
    found = ours(folder, 2, move)
    assert any("lm_head" in name for name in found["gradients"])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert relative(found["gradients"], expected["gradients"]) < 1e-6


def test_a_micro_batch_without_a_weighted_token_adds_nothing(base: Path, tmp_path: Path) -> None:
    silent = ([1, 5, 6, 7], [0, 0, 1, 1], [0.0, 0.0, 0.0, 0.0])
    folder = tiny.build_job(tmp_path / "job", base, [silent, *WEIGHTED[:7]])
    with_it = ours(folder, 1, move)
    alone = tiny.build_job(tmp_path / "alone", base, [*WEIGHTED[:7], WEIGHTED[7]])
    _, model, batches = open_job(alone)
    move(model)
    told = sum(supervised.backward(model, m, batches.weight(list(range(7)))) for m in batches.cut(list(range(7))))
    assert with_it["loss"] == pytest.approx(float(told[0]) / batches.weight(list(range(7))), rel=1e-9)


def test_packed_rows_give_the_same_gradient(base: Path, tmp_path: Path) -> None:
    """8 × 1, 4 × 2, 2 × 4 and 1 × 8, packed: ragged rows, fractional weights."""
    folder = tiny.build_job(tmp_path / "job", base, WEIGHTED, prompt_loss_weight=0.1)
    packed = tiny.build_job(tmp_path / "packed", base, WEIGHTED, prompt_loss_weight=0.1, packing=True)
    one = ours(folder, 1, move)
    for size in (1, 2, 4, 8):
        other = ours(packed, size, move)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert relative(other["gradients"], one["gradients"]) < 1e-6


@pytest.mark.parametrize(("softcap", "bias"), [(None, False), (300.0, True)])
def test_a_filtered_gradient_is_nearly_the_exact_one_and_its_loss_is_exact(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, bias: bool
) -> None:
    """Peaked distributions, as a trained model has them: most columns are left out, in whole and partial blocks."""
    monkeypatch.setattr(loss, "TILE_ELEMENTS", 40 * 256)
    monkeypatch.setattr(loss, "ROWS", 40)
    monkeypatch.setattr(loss, "BLOCK", 64)
    monkeypatch.setattr(filtered, "BLOCK", 64)
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(64, 1003, bias=bias).requires_grad_(False)
    with torch.no_grad():
        # Rows that have much in common, as a real head's do: what is left out has a mean that says something.
        linear.weight.copy_(torch.randn(1003, 64, generator=generator) + torch.randn(64, generator=generator))
        targets = torch.randint(1003, (97,), generator=generator)
        noise = torch.randn(97, 64, generator=generator)
        hidden = (0.6 * linear.weight[targets] + 0.02 * noise)[None].requires_grad_()
    weights = torch.rand(97, generator=generator)
    batch = MicroBatch(torch.zeros(1, 97, dtype=torch.long), torch.arange(97), targets, weights, weights.clone())
    columns: list[int] = []
    kept = filtered.Tail.kept

    def counted(self: filtered.Tail, mass: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
        found = kept(self, mass, least)
        columns.append(len(found))
        return found

    monkeypatch.setattr(filtered.Tail, "kept", counted)
    exact = loss.Head(linear, linear.weight, linear.bias, 1.0, softcap)
    total, told = loss.sums(hidden, exact, batch)
    (gradient,) = torch.autograd.grad(total, hidden)
    few = loss.Head(linear, linear.weight, linear.bias, 1.0, softcap, filtered=True)
    filtered_total, filtered_told = loss.sums(hidden, few, batch)
    (found,) = torch.autograd.grad(filtered_total, hidden)

    assert 0 < sum(columns) < 0.7 * 1003 * 3
    # Tiles of other widths: the same logits but for their last bits.
    assert float(filtered_total) == pytest.approx(float(total), rel=1e-5)
    assert filtered_told.tolist() == pytest.approx(told.tolist(), rel=1e-5)
    off = float((found - gradient).norm() / gradient.norm())
    assert 0 < off < 1e-3
    # What is left out counts by its mass: without that the gradient is further off.
    monkeypatch.setattr(filtered.Tail, "pull", lambda self: torch.zeros(1))
    (cut,) = torch.autograd.grad(loss.sums(hidden, few, batch)[0], hidden)
    assert off < 0.7 * float((cut - gradient).norm() / gradient.norm())


def test_a_filtered_gradient_is_refused_for_a_head_that_is_trained(base: Path, tmp_path: Path) -> None:
    lora = {"target_modules": ["q_proj", "lm_head"]}
    folder = tiny.build_job(tmp_path / "job", base, WEIGHTED, lora=lora, head_gradient="filtered")
    with pytest.raises(Refused) as refused:
        open_job(folder)
    assert (refused.value.code, refused.value.param) == ("trainable_head", "head_gradient")
