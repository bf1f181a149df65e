"""ShareGPT rows: ``conversations`` of turns with ``from`` and ``value``, tool calls and observations among them."""

import json
from collections import deque

import orjson

from core.formats.conversation import MAX_MESSAGES, too_many
from core.formats.draft import Draft, Talk, label, put, tools
from core.formats.parse import Object, kind, parse, quote
from core.formats.report import Code

_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "observation",
    "tool": "observation",
    "function_response": "observation",
    "tool_response": "observation",
}
_KNOWN = "system, human, gpt, function_call, observation"


class _Turns:
    """Turns of one conversation, and the calls that wait for their observations."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._waiting: deque[str] = deque()
        self._calls = 0

    def turn(self, item: object, at: str) -> None:
        draft = self._talk.draft
        if not isinstance(item, dict):
            draft.fault(at, Code.WRONG_TYPE, f'{kind(item)} is not {{"from": "…", "value": "…"}}')
            return
        who, what = ("from", "value") if "from" in item or "value" in item else ("role", "content")
        for name in (who, what):
            if name not in item:
                draft.fault(f"{at}.{name}", Code.MISSING_FIELD, "is missing")
        speaker = item.get(who)
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None and who in item:
            draft.fault(f"{at}.{who}", Code.UNKNOWN_ROLE, f"{quote(speaker)} is not one of {_KNOWN}")
        value, where = item.get(what), f"{at}.{what}"
        weight = {"weight": item["weight"]} if item.get("weight") is not None else {}
        if weight:
            draft.origins[f"{self._talk.path}[{len(self._talk.messages)}].weight"] = f"{at}.weight"
        if role == "function_call":
            self._call(value, where, f"{at}.{who}", weight)
        elif role == "observation":
            self._observe(value, where, f"{at}.{who}", weight)
        elif role is not None:
            self._talk.say(role, value, where, role_at=f"{at}.{who}", **weight)

    def _call(self, value: object, where: str, role_at: str, more: Object) -> None:
        calls: list[Object] = []
        identifiers: list[str] = []
        for name, arguments in _functions_called(value, where, self._talk.draft):
            identifier = f"call_{self._calls}"
            self._calls += 1
            identifiers.append(identifier)
            calls.append({"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}})
        at = f"{self._talk.path}[{len(self._talk.messages)}].tool_calls"
        self._talk.draft.origins[at] = f"{where}!"
        self._waiting = deque(identifiers)
        self._talk.say("assistant", None, where, role_at=role_at, tool_calls=calls, **more)

    def _observe(self, value: object, where: str, role_at: str, more: Object) -> None:
        """An observation answers the first call that waits; a list of as many results as there are calls, all."""
        results: list[object] = [value]
        if len(self._waiting) > 1 and isinstance(value, str) and value.lstrip().startswith("["):
            listed, _ = parse(value.encode("utf-8", "surrogatepass"))
            if isinstance(listed, list) and len(listed) == len(self._waiting):
                results = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in listed]
        for result in results:
            if not self._waiting:
                message = "no function_call waits for this observation"
                self._talk.draft.fault(role_at, Code.TOOL_RESULT_WITHOUT_CALL, message)
                return
            call = self._waiting.popleft()
            if isinstance(result, dict | list):
                result = json.dumps(result, ensure_ascii=False)
            self._talk.say("tool", result, where, role_at=role_at, tool_call_id=call, **more)


def _functions_called(value: object, where: str, draft: Draft) -> list[tuple[str, str]]:
    """Name and arguments, as a string of JSON, of each call in a ``function_call`` turn."""
    if isinstance(value, str):
        value, problem = parse(value.encode("utf-8", "surrogatepass"))
        if problem is not None:
            draft.fault(where, Code.INVALID_TOOL_CALL, f"the string is not JSON: {problem.message}")
            return []
    found = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(name := call.get("name"), str):
            message = 'is not a call, {"name": "…", "arguments": {…}}, nor a list of them'
            draft.fault(where, Code.INVALID_TOOL_CALL, message)
            return []
        arguments = call.get("arguments", call.get("parameters", {}))
        found.append((name, arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()))
    return found


def _talk_of(row: Object, draft: Draft, path: str) -> _Turns:
    name = "conversations" if "conversations" in row else "conversation"
    talk = Talk(draft, path)
    speakers = _Turns(talk)
    if row.get("system"):
        talk.say("system", row["system"], "system")
    turns = row.get(name)
    draft.origins[path] = name
    if not isinstance(turns, list):
        draft.fault(name, Code.WRONG_TYPE, f"{kind(turns)} is not a list of turns")
    elif len(turns) > MAX_MESSAGES:
        draft.problems.append(too_many(name, len(turns)))
    else:
        for index, item in enumerate(turns):
            if draft.full:
                break
            speakers.turn(item, f"{name}[{index}]")
    put(draft.row, path, talk.messages)
    return speakers


def chat(row: Object) -> Draft:
    draft = Draft()
    _talk_of(row, draft, "messages")
    tools(row, draft, draft.row, "")
    return draft


def preference(row: Object) -> Draft:
    draft = Draft()
    _talk_of(row, draft, "input.messages")
    tools(row, draft, draft.row["input"], "input.")
    for target, name in (("preferred_output", "chosen"), ("non_preferred_output", "rejected")):
        talk = Talk(draft, target)
        if name in row:
            _Turns(talk).turn(row[name], name)
        else:
            draft.fault(name, Code.MISSING_FIELD, "is missing")
        draft.row[target] = talk.messages
    return draft


def labelled(row: Object) -> Draft:
    draft = Draft()
    _talk_of(row, draft, "prompt")
    messages = draft.row["prompt"]
    if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        last = len(messages) - 1
        draft.row |= {"prompt": messages[:-1], "completion": messages[-1:]}
        moved = {path: source for path, source in draft.origins.items() if path.startswith(f"prompt[{last}]")}
        draft.origins |= {path.replace(f"prompt[{last}]", "completion[0]", 1): at for path, at in moved.items()}
    elif not draft.problems:
        name = draft.origins["prompt"]
        draft.fault(name, Code.LAST_MESSAGE_NOT_ASSISTANT, "the last turn is not the assistant's")
    label(row, draft, "kto_tag")
    tools(row, draft, draft.row, "")
    return draft
