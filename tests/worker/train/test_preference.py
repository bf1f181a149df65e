"""Each preference loss is its definition however a step is split; the reference is kept; resumed runs end the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests import tiny
from tests.worker.train.conftest import Ran, again, open_job
from tests.worker.train.test_loss import relative
from worker.folder import PreferenceSpec
from worker.train import preference
from worker.train.batches import Rows
from worker.train.events import Events
from worker.train.faults import Drained
from worker.train.loop import Run
from worker.train.model import Model
from worker.train.preference import Preference
from worker.train.ranks import Ranks

Train = Callable[[Path], Ran]
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.1},
    "sigmoid with sft": {"loss": "sigmoid", "beta": 0.5, "sft_weight": 0.3},
    "hinge": {"loss": "hinge", "beta": 0.05},
    "ipo": {"loss": "ipo", "beta": 0.5},
    "simpo": {"loss": "simpo", "beta": 2.0, "gamma": 0.5},
    "orpo": {"loss": "orpo", "beta": 0.1},
    "kto": {"loss": "kto", "beta": 0.5},
}
PAIRS = tiny.random_pairs(8, seed=2)
LABELS = [1, 0] * 8
UNPAIRED = [1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1]


def job(folder: Path, base: Path, name: str, **values: Any) -> Path:
    kto = name == "kto"
    fields: dict[str, Any] = {"method": "dpo", "preference": LOSSES[name], "prompt_loss_weight": 0.0}
    steps = math.ceil((16 if kto else 8) / values.get("batch_size", 4))
    fields["total_steps"] = steps * values.get("epochs", 1)
    return tiny.build_job(folder, base, PAIRS, label=UNPAIRED if kto else LABELS, **fields | values)


def sums(model: Model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """log p of each token after the first, one row at a time."""
    found = []
    for ids, _ in rows:
        tokens = torch.tensor(ids)
        logits = model.module(input_ids=tokens[None]).logits[0, :-1].double()
        found.append(-functional.cross_entropy(logits, tokens[1:], reduction="none"))
    return found


def dense(model: Model, spec: PreferenceSpec, before: list[list[float]]) -> torch.Tensor:
    """The definitions, written out. ``before``: Σ log p under the reference, of each answer and each mismatched one."""
    masks = [torch.tensor(spoken[1:], dtype=torch.bool) for _, spoken in PAIRS]
    each = sums(model, PAIRS)
    s = torch.stack([one[mask].sum() for one, mask in zip(each, masks, strict=True)])
    n = torch.tensor([int(mask.sum()) for mask in masks], dtype=torch.float64)
    r, b = torch.tensor(before[0], dtype=torch.float64), spec.beta
    if spec.loss == "kto":
        with torch.no_grad():
            drift = torch.stack(answer_sums(model, mismatched())) - torch.tensor(before[1], dtype=torch.float64)
        z = drift.mean().clamp(min=0)
        good = torch.tensor(UNPAIRED) == 1
        return torch.where(good, 1 - torch.sigmoid(b * (s - r - z)), 1 - torch.sigmoid(b * (z - s + r))).mean()
    w, u = slice(0, None, 2), slice(1, None, 2)
    answers = torch.cat([one[mask] for one, mask in zip(each[w], masks[w], strict=True)])
    match spec.loss:
        case "sigmoid":
            x, e = b * ((s - r)[w] - (s - r)[u]), spec.label_smoothing
            losses = -(1 - e) * torch.log(torch.sigmoid(x)) - e * torch.log(torch.sigmoid(-x))
        case "hinge":
            losses = (1 - b * ((s - r)[w] - (s - r)[u])).clamp(min=0)
        case "ipo":
            losses = (((s - r) / n)[w] - ((s - r) / n)[u] - 1 / (2 * b)) ** 2
        case "simpo":
            losses = -torch.log(torch.sigmoid(b * ((s / n)[w] - (s / n)[u]) - spec.gamma))
        case _:
            p = torch.exp(s / n)
            odds = p / (1 - p)
            whole = torch.cat(each[w])
            return -whole.mean() - b * torch.log(torch.sigmoid(torch.log(odds[w] / odds[u]))).mean()
    return losses.mean() - spec.sft_weight * answers.mean()


def mismatched() -> list[tuple[list[int], list[int]]]:
    found = []
    for i, (ids, spoken) in enumerate(PAIRS):
        other, said = PAIRS[i - 1]
        start, cut = spoken.index(1), said.index(1)
        found.append(([*ids[:start], *other[cut:]], [0] * start + [1] * (len(other) - cut)))
    return found


def answer_sums(model: Model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    each = sums(model, rows)
    return [one[torch.tensor(spoken[1:], dtype=torch.bool)].sum() for one, (_, spoken) in zip(each, rows, strict=True)]


def move(model: Model) -> None:
    """By what leaves KTO a reference point above 0, which half of all seeds don't."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.trainable.values():
            p += 0.05 * torch.randn(p.shape, generator=generator).to(p.device)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_the_definitions(
    name: str, dtype: torch.dtype, bound: float, base: Path, tmp_path: Path
) -> None:
    """tests/worker/train/test_split.py holds other splits to the same."""
    folder, micro = job(tmp_path / "job", base, name), 3
    spec, model, _ = open_job(folder, dtype=dtype)
    assert spec.preference is not None
    objective = Preference(Rows.read(folder / "train.safetensors"), spec.preference, micro, model.device)
    with torch.no_grad():
        before = [[float(one) for one in answer_sums(model, rows)] for rows in (PAIRS, mismatched())]
        if spec.preference.loss in preference.WITH_REFERENCE:
            objective.reference = objective.score(model, Ranks())
            assert objective.reference[0].tolist() == pytest.approx(before[0], rel=bound)
    move(model)
    chosen = list(range(len(objective)))
    step = objective.begin(model, chosen, Ranks())
    assert step.drift > 0.01 or name != "kto"
    told = sum(objective.backward(model, batch, step) for batch in objective.cut(chosen))
    found = {name: p.grad.clone() for name, p in model.trainable.items() if p.grad is not None}
    assert isinstance(told, torch.Tensor)
    model.module.zero_grad()
    expected = dense(model, spec.preference, before)
    expected.backward()
    assert objective.metrics(told, step)["loss"] == pytest.approx(float(expected.detach()), rel=bound)
    theirs = {name: p.grad for name, p in model.trainable.items() if p.grad is not None}
    assert relative(found, theirs) < bound


