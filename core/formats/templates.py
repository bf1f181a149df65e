"""Messages -> text and the spans of it that are learned, through a chat template as transformers renders it.

Jinja's immutable sandbox alone; no transformers, no torch. Templates from users are run only in a limited process.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jinja2

from core.formats import families, sandbox
from core.formats.conversation import Message, Tool
from core.formats.parse import MAX_LINE_BYTES
from core.formats.report import Code

MAX_CHARACTERS = 4 * MAX_LINE_BYTES
"""Of one row's text. Templates add headers and tags to what a row has; one that writes more than this is an attack."""

_MARK = re.compile(f"[{sandbox.OPEN}{sandbox.CLOSE}]")
_TAG = re.compile(r"\{%[-+]?\s*generation\b")
# A template is a program: a wrong one fails like any, and that is its author's fault, not ours.
_FAULTS = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError, SyntaxError)


class TemplateFault(ValueError):
    """This template can't be used with this conversation; ``code`` and a sentence say why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def dated(text: str) -> bool:
    """Whether a template can write what day it is. Names can't be put together in the sandbox, so this one is there."""
    return "strftime_now" in text


class Span(NamedTuple):
    """Characters ``start:end`` of the text are what the assistant says in ``messages[message]``."""

    start: int
    end: int
    message: int


@dataclass(frozen=True, slots=True)
class Rendered:
    text: str
    spans: list[Span]
    remarks: tuple[Code, ...] = ()
    """``template_rewrites_history``: what comes before an answer is not what the model will be asked with.
    ``template_drops_text``: something that the row says is not in the text."""


