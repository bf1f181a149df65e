"""``make bench-first-step``: seconds from a POST to the job's first optimizer step. CHECK=1: status 1 on a miss.

Through HTTP on a whole stack with Gemma 3 270M: rows of the demo, one a step. The base is resident once the trainer
that waits has loaded it, as it does after another job; JOBS of each kind (5).
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, closed
from bench.train import BASE, ROOT
from tests.conftest import plain_environment
from tests.live import Live, running
from tests.tiny import build_tiny

ROWS, JOBS = 16, int(os.environ.get("JOBS", "5"))
MODEL = "gemma-3-270m"
PAUSE = 20.0
"""Before each job: time for the next trainer to do its imports and to load what was used last."""


def upload(live: Live, first: int) -> str:
    """The id of a file of :data:`ROWS` rows that no file before it had."""
    lines = (ROOT / "examples" / "triage" / "train.jsonl").read_text("utf-8").splitlines()[first : first + ROWS]
    file = live.client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    live.client.files.wait_for_processing(file.id)
    return file.id


def first_step(live: Live, file_id: str, rank: int) -> float:
    """Creates a job, waits until its first step is told, and ends it."""
    client = live.client
    began = time.perf_counter()
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        hyperparameters={"batch_size": 1, "n_epochs": 1},
        extra_body={"ext": {"lora": {"rank": rank}}},
    )
    while not (client.fine_tuning.jobs.retrieve(job.id).model_extra or {})["ext"]["progress"]:
        time.sleep(0.02)
    took = time.perf_counter() - began
    client.fine_tuning.jobs.cancel(job.id)
    live.wait(job.id)
    return took


def main() -> int:
    figures = []
    with tempfile.TemporaryDirectory(prefix="attune-first-step-") as scratch:
        tiny = build_tiny(Path(scratch) / "attune-tiny")
        with running(Path(scratch) / "home", plain_environment(), tiny, {}) as live:
            live.register(MODEL, BASE)
            time.sleep(PAUSE)
            cold = first_step(live, upload(live, 0), 4)
            figures.append(Figure("base not loaded, new data", cold, "s", 5))
            print(figures[-1], flush=True)
            same, new = [], []
            for index in range(JOBS):
                data = upload(live, ROWS * (1 + index))
                for found, rank in ((new, 4), (same, 8)):
                    time.sleep(PAUSE)
                    found.append(first_step(live, data, rank))
            for what, found in (("new data", new), ("data tokenised before", same)):
                figures.append(Figure(f"base resident, {what}, median", statistics.median(found), "s", 1.5))
                print(figures[-1], " ".join(f"{seconds:.2f}" for seconds in found), flush=True)
    return closed(figures)


if __name__ == "__main__":
    sys.exit(main())
