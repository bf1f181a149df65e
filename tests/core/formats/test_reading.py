"""Files as users have them: every container, plain and compressed, whole and broken."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.formats import containers, rows
from core.formats.array import Array
from core.formats.parse import MAX_LINE_BYTES
from core.formats.reading import plain, read_file
from core.formats.report import Code, Report
from tests.kept import COMPRESSIONS, CONTAINERS, array, parquet, zstd

ASK = {"role": "user", "content": 'Grüße, "you"\nthere'}
SAY = {"role": "assistant", "content": "hel[lo]\\"}
CHAT = {"messages": [ASK, SAY]}
PARTED = {"messages": [ASK, {"role": "assistant", "content": "a", "weight": 0.5}]}
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[Report, list[tuple[int, rows.Row]]]]:
    def run(data: bytes, **how: Any) -> tuple[Report, list[tuple[int, rows.Row]]]:
        path = tmp_path / "file"
        path.write_bytes(data)
        found: list[tuple[int, rows.Row]] = []
        report = read_file(path, lambda number, row: found.append((number, row)), **how)
        assert report.bytes == len(data)
        assert report.rows == len(found)
        return report, found

    return run


Reads = Callable[..., tuple[Report, list[tuple[int, rows.Row]]]]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_is_read_whatever_it_is_kept_in(container: str, compression: str, read: Reads) -> None:
    kind, write = CONTAINERS[container]
    packed, pack = COMPRESSIONS[compression]
    report, found = read(pack(write([CHAT, PARTED, CHAT])))
    assert report.ok, report.summary()
    assert (report.container, report.compression, report.format) == (kind, packed, "chat")
    chat = rows.Chat([ASK, SAY], None)
    assert [row for _, row in found] == [chat, rows.Chat(PARTED["messages"], None), chat]
    assert report.roles == {"user": 3, "assistant": 3}
    assert [number for number, _ in found] == ([2, 3, 4] if kind == "csv" else [1, 2, 3])


@pytest.mark.parametrize("container", CONTAINERS)
def test_foreign_rows_are_converted_from_any_container(container: str, read: Reads) -> None:
    report, found = read(CONTAINERS[container][1]([ALPACA, ALPACA]))
    assert (report.ok, report.converted_from, report.rows) == (True, "alpaca", 2)
    user, answer = {"role": "user", "content": "Add.\n1 2"}, {"role": "assistant", "content": "3"}
    assert found[1][1] == rows.Chat([user, answer], None)


@pytest.mark.parametrize("container", CONTAINERS)
def test_labels_and_tools_survive_a_table(container: str, read: Reads) -> None:
    write = CONTAINERS[container][1]
    _, found = read(write([{"prompt": "a", "completion": "b", "label": value} for value in (True, False)]))
    assert [row.label for _, row in found if isinstance(row, rows.Labelled)] == [True, False]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    messages = [
        ASK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        SAY,
    ]
    report, found = read(write([{"messages": messages, "tools": [tool]}]))
    assert report.ok, report.summary()
    assert isinstance(found[0][1], rows.Chat)
    assert found[0][1].tools == [tool]


def test_fields_that_only_other_rows_have_do_not_come_from_parquet(read: Reads) -> None:
    def tool(name: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {name: {"type": "string"}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    _, found = read(parquet([CHAT | {"tools": [tool(name)]} for name in ("one", "two")]))
    assert [row.tools for _, row in found if isinstance(row, rows.Chat)] == [[tool("one")], [tool("two")]]


def test_a_form_asked_for_holds_for_every_container(read: Reads) -> None:
    both = {"text": "a", **ALPACA}
    for _, write in CONTAINERS.values():
        assert read(write([both]))[0].format == "chat"
        assert read(write([both]), format="text")[0].format == "text"


def faults(report: Report) -> list[tuple[int, str, str]]:
    return [(fault.line, fault.path, fault.code) for fault in report.faults]


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_bad_row_is_named_by_its_place(container: str, read: Reads) -> None:
    kind, write = CONTAINERS[container]
    bad = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "s", "history": [["a"]]}
    report, _ = read(write([bad | {"history": []}, bad, bad | {"history": []}]))
    assert faults(report) == [(3 if kind == "csv" else 2, "history[0]", Code.WRONG_TYPE)]
    assert (report.rows, report.bad_rows, report.broken) == (2, 1, False)
    unit = "record" if kind in ("json", "parquet") else "line"
    assert report.summary().startswith(f"{unit} {faults(report)[0][0]}: history[0]: ")


A, B = b'{"text": "a"}', b'{"text": "b"}'

BROKEN: list[tuple[str, bytes, list[tuple[int, Code]], bool]] = [
    ("an array without records", b"[]", [(0, Code.EMPTY_FILE)], True),
    ("an array not closed", b"[" + A, [(1, Code.BROKEN_FILE)], True),
    ("an array cut after a comma", b"[" + A + b",", [(1, Code.BROKEN_FILE)], True),
    ("an array cut within a record", b"[" + A + b',\n {"text": "', [(2, Code.BROKEN_FILE)], True),
    ("an array closed by a brace", b"[" + A + b"}", [(1, Code.BROKEN_FILE)], True),
    ("two arrays", b"[" + A + b"][" + B + b"]", [(1, Code.BROKEN_FILE)], True),
    ("lists on lines", b"[1]\n[2]\n", [(1, Code.NOT_AN_OBJECT), (1, Code.BROKEN_FILE)], True),
    ("a comma too many", b"[" + A + b",," + B + b"]", [(2, Code.INVALID_JSON)], False),
    ("a comma at the end", b"[" + A + b",]", [(2, Code.INVALID_JSON)], False),
    ("a comma missing", b"[" + A + b"\n" + B + b", " + A + b"]", [(1, Code.INVALID_JSON)], False),
    ("a record is a number", b"[" + A + b", 1]", [(2, Code.NOT_AN_OBJECT)], False),
    ("a record in single quotes", b"[" + A + b", {'text': 'a'}, " + A + b"]", [(2, Code.INVALID_JSON)], False),
    ("nan in a record", b"[" + A + b', {"text": "a", "x": NaN}, ' + A + b"]", [(2, Code.NAN)], False),
    ("a surrogate in a record", b"[" + A + rb', {"text": "\ud800"}]', [(2, Code.LONE_SURROGATE)], False),
    ("bytes in a record", b"[" + A + b', {"text": "\xff"}]', [(2, Code.NOT_UTF8)], False),
    ("a record too long", b'["' + b"a" * MAX_LINE_BYTES + b'",' + A + b"]", [(1, Code.LINE_TOO_LONG)], False),
    ("a deep record", b"[" + A + b"," + b"[" * 90000 + b"]" * 90000 + b"]", [(2, Code.TOO_DEEP)], False),
    ("an array after a mark", b"\xef\xbb\xbf[" + A + b"]", [(1, Code.BOM)], False),
    ("a header alone", b"text\n", [(0, Code.EMPTY_FILE)], True),
    ("unknown columns", b"question,answer\na,b\n", [(1, Code.UNKNOWN_FORMAT)], True),
    ("a column twice", b"text,text\na,b\n", [(1, Code.INVALID_CSV)], True),
    ("a cell too few", b"prompt,completion\na,b\n\na\nc,d\n", [(4, Code.INVALID_CSV)], False),
    ("a cell too many", b"prompt,completion\na,b,c\nc,d\n", [(2, Code.INVALID_CSV)], False),
    ("a quote within a cell", b'text\n"a"b"\nc\n', [(2, Code.INVALID_CSV)], False),
    ("a quote never closed", b'text\n"a\n"b\nc\n', [(2, Code.INVALID_CSV)], False),
    ("a quote open at the end", b'text\nc\n"b\nc\n', [(3, Code.INVALID_CSV)], False),
    ("latin-1 in a cell", b"text\na\n\xe9\n", [(3, Code.NOT_UTF8)], False),
    ("nul in a cell", b"text\na\nb\0c\n", [(3, Code.NUL)], False),
    ("an empty cell", b"text,label\na,x\n,x\n", [(3, Code.EMPTY)], False),
    ("a line of a csv too long", b"text\n" + b"a" * (MAX_LINE_BYTES + 1), [(2, Code.LINE_TOO_LONG)], True),
    ("python in a cell", b"messages\n\"[{'role': 'user'}]\"\n", [(2, Code.INVALID_JSON)], False),
    ("a label that is no truth", b"prompt,completion,label\na,b,good\n", [(2, Code.WRONG_TYPE)], False),
    ("a faulty row after one of two lines", b'text,label\n"a\nb",x\n,x\n', [(4, Code.EMPTY)], False),
    ("half a gzip", gzip.compress(A)[:-9], [(0, Code.BROKEN_FILE)], True),
    ("a gzip with a wrong sum", gzip.compress(A)[:-8] + b"\0" * 8, [(0, Code.BROKEN_FILE)], True),
    ("half a zstd", zstd(A)[:-2], [(0, Code.BROKEN_FILE)], True),
    ("compressed twice", gzip.compress(zstd(A)), [(0, Code.UNSUPPORTED_FILE)], True),
    ("a zip", b"PK\x03\x04" + b"\0" * 30, [(0, Code.UNSUPPORTED_FILE)], True),
    ("xz", b"\xfd7zXZ\0\0", [(0, Code.UNSUPPORTED_FILE)], True),
    ("half a parquet", parquet([{"text": "a"}])[:-20], [(0, Code.BROKEN_FILE)], True),
    ("a parquet of nothing known", parquet([{"question": "a"}]), [(1, Code.UNKNOWN_FORMAT)], True),
    ("a parquet without rows", parquet([{"text": "a"}][:0] or [{"text": None}])[:4], [(0, Code.BROKEN_FILE)], True),
    ("a parquet with a null", parquet([{"text": "a"}, {"text": None}]), [(2, Code.WRONG_TYPE)], False),
    ("a parquet of bytes", parquet([{"text": b"a"}]), [(1, Code.WRONG_TYPE)], False),
    ("a parquet with nul", parquet([{"text": "a\0"}]), [(1, Code.NUL)], False),
]


@pytest.mark.parametrize(("data", "told", "broken"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_named_by_line_and_code(
    data: bytes, told: list[tuple[int, Code]], broken: bool, read: Reads
) -> None:
    report, _ = read(data)
    assert [(fault.line, fault.code) for fault in report.faults][: len(told)] == told
    assert report.broken == broken


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_bomb_is_named_and_takes_no_memory(pack: Callable[[bytes], bytes], read: Reads) -> None:
    bomb = pack(b'{"text": "' + b"a" * (90 << 20))
    assert len(bomb) < 200_000
    tracemalloc.start()
    report, _ = read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.faults[-1].code, report.broken) == (Code.UNPACKED_TOO_LARGE, True)
    assert peak < 24 << 20


def test_a_file_of_one_row_many_times_is_no_bomb(read: Reads) -> None:
    data = gzip.compress(A + b"\n" + (A + b"\n") * 30_000)
    assert len(data) * 200 < 30_000 * len(A)
    assert read(data)[0].ok


def test_an_array_is_read_in_memory_for_one_record(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    with path.open("wb") as file:
        file.write(b"[")
        for number in range(30):
            file.write((b"," if number else b"") + json.dumps({"text": "a" * (1 << 20)}).encode())
        file.write(b"]")
    tracemalloc.start()
    report = read_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.ok, report.rows) == (True, 30)
    assert peak < 20 << 20


def test_an_array_does_not_depend_on_how_its_bytes_come() -> None:
    data = array([CHAT, {"text": '\\"]}\\\\"'}, {"a": [[], {}]}, CHAT]) + b"\n "
    whole = Array()
    expected = list(whole.feed(data))
    assert [json.loads(record.text or b"") for record in expected][1] == {"text": '\\"]}\\\\"'}
    assert [record.line for record in expected] == [2, 14, 17, 23]
    for size in range(1, 12):
        pieces = Array()
        found = [record for at in range(0, len(data), size) for record in pieces.feed(data[at : at + size])]
        pieces.finish()
        assert (found, pieces.lines) == (expected, whole.lines)


def test_nothing_makes_reading_fail(read: Reads) -> None:
    """Bytes changed at random in files of every kind: a report comes out, and a good one is really good."""
    chance = random.Random(4)
    whole = [pack(write([CHAT, ALPACA])) for _, write in CONTAINERS.values() for _, pack in COMPRESSIONS.values()]
    for data in whole:
        for _ in range(25):
            broken = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                broken[chance.randrange(len(broken))] = chance.choice([0, 10, 34, 44, 91, 93, 125, 255])
            cut = chance.choice([len(broken), chance.randrange(len(broken))])
            report, _ = read(bytes(broken[:cut]))
            assert report.ok == (not report.faults)


@pytest.mark.parametrize(
    "text", ['[{"text": "first"},,{"text": "x"}]', '[{"text": "first"},{"text": "x"', 'text\nfirst\n"x']
)
def test_a_place_without_a_row_shows_no_other_row(text: str, read: Reads) -> None:
    report, _ = read(text.encode())
    assert [(fault.line > 1, fault.excerpt) for fault in report.faults] == [(True, None)]


def test_progress_goes_to_the_end(read: Reads) -> None:
    for _, write in CONTAINERS.values():
        for _, pack in COMPRESSIONS.values():
            seen: list[float] = []
            read(pack(write([CHAT] * 500)), progress=seen.append)
            assert seen == sorted(seen)
            assert 0 <= seen[0] <= seen[-1] <= 100


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b'{"text": "a"}', True),
        (b"\xef\xbb\xbf {", True),
        (b"", True),
        (b"hello", True),
        (b"\n\n [", False),
        (b"prompt,completion\n", False),
        (b'"prompt";"completion"\r\n', False),
        (b"PK\x03\x04", False),
        (gzip.compress(A, mtime=0), False),
        (zstd(A), False),
        (containers.PARQUET, False),
    ],
)
def test_only_plain_lines_are_checked_while_they_are_uploaded(head: bytes, expected: bool) -> None:
    assert plain(head) == expected
