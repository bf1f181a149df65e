"""The options of a job in ``ext``: one table of names, ranges and defaults, and what this release can honour.

A field's description completes the sentence "… is not …", so that an error always says what would be right.
"""

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core import peft
from core.formats import prompts
from core.formats.report import Form

Auto = Literal["auto"]
Adapter = Literal["lora", "qlora", "full", "layers", "ia3", "prompt", "prefix", "peft"]
Precision = Literal["fp32", "bf16", "fp16"]
Loss = Literal["sigmoid", "ipo", "hinge", "simpo", "orpo", "kto"]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-]+$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Json = dict[str, Any]  # free-form by its nature: options that a later release will read


class Fault(NamedTuple):
    """What is wrong with one option: its path as the user wrote it (``ext.lora.rank``), and a whole sentence."""

    path: str
    message: str


class OptionsError(ValueError):
    """Everything wrong with the options of a request."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


class Table(BaseModel):
    # Strict: "16" is not 16 and true is not 1; a wrong type in a request is a mistake, never a conversion.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Lora(Table):
    rank: int = Field(16, ge=1, le=512, description="an integer from 1 to 512")
    alpha: Positive | None = Field(None, description="a number above 0")
    """Empty: twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1, description="a number from 0 to below 1")
    target_modules: Literal["all-linear"] | Annotated[list[Name], Field(min_length=1, max_length=256)] = Field(
        "all-linear", description='"all-linear" or a list of module names'
    )
    rslora: bool = Field(False, description="true or false")
    dora: bool = Field(False, description="true or false")
    plus_ratio: Annotated[float, Field(ge=1)] | None = Field(None, description="a number of at least 1")

    @property
    def alpha_used(self) -> float:
        return float(self.alpha if self.alpha is not None else 2 * self.rank)


class Prompt(Table):
    virtual_tokens: int = Field(20, ge=1, le=512, description="an integer from 1 to 512")


class Preference(Table):
    loss: Loss = Field("sigmoid", description="one of sigmoid, ipo, hinge, simpo, orpo, kto")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="a number from 0 to below 0.5")
    gamma: Annotated[float, Field(ge=0)] | None = Field(None, description="a number of at least 0")
    sft_weight: float = Field(0.0, ge=0, description="a number of at least 0")


