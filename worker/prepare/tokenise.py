"""Rows -> tokens. What is learned is read from character offsets of one tokenisation.

Knows nothing about torch: ``tokenizers`` and numpy do the work.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from core.errors import JobError
from core.formats import templates
from core.formats.conversation import Message
from core.formats.prompts import Prompt
from core.formats.report import Code
from core.formats.rows import Chat, Completion, Labelled, Preference, Row, Text, canonical
from core.options import JobOptions
from worker.prepare import limits
from worker.prepare.folder import Facts, Named
from worker.prepare.spool import LINES_KEPT, Spool, Tokens, note

TrainOn = Literal["assistant", "last_assistant", "all"]
# Rows tokenised together: enough to keep every core busy, and never more text than memory is there for.
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 2_000_000
_QUESTIONS = 64
"""Up to so many single offsets are asked for one at a time."""


class RowFault(ValueError):
    """The template can't be used with the row at ``line``."""

    def __init__(self, line: int, code: Code, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A row as text: what is learned and what has another weight than 1, in characters; BOS and EOS to be added."""

    text: str
    learned: list[tuple[int, int]]
    weights: list[tuple[int, int, float]]
    plain: bool


class Explained(NamedTuple):
    text: str
    learned: list[tuple[int, int]]
    """Characters of the text."""
    tokens: Tokens
    texts: list[str]
    """Of each token."""


@dataclass(frozen=True, slots=True)
class _Answered(Chat):
    """A conversation of which only what comes from message ``since`` on is learned."""

    since: int = 0


def parts_of(row: Row) -> list[Row]:
    """What is tokenised of a row. Methods that compare answers train on the prompt with each of them."""
    match row:
        case Preference():
            answers = (row.preferred, row.rejected)
            return [_Answered([*row.messages, *answer], row.tools, len(row.messages)) for answer in answers]
        case Labelled(prompt=list() as prompt, completion=list() as completion):
            return [_Answered([*prompt, *completion], row.tools, len(prompt))]
        case Labelled():
            return [Completion(str(row.prompt), str(row.completion))]
        case _:
            return [row]


_loaded: dict[Path, Tokenizer] = {}


def load(path: Path) -> None:
    """Reads a tokenizer ahead of the task that will want it: large ones take more than a second."""
    _loaded[path] = _read(path)


def _take(path: Path) -> Tokenizer:
    return _loaded.pop(path) if path in _loaded else _read(path)


def _read(path: Path) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Encoder:
    """One base model's tokenizer and one chat template."""

    def __init__(self, base: Path, facts: Facts, template: str, train_on: TrainOn = "assistant") -> None:
        self._tokenizer = _take(base / "tokenizer.json")
        # Jinja computes what is constant in a template when it compiles it: that takes time too.
        with limits.row_time():
            self._template = templates.Template(template, facts.special_tokens)
        self._train_on = train_on
        eos = facts.special_tokens.get("eos_token")
        bos = facts.special_tokens.get("bos_token") if facts.adds_bos else None
        self._eos = self._tokenizer.token_to_id(eos) if eos else None
        self._bos = self._tokenizer.token_to_id(bos) if bos else None
        self.straddling = Named()
        """Rows in which a token reaches from the prompt into what is learned, so that its first characters aren't."""
        self.remarks: dict[Code, Named] = {}
        """What the template does to rows that their owner should know, by its code."""

    def encode(self, rows: Iterable[tuple[int, Row]], faults: "list[RowFault] | None" = None) -> list[Tokens]:
        """Rows with their lines -> tokens, in one batch. Raises RowFault, or puts it to the ``faults`` and goes on."""
        lines, drawn = [], []
        for line, row in rows:
            try:
                drawn.append(self._draw(line, row))
            except RowFault as fault:
                if faults is None:
                    raise
                faults.append(fault)
                continue
            lines.append(line)
        # The template has written BOS itself, as in transformers; plain text gets it in `_tokens`.
        encodings = self._tokenizer.encode_batch([one.text for one in drawn], add_special_tokens=False)
        return [self._tokens(*each) for each in zip(lines, drawn, encodings, strict=True)]

    def encode_rows(
        self, rows: list[tuple[int, Row]], faults: list[RowFault]
    ) -> Iterator[tuple[int, Row, list[Tokens]]]:
        """Each good row with the tokens of its parts; of each bad one the first fault goes to ``faults``."""
        parts = [(line, row, parts_of(row)) for line, row in rows]
        found: list[RowFault] = []
        encoded = iter(self.encode(((line, part) for line, _, several in parts for part in several), found))
        refused: dict[int, list[RowFault]] = {}
        for fault in found:
            refused.setdefault(fault.line, []).append(fault)
        for line, row, several in parts:
            wrong = refused.get(line, [])
            tokens = [next(encoded) for _ in range(len(several) - len(wrong))]
            if wrong:
                faults.append(wrong[0])
            else:
                yield line, row, tokens

    def prompt(self, prompt: Prompt, *, plain: bool) -> list[int]:
        """What stands before an answer to it. ``plain``: a text is the beginning of one, not what a user says."""
        if isinstance(prompt, str) and plain:
            ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
            return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        with limits.row_time():
            text = self._template.text(messages, generate=True)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template ends an answer with. None where it writes text that an answer might hold."""
        with limits.row_time():
            ids = self._tokenizer.encode(self._template.end_of_turn, add_special_tokens=False).ids
        return ids[0] if ids and ids[0] in self._tokenizer.get_added_tokens_decoder() else None

    def explain(self, line: int, row: Row) -> Explained:
        """One row with the text of each token, for people. Raises RowFault."""
        drawn = self._draw(line, row)
        encoding = self._tokenizer.encode(drawn.text, add_special_tokens=False)
        tokens = self._tokens(line, drawn, encoding)
        texts = [drawn.text[start:end] for start, end in encoding.offsets]
        # BOS and EOS of plain text are not in it.
        if len(tokens.ids) > len(texts) and self._bos is not None and tokens.ids[0] == self._bos:
            texts.insert(0, "")
        texts += [""] * (len(tokens.ids) - len(texts))
        named = [text or self._tokenizer.id_to_token(int(id)) or "" for text, id in zip(texts, tokens.ids, strict=True)]
        return Explained(drawn.text, drawn.learned, tokens, named)

    def _draw(self, line: int, row: Row) -> _Drawn:
        try:
            with limits.row_time():
                return self._text(line, row)
        except templates.TemplateFault as fault:
            raise RowFault(line, fault.code, fault.message) from None

    def _text(self, line: int, row: Row) -> _Drawn:
        match row:
            case Chat():
                return self._chat(line, row)
            case Completion():
                text = row.prompt + row.completion
                learned = 0 if self._train_on == "all" else len(row.prompt)
                return _Drawn(text, [(learned, len(text))], [], plain=True)
            case Text():
                return _Drawn(row.text, [(0, len(row.text))], [], plain=True)
            case Preference() | Labelled():
                raise AssertionError("rows of answers are encoded by their parts")

    def _chat(self, line: int, row: Chat) -> _Drawn:
        rendered = self._template.render(row.messages, row.tools)
        for code in rendered.remarks:
            note(self.remarks.setdefault(code, Named()), line)
        spans = rendered.spans
        if isinstance(row, _Answered):
            spans = [span for span in spans if span.message >= row.since]
        elif self._train_on == "last_assistant" and spans:
            last = max(span.message for span in spans)
            spans = [span for span in spans if span.message == last]
        learned = [(0, len(rendered.text))] if self._train_on == "all" else [(s.start, s.end) for s in spans]
        return _Drawn(rendered.text, learned, self._weights(row, rendered), plain=False)

    def _weights(self, row: Chat, rendered: templates.Rendered) -> list[tuple[int, int, float]]:
        """A message's weight holds for all its text, role header included."""
        weights = [message.get("weight", 1.0) for message in row.messages]
        if all(weight == 1.0 for weight in weights):
            return []
        try:
            extents = self._template.extents(row.messages, row.tools, rendered.text)
        except templates.TemplateFault:
            if any(_weighs(message) and message["role"] != "assistant" for message in row.messages):
                raise
            # Extents can't be told, but the marks still say what each assistant message says.
            return [(span.start, span.end, weights[span.message]) for span in rendered.spans]
        return [(start, end, weight) for (start, end), weight in zip(extents, weights, strict=True) if weight != 1.0]

    def _tokens(self, line: int, drawn: _Drawn, encoding: Encoding) -> Tokens:
        ids = encoding.ids
        count = len(ids)
        head = self._bos if drawn.plain and self._bos is not None and ids[:1] != [self._bos] else None
        if head is not None:
            ids.insert(0, head)
        tail = self._eos if drawn.plain and self._eos is not None and ids[-1:] != [self._eos] else None
        if tail is not None:
            ids.append(tail)
        completion = np.zeros(len(ids), dtype=np.uint8)
        weight = np.ones(len(ids), dtype=np.float32)
        # Views of what the text itself became.
        first = 0 if head is None else 1
        said, weighed = completion[first : first + count], weight[first : first + count]
        spans = _Spans(encoding, len(drawn.text), 2 * (len(drawn.learned) + len(drawn.weights)))
        for start, end in drawn.learned:
            # A token that began before the span is part prompt: at inference the prompt would end inside it.
            said[spans.beginning_in(start, end)] = 1
        if any(spans.straddled(start) for start, _ in drawn.learned):
            note(self.straddling, line)
        for start, end, value in drawn.weights:
            weighed[spans.beginning_in(start, end)] = value
        if tail is not None:
            completion[-1] = 1
        return Tokens(np.array(ids, dtype=np.int32), weight, completion)


class _Spans:
    """Which tokens belong to spans of characters.

    Nearly every span begins and ends where a token begins, and the tokenizer can be asked for those few tokens. A list
    of all its offsets takes longer to make than the rest of a row, so it is made only when a span needs it.
    """

    def __init__(self, encoding: Encoding, characters: int, questions: int) -> None:
        self._encoding = encoding
        self._known: dict[int, int | None] = {0: 0, characters: len(encoding)}
        # A question takes the time of a walk over the row.
        self._ask = questions <= _QUESTIONS

    def beginning_in(self, start: int, end: int) -> slice | NDArray[np.bool_]:
        first, last = self._first(start), self._first(end)
        if first is not None and last is not None:
            return slice(first, last)
        starts = self._offsets[:, 0]
        return (starts >= start) & (starts < end)

    def straddled(self, character: int) -> bool:
        """Whether a token reaches over the boundary before this character."""
        if self._first(character) is not None:
            return False
        starts, ends = self._offsets[:, 0], self._offsets[:, 1]
        return bool(((starts < character) & (ends > character)).any())

    def _first(self, character: int) -> int | None:
        """The first token that begins at exactly this character, if one does."""
        if character not in self._known:
            token = self._encoding.char_to_token(character) if self._ask else None
            extent = self._encoding.token_to_chars(token) if token is not None else None
            self._known[character] = token if extent is not None and extent[0] == character else None
        return self._known[character]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.array(self._encoding.offsets, dtype=np.int64).reshape(-1, 2)


def template_text(base: Path, options: JobOptions) -> str:
    given = options.chat_template
    return (base / "chat_template.jinja").read_text("utf-8") if given == "base" else given


def encoder(base: Path, facts: Facts, options: JobOptions) -> Encoder:
    """As a job with these options has it; raises JobError for a template that can't be used."""
    try:
        return Encoder(base, facts, template_text(base, options), options.train_on)
    except templates.TemplateFault as fault:
        raise JobError(fault.message, code="invalid_chat_template", param="ext.chat_template") from None


def _weighs(message: Message) -> bool:
    return bool(message.get("weight", 1.0) != 1.0)


class Batches(ABC):
    """Collects rows as the checker finds them, and takes as many together as are worth tokenising at once."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Row]] = []
        self._characters = 0

    def add(self, line: int, row: Row) -> None:
        self._rows.append((line, row))
        self._characters += characters(row)
        if len(self._rows) == _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        rows, self._rows, self._characters = self._rows, [], 0
        if rows:
            self._take(rows)

    @abstractmethod
    def _take(self, rows: list[tuple[int, Row]]) -> None: ...


class Batcher(Batches):
    """Spools the rows as tokens."""

    def __init__(
        self,
        encoder: Encoder,
        spool: Spool,
        source: int = 0,
        digest_key: bytes | None = None,
        *,
        singly: bool = False,
    ) -> None:
        """``singly``: of a pair of answers each is a row of its own."""
        super().__init__()
        self._encoder, self._spool = encoder, spool
        self._source, self._key, self._singly = source, digest_key, singly
        self.faulty = 0
        """Rows that the template can't write."""
        self.faults: list[RowFault] = []
        """The first of them."""

    def _take(self, rows: list[tuple[int, Row]]) -> None:
        faults: list[RowFault] = []
        for line, row, parts in self._encoder.encode_rows(rows, faults):
            digest = self._digest(row)
            match row:
                case Preference() if self._singly:
                    for part, wanted in zip(parts, (True, False), strict=True):
                        self._spool.add(line, [part], self._source, digest, wanted)
                case Preference():
                    self._spool.add(line, parts, self._source, digest, label=True)
                case Labelled():
                    self._spool.add(line, parts, self._source, digest, row.label)
                case _:
                    self._spool.add(line, parts, self._source, digest)
        self.faulty += len(faults)
        self.faults += faults[: LINES_KEPT - len(self.faults)]

    def _digest(self, row: Row) -> int | None:
        if self._key is None:
            return None
        return int.from_bytes(hashlib.blake2b(canonical(row), digest_size=8, key=self._key).digest(), "little")


def characters(row: Row) -> int:
    match row:
        case Chat():
            return sum(len(message["content"]) for message in row.messages)
        case Completion():
            return len(row.prompt) + len(row.completion)
        case Text():
            return len(row.text)
        case Preference() | Labelled():
            return sum(characters(part) for part in parts_of(row))
