"""Tokens of a whole file on disk, and the token file that is written from them once it is known how long a row may be.

Knows nothing about torch; rows go through disk, not memory.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.cost import Sample
from worker import token_file
from worker.prepare.folder import Counts, Named

LINES_KEPT = 100
_SAMPLED = 512
"""Rows whose lengths stand for all: their mean is off by less than a twentieth of the spread of the lengths."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: ids int32, message weights float32, completion uint8, all of one length."""

    ids: NDArray[np.int32]
    weight: NDArray[np.float32]
    completion: NDArray[np.uint8]


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
    middles: "array[int]" = field(default_factory=lambda: array("q"))
    """Of a row with a wanted and an unwanted answer, the tokens of the first; else 0."""
    labels: "array[int]" = field(default_factory=lambda: array("B"))
    """Whether the first answer of each row is wanted; empty where rows are not of answers that are judged."""
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

    def add(
        self, line: int, parts: list[Tokens], source: int = 0, digest: int | None = None, label: bool | None = None
    ) -> None:
        """Keeps a row, unless nothing in one of its parts would be learned: such a row is only named."""
        learned = sum(int(np.count_nonzero(tokens.completion)) for tokens in parts)
        # The first token has nothing before it that could predict it.
        if not all((tokens.completion[1:] * tokens.weight[1:]).any() for tokens in parts):
            note(self.masked, line, source)
            return
        for tokens in parts:
            columns: tuple[NDArray[Any], ...] = (tokens.ids, tokens.weight, tokens.completion)
            for file, values in zip(self._files, columns, strict=True):
                file.write(values.data)
        self.offsets.append(self.offsets[-1] + sum(len(tokens.ids) for tokens in parts))
        self.middles.append(len(parts[0].ids) if len(parts) > 1 else 0)
        if label is not None:
            self.labels.append(label)
        self.lines.append(line)
        self.learned.append(learned)
        self.sources.append(source)
        if digest is not None:
            self.digests.append(digest)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row; of one with two answers, the longer half."""
        middles = np.frombuffer(self.middles, dtype=np.int64)
        longer: NDArray[np.int64] = np.maximum(middles, self._sizes - middles)
        return longer

    @property
    def paired(self) -> bool:
        return bool(np.frombuffer(self.middles, dtype=np.int64).any())

    @property
    def _sizes(self) -> NDArray[np.int64]:
        return np.diff(np.frombuffer(self.offsets, dtype=np.int64))

    def parts(self, index: int) -> list[tuple[int, int]]:
        """Where a row's tokens lie, those of each answer."""
        start, middle, end = self.offsets[index], self.middles[index], self.offsets[index + 1]
        return [(start, start + middle), (start + middle, end)] if middle else [(start, end)]

    def shares(self, chosen: NDArray[np.int64] | None = None) -> tuple[int, int]:
        """Tokens of prompts and of completions, before anything is cut, in these rows or in all."""
        lengths, learned = self._sizes, np.frombuffer(self.learned, dtype=np.int64)
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
            examples=rows.examples,
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
        self.labels = array("B")
        self.examples = 0
        self.slices: list[tuple[int, int]] | None = None
        self.truncated, self.dropped = Named(), Named()
        self.trained = 0
        lengths = spool.lengths
        if chosen is None and not spool.paired and (not len(lengths) or lengths.max() <= max_length):
            # Nothing to cut: the spool is the file.
            self.offsets, self.lines, self.labels = spool.offsets, spool.lines, spool.labels
            self.examples = len(spool.lines)
        else:
            self._select(spool, range(len(lengths)) if chosen is None else chosen, max_length, over_length, keep_first)
        self.trained = self._trained()

    def _select(self, spool: Spool, chosen: Iterable[int], max_length: int, over_length: str, keep_first: bool) -> None:
        self.slices = []
        for index in map(int, chosen):
            line, source, parts = spool.lines[index], spool.sources[index], spool.parts(index)
            long = max(end - start for start, end in parts) > max_length
            if long and over_length != "truncate":
                note(self.dropped, line, source)
                continue
            if long:
                note(self.truncated, line, source)
            self.examples += 1
            kept = self._cut(parts, max_length, keep_first) if long else [[part] for part in parts]
            for number, slices in enumerate(kept):
                self.slices += slices
                self.offsets.append(self.offsets[-1] + sum(end - start for start, end in slices))
                self.lines.append(line)
                if spool.labels:
                    self.labels.append(spool.labels[index] if number == 0 else 0)

    def _cut(self, parts: list[tuple[int, int]], max_length: int, keep_first: bool) -> list[list[tuple[int, int]]]:
        """What is kept of each answer's tokens. Two answers to one prompt keep the same of it."""
        cuts = []
        for start, end in parts:
            learned = self.parts["completion"][start:end] * (self.parts["message_weight"][start:end] > 0)
            cuts.append(cut(learned, max_length, keep_first) if end - start > max_length else [(0, end - start)])
        deepest = max(cuts, key=lambda slices: slices[-1][0])
        head = deepest[0][1] if len(deepest) > 1 else 0
        first = deepest[-1][0]
        kept = []
        for start, end in parts:
            last = min(end - start, first + max_length - head)
            slices = [(0, head), (first, last)] if head else [(first, last)]
            kept.append([(start + a, start + b) for a, b in slices])
        return kept

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
        *((("label", "U8", count, 1),) if rows.labels else ()),
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
        file.write(rows.labels.tobytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
