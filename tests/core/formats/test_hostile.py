"""Every bad file of the corpus is told where and what is wrong with it, and leaves the reader in order."""

from collections import Counter
from pathlib import Path

import pytest

from core.formats.reading import read_file
from core.formats.report import Code, Report
from tests.core.formats.hostile import changes, files, huge, lines
from tests.core.formats.hostile.case import Bad, write

SMALL = [*lines.cases(), *changes.cases(), *files.cases()]
# Known only once a template, a tokenizer or an accelerator is chosen.
NOT_OF_A_FILE = {
    Code.TEMPLATE_ERROR,
    Code.TEMPLATE_REWRITES_HISTORY,
    Code.TEMPLATE_DROPS_TEXT,
    Code.NO_MESSAGE_WEIGHTS,
}


def judge(bad: Bad, path: Path) -> Report:
    report = read_file(write(bad, path))
    found = [(fault.line, fault.path, fault.code) for fault in report.faults]
    assert (found[: len(bad.faults)] if bad.more else found) == bad.faults, report.summary(3)
    assert not report.ok
    # What a person reads is short, whatever the file holds.
    assert all(fault.message and len(fault.message) < 400 and len(fault.path) <= 201 for fault in report.faults)
    assert not any("\0" in fault.path + fault.message + (fault.excerpt or "") for fault in report.faults)
    return report


@pytest.mark.parametrize("bad", SMALL, ids=lambda bad: bad.name)
def test_a_bad_file_is_told_line_path_and_code(bad: Bad, tmp_path: Path) -> None:
    judge(bad, tmp_path / "file")


@pytest.mark.proof
@pytest.mark.parametrize("bad", list(huge.cases()), ids=lambda bad: bad.name)
def test_a_huge_file_is_told_line_path_and_code(bad: Bad, tmp_path: Path) -> None:
    judge(bad, tmp_path / "file")


def test_the_good_rows_around_a_bad_one_are_kept(tmp_path: Path) -> None:
    for bad in [*lines.cases(), *changes.cases()]:
        assert judge(bad, tmp_path / "file").rows == 3, bad.name


def test_the_corpus_is_large_and_has_every_code() -> None:
    assert len(SMALL) >= 300
    names = Counter(bad.name for bad in [*SMALL, *huge.cases()])
    assert [name for name, count in names.items() if count > 1] == []
    told = {code for bad in [*SMALL, *huge.cases()] for _, _, code in bad.faults}
    # Of a whole file, and asked for below.
    assert set(Code) - told - NOT_OF_A_FILE <= {Code.TOO_MANY_FAULTS}


def test_a_file_of_nothing_but_faults_is_given_up(tmp_path: Path) -> None:
    report = read_file(write(Bad("braces", b"{\n" * 130_000, []), tmp_path / "file"))
    assert (report.bad_rows, report.fault_count, report.broken, report.lines) == (100_000, 100_001, True, 100_000)
