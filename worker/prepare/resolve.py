"""Options and counts -> every value a trainer needs, each ``auto`` with its reason. Knows no files and no tokenizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from core.cost import TOGETHER
from core.formats.report import Format
from core.options import LOW_RANK, OWN_WEIGHTS, Hyperparameters, JobOptions, Precision
from core.resolved import (
    Kept,
    Resolved,
    ResolvedCheckpoints,
    ResolvedData,
    ResolvedEarlyStopping,
    ResolvedEval,
    ResolvedHyperparameters,
    ResolvedLimits,
    ResolvedLora,
    ResolvedOptim,
    ResolvedPreference,
    ResolvedPrompt,
    ResolvedResources,
)
from worker.folder import BaseSpec, EarlyStoppingSpec, InitSpec, LoraSpec, OptimSpec, PreferenceSpec, TrainSpec
from worker.prepare.folder import Facts, Note, Prepared, Tokenised

# Outside these a run almost never learns anything good.
USUAL_LEARNING_RATES = (1e-7, 1e-3)
_MOST_LEARNING_RATE = {"peft": 1e-1, "ia3": 1e-1, "prompt": 1.0, "prefix": 1e-1}
_LR_BOUNDS, _LR_BOUNDS_OWN_WEIGHTS = (5e-5, 1e-3), (5e-6, 5e-5)
_LEARNING_RATES = {"ia3": 5e-3, "prompt": 3e-2, "prefix": 5e-3}
_MEASURED, _FORMULA_FROM = ((192, 6.4e-3), (640, 1.6e-3)), 1024
"""Widths and LoRA's best rates there, or nearly, as ``bench/rates.py`` found them (docs/benchmarks.md): narrower than
any that the powers are fitted to. Between them, and from the last to the powers', rates go by equal factors."""
_SHORT_RUN = 100
_FEWEST_STEPS = 60
_MOST_EPOCHS = 50


@dataclass(frozen=True)
class Sizes:
    """What tokenising has found out. Tokens are those of the training rows before anything is cut."""

    examples: int
    longest: int
    prompt_tokens: int
    completion_tokens: int
    validation: bool

    @property
    def mean(self) -> float:
        """Tokens of a row, at least 1"""
        return max(1.0, (self.prompt_tokens + self.completion_tokens) / max(1, self.examples))


Reason = Callable[[str, object, str], None]
Warn = Callable[[str], None]


class Resolution(NamedTuple):
    resolved: Resolved
    notes: list[Note]


def max_length(options: JobOptions, context: int, longest: int) -> tuple[int, str]:
    """Tokens a row may have, and why. Batches are not padded, so room that no row needs costs nothing: ``auto``
    takes every row whole that the model can take."""
    if options.max_length != "auto":
        return options.max_length, "as asked for"
    if longest > context:
        return context, f"the model's context; the longest row has {longest} tokens"
    return max(longest, 8), "the longest row"


def batch_size(examples: int) -> int:
    """Examples per step: 0.2 % of them, a power of two from 8 to 64."""
    return int(min(64, max(8, 2 ** round(math.log2(max(1.0, 0.002 * examples))))))


def epochs(examples: int, batch: int) -> int:
    """Fewer passes over more data, but never so few that there are less than 60 steps."""
    usual = 5 if examples < 500 else 3 if examples < 2_000 else 2 if examples < 20_000 else 1
    needed = math.ceil(_FEWEST_STEPS / math.ceil(examples / batch))
    return min(max(usual, needed), max(usual, _MOST_EPOCHS))


def learning_rate(adapter: str, model_type: str, hidden_size: int, batch: int, steps: int) -> float:
    """For LoRA: 5e-4 · (2000 / hidden)^p, more for short runs, less for small batches; two significant digits.

    The powers are those of tinker-cookbook's sweep (Llama 0.781, Qwen 0.0775); 0.4 lies between for all others. A
    model's own weights want a tenth of it ("LoRA Without Regret"); IA3 and learned tokens much more, whatever the
    model: PEFT's own comparison of methods has these rates. Models narrower than 1,024 have LoRA's rate from what was
    measured, whatever batch and steps: the narrower, the higher.
    """
    if adapter in _LEARNING_RATES:
        return _LEARNING_RATES[adapter]
    power = 0.781 if model_type.startswith(("llama", "mllama")) else 0.0775 if model_type.startswith("qwen") else 0.4
    narrow = _narrow(adapter, hidden_size)
    rate = 5e-4 * (2000 / (_FORMULA_FROM if narrow else hidden_size)) ** power
    if steps < _SHORT_RUN:
        rate *= 1.5
    rate *= min(1.0, max(0.35, math.sqrt(batch / 128)))
    low, high = _LR_BOUNDS
    if adapter in OWN_WEIGHTS:
        rate, (low, high) = rate / 10, _LR_BOUNDS_OWN_WEIGHTS
    rate = min(high, max(low, rate))
    if narrow:
        widths, rates = zip(*_MEASURED, (_FORMULA_FROM, rate), strict=True)
        rate = math.exp(np.interp(math.log(hidden_size), np.log(widths), np.log(rates)))
    return float(f"{rate:.2g}")


