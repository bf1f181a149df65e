"""One line of a data file: what is read from it, and what is said about a wrong one."""

import json
from typing import Any

import pytest

from core.formats import parse, rows
from core.formats.report import Code

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "seen"}


def chat(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"messages": list(messages), **fields}).encode()


def call(**changes: Any) -> dict[str, Any]:
    return {**CALLS, "tool_calls": [{**CALL, **changes}]}


def function(**changes: Any) -> dict[str, Any]:
    return call(function={**CALL["function"], **changes})  # type: ignore[dict-item]


def old(function_call: object) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "function_call": function_call}


BAD: list[tuple[str, bytes, str, Code]] = [
    ("not json", b"{", "", Code.INVALID_JSON),
    ("two values", b'{"text": "a"} {"text": "b"}', "", Code.INVALID_JSON),
    ("single quotes", b"{'text': 'a'}", "", Code.INVALID_JSON),
    ("trailing comma", b'{"text": "a",}', "", Code.INVALID_JSON),
    ("a bare word", b"hello", "", Code.INVALID_JSON),
    ("not utf-8", b'{"text": "\xff"}', "", Code.NOT_UTF8),
    ("latin-1", '{"text": "é"}'.encode("latin-1"), "", Code.NOT_UTF8),
    ("utf-16", '{"text": "abc"}'.encode("utf-16"), "", Code.NOT_UTF8),
    ("nan", b'{"text": "a", "x": NaN}', "", Code.NAN),
    ("infinity", b'{"text": "a", "x": -Infinity}', "", Code.NAN),
    ("lone surrogate", rb'{"text": "\ud800"}', "", Code.LONE_SURROGATE),
    ("nul escaped", rb'{"text": "a\u0000b"}', "text", Code.NUL),
    ("nul in a message", chat(USER, {**ANSWER, "content": "a\0"}), "messages[1].content", Code.NUL),
    ("nul in a key", rb'{"text": "a", "\u0000": 1}', "", Code.NUL),
    ("nul byte", b'{"text": "a"}\0', "", Code.NUL),
    ("reserved character", '{"text": "a\ufdd0"}'.encode(), "text", Code.NONCHARACTER),
    ("reserved, escaped", rb'{"text": "a\uFdD1"}', "text", Code.NONCHARACTER),
    ("deep lists", b'{"text": "a", "x": ' + b"[" * 80 + b"]" * 80 + b"}", "", Code.TOO_DEEP),
    ("deeper than any parser", b"[" * 100_000, "", Code.TOO_DEEP),
    ("too long", b'{"text": "' + b"a" * parse.MAX_LINE_BYTES + b'"}', "", Code.LINE_TOO_LONG),
    ("a list", b"[1]", "", Code.NOT_AN_OBJECT),
    ("a number", b"1", "", Code.NOT_AN_OBJECT),
    ("null", b"null", "", Code.NOT_AN_OBJECT),
    ("nothing known", b'{"question": "a", "answer": "b"}', "", Code.UNKNOWN_FORMAT),
    ("an empty object", b"{}", "", Code.UNKNOWN_FORMAT),
    ("text is a number", b'{"text": 3}', "text", Code.WRONG_TYPE),
    ("text is empty", b'{"text": ""}', "text", Code.EMPTY),
    ("no completion", b'{"prompt": "a"}', "completion", Code.MISSING_FIELD),
    ("no prompt", b'{"completion": "a"}', "prompt", Code.MISSING_FIELD),
    ("completion is null", b'{"prompt": "a", "completion": null}', "completion", Code.WRONG_TYPE),
    ("completion is empty", b'{"prompt": "a", "completion": ""}', "completion", Code.EMPTY),
    ("messages is an object", b'{"messages": {}}', "messages", Code.WRONG_TYPE),
    ("no messages", b'{"messages": []}', "messages", Code.EMPTY),
    ("a message is a string", chat("hi", ANSWER), "messages[0]", Code.WRONG_TYPE),
    (
        "unknown role",
        chat(USER, ANSWER, {"role": "bot", "content": "x"}, ANSWER),
        "messages[2].role",
        Code.UNKNOWN_ROLE,
    ),
    ("role is a list", chat({"role": ["user"], "content": "x"}, ANSWER), "messages[0].role", Code.UNKNOWN_ROLE),
    ("role is null", chat({"role": None, "content": "x"}, ANSWER), "messages[0].role", Code.UNKNOWN_ROLE),
    ("role is missing", chat({"content": "x"}, ANSWER), "messages[0].role", Code.MISSING_FIELD),
    ("content is missing", chat({"role": "user"}, ANSWER), "messages[0].content", Code.MISSING_FIELD),
    ("content is null", chat({"role": "user", "content": None}, ANSWER), "messages[0].content", Code.WRONG_TYPE),
    ("content is a number", chat({"role": "user", "content": 1}, ANSWER), "messages[0].content", Code.WRONG_TYPE),
    ("answer is null", chat(USER, {"role": "assistant", "content": None}), "messages[1].content", Code.WRONG_TYPE),
    (
        "an image",
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        "messages[0].content[0].type",
        Code.UNSUPPORTED_CONTENT,
    ),
    (
        "audio",
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, ANSWER),
        "messages[0].content[1].type",
        Code.UNSUPPORTED_CONTENT,
    ),
    ("a part is a string", chat({"role": "user", "content": ["a"]}, ANSWER), "messages[0].content[0]", Code.WRONG_TYPE),
    (
        "a part's text is a number",
        chat({"role": "user", "content": [{"type": "text", "text": 1}]}, ANSWER),
        "messages[0].content[0].text",
        Code.WRONG_TYPE,
    ),
    ("unknown field", chat(USER, {**ANSWER, "wieght": 1}), "messages[1].wieght", Code.UNKNOWN_FIELD),
    ("row weight", chat(USER, ANSWER, weight=1), "weight", Code.UNKNOWN_FIELD),
    ("name is a number", chat({**USER, "name": 1}, ANSWER), "messages[0].name", Code.WRONG_TYPE),
    ("weight too large", chat(USER, {**ANSWER, "weight": 2}), "messages[1].weight", Code.INVALID_WEIGHT),
    ("weight negative", chat(USER, {**ANSWER, "weight": -0.1}), "messages[1].weight", Code.INVALID_WEIGHT),
    ("weight is true", chat(USER, {**ANSWER, "weight": True}), "messages[1].weight", Code.INVALID_WEIGHT),
    ("weight is a string", chat(USER, {**ANSWER, "weight": "1"}), "messages[1].weight", Code.INVALID_WEIGHT),
    ("no answer", chat(USER, USER), "messages", Code.NO_ASSISTANT_MESSAGE),
    ("ends with a question", chat(USER, ANSWER, USER), "messages[2].role", Code.LAST_MESSAGE_NOT_ASSISTANT),
    ("ends with a result", chat(USER, CALLS, RESULT), "messages[2].role", Code.LAST_MESSAGE_NOT_ASSISTANT),
    (
        "both forms of tools",
        chat(USER, ANSWER, tools=[TOOL], functions=[{"name": "f"}]),
        "functions",
        Code.INVALID_TOOL,
    ),
    ("an old function is a name", chat(USER, ANSWER, functions=["f"]), "functions[0]", Code.INVALID_TOOL),
    ("an old function without name", chat(USER, ANSWER, functions=[{}]), "functions[0].name", Code.INVALID_TOOL),
    (
        "old parameters are a list",
        chat(USER, ANSWER, functions=[{"name": "f", "parameters": []}]),
        "functions[0].parameters",
        Code.INVALID_TOOL,
    ),
    ("an old call is a name", chat(USER, old("look")), "messages[1].function_call", Code.INVALID_TOOL_CALL),
    (
        "an old call without name",
        chat(USER, old({"arguments": "{}"})),
        "messages[1].function_call.name",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "an old call's arguments as an object",
        chat(USER, old({"name": "look", "arguments": {}})),
        "messages[1].function_call.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    (
        "an old call of a function that is not there",
        chat(USER, old({"name": "see", "arguments": "{}"}), functions=[{"name": "look"}]),
        "messages[1].function_call.name",
        Code.UNKNOWN_FUNCTION,
    ),
    (
        "an old call of a user",
        chat({**old({"name": "look", "arguments": "{}"}), "role": "user", "content": "x"}, ANSWER),
        "messages[0].function_call",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "both forms of a call",
        chat(USER, {**CALLS, "function_call": {"name": "look", "arguments": "{}"}}),
        "messages[1].function_call",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "an old call without result",
        chat(USER, old({"name": "look", "arguments": "{}"}), ANSWER),
        "messages[1].function_call",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "an old result without call",
        chat(USER, {"role": "function", "name": "look", "content": "seen"}, ANSWER),
        "messages[1].role",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "an old result without name",
        chat(USER, old({"name": "look", "arguments": "{}"}), {"role": "function", "content": "seen"}, ANSWER),
        "messages[2].name",
        Code.MISSING_FIELD,
    ),
    ("parallel calls is a word", chat(USER, ANSWER, parallel_tool_calls="yes"), "parallel_tool_calls", Code.WRONG_TYPE),
    ("label is a number", b'{"prompt": "a", "completion": "b", "label": 1}', "label", Code.WRONG_TYPE),
    ("label without completion", b'{"prompt": "a", "label": true}', "completion", Code.MISSING_FIELD),
    ("label without prompt", b'{"completion": "a", "label": true}', "prompt", Code.MISSING_FIELD),
    ("tools is an object", chat(USER, ANSWER, tools={}), "tools", Code.WRONG_TYPE),
    ("a tool is a name", chat(USER, ANSWER, tools=["look"]), "tools[0]", Code.INVALID_TOOL),
    ("a tool without type", chat(USER, ANSWER, tools=[{"function": {"name": "f"}}]), "tools[0]", Code.INVALID_TOOL),
    (
        "a tool without name",
        chat(USER, ANSWER, tools=[TOOL, {"type": "function", "function": {}}]),
        "tools[1].function.name",
        Code.INVALID_TOOL,
    ),
    (
        "parameters are a list",
        chat(USER, ANSWER, tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
        "tools[0].function.parameters",
        Code.INVALID_TOOL,
    ),
    ("calls are an object", chat(USER, {**CALLS, "tool_calls": {"a": 1}}), "messages[1].tool_calls", Code.WRONG_TYPE),
    (
        "a user calls",
        chat({**CALLS, "role": "user", "content": "x"}, ANSWER),
        "messages[0].tool_calls",
        Code.INVALID_TOOL_CALL,
    ),
    ("a call without type", chat(USER, call(type=None)), "messages[1].tool_calls[0]", Code.INVALID_TOOL_CALL),
    ("a call without id", chat(USER, call(id=None)), "messages[1].tool_calls[0].id", Code.INVALID_TOOL_CALL),
    (
        "an id twice",
        chat(USER, {**CALLS, "tool_calls": [CALL, CALL]}),
        "messages[1].tool_calls[1].id",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call without name",
        chat(USER, function(name="")),
        "messages[1].tool_calls[0].function.name",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "arguments as an object",
        chat(USER, function(arguments={"at": 1})),
        "messages[1].tool_calls[0].function.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    (
        "arguments not json",
        chat(USER, function(arguments="{")),
        "messages[1].tool_calls[0].function.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    (
        "arguments a list",
        chat(USER, function(arguments="[]")),
        "messages[1].tool_calls[0].function.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    (
        "a function that is not there",
        chat(USER, function(name="see"), tools=[TOOL]),
        "messages[1].tool_calls[0].function.name",
        Code.UNKNOWN_FUNCTION,
    ),
    (
        "a call without result",
        chat(USER, CALLS, ANSWER),
        "messages[1].tool_calls[0]",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "a result without id",
        chat(USER, CALLS, {**RESULT, "tool_call_id": None}, ANSWER),
        "messages[2].tool_call_id",
        Code.WRONG_TYPE,
    ),
    ("a result without call", chat(USER, RESULT, ANSWER), "messages[1].tool_call_id", Code.TOOL_RESULT_WITHOUT_CALL),
    (
        "a result of another call",
        chat(USER, CALLS, {**RESULT, "tool_call_id": "c2"}, ANSWER),
        "messages[2].tool_call_id",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "no rejected output",
        b'{"input": {"messages": []}, "preferred_output": []}',
        "non_preferred_output",
        Code.MISSING_FIELD,
    ),
    (
        "preference without input",
        json.dumps({"preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}).encode(),
        "input",
        Code.MISSING_FIELD,
    ),
    (
        "preference input without messages",
        json.dumps({"input": {}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}).encode(),
        "input.messages",
        Code.MISSING_FIELD,
    ),
    (
        "preferred output is from the user",
        json.dumps(
            {"input": {"messages": [USER]}, "preferred_output": [USER], "non_preferred_output": [ANSWER]}
        ).encode(),
        "preferred_output",
        Code.NO_ASSISTANT_MESSAGE,
    ),
]


@pytest.mark.parametrize(("line", "path", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_line_is_named_by_path_and_code(line: bytes, path: str, code: Code) -> None:
    _, row, problems = rows.read(line)
    assert row is None
    assert (path, code) in [(problem.path, problem.code) for problem in problems]
    assert all(problem.message and len(problem.message) < 300 for problem in problems)


def test_every_problem_of_a_line_is_found() -> None:
    _, _, problems = rows.read(chat({"role": "bot", "content": 1}, {"role": "assistant", "weight": 3}))
    assert [problem.path for problem in problems] == [
        "messages[0].role",
        "messages[0].content",
        "messages[1].content",
        "messages[1].weight",
    ]


def test_the_message_says_what_would_be_right() -> None:
    _, _, problems = rows.read(chat(USER, ANSWER, {"role": "bot", "content": "x"}, ANSWER))
    assert problems[0].message == '"bot" is not one of system, developer, user, assistant, tool'
    _, _, problems = rows.read(chat(USER, {**ANSWER, "wieght": 1}))
    assert "weight" in problems[0].message


def test_a_whole_conversation_is_read() -> None:
    system = {"role": "developer", "content": "be kind"}
    last = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "weight": 0.5,
    }
    line = chat(system, {**USER, "name": "ann"}, CALLS, RESULT, last, tools=[TOOL], parallel_tool_calls=True, id=7)
    reader, row, problems = rows.read(line)
    assert problems == []
    assert reader is not None
    assert (reader.name, reader.format, reader.conversion) == ("chat", "chat", None)
    assert isinstance(row, rows.Chat)
    assert row.tools == [TOOL]
    assert row.messages[1] == {"role": "user", "content": "hi", "name": "ann"}
    # Text parts are joined and arguments are objects, as templates want them.
    assert row.messages[2]["content"] == ""
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert row.messages[4] == {"role": "assistant", "content": "ab", "weight": 0.5}


def test_calls_may_be_what_is_learned() -> None:
    _, row, problems = rows.read(chat(USER, CALLS))
    assert isinstance(row, rows.Chat)
    assert problems == []


def test_what_the_sdk_dumps_is_read() -> None:
    dumped = {**ANSWER, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    _, row, problems = rows.read(chat(USER, dumped))
    assert problems == []
    assert isinstance(row, rows.Chat)
    assert row.messages[1]["content"] == "hello"


def test_the_old_form_of_tools_is_read_as_the_new_one() -> None:
    called = old({"name": "look", "arguments": '{"at": 1}'})
    result = {"role": "function", "name": "look", "content": "seen"}
    function = TOOL["function"]
    _, row, problems = rows.read(chat(USER, called, result, called, result, ANSWER, functions=[function]))
    assert problems == []
    assert isinstance(row, rows.Chat)
    assert row.tools == [TOOL]
    calls = [message["tool_calls"][0] for message in row.messages if "tool_calls" in message]
    assert [call["function"] for call in calls] == [{"name": "look", "arguments": {"at": 1}}] * 2
    results = [message for message in row.messages if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in results] == [call["id"] for call in calls]
    assert len({call["id"] for call in calls}) == 2
    assert results[0]["name"] == "look"


OTHERS: list[tuple[dict[str, Any], str, rows.Row]] = [
    ({"prompt": "", "completion": "b"}, "completion", rows.Completion("", "b")),
    ({"text": "a"}, "text", rows.Text("a")),
    (
        {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
        "preference",
        rows.Preference([USER], None, [ANSWER], [ANSWER]),
    ),
    ({"prompt": "a", "completion": "b", "label": False}, "labelled", rows.Labelled("a", "b", False)),
]


@pytest.mark.parametrize(("given", "name", "row"), OTHERS, ids=[other[1] for other in OTHERS])
def test_the_other_formats_are_read(given: dict[str, Any], name: str, row: rows.Row) -> None:
    found = rows.read(json.dumps(given).encode())
    assert found.reader is not None
    assert (found.reader.format, found.reader.conversion) == (name, None)
    assert found.row == row
