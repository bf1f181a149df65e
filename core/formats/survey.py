"""A data file read once from end to end: everything worth knowing about it, in memory that doesn't grow with it.

Findings that name a line go to ``findings.jsonl`` as they are found; the survey lists the first of each kind.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

from core.formats import fingerprints, likeness
from core.formats.findings import (
    KEPT,
    Like,
    Likes,
    Lines,
    Odd,
    Outliers,
    Repeated,
    Seen,
    Survey,
    Twin,
    Twins,
    Validation,
)
from core.formats.fingerprints import Fingerprints
from core.formats.reading import read_file
from core.formats.report import Fault, Report
from core.formats.rows import Chat, Completion, Labelled, Preference, Row, Text

FINDINGS = "findings.jsonl"
MOST_FINDINGS = 1_000_000
MOST_BYTES = 192 * 1024 * 1024
_SHOWN = 80
_REPEATED_LEAST, _REPEATED_SHARE, _REPEATED_KEPT = 5, 0.05, 10
_TEXTS_KEPT = 8192
_OUTLIERS_FROM = 20
_FENCE = 3.0

Progress = Callable[[float], None]


class Findings:
    """The list of everything that was found about a line: a million lines or 192 MiB of it at most."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FINDINGS
        self._file = self.path.open("wb")
        self._left = MOST_FINDINGS
        self._bytes_left = MOST_BYTES

    def add(self, kind: str, line: int, **facts: object) -> None:
        if not self._left:
            return
        told = orjson.dumps({"finding": kind, "line": line, **facts}, option=orjson.OPT_APPEND_NEWLINE)
        self._left -= 1
        self._bytes_left -= len(told)
        if self._bytes_left < 0:
            self._left = 0
        else:
            self._file.write(told)

    def fault(self, fault: Fault, kind: str = "fault", **facts: object) -> None:
        parts = {"path": fault.path, "code": fault.code, "message": fault.message, "excerpt": fault.excerpt}
        self.add(kind, fault.line, **parts, **facts)

    def close(self) -> None:
        self._file.close()


class Lens(Protocol):
    """One base model's way to see rows; ``worker/prepare`` has it, since it takes a tokenizer."""

    def add(self, line: int, row: Row) -> None: ...

    def finish(self) -> Seen: ...


class Asked(NamedTuple):
    """What is surveyed. A validation file is seen through lenses of its own."""

    data: Path
    validation: Path | None = None
    lenses: Sequence[Lens] = ()
    validation_lenses: Sequence[Lens] = ()
    format: str = "auto"


def survey(asked: Asked, findings: Findings, scratch: Path, progress: Progress | None = None) -> Survey:
    """``scratch`` takes hashes of the rows while this runs."""
    own, others = _Collected(scratch, "data"), None
    faults = _Faults(lambda fault: findings.fault(fault))

    def on_row(line: int, row: Row) -> None:
        own.add(line, row)
        for lens in asked.lenses:
            lens.add(line, row)

    report = read_file(asked.data, on_row, on_fault=faults, format=asked.format, progress=progress)
    validation = None
    if asked.validation is not None:
        others = Fingerprints(scratch, "validation")
        validation = _validation(asked, asked.validation, own, others, findings)
        others.close()
    made = _survey(report, own, faults, findings, [lens.finish() for lens in asked.lenses], validation)
    own.close()
    return made


class _Faults:
    """Every fault goes on; the first thousand are kept."""

    def __init__(self, tell: Callable[[Fault], None]) -> None:
        self.codes: Counter[str] = Counter()
        self.kept: list[Fault] = []
        self._tell = tell

    def __call__(self, fault: Fault) -> None:
        self.codes[str(fault.code)] += 1
        if len(self.kept) < KEPT:
            self.kept.append(fault)
        self._tell(fault)


