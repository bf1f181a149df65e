"""Rows as one base model sees them: how long they are, and what would be cut, left out or would teach nothing."""

from bisect import bisect_right
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from core.formats.findings import KEPT, Bin, Fate, Lengths, Lines, Seen
from core.formats.report import Fault
from core.formats.rows import Row
from core.formats.survey import Findings, quantile
from core.options import JobOptions
from worker.prepare import spool, tokenise
from worker.prepare.folder import Facts
from worker.prepare.spool import Tokens
from worker.prepare.tokenise import Encoder, RowFault

# Bins of a histogram begin at powers of two and halfway between them.
_EDGES = [0, *(base << power for power in range(3, 30) for base in (2, 3))]


class Lens(tokenise.Batches):
    """``add`` rows, then ``finish``. What names a line goes to ``findings`` as well, as of the file ``of``."""

    def __init__(
        self, model: str, encoder: Encoder, facts: Facts, options: JobOptions, findings: Findings, of: str = "data"
    ) -> None:
        super().__init__()
        self._encoder, self._facts = encoder, facts
        self._findings = findings
        self._about = {"model": model} if of == "data" else {"model": model, "file": of}
        self._limit = limit(options, facts)
        self._lengths: Counter[int] = Counter()
        self._seen = Seen(
            model=model,
            chat_template=template_origin(options, facts),
            context_length=facts.context_length,
            max_length=self._limit,
            over_length=options.data.over_length,
            train_on=options.train_on,
            examples=0,
            tokens=0,
            trained_tokens=0,
            lengths=None,
            truncated=Lines(),
            dropped=Lines(),
            masked=Lines(),
            straddling=Lines(),
            fault_count=0,
            faults=[],
        )

    def finish(self) -> Seen:
        self.flush()
        found = self._encoder.straddling
        self._seen.straddling = Lines(count=found.count, lines=found.lines)
        remarks = self._encoder.remarks.items()
        self._seen.remarks = {str(code): Lines(count=named.count, lines=named.lines) for code, named in remarks}
        self._seen.lengths = _lengths(self._lengths) if self._lengths else None
        return self._seen

    def _take(self, rows: list[tuple[int, Row]]) -> None:
        faults: list[RowFault] = []
        for line, _, parts in self._encoder.encode_rows(rows, faults):
            self._measure(line, parts)
        for fault in faults:
            self._refuse(fault)

    def _refuse(self, refused: RowFault) -> None:
        fault = Fault(line=refused.line, code=refused.code, message=refused.message)
        self._seen.fault_count += 1
        if len(self._seen.faults) < KEPT:
            self._seen.faults.append(fault)
        self._findings.fault(fault, "template_fault", **self._about)

    def _measure(self, line: int, parts: list[Tokens]) -> None:
        """One row, of two parts when it is a pair of answers."""
        seen = self._seen
        length = max(len(part.ids) for part in parts)
        self._lengths[length] += 1
        match fate(parts, self._limit, seen.over_length):
            case "masked":
                self._name("masked", seen.masked, line)
                return
            case "dropped":
                self._name("dropped", seen.dropped, line, tokens=length)
                return
            case "truncated":
                self._name("truncated", seen.truncated, line, tokens=length)
        seen.examples += 1
        for part in parts:
            self._count(part)

    def _count(self, part: Tokens) -> None:
        learned = taught(part)
        if len(learned) <= self._limit:
            self._seen.tokens += len(learned)
            self._seen.trained_tokens += int(learned.sum())
            return
        for start, end in spool.cut(learned, self._limit, self._facts.bos_token_id is not None):
            self._seen.tokens += end - start
            self._seen.trained_tokens += int(learned[start:end].sum())

    def _name(self, kind: str, lines: Lines, line: int, **facts: object) -> None:
        lines.add(line)
        self._findings.add(kind, line, **facts, **self._about)


def limit(options: JobOptions, facts: Facts) -> int:
    """The most tokens a row may have, before anything is known of the rows."""
    return facts.context_length if options.max_length == "auto" else options.max_length


def template_origin(options: JobOptions, facts: Facts) -> str:
    return "given" if options.chat_template != "base" else facts.template_origin


def fate(parts: list[Tokens], limit: int, over_length: str) -> Fate:
    """What becomes of a row of these parts."""
    if not all(taught(part)[1:].any() for part in parts):
        return "masked"
    if max(len(part.ids) for part in parts) <= limit:
        return "kept"
    return "truncated" if over_length == "truncate" else "dropped"


def taught(part: Tokens) -> NDArray[np.uint8]:
    """1 where a token is learned."""
    return ((part.completion > 0) & (part.weight > 0)).astype(np.uint8)


def _lengths(counts: Counter[int]) -> Lengths:
    rows = counts.total()
    bins = Counter[int]()
    for length, count in counts.items():
        bins[bisect_right(_EDGES, length) - 1] += count
    return Lengths(
        shortest=min(counts),
        mean=round(sum(length * count for length, count in counts.items()) / rows, 1),
        median=quantile(counts, 0.5),
        p90=quantile(counts, 0.9),
        p99=quantile(counts, 0.99),
        longest=max(counts),
        histogram=[
            Bin(least=_EDGES[index], most=_EDGES[index + 1] - 1, rows=bins[index])
            for index in range(min(bins), max(bins) + 1)
        ],
    )
