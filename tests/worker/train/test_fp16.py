"""float16 is near float32; its scale is found, kept through a kill, and never costs a step; what can't fit is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.amp import GradScaler

from tests import tiny
from tests.worker.train.conftest import Ran, again
from tests.worker.train.test_loss import WEIGHTED, move, relative
from worker.folder import EXIT_USER_ERROR, TrainSpec
from worker.train import find, supervised
from worker.train.adapters import attach
from worker.train.batches import Batches, Rows
from worker.train.load import DTYPES, load_base
from worker.train.model import Model

Train = Callable[[Path], Ran]
NEAR = 2.0**-8
"""A gradient of float16 is so near to float32's: it has 11 bits, and a few layers' roundings add up."""


def model_of(folder: Path) -> tuple[TrainSpec, Model]:
    spec = TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
    return spec, attach(load_base(spec.base.path, DTYPES[spec.precision]), spec)


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    spec, model = model_of(folder)
    move(model)
    rows = Rows.read(folder / "train.safetensors")
    batches = Batches(rows, spec.prompt_loss_weight, 2, model.device, spec.packing)
    for batch in batches.cut(range(8)):
        supervised.backward(model, batch, batches.weight(list(range(8))))
    scale = model.scaler.get_scale()
    # A device of its own or none: what is compared lies in main memory.
    return {name: p.grad.cpu() / scale for name, p in model.trainable.items() if p.grad is not None}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_gradient_in_float16_is_float32s_within_its_error(adapter: str, base: Path, tmp_path: Path) -> None:
    half, exact = (
        gradients(tiny.build_job(tmp_path / precision, base, WEIGHTED, adapter=adapter, precision=precision))
        for precision in ("fp16", "fp32")
    )
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    assert 0 < relative(half, exact) < NEAR


@pytest.fixture(scope="module")
def huge(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a last norm so small, and a head so large, that gradients come back too large for the scale
    that a run begins with."""
    folder = tiny.build_tiny(tmp_path_factory.mktemp("huge") / tiny.NAME)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"] *= 30
    weights["model.norm.weight"] *= 3
    save_file(weights, path, {"format": "pt"})
    return folder


def overflows(ran: Ran) -> list[dict[str, Any]]:
    return [event["data"] for event in ran.events("message") if event["data"].get("code") == "overflow"]


def test_a_gradient_that_overflows_is_thrown_away_told_and_asked_again(
    huge: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny.build_job(tmp_path / "job", huge, tiny.random_rows(8), precision="fp16", lora={"dropout": 0.1})
    ran = train(job)
    assert ran.status == 0, ran.events("error")
    told = overflows(ran)
    assert told
    assert [(data["step"], data["scale"]) for data in told] == [(1, 2.0 ** (15 - n)) for n in range(len(told))]
    progress = json.loads((job / "artifact" / "training.json").read_text())["progress"]
    assert progress["overflows"] == len(told)
    # No step is left out, and what was thrown away leaves no trace: a run that begins at the scale found is the same.
    assert list(ran.numbers) == [1, 2]
    begin_at(monkeypatch, told[-1]["scale"])
    second = train(again(job, tmp_path / "again", None))
    assert overflows(second) == []
    assert second.numbers == ran.numbers
    assert second.adapter_sha256 == ran.adapter_sha256


def begin_at(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    original = GradScaler.__init__

    def begun(self: GradScaler, *args: Any, **values: Any) -> None:
        original(self, *args, **{"init_scale": scale} | values)

    monkeypatch.setattr(GradScaler, "__init__", begun)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_resumed_run_goes_on_at_its_scale_and_ends_with_the_same_bytes(
    adapter: str, huge: Path, train: Train, tmp_path: Path
) -> None:
    lora = {"dropout": 0.1} if adapter == "lora" else {}
    job = tiny.build_job(
        tmp_path / "job", huge, tiny.random_rows(8), precision="fp16", adapter=adapter, lora=lora, epochs=2
    )
    whole = train(job)
    assert whole.status == 0, whole.events("error")
    assert overflows(whole)
    half = train(again(job, tmp_path / "half", job / "checkpoints" / "step-2"))
    assert overflows(half) == []
    assert half.numbers.items() <= whole.numbers.items()
    assert len(half.numbers) == 2
    name = "model.safetensors" if adapter == "full" else "adapter_model.safetensors"
    found, expected = (load_file(ran.folder / "artifact" / name) for ran in (half, whole))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert train(again(job, tmp_path / "again", None)).numbers == whole.numbers


def test_a_run_that_only_overflows_ends_with_a_sentence(base: Path, train: Train, tmp_path: Path) -> None:
    folder = tiny.build_tiny(tmp_path / "beyond" / tiny.NAME)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    ran = train(tiny.build_job(tmp_path / "job", folder, tiny.random_rows(8), precision="fp16"))
    assert ran.status == EXIT_USER_ERROR
    error = ran.events("error")[0]
    assert (error["code"], error["param"]) == ("overflow", "precision")
    assert "loss of step 1" in error["message"]
    assert "bf16 or fp32" in error["message"]
    assert ran.events("step") == []


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(
    huge: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_at(monkeypatch, 1.0)
    monkeypatch.setattr(supervised.loss, "sums", infinite)
    ran = train(tiny.build_job(tmp_path / "job", huge, tiny.random_rows(8), precision="fp16"))
    assert ran.status == EXIT_USER_ERROR
    error = ran.events("error")[0]
    assert (error["code"], error["param"]) == ("overflow", "precision")
    assert "at any scale" in error["message"]


def infinite(hidden: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss that is a number and has a gradient that isn't."""
    total = (hidden * hidden.detach()).double().sum()
    total.register_hook(lambda gradient: gradient * torch.inf)
    return total, torch.ones(5, dtype=torch.float64)


def test_a_rate_is_looked_for_at_a_scale_of_its_own(
    huge: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test finds of overflows is put back with all else: the run is the one with the rate given."""
    monkeypatch.setattr(find, "STEPS", 4)
    optim = {"find": True, "warmup_steps": 0}
    sought = train(tiny.build_job(tmp_path / "find", huge, tiny.random_rows(8), precision="fp16", optim=optim))
    assert sought.status == 0, sought.events("error")
    given = {"learning_rate": sought.events("found")[0]["used"], "warmup_steps": 0}
    plain = train(tiny.build_job(tmp_path / "plain", huge, tiny.random_rows(8), precision="fp16", optim=given))
    assert sought.numbers == plain.numbers
    assert overflows(sought) == overflows(plain) != []