class Template:
    """One compiled template. ``special_tokens`` are the names it may use: ``bos_token``, ``eos_token``, …"""

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        self._special = special_tokens
        self._knows_developer = "developer" in text
        # That ours keep history as it was is proven once, in the tests, and need not be looked at with every row.
        self._trusted = any(text == families.text(name) for name in families.NAMES)
        self.marked = _TAG.search(text) is not None
        try:
            self._template = sandbox.environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            message = f"the chat template can't be read: line {error.lineno}: {error.message}"
            raise TemplateFault(Code.TEMPLATE_ERROR, message) from None
        except (RecursionError, *_FAULTS) as error:
            message = f"the chat template can't be read: {type(error).__name__}: {error}"
            raise TemplateFault(Code.TEMPLATE_ERROR, message[:500]) from None

    def text(self, messages: list[Message], tools: list[Tool] | None = None, *, generate: bool = False) -> str:
        """The text alone, exactly as transformers' ``apply_chat_template(tokenize=False)`` has it."""
        return _MARK.sub("", self._render(self._adapted(messages), tools, generate))

    def render(self, messages: list[Message], tools: list[Tool] | None = None) -> Rendered:
        """Text and learned spans: from the template's ``generation`` marks, else from rendering the conversation's
        beginnings: what an assistant message adds after the generation prompt is what the assistant says."""
        adapted = self._adapted(messages)
        marked = self._render(adapted, tools, False)
        rewrites = False
        if self.marked:
            text, pairs = _unmark(marked)
            spans = self._by_marks(messages, tools, text, pairs)
            rewrites = not self._trusted and not self._asks_so(adapted, tools, text)
        else:
            text = marked
            try:
                spans = self._by_beginnings(adapted, tools, text)
            except TemplateFault as fault:
                if fault.code != Code.TEMPLATE_REWRITES_HISTORY:
                    raise
                spans = self._by_stand_ins(adapted, tools, text, fault)
                rewrites = True
        remarks = [Code.TEMPLATE_REWRITES_HISTORY] if rewrites else []
        if self._drops(messages, tools, text, _said(text, spans)):
            remarks.append(Code.TEMPLATE_DROPS_TEXT)
        return Rendered(text, spans, tuple(remarks))

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

    def _by_marks(
        self, messages: list[Message], tools: list[Tool] | None, text: str, pairs: list[tuple[int, int]]
    ) -> list[Span]:
        speakers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(pairs) == len(speakers):
            return [Span(start, end, index) for (start, end), index in zip(pairs, speakers, strict=True)]
        # Several marks in one message, or none: only the messages' extents tell whose they are.
        extents = self.extents(messages, tools, text)
        spans = []
        for start, end in pairs:
            index = next((i for i, (first, last) in enumerate(extents) if first <= start and end <= last), None)
            if index is None:
                fault = "the chat template marks text that belongs to no single message"
                raise TemplateFault(Code.TEMPLATE_ERROR, fault)
            spans.append(Span(start, end, index))
        return spans

    def _asks_so(self, messages: list[Message], tools: list[Tool] | None, text: str) -> bool:
        """Whether each answer follows what the template writes when it asks for it."""
        return all(
            text.startswith(_MARK.sub("", self._render(messages[:index], tools, True)))
            for index, message in enumerate(messages)
            if message["role"] == "assistant" and index
        )

    def _by_beginnings(self, messages: list[Message], tools: list[Tool] | None, text: str) -> list[Span]:
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
                    Code.TEMPLATE_REWRITES_HISTORY,
                    f"the chat template has no generation marks, and its generation prompt is not how messages[{index}]"
                    " begins, so it can't be told what the assistant says",
                )
            # White space after the end of turn is the template's way of separating turns, not something said.
            said = turn[len(prompt) :]
            trimmed = said.rstrip()
            content = message.get("content") or ""
            end = len(prompt) + (len(said) if said == content or not trimmed else len(trimmed))
            spans.append(Span(len(prompt), end, index))
        return spans

    def _by_stand_ins(
        self, messages: list[Message], tools: list[Tool] | None, text: str, fault: TemplateFault
    ) -> list[Span]:
        """For a template that rewrites history or asks with another header than it writes: each answer lies where the
        text changes when a stand-in takes the answer's place. It begins after the generation prompt, where that is the
        header before it, and ends with the end of turn, where that follows.
        """
        prompt, end_of_turn = self._generation_prompt, self.end_of_turn
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            stand_in = {"role": "assistant", "content": sandbox.OPEN}
            other = self._render([*messages[:index], stand_in, *messages[index + 1 :]], tools, False)
            before, mark, after = other.partition(sandbox.OPEN)
            header = before.rfind(prompt) + len(prompt) if prompt in before else -1
            # A header of another turn is no header of this one: an end of turn lies between.
            mine = header >= 0 and not (end_of_turn and end_of_turn in before[header:])
            start = header if mine else len(before)
            end = len(text) - len(after)
            if not mark or end < start or not text.startswith(before[:start]) or not text.endswith(after):
                raise fault
            end += len(_beginning(end_of_turn, after))
            spans.append(Span(start, end, index))
        return spans

    def _drops(self, messages: list[Message], tools: list[Tool] | None, text: str, said: dict[int, str]) -> bool:
        """Whether something in the row is not in its text. Raises TemplateFault for calls, and for answers of which
        nothing is left: that would teach the model to say nothing."""
        drops = any(not _holds(text, tool["function"]["name"]) for tool in tools or [])
        for index, message in enumerate(messages):
            answer = message["role"] == "assistant"
            written = said.get(index, "") if answer else text
            held = _holds(written, message.get("content") or "")
            lost = [] if all(_holds(written, call["function"]["name"]) for call in _calls(message)) else ["tool_calls"]
            if answer and not held and (not self._writes_answers or not written.replace(self.end_of_turn, "").strip()):
                lost.append("content")
            if lost:
                fault = f"the chat template leaves out messages[{index}].{lost[0]}, so it could not be learned"
                raise TemplateFault(Code.TEMPLATE_DROPS_TEXT, fault)
            drops = drops or not held or not _holds(written, message.get("reasoning_content") or "")
        return drops

    def _adapted(self, messages: list[Message]) -> list[Message]:
        """Messages under the names templates know: developer messages are system messages to most of them, reasoning
        goes by two names, as in transformers, and some want arguments as text."""
        adapted = []
        for message in messages:
            if message["role"] == "developer" and not self._knows_developer:
                message = {**message, "role": "system"}
            if (reasoning := message.get("reasoning_content")) is not None:
                message = {"thinking": reasoning, **message}
            if _calls(message) and self._wants_text:
                message = {**message, "tool_calls": [_with_text(call) for call in _calls(message)]}
            adapted.append(message)
        return adapted

    def _render(self, messages: list[Message], tools: list[Tool] | None, generate: bool) -> str:
        try:
            text = self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generate, **self._special
            )
        except jinja2.TemplateError as error:
            raise TemplateFault(Code.TEMPLATE_ERROR, f"the chat template refuses the row: {error.message}") from None
        except RecursionError:
            raise TemplateFault(Code.TEMPLATE_ERROR, "the chat template recurses without end") from None
        except _FAULTS as error:
            message = f"the chat template fails on the row: {type(error).__name__}: {error}"
            raise TemplateFault(Code.TEMPLATE_ERROR, message[:500]) from None
        if len(text) > MAX_CHARACTERS:
            message = f"the chat template writes {len(text):,} characters for the row; {MAX_CHARACTERS:,} are the most"
            raise TemplateFault(Code.TEMPLATE_ERROR, message)
        return text

    @cached_property
    def end_of_turn(self) -> str:
        """The text an assistant turn ends with, so that generation can be told to stop there; may be empty."""
        return self.text(_PROBE).rpartition(_ANSWER)[2].strip() if self._writes_answers else ""

    @cached_property
    def _wants_text(self) -> bool:
        """Whether calls' arguments must be the string of JSON that OpenAI's format has: those that put a string
        together with them fail on an object (DeepSeek's own)."""
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"at": "here"}}}
        fails = []
        for one in (call, _with_text(call)):
            message: Message = {"role": "assistant", "content": "", "tool_calls": [one]}
            try:
                self._render([*_PROBE[:1], message], None, False)
            except TemplateFault:
                fails.append(one)
        return fails == [call]

    @cached_property
    def _writes_answers(self) -> bool:
        """Not so those that want content as a list of parts."""
        return _ANSWER in self.text(_PROBE)

    @cached_property
    def _generation_prompt(self) -> str:
        asked, told = self.text(_PROBE[:1], generate=True), self.text(_PROBE[:1])
        return asked[len(told) :] if asked.startswith(told) else ""


