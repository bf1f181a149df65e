"""Rows as other tools write them: what becomes of each, and that faults are told in the user's own words."""

import json
from typing import Any

import pytest

from core.formats import foreign, rows
from core.formats.check import Checker
from core.formats.report import Code

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "hello"}
BAD = {"role": "assistant", "content": "what?"}
LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": LOOK}


def turn(speaker: str, value: object) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def called(identifier: str, name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


HUMAN, GPT = turn("human", "hi"), turn("gpt", "hello")
CALL = turn("function_call", '{"name": "look", "arguments": {"at": 1}}')

GOOD: list[tuple[str, str, dict[str, Any], rows.Row]] = [
    ("alpaca", "alpaca", {"instruction": "hi", "input": "", "output": "hello"}, rows.Chat([ASK, SAY], None)),
    (
        "alpaca with everything",
        "alpaca",
        {
            "instruction": "Add.",
            "input": "1 2",
            "output": "3",
            "system": "Be brief.",
            "history": [["hi", "hello"]],
            "text": "made of the others",
        },
        rows.Chat(
            [
                {"role": "system", "content": "Be brief."},
                ASK,
                SAY,
                {"role": "user", "content": "Add.\n1 2"},
                {"role": "assistant", "content": "3"},
            ],
            None,
        ),
    ),
    ("alpaca without input", "alpaca", {"instruction": "hi", "output": "hello"}, rows.Chat([ASK, SAY], None)),
    (
        "alpaca pairs",
        "alpaca_preference",
        {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "what?"},
        rows.Preference([ASK], None, [SAY], [BAD]),
    ),
    (
        "alpaca with kto_tag",
        "alpaca_labelled",
        {"instruction": "hi", "output": "hello", "kto_tag": True},
        rows.Labelled([ASK], [SAY], True),
    ),
    ("sharegpt", "sharegpt", {"conversations": [HUMAN, GPT]}, rows.Chat([ASK, SAY], None)),
    (
        "sharegpt of another time",
        "sharegpt",
        {"id": "x", "conversation": [turn("system", "Be kind."), turn("user", "hi"), {**GPT, "markdown": None}]},
        rows.Chat([{"role": "system", "content": "Be kind."}, ASK, SAY], None),
    ),
    (
        "sharegpt with roles",
        "sharegpt",
        {"conversations": [ASK, SAY], "system": "Be kind."},
        rows.Chat([{"role": "system", "content": "Be kind."}, ASK, SAY], None),
    ),
    (
        "sharegpt with weights",
        "sharegpt",
        {"conversations": [HUMAN, {**GPT, "weight": 0}, HUMAN, GPT]},
        rows.Chat([ASK, {**SAY, "weight": 0.0}, ASK, SAY], None),
    ),
    (
        "sharegpt with tools",
        "sharegpt",
        {"conversations": [HUMAN, CALL, turn("observation", "seen"), GPT], "tools": json.dumps([LOOK])},
        rows.Chat(
            [
                ASK,
                {"role": "assistant", "content": "", "tool_calls": [called("call_0", at=1)]},
                {"role": "tool", "content": "seen", "tool_call_id": "call_0"},
                SAY,
            ],
            [TOOL],
        ),
    ),
    (
        "sharegpt with two calls at once",
        "sharegpt",
        {
            "conversations": [
                HUMAN,
                turn("function_call", [{"name": "look", "arguments": {}}, {"name": "look", "arguments": {"at": 2}}]),
                turn("tool", '["one", {"two": 2}]'),
                GPT,
            ],
            "tools": [TOOL],
        },
        rows.Chat(
            [
                ASK,
                {"role": "assistant", "content": "", "tool_calls": [called("call_0"), called("call_1", at=2)]},
                {"role": "tool", "content": "one", "tool_call_id": "call_0"},
                {"role": "tool", "content": '{"two": 2}', "tool_call_id": "call_1"},
                SAY,
            ],
            [TOOL],
        ),
    ),
    (
        "sharegpt pairs",
        "sharegpt_preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": turn("gpt", "what?"), "tools": ""},
        rows.Preference([ASK], None, [SAY], [BAD]),
    ),
    (
        "sharegpt with kto_tag",
        "sharegpt_labelled",
        {"conversations": [HUMAN, GPT], "kto_tag": False},
        rows.Labelled([ASK], [SAY], False),
    ),
    (
        "pairs of strings",
        "hf_preference",
        {"prompt": "hi", "chosen": "hello", "rejected": "what?"},
        rows.Preference([ASK], None, [SAY], [BAD]),
    ),
    (
        "pairs of messages",
        "hf_preference",
        {"prompt": [ASK], "chosen": [SAY], "rejected": [BAD], "tools": [TOOL]},
        rows.Preference([ASK], [TOOL], [SAY], [BAD]),
    ),
    (
        "pairs with an implicit prompt",
        "hf_preference",
        {"chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, SAY, ASK, BAD]},
        rows.Preference([ASK, SAY, ASK], None, [SAY], [BAD]),
    ),
    (
        "pairs that repeat the prompt",
        "hf_preference",
        {"prompt": "hi", "chosen": [ASK, SAY], "rejected": [ASK, BAD], "score_chosen": 8.0},
        rows.Preference([ASK], None, [SAY], [BAD]),
    ),
    (
        "conversational prompt and completion",
        "hf_prompt_completion",
        {"prompt": [ASK, SAY, ASK], "completion": [SAY]},
        rows.Chat([ASK, {**SAY, "weight": 0.0}, ASK, SAY], None),
    ),
    (
        "a string and a message",
        "hf_prompt_completion",
        {"prompt": "hi", "completion": SAY},
        rows.Chat([ASK, SAY], None),
    ),
    (
        "unpaired preference",
        "hf_unpaired_preference",
        {"prompt": [ASK], "completion": [SAY], "label": True},
        rows.Labelled([ASK], [SAY], True),
    ),
]


@pytest.mark.parametrize(("name", "given", "row"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_a_foreign_row_is_recognised_and_converted(name: str, given: dict[str, Any], row: rows.Row) -> None:
    found = rows.read(json.dumps(given).encode())
    assert found.problems == []
    assert found.reader is not None
    assert (found.reader.name, bool(found.reader.conversion)) == (name, True)
    assert found.row == row


FAULTY: list[tuple[str, dict[str, Any], str, Code]] = [
    ("alpaca without output", {"instruction": "a"}, "output", Code.MISSING_FIELD),
    ("alpaca's output is a number", {"instruction": "a", "output": 1}, "output", Code.WRONG_TYPE),
    ("alpaca's instruction is a list", {"instruction": [], "output": "a"}, "instruction", Code.WRONG_TYPE),
    ("alpaca's input is a list", {"instruction": "a", "input": [], "output": "a"}, "input", Code.WRONG_TYPE),
    ("alpaca asks nothing", {"instruction": "", "input": "", "output": "a"}, "instruction", Code.EMPTY),
    ("alpaca's history is text", {"instruction": "a", "output": "a", "history": "x"}, "history", Code.WRONG_TYPE),
    (
        "a turn of alpaca's history",
        {"instruction": "a", "output": "a", "history": [["a", "b"], ["a"]]},
        "history[1]",
        Code.WRONG_TYPE,
    ),
    (
        "an answer of alpaca's history",
        {"instruction": "a", "output": "a", "history": [["a", None]], "system": "s"},
        "history[0][1]",
        Code.WRONG_TYPE,
    ),
    ("alpaca's system is a list", {"instruction": "a", "output": "a", "system": [1]}, "system[0]", Code.WRONG_TYPE),
    ("a tag that is no boolean", {"instruction": "a", "output": "a", "kto_tag": 1}, "kto_tag", Code.WRONG_TYPE),
    ("no turns", {"conversations": []}, "conversations", Code.EMPTY),
    ("turns are text", {"conversations": "hi"}, "conversations", Code.WRONG_TYPE),
    ("a turn is text", {"conversations": ["hi"]}, "conversations[0]", Code.WRONG_TYPE),
    ("a turn without value", {"conversations": [{"from": "human"}, GPT]}, "conversations[0].value", Code.MISSING_FIELD),
    ("a turn of nobody", {"conversations": [{"value": "a"}, GPT]}, "conversations[0].from", Code.MISSING_FIELD),
    ("a turn of a bot", {"conversations": [HUMAN, turn("bot", "a")]}, "conversations[1].from", Code.UNKNOWN_ROLE),
    (
        "a value is null",
        {"conversations": [turn("human", None), GPT], "system": "s"},
        "conversations[0].value",
        Code.WRONG_TYPE,
    ),
    (
        "ends with the human",
        {"conversations": [HUMAN, GPT, HUMAN], "system": "s"},
        "conversations[2].from",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    ("nobody answers", {"conversations": [HUMAN]}, "conversations", Code.NO_ASSISTANT_MESSAGE),
    (
        "a weight of two",
        {"conversations": [HUMAN, {**GPT, "weight": 2}]},
        "conversations[1].weight",
        Code.INVALID_WEIGHT,
    ),
    (
        "a call that is no JSON",
        {"conversations": [HUMAN, turn("function_call", "look()")]},
        "conversations[1].value",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call without name",
        {"conversations": [HUMAN, turn("function_call", '{"arguments": {}}')]},
        "conversations[1].value",
        Code.INVALID_TOOL_CALL,
    ),
    (
        "a call of no tool",
        {"conversations": [HUMAN, CALL], "tools": '[{"name": "see"}]'},
        "conversations[1].value",
        Code.UNKNOWN_FUNCTION,
    ),
    (
        "a call without observation",
        {"conversations": [HUMAN, CALL, GPT]},
        "conversations[1].value",
        Code.TOOL_CALL_WITHOUT_RESULT,
    ),
    (
        "an observation without call",
        {"conversations": [HUMAN, turn("observation", "a"), GPT]},
        "conversations[1].from",
        Code.TOOL_RESULT_WITHOUT_CALL,
    ),
    ("tools that are no JSON", {"conversations": [HUMAN, GPT], "tools": "["}, "tools", Code.INVALID_TOOL),
    ("a tool without name", {"conversations": [HUMAN, GPT], "tools": "[{}]"}, "tools[0].name", Code.INVALID_TOOL),
    ("a pair without rejected", {"prompt": "a", "chosen": "b"}, "rejected", Code.MISSING_FIELD),
    ("a pair without prompt", {"chosen": "b", "rejected": "c"}, "prompt", Code.MISSING_FIELD),
    ("a pair that shares nothing", {"chosen": [SAY], "rejected": [BAD]}, "prompt", Code.MISSING_FIELD),
    ("chosen is a number", {"prompt": "a", "chosen": 1, "rejected": "c"}, "chosen", Code.WRONG_TYPE),
    (
        "chosen ends with the user",
        {"chosen": [ASK, SAY, ASK], "rejected": [ASK, BAD]},
        "chosen[2].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    ),
    (
        "a wrong role in rejected",
        {"prompt": [ASK], "chosen": [SAY], "rejected": [{"role": "bot", "content": "x"}]},
        "rejected[0].role",
        Code.UNKNOWN_ROLE,
    ),
    ("a prompt alone", {"prompt": [ASK]}, "completion", Code.MISSING_FIELD),
    (
        "a wrong role in the completion",
        {"prompt": [ASK, SAY, ASK], "completion": [{"role": "bot", "content": "x"}]},
        "completion[0].role",
        Code.UNKNOWN_ROLE,
    ),
    ("a label of one", {"prompt": [ASK], "completion": [SAY], "label": 1}, "label", Code.WRONG_TYPE),
]


@pytest.mark.parametrize(("given", "path", "code"), [case[1:] for case in FAULTY], ids=[case[0] for case in FAULTY])
def test_a_faulty_foreign_row_is_told_with_the_users_own_path(given: dict[str, Any], path: str, code: Code) -> None:
    found = rows.read(json.dumps(given).encode())
    assert found.row is None
    assert (path, code) in [(problem.path, problem.code) for problem in found.problems]


def test_a_form_is_recognised_once_and_the_others_must_have_it() -> None:
    checker = Checker()
    alpaca, sharegpt = {"instruction": "a", "output": "b"}, {"conversations": [HUMAN, GPT]}
    own = {"messages": [ASK, SAY]}
    for row in (alpaca, sharegpt, own, alpaca):
        checker.feed(json.dumps(row).encode() + b"\n")
    report = checker.finish()
    assert (report.format, report.converted_from, report.rows, report.bad_rows) == ("chat", "alpaca", 2, 2)
    assert report.conversion is not None
    assert report.conversion.startswith("alpaca: instruction and input became")
    assert [(fault.line, fault.code) for fault in report.faults] == [
        (2, Code.MIXED_FORMATS),
        (3, Code.MIXED_FORMATS),
    ]


def test_a_form_that_is_asked_for_overrides_the_guess() -> None:
    both = {"messages": [ASK, SAY], "text": "something else"}
    line = json.dumps(both).encode()
    assert rows.read(line, rows.BY_NAME["text"]).row == rows.Text("something else")
    assert rows.read(line, rows.BY_NAME["alpaca"]).problems[0].path == "instruction"
    checker = Checker(format="text")
    checker.feed(line)
    assert checker.finish().format == "text"


def test_messages_of_hugging_face_have_calls_without_ids() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    given = {
        "messages": [
            ASK,
            {"role": "assistant", "tool_calls": [call, call]},
            {"role": "tool", "name": "look", "content": "one"},
            {"role": "tool", "name": "look", "content": "two"},
            SAY,
        ],
        "tools": [TOOL],
    }
    found = rows.read(json.dumps(given).encode(), rows.BY_NAME["hf_chat"])
    assert found.problems == []
    assert isinstance(found.row, rows.Chat)
    calls = found.row.messages[1]["tool_calls"]
    assert [message["tool_call_id"] for message in found.row.messages[2:4]] == [call["id"] for call in calls]
    assert calls[0]["function"]["arguments"] == {"at": 1}


JUNK = [None, 1, "", "x", [], {}, [1], [None], [[]], {"a": 1}, [{"role": "user"}], [{"from": "gpt"}], [["a", "b"]]]


@pytest.mark.parametrize("form", foreign.FORMS, ids=lambda form: form.name)
def test_no_value_in_any_field_makes_a_converter_fail(form: foreign.Form) -> None:
    fields = ("instruction", "input", "output", "history", "system", "conversations", "tools", "messages")
    fields += ("prompt", "completion", "chosen", "rejected", "label", "kto_tag")
    reader = rows.BY_NAME[form.name]
    for first in fields:
        for second in fields:
            for value in JUNK:
                given = {first: value, second: value}
                found = rows.read(json.dumps(given).encode(), reader)
                assert (found.row is None) == bool(found.problems)
