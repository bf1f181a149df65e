"""What every ``auto`` becomes, and what is said about odd values."""

from pathlib import Path
from typing import Any

import pytest

from core.cost import Shape
from core.options import Hyperparameters, JobOptions
from worker.folder import BaseSpec
from worker.prepare import resolve
from worker.prepare.folder import Facts


def resolved(
    facts: Facts,
    examples: int = 240,
    ext: Any = None,
    hyperparameters: Any = None,
    *,
    prompt: int = 1000,
    completion: int = 900,
    validation: bool = False,
    length: int = 64,
    fast_bf16: bool = False,
    method: str = "supervised",
) -> resolve.Resolution:
    return resolve.resolve(
        method,
        JobOptions.model_validate(ext or {}),
        Hyperparameters.model_validate(hyperparameters or {}),
        resolve.Sizes(examples, 64, prompt, completion, validation),
        facts,
        length=length,
        length_reason="the longest row",
        form="chat",
        seed=7,
        fast_bf16=fast_bf16,
    )


def warnings(found: resolve.Resolution) -> list[str]:
    return [note.message for note in found.notes if note.level == "warn"]


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "steps"),
    [
        (10, 8, 30, 60),
        (50, 8, 9, 63),
        (100, 8, 5, 65),
        (240, 8, 5, 150),
        (499, 8, 5, 315),
        (500, 8, 3, 189),
        (2_000, 8, 2, 500),
        (10_000, 16, 2, 1250),
        (20_000, 32, 1, 625),
        (1_000_000, 64, 1, 15625),
    ],
)
def test_duration_by_the_number_of_examples(facts: Facts, examples: int, batch: int, epochs: int, steps: int) -> None:
    found = resolved(facts, examples).resolved
    assert (found.batch_size, found.epochs, found.total_steps) == (batch, epochs, steps)
    assert found.hyperparameters.model_dump() == {
        "n_epochs": epochs,
        "batch_size": batch,
        "learning_rate_multiplier": 1.0,
        "beta": None,
    }


@pytest.mark.parametrize(
    ("ext", "hyperparameters", "epochs", "steps"),
    [
        ({}, {"n_epochs": 3}, 3, 90),
        ({"epochs": 0.5}, {}, 0.5, 15),
        ({"epochs": 0.1}, {}, 0.1, 3),
        ({"epochs": 0.001}, {}, 0.001, 1),
        ({"epochs": 2.51}, {}, 2.51, 76),
        ({"max_steps": 45}, {}, 1.5, 45),
        ({}, {"batch_size": 7, "n_epochs": 1}, 1, 35),
    ],
)
def test_duration_as_asked(facts: Facts, ext: Any, hyperparameters: Any, epochs: float, steps: int) -> None:
    found = resolved(facts, 240, ext, hyperparameters).resolved
    assert (found.epochs, found.total_steps) == (epochs, steps)
    # OpenAI's n_epochs is a whole number from 1.
    assert found.hyperparameters.n_epochs >= max(1, epochs)


@pytest.mark.parametrize(
    ("model", "hidden", "batch", "steps", "rate"),
    [
        # The published values at batch 128: Qwen3-0.6B, Llama-1B, -8B, -70B.
        ("qwen3", 1024, 128, 1000, 5.3e-4),
        ("llama", 2048, 128, 1000, 4.9e-4),
        ("llama", 4096, 128, 1000, 2.9e-4),
        ("llama", 8192, 128, 1000, 1.7e-4),
        ("gemma3_text", 1152, 8, 150, 2.2e-4),
        ("gemma3_text", 1152, 8, 99, 3.3e-4),
        ("gemma3_text", 1152, 128, 99, 9.4e-4),
        ("llama", 16384, 8, 1000, 5e-5),
        # Narrow models, whatever their kind, the batch and the steps; then what lies between.
        ("llama", 128, 4, 16, 6.4e-3),
        ("qwen2", 192, 8, 1000, 6.4e-3),
        ("gemma3_text", 350, 8, 99, 3.2e-3),
        ("gemma3_text", 640, 8, 99, 1.6e-3),
        ("gemma3_text", 640, 16, 150, 1.6e-3),
        ("qwen3", 832, 128, 1000, 8.6e-4),
        ("qwen3", 1023, 128, 1000, 5.3e-4),
    ],
)
def test_the_learning_rate(model: str, hidden: int, batch: int, steps: int, rate: float) -> None:
    assert resolve.learning_rate("lora", model, hidden, batch, steps) == pytest.approx(rate, rel=0.02)