def _narrow(adapter: str, hidden_size: int) -> bool:
    """Whether the rate goes by what was measured, and by nothing else."""
    return hidden_size < _FORMULA_FROM and adapter not in OWN_WEIGHTS


def prepared(
    tokenised: Tokenised,
    options: JobOptions,
    hyperparameters: Hyperparameters,
    facts: Facts,
    *,
    seed: int,
    fast_bf16: bool,
) -> Prepared:
    """A job on data that have been tokenised, by this job or by another."""
    resolved, notes = resolve(
        tokenised.method,
        options,
        hyperparameters,
        Sizes(
            examples=tokenised.train.examples,
            longest=tokenised.train.longest,
            prompt_tokens=tokenised.prompt_tokens,
            completion_tokens=tokenised.completion_tokens,
            validation=tokenised.valid is not None,
        ),
        facts,
        length=tokenised.max_length,
        length_reason=tokenised.max_length_reason,
        form=tokenised.form,
        seed=seed,
        fast_bf16=fast_bf16,
    )
    return Prepared(**dict(tokenised), resolved=resolved, notes=tokenised.remarks + notes)


def resolve(
    method: str,
    options: JobOptions,
    hyperparameters: Hyperparameters,
    sizes: Sizes,
    facts: Facts,
    *,
    length: int,
    length_reason: str,
    form: Format,
    seed: int,
    fast_bf16: bool,
) -> Resolution:
    """``sizes.examples`` are the rows that are trained on; ``length`` comes from :func:`max_length`."""
    notes: list[Note] = []

    def reason(name: str, value: object, why: str) -> None:
        shown = str(value).lower() if isinstance(value, bool) else value
        notes.append(Note(message=f"{name} {shown}: {why}", data={"option": name, "value": value}))

    def warn(message: str) -> None:
        notes.append(Note(level="warn", message=message))

    if options.max_length == "auto":
        reason("max_length", length, length_reason)
    preference = _preference(options, hyperparameters, reason) if method == "dpo" else None
    dense = not fast_bf16 and _dense(method, options, facts)
    batch, micro = _batches(options, hyperparameters, sizes, length, fast_bf16, dense, reason)
    packed = _packing(method, options, sizes, micro, dense, reason, warn)
    steps, passes = _duration(method, options, hyperparameters, sizes.examples, batch, reason)
    if batch > sizes.examples:
        warn(f"batch_size {batch} is more than the {sizes.examples} examples: every step sees all of them")
    optim, multiplier = _optim(method, options, hyperparameters, facts, batch, steps, reason, warn)
    weight = _prompt_loss_weight(options, sizes, reason) if preference is None else 0.0
    precision, checkpointing = _precision(options, fast_bf16, reason, warn), options.gradient_checkpointing is True
    if options.gradient_checkpointing == "auto":
        reason(
            "gradient_checkpointing", False, "it makes steps a third longer; estimates propose it where memory wants"
        )
    resolved = Resolved(
        preference=preference,
        adapter=options.adapter,
        lora=_lora(options) if options.adapter in LOW_RANK else None,
        target_modules=options.lora.target_modules if options.adapter == "ia3" else None,
        layers=_layers(options),
        prompt=ResolvedPrompt(**options.prompt.model_dump()) if options.adapter in ("prompt", "prefix") else None,
        peft=options.peft,
        prompt_loss_weight=weight,
        train_on=options.train_on,
        optim=optim,
        epochs=passes,
        total_steps=steps,
        batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=math.ceil(batch / micro),
        max_length=length,
        packing=packed,
        precision=precision,
        gradient_checkpointing=checkpointing,
        head_gradient=options.head_gradient,
        init_from=options.init_from,
        resume_optimizer=options.resume_optimizer,
        outputs=[options.outputs] if isinstance(options.outputs, str) else options.outputs,
        chat_template="base" if options.chat_template == "base" else "given",
        format=form,
        data=ResolvedData.model_validate(options.data.model_dump()),
        eval=ResolvedEval(every=_eval_every(options, sizes, steps, passes, reason), generate=_prompts(options)),
        early_stopping=_early_stopping(options),
        limits=ResolvedLimits(**options.limits.model_dump()),
        checkpoints=_checkpoints(options),
        resources=ResolvedResources(devices=1, priority=options.resources.priority),
        seed=seed,
        hyperparameters=ResolvedHyperparameters(
            n_epochs=max(1, math.ceil(passes - 1e-9)),
            batch_size=batch,
            learning_rate_multiplier=multiplier,
            beta=None if preference is None else preference.beta,
        ),
    )
    return Resolution(resolved, notes)


