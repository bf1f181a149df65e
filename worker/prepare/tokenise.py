"""Rows -> the token files of a job folder. What is learned is read from character offsets of one tokenisation.

Knows nothing about torch: ``tokenizers`` and numpy do the work, and rows go through disk, not memory.
"""

import hashlib
import json
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from core.cost import Sample
from core.errors import JobError
from core.formats import templates
from core.formats.conversation import Message
from core.formats.report import Code
from core.formats.rows import Chat, Completion, Labelled, Preference, Row, Text, canonical
from core.options import JobOptions
from worker import token_file
from worker.prepare import limits
from worker.prepare.folder import Counts, Facts, Named

TrainOn = Literal["assistant", "last_assistant", "all"]
LINES_KEPT = 100
_SAMPLED = 512
"""Rows whose lengths stand for all: their mean is off by less than a twentieth of the spread of the lengths."""
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
class Tokens:
    """One row: ids int32, message weights float32, completion uint8, all of one length."""

    ids: NDArray[np.int32]
    weight: NDArray[np.float32]
    completion: NDArray[np.uint8]


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
                message = f"{type(row).__name__.lower()} rows are not for supervised training"
                raise templates.TemplateFault(Code.MIXED_FORMATS, message)

    def _chat(self, line: int, row: Chat) -> _Drawn:
        rendered = self._template.render(row.messages, row.tools)
        for code in rendered.remarks:
            note(self.remarks.setdefault(code, Named()), line)
        spans = rendered.spans
        if self._train_on == "last_assistant" and spans:
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


def note(named: Named, line: int, source: int = 0) -> None:
    named.count += 1
    if source:
        named.mixed += 1
    elif len(named.lines) < LINES_KEPT:
        named.lines.append(line)


_PARTS: tuple[tuple[str, str, Any], ...] = (
    ("input_ids", "I32", np.int32),
    ("message_weight", "F32", np.float32),
    ("completion", "U8", np.uint8),
)


@dataclass
class Spool:
    """Tokens of a whole file on disk, before it is known how long a row may be. Use as a context manager."""

    folder: Path
    name: str
    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    sources: "array[int]" = field(default_factory=lambda: array("B"))
    """Which file each row is of."""
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of each row's content, where somebody asked for them."""
    learned: "array[int]" = field(default_factory=lambda: array("q"))
    """Tokens of each row's completions."""
    masked: Named = field(default_factory=Named)

    def __enter__(self) -> "Spool":
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(self._path(part).open("wb")) for part, _, _ in _PARTS]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for name, _, _ in _PARTS:
            self._path(name).unlink(missing_ok=True)

    def _path(self, part: str) -> Path:
        return self.folder / f"{self.name}.{part}.spool"

    def add(self, line: int, tokens: Tokens, source: int = 0, digest: int | None = None) -> None:
        """Keeps a row, unless nothing in it would be learned: such a row is only named."""
        learned = int(np.count_nonzero(tokens.completion))
        # The first token has nothing before it that could predict it.
        if not (tokens.completion[1:] * tokens.weight[1:]).any():
            note(self.masked, line, source)
            return
        columns: tuple[NDArray[Any], ...] = (tokens.ids, tokens.weight, tokens.completion)
        for file, values in zip(self._files, columns, strict=True):
            file.write(values.data)
        self.offsets.append(self.offsets[-1] + len(tokens.ids))
        self.lines.append(line)
        self.learned.append(learned)
        self.sources.append(source)
        if digest is not None:
            self.digests.append(digest)

    @property
    def lengths(self) -> NDArray[np.int64]:
        offsets = np.frombuffer(self.offsets, dtype=np.int64)
        return offsets[1:] - offsets[:-1]

    def shares(self, chosen: NDArray[np.int64] | None = None) -> tuple[int, int]:
        """Tokens of prompts and of completions, before anything is cut, in these rows or in all."""
        lengths, learned = self.lengths, np.frombuffer(self.learned, dtype=np.int64)
        if chosen is not None:
            lengths, learned = lengths[chosen], learned[chosen]
        completion = int(learned.sum())
        return int(lengths.sum()) - completion, completion

    def write(
        self,
        out: Path,
        *,
        max_length: int,
        over_length: Literal["error", "truncate", "drop"],
        keep_first: bool,
        chosen: NDArray[np.int64] | None = None,
    ) -> Counts:
        """The token file, rows longer than ``max_length`` cut or left out (``error`` is the caller's to refuse).

        ``keep_first``: the first token is BOS, which a cut at the front must not take away. ``chosen``: which rows,
        and how often each; all of them once if it isn't given.
        """
        for file in self._files:
            file.flush()
        rows = _Rows(self, max_length, over_length, keep_first, chosen)
        _write_safetensors(out, rows)
        return Counts(
            examples=len(rows.lines),
            tokens=rows.offsets[-1],
            trained_tokens=rows.trained,
            longest=int((self.lengths if chosen is None else self.lengths[chosen]).max(initial=0)),
            truncated=rows.truncated,
            dropped=rows.dropped,
            masked=self.masked,
            sha256=_sha256(out),
        )


