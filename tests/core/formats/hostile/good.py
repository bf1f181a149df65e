"""Good rows of every form, of which bad ones are made by one change; and ways to make it."""

import copy
import json
from typing import Any

Row = dict[str, Any]

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "seen"}
CHAT = {"messages": [USER, ANSWER]}
TOOLS = {"messages": [USER, CALLS, RESULT, ANSWER], "tools": [TOOL]}
LAST_CALLS = {"messages": [USER, CALLS], "tools": [TOOL]}
"""Nothing depends on the calls, so what is wrong with one is one fault."""
FULL = {"messages": [{**USER, "name": "ann"}, {**ANSWER, "weight": 1, "reasoning_content": "hm"}]}
PREFERENCE = {
    "input": {"messages": [USER], "tools": [TOOL]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{**ANSWER, "content": "no"}],
}
COMPLETION = {"prompt": "a", "completion": "b"}
LABELLED = {"prompt": "a", "completion": "b", "label": True}
TALKED = {"prompt": [USER], "completion": [ANSWER], "label": False}
TEXT = {"text": "a"}
ALPACA = {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "f"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
OBSERVED = {
    "conversations": [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
        {"from": "observation", "value": "seen"},
        {"from": "gpt", "value": "b"},
    ],
    "tools": '[{"name": "look", "parameters": {}}]',
}
PAIRS = {"prompt": "a", "chosen": "b", "rejected": "c"}


def dump(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")


def at(row: Row, path: str, value: object) -> Row:
    """The row with another value at a path such as ``messages[0].role``; ``...`` removes what is there."""
    row = copy.deepcopy(row)
    *parents, last = [
        int(step) if step.isdigit() else step for step in path.replace("[", ".").replace("]", "").split(".")
    ]
    place: Any = row
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return row


def among(good: Row, line: bytes) -> bytes:
    """A file in which the bad line is the fourth, after a blank one."""
    return b"\n".join([dump(good), dump(good), b"", line, dump(good), b""])
