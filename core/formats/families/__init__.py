"""The chat templates that ship with the service, and which of them a base model without one of its own gets.

A family is known by the tokens of its turns: a template whose tokens a vocabulary lacks would write them as text.
"""

from collections.abc import Callable
from importlib import resources
from typing import NamedTuple


class Family(NamedTuple):
    """``model_types`` are the beginnings of config.json's ``model_type``; every one of ``tokens`` must be a token."""

    name: str
    model_types: tuple[str, ...]
    tokens: tuple[str, ...]


PLAIN = "plain"
FAMILIES = (
    Family("gemma3", ("gemma",), ("<start_of_turn>", "<end_of_turn>")),
    Family("llama3", ("llama",), ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    Family("deepseek", ("deepseek",), ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁sep｜>")),
    Family("mistral", ("mistral", "mixtral", "ministral"), ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CONTENT]")),
    Family("mistral_v3", ("mistral", "mixtral", "ministral"), ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]")),
    Family("granite", ("granite",), ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")),
    # Before ChatML, whose tokens it has as well.
    Family("phi4", ("phi",), ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    Family("phi", ("phi",), ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    Family("chatml", ("qwen",), ("<|im_start|>", "<|im_end|>")),
)
"""In the order they are tried."""

NAMES = (*(family.name for family in FAMILIES), PLAIN)


def choose(model_type: str, is_token: Callable[[str], bool]) -> str:
    """The model's own family if the vocabulary has its tokens, else any whose tokens it has, else ``plain``."""
    able = [family for family in FAMILIES if all(map(is_token, family.tokens))]
    own = [family for family in able if model_type.startswith(family.model_types)]
    return (own or able)[0].name if able else PLAIN


def text(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.jinja").read_text("utf-8")