class Optim(Table):
    learning_rate: Literal["auto", "find"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description='a number above 0 and up to 1, "auto" or "find"'
    )
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = Field(
        "cosine", description="one of cosine, linear, constant, inverse_sqrt, wsd"
    )
    warmup_ratio: Fraction | None = Field(None, description="a number from 0 to 1")
    """Empty, without ``warmup_steps``: 0.05."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="an integer of at least 0")
    min_lr_ratio: Fraction = Field(0.1, description="a number from 0 to 1")
    optimizer: Literal["adamw", "adafactor", "adamw_8bit", "sgd"] = Field(
        "adamw", description="one of adamw, adafactor, adamw_8bit, sgd"
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="two numbers from 0 to below 1"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="a number above 0 and up to 1")
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = Field(None, description="a number from 0 to 10")
    """Empty: 0 for adapters, 0.01 when every weight is trained."""
    max_grad_norm: float = Field(1.0, gt=0, description="a number above 0")


class Mix(Table):
    file_id: str = Field(description="a file's id")
    weight: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="a number above 0 and up to 100")


class Data(Table):
    mix: Annotated[list[Mix], Field(min_length=1, max_length=16)] | None = Field(
        None, description="a list of {file_id, weight}, up to 16"
    )
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        None, description="a number above 0 and up to 0.5"
    )
    over_length: Literal["error", "truncate", "drop"] = Field("drop", description="one of error, truncate, drop")
    max_invalid_fraction: Fraction = Field(0.0, description="a number from 0 to 1")


class Eval(Table):
    every: Literal["epoch", "auto"] | Count = Field("auto", description='a number of steps, "epoch" or "auto"')
    generate: (
        Annotated[list[Json | list[Json] | str], Field(min_length=1, max_length=prompts.MOST)]
        | dict[Literal["validation_rows"], Annotated[int, Field(ge=1, le=prompts.MOST)]]
        | None
    ) = Field(None, description='up to 20 prompts, or {"validation_rows": n}, n up to 20')


class EarlyStopping(Table):
    patience: int = Field(2, ge=1, description="an integer of at least 1")
    min_delta: float = Field(0.0, ge=0, description="a number of at least 0")
    warmup_evals: int = Field(1, ge=0, description="an integer of at least 0")


class Checkpoints(Table):
    every: Literal["epoch"] | Count | Annotated[dict[Literal["minutes"], Positive], Field(min_length=1)] = Field(
        "epoch", description='a number of steps, {"minutes": m} or "epoch"'
    )
    keep: Literal["all", "best"] | Annotated[dict[Literal["last"], Count], Field(min_length=1)] | None = Field(
        None, description='"all", "best" or {"last": n}'
    )
    """Empty: the last three and the best."""


class Limits(Table):
    max_seconds: Positive | None = Field(None, description="a number above 0")
    max_cost: Positive | None = Field(None, description="a number above 0")
    on_limit: Literal["save", "fail"] = Field("save", description="save or fail")


class Resources(Table):
    devices: int = Field(1, ge=1, description="an integer of at least 1")
    priority: Literal["low", "normal", "high"] = Field("normal", description="one of low, normal, high")


T = TypeVar("T", bound=Table)


class JobOptions(Table):
    """``ext`` of POST /v1/fine_tuning/jobs. ``None`` means "as if it had not been given"."""

    adapter: Adapter = Field("lora", description="one of lora, qlora, full, layers, ia3, prompt, prefix, peft")
    lora: Lora = Field(Lora(), description="an object")
    layers: Annotated[list[int], Field(min_length=1, max_length=1024)] | dict[Literal["last"], Count] | None = Field(
        None, description='{"last": n} or a list of layer numbers'
    )
    prompt: Prompt = Field(Prompt(), description="an object")
    peft: Json | None = Field(None, description="a PEFT configuration as an object")
    preference: Preference = Field(Preference(), description="an object")
    prompt_loss_weight: Auto | Fraction = Field(0.1, description='a number from 0 to 1 or "auto"')
    train_on: Literal["assistant", "last_assistant", "all"] = Field(
        "assistant", description="one of assistant, last_assistant, all"
    )
    optim: Optim = Field(Optim(), description="an object")
    epochs: Auto | Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description='a number above 0 and up to 100, or "auto"'
    )
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(None, description="an integer of at least 1")
    gradient_accumulation_steps: Auto | Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description='an integer from 1 to 4096 or "auto"'
    )
    micro_batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description='an integer from 1 to 4096 or "auto"'
    )
    max_length: Auto | Annotated[int, Field(ge=8, le=2**24)] = Field(
        "auto", description='an integer of at least 8 or "auto"'
    )
    packing: Auto | bool = Field("auto", description='true, false or "auto"')
    precision: Auto | Precision = Field("auto", description="one of fp32, bf16, fp16, auto")
    gradient_checkpointing: Auto | bool = Field("auto", description='true, false or "auto"')
    head_gradient: Literal["exact", "filtered"] = Field("exact", description="exact or filtered")
    chat_template: Annotated[str, Field(min_length=1, max_length=65536)] = Field(
        "base", description='the text of a template, up to 65,536 characters, or "base"'
    )
    format: Literal["auto"] | Form = Field("auto", description=f"one of auto, {', '.join(get_args(Form))}")
    data: Data = Field(Data(), description="an object")
    eval: Eval = Field(Eval(), description="an object")
    early_stopping: EarlyStopping | None = Field(None, description="an object")
    checkpoints: Checkpoints = Field(Checkpoints(), description="an object")
    init_from: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="a model's or checkpoint's name"
    )
    resume_optimizer: bool = Field(False, description="true or false")
    outputs: Literal["adapter", "merged"] | list[Literal["adapter", "merged"]] = Field(
        "adapter", description="adapter or merged"
    )
    limits: Limits = Field(Limits(), description="an object")
    resources: Resources = Field(Resources(), description="an object")
    dry_run: bool = Field(False, description="true or false")

    @model_validator(mode="after")
    def _exclusions(self) -> "JobOptions":
        pairs = (
            ("epochs", self.epochs, "max_steps", self.max_steps),
            ("optim.warmup_ratio", self.optim.warmup_ratio, "optim.warmup_steps", self.optim.warmup_steps),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps,
                "micro_batch_size",
                self.micro_batch_size,
            ),
        )
        faults = [_excluded(f"ext.{a}", f"ext.{b}") for a, left, b, right in pairs if _given(left) and _given(right)]
        if faults:
            # Carried through pydantic's own error as the ctx of one ValueError; parse() takes it out again.
            raise OptionsError(faults)
        return self


class Hyperparameters(Table):
    """``method.supervised.hyperparameters`` as OpenAI's wire has them, and those of ``method.dpo``, which has one
    more."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field("auto", description='an integer from 1 to 50 or "auto"')
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description='an integer from 1 to 256 or "auto"'
    )
    learning_rate_multiplier: Auto | Positive = Field("auto", description='a number above 0 or "auto"')
    beta: Auto | Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description='a number above 0 and up to 100, or "auto", for the method dpo'
    )
    """How far an answer's preference may pull the policy from its reference: less where it is greater."""


