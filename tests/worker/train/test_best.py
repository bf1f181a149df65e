"""Early stopping: what comes out is the best evaluation's model, to the byte, however the run was interrupted."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.worker.train.conftest import Ran, again, forked
from worker.folder import EarlyStoppingSpec
from worker.train.best import Best, Keeper
from worker.train.load import Resident
from worker.train.run import run

Train = Callable[[Path], Ran]
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "lora": {"dropout": 0.1}},
    "full": {"adapter": "full"},
    "layers": {"adapter": "layers", "layers": [1]},
    "ia3": {"adapter": "ia3"},
    "prompt": {"adapter": "prompt", "virtual_tokens": 4},
    "prefix": {"adapter": "prefix", "virtual_tokens": 4},
}


def job(folder: Path, base: Path, way: str = "lora", rate: float | None = None, **values: Any) -> Path:
    """Noise that is learned by heart: the validation loss soon rises. Evaluated after each second step of 24."""
    rates = {"full": 3e-3, "layers": 1e-2, "ia3": 0.3, "prompt": 0.3, "prefix": 0.3}
    stopping = {"patience": 2, "warmup_evals": 1} | values.pop("stopping", {})
    return tiny.build_job(
        folder, base, tiny.random_rows(16), tiny.random_rows(8, seed=3), epochs=6, eval_every=2,
        optim={"learning_rate": rates.get(way, 2e-2) if rate is None else rate, "schedule": "constant"},
        early_stopping=stopping, **WAYS[way], **values,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("adapter_model.safetensors")) or sorted(folder.glob("model*.safetensors"))
    assert paths
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("way", WAYS)
def test_the_artifact_is_the_best_evaluations_checkpoint(base: Path, train: Train, tmp_path: Path, way: str) -> None:
    ran = train(job(tmp_path / "job", base, way))
    assert ran.status == 0, ran.events("error")
    losses = {event["step"]: event["valid_loss"] for event in ran.events("eval")}
    best = min(losses, key=lambda step: losses[step])
    (done,) = ran.events("done")
    assert (done["stop_reason"], done["best_step"]) == ("early_stopped", best)
    assert best < done["steps"] == max(losses) < 24
    kept = weights(ran.folder / "checkpoints" / f"step-{best}")
    assert weights(ran.folder / "artifact") == kept
    # The others are other models, so this says something.
    others = [event["step"] for event in ran.events("checkpoint") if event["step"] != best]
    assert all(weights(ran.folder / "checkpoints" / f"step-{step}") != kept for step in others)
    # It is in the user's list, whether or not an epoch ends there.
    assert best in [event["step"] for event in ran.events("checkpoint") if event["kind"] == "epoch"]


def test_a_run_that_gets_better_to_its_end_does_every_step(base: Path, train: Train, tmp_path: Path) -> None:
    rows = tiny.random_rows(16)
    folder = tiny.build_job(
        tmp_path / "job", base, rows, rows, epochs=4, eval_every=2, early_stopping={"patience": 1}, batch_size=4
    )
    ran = train(folder)
    (done,) = ran.events("done")
    assert (done["stop_reason"], done["steps"], done["best_step"]) == (None, 16, 16)
    assert weights(folder / "artifact") == weights(folder / "checkpoints" / "step-16")


def test_the_best_is_kept_where_patience_outlasts_the_run(base: Path, train: Train, tmp_path: Path) -> None:
    ran = train(job(tmp_path / "job", base, stopping={"patience": 100}))
    (done,) = ran.events("done")
    assert (done["stop_reason"], done["steps"]) == (None, 24)
    assert done["best_step"] < 24
    assert weights(ran.folder / "artifact") == weights(ran.folder / "checkpoints" / f"step-{done['best_step']}")


@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_resumed_run_knows_the_best_the_killed_one_had(base: Path, train: Train, tmp_path: Path, way: str) -> None:
    """From checkpoints before, at and after the best one: the last have its weights within."""
    whole = train(job(tmp_path / "whole", base, way, recovery_fraction=1 / 24))
    (done,) = whole.events("done")
    steps = [event["step"] for event in whole.events("checkpoint")]
    assert steps == list(range(1, done["steps"] + 1))
    told = json.loads((whole.folder / "artifact" / "training.json").read_text())["progress"]
    for step in {1, done["best_step"], done["best_step"] + 1, steps[-1]}:
        folder = again(whole.folder, tmp_path / f"from-{step}", whole.folder / "checkpoints" / f"step-{step}")
        resumed = train(folder)
        (after,) = resumed.events("done")
        assert [after[key] for key in ("stop_reason", "best_step", "steps")] == [
            done[key] for key in ("stop_reason", "best_step", "steps")
        ]
        assert weights(folder / "artifact") == weights(whole.folder / "artifact"), step
        progress = json.loads((folder / "artifact" / "training.json").read_text())["progress"]
        assert progress | {"seconds": 0} == told | {"seconds": 0}


def test_killed_at_any_moment_it_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    assert run(job(tmp_path / "whole", base, recovery_fraction=1 / 24), Resident()) == 0
    whole = Ran(tmp_path / "whole", 0)
    folder, kills, resume = job(tmp_path / "killed-0", base, recovery_fraction=1 / 24), 0, None
    for n in range(1, 200):
        child = forked(folder)
        # Later each time, so that every run gets a little further at least.
        time.sleep(0.1 + 0.05 * n)
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        kills += 1
        saved = sorted(folder.glob("checkpoints/step-*/manifest.json"), key=lambda path: int(path.parent.name[5:]))
        resume = saved[-1].parent if saved else resume
        folder = again(whole.folder, tmp_path / f"killed-{n}", resume)
    assert kills >= 2
    assert weights(folder / "artifact") == weights(whole.folder / "artifact")
    assert Ran(folder, 0).events("done")[0]["best_step"] == whole.events("done")[0]["best_step"]


@pytest.mark.parametrize(
    ("stopping", "losses", "best", "over_after"),
    [
        ({"patience": 1, "warmup_evals": 0}, [3, 2, 2, 1], 2, 3),
        ({"patience": 2, "warmup_evals": 0}, [3, 2, 2.5, 1.9, 2, 2], 4, 6),
        ({"patience": 2, "warmup_evals": 4}, [1, 2, 2, 2, 2, 2], 1, 6),
        # Better by too little: still the best model, yet not worth the wait.
        ({"patience": 2, "warmup_evals": 0, "min_delta": 0.5}, [3, 2.9, 2.8, 2.7], 3, 3),
        ({"patience": 2, "warmup_evals": 0, "min_delta": 0.5}, [3, 2.9, 2.4, 2.3, 1.8], 5, None),
        ({"patience": 2, "warmup_evals": 0}, [3, float("nan"), float("inf")], 1, 3),
        ({"patience": 2, "warmup_evals": 0}, [float("nan"), 3], 2, None),
    ],
)
def test_patience_min_delta_and_warmup_mean_what_they_say(
    stopping: dict[str, Any], losses: list[float], best: int, over_after: int | None
) -> None:
    class Untrained:
        trainable: dict[str, Any] = {}

    keeper = Keeper(EarlyStoppingSpec(**stopping), Untrained())  # type: ignore[arg-type]
    state, over = Best(), None
    for n, loss in enumerate(losses, 1):
        keeper.look(state, n, loss)
        # What a checkpoint keeps of it is all there is to know.
        state = Best.model_validate_json(state.model_dump_json())
        if keeper.over(state):
            over = n
            break
    assert (state.step, over) == (best, over_after)
