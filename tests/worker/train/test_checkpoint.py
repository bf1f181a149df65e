"""Whatever stops a run, it goes on to the same numbers and bytes, or says why not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.worker.train.conftest import Ran, again, forked
from worker.folder import EXIT_CHECKPOINT_REFUSED, EXIT_DRAINED
from worker.train import checkpoint, loop
from worker.train.load import Resident
from worker.train.run import run

Train = Callable[[Path], Ran]
STEPS = 12


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that nothing disturbed: dropout, ragged rows, a partial last batch, a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    tiny.build_job(
        folder, base, tiny.random_rows(18), tiny.random_rows(4, seed=3),
        epochs=2.4, total_steps=STEPS, lora={"dropout": 0.2}, recovery_fraction=1 / STEPS,
    )  # fmt: skip
    assert run(folder, Resident()) == 0
    ran = Ran(folder, 0)
    assert len(ran.numbers) == STEPS
    return ran


def same_from(resumed: Ran, whole: Ran, step: int) -> None:
    assert resumed.numbers == {n: numbers for n, numbers in whole.numbers.items() if n > step}
    assert resumed.adapter_sha256 == whole.adapter_sha256
    told = [json.loads((ran.folder / "artifact" / "training.json").read_text())["progress"] for ran in (resumed, whole)]
    for progress in told:
        del progress["seconds"]
    assert told[0] == told[1]


@pytest.mark.parametrize("step", [1, 4, 5, 7, 11, 12])
def test_a_run_resumed_from_a_checkpoint_equals_the_one_never_stopped(
    whole: Ran, train: Train, tmp_path: Path, step: int
) -> None:
    resumed = train(again(whole.folder, tmp_path / "job", whole.folder / "checkpoints" / f"step-{step}"))
    assert resumed.status == 0
    assert resumed.events("started")[0]["resumed_from_step"] == step
    assert resumed.events("message") == []
    # What followed the step was done before the checkpoint was written, and is not done again.
    assert [event["step"] for event in resumed.events("eval")] == [n for n in (5, 10, 12) if n > step]
    assert [event["step"] for event in resumed.events("checkpoint")] == list(range(step + 1, STEPS + 1))
    same_from(resumed, whole, step)


def await_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while not ((folder / "events.jsonl").exists() and any(e["step"] >= step for e in tiny.read_events(folder, "step"))):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def last_checkpoint(folder: Path) -> Path:
    return folder / str(tiny.read_events(folder, "checkpoint")[-1]["path"])


def test_killed_then_drained_then_finished_equals_the_one_never_stopped(
    whole: Ran, train: Train, tmp_path: Path
) -> None:
    first = again(whole.folder, tmp_path / "first", None)
    attempt = forked(first)
    await_step(first, 3)
    os.kill(attempt, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(attempt, 0)[1]) == -signal.SIGKILL
    killed_at = json.loads((last_checkpoint(first) / "state.json").read_text())["progress"]["step"]

    # The second attempt runs as a slot's idle child does, and is asked politely.
    (tmp_path / "slot").mkdir()
    second = again(first, tmp_path / "slot" / "job", last_checkpoint(first), recovery_fraction=1.0)
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.train"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    base = json.loads((second / "spec.json").read_text())["base"]["path"]
    child.stdin.write(f"PRELOAD {base}\n")
    child.stdin.flush()
    assert [child.stdout.readline(), child.stdout.readline()] == ["READY\n", f"LOADED {base}\n"]
    child.stdin.write(f"START {second}\n")
    child.stdin.flush()
    await_step(second, killed_at + 2)
    child.terminate()
    assert child.wait(30) == EXIT_DRAINED
    child.stdin.close()
    child.stdout.close()

    third = train(again(first, tmp_path / "third", last_checkpoint(second)))
    assert third.status == 0
    drained_at = third.events("started")[0]["resumed_from_step"]
    assert killed_at + 2 <= drained_at < STEPS
    for attempt in (first, second):
        for step, numbers in Ran(attempt, 0).numbers.items():
            assert numbers == whole.numbers[step]
    same_from(third, whole, drained_at)


@pytest.mark.parametrize("calls", [1, 3, 6, 18, 21, 23, 24])
def test_drained_at_any_moment_equals_the_one_never_stopped(
    whole: Ran, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Asked before a row of a step, between two of them, during an evaluation: what was begun is not counted."""
    asked = 0

    def draining() -> bool:
        nonlocal asked
        asked += 1
        return asked > calls

    with monkeypatch.context() as patched:
        patched.setattr("worker.train.run._listen", lambda: draining)
        folder = again(whole.folder, tmp_path / "first", None, recovery_fraction=1.0)
        assert run(folder, Resident()) == EXIT_DRAINED
    # Before the first step is done there is nothing to hand back, and the next attempt begins afresh.
    checkpoint = last_checkpoint(folder) if tiny.read_events(folder, "step") else None
    resumed = train(again(whole.folder, tmp_path / "second", checkpoint))
    step = resumed.events("started")[0]["resumed_from_step"]
    same_from(resumed, whole, step)
    evaluated = [e["step"] for part in (folder, resumed.folder) for e in tiny.read_events(part, "eval")]
    assert evaluated == [5, 10, 12]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "missing"])
