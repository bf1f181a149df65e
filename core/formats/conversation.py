"""Messages and tools as OpenAI's format has them -> as a template sees them, or everything wrong with them."""

import difflib
from itertools import islice
from typing import Any

from core.formats.parse import PROBLEMS_KEPT, Object, Problem, Problems, kind, parse, quote, repeated_key, string
from core.formats.report import Code

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 20_000
"""Of one conversation: with fewer than fifty tokens each it would still fill the longest context there is."""
# A tool's message is looked at more closely: it answers a call.
_SPEAKERS = frozenset(ROLES) - {"tool"}

# A message or a tool as a template sees it: JSON objects, of which the readers have checked the fields they know.
Message = dict[str, Any]
Tool = dict[str, Any]

_MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content", "refusal"}
)
# The official SDK writes these when a user dumps a response; they say nothing when they are null or empty.
_HOLLOW_FIELDS = frozenset({"audio", "annotations", "function_call"})


def ends_with_answer(messages: list[Message], path: str, problems: Problems) -> None:
    if messages and messages[-1]["role"] == "assistant":
        return
    if all(message["role"] != "assistant" for message in messages):
        problems.append(Problem(path, Code.NO_ASSISTANT_MESSAGE, "no message is from the assistant"))
    else:
        message = f"the last message is from {messages[-1]['role']}, not from the assistant"
        problems.append(Problem(f"{path}[{len(messages) - 1}].role", Code.LAST_MESSAGE_NOT_ASSISTANT, message))


def tools(row: Object, prefix: str, problems: Problems) -> tuple[list[Tool] | None, frozenset[str] | None]:
    """The row's tools and their names; names are None when it has none, so that any call is allowed.

    The old form, ``functions``, becomes tools. ``prefix`` is the path of ``row`` with its dot.
    """
    if (parallel := row.get("parallel_tool_calls")) is not None and not isinstance(parallel, bool):
        path = f"{prefix}parallel_tool_calls"
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(parallel)} is not true or false"))
    value, path = row.get("tools"), f"{prefix}tools"
    old = value is None and row.get("functions") is not None
    if old:
        value, path = row["functions"], f"{prefix}functions"
    elif row.get("functions"):
        problems.append(Problem(f"{prefix}functions", Code.INVALID_TOOL, "is the old form of tools, which are there"))
    if value is None:
        return None, None
    if not isinstance(value, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(value)} is not a list"))
        return None, None
    if old:
        value = [{"type": "function", "function": function} for function in value]
    names, before = set(), len(problems)
    for index, tool in enumerate(value):
        if len(problems) >= PROBLEMS_KEPT:
            break
        at = f"{path}[{index}]"
        within = at if old else f"{at}.function"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
            form = '{"name": "…", "parameters": {…}}' if old else '{"type": "function", "function": {…}}'
            problems.append(Problem(at, Code.INVALID_TOOL, f"is not {form}"))
        elif not isinstance(name := function.get("name"), str) or not name:
            problems.append(Problem(f"{within}.name", Code.INVALID_TOOL, "a function needs a name"))
        elif not isinstance(function.get("parameters", {}), dict):
            message = f"{kind(function['parameters'])} is not a JSON schema"
            problems.append(Problem(f"{within}.parameters", Code.INVALID_TOOL, message))
        else:
            names.add(name)
    # With a broken tool it isn't known what may be called.
    return value or None, frozenset(names) if value and len(problems) == before else None


def messages(value: object, path: str, names: frozenset[str] | None, problems: Problems) -> list[Message]:
    """The very list it is given when all of it is plain: each message a role and text and nothing else."""
    if not isinstance(value, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(value)} is not a list of messages"))
        return []
    if not value:
        problems.append(Problem(path, Code.EMPTY, "has no messages"))
    if len(value) > MAX_MESSAGES:
        problems.append(too_many(path, len(value)))
        return []
    if value and all(map(_is_plain, value)):
        return value
    messages: list[Message] = []
    # Calls that wait for their results, and where they were made.
    waiting: dict[str, str] = {}
    role: object = None
    for index, item in enumerate(value):
        if len(problems) >= PROBLEMS_KEPT:
            break
        at = f"{path}[{index}]"
        if not isinstance(item, dict):
            problems.append(Problem(at, Code.WRONG_TYPE, f"{kind(item)} is not a message"))
            continue
        role = item.get("role")
        if role == "function":
            item, role = _old_result(item, at, waiting, problems), "tool"
        elif role == "tool":
            _tool_result(item, at, waiting, problems)
        elif waiting:
            _unanswered(waiting, problems)
        if _is_plain(item) or _is_plain_result(item):
            messages.append(item)
        elif item.get("function_call"):
            messages.append(_old_call(item, at, names, waiting, problems))
        else:
            messages.append(_message(item, at, names, waiting, problems))
    # Calls in the last message are what the model is to learn; nothing has to follow them.
    if role == "tool":
        _unanswered(waiting, problems)
    return messages