class _Collected:
    """What is kept of the rows until all of them have been seen."""

    def __init__(self, scratch: Path, name: str) -> None:
        self.rows = Fingerprints(scratch, name)
        self.answers = Fingerprints(scratch, f"{name}-answers")
        self.sample = likeness.Sample()
        self.empty = Lines()
        self.lengths: Counter[int] = Counter()
        self.shortest = _Extremes()
        self.longest = _Extremes()
        self._texts: dict[bytes, tuple[int, str]] = {}

    def add(self, line: int, row: Row) -> None:
        self.rows.add(fingerprints.of(row), line)
        said, answer = _texts(row)
        if answer is not None:
            if not answer.strip():
                self.empty.add(line)
            digest = fingerprints.of(answer)
            self.answers.add(digest, line)
            self._remember(digest, answer)
        text = " ".join(said)
        self.sample.add(line, text)
        self.lengths[len(text)] += 1
        self.shortest.add(-len(text), line)
        self.longest.add(len(text), line)

    def _remember(self, digest: bytes, answer: str) -> None:
        """The words of answers that come often: others make way when there are too many."""
        count, text = self._texts.get(digest, (0, answer[:_SHOWN]))
        self._texts[digest] = (count + 1, text)
        if len(self._texts) > _TEXTS_KEPT:
            often = heapq.nlargest(_TEXTS_KEPT // 2, self._texts.items(), key=lambda item: item[1][0])
            self._texts = dict(often)

    def text(self, digest: bytes) -> str:
        return self._texts.get(digest, (0, ""))[1]

    def close(self) -> None:
        self.rows.close()
        self.answers.close()


class _Extremes:
    """The rows with the largest values."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def add(self, value: int, line: int) -> None:
        if len(self._heap) < KEPT:
            heapq.heappush(self._heap, (value, -line))
        elif value > self._heap[0][0]:
            heapq.heapreplace(self._heap, (value, -line))

    def beyond(self, limit: float) -> list[int]:
        return sorted(-line for value, line in self._heap if value > limit)


def _texts(row: Row) -> tuple[list[str], str | None]:
    """What is said in a row but by the system, and what is to be learned, if that is not all of it."""
    match row:
        case Chat():
            return _spoken(row.messages), _last(row.messages)
        case Preference():
            return _spoken([*row.messages, *row.preferred, *row.rejected]), _last(row.preferred)
        case Completion():
            return [row.prompt, row.completion], row.completion
        case Labelled(prompt=list() as prompt, completion=list() as completion):
            return _spoken([*prompt, *completion]), _last(completion)
        case Labelled():
            return [str(row.prompt), str(row.completion)], str(row.completion)
        case Text():
            return [row.text], None


def _spoken(messages: list[dict[str, object]]) -> list[str]:
    # System prompts are often the same in all rows, which says nothing about the rows.
    return [str(m.get("content") or "") for m in messages if m["role"] not in ("system", "developer")]


def _last(messages: list[dict[str, object]]) -> str | None:
    if not messages or messages[-1].get("tool_calls"):
        return None
    return str(messages[-1].get("content") or "")


def _validation(asked: Asked, path: Path, own: _Collected, others: Fingerprints, findings: Findings) -> Validation:
    faults = _Faults(lambda fault: findings.fault(fault, "validation_fault"))

    def on_row(line: int, row: Row) -> None:
        others.add(fingerprints.of(row), line)
        for lens in asked.validation_lenses:
            lens.add(line, row)

    report = read_file(path, on_row, on_fault=faults, format=asked.format)
    return Validation(
        format=report.format,
        rows=report.rows,
        fault_count=report.fault_count,
        fault_codes=dict(faults.codes.most_common()),
        faults=faults.kept,
        shared=_twins("shared", own.rows.shared(others), findings),
        models=[lens.finish() for lens in asked.validation_lenses],
    )


def _survey(
    report: Report,
    own: _Collected,
    faults: _Faults,
    findings: Findings,
    models: list[Seen],
    validation: Validation | None,
) -> Survey:
    return Survey(
        **report.model_dump(include=_SAME),
        fault_codes=dict(faults.codes.most_common()),
        faults=faults.kept,
        duplicates=_twins("duplicate", own.rows.duplicates(), findings),
        near_duplicates=_likes(own.sample, findings),
        odd=_odd(report.rows, own, findings),
        models=models,
        validation=validation,
    )


# What a survey takes from the reader's report as it is.
_SAME = {
    *("format", "container", "compression", "converted_from", "conversion"),
    *("bytes", "lines", "rows", "bad_rows", "broken", "roles", "fault_count"),
}


def _twins(kind: str, pairs: Iterable[tuple[int, int]], findings: Findings) -> Twins:
    count = 0

    def told() -> Iterable[tuple[int, int]]:
        nonlocal count
        for line, other in pairs:
            count += 1
            findings.add(kind, line, other=other)
            yield line, other

    rows = [Twin(line=line, other=other) for line, other in heapq.nsmallest(KEPT, told())]
    return Twins(count=count, rows=rows)


def _likes(sample: likeness.Sample, findings: Findings) -> Likes:
    pairs = sample.pairs()
    for pair in pairs:
        findings.add("near_duplicate", pair.line, other=pair.other, similarity=pair.similarity)
    rows = [Like(**pair._asdict()) for pair in pairs[:KEPT]]
    return Likes(sampled=len(sample), least_similarity=likeness.LEAST, count=len(pairs), rows=rows)


def _odd(rows: int, own: _Collected, findings: Findings) -> Odd:
    least = max(_REPEATED_LEAST, math.ceil(_REPEATED_SHARE * rows))
    often = heapq.nlargest(_REPEATED_KEPT, own.answers.frequent(least), key=lambda group: group.rows)
    repeated = [
        Repeated(answer=own.text(group.digest), count=group.rows, share=round(group.rows / rows, 4), lines=group.lines)
        for group in often
    ]
    for line in own.empty.lines:
        findings.add("empty_answer", line)
    outliers = _outliers(own) if rows >= _OUTLIERS_FROM else None
    for kind, lines in (("short", outliers.short), ("long", outliers.long)) if outliers else ():
        for line in lines.lines:
            findings.add(f"{kind}_row", line)
    return Odd(empty_answers=own.empty, repeated_answers=repeated, length_outliers=outliers)


def _outliers(own: _Collected) -> Outliers:
    """Beyond three times the distance of the quartiles, on a scale of ratios (J. Tukey's outer fences)."""
    first, third = (quantile(own.lengths, share) for share in (0.25, 0.75))
    low, high = math.log1p(first), math.log1p(third)
    # Rows of nearly the same length have quartiles so close that any difference would stand out.
    reach = _FENCE * max(high - low, 0.25)
    short, long = math.expm1(low - reach), math.expm1(high + reach)
    return Outliers(
        usual_least=first,
        usual_most=third,
        short=Lines(
            count=sum(rows for length, rows in own.lengths.items() if length < short),
            lines=own.shortest.beyond(-short),
        ),
        long=Lines(
            count=sum(rows for length, rows in own.lengths.items() if length > long),
            lines=own.longest.beyond(long),
        ),
    )


def quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least this share of all is at or below."""
    needed, seen = share * counts.total(), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= needed:
            return value
    return 0
