"""A survey of data -> whether a job could be trained on them, with every reason. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from core.formats.findings import Judged, Like, Lines, Seen, Survey, Twin, Validation, Verdict
from core.formats.report import REMARKS, Code, Fault, Format
from core.options import JobOptions

_LINES = 100
Param = Literal["training_file", "validation_file"]


class Terms(NamedTuple):
    """What a job asks of its data."""

    method: str
    formats: Sequence[str]
    """Of rows that the method learns from."""
    options: JobOptions
    min_examples: int


def judge(survey: Survey, terms: Terms) -> Verdict:
    """``survey`` has been made for one base model, with the job's options."""
    judged = _Judgement(terms)
    judged.training(survey)
    if survey.validation is not None:
        judged.validation(survey.validation, survey.format)
    judged.oddities(survey)
    return Verdict(ok=not judged.faults, faults=judged.faults, warnings=judged.warnings, survey=survey)


class _Judgement:
    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.faults: list[Judged] = []
        self.warnings: list[Judged] = []

    def training(self, survey: Survey) -> None:
        param: Param = "training_file"
        self._format(param, survey.format)
        allowed = self._terms.options.data.max_invalid_fraction * (survey.rows + survey.bad_rows)
        if not survey.broken and 0 < survey.bad_rows <= allowed:
            lines = Lines(count=survey.bad_rows, lines=sorted({fault.line for fault in survey.faults}))
            self._warn(param, "left_out", "row(s) have faults and are left out, as max_invalid_fraction allows", lines)
        else:
            self._by_code(param, survey.faults, survey.fault_codes)
        for seen in survey.models:
            self._seen(param, seen)
            if seen.max_length > seen.context_length:
                message = f"{seen.max_length} is more than the model's context, {seen.context_length}"
                self.faults.append(Judged(param="ext.max_length", code="invalid_value", message=message, count=0))
            needed = self._terms.min_examples
            if seen.examples < needed:
                self._refuse(
                    param, "invalid_n_examples", f"{seen.examples} example(s) are left; a job needs at least {needed}"
                )

    def validation(self, found: Validation, form: Format | None) -> None:
        param: Param = "validation_file"
        self._format(param, found.format)
        self._by_code(param, found.faults, found.fault_codes)
        if None not in (form, found.format) and form != found.format:
            self._refuse(param, "wrong_format", f"it has {found.format} rows, and the training file {form} rows")
        for seen in found.models:
            self._seen(param, seen)
            if not seen.examples:
                self._refuse(param, "invalid_n_examples", "no example is left to measure with")
        shared = Lines(count=found.shared.count, lines=[row.line for row in found.shared.rows])
        self._warn("training_file", "shared_rows", "row(s) are in the validation file, too", shared)

    def oddities(self, survey: Survey) -> None:
        odd, twins, likes = survey.odd, survey.duplicates, survey.near_duplicates
        for code, what, lines in (
            ("duplicates", "row(s) say exactly what an earlier row says", _lines(twins.count, twins.rows)),
            (
                "near_duplicates",
                f"of {likes.sampled} rows that were compared are nearly the same as another one",
                _lines(likes.count, likes.rows),
            ),
            ("empty_answers", "answer(s) are empty", odd.empty_answers),
        ):
            self._warn("training_file", code, what, lines)
        if (outliers := odd.length_outliers) is not None:
            self._warn("training_file", "short_rows", "row(s) are far shorter than the others", outliers.short)
            self._warn("training_file", "long_rows", "row(s) are far longer than the others", outliers.long)
        for repeated in odd.repeated_answers:
            what = f"row(s), {100 * repeated.share:.0f} %, have the same answer: {repeated.answer!r}"
            lines = Lines(count=repeated.count, lines=repeated.lines)
            self._warn("training_file", "repeated_answer", what, lines)

    def _format(self, param: Param, form: Format | None) -> None:
        terms = self._terms
        if form is not None and form not in terms.formats:
            takes = ", ".join(terms.formats)
            self._refuse(param, "wrong_format", f"{form} rows don't fit the method {terms.method}, which takes {takes}")

    def _seen(self, param: Param, seen: Seen) -> None:
        self._by_code(param, seen.faults, {})
        over = f"row(s) have more than {seen.max_length} tokens"
        if seen.over_length == "error" and seen.dropped.count:
            message = f"{seen.dropped.count} {over}"
            self.faults.append(_judged(param, "over_length", message, seen.dropped))
        else:
            self._warn(param, "over_length", f"{over} and are left out", seen.dropped)
        self._warn(param, "truncated", f"{over} and are cut", seen.truncated)
        self._warn(param, "nothing_to_learn", "row(s) have nothing to learn from and are left out", seen.masked)
        self._warn(param, "straddling", "row(s) begin their answer inside a token of the prompt", seen.straddling)
        for code, lines in seen.remarks.items():
            self._warn(param, code, f"row(s) where {REMARKS[Code(code)]}", lines)

    def _by_code(self, param: Param, found: list[Fault], counts: dict[str, int]) -> None:
        """One for each code, with the first such fault's sentence and the lines of all."""
        grouped: dict[str, list[Fault]] = {}
        for fault in found:
            grouped.setdefault(str(fault.code), []).append(fault)
        for code, faults in grouped.items():
            lines = Lines(count=counts.get(code, len(faults)), lines=[fault.line for fault in faults if fault.line])
            self.faults.append(_judged(param, code, str(faults[0]), lines))

    def _refuse(self, param: Param, code: str, message: str) -> None:
        self.faults.append(Judged(param=param, code=code, message=message, count=0))

    def _warn(self, param: Param, code: str, what: str, lines: Lines) -> None:
        if lines.count:
            self.warnings.append(_judged(param, code, f"{lines.count} {what}", lines))


def _judged(param: Param, code: str, message: str, lines: Lines) -> Judged:
    return Judged(param=param, code=code, message=message, count=lines.count, lines=lines.lines[:_LINES])


def _lines(count: int, rows: Sequence[Twin | Like]) -> Lines:
    return Lines(count=count, lines=[row.line for row in rows])