def test_a_multiplier_and_a_rate_are_two_ways_to_say_it(facts: Facts) -> None:
    automatic = resolved(facts).resolved.optim.learning_rate
    twice = resolved(facts, hyperparameters={"learning_rate_multiplier": 2}).resolved
    assert twice.optim.learning_rate == 2 * automatic
    given = resolved(facts, ext={"optim": {"learning_rate": automatic / 2}}).resolved
    assert given.hyperparameters.learning_rate_multiplier == pytest.approx(0.5)


def test_what_is_automatic_is_never_unusual_and_own_weights_stay_a_tenth(facts: Facts) -> None:
    narrow = facts.model_copy(update={"hidden_size": 64})
    assert resolved(narrow).resolved.optim.learning_rate == 6.4e-3
    assert warnings(resolved(narrow)) == []
    assert warnings(resolved(narrow, ext={"optim": {"learning_rate": 7e-3}}))
    assert resolve.learning_rate("full", "llama", 64, 8, 1000) == 5e-5


@pytest.mark.parametrize(("rate", "warns"), [(1e-7, False), (9e-8, True), (1e-3, False), (2e-3, True)])
def test_an_unusual_learning_rate_is_warned_about(facts: Facts, rate: float, warns: bool) -> None:
    found = resolved(facts, ext={"optim": {"learning_rate": rate}})
    assert found.resolved.optim.learning_rate == rate
    assert any("learning_rate" in warning for warning in warnings(found)) is warns


@pytest.mark.parametrize(
    ("ext", "steps", "warmup"),
    [
        ({}, 1000, 50),
        ({}, 10_000, 100),
        ({}, 60, 5),
        ({}, 8, 2),
        ({}, 1, 0),
        ({"warmup_ratio": 0.2}, 100, 20),
        ({"warmup_ratio": 0}, 100, 0),
        ({"warmup_steps": 3}, 100, 3),
    ],
)
def test_the_warm_up(facts: Facts, ext: Any, steps: int, warmup: int) -> None:
    found = resolved(facts, ext={"max_steps": steps, "optim": ext})
    assert found.resolved.optim.warmup_steps == warmup


def test_a_warm_up_longer_than_the_run_is_warned_about(facts: Facts) -> None:
    assert "warmup_steps 9" in warnings(resolved(facts, ext={"max_steps": 9, "optim": {"warmup_steps": 9}}))[0]


@pytest.mark.parametrize(
    ("prompt", "completion", "weight"), [(100, 99, 0.1), (100, 100, 0.0), (0, 100, 0.0), (100, 1, 0.1)]
)
def test_prompt_loss_weight_auto(facts: Facts, prompt: int, completion: int, weight: float) -> None:
    ext = {"prompt_loss_weight": "auto"}
    assert resolved(facts, ext=ext, prompt=prompt, completion=completion).resolved.prompt_loss_weight == weight
    assert resolved(facts, prompt=prompt, completion=completion).resolved.prompt_loss_weight == 0.1


@pytest.mark.parametrize(
    ("ext", "given", "fast", "batch", "micro", "accumulation"),
    [
        ({}, "auto", False, 8, 1, 8),
        ({}, "auto", True, 8, 8, 1),
        ({}, 64, True, 64, 64, 1),
        ({"micro_batch_size": 4}, 8, False, 8, 4, 2),
        ({"micro_batch_size": 3}, 8, False, 8, 3, 3),
        ({"micro_batch_size": 16}, "auto", False, 16, 16, 1),
        ({"gradient_accumulation_steps": 4}, 8, False, 8, 2, 4),
        ({"gradient_accumulation_steps": 3}, "auto", False, 9, 3, 3),
    ],
)
def test_batches(facts: Facts, ext: Any, given: Any, fast: bool, batch: int, micro: int, accumulation: int) -> None:
    found = resolved(facts, ext=ext, hyperparameters={"batch_size": given}, fast_bf16=fast).resolved
    assert (found.batch_size, found.micro_batch_size) == (batch, micro)
    assert found.gradient_accumulation_steps == accumulation


