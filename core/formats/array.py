"""A JSON array, a piece at a time: the bytes of each record, in memory for one of them.

Only strings, brackets and commas are looked at: what is wrong within a record is its reader's to tell.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from core.formats.containers import Unreadable
from core.formats.parse import MAX_LINE_BYTES
from core.formats.report import Code

_BLANK = b" \t\r\n"
_DEEPEST = 100_000
"""Far more than a row may have: brackets alone, of which each is looked at."""
_IN_STRING = re.compile(rb'["\\]')
_IN_RECORD = re.compile(rb'["\[\]{}]')
_BETWEEN = re.compile(rb'["\[\]{},]')


class Record(NamedTuple):
    number: int
    """From 1."""
    line: int
    """Of the file, on which it begins."""
    text: bytes | None
    """None: longer than a row may be."""
    gap: bool = False
    """Whether there is nothing where a record should be: a comma too many."""


class Array:
    """``feed`` the file's bytes and take the records they complete; ``finish`` when there are no more."""

    def __init__(self) -> None:
        self.lines = 1
        self._depth = 0
        self._string = False
        self._skip = 0
        """Characters that an escape at the end of a piece reaches into the next."""
        self._number = 0
        self._line = 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[Record]:
        start = position = 0
        if self._depth == 0 and not self._ended:
            start = position = self._open(chunk)
        if self._ended:
            self._nothing_more(chunk[position:])
            return
        position += self._skip
        self._skip = 0
        while position < len(chunk):
            if self._string:
                found = _IN_STRING.search(chunk, position)
                if found is None:
                    break
                position = found.end()
                if found[0] == b"\\":
                    position += 1
                else:
                    self._string = False
                continue
            found = (_BETWEEN if self._depth == 1 else _IN_RECORD).search(chunk, position)
            if found is None:
                break
            mark, position = found[0], found.end()
            if mark == b'"':
                self._string = True
            elif mark in b"[{":
                self._depth += 1
                if self._depth > _DEEPEST:
                    message = f"record {self._number + 1} is nested deeper than any program reads"
                    raise Unreadable(Code.TOO_DEEP, message, self._number + 1)
            elif mark != b"," and self._depth > 1:
                self._depth -= 1
            else:
                self._hold(chunk[start : found.start()])
                start = position
                yield from self._record(last=mark != b",")
                if mark == b",":
                    continue
                if mark == b"}":
                    message = f"line {self.lines}: the array is closed by }} instead of ]"
                    raise Unreadable(Code.BROKEN_FILE, message, self._number)
                self._ended = True
                self._nothing_more(chunk[position:])
                return
        self._skip = max(0, position - len(chunk))
        self._hold(chunk[start:])

    def finish(self) -> None:
        if self._ended:
            return
        if self._depth == 0:
            raise Unreadable(Code.BROKEN_FILE, "the file ends before its array begins")
        if self._held:
            message = f"the file ends within record {self._number + 1}, which begins on line {self._line}"
        else:
            message = "the file ends before its array does: ] is missing"
        raise Unreadable(Code.BROKEN_FILE, message, self._number + bool(self._held))

    def _open(self, chunk: bytes) -> int:
        """Past the bracket that opens the array; nothing but blanks can stand before it."""
        begin = chunk.find(b"[")
        blanks = chunk if begin < 0 else chunk[:begin]
        self.lines += blanks.count(b"\n")
        if begin < 0:
            return len(chunk)
        self._depth = 1
        return begin + 1

    def _hold(self, piece: bytes) -> None:
        if not self._held:
            stripped = piece.lstrip(_BLANK)
            self.lines += piece.count(b"\n", 0, len(piece) - len(stripped))
            self._line = self.lines
            piece = stripped
        self.lines += piece.count(b"\n")
        self._held += len(piece)
        if self._held <= MAX_LINE_BYTES + len(_BLANK) and piece:
            self._pieces.append(piece)
        elif self._held > MAX_LINE_BYTES:
            self._pieces = []

    def _record(self, last: bool) -> Iterator[Record]:
        text, held = b"".join(self._pieces).rstrip(_BLANK), self._held
        self._pieces, self._held = [], 0
        if not held and last and not self._number:
            return
        self._number += 1
        if not held:
            yield Record(self._number, self.lines, b"", gap=True)
        else:
            yield Record(self._number, self._line, text if held <= MAX_LINE_BYTES else None)

    def _nothing_more(self, rest: bytes) -> None:
        if rest.strip(_BLANK):
            message = f"line {self.lines}: something follows the array; a file holds one array, or one object a line"
            raise Unreadable(Code.BROKEN_FILE, message, self._number)
        self.lines += rest.count(b"\n")
