"""Rows with one thing wrong in them. Each stands in a file of good rows of its form."""

from collections.abc import Iterator

from core.formats.report import Code
from tests.core.formats.hostile.case import Bad
from tests.core.formats.hostile.good import (
    ALPACA,
    ANSWER,
    CALL,
    CALLS,
    CHAT,
    COMPLETION,
    FULL,
    LABELLED,
    LAST_CALLS,
    OBSERVED,
    PAIRS,
    PREFERENCE,
    RESULT,
    SHAREGPT,
    TALKED,
    TEXT,
    TOOL,
    TOOLS,
    USER,
    Row,
    among,
    at,
    dump,
)

FORMS = {
    "chat": CHAT,
    "full chat": FULL,
    "tools": TOOLS,
    "calls": LAST_CALLS,
    "preference": PREFERENCE,
    "completion": COMPLETION,
    "labelled": LABELLED,
    "text": TEXT,
    "alpaca": ALPACA,
    "sharegpt": SHAREGPT,
    "pairs": PAIRS,
}
Change = tuple[str, Row, Row | bytes, str, Code]
"""Name; a good row, and what became of it; path and code of its one fault."""
_VALUES = {"null": None, "true": True, "a number": 3, "a string": "x", "a list": [], "an object": {"x": 1}}


def _wrong(form: str, path: str, code: str, allowed: str, told: str = "") -> Iterator[Change]:
    """Every kind of value but the allowed ones at a path. ``told``: the path of the fault, where it is another."""
    row = FORMS[form]
    for name, value in _VALUES.items():
        if name not in allowed.split(", "):
            yield f"{form}: {path} is {name}", row, at(row, path, value), told or path, Code(code)


# Where which kinds of value are right; any other is a fault with this code, told at this path or the third column.
TYPES: list[tuple[str, ...]] = [
    ("chat", "messages", Code.WRONG_TYPE, "a list"),
    ("chat", "messages[0]", Code.WRONG_TYPE, "an object"),
    ("chat", "messages[0].role", Code.UNKNOWN_ROLE, ""),
    ("chat", "messages[1].role", Code.UNKNOWN_ROLE, ""),
    ("chat", "messages[0].content", Code.WRONG_TYPE, "a string, a list"),
    ("full chat", "messages[0].name", Code.WRONG_TYPE, "a string, null"),
    ("full chat", "messages[1].weight", Code.INVALID_WEIGHT, "null"),
    ("full chat", "messages[1].reasoning_content", Code.WRONG_TYPE, "a string, null"),
    ("tools", "tools", Code.WRONG_TYPE, "a list, null"),
    ("tools", "tools[0]", Code.INVALID_TOOL, ""),
    ("tools", "tools[0].type", Code.INVALID_TOOL, "", "tools[0]"),
    ("tools", "tools[0].function", Code.INVALID_TOOL, "an object", "tools[0]"),
    ("tools", "tools[0].function.name", Code.INVALID_TOOL, "a string"),
    ("tools", "tools[0].function.parameters", Code.INVALID_TOOL, "an object"),
    ("tools", "parallel_tool_calls", Code.WRONG_TYPE, "true, null"),
    ("calls", "messages[1].tool_calls", Code.WRONG_TYPE, "a list, null"),
    ("calls", "messages[1].tool_calls[0]", Code.INVALID_TOOL_CALL, ""),
    ("calls", "messages[1].tool_calls[0].type", Code.INVALID_TOOL_CALL, "", "messages[1].tool_calls[0]"),
    ("calls", "messages[1].tool_calls[0].id", Code.INVALID_TOOL_CALL, "a string"),
    ("calls", "messages[1].tool_calls[0].function", Code.INVALID_TOOL_CALL, "an object", "messages[1].tool_calls[0]"),
    ("calls", "messages[1].tool_calls[0].function.name", Code.INVALID_TOOL_CALL, "a string"),
    ("calls", "messages[1].tool_calls[0].function.arguments", Code.INVALID_ARGUMENTS, ""),
    ("preference", "input", Code.WRONG_TYPE, "an object"),
    ("preference", "input.messages", Code.WRONG_TYPE, "a list"),
    ("preference", "input.messages[0]", Code.WRONG_TYPE, "an object"),
    ("preference", "input.messages[0].role", Code.UNKNOWN_ROLE, ""),
    ("preference", "input.tools", Code.WRONG_TYPE, "a list, null"),
    ("preference", "preferred_output", Code.WRONG_TYPE, "a list"),
    ("preference", "preferred_output[0]", Code.WRONG_TYPE, "an object"),
    ("preference", "preferred_output[0].content", Code.WRONG_TYPE, "a string, a list"),
    ("preference", "non_preferred_output", Code.WRONG_TYPE, "a list"),
    ("preference", "non_preferred_output[0].role", Code.UNKNOWN_ROLE, ""),
    ("completion", "prompt", Code.WRONG_TYPE, "a string, a list, an object"),
    ("completion", "completion", Code.WRONG_TYPE, "a string, a list, an object"),
    ("labelled", "label", Code.WRONG_TYPE, "true"),
    ("labelled", "completion", Code.WRONG_TYPE, "a string, a list, an object"),
    ("text", "text", Code.WRONG_TYPE, "a string"),
    ("alpaca", "instruction", Code.WRONG_TYPE, "a string, null"),
    ("alpaca", "input", Code.WRONG_TYPE, "a string, null"),
    ("alpaca", "output", Code.WRONG_TYPE, "a string, a list"),
    ("alpaca", "history", Code.WRONG_TYPE, "a list, null"),
    ("alpaca", "history[0]", Code.WRONG_TYPE, ""),
    ("sharegpt", "conversations", Code.WRONG_TYPE, "a list"),
    ("sharegpt", "conversations[0]", Code.WRONG_TYPE, "an object"),
    ("sharegpt", "conversations[0].from", Code.UNKNOWN_ROLE, ""),
    ("sharegpt", "conversations[0].value", Code.WRONG_TYPE, "a string, a list"),
    ("pairs", "prompt", Code.WRONG_TYPE, "a string, a list, an object, null"),
    ("pairs", "chosen", Code.WRONG_TYPE, "a string, a list, an object"),
    ("pairs", "rejected", Code.WRONG_TYPE, "a string, a list, an object"),
]

