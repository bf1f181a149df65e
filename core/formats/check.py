"""A whole JSONL file, fed as it streams by: every fault with its line, in memory for one line."""

from collections import Counter
from collections.abc import Callable

from core.formats import conversation, excerpt, parse, rows
from core.formats.containers import BOM
from core.formats.report import FAULTS_KEPT, Code, Fault, Report


class Checker:
    """``feed`` the file's bytes in any pieces, then ``finish``. ``on_row`` gets each good row and its line number,
    ``on_fault`` every fault, where the report keeps the first hundred.

    Blank lines are allowed and teach nothing; lines may end in CRLF; the last one needs no line break.
    """

    def __init__(
        self,
        on_row: Callable[[int, rows.Row], None] | None = None,
        *,
        on_fault: Callable[[Fault], None] | None = None,
        format: str = "auto",
    ) -> None:
        self._on_row = on_row
        self._on_fault = on_fault
        self._pieces: list[bytes] = []
        self._held = 0
        self._skipping = False
        self.report = Report(format=None, bytes=0, lines=0, rows=0)
        self._roles: Counter[str] = Counter()
        self._given = None if format == "auto" else rows.BY_NAME[format]
        self._reader = self._given
        self._seen = False

    def feed(self, chunk: bytes) -> None:
        self.report.bytes += len(chunk)
        start = 0
        while (end := chunk.find(b"\n", start)) != -1:
            self._hold(chunk[start:end])
            self._line()
            start = end + 1
        self._hold(chunk[start:])

    def finish(self) -> Report:
        report = self.report
        # A line that is cut off by what breaks the file is no fault of its own.
        if (self._held or self._skipping) and not report.broken:
            self._line()
        if not self._seen and not report.broken:
            self.broken(0, Code.EMPTY_FILE, "the file has no rows")
        report.roles = dict(self._roles)
        if self._reader is not None:
            report.format = self._reader.format
            if self._reader.conversion is not None:
                report.converted_from, report.conversion = self._reader.name, self._reader.conversion
        return report

    def _hold(self, piece: bytes) -> None:
        """Keeps a piece of the line that is still growing, unless it has grown too long to be kept."""
        if not piece or self._skipping:
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held > parse.MAX_LINE_BYTES:
            self._pieces, self._held, self._skipping = [], 0, True

    def _line(self) -> None:
        self.report.lines += 1
        number = self.report.lines
        line = b"".join(self._pieces)
        self._pieces, self._held = [], 0
        if self._skipping:
            self._skipping = False
            self.bad_row(number, [parse.too_long()])
            return
        if number == 1 and line.startswith(BOM):
            self.bom()
            line = line[len(BOM) :]
        if line.isspace() or not line:
            return
        self.row(number, line)

    def row(self, number: int, line: bytes) -> None:
        """One row as JSON: what a line holds, or a record of another container."""
        self._seen = True
        reader, row, problems = rows.read(line, self._given)
        if reader is not None and self._reader is None:
            self._reader = reader
        if reader is not None and reader is not self._reader:
            assert self._reader is not None
            message = f"a row of the format {reader.name} in a file of {self._reader.name} rows"
            problems = [parse.Problem("", Code.MIXED_FORMATS, message)]
        if row is None or problems:
            self.bad_row(number, problems, excerpt.Source(line))
            return
        self.report.rows += 1
        for messages in _conversations(row):
            self._roles.update(message["role"] for message in messages)
        if self._on_row is not None:
            self._on_row(number, row)

    def bad_row(self, number: int, problems: parse.Problems, source: excerpt.Source | None = None) -> None:
        """A row that can't be used, and why; ``source`` is its text, if it has one that says something."""
        self._seen = True
        self.report.bad_rows += 1
        for problem in problems:
            self.fault(number, *problem, source)

    def broken(self, line: int, code: Code, message: str) -> None:
        """The file can't be used as a whole, however many bad rows are allowed."""
        self.report.broken = True
        self.fault(line, "", code, message)

    def bom(self) -> None:
        self.fault(1, "", Code.BOM, "the file starts with a byte order mark; save it as plain UTF-8")

    def fault(self, line: int, path: str, code: Code, message: str, source: excerpt.Source | None = None) -> None:
        self.report.fault_count += 1
        if self._on_fault is None and len(self.report.faults) >= FAULTS_KEPT:
            return
        shown = None if source is None else source.excerpt(path, message)
        fault = Fault(line=line, path=path, code=code, message=message, excerpt=shown)
        if len(self.report.faults) < FAULTS_KEPT:
            self.report.faults.append(fault)
        if self._on_fault is not None:
            self._on_fault(fault)


def _conversations(row: rows.Row) -> list[list[conversation.Message]]:
    match row:
        case rows.Chat():
            return [row.messages]
        case rows.Preference():
            return [row.messages, row.preferred, row.rejected]
        case rows.Labelled(prompt=list() as prompt, completion=list() as completion):
            return [prompt, completion]
        case _:
            return []
