"""A claimed job from stage to finish, with another engine in the child: the folder is the whole interface."""

import hashlib
import json
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from sqlalchemy import select, update
from sqlalchemy.exc import DataError, OperationalError

from core.config import Settings
from core.db.session import transaction
from core.db.tables import Attempt, BaseModel, Checkpoint, Event, File, Job, Metric
from core.services import checkpoints
from core.storage import store as layout
from core.storage.s3 import S3Store
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


def queued(parts: Parts, account: Account, base: BaseModel, seed: int, **resolved: Any) -> str:
    parts.store.put("prepared/x/train.safetensors", b"tokens")
    tokens = {"key": "prepared/x/train.safetensors", "sha256": _TOKENS}
    with transaction(parts.sessions) as session:
        file = session.get(File, "file-x") or file_row(account, "file-x")
        session.add(file)
        session.flush()
        job = job_row(
            account,
            base,
            file,
            f"ftjob-seed{seed}",
            seed=seed,
            resolved=RESOLVED | {"seed": seed} | resolved,
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("INSERT", {}, Exception("a NUL")), "server_error"),
        (OperationalError("SELECT", {}, Exception("connection refused")), None),
    ],
)
def test_a_value_the_database_refuses_is_a_defect_and_a_database_that_is_away_a_loss(
    parts: Parts,
    account: Account,
    base_model: BaseModel,
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str | None,
) -> None:
    """A refusal comes again at each try, so the first one is the last; a server that is away comes back."""

    def fails(*_: Any) -> Path:
        raise error

    id = queued(parts, account, base_model, seed=1)
    monkeypatch.setattr(runner.cache, "fetch", fails)
    assert runner.work_once()
    job = ended(parts, id)
    if code is None:
        assert (job.status, job.losses) == ("queued", 1)
    else:
        assert job.status == "failed"
        assert job.error is not None
        assert job.error["code"] == code


def test_damaged_tokens_are_never_trained_on(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    parts.store.put("prepared/x/train.safetensors", b"tokenz")
    runner.work_once()
    job = ended(parts, id)
    # They are prepared anew (tests/worker/test_tokens.py).
    assert (job.status, job.phase) == ("validating_files", "created")


def told(parts: Parts, id: str) -> list[str]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(Event.message).where(Event.job_id == id).order_by(Event.number)))


def tries(parts: Parts, id: str) -> list[str | None]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(Attempt.why).where(Attempt.job_id == id).order_by(Attempt.n)))


def test_out_of_memory_is_tried_again_with_fewer_examples_at_once(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=77, batch_size=8, micro_batch_size=8)
    while runner.work_once():
        pass
    job = ended(parts, id)
    assert job.status == "succeeded"
    assert job.resolved is not None
    assert (job.resolved["micro_batch_size"], job.resolved["gradient_accumulation_steps"]) == (2, 4)
    whys = [f"ran out of memory with micro_batch_size {size}" for size in (8, 4)]
    assert tries(parts, id) == [*whys, "succeeded"]
    assert sum("the result is the same" in message for message in told(parts, id)) == 2


