"""Files as users have them go in and come out prepared; mixing, holding out, leaving out bad rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.kept import COMPRESSIONS, CONTAINERS, jsonl
from tests.worker.prepare.test_main import prepare
from worker.folder import EXIT_USER_ERROR
from worker.prepare import __main__ as child
from worker.prepare import limits
from worker.prepare.folder import CheckFile, Facts, Prepared, PrepareJob, Result

ASK, SAY = {"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "yes"}
TURNS = [{"from": "human", "value": "Hello there"}, {"from": "gpt", "value": "yes"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "seen"}
TALK = "<bos><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
PLAIN = "<bos>Hello there yes<eos>"

# Each form, and the text that the model is given.
LEARNED: dict[str, tuple[dict[str, Any], str]] = {
    "chat": ({"messages": [ASK, SAY]}, TALK),
    "completion": ({"prompt": "Hello there", "completion": " yes"}, PLAIN),
    "text": ({"text": "Hello there yes"}, PLAIN),
    "alpaca": (
        {"instruction": "Hello", "input": "there", "output": "yes"},
        TALK.replace("Hello there", "Hello\nthere"),
    ),
    "sharegpt": ({"conversations": TURNS}, TALK),
    "hf_prompt_completion": ({"prompt": [ASK], "completion": [SAY]}, TALK),
}
# No method of this release learns from these; their files are good all the same.
KNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "preference": (
        {"input": {"messages": [ASK]}, "preferred_output": [SAY], "non_preferred_output": [SAY]},
        "preference",
    ),
    "labelled": ({"prompt": "a", "completion": "b", "label": True}, "labelled"),
    "alpaca_preference": ({"instruction": "a", "chosen": "b", "rejected": "c"}, "preference"),
    "alpaca_labelled": ({"instruction": "a", "output": "b", "kto_tag": False}, "labelled"),
    "sharegpt_preference": ({"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1]}, "preference"),
    "sharegpt_labelled": ({"conversations": TURNS, "kto_tag": True}, "labelled"),
    "hf_preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
    "hf_unpaired_preference": ({"prompt": [ASK], "completion": [SAY], "label": False}, "labelled"),
}


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task in this process, so that a table of cases is quick; limits are for a child of its own."""
    monkeypatch.setattr(limits, "apply", lambda data_bytes: None)


class Jobs:
    def __init__(self, folder: Path, base: Path, facts: Facts) -> None:
        self.folder, self.base, self.facts = folder, base, facts
        self.count = 0

    def spec(self, train: bytes, *mix: tuple[bytes, float], valid: bytes | None = None, **options: Any) -> Path:
        self.count += 1
        folder = self.folder / f"job{self.count}"
        folder.mkdir()
        (folder / "train.data").write_bytes(train)
        for number, (data, _) in enumerate(mix):
            (folder / f"mix{number}.data").write_bytes(data)
        if valid is not None:
            (folder / "valid.data").write_bytes(valid)
        spec = PrepareJob.model_validate(
            {
                "base": self.base,
                "facts": self.facts,
                "train": folder / "train.data",
                "valid": folder / "valid.data" if valid is not None else None,
                "mix": [
                    {"path": folder / f"mix{n}.data", "file_id": f"file-{n}", "weight": weight}
                    for n, (_, weight) in enumerate(mix)
                ],
                "seed": options.pop("seed", 7),
                "options": {
                    **options,
                    **({"data": {**options.get("data", {}), "mix": [{"file_id": "x"}]}} if mix else {}),
                },
            }
        )
        (folder / "spec.json").write_text(spec.model_dump_json())
        return folder

    def run(self, *args: Any, **options: Any) -> tuple[int, Result, Path]:
        folder = self.spec(*args, **options)
        status = child.run(folder)
        return status, Result.model_validate_json((folder / "result.json").read_bytes()), folder

    def prepared(self, *args: Any, **options: Any) -> tuple[Prepared, Path]:
        status, result, folder = self.run(*args, **options)
        assert (status, result.error) == (0, None)
        assert result.prepared is not None
        return result.prepared, folder

    def refused(self, *args: Any, **options: Any) -> Any:
        status, result, folder = self.run(*args, **options)
        assert status == EXIT_USER_ERROR
        assert not (folder / "train.safetensors").exists() or result.error is not None
        return result.error


@pytest.fixture
def jobs(tmp_path: Path, base: Path, facts: Facts, unlimited: None) -> Jobs:
    return Jobs(tmp_path, base, facts)


def texts(folder: Path, base: Path, name: str = "train") -> list[str]:
    tokenizer: Any = Tokenizer.from_file(str(base / "tokenizer.json"))
    file = load_file(folder / f"{name}.safetensors")
    pairs = zip(file["offsets"][:-1], file["offsets"][1:], strict=True)
    return [tokenizer.decode(file["input_ids"][a:b].tolist(), skip_special_tokens=False) for a, b in pairs]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", LEARNED)
