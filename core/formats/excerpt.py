"""What is wrong in a line, shown: the value at a fault's path, or the text around where parsing stopped."""

import re
from functools import cached_property

import orjson

_SHOWN = 80
_AROUND = 30
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_COLUMN = re.compile(r"(?:at column|byte|before column) (\d+)")


class Source:
    """A line that faults are about; it is parsed once, however many they are."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    @cached_property
    def _parsed(self) -> tuple[object] | None:
        try:
            return (orjson.loads(self._line),)
        except orjson.JSONDecodeError:
            return None

    def excerpt(self, path: str, message: str) -> str | None:
        """Up to 80 characters; None when there is nothing to show."""
        if not self._line.strip():
            return None
        # What is wrong with the whole line may be that no parser should see it.
        if not path or self._parsed is None:
            return _around(self._line, message)
        (value,) = self._parsed
        for key, index in _PART.findall(path):
            inner = _step(value, key, index)
            if inner is None:
                # The field is missing: what it is missing from says more than nothing.
                break
            (value,) = inner
        return _short(orjson.dumps(value).decode())


def _step(value: object, key: str, index: str) -> tuple[object] | None:
    if index:
        return (value[int(index)],) if isinstance(value, list) and int(index) < len(value) else None
    return (value[key],) if isinstance(value, dict) and key in value else None


def _around(line: bytes, message: str) -> str:
    """The message names the column, or the byte, at which the line stops being JSON."""
    named = _COLUMN.search(message)
    at = int(named[1]) - 1 if named else 0
    if "byte" in message:
        text = line[max(0, at - _AROUND) : at + _AROUND].decode("utf-8", "backslashreplace")
    else:
        # Columns count characters.
        text = line.decode("utf-8", "backslashreplace")
        text = ("…" if at > _AROUND else "") + text[max(0, at - _AROUND) : at + _AROUND]
    return _short(text)


def _short(text: str) -> str:
    text = text.replace("\0", "\\0")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