class _Rows:
    """Which slices of a spool go into the token file."""

    def __init__(
        self, spool: Spool, max_length: int, over_length: str, keep_first: bool, chosen: NDArray[np.int64] | None
    ) -> None:
        self.parts = {
            part: np.memmap(spool._path(part), dtype=dtype, mode="r") if spool.lines else np.zeros(0, dtype)
            for part, _, dtype in _PARTS
        }
        self.offsets = array("q", [0])
        self.lines = array("q")
        self.slices: list[tuple[int, int]] | None = None
        self.truncated, self.dropped = Named(), Named()
        self.trained = 0
        lengths = spool.lengths
        if chosen is None and (not len(lengths) or lengths.max() <= max_length):
            # Nothing to cut: the spool is the file.
            self.offsets, self.lines = spool.offsets, spool.lines
        else:
            self._select(spool, range(len(lengths)) if chosen is None else chosen, max_length, over_length, keep_first)
        self.trained = self._trained()

    def _select(self, spool: Spool, chosen: Iterable[int], max_length: int, over_length: str, keep_first: bool) -> None:
        self.slices = []
        for index in map(int, chosen):
            line, source = spool.lines[index], spool.sources[index]
            start, end = spool.offsets[index], spool.offsets[index + 1]
            if end - start > max_length and over_length != "truncate":
                note(self.dropped, line, source)
                continue
            if end - start > max_length:
                note(self.truncated, line, source)
                learned = self.parts["completion"][start:end] * (self.parts["message_weight"][start:end] > 0)
                kept = cut(learned, max_length, keep_first)
                self.slices.extend((start + first, start + last) for first, last in kept)
            else:
                self.slices.append((start, end))
            self.offsets.append(self.offsets[-1] + min(end - start, max_length))
            self.lines.append(line)

    def chunks(self, part: str) -> Iterable[NDArray[Any]]:
        values = self.parts[part]
        if self.slices is None:
            for start in range(0, len(values), 1 << 20):
                yield values[start : start + (1 << 20)]
        else:
            for start, end in self.slices:
                yield values[start:end]

    def _trained(self) -> int:
        pairs = zip(self.chunks("completion"), self.chunks("message_weight"), strict=True)
        return sum(int(np.count_nonzero(completion * weight)) for completion, weight in pairs)


def sample(path: Path) -> Sample:
    """Lengths of some rows of a token file, in an order that has nothing to do with the file's."""
    parts = token_file.mapped(path)
    offsets, lengths = parts["offsets"], np.diff(parts["offsets"])

    def size(row: int) -> tuple[int, int]:
        part = slice(int(offsets[row]) + 1, int(offsets[row + 1]))
        return int(lengths[row]), int(np.count_nonzero(parts["completion"][part] * parts["message_weight"][part]))

    drawn = np.random.default_rng(0).permutation(len(lengths))[:_SAMPLED]
    return Sample(rows=len(lengths), sizes=[size(int(row)) for row in drawn], longest=size(int(lengths.argmax())))


def cut(taught: NDArray[np.uint8], length: int, keep_first: bool) -> list[tuple[int, int]]:
    """Which slices of a row of more than ``length`` tokens are kept; ``taught`` is 1 where a token is learned.

    The beginning is kept, unless too little of the first answer would then be left: at least half of ``length`` or
    the whole answer. In that case the prompt gives way from its front, BOS excepted.
    """
    learned = np.flatnonzero(taught)
    first = int(learned[0]) if len(learned) else 0
    after = np.flatnonzero(taught[first:] == 0)
    answer = int(after[0]) if len(after) else len(taught) - first
    end = max(length, first + min(answer, length // 2))
    head = 1 if keep_first and end > length else 0
    start = end - length + head
    return [(0, head), (start, end)] if head else [(start, end)]


def _write_safetensors(out: Path, rows: _Rows) -> None:
    """The format by hand (an 8-byte length, a JSON header, the tensors): the library wants all of it in memory."""
    count, total = len(rows.lines), rows.offsets[-1]
    header: dict[str, object] = {}
    position = 0
    # Wide types first, so that every tensor is aligned.
    for name, kind, shape, width in (
        ("offsets", "I64", count + 1, 8),
        ("lines", "I64", count, 8),
        *((part, kind, total, np.dtype(dtype).itemsize) for part, kind, dtype in _PARTS),
    ):
        header[name] = {"dtype": kind, "shape": [shape], "data_offsets": [position, position + shape * width]}
        position += shape * width
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.write(rows.offsets.tobytes())
        file.write(rows.lines.tobytes())
        for part, _, _ in _PARTS:
            for values in rows.chunks(part):
                file.write(values.tobytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

    def __init__(self, encoder: Encoder, spool: Spool, source: int = 0, digest_key: bytes | None = None) -> None:
        super().__init__()
        self._encoder, self._spool = encoder, spool
        self._source, self._key = source, digest_key
        self.faulty = 0
        """Rows that the template can't write."""
        self.faults: list[RowFault] = []
        """The first of them."""

    def _take(self, rows: list[tuple[int, Row]]) -> None:
        faults: list[RowFault] = []
        encoded = self._encoder.encode(rows, faults)
        bad = {fault.line for fault in faults}
        good = [(line, row) for line, row in rows if line not in bad] if bad else rows
        for (line, row), tokens in zip(good, encoded, strict=True):
            self._spool.add(line, tokens, self._source, self._digest(row))
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
            return 0