def test_every_form_in_every_container_comes_out_prepared(
    form: str, container: str, compression: str, jobs: Jobs, base: Path
) -> None:
    row, text = LEARNED[form]
    data = COMPRESSIONS[compression][1](CONTAINERS[container][1]([row] * 12))
    prepared, folder = jobs.prepared(data, epochs=1)
    assert prepared.train.examples == 12
    assert texts(folder, base) == [text] * 12
    own = form in ("chat", "completion", "text")
    assert [note.data["converted_from"] for note in prepared.notes if "converted_from" in note.data] == (
        [] if own else [form]
    )


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", KNOWN)
def test_every_other_form_is_recognised_in_every_container(
    form: str, container: str, tmp_path: Path, unlimited: None
) -> None:
    row, format = KNOWN[form]
    (tmp_path / "file").write_bytes(CONTAINERS[container][1]([row] * 2))
    (tmp_path / "spec.json").write_text(CheckFile(path=tmp_path / "file").model_dump_json())
    assert child.run(tmp_path) == 0
    report = Result.model_validate_json((tmp_path / "result.json").read_bytes()).report
    assert report is not None
    assert (report.ok, report.format, report.rows) == (True, format, 2), report.summary()
    assert report.converted_from == (None if form == format else form)


def test_tools_of_every_age_are_written_alike(jobs: Jobs, base: Path) -> None:
    old = {"role": "assistant", "function_call": CALL["function"]}
    turn = {"from": "function_call", "value": '{"name": "look", "arguments": {}}'}
    rows = [
        {"messages": [ASK, {"role": "assistant", "tool_calls": [CALL]}, RESULT, SAY], "tools": [LOOK]},
        {
            "messages": [ASK, old, {"role": "function", "name": "look", "content": "seen"}, SAY],
            "functions": [LOOK["function"]],
        },
    ]
    _, folder = jobs.prepared(jsonl(rows * 6))
    first, second, *_ = texts(folder, base)
    assert "look" in first
    turns = {"conversations": [TURNS[0], turn, {"from": "observation", "value": "seen"}, TURNS[1]], "tools": [LOOK]}
    _, folder = jobs.prepared(jsonl([turns] * 12))
    assert {first, second, *texts(folder, base)} == {first}


@pytest.mark.parametrize("container", ["csv", "parquet"])
def test_the_real_child_reads_tables_within_its_limits(container: str, jobs: Jobs, base: Path) -> None:
    data = COMPRESSIONS["zstd"][1](CONTAINERS[container][1]([LEARNED["alpaca"][0]] * 12))
    folder = jobs.spec(data)
    status, result = prepare(folder)
    assert (status, result.error) == (0, None)
    assert len(texts(folder, base)) == 12


def test_a_form_that_is_asked_for_is_used(jobs: Jobs, base: Path) -> None:
    both = {"messages": [ASK, SAY], "text": "Hello there yes"}
    _, folder = jobs.prepared(jsonl([both] * 12), format="text")
    assert texts(folder, base) == [PLAIN] * 12
    error = jobs.refused(jsonl([both] * 12), format="sharegpt")
    assert (error.code, error.param, error.lines[:2]) == ("invalid_training_file", "training_file", [1, 2])
    assert "conversation" in error.message


def said(count: int, start: int = 0, answer: str = "yes") -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"no {n}"}, SAY | {"content": answer}]}
        for n in range(start, start + count)
    ]


def test_a_mix_has_the_shares_asked_for(jobs: Jobs, base: Path) -> None:
    train, some, few = said(40), said(100, 1000, "one"), said(10, 2000, "two")
    prepared, folder = jobs.prepared(jsonl(train), (jsonl(some), 0.5), (jsonl(few), 1.0), epochs=1)
    assert prepared.train.sources == {"training_file": 40, "file-0": 20, "file-1": 40}
    found = texts(folder, base)
    assert [sum(f"model\n{answer}" in text for text in found) for answer in ("yes", "one", "two")] == [40, 20, 40]
    assert prepared.resolved.data.mix is not None
    assert any(
        note.message == "An epoch has 40 of training file, 20 of file-0, 40 of file-1." for note in prepared.notes
    )
    again, _ = jobs.prepared(jsonl(train), (jsonl(some), 0.5), (jsonl(few), 1.0), epochs=1)
    assert again.train.sha256 == prepared.train.sha256
    other, _ = jobs.prepared(jsonl(train), (jsonl(some), 0.5), (jsonl(few), 1.0), epochs=1, seed=8)
    assert other.train.sha256 != prepared.train.sha256


