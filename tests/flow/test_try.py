"""`attune try`: the model that was tuned here answers at the terminal, beside its base model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.cli.running import Done, attune, environment
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow
SAID, ANSWER = "What is two plus three?", "Five."


@pytest.fixture(scope="module")
def tuned(live: Live) -> str:
    row = {"messages": [{"role": "user", "content": SAID}, {"role": "assistant", "content": ANSWER}]}
    rows = (json.dumps(row) + "\n").encode() * 12
    file_id = live.client.files.create(file=("train.jsonl", rows), purpose="fine-tune").id
    ext = {"max_steps": 60, "optim": {"learning_rate": 1e-2}}
    job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file_id, extra_body={"ext": ext})
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def ask(live: Live, kept: Path, *arguments: object) -> Done:
    return attune("try", "--home", live.home, *arguments, env=environment(XDG_CACHE_HOME=str(kept)))


def plain(folder: Path, adapter: Path | None, most: int) -> str:
    """What the plain libraries say to it, the template and the end of turn their own affair."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": SAID}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.eval().generate(**prompt, max_new_tokens=most, do_sample=False, eos_token_id=tiny.END)
    return str(tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def test_a_tuned_model_answers_and_ends_its_turn(live: Live, tuned: str, kept: Path) -> None:
    done = ask(live, kept, tuned, SAID)
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n"), done.stderr
    assert "did not end its turn" not in done.stderr


def test_its_base_model_answers_beside_it(live: Live, tuned: str, kept: Path, tmp_path: Path) -> None:
    done = ask(live, kept, tuned, SAID, "--base", "--max-tokens", 12)
    said = plain(tiny.build_tiny(tmp_path / "base"), None, 12)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"── attune-tiny\n{said}\n── {tuned}\n{ANSWER}\n"
    alone = ask(live, kept, "attune-tiny", SAID, "--max-tokens", 12)
    assert alone.stdout == f"{said}\n"


def test_weights_are_downloaded_once(live: Live, tuned: str, kept: Path) -> None:
    ask(live, kept, tuned, SAID)
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    assert any(path.name == "adapter_model.safetensors" for path in before)
    ask(live, kept, tuned, SAID)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()} == before


def test_a_damaged_file_of_the_cache_is_fetched_again(live: Live, tuned: str, kept: Path) -> None:
    ask(live, kept, tuned, SAID)
    (weights,) = kept.rglob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert ask(live, kept, tuned, SAID).stdout == f"{ANSWER}\n"


def test_what_is_no_model_is_refused(live: Live, kept: Path) -> None:
    done = ask(live, kept, "ft:none", SAID)
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert ask(live, kept, "attune-tiny", SAID, "--base").returncode == 2
