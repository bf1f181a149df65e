"""The prepare child, run as the supervisor runs it: folders in, folders out."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from core.errors import JobError
from worker import preparation
from worker.folder import EXIT_USER_ERROR, Event
from worker.prepare.folder import CheckFile, Facts, PrepareJob, Result

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def rows(count: int, answer: str = "yes") -> str:
    talk = {"messages": [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": answer}]}
    return "".join(json.dumps(talk) + "\n" for _ in range(count))


def prepare(folder: Path) -> tuple[int, Result]:
    done = subprocess.run(
        [sys.executable, "-m", "worker.prepare", str(folder)], env=ENVIRONMENT, capture_output=True, timeout=60
    )
    assert (folder / "result.json").is_file(), done.stderr.decode()
    return done.returncode, Result.model_validate_json((folder / "result.json").read_bytes())


@pytest.fixture
def job(tmp_path: Path, base: Path, facts: Facts) -> Callable[..., Path]:
    def make(train: str | bytes, valid: str | None = None, **fields: Any) -> Path:
        folder = tmp_path / "job"
        folder.mkdir()
        (tmp_path / "train.jsonl").write_bytes(train if isinstance(train, bytes) else train.encode())
        if valid is not None:
            (tmp_path / "valid.jsonl").write_text(valid)
            fields["valid"] = tmp_path / "valid.jsonl"
        values = {"base": base, "facts": facts, "train": tmp_path / "train.jsonl", "seed": 7, **fields}
        spec = PrepareJob.model_validate(values)
        (folder / "spec.json").write_text(spec.model_dump_json())
        return folder

    return make


def refused(folder: Path) -> Any:
    status, result = prepare(folder)
    assert status == EXIT_USER_ERROR
    assert result.error is not None
    return result.error


def test_a_job_is_prepared(job: Callable[..., Path]) -> None:
    folder = job(rows(12), rows(2), options={"epochs": 1})
    status, result = prepare(folder)
    assert (status, result.error) == (0, None)
    prepared = result.prepared
    assert prepared is not None
    assert prepared.valid is not None
    assert (prepared.train.examples, prepared.valid.examples) == (12, 2)
    assert (prepared.resolved.total_steps, prepared.resolved.seed, prepared.resolved.format) == (2, 7, "chat")
    file = load_file(folder / "train.safetensors")
    assert file["lines"].tolist() == list(range(1, 13))
    assert len(file["input_ids"]) == prepared.train.tokens
    assert file["completion"].sum() == prepared.train.trained_tokens
    assert hashlib.sha256((folder / "train.safetensors").read_bytes()).hexdigest() == prepared.train.sha256
    events = [Event.model_validate_json(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {event.type for event in events} == {"phase", "message"}
    assert "<end_of_turn>" in (folder / "chat_template.jinja").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "events.jsonl",
        "result.json",
        "spec.json",
        "train.safetensors",
        "valid.safetensors",
    ]


def test_the_same_folder_gives_the_same_bytes(job: Callable[..., Path]) -> None:
    folder = job(rows(12))
    _, first = prepare(folder)
    _, second = prepare(folder)
    assert first == second


def test_bad_rows_are_named_with_their_lines(job: Callable[..., Path]) -> None:
    error = refused(job(rows(11) + '{"messages": [{"role": "bot", "content": "x"}]}\n' + rows(1) + "{\n"))
    assert (error.code, error.param, error.lines) == ("invalid_training_file", "training_file", [12, 14])
    assert "line 12: messages[0].role" in error.message


def test_a_bad_validation_file_is_named_as_such(job: Callable[..., Path]) -> None:
    error = refused(job(rows(12), '{"text": "a"}\n'))
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")


def test_too_few_examples_is_openais_error(job: Callable[..., Path]) -> None:
    error = refused(job(rows(7)))
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert error.message == "Training file has 7 example(s), but must have at least 10 examples"


def test_long_rows_by_policy(job: Callable[..., Path]) -> None:
    folder = job(rows(10) + rows(1, "no " * 100), options={"max_length": 40})
    status, result = prepare(folder)
    assert status == 0
    assert result.prepared is not None
    assert result.prepared.train.dropped.lines == [11]
    assert any("line 11" in note.message and note.level == "warn" for note in result.prepared.notes)


def test_long_rows_refused(job: Callable[..., Path]) -> None:
    error = refused(job(rows(10) + rows(1, "no " * 100), options={"max_length": 40, "data": {"over_length": "error"}}))
    assert (error.code, error.lines) == ("invalid_training_file", [11])


def test_an_option_that_can_not_be_honoured_is_refused(job: Callable[..., Path]) -> None:
    error = refused(job(rows(12), options={"packing": True, "micro_batch_size": 1}))
    assert error.param == "ext.packing"


def test_a_longer_length_than_the_context_is_refused(job: Callable[..., Path]) -> None:
    assert refused(job(rows(12), options={"max_length": 513})).param == "ext.max_length"


def test_a_given_template_is_used_and_ships(job: Callable[..., Path]) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    folder = job(rows(12), options={"chat_template": template})
    status, result = prepare(folder)
    # Every message is marked here, the user's too, so no mark says whose it is; extents do.
    assert status == 0
    assert result.prepared is not None
    assert result.prepared.resolved.chat_template == "given"
    assert (folder / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("template", "code", "what"),
    [
        ("{% for %}", "invalid_chat_template", "line 1"),
        ("{{ raise_exception('no') }}", "invalid_training_file", "line 1: .*no"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "limit_exceeded",
            "2 seconds",
        ),
        ("{{ 'a' * 10 ** 10 }}", "limit_exceeded", "chat template takes more memory"),
        (
            "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
            "limit_exceeded",
            # Whichever the machine comes to first: filling memory takes processor time.
            "memory|2 seconds",
        ),
        (
            "{% for a in range(4000) %}{% for b in range(5000) %}x{% endfor %}{% endfor %}",
            "invalid_training_file",
            "line 1: .*20,000,000 characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "invalid_training_file", "line 1: .*recurses"),
        ("{{ lipsum.__globals__['os'] }}", "invalid_training_file", "line 1: .*unsafe"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "invalid_chat_template", "Recursion"),
    ],
    ids=["syntax", "refusal", "endless", "huge", "doubling", "long", "recursion", "escape", "nested"],
)
def test_a_hostile_template_is_stopped(job: Callable[..., Path], template: str, code: str, what: str) -> None:
    error = refused(job(rows(12), options={"chat_template": template}))
    assert error.code.startswith(code)
    assert re.search(what, error.message)
    assert error.param == ("training_file" if code == "invalid_training_file" else "ext.chat_template")


def test_one_endless_step_of_a_template_ends_the_process(job: Callable[..., Path]) -> None:
    """Python would handle no signal before the power is computed, in some years."""
    folder = job(rows(12), options={"chat_template": "{{ (7 ** 1000000000) % 9 }}"})
    done = subprocess.run([sys.executable, "-m", "worker.prepare", str(folder)], env=ENVIRONMENT, timeout=60)
    assert done.returncode == -signal.SIGVTALRM
    with pytest.raises(JobError, match="more than 2 seconds") as refused:
        preparation._result(folder, done.returncode, "")
    assert refused.value.error_code == "limit_exceeded"


def test_what_a_template_does_to_rows_is_told(job: Callable[..., Path]) -> None:
    thinks_last = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content if m.role != 'system' }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    )
    turn = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "yes"}]
    talks = [turn * 2, [{"role": "system", "content": "be brief"}, *turn]]
    data = rows(10) + "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    status, result = prepare(job(data, options={"chat_template": thinks_last}))
    assert (status, result.error) == (0, None)
    assert result.prepared is not None
    told = {note.data.get("code"): note for note in result.prepared.notes if note.level == "warn"}
    assert told["template_rewrites_history"].data["lines"] == [11]
    assert told["template_drops_text"].data["lines"] == [12]
    assert "line 12" in told["template_drops_text"].message


def test_a_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(rows(3) + "{\n")
    (tmp_path / "spec.json").write_text(CheckFile(path=tmp_path / "data.jsonl").model_dump_json())
    status, result = prepare(tmp_path)
    assert status == 0
    assert result.report is not None
    assert (result.report.rows, result.report.faults[0].line) == (3, 4)


def test_a_folder_without_spec_is_our_fault_not_the_users(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "worker.prepare", str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode not in (0, EXIT_USER_ERROR)


def test_the_idle_child_speaks_the_slots_protocol(job: Callable[..., Path], base: Path) -> None:
    folder = job(rows(12))
    with subprocess.Popen(
        [sys.executable, "-m", "worker.prepare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "READY\n"
        child.stdin.write(f"PRELOAD {base}\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"LOADED {base}\n"
        child.stdin.write(f"START {folder}\n")
        child.stdin.flush()
        assert child.wait(30) == 0
    assert (folder / "result.json").is_file()


def test_no_torch_is_imported_for_data() -> None:
    code = "import sys, worker.prepare.__main__; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
