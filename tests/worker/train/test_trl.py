"""With the same examples in the same order, each step's loss is that of TRL's trainer of the method."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import aside
from tests.worker.train.conftest import Ran
from tests.worker.train.test_preference import job

pytestmark = pytest.mark.proof
ROOT = Path(__file__).resolve().parents[3]
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.5},
    "hinge": {"beta": 0.05},
    "ipo": {"beta": 0.5},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.5},
}


@pytest.fixture(scope="module")
def trl() -> Path:
    # What trl imports and this project has not.
    more = "datasets dill multiprocess xxhash pandas aiohttp aiosignal frozenlist multidict yarl propcache"
    return aside.installed("trl-1.16.0", "trl==1.16.0", *more.split(), "aiohappyeyeballs", "python-dateutil", "six")


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_trls(loss: str, base: Path, train: Callable[[Path], Ran], tmp_path: Path, trl: Path) -> None:
    folder = job(
        tmp_path / "job", base, loss, preference={"loss": loss, **LOSSES[loss]}, epochs=1,
        optim={"schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-3},
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(trl)])}
    command = [sys.executable, "-m", "tests.worker.train.trl_losses", str(folder)]
    theirs = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    found = [event["train_loss"] for event in train(folder).events("step")]
    assert found == pytest.approx(json.loads(theirs.stdout.splitlines()[-1]), rel=1e-5)
    assert len(found) >= 2
