"""One JSON object -> a row, or everything wrong with it.

Each form is a reader in ``READERS``, Attune's own first; ``foreign`` turns the other ones into these. Knows nothing
about tokenizers and nothing about what a file is kept in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from core.formats import conversation, foreign
from core.formats.conversation import Message, Tool
from core.formats.parse import Object, Problem, Problems, kind, parse, repeated_key, string
from core.formats.report import Code, Format


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
class Labelled:
    """An answer and whether it is a good one. Prompt and completion are both text or both messages."""

    prompt: str | list[Message]
    completion: str | list[Message]
    label: bool
    tools: list[Tool] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Row = Chat | Preference | Completion | Labelled | Text


@dataclass(frozen=True, slots=True)
class Reader:
    name: str
    """What ``ext.format`` and a report call this form."""
    format: Format
    recognises: Callable[[Object], bool]
    read: Callable[[Object, Problems], Row]
    conversion: str | None = None
    """For a foreign form: what is made of it, as a sentence."""


def canonical(row: Row) -> bytes:
    """The same bytes for rows that say the same, however they were written; weights say nothing."""
    content = [type(row).__name__, row]
    text = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    if b'"weight":' in text:
        text = orjson.dumps(_unweighted(orjson.loads(text)), option=orjson.OPT_SORT_KEYS)
    return text


def _unweighted(value: Any) -> Any:
    """Without the weights of messages: objects that have a role. A tool's argument may be called so as well."""
    if isinstance(value, dict):
        skipped = "weight" if "role" in value else None
        return {name: _unweighted(inner) for name, inner in value.items() if name != skipped}
    return [_unweighted(inner) for inner in value] if isinstance(value, list) else value


class Read(NamedTuple):
    """There is a row exactly if there are no problems, and then there is a reader, too."""

    reader: Reader | None
    row: Row | None
    problems: Problems


def read(line: bytes, reader: Reader | None = None) -> Read:
    """One row, by the given reader or by the first that recognises it."""
    value, problem = parse(line)
    if problem is not None:
        return Read(None, None, [problem])
    if not isinstance(value, dict):
        return Read(None, None, [Problem("", Code.NOT_AN_OBJECT, f"{kind(value)} is not an object")])
    if reader is None:
        reader = recognise(value)
    if reader is None:
        return Read(None, None, [unknown(list(value))])
    problems: Problems = []
    row = reader.read(value, problems)
    strings = None
    if isinstance(row, Chat) and len(value) == 1 and row.messages is value.get("messages"):
        # A plain conversation, as most are: "messages", and two keys and two strings in each.
        strings = 1 + 4 * len(row.messages)
    elif isinstance(row, Text) and len(value) == 1:
        strings = 1 + isinstance(value.get("text"), str)
    twice = repeated_key(line, value, strings)
    if twice is not None:
        return Read(reader, None, [twice])
    return Read(reader, None if problems else row, problems)


def recognise(value: Object) -> Reader | None:
    """The first reader that knows such a row."""
    # What nearly all rows are, without asking everybody.
    if "messages" in value:
        return _OWN["chat"]
    if len(value) == 1 and "text" in value:
        return _OWN["text"]
    return next((reader for reader in READERS if reader.recognises(value)), None)


def unknown(fields: list[str]) -> Problem:
    """No reader knows these fields, or a table's columns."""
    shown = ", ".join(fields[:8])[:200] or "none"
    return Problem("", Code.UNKNOWN_FORMAT, f"no known format has these fields: {shown}{_EXPECTED}")


_EXPECTED = (
    '; a row has "messages", or "prompt" and "completion", or "text",'
    ' or "input", "preferred_output" and "non_preferred_output"'
)


def _read_text(row: Object, problems: Problems) -> Row:
    return Text(string(row, "text", "text", problems, empty=False))


def _read_completion(row: Object, problems: Problems) -> Row:
    prompt = string(row, "prompt", "prompt", problems)
    return Completion(prompt, string(row, "completion", "completion", problems, empty=False))


def _read_chat(row: Object, problems: Problems) -> Row:
    if "weight" in row:
        problems.append(Problem("weight", Code.UNKNOWN_FIELD, "a row has no weight; messages have"))
    tools, names = conversation.tools(row, "", problems) if len(row) > 1 else (None, None)
    messages: list[Message] = []
    if "messages" in row:
        messages = conversation.messages(row["messages"], "messages", names, problems)
    else:
        problems.append(Problem("messages", Code.MISSING_FIELD, "is missing"))
    if not problems:
        conversation.ends_with_answer(messages, "messages", problems)
    return Chat(messages, tools)