# A good row, and what becomes of it: the path and code of the one fault.
CHANGES: list[Change] = [
    *(change for types in TYPES for change in _wrong(*types)),
    ("no messages", CHAT, {"messages": []}, "messages", Code.EMPTY),
    ("a message without role", CHAT, at(CHAT, "messages[0].role", ...), "messages[0].role", Code.MISSING_FIELD),
    (
        "a message without content",
        CHAT,
        at(CHAT, "messages[0].content", ...),
        "messages[0].content",
        Code.MISSING_FIELD,
    ),
    (
        "an answer without content",
        CHAT,
        at(CHAT, "messages[1].content", ...),
        "messages[1].content",
        Code.MISSING_FIELD,
    ),
    *(
        (f"the role {role!r}", CHAT, at(CHAT, "messages[0].role", role), "messages[0].role", Code.UNKNOWN_ROLE)
        for role in ("bot", "human", "gpt", "ai", "User", "user ", "", "USER", "ассистент", "model", "a" * 100_000)
    ),
    (
        "ends with a question",
        CHAT,
        {"messages": [USER, ANSWER, USER]},
        "messages[2].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    (
        "ends with a system message",
        CHAT,
        {"messages": [ANSWER, {"role": "system", "content": "a"}]},
        "messages[1].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    ("no answer", CHAT, {"messages": [USER, USER]}, "messages", Code.NO_ASSISTANT_MESSAGE),
    (
        "a system message alone",
        CHAT,
        {"messages": [{"role": "system", "content": "a"}]},
        "messages",
        Code.NO_ASSISTANT_MESSAGE,
    ),
    (
        "ends with a result",
        TOOLS,
        {"messages": [USER, CALLS, RESULT]},
        "messages[2].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    *(
        (
            f"the weight {weight}",
            FULL,
            at(FULL, "messages[1].weight", weight),
            "messages[1].weight",
            Code.INVALID_WEIGHT,
        )
        for weight in (2, -1, -0.1, 1.0001, 1e308, -1e-300, 10**300, "1", "", [1], False)
    ),
    ("a weight of the row", CHAT, {**CHAT, "weight": 1}, "weight", Code.UNKNOWN_FIELD),
    *(
        (
            f"the field {field!r}",
            CHAT,
            at(CHAT, f"messages[0].{field}", "a"),
            f"messages[0].{field}",
            Code.UNKNOWN_FIELD,
        )
        for field in ("wieght", "text", "from", "value", "Content", "tool_call", "id")
    ),
    ("a field without a name", CHAT, {"messages": [{**USER, "": 1}, ANSWER]}, "messages[0].", Code.UNKNOWN_FIELD),
    (
        "a field with a name of a megabyte",
        CHAT,
        {"messages": [{**USER, "k" * 1_000_000: 1}, ANSWER]},
        "messages[0]." + "k" * 188 + "…",
        Code.UNKNOWN_FIELD,
    ),
    ("audio", CHAT, at(CHAT, "messages[1].audio", {"id": "a"}), "messages[1].audio", Code.UNSUPPORTED_CONTENT),
    *(
        (
            f"a part of the type {sort}",
            CHAT,
            at(CHAT, "messages[0].content", [{"type": "text", "text": "a"}, {"type": sort}]),
            "messages[0].content[1].type",
            Code.UNSUPPORTED_CONTENT,
        )
        for sort in ("image_url", "input_image", "input_audio", "file", "video", "image", "TEXT")
    ),
    *(
        (
            f"a part that is {name}",
            CHAT,
            at(CHAT, "messages[0].content", [value]),
            "messages[0].content[0]",
            Code.WRONG_TYPE,
        )
        for name, value in {**_VALUES, "a typeless text": {"text": "a"}}.items()
    ),
    (
        "a part without its text",
        CHAT,
        at(CHAT, "messages[0].content", [{"type": "text"}]),
        "messages[0].content[0].text",
        Code.WRONG_TYPE,
    ),
    (
        "a part whose text is a list",
        CHAT,
        at(CHAT, "messages[0].content", [{"type": "text", "text": []}]),
        "messages[0].content[0].text",
        Code.WRONG_TYPE,
    ),
    ("a tool without a function", TOOLS, at(TOOLS, "tools[0].function", ...), "tools[0]", Code.INVALID_TOOL),
    ("a tool without a type", TOOLS, at(TOOLS, "tools[0].type", ...), "tools[0]", Code.INVALID_TOOL),
    (
        "a tool without a name",
        TOOLS,
        at(TOOLS, "tools[0].function.name", ...),
        "tools[0].function.name",
        Code.INVALID_TOOL,
    ),
    (
        "a tool whose name is empty",
        TOOLS,
        at(TOOLS, "tools[0].function.name", ""),
        "tools[0].function.name",
        Code.INVALID_TOOL,
    ),
    ("a tool of another kind", TOOLS, at(TOOLS, "tools[0].type", "web_search"), "tools[0]", Code.INVALID_TOOL),
    ("both forms of tools", TOOLS, {**TOOLS, "functions": [{"name": "look"}]}, "functions", Code.INVALID_TOOL),
    ("functions are a string", CHAT, {**CHAT, "functions": "look"}, "functions", Code.WRONG_TYPE),
    ("a function is a string", CHAT, {**CHAT, "functions": ["look"]}, "functions[0]", Code.INVALID_TOOL),
    ("a function without a name", CHAT, {**CHAT, "functions": [{}]}, "functions[0].name", Code.INVALID_TOOL),
    (
        "a user calls",
        TOOLS,
        {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
        "messages[0].tool_calls",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call without an id",
        TOOLS,
        at(LAST_CALLS, "messages[1].tool_calls[0].id", ...),
        "messages[1].tool_calls[0].id",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call with an empty id",
        TOOLS,
        at(LAST_CALLS, "messages[1].tool_calls[0].id", ""),
        "messages[1].tool_calls[0].id",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "an id twice",
        TOOLS,
        at(LAST_CALLS, "messages[1].tool_calls", [CALL, CALL]),
        "messages[1].tool_calls[1].id",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call without arguments",
        TOOLS,
        at(LAST_CALLS, "messages[1].tool_calls[0].function.arguments", ...),
        "messages[1].tool_calls[0].function.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    *(
        (
            f"the arguments {text[:20]!r}",
            TOOLS,
            at(LAST_CALLS, "messages[1].tool_calls[0].function.arguments", text),
            "messages[1].tool_calls[0].function.arguments",
            Code.INVALID_ARGUMENTS,
        )
        for text in (
            "",
            "{",
            "look",
            "[]",
            "null",
            "1",
            '"{}"',
            '{"a": NaN}',
            '{"a": 1, "a": 2}',
            '{"a": 1e999}',
            "{'a': 1}",
            "[" * 1000,
            '{"a": "\\u0000"}',
        )
    ),
    (
        "a function the row has not",
        TOOLS,
        at(LAST_CALLS, "messages[1].tool_calls[0].function.name", "see"),
        "messages[1].tool_calls[0].function.name",
        Code.UNKNOWN_FUNCTION,
    ),
    (
        "a call without a result",
        TOOLS,
        {"messages": [USER, CALLS, ANSWER], "tools": [TOOL]},
        "messages[1].tool_calls[0]",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "one of two calls without a result",
        TOOLS,
        {"messages": [USER, {**CALLS, "tool_calls": [CALL, {**CALL, "id": "c2"}]}, RESULT, ANSWER]},
        "messages[1].tool_calls[1]",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "a result without a call",
        TOOLS,
        {"messages": [USER, RESULT, ANSWER]},
        "messages[1].tool_call_id",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "a result twice",
        TOOLS,
        {"messages": [USER, CALLS, RESULT, RESULT, ANSWER]},
        "messages[3].tool_call_id",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "a result before its call",
        TOOLS,
        {"messages": [USER, RESULT, CALLS]},
        "messages[1].tool_call_id",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "a result without content",
        TOOLS,
        {"messages": [USER, CALLS, {"role": "tool", "tool_call_id": "c1"}, ANSWER]},
        "messages[2].content",
        Code.MISSING_FIELD,
    ),
    (
        "an old result without a call",
        TOOLS,
        {"messages": [USER, {"role": "function", "name": "look", "content": "a"}, ANSWER]},
        "messages[1].role",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "an old call without a result",
        TOOLS,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
                ANSWER,
            ]
        },
        "messages[1].function_call",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "an old call without arguments",
        TOOLS,
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "look"}}]},
        "messages[1].function_call.arguments",
        Code.INVALID_ARGUMENTS,
    ),
    (
        "an old call that is a string",
        TOOLS,
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": "look"}]},
        "messages[1].function_call",
        Code.INVALID_TOOL_CALL,
    ),
    *(
        (f"a pair without {field}", PREFERENCE, at(PREFERENCE, field, ...), field, Code.MISSING_FIELD)
        for field in ("input", "input.messages", "preferred_output", "non_preferred_output")
    ),
    (
        "an answer from the user",
        PREFERENCE,
        at(PREFERENCE, "preferred_output", [USER]),
        "preferred_output",
        Code.NO_ASSISTANT_MESSAGE,
    ),
    (
        "an answer that ends with a question",
        PREFERENCE,
        at(PREFERENCE, "preferred_output", [ANSWER, USER]),
        "preferred_output[1].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    (
        "an answer without messages",
        PREFERENCE,
        at(PREFERENCE, "non_preferred_output", []),
        "non_preferred_output",
        Code.EMPTY,
    ),
    ("no completion", COMPLETION, {"prompt": "a"}, "completion", Code.MISSING_FIELD),
    ("no prompt", COMPLETION, {"completion": "a"}, "prompt", Code.MISSING_FIELD),
    ("an empty completion", COMPLETION, {"prompt": "a", "completion": ""}, "completion", Code.EMPTY),
    ("an empty text", TEXT, {"text": ""}, "text", Code.EMPTY),
    ("an empty labelled completion", LABELLED, at(LABELLED, "completion", ""), "completion", Code.EMPTY),
    ("a label of 1", LABELLED, at(LABELLED, "label", 1), "label", Code.WRONG_TYPE),
    ("a label of 'true'", LABELLED, at(LABELLED, "label", "true"), "label", Code.WRONG_TYPE),
    ("no labelled completion", LABELLED, {"prompt": "a", "label": True}, "completion", Code.MISSING_FIELD),
    ("alpaca without output", ALPACA, at(ALPACA, "output", ...), "output", Code.MISSING_FIELD),
    ("alpaca without a question", ALPACA, {"instruction": "", "output": "a"}, "instruction", Code.EMPTY),
    ("alpaca's history of three", ALPACA, at(ALPACA, "history[0]", ["a", "b", "c"]), "history[0]", Code.WRONG_TYPE),
    ("alpaca's history of numbers", ALPACA, at(ALPACA, "history[0]", [1, "b"]), "history[0][0]", Code.WRONG_TYPE),
    (
        "a turn without a speaker",
        SHAREGPT,
        at(SHAREGPT, "conversations[0].from", ...),
        "conversations[0].from",
        Code.MISSING_FIELD,
    ),
    (
        "a turn without a value",
        SHAREGPT,
        at(SHAREGPT, "conversations[0].value", ...),
        "conversations[0].value",
        Code.MISSING_FIELD,
    ),
    (
        "an unknown speaker",
        SHAREGPT,
        at(SHAREGPT, "conversations[0].from", "bob"),
        "conversations[0].from",
        Code.UNKNOWN_ROLE,
    ),
    ("no turns", SHAREGPT, {"conversations": []}, "conversations", Code.EMPTY),
    (
        "turns that end with a question",
        SHAREGPT,
        at(SHAREGPT, "conversations[1].from", "human"),
        "conversations",
        Code.NO_ASSISTANT_MESSAGE,
    ),
    (
        "an observation of nothing",
        OBSERVED,
        at(OBSERVED, "conversations[1]", {"from": "gpt", "value": "b"}),
        "conversations[2].from",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    (
        "a call that is no JSON",
        OBSERVED,
        {"conversations": [SHAREGPT["conversations"][0], {"from": "function_call", "value": "look()"}]},
        "conversations[1].value",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call without name",
        OBSERVED,
        {"conversations": [SHAREGPT["conversations"][0], {"from": "function_call", "value": "{}"}]},
        "conversations[1].value",
        Code.INVALID_TOOL_CALL,
    ),
    ("tools that are no JSON", OBSERVED, at(OBSERVED, "tools", "look"), "tools", Code.INVALID_TOOL),
    ("a pair without its other half", PAIRS, at(PAIRS, "rejected", ...), "rejected", Code.MISSING_FIELD),
    ("a pair without a prompt", PAIRS, at(PAIRS, "prompt", ...), "prompt", Code.MISSING_FIELD),
    ("an empty prompt of a conversation", TALKED, at(TALKED, "prompt", []), "prompt", Code.EMPTY),
    # Characters, and keys that hide others.
    ("an escaped NUL in a text", TEXT, rb'{"text": "a\u0000"}', "text", Code.NUL),
    (
        "an escaped NUL in a message",
        CHAT,
        dump({"messages": [USER, {**ANSWER, "content": "a\0"}]}),
        "messages[1].content",
        Code.NUL,
    ),
    ("an escaped NUL in a key", TEXT, rb'{"text": "a", "a\u0000": 1}', "", Code.NUL),
    (
        "an escaped NUL in a role",
        CHAT,
        rb'{"messages": [{"role": "user\u0000", "content": "a"}]}',
        "messages[0].role",
        Code.NUL,
    ),
    (
        "an escaped NUL in a part",
        CHAT,
        rb'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\u0000"}]}]}',
        "messages[0].content[0].text",
        Code.NUL,
    ),
    ("a character that is none", TEXT, '{"text": "a\ufdd0"}'.encode(), "text", Code.NONCHARACTER),
    (
        "the other character that is none",
        CHAT,
        '{"messages": [{"role": "user", "content": "\ufdd1"}]}'.encode(),
        "messages[0].content",
        Code.NONCHARACTER,
    ),
    ("an escaped character that is none", TEXT, rb'{"text": "a\uFdD1"}', "text", Code.NONCHARACTER),
    ("a text twice", TEXT, b'{"text": "a", "text": "b"}', "text", Code.DUPLICATE_KEY),
    ("messages twice", CHAT, b'{"messages": [], ' + dump(CHAT)[1:], "messages", Code.DUPLICATE_KEY),
    (
        "a content twice",
        CHAT,
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
        "messages[0].content",
        Code.DUPLICATE_KEY,
    ),
    (
        "a role twice",
        CHAT,
        b'{"messages": [{"role": "user", "role": "assistant", "content": "c"}]}',
        "messages[0].role",
        Code.DUPLICATE_KEY,
    ),
    ("a key written in two ways", TEXT, rb'{"text": "a", "te\u0078t": "b"}', "text", Code.DUPLICATE_KEY),
    (
        "a key twice in what nobody reads",
        TEXT,
        b'{"text": "a", "meta": {"a": [{"b": 1, "b": 2}]}}',
        "meta.a[0].b",
        Code.DUPLICATE_KEY,
    ),
    ("a key twice among escaped quotes", TEXT, rb'{"text": "\"\\\"", "n": 1, "n": 2}', "n", Code.DUPLICATE_KEY),
    (
        "a key twice in a tool's schema",
        TOOLS,
        dump(TOOLS).replace(b'"type": "object"', b'"type": "object", "type": "array"'),
        "tools[0].function.parameters.type",
        Code.DUPLICATE_KEY,
    ),
]


def cases() -> Iterator[Bad]:
    for name, good, changed, path, code in CHANGES:
        line = changed if isinstance(changed, bytes) else dump(changed)
        yield Bad(name, among(good, line), [(4, path, code)])
