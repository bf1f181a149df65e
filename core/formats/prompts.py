"""Prompts that a job's model is to answer while it is trained (``ext.eval.generate``): as given -> checked.

A prompt is a list of messages or one of them; a text is what a user says, or, where the rows are no conversations, the
beginning of a text.
"""

from typing import Any, cast

from core.formats import conversation
from core.formats.conversation import Message
from core.formats.parse import Problem
from core.formats.report import Code

MOST = 20
CHARACTERS = 20_000
"""Of all prompts of a job."""

Prompt = list[Message] | str


def read(given: list[Any], path: str) -> tuple[list[Prompt], list[Problem]]:
    """Every prompt, or everything wrong with them. Any: JSON."""
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for n, one in enumerate(given):
        at = f"{path}[{n}]"
        if isinstance(one, str):
            prompts.append(one)
            if not one.strip():
                problems.append(Problem(at, Code.EMPTY, "is empty"))
            continue
        found = conversation.messages(cast(object, [one] if isinstance(one, dict) else one), at, None, problems)
        if found and found[-1]["role"] == "assistant":
            problems.append(Problem(at, Code.WRONG_TYPE, "ends with the assistant: there is nothing left to answer"))
        prompts.append(found)
    if not problems and sum(len(_text(one)) for one in prompts) > CHARACTERS:
        problems.append(Problem(path, Code.WRONG_TYPE, f"has more than {CHARACTERS:,} characters in all"))
    return prompts, problems


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "".join(message.get("content") or "" for message in prompt)