def _read_preference(row: Object, problems: Problems) -> Row:
    for field in ("input", "preferred_output", "non_preferred_output"):
        if field not in row:
            problems.append(Problem(field, Code.MISSING_FIELD, "is missing"))
    given = row.get("input", {})
    tools, names = None, None
    messages: list[Message] = []
    if not isinstance(given, dict):
        problems.append(Problem("input", Code.WRONG_TYPE, f'{kind(given)} is not an object with "messages"'))
    elif "input" in row:
        tools, names = conversation.tools(given, "input.", problems)
        if "messages" in given:
            messages = conversation.messages(given["messages"], "input.messages", names, problems)
        else:
            problems.append(Problem("input.messages", Code.MISSING_FIELD, "is missing"))
    preferred = _answer(row, "preferred_output", names, problems)
    return Preference(messages, tools, preferred, _answer(row, "non_preferred_output", names, problems))


def _read_labelled(row: Object, problems: Problems) -> Row:
    label = row.get("label")
    if "label" not in row:
        problems.append(Problem("label", Code.MISSING_FIELD, "is missing"))
    elif not isinstance(label, bool):
        problems.append(Problem("label", Code.WRONG_TYPE, f"{kind(label)} is not true or false"))
    if not isinstance(row.get("prompt"), list):
        prompt = string(row, "prompt", "prompt", problems)
        return Labelled(prompt, string(row, "completion", "completion", problems, empty=False), label is True)
    tools, names = conversation.tools(row, "", problems)
    messages = conversation.messages(row["prompt"], "prompt", names, problems)
    if "completion" not in row:
        problems.append(Problem("completion", Code.MISSING_FIELD, "is missing"))
    return Labelled(messages, _answer(row, "completion", names, problems), label is True, tools)


def _answer(row: Object, field: str, names: frozenset[str] | None, problems: Problems) -> list[Message]:
    """Messages that a conversation ends with. A missing field has been named already."""
    if field not in row:
        return []
    before = len(problems)
    messages = conversation.messages(row[field], field, names, problems)
    if len(problems) == before:
        conversation.ends_with_answer(messages, field, problems)
    return messages


def _foreign(form: foreign.Form) -> Reader:
    own = _OWN[form.format]

    def read(row: Object, problems: Problems) -> Row:
        draft = form.convert(row)
        problems.extend(draft.problems)
        inner: Problems = []
        result = own.read(draft.row, inner)
        if not problems:
            # What can't be converted would only be named a second time.
            problems.extend(problem._replace(path=draft.origin(problem.path)) for problem in inner)
        return result

    return Reader(form.name, form.format, form.recognises, read, form.conversion)


_OWN: dict[Format, Reader] = {
    "chat": Reader("chat", "chat", lambda row: "messages" in row, _read_chat),
    "preference": Reader(
        "preference",
        "preference",
        lambda row: "preferred_output" in row or "non_preferred_output" in row,
        _read_preference,
    ),
    "labelled": Reader(
        "labelled", "labelled", lambda row: "label" in row and ("prompt" in row or "completion" in row), _read_labelled
    ),
    "completion": Reader(
        "completion", "completion", lambda row: "prompt" in row or "completion" in row, _read_completion
    ),
    "text": Reader("text", "text", lambda row: "text" in row, _read_text),
}

# In the order they are tried: a row belongs to the first that recognises it. The foreign ones have fields that
# Attune's own have not, or other things in them; some data sets carry a "text" besides, made of the others.
READERS: tuple[Reader, ...] = (
    _OWN["chat"],
    _OWN["preference"],
    *(_foreign(form) for form in foreign.FORMS),
    _OWN["labelled"],
    _OWN["completion"],
    _OWN["text"],
)
BY_NAME = {reader.name: reader for reader in READERS}
FIELDS = frozenset(
    {
        *("messages", "tools", "functions", "parallel_tool_calls", "input", "preferred_output", "non_preferred_output"),
        *("prompt", "completion", "label", "chosen", "rejected", "text"),
        *("instruction", "output", "system", "history", "kto_tag", "conversations", "conversation"),
    }
)
"""Every field that some reader looks at: the columns of a table that are read."""
