"""Every adapter: its loss is the plain library's, it resumes to the same bytes, its files load without us."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.worker.train.conftest import Ran, again, open_job
from worker.train import manifest, supervised, weights
from worker.train.batches import Rows
from worker.train.faults import Refused

Train = Callable[[Path], Ran]
KINDS: dict[str, dict[str, Any]] = {
    "lora+": {"lora": {"plus_ratio": 8.0, "dropout": 0.1}},
    "dora": {"lora": {"dora": True}},
    "lora on the last layer": {"layers": [-1]},
    "qlora": {"adapter": "qlora"},
    "full": {"adapter": "full"},
    "layers": {"adapter": "layers", "layers": [1]},
    "ia3": {"adapter": "ia3"},
    "prompt": {"adapter": "prompt", "virtual_tokens": 5},
    "prefix": {"adapter": "prefix", "virtual_tokens": 5},
}
PEFT = [name for name in KINDS if name not in ("full", "layers")]
RATES = {"adafactor": 1e-1, "adamw_8bit": 1e-2, "sgd": 1.0}


def job(folder: Path, base: Path, **values: Any) -> Path:
    return tiny.build_job(folder, base, tiny.random_rows(12), tiny.random_rows(4, seed=3), **{"epochs": 2} | values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradient_are_the_librarys_own(kind: str, base: Path, tmp_path: Path) -> None:
    """The public model, asked for all of its logits, gives the same loss and gradient as the engine's way to them."""
    folder = job(tmp_path / "job", base, **KINDS[kind])
    _, model, batches = open_job(folder, 4)
    chosen = list(range(12))
    weight = batches.weight(chosen)
    told = sum(supervised.backward(model, micro, weight) for micro in batches.cut(chosen))
    ours = {name: p.grad.clone() for name, p in model.trainable.items() if p.grad is not None}
    model.module.zero_grad()

    rows, total = Rows.read(folder / "train.safetensors"), torch.zeros((), dtype=torch.float64)
    weights = rows.weights(0.1)
    for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        ids = torch.tensor(rows.input_ids[a:b].astype("int64"))[None]
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -(b - a) :].double()
        nll = functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        total = total + (torch.tensor(weights[a + 1 : b], dtype=torch.float64) * nll).sum()
    (total / weight).backward()
    assert float(told[0]) == pytest.approx(float(total), rel=1e-6)
    assert ours.keys() == {name for name, p in model.trainable.items() if p.grad is not None}
    for name, gradient in ours.items():
        theirs = model.trainable[name].grad
        assert float((gradient - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-9, name


def test_qlora_learns_what_lora_on_the_dequantised_base_learns(base: Path, tmp_path: Path) -> None:
    """The bug behind it: after an evaluation a processor's fast product gave gradients of another matrix, silently."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    folder = job(tmp_path / "job", base, adapter="qlora")

    def gradients(plain: bool) -> dict[str, torch.Tensor]:
        _, model, batches = open_job(folder, 4)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.trainable.values():
                p += 0.05 * torch.randn(p.shape, generator=generator)
            model.module.eval()(torch.tensor([[1, 2, 3]]))
        layers = [m for m in model.module.modules() if isinstance(getattr(m, "base_layer", None), Linear4bit)]
        assert len(layers) == 14
        for layer in layers if plain else []:
            weight = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
            layer.base_layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
            layer.base_layer.weight.data = weight.float()
        model.module.train()
        chosen = list(range(12))
        for micro in batches.cut(chosen):
            supervised.backward(model, micro, batches.weight(chosen))
        return {name: p.grad for name, p in model.trainable.items() if p.grad is not None}

    four_bits, dequantised = gradients(False), gradients(True)
    assert four_bits.keys() == dequantised.keys()
    for name, gradient in four_bits.items():
        assert float((gradient - dequantised[name]).norm()) < 1e-4 * float(dequantised[name].norm()), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_bytes(kind: str, base: Path, train: Train, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", base, **KINDS[kind])
    whole = train(folder)
    assert whole.status == 0
    half = train(again(folder, tmp_path / "half", folder / "checkpoints" / "step-3"))
    assert half.events("started")[0]["resumed_from_step"] == 3
    assert half.numbers.items() <= whole.numbers.items()
    assert _sha256(half.folder) == _sha256(whole.folder)


@pytest.mark.parametrize("optimizer", RATES)
def test_every_optimizer_learns_and_resumes(optimizer: str, base: Path, train: Train, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", base, epochs=4, optim={"optimizer": optimizer, "learning_rate": RATES[optimizer]})
    whole = train(folder)
    losses = [event["train_loss"] for event in whole.events("step")]
    assert sum(losses[-3:]) < sum(losses[:3])
    half = train(again(folder, tmp_path / "half", folder / "checkpoints" / "step-6"))
    assert half.numbers.items() <= whole.numbers.items()
    assert _sha256(half.folder) == _sha256(whole.folder)


@pytest.mark.parametrize("kind", PEFT)
def test_plain_peft_loads_the_adapter(kind: str, base: Path, train: Train, tmp_path: Path) -> None:
    ran = train(job(tmp_path / "job", base, **KINDS[kind] | {"optim": {"learning_rate": 1e-2}}))
    ids = torch.tensor([[1, 2, 300, 40, 41, 3]])
    _, model, _ = open_job(ran.folder)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) if kind != "qlora" else model.network
        untrained = plain(ids).logits
        if kind == "qlora":
            weights.read(model, ran.folder / "artifact")
            loaded = model.module.eval()(ids).logits
        else:
            loaded = PeftModel.from_pretrained(plain, ran.folder / "artifact").eval()(ids).logits[:, -6:]
    assert float((loaded - untrained).abs().max()) > 1e-3
    assert manifest.faults(ran.folder / "artifact") == []


@pytest.mark.parametrize("kind", ["full", "layers"])
def test_plain_transformers_loads_the_model(kind: str, base: Path, train: Train, tmp_path: Path) -> None:
    ran = train(job(tmp_path / "job", base, **KINDS[kind]))
    ids = torch.tensor([[1, 2, 300, 40, 41, 3]])
    assert ran.network is not None
    artifact = ran.folder / "artifact"
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)(ids).logits
        # The trainer's own attention rounds in another order; with the library's, the bits are the same.
        ran.network.set_attn_implementation("sdpa")
        assert torch.equal(loaded, ran.network.eval()(ids).logits)
    before = load_file(base / "model.safetensors")
    after = load_file(artifact / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if kind == "layers":
        assert {name.split(".")[2] for name in changed} == {"1"}
    else:
        assert changed == before.keys()
    assert not any(str(tmp_path) in path.read_text() for path in artifact.glob("*.json"))


@pytest.mark.parametrize("values", [{"adapter": "layers", "layers": [2]}, {"layers": [-3]}])
def test_a_layer_that_is_not_there_is_refused(values: dict[str, Any], base: Path, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", base, **values)
    with pytest.raises(Refused, match="2 layers, from 0 to 1"):
        open_job(folder)


def test_lora_plus_moves_b_faster(base: Path, tmp_path: Path, train: Train) -> None:
    """One step of Adam moves every weight by its learning rate."""
    optim = {"learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant"}
    folder = job(tmp_path / "job", base, lora={"plus_ratio": 16.0}, batch_size=12, epochs=1, optim=optim)
    train(folder)
    weights = load_file(folder / "artifact" / "adapter_model.safetensors")
    moved = max(float(w.abs().max()) for name, w in weights.items() if "lora_B" in name)
    assert moved == pytest.approx(16e-3, rel=0.01)


def _sha256(folder: Path) -> dict[str, str]:
    return {path.name: manifest.sha256(path) for path in (folder / "artifact").glob("*.safetensors")}
