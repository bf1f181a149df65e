"""Rows of CSV and Parquet -> JSON objects, so that one reader judges the rows of every container.

Columns that no format knows are left out before anything is made of them.
"""

import csv
import io
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any, NamedTuple

import orjson

from core.formats.containers import Unreadable, check_size
from core.formats.parse import MAX_DEPTH, MAX_LINE_BYTES, Problem, Problems, tangled, too_long
from core.formats.report import Code

# Columns whose cells are JSON where they look like it: text may begin with a bracket as well.
_STRUCTURED = frozenset({"tools", "functions", "input", "chosen", "rejected", "prompt", "completion"})
_ALWAYS_STRUCTURED = frozenset(
    {"messages", "conversations", "conversation", "preferred_output", "non_preferred_output", "history"}
)
# An empty cell in one of these says nothing.
_OPTIONAL = frozenset({"tools", "functions", "history", "system", "input", "parallel_tool_calls"})
_TRUTH = frozenset({"label", "kto_tag", "parallel_tool_calls"})
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_BATCH = 256
_AT_ONCE = 16


class TableRow(NamedTuple):
    number: int
    """The line of a CSV on which the row begins; a Parquet file's row, from 1."""
    text: bytes
    problems: Problems
    """Why there is no text."""


class Csv:
    """Reads a CSV with a header. ``lines`` counts as it goes."""

    def __init__(self, file: IO[bytes], delimiter: str) -> None:
        self.lines = 0
        # The module's, for all its readers; nobody else here reads CSV.
        csv.field_size_limit(MAX_LINE_BYTES)
        # Excel begins UTF-8 with a mark; what isn't UTF-8 is told with its row.
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        self._rows = csv.reader(self._bounded(text), delimiter=delimiter, strict=True)

    def _bounded(self, text: io.TextIOWrapper) -> Iterator[str]:
        while line := text.readline(MAX_LINE_BYTES + 1):
            self.lines += 1
            if len(line) > MAX_LINE_BYTES:
                raise Unreadable(too_long().code, f"{too_long().message}; nothing after it was read", self.lines)
            yield line

    def rows(self, known: Callable[[list[str]], Collection[str]]) -> Iterator[TableRow]:
        """``known`` gets the columns' names and gives those that are wanted. Raises Unreadable."""
        header: list[str] | None = None
        wanted: Collection[str] = ()
        while True:
            first = self.lines + 1
            try:
                cells = next(self._rows, None)
            except csv.Error as error:
                message = _sentence(error, self.lines - first + 1)
                # After a cell without end nobody knows where a row begins.
                if header is None or "field limit" in str(error):
                    raise Unreadable(Code.INVALID_CSV, message, first) from None
                yield TableRow(first, b"", [Problem("", Code.INVALID_CSV, message)])
                continue
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                wanted = known(header)
                twice = next((name for name in wanted if header.count(name) > 1), None)
                if twice is not None:
                    raise Unreadable(Code.INVALID_CSV, f"the column {twice} is there twice", first)
            elif len(cells) != len(header):
                message = f"the row has {len(cells)} cells and the header {len(header)}"
                yield TableRow(first, b"", [Problem("", Code.INVALID_CSV, message)])
            else:
                yield _csv_row(first, {name: cell for name, cell in zip(header, cells, strict=True) if name in wanted})


def _sentence(error: csv.Error, lines: int) -> str:
    text = str(error)
    if "field limit" in text or "end of data" in text:
        return "a quote that is opened here is never closed"
    if "expected after" in text:
        return "a quote stands within a cell: write it twice, and the whole cell in quotes"
    return f"not CSV{f' in the {lines} lines that begin here' if lines > 1 else ''}: {text}"