def test_out_of_memory_with_a_single_example_is_final_and_says_what_to_do(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=78, batch_size=8, micro_batch_size=2)
    while runner.work_once():
        pass
    job = ended(parts, id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert tries(parts, id) == ["ran out of memory with micro_batch_size 2", "out_of_memory"]


def test_a_full_disk_ends_the_job_clearly_and_the_next_one_runs(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=55)
    assert runner.work_once()
    job = ended(parts, id)
    assert job.error is not None
    assert job.error["code"] == "disk_full"
    assert "could not be written" in job.error["message"]
    after = queued(parts, account, base_model, seed=1)
    assert runner.work_once()
    assert ended(parts, after).status == "succeeded"


def test_a_disk_that_is_full_while_the_folder_is_filled_is_no_defect(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    large = b"x" * 4_000_000
    parts.store.put("prepared/x/train.safetensors", large)
    with transaction(parts.sessions) as session:
        entry = {"key": "prepared/x/train.safetensors", "sha256": hashlib.sha256(large).hexdigest()}
        job = session.get_one(Job, id)
        job.prepared = (job.prepared or {}) | {"files": {"train.safetensors": entry}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    runner.slot.prepare()
    # Tokens may not be written whole, as on a disk with too little room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        runner.work_once()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = ended(parts, id).error
    assert error is not None
    assert error["code"] == "disk_full"
    after = queued(parts, account, base_model, seed=2)
    assert runner.work_once()
    assert ended(parts, after).status == "succeeded"


def test_a_job_that_will_not_fit_is_refused_before_anything_is_fetched(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    with transaction(parts.sessions) as session:
        files = {"train.safetensors": {"key": "prepared/none", "sha256": "0", "bytes": 10**15}}
        job = session.get_one(Job, id)
        job.prepared = (job.prepared or {}) | {"files": files}
    runner.work_once()
    error = ended(parts, id).error
    assert error is not None
    assert (error["code"], "data 1,000,000,000,000,000" in error["message"]) == ("disk_full", True)


def test_a_worker_with_a_crowded_disk_takes_nothing(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    runner.parts = replace(parts, settings=parts.settings.model_copy(update={"disk_most": 1e-6}))
    assert not runner.work_once()
    assert (ended(parts, id).status, ended(parts, id).generation) == ("queued", 0)
    runner.parts = parts
    assert runner.work_once()


class Away(S3Store):
    """A store that is away whenever a checkpoint is sent to it, for the first so many times."""

    def __init__(self, settings: Settings, times: int) -> None:
        super().__init__(settings)
        self.times = times

    def put_file(self, key: str, path: Path, look: Callable[[], None] | None = None) -> None:
        if "/checkpoints/" in key and self.times:
            self.times -= 1
            raise EndpointConnectionError(endpoint_url="nowhere")
        super().put_file(key, path, look)


def test_a_store_that_is_away_for_a_while_costs_a_running_job_nothing(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1)
    away = Away(parts.settings, times=2)
    runner.parts = replace(parts, store=away)
    assert runner.work_once()
    assert (away.times, ended(parts, id).status, tries(parts, id)) == (0, "succeeded", ["succeeded"])
    with transaction(parts.sessions) as session:
        assert session.scalars(select(Checkpoint.step)).all() == [2]


def add_checkpoint(parts: Parts, id: str, step: int, content: bytes = b"weights", **fields: Any) -> str:
    """A checkpoint in the store with its row; returns the key of its one file."""
    prefix = layout.run(id, 1, f"checkpoints/step-{step}/")
    entry = {"path": "a", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    raw = json.dumps({"version": 1, "files": [entry]}).encode()
    parts.store.put(prefix + "a", content)
    parts.store.put(prefix + "manifest.json", raw)
    plain = {"epoch": 1.0, "kind": "epoch", "generation": 1, "metrics": {}}
    with transaction(parts.sessions) as session:
        session.add(
            Checkpoint(
                id=f"ftckpt_{step}",
                job_id=id,
                step=step,
                storage_prefix=prefix,
                manifest={"files": [entry]},
                manifest_sha256=hashlib.sha256(raw).hexdigest(),
                **plain | fields,
            )
        )
    return prefix + "a"


def test_a_damaged_checkpoint_is_passed_over_and_the_user_is_told(
    parts: Parts, account: Account, base_model: BaseModel, runner: Runner
) -> None:
    id = queued(parts, account, base_model, seed=1, total_steps=9)
    with transaction(parts.sessions) as session:
        session.get_one(Job, id).generation = 1
    for step in (3, 4, 5):
        add_checkpoint(parts, id, step)
    parts.store.put(layout.run(id, 1, "checkpoints/step-5/a"), b"weightz")
    parts.store.delete(layout.run(id, 1, "checkpoints/step-4/manifest.json"))
    runner.work_once()
    with transaction(parts.sessions) as session:
        assert session.scalars(select(Attempt.resumed_from_step)).all() == [3]
        assert 5 not in session.scalars(select(Checkpoint.step)).all()
    messages = told(parts, id)
    assert sum("can't be used" in message for message in messages) == 2
    assert any("The checkpoint of step 5 can't be used (a arrived damaged" in message for message in messages)
    assert "Resuming after step 3 from a checkpoint." in messages


def kept(parts: Parts, id: str) -> list[int]:
    with transaction(parts.sessions) as session:
        return [row.step for row in checkpoints.newest_first(session, id)][::-1]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        # 1, 3, 5, 7, 9 are the user's, the others recovery points; 3 is the best; 8 and 9 are to resume from.
        (None, [3, 5, 7, 8, 9]),
        ("all", [1, 3, 5, 7, 8, 9]),
        ("best", [3, 8, 9]),
        ({"last": 2, "best": False}, [7, 8, 9]),
    ],
)
def test_checkpoints_are_kept_by_the_jobs_policy_and_two_at_least_to_resume_from(
    parts: Parts, account: Account, base_model: BaseModel, keep: Any, left: list[int]
) -> None:
    chosen = {} if keep is None else {"checkpoints": {"every": "epoch", "keep": keep}}
    id = queued(parts, account, base_model, seed=1, **chosen)
    parts.store.delete(*parts.store.list(layout.all_runs(id)))
    for step in range(1, 10):
        kind = "epoch" if step % 2 else "recovery"
        add_checkpoint(parts, id, step, kind=kind, metrics={"valid_loss": abs(step - 3) + 0.5, "train_loss": 1 / step})
    with transaction(parts.sessions) as session:
        gone = checkpoints.prune(session, session.get_one(Job, id))
    parts.store.delete(*gone)
    assert kept(parts, id) == left
    stored = {int(key.split("step-")[1].split("/")[0]) for key in parts.store.list(layout.all_runs(id))}
    assert stored == set(left)


def test_the_last_checkpoint_that_is_known_to_be_good_is_kept_whatever_the_policy(
    parts: Parts, account: Account, base_model: BaseModel
) -> None:
    id = queued(parts, account, base_model, seed=1, checkpoints={"every": "epoch", "keep": {"last": 1}})
    for step in range(1, 8):
        add_checkpoint(parts, id, step, kind="epoch" if step % 2 else "recovery")
    with transaction(parts.sessions) as session:
        checkpoints.prune(session, session.get_one(Job, id), good_step=2)
    assert kept(parts, id) == [2, 6, 7]
    # It was one to resume from; the user gets it.
    with transaction(parts.sessions) as session:
        assert checkpoints.show(session, id, 2)
        # What has gone can't be shown.
        assert not checkpoints.show(session, id, 1)
    with transaction(parts.sessions) as session:
        listed = [row.step for row in checkpoints.newest_first(session, id) if row.kind == "epoch"]
    assert listed == [7, 2]


def test_a_checkpoint_that_another_job_begins_from_is_kept(
    parts: Parts, account: Account, base_model: BaseModel
) -> None:
    id = queued(parts, account, base_model, seed=1, checkpoints={"every": "epoch", "keep": {"last": 1}})
    for step in range(1, 6):
        add_checkpoint(parts, id, step)
    other = queued(parts, account, base_model, seed=2)
    with transaction(parts.sessions) as session:
        session.get_one(Job, other).init = {"prefix": layout.run(id, 1, "checkpoints/step-2/")}
    with transaction(parts.sessions) as session:
        checkpoints.prune(session, session.get_one(Job, id))
    assert kept(parts, id) == [2, 4, 5]
