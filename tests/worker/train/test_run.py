"""A job folder from start to end: what comes out, that it comes out the same, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.live import free_port
from tests.worker.train.conftest import Ran, again, forked
from worker.folder import EXIT_USER_ERROR, Event
from worker.train import loop, manifest

Train = Callable[[Path], Ran]
TALK = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in [("two plus three?", "Five."), ("capital of France?", "Paris."), ("hello", "Hello!")]
]


@pytest.fixture(scope="module")
def job(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "job"
    return tiny.build_job(
        folder, base, tiny.random_rows(18), tiny.random_rows(5, seed=3), lora={"dropout": 0.1}, epochs=2.4
    )


def test_the_artifact_loaded_with_plain_peft_gives_the_trainers_logits(job: Path, train: Train, base: Path) -> None:
    ran = train(job)
    assert ran.status == 0
    artifact = job / "artifact"
    assert manifest.faults(artifact) == []
    names = {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "training.json",
    }
    assert names <= {path.name for path in artifact.iterdir()}
    assert json.loads((artifact / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny.NAME
    assert (artifact / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()

    ids = torch.tensor([[1, 2, 300, 40, 41, 3]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        untrained = plain(ids).logits
        loaded = PeftModel.from_pretrained(plain, artifact)(ids).logits
        assert ran.network is not None
        # The trainer's own attention rounds in another order; with the library's, the bits are the same.
        ran.network.set_attn_implementation("sdpa")
        trainers = ran.network.eval()(ids).logits
    assert torch.equal(loaded, trainers)
    assert float((loaded - untrained).abs().max()) > 1e-3
    weights = load_file(artifact / "adapter_model.safetensors")
    assert weights.keys() == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight"
        for layer in (0, 1)
        for module in [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
        for matrix in "AB"
    }
    assert all(float(weight.abs().max()) > 0 for weight in weights.values())
    assert all(weight.dtype == torch.float32 for weight in weights.values())


def test_events_tell_the_run(job: Path, train: Train, tmp_path: Path) -> None:
    ran = train(again(job, tmp_path / "run", None, recovery_fraction=1.0))
    lines = (ran.folder / "events.jsonl").read_text().splitlines()
    kinds = [Event.model_validate_json(line).type for line in lines]
    # 18 rows, 4 a step: 5 steps an epoch, 12 in all.
    assert kinds[0] == "started"
    assert kinds[-1] == "done"
    assert [event["step"] for event in ran.events("step")] == list(range(1, 13))
    assert [event["epoch"] for event in ran.events("step")] == pytest.approx([s / 5 for s in range(1, 13)])
    assert [event["step"] for event in ran.events("eval")] == [5, 10, 12]
    assert [(event["step"], event["kind"]) for event in ran.events("checkpoint")] == [
        (5, "epoch"),
        (10, "epoch"),
        (12, "epoch"),
    ]
    done = ran.events("done")[0]
    assert done["tokens"] == sum(event["tokens"] for event in ran.events("step"))
    assert done["metrics"]["train_loss"] == ran.events("step")[-1]["train_loss"]
    told = json.loads((ran.folder / "artifact" / "training.json").read_text())
    assert told["data_sha256"]["train"] == told["spec"]["data_sha256"]["train"]
    # Nothing of the machine's folders goes to whoever downloads the model.
    assert str(tmp_path) not in (ran.folder / "artifact" / "training.json").read_text()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(job: Path, train: Train, tmp_path: Path) -> None:
    first, second = (train(again(job, tmp_path / name, None)) for name in "ab")
    other = train(again(job, tmp_path / "c", None, seed=8))
    assert first.numbers == second.numbers
    assert first.adapter_sha256 == second.adapter_sha256
    assert first.adapter_sha256 != other.adapter_sha256


def test_the_validation_loss_is_the_training_loss_of_the_same_rows(base: Path, train: Train, tmp_path: Path) -> None:
    """With a rate of nothing and one step over all rows, both measure the same model."""
    rows = tiny.random_rows(6)
    folder = tiny.build_job(
        tmp_path / "job", base, rows, rows, batch_size=6, optim={"learning_rate": 1e-30, "warmup_steps": 0}
    )
    ran = train(folder)
    step, evaluation = ran.events("step")[0], ran.events("eval")[0]
    for name in ("loss", "completion_loss", "accuracy"):
        trained = step["train_loss" if name == "loss" else "completion_loss" if "comp" in name else "train_accuracy"]
        assert evaluation[f"valid_{name}"] == pytest.approx(trained, rel=1e-6)


def test_the_end_of_a_turn_is_learned(base: Path, train: Train, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows: list[tiny.Row] = []
    for talk in TALK:
        encoded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        rows.append((encoded["input_ids"], encoded["assistant_masks"]))
    folder = tiny.build_job(
        tmp_path / "job", base, rows, batch_size=3, epochs=50, recovery_fraction=1.0,
        optim={"learning_rate": 1e-2, "schedule": "linear"}, lora={"rank": 16, "alpha": 32.0},
    )  # fmt: skip
    ran = train(folder)
    losses = [event["completion_loss"] for event in ran.events("step")]
    assert losses[-1] < losses[0] / 100
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "artifact").eval()
    for talk in TALK:
        prompt = tokenizer.apply_chat_template(
            talk[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = tuned.generate(**prompt, max_new_tokens=20, do_sample=False)
        answer = output[0, prompt["input_ids"].shape[1] :].tolist()
        assert answer[-1] == tiny.END
        assert tokenizer.decode(answer[:-1]) == talk[1]["content"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"version": 2}, "unsupported_spec", "version"),
        ({"max_length": 10}, "row_too_long", "training_file"),
        ({"surprise": 1}, "unsupported_spec", "surprise"),
    ],
)
def test_what_it_does_not_know_is_refused_with_a_sentence(
    job: Path, train: Train, tmp_path: Path, change: dict[str, int], code: str, param: str
) -> None:
    folder = again(job, tmp_path / "run", None)
    spec = json.loads((folder / "spec.json").read_text()) | change
    (folder / "spec.json").write_text(json.dumps(spec))
    from worker.train.load import Resident
    from worker.train.run import run

    assert run(folder, Resident()) == EXIT_USER_ERROR
    error = tiny.read_events(folder)[-1]
    assert (error["type"], error["code"], error["param"]) == ("error", code, param)
    assert error["message"].endswith(".")
    assert not (folder / "artifact").exists()


def test_an_unknown_target_module_is_refused(base: Path, train: Train, tmp_path: Path) -> None:
    folder = tiny.build_job(tmp_path / "job", base, tiny.random_rows(4), lora={"target_modules": ["q_proj", "c_attn"]})
    ran = train(folder)
    assert ran.status == EXIT_USER_ERROR
    assert "c_attn" in ran.events("error")[0]["message"]


def test_a_diverged_run_says_so_and_leaves_no_artifact(base: Path, train: Train, tmp_path: Path) -> None:
    optim = {"learning_rate": 1e38, "warmup_steps": 0, "max_grad_norm": 0.0, "optimizer": "sgd"}
    folder = tiny.build_job(tmp_path / "job", base, tiny.random_rows(8), epochs=4, optim=optim)
    ran = train(folder)
    assert ran.status == EXIT_USER_ERROR
    error = ran.events("error")[0]
    assert (error["code"], error["param"]) == ("diverged", "learning_rate")
    assert "Lower the learning rate" in error["message"]
    assert not (folder / "artifact").exists()


def test_a_step_of_silent_rows_is_refused_before_the_first_step(base: Path, train: Train, tmp_path: Path) -> None:
    rows = [*tiny.random_rows(3), ([1, 5, 6], [0, 0, 0])]
    ran = train(tiny.build_job(tmp_path / "job", base, rows, batch_size=1, prompt_loss_weight=0.0))
    assert ran.status == EXIT_USER_ERROR
    assert ran.events("error")[0]["code"] == "nothing_to_learn"
    assert "lines 4" in ran.events("error")[0]["message"]
    assert ran.events("step") == []


def test_running_out_of_memory_is_told_as_that(
    job: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(loop.Supervised, "backward", greedy)
    ran = train(again(job, tmp_path / "run", None))
    assert ran.status == EXIT_USER_ERROR
    assert ran.events("error")[0]["code"] == "out_of_memory"


def test_two_processes_give_what_one_gives(base: Path, train: Train, tmp_path: Path) -> None:
    """Ragged rows, fractional weights, a last batch of one row: the denominator is the whole step's, on both ranks."""
    one = tiny.build_job(tmp_path / "one", base, tiny.random_rows(9), tiny.random_rows(3, seed=4), epochs=2)
    two = again(one, tmp_path / "two", None)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = [forked(two, common | {"RANK": str(rank)}) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    alone = train(one)
    together = Ran(two, 0)
    assert together.numbers.keys() == alone.numbers.keys()
    for step, numbers in alone.numbers.items():
        assert together.numbers[step] == pytest.approx(numbers, rel=1e-5), step
    assert together.events("eval")[-1]["valid_loss"] == pytest.approx(alone.events("eval")[-1]["valid_loss"], rel=1e-6)
