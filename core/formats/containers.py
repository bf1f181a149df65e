"""What a data file is kept in, told from its first bytes; and a compressed one as the bytes it stands for.

Knows nothing about rows. Zstandard and Parquet come from pyarrow, which is only imported for a file that needs it.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple

from core.formats.report import Code, Compression, Container

HEAD = 64 * 1024
"""Bytes that are enough to tell."""
MAX_RATIO = 120
"""How many times its size a compressed file may unpack to: text comes to 3 to 30, rows that repeat to 100."""
_FREE = 64 * 1024 * 1024
"""Up to here the ratio isn't looked at: a small file may be one row many times over."""
MAX_UNPACKED = 64 * 1024**3
BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"

_COMPRESSIONS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PARQUET = b"PAR1"
# What people send by mistake, and can be told about.
_OTHERS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
}


_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_WIDE = re.compile(rb"(?:[\[{]\0|\0[\[{])")
"""The beginning of a row in UTF-16 or UTF-32 without a mark; in UTF-8 no text has a NUL."""


class Unreadable(Exception):
    """The file can't be read to its end. ``line`` is 0 when it isn't known where."""

    def __init__(self, code: Code, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line


class Kind(NamedTuple):
    container: Container
    delimiter: str = ","
    """Of a CSV."""


def compression(head: bytes) -> Compression | None:
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def tell(head: bytes, fields: Collection[str]) -> Kind:
    """The container of unpacked bytes; ``fields`` are names a table's columns may have. Raises Unreadable."""
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise Unreadable(Code.UNSUPPORTED_FILE, f"the file is {what}; {_TAKEN}")
    if head.startswith(PARQUET):
        return Kind("parquet")
    encoding = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    if encoding is not None or _WIDE.match(head.lstrip(b"\0")) or _WIDE.match(head):
        raise Unreadable(Code.NOT_UTF8, f"the file is written in {encoding or 'UTF-16 or UTF-32'}; save it as UTF-8")
    text = head.removeprefix(BOM).lstrip(_BLANK)
    if text.startswith(b"["):
        return Kind("json")
    if text.startswith(b"{"):
        return Kind("jsonl")
    delimiter = _delimiter(text, fields)
    return Kind("jsonl") if delimiter is None else Kind("csv", delimiter)


_TAKEN = "JSONL, a JSON array, CSV and Parquet are taken, plain or compressed with gzip or zstd"
_NAME = re.compile(r"[A-Za-z_][\w .\-]{0,63}")


def _delimiter(text: bytes, fields: Collection[str]) -> str | None:
    """What stands between the cells, if the first line is a table's header."""
    line = re.split(rb"\r\n|\n|\r", text, maxsplit=1)[0].decode("utf-8", "replace")
    tables = {}
    for delimiter in ",\t;|":
        try:
            tables[delimiter] = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            continue
    for delimiter, names in tables.items():
        if not set(names).isdisjoint(fields):
            return delimiter
    for delimiter, names in tables.items():
        # Columns that nobody knows are best told as such.
        if len(names) > 1 and all(_NAME.fullmatch(name) for name in names):
            return delimiter
    return None


class Unpacked(io.RawIOBase):
    """The bytes a compressed file stands for, a few at a time, never more than its size explains."""

    def __init__(self, file: IO[bytes], kind: Compression, size: int) -> None:
        self._inner = _opened(file, kind)
        self._kind = kind
        self._size = size
        self.done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]  # typeshed's wider buffer
        try:
            piece = self._inner.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            where = f" after {self.done:,} bytes" if self.done else ""
            raise Unreadable(
                Code.BROKEN_FILE, f"the {self._kind} data are cut off or damaged{where}: {error}"
            ) from None
        buffer[: len(piece)] = piece
        self.done += len(piece)
        check_size(self.done, self._size)
        return len(piece)


def _opened(file: IO[bytes], kind: Compression) -> IO[bytes]:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # it is one in all but name
    import pyarrow

    stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return stream


def check_size(unpacked: int, size: int) -> None:
    """Raises Unreadable for a file that unpacks to more than it may."""
    if unpacked > MAX_UNPACKED:
        raise Unreadable(Code.UNPACKED_TOO_LARGE, f"the file unpacks to more than {MAX_UNPACKED >> 30} GiB")
    if unpacked > _FREE and unpacked > MAX_RATIO * size:
        message = f"the file unpacks to more than {MAX_RATIO} times its size; send it less compressed"
        raise Unreadable(Code.UNPACKED_TOO_LARGE, message)


def weight(path: Path) -> int:
    """Bytes of work in a file, roughly: what limits on its processing should go by."""
    with path.open("rb") as file:
        packed = compression(head := file.read(4)) is not None or head == PARQUET
    return path.stat().st_size * (20 if packed else 1)