def test_binary_fractions_do_not_add_a_step(facts: Facts) -> None:
    # 2.2 × 25 is a little more than 55 in floating point.
    assert resolved(facts, 200, {"epochs": 2.2}).resolved.total_steps == 55


def test_a_batch_larger_than_the_data_is_warned_about(facts: Facts) -> None:
    assert "batch_size 64" in warnings(resolved(facts, 20, hyperparameters={"batch_size": 64}))[0]


@pytest.mark.parametrize(
    ("given", "context", "longest", "length"),
    [("auto", 512, 63, 63), ("auto", 512, 600, 512), ("auto", 512, 3, 8), (100, 512, 600, 100)],
)
def test_max_length(given: Any, context: int, longest: int, length: int) -> None:
    assert resolve.max_length(JobOptions(max_length=given), context, longest)[0] == length


@pytest.mark.parametrize(
    ("given", "fast", "precision", "warns"),
    [
        ("auto", False, "fp32", False),
        ("auto", True, "bf16", False),
        ("fp32", True, "fp32", False),
        ("bf16", False, "bf16", True),
        ("bf16", True, "bf16", False),
        ("fp16", False, "fp16", False),
    ],
)
def test_precision(facts: Facts, given: str, fast: bool, precision: str, warns: bool) -> None:
    found = resolved(facts, ext={"precision": given}, fast_bf16=fast)
    assert found.resolved.precision == precision
    assert bool(warnings(found)) is warns


@pytest.mark.parametrize(
    ("ext", "validation", "every", "told"),
    [
        ({}, False, None, None),
        ({"eval": {"every": 10}}, False, None, None),
        ({}, True, "epoch", None),
        ({"epochs": 2}, True, 12, 12),
        ({"eval": {"every": 10}}, True, 10, 10),
        ({"epochs": 1, "eval": {"every": "epoch"}}, True, "epoch", None),
    ],
)
def test_evaluation(facts: Facts, ext: Any, validation: bool, every: Any, told: int | None) -> None:
    found = resolved(facts, ext=ext, validation=validation).resolved
    assert found.eval.every == every
    spec = resolve.train_spec(found, job_id="ftjob-1", base=BaseSpec(name="b", path=Path("b"), sha256="0"))
    assert spec.eval_every == told


def test_every_option_reaches_the_trainer(facts: Facts) -> None:
    ext = {
        "lora": {"rank": 4, "alpha": 6, "dropout": 0.1, "target_modules": ["q_proj"]}
        | {"rslora": True, "dora": True, "plus_ratio": 16.0},
        "layers": [-1],
        "prompt_loss_weight": 0.3,
        "optim": {
            "learning_rate": 1e-4,
            "schedule": "wsd",
            "warmup_steps": 2,
            "min_lr_ratio": 0.2,
            "optimizer": "adamw_8bit",
            "betas": [0.8, 0.9],
            "eps": 1e-6,
            "weight_decay": 0.05,
            "max_grad_norm": 0.5,
        },
        "max_steps": 30,
        "micro_batch_size": 2,
        "precision": "bf16",
        "gradient_checkpointing": True,
        "eval": {"every": 5},
    }
    found = resolved(facts, ext=ext, hyperparameters={"batch_size": 4}, validation=True, length=48).resolved
    base = BaseSpec(name="b", path=Path("b"), sha256="0")
    spec = resolve.train_spec(found, job_id="ftjob-1", base=base, threads=2)
    told = spec.model_dump(include=set(ext) - {"eval", "max_steps", "optim", "lora"})
    assert told == {name: ext[name] for name in told}
    assert spec.lora.model_dump() == ext["lora"]
    assert {**spec.optim.model_dump(exclude={"find"}), "betas": list(spec.optim.betas)} == ext["optim"]
    assert (spec.total_steps, spec.batch_size, spec.max_length, spec.eval_every) == (30, 4, 48, 5)
    assert (spec.seed, spec.threads, spec.epochs) == (7, 2, 0.5)


