"""A multipart form as it streams in: fields in memory, the file handed on in pieces, nothing on disk."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from anyio import to_thread
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.config import MIB
from core.errors import BadRequest

_PIECE = MIB
_MAX_FIELD = 64 * 1024
_MAX_PARTS = 64


class Sink(Protocol):
    """Where the file's bytes go. Blocks on the store, so it is called from a thread."""

    def write(self, chunk: bytes) -> None: ...


class FormReader:
    """Reads one form. ``open_file`` is called with the file's name when the part named ``file_field`` begins."""

    def __init__(self, content_type: str, file_field: str, open_file: Callable[[str], Sink]) -> None:
        kind, parameters = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in parameters:
            raise BadRequest("The request body must be multipart/form-data with a boundary.", code="invalid_form")
        self.fields: dict[str, str] = {}
        self.has_file = False
        self._file_field = file_field
        self._open_file = open_file
        self._sink: Sink | None = None
        self._pending = bytearray()
        self._ended = False
        self._parts = 0
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[str, bytes] = {}
        self._name = ""
        self._in_file = False
        self._parser = MultipartParser(
            parameters[b"boundary"],
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    async def read(self, stream: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in stream:
                self._parser.write(chunk)
                if len(self._pending) >= _PIECE:
                    await self._hand_on()
        except MultipartParseError as error:
            raise BadRequest(f"The form can't be read: {error}.", code="invalid_form") from None
        if not self._ended:
            raise BadRequest("The form ended before its last boundary.", code="invalid_form")
        await self._hand_on()

    async def _hand_on(self) -> None:
        if self._sink is not None and self._pending:
            piece = bytes(self._pending)
            self._pending.clear()
            await to_thread.run_sync(self._sink.write, piece)

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise BadRequest(f"The form has more than {_MAX_PARTS} parts.", code="invalid_form")
        self._headers, self._name, self._in_file = {}, "", False
        self._header.clear()
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
        filename = parameters.get(b"filename")
        if self._name != self._file_field:
            return
        if filename is None:
            raise BadRequest(f"{self._name}: this must be a file, with a file name.", param=self._name)
        if self.has_file:
            raise BadRequest(f"{self._name}: given twice.", param=self._name)
        self.has_file = self._in_file = True
        self._sink = self._open_file(filename.decode("utf-8", "replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD:
            raise BadRequest(f"{self._name}: longer than {_MAX_FIELD:,} bytes.", param=self._name)

    def _part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True
