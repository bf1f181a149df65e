"""A report on a data file as text: what is wrong first, then what is odd, then how long the rows are."""

from collections.abc import Iterable, Iterator
from typing import Any

from cli import output

Json = dict[str, Any]  # Any: a report as the API or `core.formats.findings.Survey` has it
_BAR = 40
_LINES = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(name: str, report: Json) -> None:
    for line in text(name, report):
        output.line(line)


def text(name: str, report: Json) -> Iterator[str]:
    form = report["format"] or "unknown"
    packed = f", {report['compression']}" if report["compression"] else ""
    kept = f"{report['container']}{packed}, {output.size(report['bytes'])}"
    yield f"{name}: {_n(report['rows'])} good rows of the format {form} ({kept})"
    if report["conversion"]:
        yield f"  converted from {report['converted_from']}: {report['conversion']}"
    if report["roles"]:
        yield "  messages: " + ", ".join(f"{role} {_n(count)}" for role, count in report["roles"].items())
    yield from _faults("faults", report)
    for seen in report["models"]:
        yield from _faults(f"rows that the chat template of {seen['model']} can't be used with", seen)
    yield from _oddities(report)
    if report["validation"] is not None:
        yield from _validation(report["validation"])
    for seen in report["models"]:
        yield ""
        yield from _seen(seen)


def faulty(report: Json) -> bool:
    """Whether something must be mended."""
    others = [*report["models"], *filter(None, [report["validation"]])]
    return bool(report["fault_count"] or any(other["fault_count"] for other in others))


def _faults(what: str, part: Json) -> Iterator[str]:
    count, listed = part["fault_count"], part["faults"]
    if not count:
        if what == "faults":
            yield "  no faults"
        return
    from core.formats.report import Fault

    yield ""
    yield f"{_n(count)} {what}:"
    for fault in map(Fault.model_validate, listed):
        yield f"  {fault}  [{fault.code}]"
        if fault.excerpt:
            yield f"      {fault.excerpt}"
    if count > len(listed):
        yield f"  … and {_n(count - len(listed))} more, in the list of findings"


def _oddities(report: Json) -> Iterator[str]:
    odd, twins, likes = report["odd"], report["duplicates"], report["near_duplicates"]
    told = []
    if twins["count"]:
        told.append(f"{_n(twins['count'])} row(s) say exactly what an earlier one says: {_pairs(twins['rows'])}")
    if likes["count"]:
        share = f"a sample of {_n(likes['sampled'])} rows"
        told.append(f"{_n(likes['count'])} row(s) in {share} are nearly the same as another: {_pairs(likes['rows'])}")
    if odd["empty_answers"]["count"]:
        told.append(f"{_n(odd['empty_answers']['count'])} answer(s) are empty: {_lines(odd['empty_answers']['lines'])}")
    for one in odd["repeated_answers"]:
        told.append(f"{_n(one['count'])} rows ({100 * one['share']:.0f} %) have the same answer, {one['answer']!r}")
    outliers = odd["length_outliers"]
    for word, lines in (("shorter", outliers["short"]), ("longer", outliers["long"])) if outliers else ():
        if lines["count"]:
            usual = f"half of the rows have {_n(outliers['usual_least'])} to {_n(outliers['usual_most'])} characters"
            told.append(
                f"{_n(lines['count'])} row(s) are far {word} than the others ({usual}): {_lines(lines['lines'])}"
            )
    if told:
        yield ""
        yield "Odd:"
        yield from (f"  {sentence}" for sentence in told)


def _validation(part: Json) -> Iterator[str]:
    yield ""
    yield f"Validation file: {_n(part['rows'])} good rows"
    yield from _faults("faults in the validation file", part)
    shared = part["shared"]
    if shared["count"]:
        yield f"  {_n(shared['count'])} row(s) of the data are in it, too: {_pairs(shared['rows'])}"
    else:
        yield "  no row of the data is in it"


def _seen(seen: Json) -> Iterator[str]:
    from core.formats.report import REMARKS, Code

    limit = seen["max_length"]
    tokens = f"{_n(seen['tokens'])} tokens, {_n(seen['trained_tokens'])} of them trained on"
    yield f"{seen['model']}: {_n(seen['examples'])} rows to train on, {tokens}"
    for lines, what in (
        (seen["dropped"], f"have more than {_n(limit)} tokens and would be left out"),
        (seen["truncated"], f"have more than {_n(limit)} tokens and would be cut"),
        (seen["masked"], "have nothing to learn from and would be left out"),
        (seen["straddling"], "begin their answer inside a token of the prompt"),
        *((lines, f"where {REMARKS[Code(code)]}") for code, lines in seen["remarks"].items()),
    ):
        if lines["count"]:
            yield f"  {_n(lines['count'])} row(s) {what}: {_lines(lines['lines'])}"
    lengths = seen["lengths"]
    if lengths is None:
        return
    yield (
        f"  tokens per row: {_n(lengths['shortest'])} to {_n(lengths['longest'])}, half of the rows up to "
        f"{_n(lengths['median'])}, 90 % up to {_n(lengths['p90'])}, 99 % up to {_n(lengths['p99'])}"
    )
    yield from _histogram(lengths["histogram"])


def _histogram(bins: list[Json]) -> Iterator[str]:
    names = [f"{_n(one['least'])}–{_n(one['most'])}" for one in bins]
    most = max(one["rows"] for one in bins)
    width, figures = max(map(len, names)), len(_n(most))
    for name, one in zip(names, bins, strict=True):
        yield f"    {name:>{width}}  {_n(one['rows']):>{figures}}  {_bar(one['rows'] / most)}".rstrip()


def _bar(share: float) -> str:
    whole, rest = divmod(round(share * _BAR * 8), 8)
    drawn = "█" * whole + (_EIGHTHS[rest] if rest else "")
    # However few they are, they can be seen.
    return drawn or ("▏" if share else "")


def _pairs(rows: list[Json]) -> str:
    return _some(f"{row['line']} (as {row['other']})" for row in rows[: _LINES + 1])


def _lines(lines: list[int]) -> str:
    return _some(map(str, lines[: _LINES + 1]))


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    return (
        ("line " if len(listed) == 1 else "lines ")
        + ", ".join(listed[:_LINES])
        + (", …" if len(listed) > _LINES else "")
    )


def _n(number: int) -> str:
    return f"{number:,}"
