"""A foreign row in the making: pieces go to their places in an own row, and where the user wrote each is kept.

A converter judges little: the reader of the own form does, and its faults are told with the user's own paths.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from core.formats.parse import PROBLEMS_KEPT, Object, Problem, Problems, kind, parse
from core.formats.report import Code


@dataclass
class Draft:
    """A row in the making."""

    row: Object = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Paths of the row, each with the path it came from."""
    problems: Problems = field(default_factory=list)

    def origin(self, path: str) -> str:
        """Where the user wrote what is at ``path``."""
        rest = ""
        while path and path not in self.origins:
            cut = max(path.rfind("."), path.rfind("["))
            path, rest = path[: max(cut, 0)], path[max(cut, 0) :] + rest
        if not path:
            return rest
        found = self.origins[path]
        # A field that was made of a whole piece has no parts the user would know.
        return found.rstrip("!") if found.endswith("!") else found + rest

    @property
    def full(self) -> bool:
        """Whether so much is wrong that it is no use to go on."""
        return len(self.problems) >= PROBLEMS_KEPT

    def fault(self, path: str, code: Code, message: str) -> None:
        self.problems.append(Problem(path, code, message))


class Talk:
    """A list of messages in the making, at ``path`` of the draft's row."""

    def __init__(self, draft: Draft, path: str) -> None:
        self.draft = draft
        self.path = path
        self.messages: list[Any] = []
        # In the order they were made.
        self._waiting: OrderedDict[str, None] = OrderedDict()

    def say(self, role: object, content: object, where: str, *, role_at: str | None = None, **more: Any) -> None:
        """A message; ``where`` the user wrote its content, ``role_at`` its role."""
        at = f"{self.path}[{len(self.messages)}]"
        self.draft.origins[at] = where
        self.draft.origins[f"{at}.content"] = where
        self.draft.origins[f"{at}.role"] = role_at or where
        self.messages.append({"role": role, "content": content, **more})

    def take(self, message: object, where: str) -> None:
        """A message that is one already. Hugging Face's calls have no ids, and their arguments may be objects."""
        if not isinstance(message, dict):
            self.draft.fault(where, Code.WRONG_TYPE, f"{kind(message)} is not a message")
            return
        at = f"{self.path}[{len(self.messages)}]"
        self.draft.origins[at] = where
        if isinstance(calls := message.get("tool_calls"), list):
            message = message | {"tool_calls": [self._call(call) for call in calls]}
        elif message.get("role") == "tool":
            if isinstance(call := message.get("tool_call_id"), str):
                self._waiting.pop(call, None)
            elif "tool_call_id" not in message and self._waiting:
                call, _ = self._waiting.popitem(last=False)
                message = message | {"tool_call_id": call}
        self.messages.append(message)

    def _call(self, call: object) -> object:
        if not isinstance(call, dict):
            return call
        function = call.get("function", call if "name" in call else None)
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
            function = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        identifier = call.get("id") or f"call_{len(self.messages)}_{len(self._waiting)}"
        if isinstance(identifier, str):
            self._waiting[identifier] = None
        return {"id": identifier, "type": call.get("type") or "function", "function": function}


def label(row: Object, draft: Draft, name: str) -> None:
    draft.origins["label"] = name
    if name in row:
        draft.row["label"] = row[name]


def one_answer(draft: Draft, row: Object, name: str, target: str) -> None:
    """The string at ``name`` as the assistant's one message at ``target``."""
    talk = Talk(draft, target)
    if name in row:
        talk.say("assistant", row[name], name)
    else:
        draft.fault(name, Code.MISSING_FIELD, "is missing")
    draft.row[target] = talk.messages


def put(row: Object, path: str, value: object) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        row = row.setdefault(parent, {})
    row[leaf] = value


def tools(row: Object, draft: Draft, target: Object, prefix: str) -> None:
    """Tools as a list or a string of JSON, wrapped as OpenAI has them or bare functions."""
    tools = row.get("tools")
    if tools is None or tools == "":
        return
    if isinstance(tools, str):
        tools, problem = parse(tools.encode("utf-8", "surrogatepass"))
        if problem is not None:
            draft.fault("tools", Code.INVALID_TOOL, f"the string is not JSON: {problem.message}")
            return
    if isinstance(tools, list):
        bare = [index for index, tool in enumerate(tools) if isinstance(tool, dict) and "function" not in tool]
        draft.origins |= {f"{prefix}tools[{index}].function": f"tools[{index}]" for index in bare}
        tools = [
            {"type": "function", "function": tool} if index in set(bare) else tool for index, tool in enumerate(tools)
        ]
    target["tools"] = tools


def system(row: Object, talk: Talk) -> None:
    if row.get("system"):
        talk.say("system", row["system"], "system")
