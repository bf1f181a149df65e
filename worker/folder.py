"""The job folder: what the supervisor writes for a training child, and what the child writes back.

The folder is the whole interface of a training engine. ``python -m worker.train DIR`` reads ``spec.json`` and
the token files and writes ``events.jsonl``, ``checkpoints/`` and ``artifact/``; it needs no database, queue,
object store or credential, so anybody can run a folder again by hand, and other engines can take its place.

    DIR/spec.json              TrainSpec
    DIR/train.safetensors      rows as tokens, see below
    DIR/valid.safetensors      the same, when there is a validation file
    DIR/chat_template.jinja    optional: the template the rows were rendered with, when it is not the base's own
    DIR/init/                  optional: the weights that the run begins from
    DIR/stop                   optional, written while it runs: now | checkpoint | epoch | limit: where to end well
    DIR/events.jsonl           one event a line, appended and flushed
    DIR/checkpoints/step-N/    adapter files, state.safetensors, state.json, manifest.json (written last)
    DIR/artifact/              adapter_model.safetensors, adapter_config.json, tokenizer files,
                               chat_template.jinja, training.json, parity.json, merged/, manifest.json (written last)

A token file holds, for n rows and T tokens in all: ``input_ids`` int32 [T], ``message_weight`` float32 [T]
(the message's own weight, 1 where the data say nothing), ``completion`` uint8 [T] (1 where the assistant speaks,
end-of-turn included), ``offsets`` int64 [n + 1] (row i is ``offsets[i]:offsets[i + 1]``), ``lines`` int64 [n]
(line in the user's file).
For method dpo there is also ``label`` uint8 [n], 1 where the answer is wanted: rows 2i and 2i + 1 are the wanted and
the unwanted answer to one prompt, except for KTO, whose rows are judged one by one.
A token's weight in the loss is ``message_weight`` where ``completion`` is 1, else
``prompt_loss_weight * message_weight``.

Knows nothing about torch: both sides import it.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SPEC_VERSION = 1
EVENTS_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BaseSpec(_Strict):
    name: str
    path: Path
    """Folder with model.safetensors, config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    sha256: str


class LoraSpec(_Strict):
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    rslora: bool = False
    dora: bool = False
    plus_ratio: float = 1.0
    """LoRA+: the learning rate of B over that of A."""


class OptimSpec(_Strict):
    learning_rate: float
    find: bool = False
    """Look for a better rate before the first step; ``learning_rate`` is used where none is found."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    optimizer: Literal["adamw", "adafactor", "adamw_8bit", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


class PreferenceSpec(_Strict):
    loss: Literal["sigmoid", "ipo", "hinge", "simpo", "orpo", "kto"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    """SimPO's margin."""
    sft_weight: float = 0.0
    """Weight of the wanted answers' own loss, as a supervised job would have it."""


class EarlyStoppingSpec(_Strict):
    """The run ends when evaluations stop getting better, and the best one's weights are its result."""

    patience: int = 2
    """Evaluations in a row that may be no better"""
    min_delta: float = 0.0
    """A loss that is lower by no more than this is no better."""
    warmup_evals: int = 1
    """The first evaluations, which ``patience`` doesn't count"""


class InitSpec(_Strict):
    """Weights of an earlier job that this one begins from."""

    name: str
    path: Path
    """Folder with the adapter's or the model's files, and ``state.safetensors`` where the optimizer goes on."""
    sha256: str
    """Over the files' own hashes."""
    optimizer: bool = False


