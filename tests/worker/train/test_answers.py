"""``eval.generate``: what base and model answer, asked without a trace in the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.worker.train.conftest import Ran, open_job
from worker.folder import ANSWER_TOKENS, EXIT_DRAINED
from worker.train import run
from worker.train.answers import Answerer
from worker.train.batches import Rows

Train = Callable[[Path], Ran]
PROMPTS = [[tiny.BOS, 40, 41, 42], [tiny.BOS, 100]]


def job(folder: Path, base: Path, **values: Any) -> Path:
    paired = values.get("method") == "dpo"
    rows = tiny.random_pairs(6) if paired else tiny.random_rows(12)
    return tiny.build_job(folder, base, rows, label=[1, 0] * 6 if paired else None, **({"epochs": 2} | values))


KINDS: list[dict[str, Any]] = [
    {"adapter": "lora", "lora": {"dropout": 0.2}},
    {"adapter": "full"},
    {"adapter": "prompt"},
    {"adapter": "prefix"},
    {"method": "dpo", "preference": {"loss": "sigmoid"}, "lora": {"dropout": 0.2}},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(v) for v in kind.values() if isinstance(v, str)))
def test_asking_changes_no_bit_of_the_run(base: Path, tmp_path: Path, train: Train, kind: dict[str, Any]) -> None:
    asked = train(job(tmp_path / "asked", base, generate=PROMPTS, eval_every=2, **kind))
    quiet = train(job(tmp_path / "quiet", base, **kind))
    assert asked.status == quiet.status == 0, asked.events("error")
    assert asked.numbers == quiet.numbers
    name = "model.safetensors" if kind.get("adapter") == "full" else "adapter_model.safetensors"
    files = [(ran.folder / "artifact" / name).read_bytes() for ran in (asked, quiet)]
    assert files[0] == files[1]
    assert not quiet.events("answers")


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
def test_the_base_answers_before_the_first_step_and_the_model_at_each_evaluation(
    base: Path, tmp_path: Path, train: Train, adapter: str
) -> None:
    """Learned tokens change what is said from the first on: the base must be asked without them."""
    values: dict[str, Any] = {"generate": PROMPTS, "eval_every": 2, "optim": {"learning_rate": 1e-2}}
    ran = train(job(tmp_path / "job", base, adapter=adapter, **values))
    told = ran.events("answers")
    assert [(event["step"], event["by"]) for event in told] == [(0, "base"), *((n, "model") for n in (2, 4, 6))]
    every = tiny.read_events(ran.folder)
    assert next(event["type"] for event in every if event["type"] in ("answers", "step")) == "answers"
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, told[0]["answers"], strict=True):
        plain = _greedy(network, prompt)
        assert answer == {
            "prompt": tokenizer.decode(prompt, skip_special_tokens=False),
            "answer": tokenizer.decode(plain[:-1] if plain[-1] == tiny.END else plain),
            "tokens": len(plain),
            "ended": plain[-1] == tiny.END,
        }
    assert told[-1]["answers"] != told[0]["answers"]


def test_validation_rows_are_asked_up_to_their_answer(base: Path, tmp_path: Path, train: Train) -> None:
    valid = tiny.random_rows(5, seed=1)
    folder = tiny.build_job(tmp_path / "job", base, tiny.random_rows(12), valid, generate_rows=2)
    (_, model) = train(folder).events("answers")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prompts = [[token for token, said in zip(*row[:2], strict=True) if not said] for row in valid[:2]]
    assert [answer["prompt"] for answer in model["answers"]] == [
        tokenizer.decode(prompt, skip_special_tokens=False) for prompt in prompts
    ]


def test_an_answer_ends_where_the_rows_answers_end_and_is_never_longer_than_allowed(
    base: Path, tmp_path: Path, train: Train
) -> None:
    rows: list[tiny.Row] = [([tiny.BOS, 40, 41, 42, 60, 61, tiny.END], [0] * 4 + [1] * 3)] * 8
    folder = tiny.build_job(
        tmp_path / "job", base, rows, epochs=40, generate=[[tiny.BOS, 40, 41, 42]], optim={"learning_rate": 1e-2}
    )
    before, *_, after = train(folder).events("answers")
    assert before["answers"][0]["tokens"] <= ANSWER_TOKENS
    (answer,) = after["answers"]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert (answer["answer"], answer["tokens"], answer["ended"]) == (tokenizer.decode([60, 61]), 3, True)


def test_a_run_that_is_asked_to_stop_meanwhile_is_handed_back(
    base: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_listen", lambda: lambda: True)
    ran = train(job(tmp_path / "job", base, generate=PROMPTS))
    assert ran.status == EXIT_DRAINED
    assert ran.events("answers") == ran.events("checkpoint") == []


def test_an_answer_is_given_without_dropout_and_leaves_mode_and_random_numbers_as_they_were(
    base: Path, tmp_path: Path
) -> None:
    spec, model, _ = open_job(job(tmp_path / "job", base, generate=PROMPTS, lora={"dropout": 0.9}))
    with torch.no_grad():
        for p in model.trainable.values():
            p.normal_(std=0.5)
    model.module.train()
    rng = torch.get_rng_state()
    asked = Answerer(spec, Rows.read(tmp_path / "job" / "train.safetensors"), None)
    answers = asked.ask(model, look=lambda: torch.manual_seed(1) and None)
    assert model.module.training
    assert torch.equal(torch.get_rng_state(), rng)
    model.module.eval()
    assert [answer["tokens"] for answer in answers] == [len(_greedy(model.module, prompt)) for prompt in PROMPTS]
    assert asked.ask(model) == answers


def test_a_pair_is_asked_once(base: Path, tmp_path: Path) -> None:
    valid = tiny.random_pairs(3, seed=1)
    folder = tiny.build_job(
        tmp_path / "job", base, tiny.random_pairs(6), valid, label=[1, 0] * 6, method="dpo", generate_rows=3,
        preference={"loss": "sigmoid"},
    )  # fmt: skip
    spec, model, _ = open_job(folder)
    rows, held = (Rows.read(folder / f"{name}.safetensors") for name in ("train", "valid"))
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prompts = [[token for token, said in zip(*row[:2], strict=True) if not said] for row in valid[::2]]
    assert [answer["prompt"] for answer in Answerer(spec, rows, held).ask(model)] == [
        tokenizer.decode(prompt, skip_special_tokens=False) for prompt in prompts
    ]


def test_what_the_template_ends_a_turn_with_ends_an_answer(base: Path, tmp_path: Path) -> None:
    """Whether or not the rows show it."""
    spec, model, _ = open_job(job(tmp_path / "job", base, generate=PROMPTS[:1]))
    rows = Rows.read(tmp_path / "job" / "train.safetensors")
    said = _greedy(model.module.eval(), PROMPTS[0])
    (answer,) = Answerer(spec.model_copy(update={"ends": [said[2]]}), rows, None).ask(model)
    assert (answer["tokens"], answer["ended"]) == (said.index(said[2]) + 1, True)


@torch.no_grad()
def _greedy(network: Any, prompt: list[int]) -> list[int]:
    """The plain way: all of the text again for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + ANSWER_TOKENS and (len(ids) == len(prompt) or ids[-1] != tiny.END):
        ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_no_text_has_a_character_that_a_database_can_not_hold(base: Path, tmp_path: Path, train: Train) -> None:
    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode("a\0b", add_special_tokens=False).ids
    ran = train(job(tmp_path / "job", base, generate=[[tiny.BOS, *ids]], epochs=1))
    assert ran.status == 0, ran.events("error")
    for told in ran.events("answers"):
        for one in told["answers"]:
            assert "a\ufffdb" in one["prompt"]
            assert "\0" not in one["prompt"] + one["answer"]
