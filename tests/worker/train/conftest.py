"""A tiny base model for the session, and job folders trained in this process on one thread: the same bits each time."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from worker.folder import TrainSpec
from worker.train.adapters import attach
from worker.train.batches import Batches, Rows
from worker.train.load import Resident, load_base
from worker.train.model import Model
from worker.train.run import run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_tiny(tmp_path_factory.mktemp("base") / tiny.NAME)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Ran:
    folder: Path
    status: int
    network: torch.nn.Module | None = None

    def events(self, kind: str) -> list[dict[str, Any]]:
        return tiny.read_events(self.folder, kind)

    @property
    def numbers(self) -> dict[int, tuple[float, ...]]:
        """What must be equal to the last bit, by step."""
        return numbers(self.folder)

    @property
    def adapter_sha256(self) -> str:
        return hashlib.sha256((self.folder / "artifact" / "adapter_model.safetensors").read_bytes()).hexdigest()


def numbers(folder: Path) -> dict[int, tuple[float, ...]]:
    keys = ("train_loss", "completion_loss", "train_accuracy", "grad_norm", "learning_rate", "tokens", "trained_tokens")
    return {event["step"]: tuple(event[key] for key in keys) for event in tiny.read_events(folder, "step")}


@pytest.fixture
def train() -> Callable[[Path], Ran]:
    def go(folder: Path) -> Ran:
        resident = Resident()
        resident.preload(TrainSpec.model_validate_json((folder / "spec.json").read_bytes()).base.path)
        assert resident.base is not None
        network = resident.base.network
        return Ran(folder, run(folder, resident), network)

    return go


def forked(folder: Path, environment: dict[str, str] | None = None) -> int:
    """Run a folder in a copy of this process, whose imports are done; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(environment or {})
            status = run(folder, Resident())
        finally:
            os._exit(status)
    return child


def again(job: Path, folder: Path, resume: Path | None, **changes: Any) -> Path:
    """The same job in another folder, as its next attempt would find it."""
    folder.mkdir()
    for path in job.glob("*.safetensors"):
        shutil.copy(path, folder)
    spec = TrainSpec.model_validate_json((job / "spec.json").read_bytes()).model_copy(
        update={"resume": resume} | changes
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    return folder


def open_job(
    folder: Path, micro_batch_size: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[TrainSpec, Model, Batches]:
    """The parts of a job, for tests that look inside a step; in float64 the adapter is as well."""
    spec = TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
    rows = Rows.read(folder / "train.safetensors")
    model = attach(load_base(spec.base.path, dtype, spec.adapter == "qlora"), spec)
    for p in model.trainable.values():
        p.data = p.data.to(dtype)
    size = micro_batch_size or spec.micro_batch_size
    return spec, model, Batches(rows, spec.prompt_loss_weight, size, model.device, spec.packing)
