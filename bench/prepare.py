"""``make bench-prepare``: seconds from creating a job to its being queued, for the first job on some data and the next.

Through HTTP on a whole stack with the tiny model; ROWS conversations (20,000), JOBS further jobs (5).
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from openai import OpenAI

from tests.conftest import chat_rows, plain_environment
from tests.live import Live, running
from tests.tiny import build_tiny

ROWS, JOBS = int(os.environ.get("ROWS", "20000")), int(os.environ.get("JOBS", "5"))


def prepare(client: OpenAI, file_id: str, rank: int) -> float:
    began = time.perf_counter()
    job = client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file_id, extra_body={"ext": {"max_steps": 1, "lora": {"rank": rank}}}
    )
    while client.fine_tuning.jobs.retrieve(job.id).status == "validating_files":
        time.sleep(0.01)
    return time.perf_counter() - began


def measure(live: Live) -> None:
    client = live.client
    rows = chat_rows(ROWS)
    file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    client.files.wait_for_processing(file.id)
    print(f"{ROWS} rows, {len(rows) / 1e6:.1f} MB")
    print(f"first job, creation to queued     {prepare(client, file.id, 1):8.2f} s")
    others = [prepare(client, file.id, 2 + index) for index in range(JOBS)]
    print(f"{JOBS} further jobs, median and worst {statistics.median(others):8.2f} s {max(others):8.2f} s")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="attune-prepare-") as scratch:
        tiny = build_tiny(Path(scratch) / "attune-tiny")
        with running(Path(scratch) / "home", plain_environment(), tiny) as live:
            measure(live)


if __name__ == "__main__":
    main()