_BETAS = {"simpo": 2.0}
"""Where it isn't 0.1: SimPO's is on log-probabilities per token."""
_SIMPO_GAMMA = 0.5


def _preference(options: JobOptions, hyperparameters: Hyperparameters, reason: Reason) -> ResolvedPreference:
    asked = options.preference
    if hyperparameters.beta is None or hyperparameters.beta == "auto":
        beta = _BETAS.get(asked.loss, 0.1)
        reason("beta", beta, f"usual for the loss {asked.loss}")
    else:
        beta = float(hyperparameters.beta)
    gamma = 0.0
    if asked.loss == "simpo":
        gamma = float(_SIMPO_GAMMA if asked.gamma is None else asked.gamma)
    return ResolvedPreference(
        loss=asked.loss, beta=beta, label_smoothing=asked.label_smoothing, gamma=gamma, sft_weight=asked.sft_weight
    )


def _lora(options: JobOptions) -> ResolvedLora:
    lora = options.lora
    return ResolvedLora(
        rank=lora.rank,
        alpha=lora.alpha_used,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        rslora=lora.rslora,
        dora=lora.dora,
        plus_ratio=lora.plus_ratio or 1.0,
    )


def _checkpoints(options: JobOptions) -> ResolvedCheckpoints:
    every, keep = options.checkpoints.every, options.checkpoints.keep
    if keep is None:
        return ResolvedCheckpoints(every=every)
    return ResolvedCheckpoints(every=every, keep=Kept(last=keep["last"]) if isinstance(keep, dict) else keep)


def _layers(options: JobOptions) -> list[int] | None:
    """{"last": 2} -> [-2, -1]"""
    if isinstance(options.layers, dict):
        return list(range(-options.layers["last"], 0))
    return options.layers


def _dense(method: str, options: JobOptions, facts: Facts) -> bool:
    """Whether short rows are packed as a matter of course: a processor multiplies few rows of a matrix slowly, and each
    operation has its own cost; side by side they would be padded."""
    packs = method == "supervised" and options.adapter not in ("prompt", "prefix")
    return packs and options.packing is not False and facts.shape is not None and facts.shape.packs