def _given(value: object) -> bool:
    return value is not None and value != "auto"


def _excluded(path: str, other: str) -> Fault:
    return Fault(path, f"{path} and {other} exclude each other: give one of them")


def conflicts(options: JobOptions, hyperparameters: Hyperparameters, prefix: str = "hyperparameters") -> list[Fault]:
    """Options and hyperparameters that say the same thing twice. ``prefix``: where the user wrote the latter."""
    faults = []
    if _given(options.optim.learning_rate) and _given(hyperparameters.learning_rate_multiplier):
        faults.append(_excluded("ext.optim.learning_rate", f"{prefix}.learning_rate_multiplier"))
    if hyperparameters.beta is not None and not prefix.startswith("method.dpo"):
        faults.append(Fault(f"{prefix}.beta", f"{prefix}.beta is for the method dpo"))
    for name, value in (("epochs", options.epochs), ("max_steps", options.max_steps)):
        if _given(value) and _given(hyperparameters.n_epochs):
            faults.append(_excluded(f"ext.{name}", f"{prefix}.n_epochs"))
    for name, micro in (
        ("gradient_accumulation_steps", options.gradient_accumulation_steps),
        ("micro_batch_size", options.micro_batch_size),
    ):
        size = hyperparameters.batch_size
        if isinstance(size, int) and isinstance(micro, int):
            if name == "micro_batch_size" and micro > size:
                faults.append(Fault(f"ext.{name}", f"ext.{name}: {micro} is more than the batch size, {size}"))
            if name == "gradient_accumulation_steps" and size % micro:
                faults.append(Fault(f"ext.{name}", f"ext.{name}: {micro} does not divide the batch size, {size}"))
    return faults


def parse(data: object) -> JobOptions:
    """The options in ``ext``; raises OptionsError naming every fault with its path."""
    return _parse(JobOptions, data, "ext")


def parse_hyperparameters(data: object, prefix: str) -> Hyperparameters:
    """The same for hyperparameters, ``prefix`` being ``method.supervised.hyperparameters`` or ``hyperparameters``."""
    return _parse(Hyperparameters, data, prefix)


def _parse(model: type[T], data: object, prefix: str) -> T:
    if not isinstance(data, dict):
        raise OptionsError([Fault(prefix, f"{prefix}: {_show(data)} is not an object")])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise OptionsError(_faults(model, error, data, prefix)) from None


def _faults(model: type[BaseModel], error: ValidationError, data: object, prefix: str) -> list[Fault]:
    """One fault per option: a union's members would each complain, and their names mean nothing to the user."""
    faults: dict[str, Fault] = {}
    for item in error.errors():
        if isinstance(inner := item.get("ctx", {}).get("error"), OptionsError):
            faults.update({fault.path: fault for fault in inner.faults})
            continue
        path, field, unknown, table = _locate(model, item["loc"], prefix)
        if unknown is not None:
            full = f"{path}.{unknown}"
            near = suggest(full, [*(f"{path}.{name}" for name in table.model_fields), *known(prefix, model)])
            message = f"{full} is not an option" + (f"; did you mean {near}?" if near else "")
            faults[full] = Fault(full, message)
        elif path not in faults:
            value = _value(data, path, prefix)
            what = field if field else item["msg"]
            missing = item["type"] == "missing"
            message = f"{path} is missing: it is {what}" if missing else f"{path}: {_show(value)} is not {what}"
            faults[path] = Fault(path, message)
    return list(faults.values())