@pytest.mark.parametrize(
    ("ext", "told"),
    [
        ({"adapter": "full"}, {"adapter": "full", "layers": None}),
        ({"adapter": "layers", "layers": {"last": 2}}, {"adapter": "layers", "layers": [-2, -1]}),
        ({"adapter": "ia3", "lora": {"target_modules": ["k_proj"]}}, {"adapter": "ia3"}),
        ({"adapter": "prompt", "prompt": {"virtual_tokens": 7}}, {"adapter": "prompt", "virtual_tokens": 7}),
        ({"adapter": "prefix"}, {"adapter": "prefix", "virtual_tokens": 20}),
    ],
)
def test_every_adapters_options_reach_the_trainer(facts: Facts, ext: dict[str, Any], told: dict[str, Any]) -> None:
    found = resolved(facts, ext=ext).resolved
    assert found.lora is None
    spec = resolve.train_spec(found, job_id="ftjob-1", base=BaseSpec(name="b", path=Path("b"), sha256="0"))
    assert spec.model_dump(include=set(told)) == told
    assert spec.lora.target_modules == ext.get("lora", {}).get("target_modules", "all-linear")


@pytest.mark.parametrize(
    ("loss", "asked", "beta", "gamma"),
    [
        ("sigmoid", {}, 0.1, 0),
        ("simpo", {}, 2, 0.5),
        ("kto", {"beta": 0.3}, 0.3, 0),
        ("ipo", {"beta": "auto"}, 0.1, 0),
    ],
)
def test_preferences(facts: Facts, loss: str, asked: dict[str, Any], beta: float, gamma: float) -> None:
    found = resolved(facts, ext={"preference": {"loss": loss}}, hyperparameters=asked, method="dpo").resolved
    assert found.preference is not None
    assert (found.preference.loss, found.preference.beta, found.preference.gamma) == (loss, beta, gamma)
    assert found.hyperparameters.beta == beta
    # One pass, and a tenth of the rate that examples are learned with.
    assert found.epochs == 1
    examples = resolved(facts, ext={"max_steps": found.total_steps}).resolved
    assert found.optim.learning_rate == pytest.approx(examples.optim.learning_rate / 10, rel=0.06)
    spec = resolve.train_spec(found, job_id="ftjob-1", base=BaseSpec(name="b", path=Path("b"), sha256="0"))
    assert spec.method == "dpo"
    assert spec.preference is not None
    assert spec.preference.model_dump() == found.preference.model_dump()
    assert resolve.train_spec(examples, job_id="j", base=spec.base).preference is None


@pytest.mark.parametrize(
    ("adapter", "rate", "decay"),
    [("lora", 1.0, 0), ("qlora", 1.0, 0), ("full", 0.1, 0.01), ("layers", 0.1, 0.01), ("ia3", None, 0)],
)
def test_each_adapter_has_its_own_rate_and_decay(facts: Facts, adapter: str, rate: float | None, decay: float) -> None:
    """``rate``: as a share of LoRA's, None where it has nothing to do with it."""
    layers = {"layers": [0]} if adapter == "layers" else {}
    facts = facts.model_copy(update={"hidden_size": 2048})
    found = resolved(facts, ext={"adapter": adapter} | layers)
    lora = resolved(facts).resolved.optim.learning_rate
    expected = 5e-3 if rate is None else min(5e-5, rate * lora) if rate < 1 else lora
    assert found.resolved.optim.learning_rate == pytest.approx(expected, rel=0.02)
    assert found.resolved.optim.weight_decay == decay
    assert warnings(found) == []


