"""Adapters of PEFT that are named by ``ext.peft``: the table is PEFT's, and each goes the whole way."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PeftType
from transformers import AutoModelForCausalLM

from core import peft
from tests import tiny
from tests.worker.train.conftest import Ran, again
from worker.folder import EXIT_USER_ERROR

GIVEN: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 32},
    "fourierft": {"n_frequency": 64, "scaling": 100},
    "gralora": {"r": 8, "gralora_k": 2},
    "oft": {"oft_block_size": 8},
}


def job(folder: Path, base: Path, name: str, **more: Any) -> Path:
    given = {"type": name, **GIVEN.get(name, {"r": 8}), **more}
    return tiny.build_job(
        folder, base, tiny.random_rows(12), epochs=2, adapter="peft", peft=given, optim={"learning_rate": 2e-2}
    )


@pytest.mark.parametrize("name", peft.TYPES)
def test_the_table_is_pefts_own(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())])}
    assert peft.TYPES[name].keys() <= fields
    assert "target_modules" in fields


@pytest.mark.parametrize("name", peft.TYPES)
def test_it_learns_resumes_and_is_loaded_by_plain_peft(
    name: str, base: Path, train: Callable[[Path], Ran], tmp_path: Path
) -> None:
    whole = train(job(tmp_path / "job", base, name))
    assert whole.status == 0, whole.events("error")
    half = train(again(whole.folder, tmp_path / "half", whole.folder / "checkpoints" / "step-3"))
    assert half.numbers.items() <= whole.numbers.items()
    weights = [ran.folder / "artifact" / "adapter_model.safetensors" for ran in (whole, half)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}) == 1

    ids = torch.tensor([[1, 2, 300, 40, 41, 3]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        untrained = plain(ids).logits
        loaded = PeftModel.from_pretrained(plain, whole.folder / "artifact").eval()(ids).logits
    assert float((loaded - untrained).abs().max()) > 1e-3


def test_what_peft_can_not_make_is_refused_with_its_reason(
    base: Path, train: Callable[[Path], Ran], tmp_path: Path
) -> None:
    ran = train(job(tmp_path / "job", base, "c3a", block_size=7))
    assert ran.status == EXIT_USER_ERROR
    (error,) = ran.events("error")
    assert (error["code"], error["param"]) == ("unsupported_peft", "peft")
