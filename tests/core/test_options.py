"""The table of job options: ranges, defaults, exclusions, what is supported, and what is said about mistakes."""

from typing import Any, get_args

import pytest

from core import options
from core.formats import rows
from core.formats.report import Form
from core.options import Hyperparameters, JobOptions, OptionsError


def faults(ext: Any) -> dict[str, str]:
    with pytest.raises(OptionsError) as error:
        options.parse(ext)
    return {fault.path: fault.message for fault in error.value.faults}


def nested(path: str, value: Any) -> Any:
    """{"a": {"b": value}} for "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


DEFAULTS = {
    "adapter": "lora",
    "lora.rank": 16,
    "lora.alpha": None,
    "lora.dropout": 0,
    "lora.target_modules": "all-linear",
    "lora.rslora": False,
    "lora.dora": False,
    "prompt.virtual_tokens": 20,
    "preference.loss": "sigmoid",
    "prompt_loss_weight": 0.1,
    "train_on": "assistant",
    "optim.learning_rate": "auto",
    "optim.schedule": "cosine",
    "optim.min_lr_ratio": 0.1,
    "optim.optimizer": "adamw",
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.max_grad_norm": 1.0,
    "epochs": None,
    "max_steps": None,
    "max_length": "auto",
    "packing": "auto",
    "precision": "auto",
    "gradient_checkpointing": "auto",
    "head_gradient": "exact",
    "chat_template": "base",
    "format": "auto",
    "data.over_length": "drop",
    "data.max_invalid_fraction": 0,
    "eval.every": "auto",
    "early_stopping": None,
    "outputs": "adapter",
    "limits.on_limit": "save",
    "resources.devices": 1,
    "resources.priority": "normal",
    "dry_run": False,
}


@pytest.mark.parametrize(("path", "value"), DEFAULTS.items(), ids=list(DEFAULTS))
def test_default(path: str, value: Any) -> None:
    found: Any = options.parse({})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_defaults_are_supported() -> None:
    assert options.unsupported(options.parse({})) == []


GOOD = [
    ("format", ["auto", "alpaca"]),
    ("eval.generate", [["hi"], [{"role": "user", "content": "hi"}], [[{"role": "user", "content": "hi"}]]]),
    ("data.mix", [[{"file_id": "file-1"}], [{"file_id": "file-1", "weight": 0.5}, {"file_id": "file-2"}]]),
    ("data.validation_fraction", [0.001, 0.5]),
    ("data.max_invalid_fraction", [0, 0.1, 1]),
    ("checkpoints.every", ["epoch", 1, 10, {"minutes": 0.5}]),
    ("checkpoints.keep", ["all", "best", {"last": 1}]),
    ("lora.rank", [1, 512]),
    ("lora.alpha", [0.5, 64]),
    ("lora.dropout", [0, 0.99]),
    ("adapter", ["qlora", "full", "ia3", "prompt", "prefix"]),
    ("lora.plus_ratio", [1, 16]),
    ("layers", [[0, -1], {"last": 2}]),
    ("lora.target_modules", [["q_proj", "model.layers.0.mlp.up_proj"]]),
    ("prompt_loss_weight", [0, 1, 0.01, "auto"]),
    ("train_on", ["last_assistant", "all"]),
    ("optim.learning_rate", [1e-9, 1, "auto"]),
    ("optim.schedule", ["linear", "constant", "inverse_sqrt", "wsd"]),
    ("optim.warmup_ratio", [0, 1]),
    ("optim.warmup_steps", [0, 5]),
    ("optim.optimizer", ["sgd", "adafactor", "adamw_8bit"]),
    ("optim.betas", [[0, 0.5]]),
    ("optim.weight_decay", [0, 0.1]),
    ("epochs", [0.1, 100, "auto"]),
    ("max_steps", [1]),
    ("gradient_accumulation_steps", [1, "auto"]),
    ("micro_batch_size", [4]),
    ("max_length", [8, "auto"]),
    ("packing", [False, True, "auto"]),
    ("head_gradient", ["exact", "filtered"]),
    ("precision", ["fp32", "bf16", "fp16"]),
    ("gradient_checkpointing", [True, False]),
    ("chat_template", ["{{ messages }}"]),
    ("data.over_length", ["error", "truncate"]),
    ("eval.every", [1, "epoch"]),
    ("early_stopping", [{}]),
    ("early_stopping.patience", [1, 9]),
    ("early_stopping.min_delta", [0, 0.01]),
    ("early_stopping.warmup_evals", [0, 3]),
    ("init_from", ["ft:x"]),
    ("outputs", [["adapter"], "merged", ["adapter", "merged"]]),
    ("limits", [{"max_seconds": 0.5}, {"max_cost": 3, "on_limit": "fail"}]),
    ("limits.max_seconds", [60]),
    ("limits.max_cost", [1.5]),
    ("limits.on_limit", ["save"]),
    ("resources.priority", ["low", "high"]),
    ("dry_run", [True, False]),
]


@pytest.mark.parametrize(("path", "values"), GOOD, ids=[path for path, _ in GOOD])
def test_good_values_are_taken_and_supported(path: str, values: list[Any]) -> None:
    for value in values:
        parsed = options.parse(nested(path, value))
        assert options.unsupported(parsed) == []
        # What is kept with a job reads back the same, with and without its defaults.
        assert JobOptions.model_validate_json(parsed.model_dump_json()) == parsed
        assert JobOptions.model_validate_json(parsed.model_dump_json(exclude_unset=True)) == parsed


BAD = [
    ("adapter", ["Lora", 1, None]),
    ("lora", [None, 3, []]),
    ("lora.rank", [0, 513, "16", 1.5, True, None]),
    ("lora.alpha", [0, -1, "a", float("inf"), float("nan")]),
    ("lora.dropout", [-0.1, 1]),
    ("lora.target_modules", [[], "all", [1], ["q proj"], 3]),
    ("lora.rslora", [1, "true"]),
    ("lora.plus_ratio", [0.5]),
    ("prompt.virtual_tokens", [0, 513]),
    ("preference.label_smoothing", [0.5, -1]),
    ("prompt_loss_weight", [-0.1, 1.1, "none", True, float("nan")]),
    ("train_on", ["user"]),
    ("optim.learning_rate", [0, 1.1, "fast", float("inf")]),
    ("optim.schedule", ["step"]),
    ("optim.warmup_ratio", [1.1]),
    ("optim.warmup_steps", [-1, 0.5]),
    ("optim.betas", [[0.9], [0.9, 1], 0.9, [0.9, "a"]]),
    ("optim.eps", [0]),
    ("optim.weight_decay", [-1]),
    ("optim.max_grad_norm", [0]),
    ("epochs", [0, 101, "all"]),
    ("max_steps", [0, 1.5]),
    ("gradient_accumulation_steps", [0, "x"]),
    ("max_length", [7, "full"]),
    ("packing", ["yes", 1]),
    ("precision", ["fp8"]),
    ("chat_template", ["", 3, "x" * 65537]),
    ("data.over_length", ["cut"]),
    ("data.validation_fraction", [0, 0.6]),
    ("eval.every", [0, "step"]),
    ("eval.generate", [["a"] * 21]),
    ("early_stopping.patience", [0]),
    ("outputs", ["gguf"]),
    ("limits.max_seconds", [0]),
    ("resources.devices", [0]),
    ("resources.priority", ["urgent"]),
    ("dry_run", ["no"]),
]


@pytest.mark.parametrize(("path", "values"), BAD, ids=[path for path, _ in BAD])
def test_bad_values_are_named_once_with_what_would_be_right(path: str, values: list[Any]) -> None:
    for value in values:
        found = faults(nested(path, value))
        assert list(found) == [f"ext.{path}"]
        assert found[f"ext.{path}"].startswith(f"ext.{path}: ")
        assert " is not " in found[f"ext.{path}"]


def test_the_sentence() -> None:
    assert faults({"lora": {"rank": 0}}) == {"ext.lora.rank": "ext.lora.rank: 0 is not an integer from 1 to 512"}


def test_every_fault_is_named() -> None:
    found = faults({"lora": {"rank": 0, "alhpa": 3}, "epochs": -1, "optim": {"betas": 1}})
    assert set(found) == {"ext.lora.rank", "ext.lora.alhpa", "ext.epochs", "ext.optim.betas"}


@pytest.mark.parametrize(
    ("ext", "path", "near"),
    [
        ({"lora": {"rnak": 8}}, "ext.lora.rnak", "ext.lora.rank"),
        ({"rank": 8}, "ext.rank", "ext.lora.rank"),
        ({"learning_rate": 1e-4}, "ext.learning_rate", "ext.optim.learning_rate"),
        ({"promptLossWeight": 1}, "ext.promptLossWeight", "ext.prompt_loss_weight"),
        ({"data": {"mix": [{"file_id": "f", "wieght": 1}]}}, "ext.data.mix[0].wieght", "ext.data.mix[0].weight"),
        ({"early_stopping": {"patienc": 1}}, "ext.early_stopping.patienc", "ext.early_stopping.patience"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(ext: Any, path: str, near: str) -> None:
    assert faults(ext)[path] == f"{path} is not an option; did you mean {near}?"


def test_an_unknown_key_like_no_other_is_only_named() -> None:
    assert faults({"zzzzzz": 1}) == {"ext.zzzzzz": "ext.zzzzzz is not an option"}


def test_something_else_than_an_object_is_refused() -> None:
    assert faults([1]) == {"ext": "ext: [1] is not an object"}


@pytest.mark.parametrize(
    ("ext", "path"),
    [
        ({"epochs": 1, "max_steps": 5}, "ext.epochs"),
        ({"optim": {"warmup_ratio": 0.1, "warmup_steps": 5}}, "ext.optim.warmup_ratio"),
        ({"gradient_accumulation_steps": 2, "micro_batch_size": 2}, "ext.gradient_accumulation_steps"),
    ],
)
def test_options_that_exclude_each_other(ext: Any, path: str) -> None:
    assert "exclude each other" in faults(ext)[path]


def test_auto_excludes_nothing() -> None:
    options.parse({"epochs": "auto", "max_steps": 5, "gradient_accumulation_steps": "auto", "micro_batch_size": 2})


@pytest.mark.parametrize(
    ("ext", "hyperparameters", "path"),
    [
        ({"optim": {"learning_rate": 1e-4}}, {"learning_rate_multiplier": 2}, "ext.optim.learning_rate"),
        ({"epochs": 2}, {"n_epochs": 3}, "ext.epochs"),
        ({"max_steps": 2}, {"n_epochs": 3}, "ext.max_steps"),
        ({"micro_batch_size": 16}, {"batch_size": 8}, "ext.micro_batch_size"),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 8}, "ext.gradient_accumulation_steps"),
    ],
)
def test_options_and_hyperparameters_in_conflict(ext: Any, hyperparameters: Any, path: str) -> None:
    given = options.parse_hyperparameters(hyperparameters, "method.supervised.hyperparameters")
    found = options.conflicts(options.parse(ext), given, "method.supervised.hyperparameters")
    assert [fault.path for fault in found] == [path]
    assert options.conflicts(options.parse(ext), Hyperparameters()) == []
    assert options.conflicts(options.parse({}), given) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_epochs", 0), ("n_epochs", 51), ("n_epochs", 2.5), ("batch_size", 257), ("learning_rate_multiplier", 0)],
)
def test_bad_hyperparameters_are_named(name: str, value: Any) -> None:
    with pytest.raises(OptionsError) as error:
        options.parse_hyperparameters({name: value}, "hyperparameters")
    assert [fault.path for fault in error.value.faults] == [f"hyperparameters.{name}"]


UNSUPPORTED = [
    ("resources.devices", 2),
]


@pytest.mark.parametrize(("path", "value"), UNSUPPORTED)
def test_what_can_not_be_honoured_is_refused(path: str, value: Any) -> None:
    found = options.unsupported(options.parse(nested(path, value)))
    assert [fault.path for fault in found] == [f"ext.{path}"]
    assert "not available in this release" in found[0].message


MISPLACED = [
    ({"preference": {"loss": "ipo"}}, "ext.preference.loss", "for method dpo"),
    ({"preference": {"label_smoothing": 0.1}}, "ext.preference.label_smoothing", "for method dpo"),
    ({"preference": {"gamma": 1}}, "ext.preference.gamma", "for method dpo"),
    ({"preference": {"sft_weight": 0.1}}, "ext.preference.sft_weight", "for method dpo"),
    ({"adapter": "full", "lora": {"rank": 8}}, "ext.lora.rank", "for adapter lora or qlora"),
    ({"adapter": "ia3", "lora": {"dropout": 0.1}}, "ext.lora.dropout", "has adapter ia3"),
    ({"adapter": "prompt", "lora": {"target_modules": ["q_proj"]}}, "ext.lora.target_modules", "has adapter prompt"),
    ({"prompt": {"virtual_tokens": 8}}, "ext.prompt.virtual_tokens", "for adapter prompt or prefix"),
    ({"adapter": "full", "layers": [1]}, "ext.layers", "for adapter lora or qlora or layers"),
    ({"adapter": "layers"}, "ext.layers", "is missing"),
    ({"peft": {"type": "loha"}}, "ext.peft", "for adapter peft"),
    ({"adapter": "peft"}, "ext.peft", "is missing"),
    ({"limits": {"on_limit": "fail"}}, "ext.limits.on_limit", "needs ext.limits.max_seconds"),
    ({"resume_optimizer": True}, "ext.resume_optimizer", "needs ext.init_from"),
    ({"adapter": "full", "outputs": "merged"}, "ext.outputs", "nothing to merge"),
    ({"adapter": "prompt", "outputs": ["adapter", "merged"]}, "ext.outputs", "nothing to merge"),
    ({"adapter": "prefix", "gradient_checkpointing": True}, "ext.gradient_checkpointing", "not possible"),
    ({"optim": {"optimizer": "sgd", "betas": [0.9, 0.99]}}, "ext.optim.betas", "for optim.optimizer adamw"),
    ({"optim": {"optimizer": "adafactor", "eps": 1e-6}}, "ext.optim.eps", "has optim.optimizer adafactor"),
]


@pytest.mark.parametrize(("ext", "path", "said"), MISPLACED)
def test_an_option_that_nothing_would_read_is_refused(ext: dict[str, Any], path: str, said: str) -> None:
    found = options.unsupported(options.parse(ext))
    assert [fault.path for fault in found] == [path]
    assert said in found[0].message


DPO = [
    ({"prompt_loss_weight": 0.5}, "ext.prompt_loss_weight"),
    ({"train_on": "all"}, "ext.train_on"),
    ({"preference": {"loss": "hinge", "label_smoothing": 0.1}}, "ext.preference.label_smoothing"),
    ({"preference": {"gamma": 1}}, "ext.preference.gamma"),
    ({"preference": {"loss": "orpo", "sft_weight": 0.1}}, "ext.preference.sft_weight"),
    ({"preference": {"loss": "simpo", "gamma": 1, "sft_weight": 0.1, "label_smoothing": 0.1}}, None),
    ({"preference": {"loss": "kto"}, "adapter": "full"}, None),
]


@pytest.mark.parametrize(("ext", "path"), DPO)
def test_a_preference_loss_is_given_only_what_it_reads(ext: dict[str, Any], path: str | None) -> None:
    found = options.unsupported(options.parse(ext), "dpo")
    assert [fault.path for fault in found] == ([path] if path else [])


def test_beta_is_for_preferences() -> None:
    given = options.parse_hyperparameters({"beta": 0.3}, "method.dpo.hyperparameters")
    assert options.conflicts(options.parse({}), given, "method.dpo.hyperparameters") == []
    (fault,) = options.conflicts(options.parse({}), given, "method.supervised.hyperparameters")
    assert fault.path == "method.supervised.hyperparameters.beta"


@pytest.mark.parametrize(
    "ext",
    [
        {"adapter": "ia3", "lora": {"target_modules": ["k_proj"]}},
        {"adapter": "qlora", "lora": {"rank": 8, "plus_ratio": 16}, "layers": {"last": 2}},
        {"adapter": "layers", "layers": [0, 1]},
        {"adapter": "prefix", "prompt": {"virtual_tokens": 8}},
        {"adapter": "full", "lora": {"alpha": None}, "optim": {"optimizer": "adamw_8bit", "betas": [0.9, 0.95]}},
    ],
)
def test_what_goes_together_is_taken(ext: dict[str, Any]) -> None:
    assert options.unsupported(options.parse(ext)) == []


def test_every_option_is_either_tried_as_good_or_refused() -> None:
    """An option nobody thought of would be ignored in silence."""
    tried = {path for path, _ in GOOD} | {path for path, _ in UNSUPPORTED}
    sections = {"lora", "prompt", "preference", "optim", "data", "eval", "checkpoints", "limits", "resources"}
    sections |= {"early_stopping"}
    names = [name.removeprefix("ext.") for name in options.known()]
    tried |= {path.removeprefix("ext.") for _, path, _ in MISPLACED}
    untried = {name for name in names if name not in tried | sections}
    # Ranges of these are tested above, their values honoured as they are.
    assert untried <= {"optim.min_lr_ratio", "optim.eps", "optim.max_grad_norm", "lora.rslora", "lora.dora"}


def test_every_form_of_rows_can_be_asked_for_and_no_other() -> None:
    assert set(get_args(Form)) == set(rows.BY_NAME)
    for name in ("auto", *rows.BY_NAME):
        assert options.unsupported(options.parse({"format": name})) == []
    message = faults({"format": "alpacca"})["ext.format"]
    assert all(name in message for name in rows.BY_NAME)


@pytest.mark.parametrize(
    "mix", [[], [{"file_id": "f", "weight": 0}], [{"file_id": "f", "weight": 101}], [{"file_id": "f"}] * 17]
)
def test_a_mix_has_bounds(mix: Any) -> None:
    assert next(iter(faults({"data": {"mix": mix}}))).startswith("ext.data.mix")


@pytest.mark.parametrize(
    ("given", "method", "path"),
    [
        ({"packing": True}, "dpo", "ext.packing"),
        ({"packing": True, "adapter": "prompt"}, "supervised", "ext.packing"),
        ({"packing": True, "micro_batch_size": 1}, "supervised", "ext.packing"),
        ({"head_gradient": "filtered"}, "dpo", "ext.head_gradient"),
        ({"head_gradient": "filtered", "adapter": "full"}, "supervised", "ext.head_gradient"),
        ({"head_gradient": "filtered", "lora": {"target_modules": ["lm_head"]}}, "supervised", "ext.head_gradient"),
    ],
)
def test_packing_and_the_filter_are_refused_where_they_can_not_hold(given: Any, method: str, path: str) -> None:
    assert [fault.path for fault in options.unsupported(options.parse(given), method)] == [path]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"adapter": "peft", "peft": {}}, "ext.peft.type"),
        ({"adapter": "peft", "peft": {"type": "adalora"}}, "ext.peft.type"),
        ({"adapter": "peft", "peft": {"type": "loha", "r": 0}}, "ext.peft.r"),
        ({"adapter": "peft", "peft": {"type": "loha", "init_weights": False}}, "ext.peft.init_weights"),
        ({"adapter": "peft", "peft": {"type": "loha", "target_modules": []}}, "ext.peft.target_modules"),
        ({"adapter": "peft", "peft": {"type": "loha"}, "outputs": "merged"}, "ext.outputs"),
        ({"adapter": "peft", "peft": {"type": "loha"}, "lora": {"rank": 4}}, "ext.lora.rank"),
    ],
)
def test_a_peft_configuration_is_checked_when_the_job_is_made(given: Any, path: str) -> None:
    assert [fault.path for fault in options.unsupported(options.parse(given))] == [path]


def test_peft_configurations_that_are_taken() -> None:
    for given in ({"type": "vera", "r": 256}, {"type": "miss", "target_modules": ["q_proj"], "miss_dropout": 0.1}):
        assert options.unsupported(options.parse({"adapter": "peft", "peft": given})) == []
