"""A verdict says what a job would fail on, and what its owner should know although it would not."""

import json
from pathlib import Path
from typing import Any

from core.formats.findings import Lengths, Lines, Seen, Survey, Verdict
from core.formats.judge import Terms, judge
from core.formats.survey import Asked, Findings, survey
from core.options import JobOptions, parse

GOOD = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(20)]


def surveyed(tmp_path: Path, rows: list[Any], validation: list[Any] | None = None, **seen: Any) -> Survey:
    paths = []
    for name, content in (("data", rows), ("valid", validation or [])):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
    findings = Findings(tmp_path)
    made = survey(Asked(paths[0], paths[1] if validation is not None else None), findings, tmp_path)
    findings.close()
    return made.model_copy(update={"models": [view(**seen)]} if seen else {})


def view(**fields: Any) -> Seen:
    plain = {
        "model": "m",
        "chat_template": "model",
        "context_length": 100,
        "max_length": 100,
        "over_length": "drop",
        "train_on": "assistant",
        "examples": 20,
        "tokens": 100,
        "trained_tokens": 50,
        "lengths": Lengths(shortest=1, mean=1, median=1, p90=1, p99=1, longest=1, histogram=[]),
        **{name: Lines() for name in ("truncated", "dropped", "masked", "straddling")},
        "fault_count": 0,
        "faults": [],
    }
    return Seen.model_validate(plain | fields)


def judged(made: Survey, *, formats: tuple[str, ...] = ("completion",), **ext: Any) -> Verdict:
    options: JobOptions = parse(ext)
    return judge(made, Terms("supervised", formats, options, 10))


def codes(found: list[Any]) -> list[tuple[str, str]]:
    return [(one.param, one.code) for one in found]


def test_faults_are_grouped_by_code_with_the_lines_of_all(tmp_path: Path) -> None:
    verdict = judged(surveyed(tmp_path, [*GOOD, "x", {"prompt": 1}, "y"]))
    assert not verdict.ok
    found = {one.code: one for one in verdict.faults}
    assert (found["invalid_json"].count, found["invalid_json"].lines) == (2, [21, 23])
    assert found["wrong_type"].message.startswith("line 22: prompt: ")


def test_bad_rows_within_the_share_that_was_allowed_are_only_warned_of(tmp_path: Path) -> None:
    made = surveyed(tmp_path, [*GOOD, "x", "y"])
    assert judged(made, data={"max_invalid_fraction": 0.05}).ok is False
    verdict = judged(made, data={"max_invalid_fraction": 0.1})
    assert verdict.ok
    (left_out,) = verdict.warnings
    assert (left_out.code, left_out.lines) == ("left_out", [21, 22])


def test_a_file_that_can_not_be_read_is_never_good_enough(tmp_path: Path) -> None:
    verdict = judged(surveyed(tmp_path, []), data={"max_invalid_fraction": 1.0})
    assert codes(verdict.faults) == [("training_file", "empty_file")]
    broken = surveyed(tmp_path, [*GOOD, "x"]).model_copy(update={"broken": True})
    assert not judged(broken, data={"max_invalid_fraction": 1.0}).ok


def test_what_a_model_makes_of_the_rows_is_judged_by_the_options(tmp_path: Path) -> None:
    long = Lines(count=2, lines=[3, 9])
    assert codes(judged(surveyed(tmp_path, GOOD, dropped=long)).warnings) == [("training_file", "over_length")]
    assert codes(judged(surveyed(tmp_path, GOOD, dropped=long, over_length="error")).faults) == [
        ("training_file", "over_length")
    ]
    cut = judged(surveyed(tmp_path, GOOD, truncated=long, masked=Lines(count=1, lines=[4]), straddling=long))
    assert cut.ok
    assert [one.code for one in cut.warnings] == ["truncated", "nothing_to_learn", "straddling"]
    assert codes(judged(surveyed(tmp_path, GOOD, examples=9)).faults) == [("training_file", "invalid_n_examples")]
    assert codes(judged(surveyed(tmp_path, GOOD, max_length=200)).faults) == [("ext.max_length", "invalid_value")]


def test_the_validation_file_is_judged_too(tmp_path: Path) -> None:
    verdict = judged(surveyed(tmp_path, GOOD, [{"text": "a"}, "x"]))
    assert codes(verdict.faults) == [
        ("validation_file", "wrong_format"),
        ("validation_file", "invalid_json"),
        ("validation_file", "wrong_format"),
    ]
    shared = judged(surveyed(tmp_path, GOOD, GOOD[3:5]))
    assert shared.ok
    assert [(one.code, one.lines) for one in shared.warnings] == [("shared_rows", [4, 5])]


def test_odd_rows_are_warned_of(tmp_path: Path) -> None:
    rows = [*GOOD, GOOD[0], *[{"prompt": f"q{n}", "completion": "I don't know."} for n in range(5)]]
    rows += [{"prompt": "x " * 4000, "completion": " "}]
    warned = {one.code: one for one in judged(surveyed(tmp_path, rows)).warnings}
    assert warned["duplicates"].lines == [21]
    assert "I don't know." in warned["repeated_answer"].message
    assert warned["empty_answers"].lines == [27]
    assert warned["long_rows"].lines == [27]
