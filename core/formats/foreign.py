"""Forms of rows that other tools write: how each is recognised, what it becomes, and the sentence that says so."""

from collections.abc import Callable
from typing import NamedTuple

from core.formats import alpaca, huggingface, sharegpt
from core.formats.draft import Draft
from core.formats.parse import Object
from core.formats.report import Format


class Form(NamedTuple):
    name: str
    format: Format
    recognises: Callable[[Object], bool]
    convert: Callable[[Object], Draft]
    conversion: str


def _structured(row: Object, *names: str) -> bool:
    return any(isinstance(row.get(name), list | dict) for name in names)


def _turns(row: Object) -> bool:
    return "conversations" in row or "conversation" in row


def _pair(row: Object) -> bool:
    return "chosen" in row or "rejected" in row


_TURNS = "turns became messages (human is user, gpt is assistant, function_call a tool call, observation its result)"
_INSTRUCTION = "instruction and input became the user's message, a line each; system and history went before it"

# In the order they are tried.
FORMS: tuple[Form, ...] = (
    Form(
        "sharegpt_preference",
        "preference",
        lambda row: _turns(row) and _pair(row),
        sharegpt.preference,
        f"ShareGPT pairs: {_TURNS}; chosen and rejected became the preferred and the other answer",
    ),
    Form(
        "sharegpt_labelled",
        "labelled",
        lambda row: _turns(row) and "kto_tag" in row,
        sharegpt.labelled,
        f"ShareGPT with kto_tag: {_TURNS}; the last turn became the completion and kto_tag its label",
    ),
    Form("sharegpt", "chat", _turns, sharegpt.chat, f"ShareGPT: {_TURNS}"),
    Form(
        "alpaca_preference",
        "preference",
        lambda row: "instruction" in row and _pair(row),
        alpaca.preference,
        f"alpaca pairs: {_INSTRUCTION}; chosen and rejected became the preferred and the other answer",
    ),
    Form(
        "alpaca_labelled",
        "labelled",
        lambda row: "instruction" in row and "kto_tag" in row,
        alpaca.labelled,
        f"alpaca with kto_tag: {_INSTRUCTION}; output became the completion and kto_tag its label",
    ),
    Form(
        "alpaca",
        "chat",
        lambda row: "instruction" in row,
        alpaca.chat,
        f"alpaca: {_INSTRUCTION}; output became the assistant's",
    ),
    Form(
        "hf_preference",
        "preference",
        _pair,
        huggingface.preference,
        "Hugging Face pairs: the prompt became the user's message or the conversation so far (where chosen and "
        "rejected begin alike, what they share), chosen and rejected became the preferred and the other answer",
    ),
    Form(
        "hf_unpaired_preference",
        "labelled",
        lambda row: "label" in row and _structured(row, "prompt", "completion"),
        huggingface.unpaired,
        "Hugging Face unpaired preference: prompt and completion are messages, label says whether the answer is good",
    ),
    Form(
        "hf_prompt_completion",
        "chat",
        lambda row: _structured(row, "prompt", "completion"),
        huggingface.prompt_completion,
        "Hugging Face prompt and completion: both became one conversation, of which only the completion is learned",
    ),
    Form(
        "hf_chat",
        "chat",
        # Looks like Attune's own, so it has to be asked for.
        lambda row: False,
        huggingface.chat,
        "Hugging Face messages: tool calls without an id got one, and arguments that are objects became JSON",
    ),
)