def too_many(path: str, count: int) -> Problem:
    return Problem(path, Code.TOO_MANY_MESSAGES, f"has {count:,} messages, more than {MAX_MESSAGES:,}")


def _is_plain(item: object) -> bool:
    return (
        isinstance(item, dict)
        and len(item) == 2
        and isinstance(role := item.get("role"), str)
        and role in _SPEAKERS
        and isinstance(item.get("content"), str)
    )


def _is_plain_result(item: Message) -> bool:
    return (
        len(item) == 3
        and item.get("role") == "tool"
        and isinstance(item.get("content"), str)
        and isinstance(item.get("tool_call_id"), str)
    )


def _old_call(
    item: Message, at: str, names: frozenset[str] | None, waiting: dict[str, str], problems: Problems
) -> Message:
    """``function_call``, which came before ``tool_calls`` and had no id: the message's place is its id."""
    path = f"{at}.function_call"
    if item.get("tool_calls"):
        problems.append(Problem(path, Code.INVALID_TOOL_CALL, "is the old form of tool_calls, which are there"))
        return item
    call = {"id": path, "type": "function", "function": item["function_call"]}
    now = {field: value for field, value in item.items() if field != "function_call"} | {"tool_calls": [call]}
    inner: Problems = []
    result = _message(now, at, names, waiting, inner)
    made = f"{at}.tool_calls[0]"
    for problem in inner:
        place = (
            problem.path.replace(f"{made}.function", path, 1).replace(made, path, 1).replace(f"{at}.tool_calls", path)
        )
        message = 'is not {"name": "…", "arguments": "…"}' if problem.path == made else problem.message
        problems.append(problem._replace(path=place, message=message))
    if path in waiting:
        waiting[path] = path
    return result


def _old_result(item: Message, at: str, waiting: dict[str, str], problems: Problems) -> Message:
    """A message of the role ``function`` is the result of the ``function_call`` before it."""
    string(item, "name", f"{at}.name", problems, empty=False)
    # A message that calls in the old form makes one call, and none from before it waits any longer.
    call = next(iter(waiting), None)
    if call is None or waiting[call] != call:
        message = "no function_call waits for its result"
        problems.append(Problem(f"{at}.role", Code.TOOL_RESULT_WITHOUT_CALL, message))
    else:
        del waiting[call]
    return item | {"role": "tool", "tool_call_id": call or ""}


def _unanswered(waiting: dict[str, str], problems: Problems) -> None:
    for call, where in islice(waiting.items(), PROBLEMS_KEPT):
        message = f"no tool message answers the call {quote(call)}"
        problems.append(Problem(where, Code.TOOL_CALL_WITHOUT_RESULT, message))
    waiting.clear()


def _tool_result(item: Message, at: str, waiting: dict[str, str], problems: Problems) -> None:
    if isinstance(call := string(item, "tool_call_id", f"{at}.tool_call_id", problems), str) and call:
        if call in waiting:
            del waiting[call]
        else:
            message = f"{quote(call)} is not the id of a call that waits for its result"
            problems.append(Problem(f"{at}.tool_call_id", Code.TOOL_RESULT_WITHOUT_CALL, message))