@pytest.mark.parametrize("name", ["sigmoid", "kto", "orpo"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_resumed_run_ends_with_the_same_bytes(
    name: str, adapter: str, base: Path, train: Train, tmp_path: Path
) -> None:
    lora = {"dropout": 0.1} if adapter == "lora" else {}
    folder = job(tmp_path / "job", base, name, epochs=2, adapter=adapter, lora=lora)
    whole = train(folder)
    assert whole.status == 0
    half = train(again(folder, tmp_path / "half", folder / "checkpoints" / f"step-{2 if name != 'kto' else 4}"))
    assert half.numbers.items() <= whole.numbers.items()
    assert len(half.numbers) == len(whole.numbers) / 2
    weights = "model.safetensors" if adapter == "full" else "adapter_model.safetensors"
    found, expected = (load_file(ran.folder / "artifact" / weights) for ran in (half, whole))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_job_that_is_asked_back_while_the_reference_is_asked_goes_back_at_once(base: Path, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", base, "sigmoid")
    spec, model, _ = open_job(folder)
    rows = Rows.read(folder / "train.safetensors")
    run = Run(spec, folder, model, rows, None, Events(folder / "events.jsonl"), draining=lambda: True)
    with pytest.raises(Drained):
        run.train()
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("name", LOSSES)
def test_it_learns_to_tell_wanted_from_unwanted(name: str, base: Path, train: Train, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", base, name, epochs=10, optim={"learning_rate": 5e-3})
    ran = train(folder)
    steps = ran.events("step")
    assert steps[0]["train_accuracy"] < steps[-1]["train_accuracy"] or steps[0]["train_accuracy"] == 1
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]
    assert steps[-1]["reward_margin"] == pytest.approx(steps[-1]["reward_chosen"] - steps[-1]["reward_rejected"])
    # The policy is the reference before its first step.
    if name in ("sigmoid", "ipo", "hinge"):
        assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-4)


def test_validation_pairs_are_judged_against_their_own_reference(base: Path, train: Train, tmp_path: Path) -> None:
    values = {"method": "dpo", "preference": LOSSES["sigmoid"], "total_steps": 4}
    folder = tiny.build_job(
        tmp_path / "job", base, PAIRS, tiny.random_pairs(3, seed=9), label=LABELS, epochs=2, **values
    )
    ran = train(folder)
    evaluations = ran.events("eval")
    assert [event["step"] for event in evaluations] == [2, 4]
    assert evaluations[-1]["valid_loss"] != pytest.approx(math.log(2), abs=1e-6)
    assert {"valid_loss", "valid_accuracy", "valid_reward_margin"} <= evaluations[-1].keys()
    assert [event["phase"] for event in ran.events("phase")][:2] == ["evaluating", "training"]
