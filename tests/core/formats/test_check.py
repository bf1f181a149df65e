"""A whole data file, streamed through the checker."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.formats.check import Checker
from core.formats.parse import MAX_LINE_BYTES
from core.formats.report import FAULTS_KEPT, Code, Report

GOOD = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}).encode()
TEXT = b'{"text": "a"}'


def check(data: bytes, size: int = 1 << 16) -> Report:
    checker = Checker()
    for start in range(0, len(data), size):
        checker.feed(data[start : start + size])
    return checker.finish()


def faults(data: bytes) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in check(data).faults]


def test_a_good_file_is_counted() -> None:
    data = GOOD + b"\n" + GOOD
    report = check(data)
    assert report.ok
    assert report.model_dump(exclude={"faults"}) == {
        "format": "chat",
        "container": "jsonl",
        "compression": None,
        "converted_from": None,
        "conversion": None,
        "bytes": len(data),
        "lines": 2,
        "rows": 2,
        "bad_rows": 0,
        "broken": False,
        "roles": {"user": 2, "assistant": 2},
        "fault_count": 0,
    }


def test_line_ends_and_blank_lines_do_no_harm() -> None:
    report = check(b"\r\n" + GOOD + b"\r\n\n  \n" + GOOD + b"\n\n")
    assert (report.ok, report.rows, report.lines) == (True, 2, 6)


def test_a_fault_names_its_line_past_blank_ones() -> None:
    assert faults(GOOD + b"\n\n{\n" + GOOD + b"\n[]") == [(3, Code.INVALID_JSON), (5, Code.NOT_AN_OBJECT)]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\r\n"])
def test_a_file_without_rows_is_a_fault(data: bytes) -> None:
    assert faults(data) == [(0, Code.EMPTY_FILE)]


def test_a_byte_order_mark_is_named_and_the_row_still_read() -> None:
    report = check(b"\xef\xbb\xbf" + GOOD)
    assert [(fault.line, fault.code) for fault in report.faults] == [(1, Code.BOM)]
    assert report.rows == 1


def test_rows_of_another_format_are_faults() -> None:
    assert faults(b"\n".join([GOOD, TEXT, GOOD])) == [(2, Code.MIXED_FORMATS)]
    assert faults(b"\n".join([b"{", TEXT, GOOD])) == [(1, Code.INVALID_JSON), (3, Code.MIXED_FORMATS)]


def test_all_faults_are_counted_and_the_first_hundred_kept() -> None:
    report = check(b"{\n" * 250)
    assert (report.fault_count, len(report.faults), report.faults[-1].line) == (250, FAULTS_KEPT, 100)
    assert report.summary(2).splitlines()[-1] == "and 248 more"


def test_a_fault_reads_as_a_sentence() -> None:
    bad = GOOD.replace(b'"user"', b'"bot"')
    assert str(check(GOOD + b"\n" + bad).faults[0]) == (
        'line 2: messages[0].role: "bot" is not one of system, developer, user, assistant, tool'
    )


def test_a_line_without_end_takes_no_memory() -> None:
    piece = b"a" * (1 << 20)
    checker = Checker()
    checker.feed(GOOD + b"\n")
    tracemalloc.start()
    for _ in range(3 * MAX_LINE_BYTES // len(piece)):
        checker.feed(piece)
    checker.feed(b"\n" + GOOD)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    report = checker.finish()
    assert [(fault.line, fault.code) for fault in report.faults] == [(2, Code.LINE_TOO_LONG)]
    assert report.rows == 2
    assert peak < 2 * MAX_LINE_BYTES


LINES = st.lists(st.sampled_from([GOOD, TEXT, b"", b"{", b"[]", b"\xff", b'{"text": "\xc3\xa9"}\r']), max_size=6)


@settings(max_examples=60, deadline=None)
@given(LINES, st.integers(1, 7))
def test_the_report_does_not_depend_on_how_the_bytes_come(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    assert check(data, size) == check(data)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(st.text(max_size=3) | st.integers() | st.none(), st.lists).map(
        lambda value: json.dumps({"messages": value, "text": value}).encode()
    )
)
def test_nothing_makes_the_checker_fail(data: bytes) -> None:
    report = check(data)
    assert report.rows == 0 or report.format is not None