def _batches(
    options: JobOptions,
    hyperparameters: Hyperparameters,
    sizes: Sizes,
    length: int,
    fast: bool,
    dense: bool,
    reason: Reason,
) -> tuple[int, int]:
    """Examples per step, and how many of them go through the model at once."""
    given, examples = hyperparameters.batch_size, sizes.examples
    micro, accumulation = options.micro_batch_size, options.gradient_accumulation_steps
    batch = given if given != "auto" else batch_size(examples)
    if given == "auto":
        if isinstance(micro, int):
            batch = max(batch, micro)
        if isinstance(accumulation, int):
            batch = math.ceil(batch / accumulation) * accumulation
        reason("batch_size", batch, f"0.2 % of the {examples} examples, a power of two from 8 to 64")
    if isinstance(micro, int):
        return batch, micro
    if isinstance(accumulation, int):
        return batch, max(1, batch // accumulation)
    if options.packing is True:
        # As many as fit into the longest row there may be.
        return batch, min(batch, max(2, int(length // sizes.mean)))
    if fast:
        micro = min(batch, 2 ** int(math.log2(max(1, 8192 // length))))
        why = f"an accelerator wants about 8,192 tokens at once, and rows have up to {length}"
        reason("micro_batch_size", micro, why)
    elif dense:
        micro = min(batch, max(1, int(TOGETHER // sizes.mean)))
        why = f"a processor wants about {TOGETHER} tokens at once, and rows have {sizes.mean:.0f} on the average"
        reason("micro_batch_size", micro, why)
    else:
        micro = 1
        reason("micro_batch_size", micro, "a processor gains nothing from rows side by side")
    return batch, micro


def _packing(
    method: str, options: JobOptions, sizes: Sizes, micro: int, dense: bool, reason: Reason, warn: Warn
) -> bool:
    if options.packing != "auto":
        if options.packing and micro == 1:
            warn("packing true: steps of one example have nothing to pack")
        return options.packing
    if micro == 1:
        reason("packing", False, "rows go through the layers one at a time, so nothing is padded")
        return False
    if dense:
        reason("packing", True, "short rows go through the layers one after another, and nothing is padded")
        return True
    if method != "supervised" or options.adapter in ("prompt", "prefix"):
        reason("packing", False, "it is for supervised jobs, and learned tokens must stand before each row")
        return False
    packed = sizes.mean < 0.5 * sizes.longest
    longer = "less" if packed else "not less"
    reason("packing", packed, f"the mean row is {longer} than half as long as the longest")
    return packed


def _duration(
    method: str, options: JobOptions, hyperparameters: Hyperparameters, examples: int, batch: int, reason: Reason
) -> tuple[int, float]:
    """Steps in all, and the passes over the data they make."""
    per_epoch = math.ceil(examples / batch)
    if options.max_steps is not None:
        return options.max_steps, options.max_steps / per_epoch
    if isinstance(options.epochs, float | int):
        passes = float(options.epochs)
    elif hyperparameters.n_epochs != "auto":
        passes = float(hyperparameters.n_epochs)
    else:
        # Preferences are learned by heart soon: one pass is usual.
        passes = float(epochs(examples, batch)) if method == "supervised" else 1.0
        reason("n_epochs", int(passes), f"for {examples} examples, {per_epoch} steps an epoch")
    # 0.1 × 30 is a little more than 3 in binary; that must not become a fourth step.
    return max(1, math.ceil(passes * per_epoch - 1e-9)), passes


def _optim(
    method: str,
    options: JobOptions,
    hyperparameters: Hyperparameters,
    facts: Facts,
    batch: int,
    steps: int,
    reason: Reason,
    warn: Warn,
) -> tuple[ResolvedOptim, float]:
    """The optimizer's values, and the learning rate as a multiple of the automatic one."""
    automatic = learning_rate(options.adapter, facts.model_type, facts.hidden_size, batch, steps)
    if method == "dpo":
        # A tenth of what examples are learned with ("LoRA Without Regret", TRL's defaults).
        automatic = float(f"{automatic / 10:.2g}")
    asked = options.optim.learning_rate
    if isinstance(asked, float | int):
        rate = float(asked)
    elif hyperparameters.learning_rate_multiplier != "auto":
        rate = min(1.0, automatic * hyperparameters.learning_rate_multiplier)
    elif asked == "find":
        rate = automatic
        reason("learning_rate", "find", "a range test before the first step; the automatic rate where it finds none")
    else:
        rate = automatic
        reason("learning_rate", rate, _why_rate(method, options.adapter, facts, batch, steps))
    low, high = USUAL_LEARNING_RATES
    high = max(_MOST_LEARNING_RATE.get(options.adapter, high), automatic)
    if not low <= rate <= high:
        warn(f"learning_rate {rate:g} is outside {low:g} … {high:g}: the run will probably learn nothing useful")
    return (
        ResolvedOptim(
            learning_rate=rate,
            find=asked == "find",
            schedule=options.optim.schedule,
            warmup_steps=_warmup(options, steps, warn),
            min_lr_ratio=options.optim.min_lr_ratio,
            optimizer=options.optim.optimizer,
            betas=options.optim.betas,
            eps=options.optim.eps,
            weight_decay=_weight_decay(options),
            max_grad_norm=options.optim.max_grad_norm,
        ),
        rate / automatic,
    )


def _why_rate(method: str, adapter: str, facts: Facts, batch: int, steps: int) -> str:
    if adapter in _LEARNING_RATES:
        usual = f"usual for {adapter}, whatever the model"
    elif _narrow(adapter, facts.hidden_size):
        usual = f"as measured for models about as narrow as {facts.hidden_size}"
    else:
        short = f", more since {steps} steps are few" if steps < _SHORT_RUN else ""
        usual = f"for {facts.model_type} of hidden size {facts.hidden_size} and {batch} examples a step{short}"
        if adapter in OWN_WEIGHTS:
            usual += "; a tenth of LoRA's, since the model's own weights are trained"
    return usual + ("; a tenth of that for preferences" if method == "dpo" else "")


def _weight_decay(options: JobOptions) -> float:
    if options.optim.weight_decay is not None:
        return options.optim.weight_decay
    return 0.01 if options.adapter in OWN_WEIGHTS else 0.0


def _warmup(options: JobOptions, steps: int, warn: Warn) -> int:
    if options.optim.warmup_steps is not None:
        if options.optim.warmup_steps >= steps:
            warn(f"warmup_steps {options.optim.warmup_steps}: of {steps} steps; the full rate is never reached")
        return options.optim.warmup_steps
    if options.optim.warmup_ratio is not None:
        return round(options.optim.warmup_ratio * steps)
    # 5 %, at least 5 and at most 100 steps, but never more than a quarter of a short run.
    return min(max(5, min(100, round(0.05 * steps))), steps // 4)


def _prompt_loss_weight(options: JobOptions, sizes: Sizes, reason: Reason) -> float:
    if options.prompt_loss_weight != "auto":
        return float(options.prompt_loss_weight)
    # Learning the prompt a little helps where answers are shorter than prompts, and does nothing elsewhere.
    short = sizes.completion_tokens < sizes.prompt_tokens
    weight = 0.1 if short else 0.0
    reason("prompt_loss_weight", weight, f"completions are {'shorter' if short else 'not shorter'} than prompts")
    return weight


def _precision(options: JobOptions, fast_bf16: bool, reason: Reason, warn: Warn) -> Precision:
    """``auto`` never takes fp16: where gradients are kept from leaving its range, bf16 or fp32 has no such range."""
    if options.precision == "bf16":
        if not fast_bf16:
            warn("precision bf16: the processors that train this job compute many times slower in it than in fp32")
        return "bf16"
    if options.precision != "auto":
        return options.precision
    if fast_bf16:
        reason("precision", "bf16", "the accelerator computes in it")
        return "bf16"
    reason("precision", "fp32", "the processors that train compute fastest in it")
    return "fp32"


def _eval_every(
    options: JobOptions, sizes: Sizes, steps: int, passes: float, reason: Reason
) -> int | Literal["epoch"] | None:
    if not sizes.validation and not _prompts(options):
        return None
    if options.eval.every != "auto":
        return options.eval.every
    # At the end of each epoch there is a checkpoint to judge; runs with few of them are looked at about five times.
    if passes >= 3:
        reason("eval.every", "epoch", f"{passes:g} epochs, and at the end of each there is a checkpoint to judge")
        return "epoch"
    every = max(1, steps // 5)
    reason("eval.every", every, f"{steps} steps in less than three epochs")
    return every


def _early_stopping(options: JobOptions) -> ResolvedEarlyStopping | None:
    asked = options.early_stopping
    return None if asked is None else ResolvedEarlyStopping(**asked.model_dump())


def _prompts(options: JobOptions) -> int:
    wanted = options.eval.generate
    return wanted["validation_rows"] if isinstance(wanted, dict) else len(wanted or [])


def train_spec(
    resolved: Resolved,
    *,
    job_id: str,
    base: BaseSpec,
    init: InitSpec | None = None,
    threads: int | None = None,
    resume: Path | None = None,
) -> TrainSpec:
    """What the training child is told, from what the job's row keeps."""
    every = resolved.checkpoints.every
    return TrainSpec(
        job_id=job_id,
        method="supervised" if resolved.preference is None else "dpo",
        preference=None if resolved.preference is None else PreferenceSpec(**resolved.preference.model_dump()),
        base=base,
        adapter=resolved.adapter,
        lora=_lora_spec(resolved),
        layers=resolved.layers,
        virtual_tokens=resolved.prompt.virtual_tokens if resolved.prompt is not None else 0,
        peft=resolved.peft,
        prompt_loss_weight=resolved.prompt_loss_weight,
        seed=resolved.seed,
        epochs=resolved.epochs,
        total_steps=resolved.total_steps,
        batch_size=resolved.batch_size,
        micro_batch_size=resolved.micro_batch_size,
        packing=resolved.packing,
        max_length=resolved.max_length,
        optim=OptimSpec(**resolved.optim.model_dump(exclude={"curve"})),
        precision=resolved.precision,
        gradient_checkpointing=resolved.gradient_checkpointing,
        head_gradient=resolved.head_gradient,
        outputs=resolved.outputs,
        eval_every=resolved.eval.every if isinstance(resolved.eval.every, int) else None,
        early_stopping=resolved.early_stopping and EarlyStoppingSpec(**resolved.early_stopping.model_dump()),
        checkpoint_every=every if isinstance(every, int) else None,
        checkpoint_seconds=60 * every["minutes"] if isinstance(every, dict) else None,
        init=init,
        threads=threads,
        resume=resume,
    )


def _lora_spec(resolved: Resolved) -> LoraSpec:
    if resolved.lora is not None:
        return LoraSpec(**resolved.lora.model_dump())
    return LoraSpec(target_modules=resolved.target_modules or "all-linear")
