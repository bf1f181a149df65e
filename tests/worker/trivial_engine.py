"""An engine that trains nothing: it reads a job folder and writes one, as any engine in place of ours would."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from worker import child, disk
from worker.folder import EXIT_DISK_FULL, EXIT_USER_ERROR, TrainSpec
from worker.train import manifest


def run(folder: Path) -> int:
    spec = TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
    with (folder / "events.jsonl").open("a") as events:

        def emit(type: str, **fields: Any) -> None:
            events.write(json.dumps({"v": 1, "type": type, "t": time.time(), **fields}) + "\n")
            events.flush()

        if spec.seed == 13:
            emit("error", code="bad_luck", message="This engine refuses the seed 13.", param="seed")
            return EXIT_USER_ERROR
        if spec.seed == 77 and spec.micro_batch_size > 2:
            emit("error", code="out_of_memory", message="Too much at once.", param="micro_batch_size")
            return EXIT_USER_ERROR
        if spec.seed == 78:
            emit("error", code="out_of_memory", message="A single example is too much.", param="micro_batch_size")
            return EXIT_USER_ERROR
        if spec.seed == 66:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if spec.seed == 55:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                (folder / "large").write_bytes(b"x" * 2000)
            except OSError as error:
                return EXIT_DISK_FULL if disk.is_full(error) else 1
        if spec.seed == 99:
            sys.stderr.write("ZeroDivisionError: of this engine\n")
            return 1
        emit("started", total_steps=2, trainable_parameters=1, parameters=1, device="none", resumed_from_step=0)
        for step in (1, 2):
            numbers = {"train_loss": 1.0 / step, "completion_loss": 1.0, "train_accuracy": 0.5, "learning_rate": 0.1}
            counts = {"tokens": 10, "trained_tokens": 5, "seconds": 0.1, "tokens_per_second": 100.0}
            emit("step", step=step, epoch=step / 2, grad_norm=1.0, **numbers, **counts)
        save(folder / "checkpoints" / "step-2")
        emit("checkpoint", step=2, epoch=1.0, path="checkpoints/step-2", kind="epoch", metrics={"train_loss": 0.5})
        save(folder / "artifact")
        emit("done", artifact="artifact", steps=2, tokens=20, trained_tokens=10, metrics={}, stop_reason=None)
    return 0


def save(final: Path) -> None:
    draft = manifest.draft(final)
    (draft / "adapter_model.safetensors").write_bytes(b"weights")
    manifest.seal(draft, final)


if __name__ == "__main__":
    child.serve(lambda base: None, run)