def _locate(
    model: type[BaseModel], loc: tuple[int | str, ...], prefix: str
) -> tuple[str, str | None, str | None, type[BaseModel]]:
    """Path of the deepest option in ``loc``, its description, the unknown key below it, and the table it is in."""
    path: str = prefix
    description: str | None = None
    table = model
    for index, part in enumerate(loc):
        field = table.model_fields.get(str(part)) if isinstance(part, str) else None
        if field is None:
            if isinstance(part, str) and index == len(loc) - 1 and description in (None, "an object"):
                return path, description, part, table
            if isinstance(part, int) and description and "list of {" in description:
                path, description, table = f"{path}[{part}]", "an object", Mix
                continue
            continue
        path, description = f"{path}.{part}", field.description
        table = next(_tables(field.annotation), table)
    return path, description, None, table


def _tables(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        # Only a bare model or `Model | None` is a section; a list of models is an option with a value.
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield inner


def _value(data: object, path: str, prefix: str) -> object:
    """What the user gave for the option."""
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path[len(prefix) :]):
        data = data.get(key) if isinstance(data, dict) else data[int(index)] if isinstance(data, list) else data
    return data


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def known(prefix: str = "ext", table: type[BaseModel] = JobOptions) -> Iterator[str]:
    """Every option's path."""
    for name, field in table.model_fields.items():
        yield f"{prefix}.{name}"
        for section in _tables(field.annotation):
            yield from known(f"{prefix}.{name}", section)


def suggest(path: str, known: Iterable[str]) -> str | None:
    """The known path the user may have meant: a sibling that is spelled alike, else the same name elsewhere."""
    parent, _, leaf = path.rpartition(".")
    names = list(known)
    siblings = {name: name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent}
    for candidates in (siblings, {name: name.rpartition(".")[2] for name in names}):
        close = difflib.get_close_matches(leaf, candidates.values(), n=1, cutoff=0.6)
        if close:
            return next(name for name, short in candidates.items() if short == close[0])
    return None


ADAPTERS: tuple[str, ...] = get_args(Adapter)
LOW_RANK = ("lora", "qlora")
MERGEABLE = (*LOW_RANK, "ia3")
OWN_WEIGHTS = ("full", "layers")
"""Adapters that are none: the model's own weights are trained, and a whole model comes out."""

# What an option is for: given with anything else it would be ignored, so it is refused.
_FOR_ADAPTERS: dict[str, tuple[str, ...]] = {
    "lora.rank": LOW_RANK,
    "lora.alpha": LOW_RANK,
    "lora.dropout": LOW_RANK,
    "lora.target_modules": (*LOW_RANK, "ia3"),
    "lora.rslora": LOW_RANK,
    "lora.dora": LOW_RANK,
    "lora.plus_ratio": LOW_RANK,
    "layers": (*LOW_RANK, "layers"),
    "prompt.virtual_tokens": ("prompt", "prefix"),
    "peft": ("peft",),
    # A head that is trained needs its own gradient whole.
    "head_gradient": tuple(name for name in ADAPTERS if name != "full"),
}
_FOR_METHODS: dict[str, tuple[str, ...]] = {
    "preference.loss": ("dpo",),
    "preference.label_smoothing": ("dpo",),
    "preference.gamma": ("dpo",),
    "preference.sft_weight": ("dpo",),
    "prompt_loss_weight": ("supervised",),
    "head_gradient": ("supervised",),
    "train_on": ("supervised",),
}
_FOR_LOSSES: dict[str, tuple[str, ...]] = {
    "preference.label_smoothing": ("sigmoid", "simpo"),
    "preference.gamma": ("simpo",),
    "preference.sft_weight": ("sigmoid", "hinge", "ipo", "simpo", "kto"),
}
_FOR_OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "optim.betas": ("adamw", "adamw_8bit"),
    "optim.eps": ("adamw", "adamw_8bit"),
}

# What this release's engine honours. An option that is not named here must have one of the listed values
# (its default, mostly): everything else is refused at creation, so that nothing is ever ignored in silence.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "resources.devices": (1,),
}