_ANSWER = "answer"
_PROBE: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the outermost marked pairs as offsets into it."""
    parts, pairs, stack, position, length = [], [], [], 0, 0
    for mark in _MARK.finditer(marked):
        parts.append(marked[position : mark.start()])
        length += mark.start() - position
        position = mark.end()
        if mark.group() == sandbox.OPEN:
            stack.append(length)
        elif stack:
            start = stack.pop()
            if not stack:
                pairs.append((start, length))
    parts.append(marked[position:])
    return "".join(parts), pairs


def _beginning(end_of_turn: str, text: str) -> str:
    """The end of turn, or that part of it that earlier turns end with: some templates write more after the last."""
    if text.startswith(end_of_turn):
        return end_of_turn
    shared = next((at for at, (one, other) in enumerate(zip(end_of_turn, text, strict=False)) if one != other), 0)
    # Up to the last white space: what comes after it may be half of a token.
    return re.sub(r"\s*\S*$", "", end_of_turn[:shared])


def _calls(message: Message) -> list[Message]:
    return message.get("tool_calls") or []


def _with_text(call: Message) -> Message:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _said(text: str, spans: list[Span]) -> dict[int, str]:
    said: dict[int, str] = {}
    for start, end, index in spans:
        said[index] = said.get(index, "") + text[start:end]
    return said


def _holds(text: str, part: str) -> bool:
    """Whether the part is in the text, but for white space, or as JSON has it."""
    if part in text or part.strip() in text:
        return True
    return "".join(part.split()) in "".join(text.split()) or json.dumps(part, ensure_ascii=False)[1:-1] in text
