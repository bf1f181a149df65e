"""The example task: the same bytes from the same seed, nothing shared between its splits, rows of the right size."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import generate
import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIAGE = ROOT / "examples" / "triage"
SPLITS = ("train", "valid", "held_out")


def records(split: str) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (TRIAGE / f"{split}.jsonl").read_text("utf-8").splitlines()]
    return [(line["messages"][0]["content"], line["messages"][1]["content"]) for line in lines]


def test_the_seed_gives_the_bytes_that_are_kept_here(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", str(TRIAGE / "generate.py"), "--to", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (TRIAGE / f"{split}.jsonl").read_bytes()
    assert "4-grams" in ran.stdout


def test_another_seed_gives_other_rows() -> None:
    assert generate.generate(8) != generate.generate(9)


def test_there_are_enough_rows_of_each_kind() -> None:
    assert len(records("train")) >= 200
    assert len(records("valid")) == 40
    assert len(records("held_out")) == 60
    for split in SPLITS:
        read = [json.loads(answer) for _, answer in records(split)]
        for name, values in (("team", generate.TEAMS), ("priority", generate.PRIORITIES)):
            counts = Counter(record[name] for record in read)
            assert set(counts) == set(values)
            # They take turns: four teams within a priority, three priorities over and over.
            assert max(counts.values()) - min(counts.values()) <= 4
        assert 0.25 < sum(record["refund"] for record in read) / len(read) < 0.5


@pytest.mark.parametrize("split", SPLITS)
def test_an_answer_is_compact_json_that_the_message_gives(split: str) -> None:
    for message, answer in records(split):
        record = json.loads(answer)
        assert json.dumps(record, separators=(",", ":")) == answer
        assert list(record) == ["team", "priority", "product", "refund"]
        assert message.count(record["product"]) == 1
        assert "{" not in message


def test_no_two_splits_share_a_phrase_a_product_or_a_message() -> None:
    phrases = generate.load()
    for one, other in (("train", "valid"), ("train", "held_out"), ("valid", "held_out")):
        assert not phrases[one].templates & phrases[other].templates
        assert not set(phrases[one].products) & set(phrases[other].products)
        assert not set(phrases[one].amounts) & set(phrases[other].amounts)
        assert not {message for message, _ in records(one)} & {message for message, _ in records(other)}
        assert not {answer for _, answer in records(one)} & {answer for _, answer in records(other)}


def test_held_out_rows_share_few_word_sequences_with_training_rows() -> None:
    shared = generate.overlap(generate.generate())
    assert [shared[name] for name in ("templates", "products", "amounts", "messages", "answers")] == [0] * 5
    assert shared["3-grams"] < 0.05


@pytest.mark.parametrize("split", SPLITS)
def test_every_message_has_a_row_s_length(split: str) -> None:
    # Without the tokenizer: 92 to 132 characters are what 48 to 64 tokens a row come to.
    assert all(generate.SHORTEST <= len(message) <= generate.LONGEST for message, _ in records(split))


@pytest.mark.real
@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_tokens_that_were_planned(split: str) -> None:
    """With the tokenizer that a demo has left behind."""
    left = ROOT / "out" / "base" / "tokenizer.json"
    if not left.exists():
        pytest.skip("no base model in out/: make demo leaves one")
    from tokenizers import Tokenizer

    from core.formats import families
    from core.formats.conversation import Message
    from core.formats.templates import Template

    template = Template(families.text("gemma3"), {"bos_token": "<bos>"})
    tokenizer = Tokenizer.from_file(str(left))
    lengths = []
    for message, answer in records(split):
        talk = [Message(role="user", content=message), Message(role="assistant", content=answer)]
        lengths.append(len(tokenizer.encode(template.text(talk), add_special_tokens=False).ids))
    assert min(lengths) >= 47
    assert max(lengths) <= 66
    assert 52 <= sum(lengths) / len(lengths) <= 60
