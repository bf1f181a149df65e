"""What must hold of any bytes that the checker is given, whoever made them up."""

import gzip
import io
import random
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from core.formats import containers, reading
from core.formats.check import Checker
from core.formats.reading import read_file
from core.formats.report import FAULTS_KEPT, Code, Fault, Report
from core.formats.rows import BY_NAME, Row, canonical

FORMATS = ("auto", *BY_NAME)
SECONDS = 5.0
"""No input of the fuzzers is longer than 64 KiB: this is a hang. A bomb may unpack to 64 MiB."""
_WHOLE_FILE = {Code.BOM, Code.TOO_MANY_FAULTS, Code.BROKEN_FILE, Code.TOO_DEEP, Code.UNPACKED_TOO_LARGE}
"""What may be said on a row's number although the row is good: it is about the file there."""


def examine(given: bytes, path: Path) -> Report:
    """Raises AssertionError, or whatever the checker raises. The first byte says which ``format`` is asked for, the
    others are the file, which is put to ``path``."""
    format = FORMATS[given[0] % len(FORMATS)] if given else "auto"
    data = given[1:]
    path.write_bytes(data)
    rows: list[tuple[int, Row]] = []
    faults: list[Fault] = []
    began = time.process_time()
    report = read_file(path, lambda *row: rows.append(row), on_fault=faults.append, format=format)
    took = time.process_time() - began
    assert took < SECONDS, f"took {took:.1f} s"
    _sound(report, faults, data)
    _rows_or_faults(report, rows, faults)
    if reading.plain(data[: containers.HEAD]):
        _in_pieces(report, rows, data, format)
    if report.compression is None and zlib.crc32(data) % 8 == 0:
        _packed(report, data, path, format)
    return report


def _sound(report: Report, faults: list[Fault], data: bytes) -> None:
    assert report.bytes == len(data)
    assert report.fault_count == len(faults)
    assert report.faults == faults[:FAULTS_KEPT]
    # It goes into a database's JSON, which takes neither NUL nor half a surrogate pair.
    report.model_dump_json().encode()
    assert all("\0" not in text for fault in report.faults for text in (fault.path, fault.message, fault.excerpt or ""))
    # Records are counted where lines say nothing.
    last = report.lines if report.unit == "line" else report.rows + report.bad_rows + 1
    for fault in faults:
        assert 0 <= fault.line <= last, fault
        assert fault.message, fault
        # What a person reads is short, whatever the file holds.
        assert len(fault.message) < 400, fault
        assert len(fault.path) <= 201, fault
        assert fault.excerpt is None or len(fault.excerpt) <= 80, fault
    if report.compression is None and report.container in ("jsonl", "json"):
        assert report.lines <= data.count(b"\n") + 1


def _rows_or_faults(report: Report, rows: list[tuple[int, Row]], faults: list[Fault]) -> None:
    """A row is good exactly if nothing is wrong with it, and a good one can be written down."""
    numbers = [number for number, _ in rows]
    assert numbers == sorted(set(numbers))
    assert len(rows) == report.rows
    wrong = {fault.line for fault in faults if fault.code not in _WHOLE_FILE}
    assert wrong.isdisjoint(numbers) or report.broken, (wrong & set(numbers), faults)
    assert bool(rows) or not report.ok
    assert report.ok or report.broken or report.bad_rows or report.faults[0].code == Code.BOM
    for _, row in rows:
        canonical(row)


def _in_pieces(report: Report, rows: list[tuple[int, Row]], data: bytes, format: str) -> None:
    """However the bytes come: the same report and the same rows."""
    sizes = random.Random(zlib.crc32(data))
    most = max(sizes.choice([1, 3, 50, 5000]), len(data) // 20)
    pieces = list(_cut(data, lambda: sizes.randint(1, most)))
    found: list[tuple[int, Row]] = []
    checker = Checker(lambda *row: found.append(row), format=format)
    for piece in pieces:
        checker.feed(piece)
    assert checker.finish() == report
    assert found == rows
    if format == "auto":
        passing = reading.Passing()
        for piece in pieces:
            passing.feed(piece)
        assert passing.finish() in (None, report)


def _cut(data: bytes, size: Callable[[], int]) -> Iterable[bytes]:
    stream = io.BytesIO(data)
    while piece := stream.read(size()):
        yield piece


def _packed(report: Report, data: bytes, path: Path, format: str) -> None:
    """Compressed it is the same file."""
    path.write_bytes(gzip.compress(data, 1))
    packed = read_file(path, format=format)
    if packed.faults and packed.faults[0].code == Code.UNPACKED_TOO_LARGE:
        return
    assert packed.compression == "gzip"
    assert packed.model_copy(update={"compression": None, "bytes": len(data)}) == report
