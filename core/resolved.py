"""Every option of a job with the value used: what its ``ext.resolved`` says, and all that a trainer needs to know."""

from typing import Any, Literal

from core.formats.report import Format
from core.options import Adapter, Loss, Precision, Table


class ResolvedLora(Table):
    rank: int
    alpha: float
    dropout: float
    target_modules: Literal["all-linear"] | list[str]
    rslora: bool
    dora: bool
    plus_ratio: float = 1.0


class ResolvedPrompt(Table):
    virtual_tokens: int


class ResolvedPreference(Table):
    loss: Loss
    beta: float
    label_smoothing: float
    gamma: float
    sft_weight: float


class ResolvedOptim(Table):
    learning_rate: float
    find: bool = False
    """The rate is looked for before the first step; until then it is the automatic one."""
    curve: list[list[float]] | None = None
    """[rate, loss] of what was tried to find it"""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"]
    warmup_steps: int
    min_lr_ratio: float
    optimizer: Literal["adamw", "adafactor", "adamw_8bit", "sgd"]
    betas: list[float]
    eps: float
    weight_decay: float
    max_grad_norm: float


class ResolvedMix(Table):
    file_id: str
    weight: float


class ResolvedData(Table):
    over_length: Literal["error", "truncate", "drop"]
    mix: list[ResolvedMix] | None = None
    validation_fraction: float | None = None
    max_invalid_fraction: float = 0.0


class ResolvedEval(Table):
    every: int | Literal["epoch"] | None
    """Steps; None: there is no validation file, nor anything to be answered."""
    generate: int = 0
    """How many prompts are answered at each evaluation."""


class ResolvedEarlyStopping(Table):
    patience: int
    min_delta: float
    warmup_evals: int


class ResolvedLimits(Table):
    """As they were at the creation; ``options.limits`` of the job has what they were changed to since."""

    max_seconds: float | None
    max_cost: float | None
    on_limit: Literal["save", "fail"]


class Kept(Table):
    last: int
    best: bool = False


class ResolvedCheckpoints(Table):
    """The checkpoints that the user sees; those to resume from come by themselves."""

    every: Literal["epoch"] | int | dict[Literal["minutes"], float] = "epoch"
    keep: Literal["all", "best"] | Kept = Kept(last=3, best=True)


class ResolvedResources(Table):
    devices: int
    priority: Literal["low", "normal", "high"]


class ResolvedHyperparameters(Table):
    """For OpenAI's ``hyperparameters``: an epoch count must be whole there, so a fraction is rounded up."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    beta: float | None = None
    """Of the method dpo"""


class Resolved(Table):
    """Every option with the value used: ``ext.resolved`` of a job, and all a trainer needs to know."""

    preference: ResolvedPreference | None = None
    """Of the method dpo"""
    adapter: Adapter
    lora: ResolvedLora | None
    """None where the adapter has no rank."""
    target_modules: Literal["all-linear"] | list[str] | None = None
    """Of IA3"""
    layers: list[int] | None = None
    """Layer numbers; below 0 they count from the last. None: all."""
    prompt: ResolvedPrompt | None = None
    peft: dict[str, Any] | None = None
    """Of adapter peft, as it was given"""
    prompt_loss_weight: float
    train_on: Literal["assistant", "last_assistant", "all"]
    optim: ResolvedOptim
    epochs: float
    total_steps: int
    batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    packing: bool
    precision: Precision
    gradient_checkpointing: bool
    head_gradient: Literal["exact", "filtered"]
    init_from: str | None = None
    resume_optimizer: bool = False
    outputs: list[Literal["adapter", "merged"]] = ["adapter"]
    chat_template: str
    """``base`` or ``given``; the text itself ships with the artifact."""
    format: Format
    data: ResolvedData
    eval: ResolvedEval
    early_stopping: ResolvedEarlyStopping | None = None
    """None: every step is done, and the last one's weights are the result."""
    limits: ResolvedLimits | None = None
    checkpoints: ResolvedCheckpoints = ResolvedCheckpoints()
    resources: ResolvedResources
    seed: int
    hyperparameters: ResolvedHyperparameters
