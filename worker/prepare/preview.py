"""The first rows of a file as the model will see them: tokens, their weights, and what is trained on."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from core.formats.findings import Preview, Shown, Span, Token
from core.formats.reading import Enough, read_file
from core.formats.report import Fault
from core.formats.rows import Preference, Row
from core.options import JobOptions
from worker.prepare import lens, spool, tokenise
from worker.prepare.folder import Facts
from worker.prepare.tokenise import Encoder, RowFault

MOST_TOKENS = 100_000
"""A preview ends with the row that has these tokens: more is nothing to look at."""


class Wanted(NamedTuple):
    model: str
    facts: Facts
    options: JobOptions
    limit: int


def preview(path: Path, encoder: Encoder, wanted: Wanted) -> Preview:
    rows: list[tuple[int, Row]] = []
    faults: list[Fault] = []
    more = False

    def on_row(line: int, row: Row) -> None:
        nonlocal more
        if len(rows) == wanted.limit:
            more = True
            raise Enough
        rows.append((line, row))

    def on_fault(fault: Fault) -> None:
        nonlocal more
        if len(faults) == wanted.limit:
            more = True
            raise Enough
        faults.append(fault)

    report = read_file(path, on_row, on_fault=on_fault, format=wanted.options.format)
    limit = lens.limit(wanted.options, wanted.facts)
    shown: list[Shown] = []
    left = MOST_TOKENS
    for line, row in rows:
        if left <= 0:
            more = True
            break
        try:
            parts = zip(_names(row), tokenise.parts_of(row), strict=True)
            found = [_show(encoder, line, name, part, limit, wanted) for name, part in parts]
        except RowFault as refused:
            faults.append(Fault(line=refused.line, code=refused.code, message=refused.message))
            continue
        shown += found
        left -= sum(len(one.tokens) for one in found)
    return Preview(
        model=wanted.model,
        format=report.format,
        converted_from=report.converted_from,
        conversion=report.conversion,
        chat_template=lens.template_origin(wanted.options, wanted.facts),
        max_length=limit,
        prompt_loss_weight=wanted.options.prompt_loss_weight,
        rows=shown,
        faults=sorted(faults, key=lambda fault: fault.line),
        more=more,
    )


Part = Literal["row", "preferred", "non_preferred"]


def _names(row: Row) -> list[Part]:
    return ["preferred", "non_preferred"] if isinstance(row, Preference) else ["row"]


def _show(encoder: Encoder, line: int, name: Part, row: Row, limit: int, wanted: Wanted) -> Shown:
    found = encoder.explain(line, row)
    fate = lens.fate([found.tokens], limit, wanted.options.data.over_length)
    kept = np.full(len(found.tokens.ids), fate != "truncated")
    if fate == "truncated":
        for start, end in spool.cut(lens.taught(found.tokens), limit, wanted.facts.bos_token_id is not None):
            kept[start:end] = True
    prompt_weight = wanted.options.prompt_loss_weight
    tokens: list[Token] = []
    for index in np.flatnonzero(kept).tolist():
        trained, weight = bool(found.tokens.completion[index]), round(float(found.tokens.weight[index]), 6)
        # Nothing comes before the first token that could tell it.
        share = 0.0 if not tokens else 1.0 if trained else prompt_weight
        tokens.append(
            Token(
                id=int(found.tokens.ids[index]),
                text=found.texts[index],
                weight=None if share == "auto" else weight * share,
                trained=trained and weight > 0,
            )
        )
    return Shown(
        line=line,
        part=name,
        text=found.text,
        spans=[Span(start=start, end=end) for start, end in found.learned],
        tokens=tokens,
        length=len(found.tokens.ids),
        fate=fate,
    )
