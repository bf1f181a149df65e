"""Bytes -> a JSON value that is safe to walk, or the one thing that is wrong with them."""

import json
import re
from typing import Any, NamedTuple

import orjson

from core.formats.report import Code

MAX_LINE_BYTES = 4 * 1024 * 1024
"""About a million tokens: more than any model takes, and little enough to be held many times over."""
MAX_DEPTH = 64

_NUL = re.compile("\0")
# Unicode forbids these two in interchange; `templates` marks learned text with them.
_RESERVED = re.compile("[\ufdd0\ufdd1]")


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
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return None, _diagnose(line, error)
    # Depth is at most the number of opening brackets, and most lines have few of them.
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        return None, Problem("", Code.TOO_DEEP, f"objects and lists are nested more than {MAX_DEPTH} deep")
    if b"\\u0000" in line and (path := _path_of(_NUL, value)) is not None:
        return None, Problem(path, Code.NUL, "the text has a NUL character")
    if (b"\xef\xb7" in line or b"\\u" in line) and (path := _path_of(_RESERVED, value)) is not None:
        return None, Problem(path, Code.NONCHARACTER, "the text has U+FDD0 or U+FDD1, which are no characters")
    return value, None


def too_long() -> Problem:
    return Problem("", Code.LINE_TOO_LONG, f"the line has more than {MAX_LINE_BYTES:,} bytes")


def _diagnose(line: bytes, error: orjson.JSONDecodeError) -> Problem:
    """Says what kind of broken JSON this is; the parser alone tells little."""
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        hint = "; it looks like UTF-16" if line.count(b"\0") > len(line) // 4 else ""
        return Problem("", Code.NOT_UTF8, f"byte {wrong.start + 1} of the line is not UTF-8{hint}")
    if b"\0" in line:
        return Problem("", Code.NUL, f"byte {line.index(0) + 1} of the line is NUL")
    if "surrogate" in error.msg:
        message = f"a \\u escape before column {error.colno} is half of a surrogate pair"
        return Problem("", Code.LONE_SURROGATE, message)
    if "depth" in error.msg or "ecursion" in error.msg:
        return Problem("", Code.TOO_DEEP, f"objects and lists are nested more than {MAX_DEPTH} deep")
    constants: list[str] = []
    # Bounded before it is parsed again: the standard parser recurses.
    if max(line.count(b"{"), line.count(b"[")) <= MAX_DEPTH:
        try:
            json.loads(line, parse_constant=constants.append)
        except ValueError:
            constants = []
    if constants:
        return Problem("", Code.NAN, f"{constants[0]} is not JSON")
    return Problem("", Code.INVALID_JSON, f"not JSON at column {error.colno}: {error.msg.split(':')[0]}")


def _deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        nested: list[object] = []
        for item in level:
            if isinstance(item, dict):
                nested.extend(item.values())
            elif isinstance(item, list):
                nested.extend(item)
        level = [item for item in nested if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _path_of(pattern: re.Pattern[str], value: object) -> str | None:
    """Where the first string or key with such a character is."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str) and pattern.search(item):
            return path
        if isinstance(item, dict):
            if any(pattern.search(key) for key in item):
                return path
            stack.extend((f"{path}.{key}" if path else key, inner) for key, inner in item.items())
        elif isinstance(item, list):
            stack.extend((f"{path}[{index}]", inner) for index, inner in enumerate(item))
    return None


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
