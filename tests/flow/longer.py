"""A job that is long enough to be disturbed in its middle, and what must be the same however it was."""

from typing import Any

from tests.conftest import chat_rows
from tests.flow.conftest import Live

_EXT = {"lora": {"rank": 4, "dropout": 0.1}}


def submit(live: Live, epochs: int = 3, **ext: Any) -> str:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 2}}}
    client = live.client
    file = client.files.create(file=("train.jsonl", chat_rows(240)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file.id, seed=11, method=method, extra_body={"ext": _EXT | ext}
    )
    return job.id


def step_of(live: Live, job_id: str) -> int:
    progress = live.job(job_id).ext["progress"]
    return progress["step"] if progress else 0


def weights(live: Live, job: Any) -> str:
    files = [live.client.files.retrieve(id) for id in job.result_files]
    return next(file.ext["sha256"] for file in files if file.filename == "adapter_model.safetensors")  # type: ignore[attr-defined]  # ours


def numbers(table: bytes) -> list[list[str]]:
    """The columns that must be equal: all but the seconds."""
    return [line.split(",")[:-1] for line in table.decode().splitlines()]