def _csv_row(line: int, cells: dict[str, str]) -> TableRow:
    values: dict[str, Any] = {}
    problems: Problems = []
    for name, cell in cells.items():
        if not cell.strip() and name in _OPTIONAL:
            continue
        if name in _TRUTH:
            values[name] = _WORDS.get(cell.strip().lower(), cell)
        elif name in _ALWAYS_STRUCTURED or (name in _STRUCTURED and cell.lstrip().startswith(("[", "{"))):
            values[name] = _json_cell(name, cell, problems)
        else:
            values[name] = cell
    return TableRow(line, b"", problems) if problems else _encoded(line, values)


def _json_cell(name: str, cell: str, problems: Problems) -> object:
    brackets = cell.count("[") + cell.count("{")
    if brackets > MAX_DEPTH and (problem := tangled(cell.encode("utf-8", "surrogateescape"))) is not None:
        if name in _ALWAYS_STRUCTURED:
            problems.append(problem._replace(path=name))
        return cell
    try:
        value = orjson.loads(cell)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        if name in _ALWAYS_STRUCTURED:
            hint = "; it looks like Python, write it with json.dumps" if "{'" in cell else ""
            problems.append(Problem(name, Code.INVALID_JSON, f"the cell is not JSON: {str(error).split(':')[0]}{hint}"))
        return cell
    return value if isinstance(value, list | dict) else cell


def _encoded(number: int, values: dict[str, Any]) -> TableRow:
    try:
        return TableRow(number, _json(values), [])
    except orjson.JSONEncodeError as error:
        path = next((name for name, value in values.items() if _unencodable(value)), "")
        if "UTF-8" in str(error) or "surrogate" in str(error):
            return TableRow(number, b"", [Problem(path, Code.NOT_UTF8, "the text is not UTF-8")])
        return TableRow(number, b"", [Problem(path, Code.WRONG_TYPE, f"the value can't be read: {error}")])


def _unencodable(value: object) -> bool:
    try:
        _json(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _json(value: object) -> bytes:
    # A date is a wrong value to be told, not a text.
    return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)


class Parquet:
    """Reads a Parquet file in batches, only the columns that are wanted."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        import pyarrow
        import pyarrow.parquet

        self._errors = (pyarrow.ArrowException, OSError, ValueError)
        self._size = size
        try:
            self._file = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=64 * 1024)
        except MemoryError:
            raise
        except self._errors as error:
            raise Unreadable(Code.BROKEN_FILE, f"not a whole Parquet file: {_first(error)}") from None
        self.rows_in_all: int = self._file.metadata.num_rows
        bytes_in_all = sum(self._file.metadata.row_group(n).total_byte_size for n in range(self._file.num_row_groups))
        # As many rows at once as four MiB hold, by what the file says of itself.
        self._batch = max(1, min(_BATCH, (4 << 20) * self.rows_in_all // max(1, bytes_in_all)))

    def rows(self, known: Callable[[list[str]], Collection[str]]) -> Iterator[TableRow]:
        """``known`` gets the columns' names and gives those that are wanted. Raises Unreadable."""
        wanted = list(known(self._file.schema_arrow.names))
        number = unpacked = 0
        try:
            for batch in self._file.iter_batches(batch_size=self._batch, columns=wanted, use_threads=False):
                # A value that many rows share lies in memory once, until each row gets its own.
                for start in range(0, batch.num_rows, _AT_ONCE):
                    for row in batch.slice(start, _AT_ONCE).to_pylist():
                        number += 1
                        made = _encoded(number, {name: _without_nulls(value) for name, value in row.items()})
                        unpacked += len(made.text)
                        check_size(unpacked, self._size)
                        yield made
        except (MemoryError, Unreadable):
            raise
        except UnicodeDecodeError:
            raise Unreadable(Code.NOT_UTF8, "the text is not UTF-8; nothing after it was read", number + 1) from None
        except self._errors as error:
            raise Unreadable(Code.BROKEN_FILE, f"the Parquet data are damaged: {_first(error)}", number + 1) from None


def _without_nulls(value: Any) -> Any:
    """A struct has every field any row has, null where a row hasn't: such a field says nothing."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _first(error: BaseException) -> str:
    return str(error).split("\n")[0].split(". ")[0][:200]
