"""Bytes -> a JSON value that is safe to walk, or the one thing that is wrong with them."""

import json
import re
from typing import Any, NamedTuple

import orjson

from core.formats.report import Code

MAX_LINE_BYTES = 4 * 1024 * 1024
"""About a million tokens: more than any model takes, and little enough to be held many times over."""
MAX_DEPTH = 64
MAX_CONTAINERS = 250_000
"""Objects and lists of one line: each takes a hundred bytes of memory or more, and two of its own."""
PROBLEMS_KEPT = 100
"""Of one row, which could have a million: what walks a row stops at so many."""

# Unicode forbids U+FDD0 and U+FDD1 in interchange; `templates` marks learned text with them.
_FORBIDDEN = re.compile("[\0\ufdd0\ufdd1]")
_FORBIDDEN_BYTES = re.compile(rb"\\u(?:0000|[fF][dD][dD][01])|\xef\xb7[\x90\x91]")
# 1 for a bracket that opens, -1 for one that closes, 0 for all else.
_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
# No JSON, but written by programs that know no better.
_NO_NUMBER = re.compile(r"-?(?:NaN|nan|Infinity|inf)\b")


class Problem(NamedTuple):
    """A fault that does not know its line."""

    path: str
    code: Code
    message: str


Problems = list[Problem]
Object = dict[str, Any]  # any JSON object; readers check the fields they know


def parse(line: bytes) -> tuple[object, Problem | None]:
    if len(line) > MAX_LINE_BYTES:
        return None, too_long()
    # Depth is at most the number of opening brackets, and most lines have few of them.
    brackets = line.count(b"{") + line.count(b"[") if len(line) > MAX_DEPTH else 0
    if brackets > MAX_DEPTH and (problem := tangled(line)) is not None:
        return None, problem
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return None, _diagnose(line, error)
    # Looking for a single byte first is several times faster.
    suspicious = (b"\\" in line and b"\\u" in line) or b"\xef" in line
    if suspicious and _FORBIDDEN_BYTES.search(line) and (found := _forbidden(value)):
        steps, character = found
        if character == "\0":
            return None, Problem(_path(steps), Code.NUL, "the text has a NUL character")
        message = "the text has U+FDD0 or U+FDD1, which are no characters"
        return None, Problem(_path(steps), Code.NONCHARACTER, message)
    return value, None


def repeated_key(line: bytes, value: object, strings: int | None = None) -> Problem | None:
    """What is wrong if an object of the line has a key twice: the parser kept the last one and dropped the others.

    ``value`` is what the line was parsed to, ``strings`` how many keys and strings it has, if that is known.
    """
    if _quotes(line) == (_quotes(orjson.dumps(value)) if strings is None else 2 * strings):
        return None
    steps = _repeated(json.loads(line, object_pairs_hook=_Pairs))
    return None if steps is None else Problem(_path(steps), Code.DUPLICATE_KEY, "is there twice: only one can count")


def too_long() -> Problem:
    return Problem("", Code.LINE_TOO_LONG, f"the line has more than {MAX_LINE_BYTES:,} bytes")


def _diagnose(line: bytes, error: orjson.JSONDecodeError) -> Problem:
    """Says what kind of broken JSON this is; the parser alone tells little."""
    try:
        text = line.decode()
    except UnicodeDecodeError as wrong:
        hint = "; it looks like UTF-16" if line.count(b"\0") > len(line) // 4 else ""
        return Problem("", Code.NOT_UTF8, f"byte {wrong.start + 1} of the line is not UTF-8{hint}")
    if b"\0" in line:
        return Problem("", Code.NUL, f"byte {line.index(0) + 1} of the line is NUL")
    if "surrogate" in error.msg:
        message = f"a \\u escape before column {error.colno} is half of a surrogate pair"
        return Problem("", Code.LONE_SURROGATE, message)
    if "infinity" in error.msg:
        return Problem("", Code.HUGE_NUMBER, f"the number at column {error.colno} is too large for any program")
    # The parser stops behind a sign.
    start = max(0, error.pos - 1) if text[max(0, error.pos - 1) : error.pos] == "-" else error.pos
    if constant := _NO_NUMBER.match(text, start):
        return Problem("", Code.NAN, f"{constant.group()} is not JSON")
    if "\r" in text.strip("\r"):
        return Problem("", Code.INVALID_JSON, "the line has carriage returns inside; end lines with \\n or \\r\\n")
    # What the parser says when a long line ends too early.
    why = "unexpected end of data" if "memory" in error.msg else error.msg.split(":")[0]
    return Problem("", Code.INVALID_JSON, f"not JSON at column {error.colno}: {why}")


def tangled(line: bytes) -> Problem | None:
    """Whether a parser would choke on the line. Of the bytes, so that a line that is no JSON has a depth, too."""
    # A line of four million brackets would keep a loop busy for a second.
    import numpy as np

    text = line.replace(rb"\\", b"").replace(rb"\"", b"")
    outside = np.cumsum(np.frombuffer(text, np.uint8) == ord('"'), dtype=np.int32) % 2 == 0
    steps = np.frombuffer(text.translate(_STEPS), np.int8)[outside]
    steps = steps[steps != 0]
    if steps.cumsum(dtype=np.int32).max(initial=0) > MAX_DEPTH:
        return Problem("", Code.TOO_DEEP, f"objects and lists are nested more than {MAX_DEPTH} deep")
    if np.count_nonzero(steps == 1) > MAX_CONTAINERS:
        return Problem("", Code.TOO_COMPLEX, f"the line has more than {MAX_CONTAINERS:,} objects and lists")
    return None


def _quotes(text: bytes) -> int:
    """Quotation marks that begin or end a string."""
    if b"\\" in text:
        text = text.replace(rb"\\", b"")
        return text.count(b'"') - text.count(rb"\"")
    return text.count(b'"')


def _forbidden(value: object) -> tuple[list[str], str] | None:
    """The first text with a character that may not be, as steps to it, and the character.

    Steps become a path only where one is found: a key may be megabytes long and have a million things under it.
    """
    if isinstance(value, str):
        found = _FORBIDDEN.search(value)
        return ([], found.group()) if found else None
    if isinstance(value, dict):
        for key, item in value.items():
            if found := _FORBIDDEN.search(key):
                return [], found.group()
            if inner := _forbidden(item):
                return [f".{key}", *inner[0]], inner[1]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if inner := _forbidden(item):
                return [f"[{index}]", *inner[0]], inner[1]
    return None


class _Pairs(list[tuple[str, object]]):
    """An object as it is written, equal keys included."""


def _repeated(value: object) -> list[str] | None:
    """The steps to the first key that is in its object already."""
    if isinstance(value, _Pairs):
        seen = set()
        for key, item in value:
            if key in seen:
                return [f".{key}"]
            seen.add(key)
            if (inner := _repeated(item)) is not None:
                return [f".{key}", *inner]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if (inner := _repeated(item)) is not None:
                return [f"[{index}]", *inner]
    return None


def _path(steps: list[str]) -> str:
    return "".join(steps).removeprefix(".")


def kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def quote(value: object) -> str:
    """Short values are shown, longer ones and whole structures are only named."""
    if isinstance(value, dict | list):
        return kind(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 42 else text[:40] + '…"'


def string(row: Object, field: str, path: str, problems: Problems, *, empty: bool = True) -> str:
    if field not in row:
        problems.append(Problem(path, Code.MISSING_FIELD, "is missing"))
    elif not isinstance(value := row[field], str):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(value)} is not a string"))
    elif not value and not empty:
        problems.append(Problem(path, Code.EMPTY, "is empty"))
    else:
        return value
    return ""
