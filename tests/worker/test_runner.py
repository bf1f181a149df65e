"""A claimed job from stage to finish, with another engine in the child: the folder is the whole interface."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from core.db.session import transaction
from core.db.tables import BaseModel, Checkpoint, File, Job, Metric
from core.storage import store as layout
from core.wiring import Parts
from tests.conftest import Account
from tests.rows import file_row, job_row
from worker import slot
from worker.runner import Runner
from worker.slot import Slot

RESOLVED = {
    "adapter": "lora",
    "lora": {"rank": 1, "alpha": 2, "dropout": 0, "target_modules": "all-linear", "rslora": False, "dora": False},
    "prompt_loss_weight": 0.1,
    "train_on": "assistant",
    "optim": {
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_steps": 0,
        "min_lr_ratio": 0,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0,
        "max_grad_norm": 1,
    },
    "epochs": 1,
    "total_steps": 2,
    "batch_size": 1,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 8,
    "packing": False,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "head_gradient": "exact",
    "chat_template": "base",
    "format": "chat",
    "data": {"over_length": "drop"},
    "eval": {"every": None},
    "resources": {"devices": 1, "priority": "normal"},
    "hyperparameters": {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1},
}


@pytest.fixture
def runner(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setitem(slot.MODULES, "train", "tests.worker.trivial_engine")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    own = Slot(0, "train", parts.settings)
    yield Runner(parts, own, "worker_here", threading.Event())
    own.close()


def queued(parts: Parts, account: Account, base: BaseModel, seed: int) -> str:
    parts.store.put("prepared/x/train.safetensors", b"tokens")
    tokens = {"key": "prepared/x/train.safetensors", "sha256": _TOKENS}
    with transaction(parts.sessions) as session:
        file = file_row(account, "file-x")
        session.add(file)
        session.flush()
        job = job_row(
            account,
            base,
            file,
            f"ftjob-seed{seed}",
            seed=seed,
            resolved=RESOLVED | {"seed": seed},
            prepared={
                "files": {"train.safetensors": tokens},
                "base": {"name": base.name, "sha256": "0" * 64},
                "prompts": [],
                "ends": [],
            },
        )
        session.add(job)
    return job.id


# sha256 of b"tokens"
_TOKENS = "c51e455b41df6c017327e16001dd064b8b6733faeaa69b23d9bd79c8079237d5"


def ended(parts: Parts, id: str) -> Job:
    with transaction(parts.sessions) as session:
        return session.get_one(Job, id)


def test_another_engine_takes_the_place_of_ours(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    assert runner.work_once()
    job = ended(parts, id)
    assert (job.status, job.phase, job.error) == ("succeeded", "completed", None)
    with transaction(parts.sessions) as session:
        assert list(session.scalars(select(Metric.step).order_by(Metric.step))) == [1, 2]
        assert session.scalars(select(Checkpoint.step)).all() == [2]
        names = [session.get_one(File, file_id).filename for file_id in job.result_files]
    assert names == ["step_metrics.csv", "adapter_model.safetensors", "manifest.json"]
    assert parts.store.get(layout.run(id, job.generation, "artifact/adapter_model.safetensors")) == b"weights"
    # Nothing of it stays on this machine.
    assert [path.name for path in runner.slot.folder.iterdir() if path.is_dir()] == []
    assert not runner.work_once()


def test_what_the_engine_refuses_is_the_jobs_error(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=13)
    runner.work_once()
    job = ended(parts, id)
    assert job.status == "failed"
    assert job.error == {"code": "bad_luck", "message": "This engine refuses the seed 13.", "param": "seed"}


def test_an_engine_that_crashes_fails_its_job_and_leaves_its_log(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=99)
    runner.work_once()
    job = ended(parts, id)
    assert job.error is not None
    assert job.error["code"] == "trainer_failed"
    assert "ZeroDivisionError: of this engine" in job.error["message"]
    assert b"ZeroDivisionError" in parts.store.get(layout.run(id, job.generation, "trainer.log"))


def test_a_child_that_dies_before_it_hears_of_its_job_is_a_loss_and_not_the_end_of_the_slot(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(slot.MODULES, "train", "no.such.module")
    id = queued(parts, account, base_model, seed=1)
    runner.slot.prepare().wait(10)
    assert runner.work_once()
    assert ended(parts, id).error is not None
    assert not runner.work_once()


def test_a_job_that_is_cancelled_while_its_model_is_fetched_is_never_trained(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease kills the idle child then; a new one in its place would not know that it must not start."""
    id = queued(parts, account, base_model, seed=1)
    quick = parts.settings.model_copy(update={"heartbeat_seconds": 0.05})
    runner.parts = Parts(quick, parts.sessions, parts.store, parts.doorbell)
    fetch = runner.cache.fetch
    idle = runner.slot.prepare()

    def slowly(*arguments: Any) -> Path:
        with transaction(parts.sessions) as session:
            session.execute(update(Job).where(Job.id == id).values(wish="cancel"))
        assert idle.wait(5) is not None
        return fetch(*arguments)

    monkeypatch.setattr(runner.cache, "fetch", slowly)
    assert runner.work_once()
    with transaction(parts.sessions) as session:
        assert session.scalars(select(Metric.step)).all() == []
    assert ended(parts, id).status == "cancelled"


def test_damaged_tokens_are_never_trained_on(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    parts.store.put("prepared/x/train.safetensors", b"tokenz")
    runner.work_once()
    job = ended(parts, id)
    # They are prepared anew (tests/worker/test_tokens.py).
    assert (job.status, job.phase) == ("validating_files", "created")