def test_rows_that_are_dropped_count_in_no_share(jobs: Jobs) -> None:
    long = said(10, 500, "no " * 200)
    prepared, _ = jobs.prepared(jsonl(said(20) + long), (jsonl(said(20, 1000) + long), 0.5), max_length=60)
    assert prepared.train.sources == {"training_file": 20, "file-0": 10}
    dropped = prepared.train.dropped
    assert (dropped.count, dropped.mixed, dropped.lines) == (20, 10, list(range(21, 31)))
    assert any("lines 21, 22" in note.message and "10 in mixed files" in note.message for note in prepared.notes)


def test_a_fault_in_a_mixed_file_names_it(jobs: Jobs) -> None:
    error = jobs.refused(jsonl(said(12)), (jsonl(said(2)) + b"{\n", 1.0))
    assert (error.code, error.param, error.lines) == ("invalid_training_file", "ext.data.mix[0].file_id", [3])


def test_what_is_held_out_is_never_trained_on(jobs: Jobs, base: Path) -> None:
    # Every row twice, once as alpaca in another file, so that a duplicate is hard to see.
    rows = said(150)
    twins = [{"instruction": row["messages"][0]["content"], "output": "yes"} for row in rows]
    heavy = [{"messages": [row["messages"][0], {**SAY, "weight": 0.5}]} for row in rows]
    options = {"data": {"validation_fraction": 0.2}, "epochs": 1}
    prepared, folder = jobs.prepared(jsonl(rows + rows + heavy), (jsonl(twins), 1.0), **options)
    trained, held = set(texts(folder, base)), set(texts(folder, base, "valid"))
    assert not trained & held
    assert len(trained | held) == 150
    assert prepared.valid is not None
    assert 15 <= len(held) <= 45
    # What prompts and answers have of the tokens is told of the rows that are trained on.
    assert prepared.prompt_tokens + prepared.completion_tokens == prepared.train.tokens
    # The same seed holds out the same rows, another one others; rows that are added change nothing.
    _, folder = jobs.prepared(jsonl(rows + said(50, 5000)), **options)
    assert held <= set(texts(folder, base, "valid"))
    _, folder = jobs.prepared(jsonl(rows), **options, seed=8)
    assert held != set(texts(folder, base, "valid"))
    assert prepared.resolved.eval.every is not None


def test_rows_that_are_all_the_same_can_not_be_divided(jobs: Jobs) -> None:
    error = jobs.refused(jsonl(said(1) * 20), data={"validation_fraction": 0.5})
    assert (error.code, error.param) == ("invalid_n_examples", "ext.data.validation_fraction")


def test_enough_has_to_be_left_to_train_on(jobs: Jobs) -> None:
    error = jobs.refused(jsonl(said(10)), data={"validation_fraction": 0.5})
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")


BAD = b'{"messages": [{"role": "bot", "content": "x"}]}\n'


def test_bad_rows_up_to_the_share_are_left_out_and_named(jobs: Jobs) -> None:
    data = jsonl(said(12)) + BAD + jsonl(said(7, 50)) + b"{\n"
    prepared, folder = jobs.prepared(data, data={"max_invalid_fraction": 0.1})
    assert prepared.train.examples == 19
    assert load_file(folder / "train.safetensors")["lines"].tolist() == [*range(1, 13), *range(14, 21)]
    (warning,) = [note for note in prepared.notes if note.level == "warn"]
    assert "training_file: 2 of 21 rows are bad and were left out" in warning.message
    assert 'line 13: messages[0].role: "bot"' in warning.message
    assert warning.data["lines"] == [13, 21]


def test_more_bad_rows_than_the_share_end_the_job(jobs: Jobs) -> None:
    data = jsonl(said(12)) + BAD + jsonl(said(7, 50)) + b"{\n"
    for share in (0.0, 0.09):
        error = jobs.refused(data, data={"max_invalid_fraction": share})
        assert (error.code, error.lines) == ("invalid_training_file", [13, 21])
    assert "2 of 21 rows are bad, more than ext.data.max_invalid_fraction allows" in error.message


def test_a_file_that_breaks_off_is_no_bad_row(jobs: Jobs) -> None:
    broken = json.dumps(said(20)).encode()[:-1]
    error = jobs.refused(broken, data={"max_invalid_fraction": 1.0})
    assert error.code == "invalid_training_file"
    assert "the file ends within record 20" in error.message


def test_rows_the_template_refuses_are_bad_rows_and_all_are_named(jobs: Jobs) -> None:
    template = (
        "{% for m in messages %}{% if m.content == 'no 3' or m.content == 'no 5' %}{{ raise_exception('not this') }}"
        "{% endif %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    error = jobs.refused(jsonl(said(12)), chat_template=template)
    assert (error.code, error.lines) == ("invalid_training_file", [4, 6])
    assert "line 6: " in error.message
    prepared, _ = jobs.prepared(jsonl(said(12)), chat_template=template, data={"max_invalid_fraction": 0.2})
    assert prepared.train.examples == 10
    assert any("2 of 12 rows are bad" in note.message for note in prepared.notes)
