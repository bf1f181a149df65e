"""One line of a JSONL file -> a chat, preference, completion or text row, or everything wrong with it.

Each format is a reader in ``READERS``; a further format is one more reader. Knows nothing about tokenizers.
"""

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from core.formats.report import Code, Format

MAX_LINE_BYTES = 4 * 1024 * 1024
"""About a million tokens: more than any model takes, and little enough to be held many times over."""
MAX_DEPTH = 64
ROLES = ("system", "developer", "user", "assistant", "tool")

_NUL = re.compile("\0")
# Unicode forbids these two in interchange; `templates` marks learned text with them.
_RESERVED = re.compile("[\ufdd0\ufdd1]")

# A message or a tool as a template sees it: JSON objects, of which the readers have checked the fields they know.
Message = dict[str, Any]
Tool = dict[str, Any]

_MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content", "refusal"}
)
# The official SDK writes these when a user dumps a response; they say nothing when they are null or empty.
_HOLLOW_FIELDS = frozenset({"audio", "annotations", "function_call"})


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages have string content (text parts are joined) and tool calls with arguments as objects."""

    messages: list[Message]
    tools: list[Tool] | None


@dataclass(frozen=True, slots=True)
class Preference:
    messages: list[Message]
    tools: list[Tool] | None
    preferred: list[Message]
    rejected: list[Message]


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Row = Chat | Preference | Completion | Text


class Problem(NamedTuple):
    """A fault that does not know its line."""

    path: str
    code: Code
    message: str


Problems = list[Problem]
Object = dict[str, Any]


class Reader(NamedTuple):
    format: Format
    recognises: Callable[[Object], bool]
    read: Callable[[Object, Problems], Row]


def read(line: bytes) -> tuple[Format | None, Row | None, Problems]:
    """Format, row and problems of one line without its line break. There is a row exactly if there are no problems."""
    value, problem = _parse(line)
    if problem is not None:
        return None, None, [problem]
    if not isinstance(value, dict):
        hint = "; the file must hold one JSON object a line, not an array" if isinstance(value, list) else ""
        return None, None, [Problem("", Code.NOT_AN_OBJECT, f"{_kind(value)} is not an object{hint}")]
    for reader in READERS:
        if reader.recognises(value):
            problems: Problems = []
            row = reader.read(value, problems)
            return reader.format, None if problems else row, problems
    keys = ", ".join(list(value)[:8]) or "none"
    return None, None, [Problem("", Code.UNKNOWN_FORMAT, f"no known format has these fields: {keys[:200]}{_EXPECTED}")]


_EXPECTED = (
    '; a row has "messages", or "prompt" and "completion", or "text",'
    ' or "input", "preferred_output" and "non_preferred_output"'
)


def _parse(line: bytes) -> tuple[object, Problem | None]:
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


def _kind(value: object) -> str:
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


def _quote(value: object) -> str:
    """Short values are shown, longer ones and whole structures are only named."""
    if isinstance(value, dict | list):
        return _kind(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 42 else text[:40] + '…"'


def _string(row: Object, field: str, path: str, problems: Problems, *, empty: bool = True) -> str:
    if field not in row:
        problems.append(Problem(path, Code.MISSING_FIELD, "is missing"))
    elif not isinstance(value := row[field], str):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{_kind(value)} is not a string"))
    elif not value and not empty:
        problems.append(Problem(path, Code.EMPTY, "is empty"))
    else:
        return value
    return ""


def _read_text(row: Object, problems: Problems) -> Row:
    return Text(_string(row, "text", "text", problems, empty=False))


def _read_completion(row: Object, problems: Problems) -> Row:
    prompt = _string(row, "prompt", "prompt", problems)
    return Completion(prompt, _string(row, "completion", "completion", problems, empty=False))


def _read_chat(row: Object, problems: Problems) -> Row:
    if "weight" in row:
        problems.append(Problem("weight", Code.UNKNOWN_FIELD, "a row has no weight; messages have"))
    if row.get("functions") is not None:
        message = 'is the old form; use "tools", a list of {"type": "function", "function": {…}}'
        problems.append(Problem("functions", Code.UNSUPPORTED_CONTENT, message))
    tools, names = _tools(row.get("tools"), "tools", problems)
    messages = _messages(row["messages"], "messages", names, problems)
    if not problems:
        _ends_with_answer(messages, "messages", problems)
    return Chat(messages, tools)


def _read_preference(row: Object, problems: Problems) -> Row:
    for field in ("input", "preferred_output", "non_preferred_output"):
        if field not in row:
            problems.append(Problem(field, Code.MISSING_FIELD, "is missing"))
    given = row.get("input", {})
    tools, names = None, None
    messages: list[Message] = []
    if not isinstance(given, dict):
        problems.append(Problem("input", Code.WRONG_TYPE, f'{_kind(given)} is not an object with "messages"'))
    elif "input" in row:
        tools, names = _tools(given.get("tools"), "input.tools", problems)
        if "messages" in given:
            messages = _messages(given["messages"], "input.messages", names, problems)
        else:
            problems.append(Problem("input.messages", Code.MISSING_FIELD, "is missing"))
    outputs = []
    for field in ("preferred_output", "non_preferred_output"):
        output: list[Message] = []
        if field in row:
            before = len(problems)
            output = _messages(row[field], field, names, problems)
            if len(problems) == before:
                _ends_with_answer(output, field, problems)
        outputs.append(output)
    return Preference(messages, tools, *outputs)


def _ends_with_answer(messages: list[Message], path: str, problems: Problems) -> None:
    if all(message["role"] != "assistant" for message in messages):
        problems.append(Problem(path, Code.NO_ASSISTANT_MESSAGE, "no message is from the assistant"))
    elif messages[-1]["role"] != "assistant":
        message = f"the last message is from {messages[-1]['role']}, not from the assistant"
        problems.append(Problem(f"{path}[{len(messages) - 1}].role", Code.LAST_MESSAGE_NOT_ASSISTANT, message))


def _tools(value: object, path: str, problems: Problems) -> tuple[list[Tool] | None, frozenset[str] | None]:
    """The tools and their names; names are None when the row has no tools, so that any call is allowed."""
    if value is None:
        return None, None
    if not isinstance(value, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{_kind(value)} is not a list"))
        return None, None
    names = set()
    for index, tool in enumerate(value):
        at = f"{path}[{index}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
            problems.append(Problem(at, Code.INVALID_TOOL, 'is not {"type": "function", "function": {…}}'))
        elif not isinstance(name := function.get("name"), str) or not name:
            problems.append(Problem(f"{at}.function.name", Code.INVALID_TOOL, "a function needs a name"))
        elif not isinstance(function.get("parameters", {}), dict):
            message = f"{_kind(function['parameters'])} is not a JSON schema"
            problems.append(Problem(f"{at}.function.parameters", Code.INVALID_TOOL, message))
        else:
            names.add(name)
    return value or None, frozenset(names) if value else None


def _messages(value: object, path: str, names: frozenset[str] | None, problems: Problems) -> list[Message]:
    if not isinstance(value, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{_kind(value)} is not a list of messages"))
        return []
    if not value:
        problems.append(Problem(path, Code.EMPTY, "has no messages"))
    messages: list[Message] = []
    # Calls that wait for their results, and where they were made.
    waiting: dict[str, str] = {}
    for index, item in enumerate(value):
        at = f"{path}[{index}]"
        if not isinstance(item, dict):
            problems.append(Problem(at, Code.WRONG_TYPE, f"{_kind(item)} is not a message"))
            continue
        role = item.get("role")
        if role == "tool":
            _tool_result(item, at, waiting, problems)
        elif waiting:
            _unanswered(waiting, problems)
        messages.append(_message(item, at, names, waiting, problems))
    # Calls in the last message are what the model is to learn; nothing has to follow them.
    if value and isinstance(value[-1], dict) and value[-1].get("role") == "tool":
        _unanswered(waiting, problems)
    return messages


def _unanswered(waiting: dict[str, str], problems: Problems) -> None:
    for call, where in waiting.items():
        message = f"no tool message answers the call {_quote(call)}"
        problems.append(Problem(where, Code.TOOL_CALL_WITHOUT_RESULT, message))
    waiting.clear()


def _tool_result(item: Message, at: str, waiting: dict[str, str], problems: Problems) -> None:
    if isinstance(call := _string(item, "tool_call_id", f"{at}.tool_call_id", problems), str) and call:
        if call in waiting:
            del waiting[call]
        else:
            message = f"{_quote(call)} is not the id of a call that waits for its result"
            problems.append(Problem(f"{at}.tool_call_id", Code.TOOL_RESULT_WITHOUT_CALL, message))


def _message(
    item: Message, at: str, names: frozenset[str] | None, waiting: dict[str, str], problems: Problems
) -> Message:
    role = item.get("role")
    if role not in ROLES:
        if "role" not in item:
            problems.append(Problem(f"{at}.role", Code.MISSING_FIELD, "is missing"))
        else:
            message = f"{_quote(role)} is not one of {', '.join(ROLES)}"
            problems.append(Problem(f"{at}.role", Code.UNKNOWN_ROLE, message))
    # Almost every message has only a role and text: they pass here.
    if len(item) == 2 and isinstance(item.get("content"), str):
        return item
    result: Message = {"role": role}
    for field, value in item.items():
        if field in _MESSAGE_FIELDS:
            continue
        if field in _HOLLOW_FIELDS and not value:
            continue
        problems.append(_unknown_field(field, f"{at}.{field}"))
    calls = item.get("tool_calls")
    result["content"] = _content(item, at, bool(calls) and role == "assistant", problems)
    for field in ("name", "tool_call_id", "reasoning_content"):
        if (value := item.get(field)) is not None:
            if isinstance(value, str):
                result[field] = value
            elif field != "tool_call_id" or role != "tool":  # a tool's id has been looked at
                problems.append(Problem(f"{at}.{field}", Code.WRONG_TYPE, f"{_kind(value)} is not a string"))
    if (weight := item.get("weight")) is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            problems.append(Problem(f"{at}.weight", Code.INVALID_WEIGHT, f"{_quote(weight)} is not from 0 to 1"))
        else:
            result["weight"] = float(weight)
    if calls is not None:
        if role != "assistant":
            problems.append(Problem(f"{at}.tool_calls", Code.INVALID_TOOL_CALL, "only the assistant calls tools"))
        else:
            result["tool_calls"] = _tool_calls(calls, f"{at}.tool_calls", names, waiting, problems)
    return result


def _unknown_field(field: str, path: str) -> Problem:
    if field == "function_call":
        return Problem(path, Code.UNSUPPORTED_CONTENT, 'is the old form; use "tool_calls"')
    if field == "audio":
        return Problem(path, Code.UNSUPPORTED_CONTENT, "audio can not be trained on")
    near = difflib.get_close_matches(field, sorted(_MESSAGE_FIELDS), n=1)
    return Problem(path, Code.UNKNOWN_FIELD, "is not a field of a message" + (f"; is it {near[0]}?" if near else ""))


def _content(item: Message, at: str, has_calls: bool, problems: Problems) -> str:
    path = f"{at}.content"
    content = item.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        refusal = item.get("refusal")
        if isinstance(refusal, str) and refusal:
            return refusal
        if has_calls:
            return ""
        missing = "content" not in item
        code = Code.MISSING_FIELD if missing else Code.WRONG_TYPE
        problems.append(Problem(path, code, "is missing" if missing else "null is not text"))
        return ""
    if not isinstance(content, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{_kind(content)} is not text"))
        return ""
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(text := part.get(kind), str):
            texts.append(text)
        elif kind in ("text", "refusal"):
            problems.append(Problem(f"{path}[{index}].{kind}", Code.WRONG_TYPE, "is not a string"))
        elif isinstance(kind, str):
            message = f"{_quote(kind)} parts can not be trained on; only text can"
            problems.append(Problem(f"{path}[{index}].type", Code.UNSUPPORTED_CONTENT, message))
        else:
            problems.append(Problem(f"{path}[{index}]", Code.WRONG_TYPE, 'is not {"type": "text", "text": "…"}'))
    return "".join(texts)


def _tool_calls(
    calls: object, path: str, names: frozenset[str] | None, waiting: dict[str, str], problems: Problems
) -> list[Message]:
    if not isinstance(calls, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{_kind(calls)} is not a list of calls"))
        return []
    result = []
    for index, call in enumerate(calls):
        at = f"{path}[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or call.get("type") != "function" or not isinstance(function, dict):
            message = 'is not {"id": "…", "type": "function", "function": {…}}'
            problems.append(Problem(at, Code.INVALID_TOOL_CALL, message))
            continue
        if not isinstance(identifier := call.get("id"), str) or not identifier:
            problems.append(Problem(f"{at}.id", Code.INVALID_TOOL_CALL, "a call needs an id"))
        elif identifier in waiting:
            problems.append(Problem(f"{at}.id", Code.INVALID_TOOL_CALL, f"{_quote(identifier)} is used twice"))
        else:
            waiting[identifier] = at
        name = function.get("name")
        if not isinstance(name, str) or not name:
            problems.append(Problem(f"{at}.function.name", Code.INVALID_TOOL_CALL, "a call needs a function's name"))
        elif names is not None and name not in names:
            message = f"{_quote(name)} is not in the row's tools"
            problems.append(Problem(f"{at}.function.name", Code.UNKNOWN_FUNCTION, message))
        arguments = _arguments(function.get("arguments"), f"{at}.function.arguments", problems)
        result.append({"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}})
    return result


def _arguments(value: object, path: str, problems: Problems) -> Object:
    """Templates write arguments with ``tojson``, so the string OpenAI's format has becomes an object here."""
    if not isinstance(value, str):
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"{_kind(value)} is not a string of JSON"))
        return {}
    parsed, problem = _parse(value.encode("utf-8", "surrogatepass"))
    if problem is not None:
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"the string is not JSON: {problem.message}"))
    elif not isinstance(parsed, dict):
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"{_kind(parsed)} in the string is not an object"))
    else:
        return parsed
    return {}


# In the order they are tried: a row belongs to the first that recognises it.
READERS = (
    Reader("chat", lambda row: "messages" in row, _read_chat),
    Reader(
        "preference",
        lambda row: "preferred_output" in row or "non_preferred_output" in row,
        _read_preference,
    ),
    Reader("completion", lambda row: "prompt" in row or "completion" in row, _read_completion),
    Reader("text", lambda row: "text" in row, _read_text),
)
