"""A survey tells everything: each finding with its line, in memory that the file's size does not change."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.formats import fingerprints, likeness
from core.formats.findings import KEPT, Survey
from core.formats.fingerprints import Fingerprints
from core.formats.survey import FINDINGS, Asked, Findings, survey

ROOT = Path(__file__).resolve().parents[3]


def talk(question: str, answer: str, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **extra}


def words(seed: int, count: int = 30) -> str:
    pick = random.Random(seed)
    return " ".join("".join(pick.choices("abcdefghij", k=5)) for _ in range(count))


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def surveyed(tmp_path: Path, rows: list[Any], validation: list[Any] | None = None) -> Survey:
    data = written(tmp_path / "data.jsonl", rows)
    other = None if validation is None else written(tmp_path / "valid.jsonl", validation)
    findings = Findings(tmp_path)
    made = survey(Asked(data, other), findings, tmp_path)
    findings.close()
    # Nothing of what was on disk for a while stays.
    assert list(tmp_path.glob("*.hashes")) == []
    return made


def listed(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    lines = (tmp_path / FINDINGS).read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["finding"] == kind]


def test_every_fault_is_listed_and_more_than_a_thousand_are_all_downloadable(tmp_path: Path) -> None:
    bad = {"messages": [{"role": "bot", "content": "x"}]}
    made = surveyed(tmp_path, [talk("a", "b"), *[bad] * (KEPT + 500), "not json"])
    assert made.fault_count > KEPT
    assert len(made.faults) == KEPT
    assert sum(made.fault_codes.values()) == made.fault_count
    assert made.fault_codes["invalid_json"] == 1
    every = listed(tmp_path, "fault")
    assert len(every) == made.fault_count
    assert every[-1]["line"] == KEPT + 502
    assert every[-1]["code"] == "invalid_json"
    assert {"line", "path", "code", "message", "excerpt"} <= every[0].keys()
    assert not made.ok


def test_the_list_of_findings_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a byte a line would otherwise fill a disk with what is wrong about it."""
    monkeypatch.setattr("core.formats.survey.MOST_BYTES", 1000)
    made = surveyed(tmp_path, ["x"] * 100)
    assert made.fault_count == 100
    assert 0 < len((tmp_path / FINDINGS).read_bytes()) <= 1000
    monkeypatch.setattr("core.formats.survey.MOST_FINDINGS", 3)
    assert surveyed(tmp_path, ["x"] * 100).fault_codes == {"invalid_json": 100}
    assert len(listed(tmp_path, "fault")) == 3


def test_a_fault_comes_with_an_excerpt_of_what_is_wrong(tmp_path: Path) -> None:
    made = surveyed(
        tmp_path,
        [
            {"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]},
            '{"messages": [{"role": "user", "content": "before" oops "after"}]}',
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 12}]},
            {"messages": [{"role": "user", "content": "hello " * 100}]},
        ],
    )
    found = {fault.line: fault.excerpt for fault in reversed(made.faults)}
    assert found[1] == '"robot"'
    assert found[2] is not None
    assert "oops" in found[2]
    assert found[3] == "12"
    assert found[4] is not None
    assert "hello" in found[4]
    assert all(len(fault.excerpt or "") <= 82 for fault in made.faults)


def test_duplicates_are_exact_whatever_the_order_of_keys(tmp_path: Path) -> None:
    turned = {"messages": [{"content": "q1", "role": "user"}, {"content": "a1", "role": "assistant"}]}
    made = surveyed(tmp_path, [talk("q1", "a1"), talk("q2", "a2"), turned, talk("q2", "a2 "), talk("q1", "a1")])
    assert made.duplicates.count == 2
    assert [(row.line, row.other) for row in made.duplicates.rows] == [(3, 1), (5, 1)]
    assert [(row["line"], row["other"]) for row in listed(tmp_path, "duplicate")] == [(3, 1), (5, 1)]


def test_rows_shared_with_the_validation_file_are_named_in_both(tmp_path: Path) -> None:
    rows = [talk(f"q{n}", f"a{n}") for n in range(20)]
    made = surveyed(tmp_path, rows, [talk("new", "row"), rows[7], rows[3], {"messages": []}])
    assert made.validation is not None
    assert [(row.line, row.other) for row in made.validation.shared.rows] == [(4, 3), (8, 2)]
    assert made.validation.rows == 3
    assert made.validation.fault_count >= 1
    assert listed(tmp_path, "validation_fault")[0]["line"] == 4


def test_near_duplicates_are_found_in_a_sample_that_says_so(tmp_path: Path) -> None:
    text = words(1, 60)
    rows = [talk(words(n), words(-n)) for n in range(2, 40)]
    rows[10], rows[30] = talk(text, "one and the same answer"), talk(text + " zzzz", "one and the same answer")
    made = surveyed(tmp_path, rows)
    assert made.near_duplicates.sampled == 38
    assert [(row.line, row.other) for row in made.near_duplicates.rows] == [(31, 11)]
    assert made.near_duplicates.rows[0].similarity >= 0.8
    assert made.duplicates.count == 0


