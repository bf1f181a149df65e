"""One job folder from spec.json to an exit status. Every way a run can end is told here."""

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from worker import disk
from worker.folder import EXIT_CHECKPOINT_REFUSED, EXIT_DISK_FULL, EXIT_DRAINED, EXIT_USER_ERROR, TrainSpec
from worker.train import artifact, observe, products
from worker.train.adapters import attach, begin_from
from worker.train.batches import Rows
from worker.train.events import Events, Silent
from worker.train.faults import CheckpointRefused, Diverged, Drained, Refused
from worker.train.load import DTYPES, Resident
from worker.train.loop import Run
from worker.train.ranks import Ranks


def run(folder: Path, resident: Resident) -> int:
    draining = _listen()
    ranks = Ranks.join()
    events = Events(folder / "events.jsonl") if ranks.first else Silent()
    try:
        _train(folder, resident, events, ranks, draining)
    except Drained:
        return EXIT_DRAINED
    except CheckpointRefused as refused:
        events.message("error", refused.message, code=refused.code)
        return EXIT_CHECKPOINT_REFUSED
    except Refused as refused:
        more = {"good_step": refused.good_step} if isinstance(refused, Diverged) else {}
        events.emit("error", code=refused.code, message=refused.message, param=refused.param, **more)
        return EXIT_USER_ERROR
    except (torch.OutOfMemoryError, MemoryError):
        return _out_of_memory(events)
    except (RuntimeError, OSError, SafetensorError) as error:
        if disk.is_full(error):
            # The log is on the same disk.
            with contextlib.suppress(OSError):
                traceback.print_exc()
            return EXIT_DISK_FULL
        if not _for_want_of_memory(error):
            raise
        return _out_of_memory(events)
    finally:
        events.close()
    return 0


def _train(folder: Path, resident: Resident, events: Events, ranks: Ranks, draining: Callable[[], bool]) -> None:
    spec = _spec(folder)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    rows = Rows.read(folder / "train.safetensors")
    valid = Rows.read(folder / "valid.safetensors") if (folder / "valid.safetensors").exists() else None
    path = folder / spec.base.path
    model = attach(resident.take(path, DTYPES[spec.precision], spec.adapter == "qlora"), spec)
    if spec.init is not None:
        begin_from(model, folder / spec.init.path, spec.init.name)
    rows.check("training_file", model.vocabulary, spec.max_length)
    if valid is not None:
        valid.check("validation_file", model.vocabulary, spec.max_length)

    job = Run(spec, folder, model, rows, valid, events, ranks, draining)
    with products.quick():
        progress = job.train()

    events.emit("phase", phase="saving")
    learned: dict[str, Any] = {}
    if ranks.first:
        if spec.preference is None:
            learned = observe.learned(model, rows, job.objective)
        made = {"versions": job.fingerprint, "data_sha256": job.data, "progress": progress.model_dump()}
        artifact.write(folder / "artifact", model, rows, spec, path, made, folder / "chat_template.jinja")
    events.emit(
        "done",
        artifact="artifact",
        steps=progress.step,
        tokens=progress.tokens,
        trained_tokens=progress.trained_tokens,
        metrics=progress.metrics,
        stop_reason=job.stop_reason,
        best_step=progress.best.step,
        learned=learned,
    )


def _spec(folder: Path) -> TrainSpec:
    try:
        return TrainSpec.model_validate_json((folder / "spec.json").read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"spec.json is not one this trainer knows: {where}: {first['msg']}."
        raise Refused("unsupported_spec", message, where) from error


def _for_want_of_memory(error: Exception) -> bool:
    """torch has no class of its own for the processor's memory, nor have the libraries below it."""
    said = ("can't allocate memory", "std::bad_alloc", "could not create a memory", "Cannot allocate memory")
    return any(words in str(error) for words in said)


def _out_of_memory(events: Events) -> int:
    traceback.print_exc()
    events.emit(
        "error",
        code="out_of_memory",
        message="The device ran out of memory. Use a shorter max_length, a smaller micro_batch_size or rank, "
        "gradient_checkpointing, or a smaller base model.",
        param="micro_batch_size",
    )
    return EXIT_USER_ERROR


def _listen() -> Callable[[], bool]:
    """SIGTERM asks for the job back; the loop looks at its next micro-batch."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked.is_set
