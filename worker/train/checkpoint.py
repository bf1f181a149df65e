"""Checkpoints of a run: everything its next step depends on, in safetensors and JSON only.

adapter_model.safetensors, adapter_config.json   the adapter, loadable by itself; where the network's own weights are
                                                 trained, model.safetensors and config.json
state.safetensors                                the optimizer's moments: ``<parameter>/<moment>``
reference.safetensors                            of preferences: what the reference says of every row
best.safetensors                                 with early stopping: the weights of the best evaluation, unless it is
                                                 this step's
state.json                                       progress, random state, what made it
manifest.json                                    written last
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from worker.folder import TrainSpec
from worker.train import manifest, weights
from worker.train.best import Best
from worker.train.course import Course
from worker.train.faults import CheckpointRefused
from worker.train.model import Model

TENSORS = "state.safetensors"
STATE = "state.json"
REFERENCE = "reference.safetensors"
BEST = "best.safetensors"

Kind = Literal["epoch", "recovery"]


class Progress(BaseModel):
    """How far a run has come, and the sums that go on counting."""

    step: int = 0
    learning_rate: float | None = None
    """The peak rate, where the run has looked for it."""
    settled: bool = True
    """Whether what follows the step (evaluation, epoch checkpoint) has been done."""
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    metrics: dict[str, float | None] = {}
    """The last step's and the last evaluation's."""
    overflows: int = 0
    """Gradients that left float16's range and were thrown away"""
    best: Best = Best()
    """Kept with early stopping only"""
    course: Course = Course()


class State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    progress: Progress
    epoch: float
    cursor: int
    """Rows of the current epoch that have been learned from."""
    config_sha256: str
    fingerprint: dict[str, str]
    rng: dict[str, list[int]]
    scaler: dict[str, int | float] = {}
    """Of float16's gradients"""


def config_sha256(spec: TrainSpec, data: dict[str, str]) -> str:
    """Hash of all that decides the numbers of a run. Left out: where files lie, when checkpoints are written, how a
    step is split (the same sum in another order) and how many threads compute it."""
    decisive = spec.model_dump(
        mode="json",
        exclude={
            "job_id": True,
            "base": {"path"},
            "init": {"path", "name"},
            "micro_batch_size": True,
            "packing": True,
            "gradient_checkpointing": True,
            "eval_every": True,
            "generate": True,
            "generate_rows": True,
            "ends": True,
            "outputs": True,
            "checkpoint_every": True,
            "checkpoint_seconds": True,
            "recovery_seconds": True,
            "recovery_fraction": True,
            "recovery_overhead": True,
            "resume": True,
            "threads": True,
            "data_sha256": True,
        },
    )
    if spec.optim.find:
        # What is found follows from the rest; what is given only says what to use where nothing is.
        del decisive["optim"]["learning_rate"]
    return hashlib.sha256(json.dumps({**decisive, "data": data}, sort_keys=True).encode()).hexdigest()


def fingerprint(spec: TrainSpec, model: Model) -> dict[str, str]:
    """What must be equal for a resumed run to give the same bits as one that was never stopped."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "safetensors")}
    on_gpu = model.device.type == "cuda"
    return packages | {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(model.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "cuda": str(torch.version.cuda) if on_gpu else "none",
        "threads": str(torch.get_num_threads()),
        "micro_batch_size": str(spec.micro_batch_size),
        "packing": str(spec.packing),
        "gradient_checkpointing": str(spec.gradient_checkpointing),
    }


def random_state(model: Model) -> dict[str, list[int]]:
    state = {"cpu": torch.get_rng_state().tolist()}
    if model.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(model.device).tolist()
    return state


def set_random_state(model: Model, state: dict[str, list[int]]) -> None:
    torch.set_rng_state(torch.tensor(state["cpu"], dtype=torch.uint8))
    if model.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), model.device)


def save(
    folder: Path,
    model: Model,
    optimizer: Optimizer,
    state: State,
    reference: dict[str, torch.Tensor] | None = None,
    best: dict[str, torch.Tensor] | None = None,
) -> None:
    draft = manifest.draft(folder)
    weights.write(model, draft)
    save_file(_moments(model, optimizer), draft / TENSORS)
    if reference:
        save_file({name: scores.cpu() for name, scores in reference.items()}, draft / REFERENCE)
    if best:
        save_file(best, draft / BEST)
    (draft / STATE).write_text(state.model_dump_json() + "\n")
    manifest.seal(draft, folder)


def load(folder: Path, model: Model, optimizer: Optimizer, config: str) -> State:
    """Put a checkpoint into model, optimizer and random state, or raise :class:`CheckpointRefused` and touch nothing.

    Every file's sha256 is checked first: a cut file or a flipped bit never resumes.
    """
    if faults := manifest.faults(folder):
        raise CheckpointRefused("checkpoint_damaged", f"The checkpoint {folder.name} is damaged: {'; '.join(faults)}.")
    try:
        state = State.model_validate_json((folder / STATE).read_bytes())
        moments = load_file(folder / TENSORS)
    except (OSError, ValidationError, SafetensorError) as error:
        # The manifest agreed with the files, yet they are not a checkpoint's, or of another version.
        raise CheckpointRefused("checkpoint_unreadable", f"The checkpoint {folder.name} can't be read.") from error
    if state.config_sha256 != config:
        raise CheckpointRefused(
            "checkpoint_mismatch",
            f"The checkpoint {folder.name} is of a run with other data or settings and can't be continued exactly.",
        )
    try:
        weights.read(model, folder)
        _set_moments(model, optimizer, moments)
    except (OSError, SafetensorError) as error:
        raise CheckpointRefused("checkpoint_unreadable", f"The checkpoint {folder.name} can't be read.") from error
    except KeyError as error:
        raise CheckpointRefused(
            "checkpoint_mismatch", f"The checkpoint {folder.name} is of another adapter."
        ) from error
    set_random_state(model, state.rng)
    if model.scaler.is_enabled():
        model.scaler.load_state_dict(state.scaler)
    return state


def best(folder: Path) -> dict[str, torch.Tensor]:
    """Legal after :func:`load` has looked at the checkpoint."""
    return load_file(folder / BEST)


def reference(folder: Path) -> dict[str, torch.Tensor]:
    """Legal after :func:`load` has looked at the checkpoint."""
    return load_file(folder / REFERENCE)


def take_moments(model: Model, optimizer: Optimizer, folder: Path) -> None:
    """The moments of another job's checkpoint; raises ``KeyError`` where they are of other parameters."""
    _set_moments(model, optimizer, load_file(folder / TENSORS))


def _moments(model: Model, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {
        # A count that an optimizer keeps as a plain number goes as a whole-number tensor.
        f"{name}/{moment}": torch.as_tensor(value).detach().cpu().clone()
        for name, p in model.trainable.items()
        for moment, value in optimizer.state.get(p, {}).items()
    }


def _set_moments(model: Model, optimizer: Optimizer, saved: dict[str, torch.Tensor]) -> None:
    places = {name: index for index, name in enumerate(_names(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in saved.items():
        name, _, moment = key.rpartition("/")
        plain = tensor.ndim == 0 and tensor.dtype == torch.int64
        state.setdefault(places[name], {})[moment] = int(tensor) if plain else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(model: Model, optimizer: Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimizer counts them."""
    names = {id(p): name for name, p in model.trainable.items()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
