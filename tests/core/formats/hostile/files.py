"""Files that are wrong as a whole: their encoding, what they are kept in, how they end."""

import csv
import gzip
import io
import lzma
import struct
from bz2 import compress as bzip2
from collections.abc import Iterator
from typing import Any

from core.formats.report import Code
from tests.core.formats.hostile.case import Bad, Where
from tests.core.formats.hostile.good import ALPACA, ANSWER, CHAT, TEXT, USER, dump

GOOD = dump(TEXT)
ROWS = b"\n".join([GOOD] * 3) + b"\n"
TALK = dump(CHAT)


def zstd(data: bytes) -> bytes:
    import pyarrow

    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return bytes(out.getvalue())


def parquet(**columns: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def table(*rows: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


def array(*records: bytes) -> bytes:
    return b"[" + b",\n".join(records) + b"]\n"


def _changed(data: bytes, place: int) -> bytes:
    """One byte of it is another."""
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


BROKEN: list[Where] = [(0, "", Code.BROKEN_FILE)]
EMPTY: list[Where] = [(0, "", Code.EMPTY_FILE)]
OTHER: list[Where] = [(0, "", Code.UNSUPPORTED_FILE)]
WIDE: list[Where] = [(0, "", Code.NOT_UTF8)]


def _json() -> Iterator[Bad]:
    yield Bad("nothing", b"", EMPTY)
    yield Bad("a line break", b"\n", EMPTY)
    yield Bad("blanks", b" \t\r\n \n", EMPTY)
    yield Bad("a byte order mark and nothing", b"\xef\xbb\xbf", [(1, "", Code.BOM), *EMPTY])
    yield Bad("a byte order mark before rows", b"\xef\xbb\xbf" + ROWS, [(1, "", Code.BOM)])
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        yield Bad(name, ROWS.decode().encode(name), WIDE)
        yield Bad(f"{name} with its mark", f"\ufeff{ROWS.decode()}".encode(name), WIDE)
        yield Bad(f"{name} of an array", f"[{GOOD.decode()}]".encode(name), WIDE)
    yield Bad("lines that end in carriage returns", ROWS.replace(b"\n", b"\r"), [(1, "", Code.INVALID_JSON)])
    yield Bad("a bad row among CRLFs", b"\r\n".join([GOOD, b"", b"{", GOOD]), [(3, "", Code.INVALID_JSON)])
    yield Bad("a bad row after blank lines", b"\n" * 1000 + b"{", [(1001, "", Code.INVALID_JSON)])
    yield Bad("a bad last row without a line break", ROWS + b'{"text": "a', [(4, "", Code.INVALID_JSON)])
    yield Bad("a row cut off in a character", ROWS + '{"text": "é'.encode()[:-1], [(4, "", Code.NOT_UTF8)])
    yield Bad("a row over several lines", b'{\n  "text": "a"\n}\n', [(1, "", Code.INVALID_JSON)], more=True)
    yield Bad("an object of rows", b'{"data": [' + GOOD + b"]}", [(1, "", Code.UNKNOWN_FORMAT)])
    yield Bad(
        "two bad rows", b"\n".join([GOOD, b"{", GOOD, b"[]"]), [(2, "", Code.INVALID_JSON), (4, "", Code.NOT_AN_OBJECT)]
    )
    yield Bad("chats, then texts", b"\n".join([TALK, GOOD, GOOD]), [(n, "", Code.MIXED_FORMATS) for n in (2, 3)])
    yield Bad(
        "a bad row before those of another format",
        b"\n".join([b"{", GOOD, TALK]),
        [(1, "", Code.INVALID_JSON), (3, "", Code.MIXED_FORMATS)],
    )
    yield Bad("alpaca, then chats", b"\n".join([dump(ALPACA), TALK]), [(2, "", Code.MIXED_FORMATS)])
    many = dump({"messages": [{"role": "bot", "content": "a"}] * 250})
    yield Bad("a row with 250 faults", many, [(1, f"messages[{n}].role", Code.UNKNOWN_ROLE) for n in range(100)])
    yield Bad(
        "three faults in a row",
        dump({"messages": [{"role": "bot", "content": 1}, {**ANSWER, "weight": 3}]}),
        [
            (1, "messages[0].role", Code.UNKNOWN_ROLE),
            (1, "messages[0].content", Code.WRONG_TYPE),
            (1, "messages[1].weight", Code.INVALID_WEIGHT),
        ],
    )
    yield Bad("an HTML page", b"<!DOCTYPE html>\n<html>\n", [(1, "", Code.INVALID_JSON)], more=True)
    yield Bad("Python", b"rows = [\n    {'text': 'a'},\n]\n", [(1, "", Code.INVALID_JSON)], more=True)


def _array() -> Iterator[Bad]:
    yield Bad("an empty array", b"[]", EMPTY)
    yield Bad("an array of blanks", b"[ \n ]\n", EMPTY)
    yield Bad("a bracket alone in a file", b"[", BROKEN)
    yield Bad("an array with a mark", b"\xef\xbb\xbf" + array(GOOD), [(1, "", Code.BOM)])
    yield Bad("a broken record", array(GOOD, b'{"text": }', GOOD), [(2, "", Code.INVALID_JSON)])
    yield Bad("a record in single quotes", array(GOOD, b"{'text': 'a'}"), [(2, "", Code.INVALID_JSON)])
    yield Bad("a record that is a list", array(GOOD, b"[" + GOOD + b"]"), [(2, "", Code.NOT_AN_OBJECT)])
    yield Bad("a record that is a string", array(b'"a"', GOOD), [(1, "", Code.NOT_AN_OBJECT)])
    yield Bad("a record that is null", array(GOOD, b"null"), [(2, "", Code.NOT_AN_OBJECT)])
    yield Bad("a record with NaN", array(GOOD, b'{"text": "a", "n": NaN}'), [(2, "", Code.NAN)])
    yield Bad(
        "a record with a text twice", array(GOOD, b'{"text": "a", "text": "b"}'), [(2, "text", Code.DUPLICATE_KEY)]
    )
    yield Bad(
        "a record with an unknown role",
        array(TALK, dump({"messages": [{**USER, "role": "bot"}, ANSWER]})),
        [(2, "messages[0].role", Code.UNKNOWN_ROLE)],
    )
    yield Bad("records of two formats", array(GOOD, TALK), [(2, "", Code.MIXED_FORMATS)])
    yield Bad("a comma too many in an array", b"[" + GOOD + b",," + GOOD + b"]", [(2, "", Code.INVALID_JSON)])
    yield Bad("a comma at the end of an array", b"[" + GOOD + b",]", [(2, "", Code.INVALID_JSON)])
    yield Bad("a comma at the beginning of an array", b"[," + GOOD + b"]", [(1, "", Code.INVALID_JSON)])
    yield Bad("no comma between records", b"[" + GOOD + GOOD + b"]", [(1, "", Code.INVALID_JSON)])
    yield Bad("an array cut off in a record", array(GOOD, GOOD)[:-8], [(2, "", Code.BROKEN_FILE)])
    yield Bad("an array cut off in a string", array(GOOD, GOOD)[:-5], [(2, "", Code.BROKEN_FILE)])
    yield Bad("an array cut off after a record", array(GOOD, GOOD)[:-2], [(2, "", Code.BROKEN_FILE)])
    yield Bad("an array cut off after a comma", b"[" + GOOD + b",", [(1, "", Code.BROKEN_FILE)])
    yield Bad("an array closed by a brace", b"[" + GOOD + b"}", [(1, "", Code.BROKEN_FILE)])
    yield Bad("a word after an array", array(GOOD) + b"yes", [(1, "", Code.BROKEN_FILE)])
    yield Bad("two arrays", array(GOOD) + array(GOOD), [(1, "", Code.BROKEN_FILE)])
    yield Bad("an array that never closes a string", b'[{"text": "a}, {}]', [(1, "", Code.BROKEN_FILE)])
    yield Bad("a thousand brackets in a file", b"[" * 1000, [(1, "", Code.BROKEN_FILE)])


def _csv() -> Iterator[Bad]:
    head, row = ["prompt", "completion"], ["a", "b"]
    good = table(head, row, row)
    yield Bad("a header alone", table(head), EMPTY)
    yield Bad("columns nobody knows", table(["question", "answer"], row), [(1, "", Code.UNKNOWN_FORMAT)])
    yield Bad("no header", table(row, row, row), [(1, "", Code.UNKNOWN_FORMAT)])
    yield Bad("a column is missing", table(["prompt"], ["a"]), [(2, "completion", Code.MISSING_FIELD)])
    yield Bad("a column twice", table(["prompt", "completion", "prompt"], ["a", "b", "c"]), [(1, "", Code.INVALID_CSV)])
    yield Bad("a cell too few", good + b"a\r\n", [(4, "", Code.INVALID_CSV)])
    yield Bad("a cell too many", good + b"a,b,c\r\n", [(4, "", Code.INVALID_CSV)])
    yield Bad("a comma without quotes", good + b"a,b, and c\r\n" + table(row), [(4, "", Code.INVALID_CSV)])
    yield Bad("a quote that is never closed", good + b'"a,b\r\n', [(4, "", Code.INVALID_CSV)])
    yield Bad("a quote within a cell", good + b'"a"x,b\r\n', [(4, "", Code.INVALID_CSV)])
    yield Bad("an empty cell", good + b"a,\r\n", [(4, "completion", Code.EMPTY)])
    yield Bad(
        "a bad row after one of two lines", table(head, ["a\nb", "c"], ["a", ""]), [(4, "completion", Code.EMPTY)]
    )
    yield Bad("bytes that are no UTF-8 in a cell", good + b"a,\xff\r\n", [(4, "completion", Code.NOT_UTF8)])
    yield Bad("a NUL in a cell", good + b"a,b\0\r\n", [(4, "completion", Code.NUL)])
    yield Bad(
        "a character that is none in a cell", good + "a,\ufdd0\r\n".encode(), [(4, "completion", Code.NONCHARACTER)]
    )
    yield Bad(
        "messages as Python prints them",
        table(["messages"], ["[{'role': 'user', 'content': 'a'}]"]),
        [(2, "messages", Code.INVALID_JSON)],
    )
    for name, cell in (("deep", "[" * 100 + "]" * 100), ("of very many lists", "[" + "[]," * 250_000 + "1]")):
        code = Code.TOO_DEEP if name == "deep" else Code.TOO_COMPLEX
        yield Bad(f"messages that are {name}", table(["messages"], [cell]), [(2, "messages", code)])
    yield Bad("messages that are a word", table(["messages"], ["hello"]), [(2, "messages", Code.INVALID_JSON)])
    yield Bad("messages cut off", table(["messages"], [TALK.decode()[13:40]]), [(2, "messages", Code.INVALID_JSON)])
    yield Bad(
        "an unknown role in a cell",
        table(["messages"], ['[{"role": "bot", "content": "a"}]']),
        [(2, "messages[0].role", Code.UNKNOWN_ROLE)],
    )
    yield Bad("a label of maybe", table([*head, "label"], [*row, "maybe"]), [(2, "label", Code.WRONG_TYPE)])
    yield Bad(
        "tools that are no JSON in a cell",
        table(["conversations", "tools"], ['[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]', "{"]),
        [(2, "tools", Code.INVALID_TOOL)],
    )
    yield Bad("semicolons and a cell too few", table(head, row, delimiter=";") + b"a\r\n", [(3, "", Code.INVALID_CSV)])
    yield Bad(
        "tabs and a cell too many", table(head, row, delimiter="\t") + b"a\tb\tc\r\n", [(3, "", Code.INVALID_CSV)]
    )


def _parquet() -> Iterator[Bad]:
    good = parquet(text=["a", "b", "c"] * 1000)
    (directory,) = struct.unpack("<I", good[-8:-4])
    yield Bad("Parquet's first bytes", b"PAR1", BROKEN)
    yield Bad("Parquet's first and last bytes", b"PAR1PAR1", BROKEN)
    for share in (10, 50, 90, 99):
        yield Bad(f"{share} % of a Parquet file", good[: len(good) * share // 100], BROKEN)
    yield Bad("Parquet without its last byte", good[:-1], BROKEN)
    yield Bad("Parquet with a damaged directory", _changed(good, len(good) - 8 - directory), BROKEN)
    yield Bad("Parquet whose directory is too long", good[:-8] + b"\xff\xff\xff\x7fPAR1", BROKEN)
    yield Bad("Parquet without rows", parquet(text=[]), EMPTY)
    yield Bad(
        "Parquet with columns nobody knows", parquet(question=["a"], answer=["b"]), [(1, "", Code.UNKNOWN_FORMAT)]
    )
    yield Bad(
        "Parquet with numbers for text",
        parquet(text=[1, 2]),
        [(1, "text", Code.WRONG_TYPE), (2, "text", Code.WRONG_TYPE)],
    )
    yield Bad("Parquet with NUL in a name", parquet(**{"te\0t": ["a"]}), [(1, "", Code.UNKNOWN_FORMAT)])
    yield Bad("Parquet with a null", parquet(text=["a", None, "c"]), [(2, "text", Code.WRONG_TYPE)])
    yield Bad("Parquet with an empty text", parquet(text=["a", "", "c"]), [(2, "text", Code.EMPTY)])
    yield Bad(
        "Parquet with messages of numbers",
        parquet(messages=[[1, 2]]),
        [(1, "messages[0]", Code.WRONG_TYPE), (1, "messages[1]", Code.WRONG_TYPE)],
    )
    yield Bad(
        "Parquet with an unknown role",
        parquet(messages=[[USER, ANSWER], [{"role": "bot", "content": "a"}, ANSWER]]),
        [(2, "messages[0].role", Code.UNKNOWN_ROLE)],
    )
    yield Bad(
        "Parquet with bytes for text",
        parquet(text=[b"a", b"\xff"]),
        [(1, "text", Code.WRONG_TYPE), (2, "text", Code.WRONG_TYPE)],
    )


def _packed() -> Iterator[Bad]:
    rows = ROWS * 50
    for name, pack in (("gzip", gzip.compress), ("zstd", zstd)):
        packed = pack(rows)
        yield Bad(f"{name}'s first bytes", packed[:4], BROKEN, more=True)
        yield Bad(f"half of a {name} file", packed[: len(packed) // 2], BROKEN, more=True)
        yield Bad(f"{name} without its last byte", packed[:-1], BROKEN, more=True)
        yield Bad(f"{name} of nothing", pack(b""), EMPTY)
        yield Bad(f"{name} in {name}", pack(packed), OTHER)
        yield Bad(f"{name} of a zip archive", pack(b"PK\x03\x04" + b"a" * 100), OTHER)
        yield Bad(f"{name} of UTF-16", pack("\ufeff{}".encode("utf-16-le")), WIDE)
        yield Bad(f"{name} with a bad row", pack(b"\n".join([GOOD, GOOD, b"{", GOOD])), [(3, "", Code.INVALID_JSON)])
        yield Bad(
            f"{name} of an array with a bad record",
            pack(array(GOOD, b"{]", GOOD)),
            [(2, "", Code.INVALID_JSON)],
            more=True,
        )
        yield Bad(
            f"{name} of a CSV with a cell too few",
            pack(table(["prompt", "completion"], ["a", "b"], ["a"])),
            [(3, "", Code.INVALID_CSV)],
        )
        yield Bad(f"{name} of half a Parquet file", pack(parquet(text=["a"] * 100)[:200]), BROKEN)
    yield Bad("gzip with a damaged byte", _changed(gzip.compress(rows), 30), BROKEN, more=True)
    yield Bad("gzip with a wrong checksum", _changed(gzip.compress(rows), -6), BROKEN, more=True)
    yield Bad("gzip with something after it", gzip.compress(rows) + b"more", BROKEN, more=True)
    yield Bad("gzip by its first bytes alone", b"\x1f\x8b" + rows, BROKEN)
    yield Bad("gzip in zstd", zstd(gzip.compress(rows)), OTHER)
    yield Bad("zstd in gzip", gzip.compress(zstd(rows)), OTHER)
    yield Bad("a zip archive", b"PK\x03\x04" + bytes(100), OTHER)
    yield Bad("bzip2", bzip2(rows), OTHER)
    yield Bad("xz", lzma.compress(rows), OTHER)
    yield Bad("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(100), OTHER)
    yield Bad("lz4", b"\x04\x22\x4d\x18" + bytes(100), OTHER)
    yield Bad("an Arrow file", b"ARROW1\0\0" + bytes(100), OTHER)
    yield Bad("a PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", OTHER)
    yield Bad("an SQLite database", b"SQLite format 3\0" + bytes(100), OTHER)
    yield Bad("an Avro file", b"Obj\x01" + bytes(100), OTHER)


def cases() -> Iterator[Bad]:
    for part in (_json, _array, _csv, _parquet, _packed):
        yield from part()
