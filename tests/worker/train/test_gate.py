"""What is published is what was trained: reloaded, merged, and refused where it isn't."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.worker.train.conftest import Ran
from worker.folder import EXIT_USER_ERROR
from worker.train import artifact, manifest, weights

Train = Callable[[Path], Ran]
IDS = torch.tensor([[1, 2, 300, 40, 41, 3]])


def job(folder: Path, base: Path, **values: Any) -> Path:
    optim = {"learning_rate": 1e-2}
    return tiny.build_job(folder, base, tiny.random_rows(12), **{"epochs": 2, "optim": optim} | values)


@pytest.mark.parametrize("adapter", ["lora", "qlora", "full", "ia3", "prompt", "prefix"])
def test_parity_json_is_what_the_files_say(adapter: str, base: Path, train: Train, tmp_path: Path) -> None:
    ran = train(job(tmp_path / "job", base, adapter=adapter))
    assert ran.status == 0
    folder = ran.folder / "artifact"
    rows = json.loads((folder / "parity.json").read_text())["rows"]
    assert len(rows) == 4
    if adapter == "qlora":
        return  # Four bits are loaded by another way; the trainer itself has compared.
    plain: Any = AutoModelForCausalLM.from_pretrained(folder if adapter == "full" else base, dtype=torch.float32)
    model = plain if adapter == "full" else PeftModel.from_pretrained(plain, folder)
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model.eval()(ids).logits[:, -ids.shape[1] :]
        found = torch.log_softmax(logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        assert found.tolist() == pytest.approx(row["logprobs"], abs=1e-4)


@pytest.mark.parametrize("values", [{}, {"lora": {"dora": True}}, {"adapter": "qlora"}, {"adapter": "ia3"}])
def test_merged_weights_give_the_adapters_logits(
    values: dict[str, Any], base: Path, train: Train, tmp_path: Path
) -> None:
    ran = train(job(tmp_path / "job", base, outputs=["merged"], **values))
    assert ran.status == 0
    folder = ran.folder / "artifact"
    assert manifest.faults(folder) == []
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)(IDS).logits
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        untouched = plain(IDS).logits
        adapted = PeftModel.from_pretrained(plain, folder)(IDS).logits
    assert float((merged - adapted).abs().max()) < 1e-3
    assert float((merged - untouched).abs().max()) > 1e-2
    assert (folder / "merged" / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    # Head and embedding are one matrix in the base, and stay so.
    assert "lm_head.weight" not in load_file(folder / "merged" / "model.safetensors")
    assert not any(str(tmp_path) in path.read_text() for path in (folder / "merged").glob("*.json"))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_files_that_are_not_what_was_trained_are_not_published(
    adapter: str, base: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(model: Any, folder: Path) -> None:
        weights.write(model, folder)
        path = folder / ("model.safetensors" if adapter == "full" else weights.ADAPTER)
        tensors = load_file(path)
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + 0.5
        save_file(tensors, path, {"format": "pt"})

    folder = job(tmp_path / "job", base, adapter=adapter, epochs=1)
    monkeypatch.setattr(artifact, "weights", SimpleNamespace(write=careless))
    ran = train(folder)
    assert ran.status == EXIT_USER_ERROR
    assert ran.events("error")[0]["code"] == "artifact_differs"
    assert not (folder / "artifact").exists()
