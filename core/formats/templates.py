"""Messages -> text and the spans of it that are learned, through a chat template as transformers renders it.

Jinja's immutable sandbox alone; no transformers, no torch. Templates from users are run only in a limited process.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.formats.conversation import Message, Tool
from core.formats.report import Code

# Unicode keeps these for a program's own use and forbids them in interchange, so no text has them by right.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")
_TAG = re.compile(r"\{%[-+]?\s*generation\b")


class TemplateFault(ValueError):
    """This template can't be used with this conversation; ``code`` and a sentence say why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Span(NamedTuple):
    """Characters ``start:end`` of the text are what the assistant says in ``messages[message]``."""

    start: int
    end: int
    message: int


@dataclass(frozen=True, slots=True)
class Rendered:
    text: str
    spans: list[Span]


def default(model_type: str) -> tuple[str, str]:
    """Name and text of the template for a base model that has none of its own."""
    name = "gemma3" if model_type.startswith("gemma3") else "plain"
    return name, resources.files("core.formats").joinpath(f"{name}.jinja").read_text("utf-8")


class Template:
    """One compiled template. ``special_tokens`` are the names it may use: ``bos_token``, ``eos_token``, …"""

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        self._special = special_tokens
        self._knows_developer = "developer" in text
        self.marked = _TAG.search(text) is not None
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            message = f"the chat template can't be read: line {error.lineno}: {error.message}"
            raise TemplateFault(Code.TEMPLATE_ERROR, message) from None

    def text(self, messages: list[Message], tools: list[Tool] | None = None, *, generate: bool = False) -> str:
        """The text alone, exactly as transformers' ``apply_chat_template(tokenize=False)`` has it."""
        return _MARK.sub("", self._render(self._adapted(messages), tools, generate))

    def render(self, messages: list[Message], tools: list[Tool] | None = None) -> Rendered:
        """Text and learned spans: from the template's ``generation`` marks, else from rendering the conversation's
        beginnings: what an assistant message adds after the generation prompt is what the assistant says."""
        adapted = self._adapted(messages)
        marked = self._render(adapted, tools, False)
        if not self.marked:
            return self._by_beginnings(adapted, tools, marked)
        text, pairs = _unmark(marked)
        speakers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(pairs) == len(speakers):
            spans = [Span(start, end, index) for (start, end), index in zip(pairs, speakers, strict=True)]
            return Rendered(text, spans)
        # Several marks in one message, or none: only the messages' extents tell whose they are.
        extents = self.extents(messages, tools, text)
        spans = []
        for start, end in pairs:
            index = next((i for i, (first, last) in enumerate(extents) if first <= start and end <= last), None)
            if index is None:
                fault = "the chat template marks text that belongs to no single message"
                raise TemplateFault(Code.TEMPLATE_ERROR, fault)
            spans.append(Span(start, end, index))
        return Rendered(text, spans)

    def extents(self, messages: list[Message], tools: list[Tool] | None, text: str) -> list[tuple[int, int]]:
        """Where each message's own text lies, role header and end of turn included.

        A message starts where the rendering of those before it ends. The text before the first message (BOS, tools)
        counts to the first, what follows the last to the last.
        """
        adapted = self._adapted(messages)
        ends = [0]
        for count in range(1, len(adapted)):
            beginning = _MARK.sub("", self._render(adapted[:count], tools, False))
            if not text.startswith(beginning):
                raise TemplateFault(
                    Code.TEMPLATE_REWRITES_HISTORY,
                    f"the chat template writes messages[0..{count - 1}] differently once more messages follow",
                )
            ends.append(len(beginning))
        return list(zip(ends, [*ends[1:], len(text)], strict=True))

    def _by_beginnings(self, messages: list[Message], tools: list[Tool] | None, text: str) -> Rendered:
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], tools, True)
            turn = self._render(messages[: index + 1], tools, False)
            if not text.startswith(turn):
                raise TemplateFault(
                    Code.TEMPLATE_REWRITES_HISTORY,
                    f"the chat template writes messages[{index}] differently once more messages follow, so what is "
                    "learned would not be what is asked for later; use one message from the assistant a row, or a "
                    "template with generation marks",
                )
            if not turn.startswith(prompt):
                raise TemplateFault(
                    Code.TEMPLATE_ERROR,
                    f"the chat template has no generation marks, and its generation prompt is not how messages[{index}]"
                    " begins, so it can't be told what the assistant says",
                )
            # White space after the end of turn is the template's way of separating turns, not something said.
            said = turn[len(prompt) :]
            trimmed = said.rstrip()
            content = message.get("content") or ""
            end = len(prompt) + (len(said) if said == content or not trimmed else len(trimmed))
            spans.append(Span(len(prompt), end, index))
        return Rendered(text, spans)

    def _adapted(self, messages: list[Message]) -> list[Message]:
        """Messages under the names templates know: developer messages are system messages to most of them, and
        reasoning goes by two names, as in transformers."""
        adapted = []
        for message in messages:
            if message["role"] == "developer" and not self._knows_developer:
                message = {**message, "role": "system"}
            if (reasoning := message.get("reasoning_content")) is not None:
                message = {"thinking": reasoning, **message}
            adapted.append(message)
        return adapted

    def _render(self, messages: list[Message], tools: list[Tool] | None, generate: bool) -> str:
        try:
            return self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generate, **self._special
            )
        except jinja2.TemplateError as error:
            raise TemplateFault(Code.TEMPLATE_ERROR, f"the chat template refuses the row: {error.message}") from None
        except RecursionError:
            raise TemplateFault(Code.TEMPLATE_ERROR, "the chat template recurses without end") from None
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
            # A template is a program: a wrong one fails like any, and that is its author's fault, not ours.
            message = f"the chat template fails on the row: {type(error).__name__}: {error}"
            raise TemplateFault(Code.TEMPLATE_ERROR, message[:500]) from None

    @cached_property
    def end_of_turn(self) -> str:
        """The text an assistant turn ends with, so that generation can be told to stop there; may be empty."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        rendered = self.render(probe)
        said = rendered.text[rendered.spans[-1].start : rendered.spans[-1].end] if rendered.spans else ""
        return said.rpartition("answer")[2].strip()


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the outermost marked pairs as offsets into it."""
    parts, pairs, stack, position, length = [], [], [], 0, 0
    for mark in _MARK.finditer(marked):
        parts.append(marked[position : mark.start()])
        length += mark.start() - position
        position = mark.end()
        if mark.group() == _OPEN:
            stack.append(length)
        elif stack:
            start = stack.pop()
            if not stack:
                pairs.append((start, length))
    parts.append(marked[position:])
    return "".join(parts), pairs


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: puts marks around what the assistant says.

    Marks in the text itself, unlike offsets counted while rendering, also hold inside macros and captured blocks.
    """

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: jinja2.runtime.Macro) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class _Dict:
    """``dict`` as templates may call it; the type itself would open a way out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # a template's values can be anything
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without underscored attributes, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` stays free as a name for the template
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't have {name!r}: it starts with an underscore")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model has seen in training."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment
