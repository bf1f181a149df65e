"""What is to be said of a job's data, in sentences: rows cut or left out, shares, what the template does to them."""

from core.formats.report import REMARKS
from worker.prepare.folder import Counts, Named, Note, PrepareJob
from worker.prepare.tokenise import Encoder


def shares(spec: PrepareJob, trained: Counts, validated: Counts | None) -> list[Note]:
    notes = []
    if spec.mix:
        listed = ", ".join(f"{count} of {name.replace('_', ' ')}" for name, count in trained.sources.items())
        notes.append(Note(message=f"An epoch has {listed}.", data={"examples": trained.sources}))
    if spec.options.data.validation_fraction is not None and validated is not None:
        message = f"{validated.examples} examples are held out for validation, {trained.examples} trained on."
        notes.append(Note(message=message, data={"validation": validated.examples, "training": trained.examples}))
    return notes


def warnings(trained: Counts, validated: Counts | None, encoder: Encoder, length: int) -> list[Note]:
    notes = []
    for param, counts in (("training_file", trained), ("validation_file", validated)):
        for what, named in (
            (f"cut to {length} tokens", counts.truncated if counts else None),
            (f"longer than {length} tokens and left out", counts.dropped if counts else None),
            ("without anything to learn from and left out", counts.masked if counts else None),
        ):
            if named is not None and named.count:
                message = f"{param}: {named.count} example(s) {what}: {where(named)}"
                notes.append(Note(level="warn", message=message, data={"param": param, "lines": named.lines}))
    if encoder.straddling.count:
        message = (
            f"in {encoder.straddling.count} example(s) the answer begins inside a token of the prompt, so its first "
            f"characters are not learned: {lines(encoder.straddling.lines)}"
        )
        notes.append(Note(level="warn", message=message, data={"lines": encoder.straddling.lines}))
    for code, named in encoder.remarks.items():
        message = f"in {named.count} example(s) {REMARKS[code]}: {lines(named.lines)}"
        notes.append(Note(level="warn", message=message, data={"code": code, "lines": named.lines}))
    return notes


def where(named: Named) -> str:
    mixed = f"{named.mixed} in mixed files" if named.mixed else ""
    return " and ".join(part for part in (lines(named.lines) if named.lines else "", mixed) if part)


def lines(lines: list[int], shown: int = 10) -> str:
    text = ", ".join(map(str, lines[:shown]))
    return f"line{'s' if len(lines) > 1 else ''} {text}" + (", …" if len(lines) > shown else "")