@pytest.mark.parametrize(
    ("ext", "fast", "tokens", "packed", "micro"),
    [
        ({}, False, 1900, False, 1),
        ({"packing": True}, False, 1900, True, 3),
        ({"packing": True}, True, 1900, True, 3),
        ({"packing": False}, True, 1900, False, 8),
        ({}, True, 1900, True, 8),
        ({}, True, 5000, False, 8),
    ],
)
def test_packing(facts: Facts, ext: Any, fast: bool, tokens: int, packed: bool, micro: int) -> None:
    """100 rows, the longest of 64 tokens."""
    found = resolved(facts, examples=100, ext=ext, fast_bf16=fast, prompt=tokens - 900).resolved
    assert (found.packing, found.micro_batch_size) == (packed, micro)
    spec = resolve.train_spec(found, job_id="j", base=BaseSpec(name="b", path=Path("b"), sha256="0"))
    assert spec.packing is packed


@pytest.mark.parametrize(
    ("ext", "method", "tokens", "packed", "micro"),
    [
        ({}, "supervised", 6400, True, 8),
        ({}, "supervised", 1900, True, 8),
        ({}, "supervised", 20_000, True, 2),
        ({}, "supervised", 60_000, False, 1),
        ({"packing": False}, "supervised", 6400, False, 1),
        ({"micro_batch_size": 4}, "supervised", 6400, True, 4),
        ({"micro_batch_size": 1}, "supervised", 6400, False, 1),
        ({"gradient_accumulation_steps": 2}, "supervised", 6400, True, 4),
        ({"adapter": "prompt"}, "supervised", 6400, False, 1),
        ({}, "dpo", 6400, False, 1),
    ],
)
def test_a_processor_packs_short_rows_where_the_model_keeps_them_apart(
    facts: Facts, ext: Any, method: str, tokens: int, packed: bool, micro: int
) -> None:
    """100 rows in steps of 8."""
    assert facts.shape is None
    numbers = {"parameters": 1, "layers": 1, "hidden_size": 1, "vocab_size": 1, "attention_width": 1, "key_width": 1}
    for packs in (True, False):
        shape = Shape(**numbers, feed_forward=1, heads=1, linears=[], packs=packs)
        known = facts.model_copy(update={"shape": shape})
        found = resolved(known, examples=100, ext=ext, prompt=tokens - 900, method=method).resolved
        assert found.packing is (packed and packs)
        if packs:
            assert found.micro_batch_size == micro


def test_each_auto_is_given_a_reason(facts: Facts) -> None:
    ext = {"prompt_loss_weight": "auto", "epochs": "auto"}
    found = resolved(facts, ext=ext, fast_bf16=True, validation=True)
    told = {note.data["option"]: note.data["value"] for note in found.notes if note.level == "info"}
    assert told == {
        "max_length": found.resolved.max_length,
        "batch_size": found.resolved.batch_size,
        "micro_batch_size": found.resolved.micro_batch_size,
        "n_epochs": found.resolved.hyperparameters.n_epochs,
        "learning_rate": found.resolved.optim.learning_rate,
        "prompt_loss_weight": found.resolved.prompt_loss_weight,
        "precision": found.resolved.precision,
        "gradient_checkpointing": found.resolved.gradient_checkpointing,
        "packing": found.resolved.packing,
        "eval.every": found.resolved.eval.every,
    }


def test_what_is_given_needs_no_reason(facts: Facts) -> None:
    ext = {
        "max_length": 64,
        "epochs": 2,
        "micro_batch_size": 1,
        "prompt_loss_weight": 0.2,
        "optim": {"learning_rate": 1e-4},
        "precision": "fp32",
        "gradient_checkpointing": False,
        "packing": False,
        "eval": {"every": 3},
    }
    found = resolved(facts, ext=ext, hyperparameters={"batch_size": 2}, validation=True)
    assert [note for note in found.notes if note.level == "info"] == []


def test_a_rate_to_be_found_begins_as_the_automatic_one_and_says_so(facts: Facts) -> None:
    found = resolved(facts, ext={"optim": {"learning_rate": "find"}})
    automatic = resolved(facts, ext={}).resolved.optim.learning_rate
    assert (found.resolved.optim.find, found.resolved.optim.learning_rate) == (True, automatic)
    assert any(note.message.startswith("learning_rate find: a range test") for note in found.notes)
    spec = resolve.train_spec(found.resolved, job_id="j", base=BaseSpec(name="b", path=Path("b"), sha256="0"))
    assert spec.optim.find
