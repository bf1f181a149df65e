"""Jobs with each adapter through the API: what is downloaded loads with the plain libraries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"optim": {"optimizer": "adafactor", "learning_rate": 1e-3}},
    "layers": {"layers": {"last": 1}},
    "qlora": {"lora": {"rank": 4, "plus_ratio": 4}, "optim": {"optimizer": "adamw_8bit"}},
    "ia3": {"outputs": ["adapter", "merged"]},
    "peft": {"peft": {"type": "miss", "r": 4}, "optim": {"learning_rate": 1e-3}},
    "prompt": {"prompt": {"virtual_tokens": 4}},
    "prefix": {"prompt": {"virtual_tokens": 4}},
}


@pytest.fixture(scope="module")
def file_id(live: Live) -> str:
    return live.client.files.create(file=("train.jsonl", chat_rows(16)), purpose="fine-tune").id


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_is_trained_and_downloaded(adapter: str, live: Live, file_id: str, tmp_path: Path) -> None:
    ext = {"adapter": adapter, "epochs": 1, **ADAPTERS[adapter]}
    job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file_id, extra_body={"ext": ext})
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert job.ext["resolved"]["adapter"] == adapter  # type: ignore[attr-defined]
    for id in job.result_files[1:]:
        file = live.client.files.retrieve(id)
        (tmp_path / file.filename).parent.mkdir(exist_ok=True)
        (tmp_path / file.filename).write_bytes(live.client.files.content(id).read())
    ids = torch.tensor([[1, 2, 300, 40, 41, 3]])
    base = AutoModelForCausalLM.from_pretrained(tiny.build_tiny(tmp_path / "base"), dtype=torch.float32)
    with torch.no_grad():
        before = base(ids).logits
        if adapter in ("full", "layers"):
            after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
        else:
            after = PeftModel.from_pretrained(base, tmp_path)(ids).logits[:, -6:]
        if (tmp_path / "merged").exists():
            merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
            assert float((merged - after).abs().max()) < 1e-3
    assert float((after - before).abs().max()) > 1e-4
    assert (tmp_path / "merged").exists() == ("merged" in ADAPTERS[adapter].get("outputs", ()))