def _message(
    item: Message, at: str, names: frozenset[str] | None, waiting: dict[str, str], problems: Problems
) -> Message:
    role = item.get("role")
    if role not in ROLES:
        if "role" not in item:
            problems.append(Problem(f"{at}.role", Code.MISSING_FIELD, "is missing"))
        else:
            message = f"{quote(role)} is not one of {', '.join(ROLES)}"
            problems.append(Problem(f"{at}.role", Code.UNKNOWN_ROLE, message))
    result: Message = {"role": role}
    for field, value in item.items():
        if field in _MESSAGE_FIELDS:
            continue
        if field in _HOLLOW_FIELDS and not value:
            continue
        if len(problems) >= PROBLEMS_KEPT:
            break
        problems.append(_unknown_field(field, f"{at}.{field}"))
    calls = item.get("tool_calls")
    result["content"] = _content(item, at, bool(calls) and role == "assistant", problems)
    for field in ("name", "tool_call_id", "reasoning_content"):
        if (value := item.get(field)) is not None:
            if isinstance(value, str):
                result[field] = value
            elif field != "tool_call_id" or role != "tool":  # a tool's id has been looked at
                problems.append(Problem(f"{at}.{field}", Code.WRONG_TYPE, f"{kind(value)} is not a string"))
    if (weight := item.get("weight")) is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            problems.append(Problem(f"{at}.weight", Code.INVALID_WEIGHT, f"{quote(weight)} is not from 0 to 1"))
        else:
            result["weight"] = float(weight)
    if calls is not None:
        if role != "assistant":
            problems.append(Problem(f"{at}.tool_calls", Code.INVALID_TOOL_CALL, "only the assistant calls tools"))
        else:
            result["tool_calls"] = _tool_calls(calls, f"{at}.tool_calls", names, waiting, problems)
    return result


def _unknown_field(field: str, path: str) -> Problem:
    if field == "audio":
        return Problem(path, Code.UNSUPPORTED_CONTENT, "audio can not be trained on")
    near = difflib.get_close_matches(field[:40], sorted(_MESSAGE_FIELDS), n=1)
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
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(content)} is not text"))
        return ""
    texts = []
    for index, part in enumerate(content):
        if len(problems) >= PROBLEMS_KEPT:
            break
        sort = part.get("type") if isinstance(part, dict) else None
        if sort in ("text", "refusal") and isinstance(text := part.get(sort), str):
            texts.append(text)
        elif sort in ("text", "refusal"):
            problems.append(Problem(f"{path}[{index}].{sort}", Code.WRONG_TYPE, "is not a string"))
        elif isinstance(sort, str):
            message = f"{quote(sort)} parts can not be trained on; only text can"
            problems.append(Problem(f"{path}[{index}].type", Code.UNSUPPORTED_CONTENT, message))
        else:
            problems.append(Problem(f"{path}[{index}]", Code.WRONG_TYPE, 'is not {"type": "text", "text": "…"}'))
    return "".join(texts)


def _tool_calls(
    calls: object, path: str, names: frozenset[str] | None, waiting: dict[str, str], problems: Problems
) -> list[Message]:
    if not isinstance(calls, list):
        problems.append(Problem(path, Code.WRONG_TYPE, f"{kind(calls)} is not a list of calls"))
        return []
    result = []
    for index, call in enumerate(calls):
        if len(problems) >= PROBLEMS_KEPT:
            break
        at = f"{path}[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or call.get("type") != "function" or not isinstance(function, dict):
            message = 'is not {"id": "…", "type": "function", "function": {…}}'
            problems.append(Problem(at, Code.INVALID_TOOL_CALL, message))
            continue
        if not isinstance(identifier := call.get("id"), str) or not identifier:
            problems.append(Problem(f"{at}.id", Code.INVALID_TOOL_CALL, "a call needs an id"))
        elif identifier in waiting:
            problems.append(Problem(f"{at}.id", Code.INVALID_TOOL_CALL, f"{quote(identifier)} is used twice"))
        else:
            waiting[identifier] = at
        name = function.get("name")
        if not isinstance(name, str) or not name:
            problems.append(Problem(f"{at}.function.name", Code.INVALID_TOOL_CALL, "a call needs a function's name"))
        elif names is not None and name not in names:
            message = f"{quote(name)} is not in the row's tools"
            problems.append(Problem(f"{at}.function.name", Code.UNKNOWN_FUNCTION, message))
        arguments = _arguments(function.get("arguments"), f"{at}.function.arguments", problems)
        result.append({"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}})
    return result


def _arguments(value: object, path: str, problems: Problems) -> Object:
    """Templates write arguments with ``tojson``, so the string OpenAI's format has becomes an object here."""
    if not isinstance(value, str):
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"{kind(value)} is not a string of JSON"))
        return {}
    if value == "{}":
        return {}
    line = value.encode("utf-8", "surrogatepass")
    parsed, problem = parse(line)
    problem = problem or repeated_key(line, parsed)
    if problem is not None:
        where = f"{problem.path} " if problem.path else ""
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"the string is not JSON: {where}{problem.message}"))
    elif not isinstance(parsed, dict):
        problems.append(Problem(path, Code.INVALID_ARGUMENTS, f"{kind(parsed)} in the string is not an object"))
    else:
        return parsed
    return {}