def unsupported(options: JobOptions, method: str = "supervised") -> list[Fault]:
    """Every option that a job of this method cannot have honoured, each with a sentence."""
    faults = []
    for name, allowed in _SUPPORTED.items():
        value = _at(options, name)
        # True == 1 in Python, so the types are compared as well.
        if any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed):
            continue
        faults.append(Fault(f"ext.{name}", _sentence(name, value, [good for good in allowed if good is not None])))
    faults += _misplaced(options, method)
    return faults


def _misplaced(options: JobOptions, method: str) -> list[Fault]:
    """Options that were given with something that has no use for them, and the one that is missing."""
    faults: list[Fault] = []
    for table, chosen, what in (
        (_FOR_METHODS, method, "method"),
        (_FOR_LOSSES, options.preference.loss, "preference.loss"),
        (_FOR_ADAPTERS, options.adapter, "adapter"),
        (_FOR_OPTIMIZERS, options.optim.optimizer, "optim.optimizer"),
    ):
        for name, takers in table.items():
            known = any(fault.path == f"ext.{name}" for fault in faults)
            if chosen not in takers and _was_given(options, name) and not known:
                message = f"ext.{name} is for {what} {' or '.join(takers)}, and this job has {what} {chosen}"
                faults.append(Fault(f"ext.{name}", message))
    if "merged" in options.outputs and options.adapter not in MERGEABLE:
        path = "ext.outputs"
        faults.append(
            Fault(path, f"{path}: with adapter {options.adapter} there is nothing to merge into the base model")
        )
    if options.resume_optimizer and options.init_from is None:
        path = "ext.resume_optimizer"
        faults.append(Fault(path, f"{path}: true needs ext.init_from, the checkpoint whose optimizer goes on"))
    if options.limits.on_limit == "fail" and options.limits.max_seconds is None and options.limits.max_cost is None:
        path = "ext.limits.on_limit"
        faults.append(Fault(path, f"{path}: fail needs ext.limits.max_seconds or ext.limits.max_cost"))
    if options.adapter == "layers" and options.layers is None:
        faults.append(Fault("ext.layers", "ext.layers is missing: adapter layers trains the layers that it names"))
    if isinstance(options.eval.generate, list):
        _, problems = prompts.read(options.eval.generate, "ext.eval.generate")
        faults += [Fault(problem.path, f"{problem.path}: {problem.message}") for problem in problems]
    if options.head_gradient == "filtered" and {"lm_head"} & set(options.lora.target_modules):
        path = "ext.head_gradient"
        faults.append(
            Fault(path, f"{path}: filtered is for a head that is not trained, and lora.target_modules names it")
        )
    if options.adapter == "peft" and options.peft is None:
        faults.append(Fault("ext.peft", "ext.peft is missing: adapter peft is what it says"))
    if options.peft is not None:
        faults += [Fault(f"ext.peft.{key}", f"ext.peft.{key} {why}") for key, why in peft.faults(options.peft)]
    if options.packing is True:
        faults += _unpackable(options, method)
    if options.adapter == "prefix" and options.gradient_checkpointing is True:
        path = "ext.gradient_checkpointing"
        faults.append(Fault(path, f"{path}: true is not possible with adapter prefix, whose tokens live in the cache"))
    return faults


def _unpackable(options: JobOptions, method: str) -> list[Fault]:
    path = "ext.packing"
    if method != "supervised":
        return [Fault(path, f"{path}: true is for method supervised, and this job has method {method}")]
    if options.adapter in ("prompt", "prefix"):
        return [
            Fault(path, f"{path}: true is not possible with adapter {options.adapter}, whose tokens precede each row")
        ]
    if options.micro_batch_size == 1:
        return [Fault(path, f"{path}: true needs rows to pack, and ext.micro_batch_size is 1")]
    return []


_DEFAULTS = JobOptions()


def _was_given(options: JobOptions, name: str) -> bool:
    """Whether the option has another value than the one it would have had."""
    return _at(options, name) != _at(_DEFAULTS, name)


def _at(options: JobOptions, name: str) -> object:
    """The value of ``lora.rank``, say."""
    return functools.reduce(getattr, name.split("."), options)


def _sentence(name: str, value: object, allowed: list[object]) -> str:
    shown = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
    tail = f"; it takes {' or '.join(_show(good) for good in allowed)} for now" if allowed else ""
    return f"ext.{name}: {_show(shown)} is not available in this release{tail}"