def test_a_sample_has_each_row_with_the_same_chance_and_is_always_the_same() -> None:
    def sampled() -> list[int]:
        sample = likeness.Sample()
        for line in range(4 * likeness.SAMPLE):
            sample.add(line, "text")
        assert len(sample) == likeness.SAMPLE
        return [line for line, _ in sample._rows]

    lines = sampled()
    assert lines == sampled()
    thirds = [sum(1 for line in lines if line * 4 // (4 * likeness.SAMPLE) == part) for part in range(4)]
    assert all(0.8 < part / (likeness.SAMPLE / 4) < 1.2 for part in thirds), thirds


def test_odd_rows_are_named(tmp_path: Path) -> None:
    rows = [talk(words(n), words(-n, 20)) for n in range(1, 60)]
    rows[4] = talk(words(1000), "  ")
    for n in (10, 20, 30, 40, 50):
        rows[n] = talk(words(2000 + n), "I don't know.")
    rows[15] = talk("a", "b")
    rows[25] = talk(words(3000, 3000), words(3001))
    made = surveyed(tmp_path, rows)
    assert (made.odd.empty_answers.count, made.odd.empty_answers.lines) == (1, [5])
    (repeated,) = made.odd.repeated_answers
    assert (repeated.answer, repeated.count, repeated.lines) == ("I don't know.", 5, [11, 21, 31, 41, 51])
    assert repeated.share == pytest.approx(5 / 59, abs=1e-4)
    assert made.odd.length_outliers is not None
    assert made.odd.length_outliers.short.lines == [16]
    assert made.odd.length_outliers.long.lines == [26]


def test_a_plain_file_has_no_oddities(tmp_path: Path) -> None:
    made = surveyed(tmp_path, [talk(words(n), words(-n, 20 + n % 10)) for n in range(1, 100)])
    assert made.ok
    assert made.odd.repeated_answers == []
    assert made.odd.length_outliers is not None
    assert (made.odd.length_outliers.short.count, made.odd.length_outliers.long.count) == (0, 0)
    assert (made.duplicates.count, made.near_duplicates.count) == (0, 0)
    assert (tmp_path / FINDINGS).read_text() == ""


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_what_often_comes_in_a_large_file_is_known_by_its_words(tmp_path: Path, late: bool) -> None:
    often = [talk(f"r{n}", "again and again") for n in range(1000)]
    once = [talk(f"q{n}", f"a{n}") for n in range(9000)]
    made = surveyed(tmp_path, once + often if late else often + once)
    (repeated,) = made.odd.repeated_answers
    assert (repeated.answer, repeated.count, len(repeated.lines)) == ("again and again", 1000, 100)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c"},
        {"text": "t"},
        {"prompt": "p", "completion": "c", "label": True},
        {
            "input": {"messages": [{"role": "user", "content": "a"}]},
            "preferred_output": [{"role": "assistant", "content": "b"}],
            "non_preferred_output": [{"role": "assistant", "content": "c"}],
        },
        {"instruction": "Say a.", "input": "", "output": "a"},
    ],
    ids=["completion", "text", "labelled", "preference", "alpaca"],
)
def test_every_format_is_surveyed(tmp_path: Path, row: dict[str, Any]) -> None:
    made = surveyed(tmp_path, [row, row])
    assert made.ok, made.faults
    assert (made.rows, made.duplicates.count) == (2, 1)
    assert (made.converted_from is not None) == ("instruction" in row)


def test_fingerprints_of_many_rows_are_compared_from_disk(tmp_path: Path) -> None:
    own, others = Fingerprints(tmp_path, "own"), Fingerprints(tmp_path, "others")
    for line in range(1, 50_001):
        own.add(fingerprints.of(line % 40_000), line)
    for line in range(1, 101):
        others.add(fingerprints.of(line * 1000), line)
    assert sorted(own.duplicates()) == [(line, line - 40_000) for line in range(40_001, 50_001)]
    shared = sorted(own.shared(others))
    assert (1000, 1) in shared
    assert (41_000, 1) in shared
    assert len(shared) == 39 + 10
    groups = list(own.frequent(2))
    assert len(groups) == 10_000
    assert all(group.rows == 2 for group in groups)


def test_a_survey_imports_no_tokenizer() -> None:
    code = "import sys, core.formats.survey; print({'torch', 'tokenizers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


_PEAK = """
import re, sys
from pathlib import Path
from core.formats.survey import Asked, Findings, survey
folder = Path(sys.argv[1])
findings = Findings(folder)
made = survey(Asked(folder / "data.jsonl", folder / "data.jsonl"), findings, folder)
# What getrusage tells is the parent's, where that was larger.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(made.rows, made.duplicates.count, made.validation.shared.count, peak)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Four times the rows, half of them double, compared with themselves: a few buffers more at most."""

    def peak(rows: int) -> int:
        half = [json.dumps(talk(f"question {n} " + "x" * 300, f"answer {n % 7}")) + "\n" for n in range(rows // 2)]
        (tmp_path / "data.jsonl").write_text("".join(half + half))
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        good, double, shared, kilobytes = map(int, done.stdout.split())
        assert (good, double, shared) == (rows, rows // 2, rows)
        return kilobytes

    assert peak(40_000) - peak(10_000) < 16 * 1024