class TrainSpec(_Strict):
    """Every value resolved: no ``"auto"`` reaches a trainer."""

    version: Literal[1] = 1
    job_id: str
    method: Literal["supervised", "dpo"] = "supervised"
    preference: PreferenceSpec | None = None
    """Of method dpo."""
    base: BaseSpec
    adapter: Literal["lora", "qlora", "full", "layers", "ia3", "prompt", "prefix", "peft"] = "lora"
    lora: LoraSpec = LoraSpec()
    layers: list[int] | None = None
    """Layers that are trained or adapted, from 0 on or from -1 back; None: all."""
    virtual_tokens: int = 20
    peft: dict[str, Any] | None = None
    """Of adapter peft: ``type`` and that configuration's own fields, which ``core/peft.py`` lists."""
    prompt_loss_weight: float = 0.0
    seed: int
    epochs: float
    """May be a fraction; the step count is ``total_steps``."""
    total_steps: int
    batch_size: int
    """Examples per optimizer step, whatever the micro-batch."""
    micro_batch_size: int
    packing: bool = False
    """A micro-batch's rows go through the layers one after another in one sequence, without seeing each other."""
    max_length: int
    optim: OptimSpec
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp16: float32 weights, matrix products in float16, and a scale that keeps gradients in its range."""
    gradient_checkpointing: bool = False
    head_gradient: Literal["exact", "filtered"] = "exact"
    outputs: list[Literal["adapter", "merged"]] = ["adapter"]
    """``merged``: besides the adapter, a whole model with the adapter in its weights."""
    eval_every: int | None = None
    """Steps between passes over the validation rows; None: at each epoch's end."""
    early_stopping: EarlyStoppingSpec | None = None
    generate: list[list[int]] = []
    """Prompts that are answered by the base model before step 1 and by the model at each evaluation."""
    generate_rows: int = 0
    """The same of so many validation rows: what stands before their first answer."""
    ends: list[int] = []
    """Tokens that end an answer, besides the one that the rows' answers end with."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints for the user; None: at each epoch's end, unless they come by time."""
    checkpoint_seconds: float | None = None
    """Time between two checkpoints for the user."""
    recovery_seconds: float = 300
    """Longest time between two recovery checkpoints (epoch checkpoints count)."""
    recovery_fraction: float = 0.1
    """Largest share of the run's steps between two recovery checkpoints."""
    recovery_overhead: float | None = None
    """Share of the time that recovery checkpoints by steps may take: where it would be more, they come less often."""
    init: InitSpec | None = None
    resume: Path | None = None
    """A checkpoint folder of this job: continue after its step, exactly."""
    threads: int | None = None
    data_sha256: dict[str, str] = {}
    """Hash of each token file, for the record in training.json."""


class Event(BaseModel):
    """A line of events.jsonl: ``v``, ``type``, ``t`` (Unix seconds), and the fields of its type.

    started     total_steps, trainable_parameters, parameters, device, resumed_from_step (0: fresh), rows, duplicates,
                valid_rows, shared (worker/train/observe.py)
    phase       phase: training | evaluating | saving
    step        step, epoch (float), train_loss (weighted by prompt_loss_weight), completion_loss,
                train_accuracy (completion tokens), learning_rate, grad_norm, tokens,
                trained_tokens (weight > 0), seconds, tokens_per_second
    eval        step, valid_loss, valid_completion_loss, valid_accuracy, tokens, seconds
                method dpo: train_accuracy is the share of pairs told apart, and there are also reward_chosen,
                reward_rejected, reward_margin (valid_reward_margin in eval)
    checkpoint  step, epoch, path (relative to DIR), kind: epoch | recovery, metrics, good_step (the newest checkpoint
                that the loss has shown to be good; 0: none yet)
    found       learning_rate (None: the loss fell at none), used, before (the loss before the first step), points
                [[rate, loss], …], tokens, seconds: what was looked for at the start of a run with ``optim.find``
    answers     step, by (base | model), answers: [{prompt, answer, tokens, ended}]
    message     level: info | warn | error, message, data
    done        artifact (relative path), steps, tokens, trained_tokens, metrics, stop_reason (None: all steps were
                done; else a phase of a succeeded job, ``stopped_by_user`` say), best_step (the evaluation whose
                weights the artifact has; None: the last step's), learned (worker/train/observe.py)
    error       code, message, param: a fault the user can act on; the child then exits with status 3. Of a run that
                diverged also good_step: the newest checkpoint from before (0: there is none)
    """

    model_config = ConfigDict(extra="allow")
    v: Literal[1] = 1
    type: Literal["started", "phase", "found", "answers", "step", "eval", "checkpoint", "message", "done", "error"]
    t: float


class FileEntry(_Strict):
    path: str
    bytes: int
    sha256: str


class Manifest(_Strict):
    """manifest.json: the whole content of a checkpoint or artifact folder, itself left out."""

    version: Literal[1] = 1
    files: list[FileEntry]


STOP = "stop"

ANSWER_TOKENS = 128
"""Of an answer to one of ``generate``, at most."""

EXIT_USER_ERROR = 3
"""After an ``error`` event: another try would end the same way."""
EXIT_DRAINED = 4
"""SIGTERM was heard: a checkpoint holds the last whole step (none before the first), and the job can go on from it."""
EXIT_DISK_FULL = 6
"""A file could not be written for want of room. No event says so: that could not be written either."""
EXIT_CHECKPOINT_REFUSED = 5
"""``resume`` is damaged or of another run (a ``message`` event says which): start from the checkpoint before it."""