def test_a_damaged_checkpoint_never_resumes(whole: Ran, tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "step-7"
    shutil.copytree(whole.folder / "checkpoints" / "step-7", copy)
    content = (copy / name).read_bytes()
    middle = len(content) // 2
    damaged = {
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:-1],
        "longer": content + b"\0",
        "empty": b"",
    }
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(damaged[damage])
    folder = again(whole.folder, tmp_path / "job", copy)
    status = run(folder, Resident())
    if name == "manifest.json" and damage == "cut":
        # The last byte is a line's end: nothing is lost with it, and every file still matches.
        assert status == 0
        return
    assert status == EXIT_CHECKPOINT_REFUSED
    (message,) = tiny.read_events(folder)
    assert (message["type"], message["level"], message["data"]["code"]) == ("message", "error", "checkpoint_damaged")


@pytest.mark.parametrize("change", [{"seed": 8}, {"total_steps": 13}, {"prompt_loss_weight": 0.2}, {"batch_size": 3}])
def test_a_checkpoint_of_other_settings_never_resumes(
    whole: Ran, train: Train, tmp_path: Path, change: dict[str, float]
) -> None:
    ran = train(again(whole.folder, tmp_path / "job", whole.folder / "checkpoints" / "step-7", **change))
    assert ran.status == EXIT_CHECKPOINT_REFUSED
    assert ran.events("message")[0]["data"]["code"] == "checkpoint_mismatch"
    assert ran.events("step") == []


def test_a_checkpoint_of_other_data_never_resumes(whole: Ran, train: Train, tmp_path: Path) -> None:
    folder = again(whole.folder, tmp_path / "job", whole.folder / "checkpoints" / "step-7")
    tiny.write_rows(folder / "train.safetensors", tiny.random_rows(18, seed=99))
    assert train(folder).status == EXIT_CHECKPOINT_REFUSED


def test_another_split_of_the_step_resumes_and_says_that_it_is_inexact(
    whole: Ran, train: Train, tmp_path: Path
) -> None:
    checkpoints = whole.folder / "checkpoints"
    ran = train(again(whole.folder, tmp_path / "job", checkpoints / "step-7", micro_batch_size=2))
    assert ran.status == 0
    (message,) = ran.events("message")
    assert message["data"]["code"] == "resume_inexact"
    assert message["data"]["different"] == {"micro_batch_size": {"then": "1", "now": "2"}}


def test_a_kill_inside_a_save_leaves_no_checkpoint_of_that_name(
    whole: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    folder = again(whole.folder, tmp_path / "job", None)
    for moment in ("weights.write", "save_file", "manifest._sync", "manifest.Manifest"):
        with monkeypatch.context() as patched:
            patched.setattr(f"worker.train.checkpoint.{moment}", kill)
            with pytest.raises(Killed):
                run(folder, Resident())
        assert not list(folder.glob("checkpoints/step-*")), moment
    assert run(folder, Resident()) == 0
    assert not list(folder.glob("checkpoints/tmp-*"))


def test_recovery_checkpoints_come_by_time_too(whole: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "monotonic", iter(range(0, 100_000, 40)).__next__)
    folder = again(whole.folder, tmp_path / "job", None, recovery_fraction=1.0, recovery_seconds=100)
    assert run(folder, Resident()) == 0
    kinds = {event["step"]: event["kind"] for event in tiny.read_events(folder, "checkpoint")}
    assert {step for step, kind in kinds.items() if kind == "epoch"} == {5, 10, 12}
    assert {step for step, kind in kinds.items() if kind == "recovery"} == {3, 8}


def test_recovery_checkpoints_by_steps_come_less_often_where_they_take_too_much_of_the_time(
    whole: Ran, tmp_path: Path
) -> None:
    folder = again(whole.folder, tmp_path / "job", None, recovery_overhead=1e-6)
    assert run(folder, Resident()) == 0
    kinds = [event["kind"] for event in tiny.read_events(folder, "checkpoint")]
    # What the first will cost is reckoned from its size.
    assert kinds.count("recovery") == 0
    # By time they come nevertheless.
    folder = again(whole.folder, tmp_path / "other", None, recovery_overhead=1e-6, recovery_seconds=1e-6)
    assert run(folder, Resident()) == 0
    assert len(tiny.read_events(folder, "checkpoint")) == STEPS


@pytest.mark.parametrize(
    ("every", "listed"),
    [({"checkpoint_every": 4}, [4, 8, 12]), ({"checkpoint_every": 5, "recovery_fraction": 1.0}, [5, 10, 12])],
)
def test_the_users_checkpoints_come_every_so_many_steps(
    whole: Ran, tmp_path: Path, every: dict[str, float], listed: list[int]
) -> None:
    folder = again(whole.folder, tmp_path / "job", None, **every)
    assert run(folder, Resident()) == 0
    events = tiny.read_events(folder, "checkpoint")
    assert [event["step"] for event in events if event["kind"] == "epoch"] == listed


def test_the_users_checkpoints_come_by_time(whole: Ran, tmp_path: Path) -> None:
    for seconds, listed in ((1e-6, list(range(1, STEPS + 1))), (3600.0, [STEPS])):
        folder = again(whole.folder, tmp_path / str(listed[0]), None, checkpoint_seconds=seconds)
        assert run(folder, Resident()) == 0
        events = tiny.read_events(folder, "checkpoint")
        assert [event["step"] for event in events if event["kind"] == "epoch"] == listed


def test_checkpoints_hold_no_pickles(whole: Ran) -> None:
    folder = whole.folder / "checkpoints" / "step-7"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    state = checkpoint.State.model_validate_json((folder / "state.json").read_text())
    assert state.progress.step == 7
    assert state.cursor == 8
