"""Rows as Hugging Face's libraries name them: ``prompt``, ``completion``, ``chosen``, ``rejected``, ``label``."""

from typing import Any

from core.formats.conversation import MAX_MESSAGES, too_many
from core.formats.draft import Draft, Talk, label, system, tools
from core.formats.parse import Object, kind
from core.formats.report import Code


def _put(value: object, name: str, talk: Talk, role: str) -> None:
    """A string is one message of this role; a message is a list of one."""
    if isinstance(value, str):
        talk.say(role, value, name)
    elif isinstance(value, dict):
        talk.take(value, name)
    elif isinstance(value, list):
        _take(value, 0, name, talk)
    else:
        talk.draft.fault(name, Code.WRONG_TYPE, f"{kind(value)} is neither a string nor a list of messages")


def _take(messages: list[Any], first: int, name: str, talk: Talk) -> None:
    if len(messages) > MAX_MESSAGES:
        talk.draft.problems.append(too_many(name, len(messages)))
        return
    for index, message in enumerate(messages[first:], first):
        if talk.draft.full:
            break
        talk.take(message, f"{name}[{index}]")


def preference(row: Object) -> Draft:
    draft = Draft()
    for name in ("chosen", "rejected"):
        if name not in row:
            draft.fault(name, Code.MISSING_FIELD, "is missing")
    if draft.problems:
        return draft
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    shared = _shared(chosen, rejected, prompt)
    if prompt is None and not shared:
        hint = "" if isinstance(chosen, list) else ", or lists of messages that begin alike"
        draft.fault("prompt", Code.MISSING_FIELD, f"is missing: chosen and rejected need a prompt{hint}")
        return draft
    talk = Talk(draft, "input.messages")
    system(row, talk)
    if shared:
        # Both answers repeat the conversation so far; it is taken from there, whatever the prompt says besides.
        _put(chosen[:shared], "chosen", talk, "user")
    else:
        _put(prompt, "prompt", talk, "user")
    draft.row["input"] = {"messages": talk.messages}
    draft.origins["input.messages"] = "chosen" if shared else "prompt"
    for target, name, answer in (
        ("preferred_output", "chosen", chosen),
        ("non_preferred_output", "rejected", rejected),
    ):
        ending = Talk(draft, target)
        if isinstance(answer, list):
            _take(answer, shared, name, ending)
        else:
            _put(answer, name, ending, "assistant")
        draft.row[target] = ending.messages
        draft.origins[target] = name
    tools(row, draft, draft.row["input"], "input.")
    return draft


def _shared(chosen: object, rejected: object, prompt: object) -> int:
    """How many messages both answers begin with that are the prompt; 0 when they hold answers alone."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return 0
    limit = min(len(chosen), len(rejected)) - 1
    same = next((index for index in range(max(0, limit)) if chosen[index] != rejected[index]), max(0, limit))
    if isinstance(prompt, list):
        return len(prompt) if same >= len(prompt) and chosen[: len(prompt)] == prompt else 0
    return same


def prompt_completion(row: Object) -> Draft:
    draft = Draft()
    talk = Talk(draft, "messages")
    system(row, talk)
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        if name not in row:
            draft.fault(name, Code.MISSING_FIELD, "is missing")
            continue
        _put(row[name], name, talk, role)
        if name == "prompt":
            # Only the completion is learned: what the assistant said before is context.
            talk.messages = [_unlearned(message) for message in talk.messages]
    draft.row["messages"] = talk.messages
    draft.origins["messages"] = "completion"
    tools(row, draft, draft.row, "")
    return draft


def chat(row: Object) -> Draft:
    draft = Draft()
    talk = Talk(draft, "messages")
    if isinstance(row.get("messages"), list):
        _put(row["messages"], "messages", talk, "user")
    else:
        draft.fault("messages", Code.WRONG_TYPE, f"{kind(row.get('messages'))} is not a list of messages")
    draft.row["messages"] = talk.messages
    tools(row, draft, draft.row, "")
    return draft


def _unlearned(message: object) -> object:
    if isinstance(message, dict) and message.get("role") == "assistant" and "weight" not in message:
        return message | {"weight": 0}
    return message


def unpaired(row: Object) -> Draft:
    draft = Draft()
    label(row, draft, "label")
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        talk = Talk(draft, name)
        if name == "prompt":
            system(row, talk)
        if name in row:
            _put(row[name], name, talk, role)
        else:
            draft.fault(name, Code.MISSING_FIELD, "is missing")
        draft.row[name] = talk.messages
    tools(row, draft, draft.row, "")
    return draft
