"""The files of a job -> its token files, with every value that training needs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core import catalog, options
from core.formats import templates
from core.formats.containers import weight
from core.formats.prompts import read as read_prompts
from core.formats.reading import read_file
from core.formats.report import FAULTS_KEPT, Fault, Format
from worker.folder import ANSWER_TOKENS
from worker.prepare import limits, remarks, resolve, shares, tokenise
from worker.prepare.events import Events
from worker.prepare.faults import refuse
from worker.prepare.folder import Counts, Note, Prepared, PrepareJob, Tokenised
from worker.prepare.spool import Spool, sample

_TRAINING = "invalid_training_file"


def prepare(spec: PrepareJob, folder: Path, events: Events) -> Prepared:
    paths = (spec.train, spec.valid, *(mixed.path for mixed in spec.mix))
    repeats = 1 + sum(mixed.weight for mixed in spec.mix)
    limits.apply(int(repeats * sum(weight(path) for path in paths if path is not None)))
    (folder / "chat_template.jinja").write_text(tokenise.template_text(spec.base, spec.options), "utf-8")
    # The API has refused these already; a folder written by hand gets the same answer.
    prefix = f"method.{spec.method}.hyperparameters"
    faults = options.unsupported(spec.options, spec.method) + options.conflicts(
        spec.options, spec.hyperparameters, prefix
    )
    if faults:
        raise refuse("invalid_value", faults[0].message, faults[0].path)
    given = spec.options.max_length
    if given != "auto" and given > spec.facts.context_length:
        message = f"ext.max_length: {given} is more than the model's context, {spec.facts.context_length}"
        raise refuse("invalid_value", message, "ext.max_length")
    events.phase("preparing", 0, "reading the tokenizer")
    encoder = tokenise.encoder(spec.base, spec.facts, spec.options)
    notes: list[Note] = []
    with Spool(folder, "train") as train, Spool(folder, "valid") as valid:
        form = _tokenise(spec, spec.train, "training_file", encoder, train, events, notes)
        for n, mixed in enumerate(spec.mix, 1):
            _tokenise(spec, mixed.path, f"ext.data.mix[{n - 1}].file_id", encoder, train, events, notes, source=n)
        other = form
        if spec.valid is not None:
            other = _tokenise(spec, spec.valid, "validation_file", encoder, valid, events, notes)
        if other != form:
            message = f"the validation file has other rows than the training file, which has {form} rows"
            raise refuse("invalid_validation_file", message, "validation_file")
        length, why = resolve.max_length(
            spec.options,
            spec.facts.context_length,
            int(max(train.lengths.max(initial=0), valid.lengths.max(initial=0))),
        )
        events.phase("preparing", 95, "writing the tokens")
        chosen, held_out = _divide(spec, train, length)
        trained = _write(spec, folder, "train", train, length, chosen)
        validated = None
        if spec.valid is not None or held_out is not None:
            validated = _write(spec, folder, "valid", valid if held_out is None else train, length, held_out)
        notes += remarks.shares(spec, trained, validated) + remarks.warnings(trained, validated, encoder, length)
        prompt, completion = train.shares(chosen)
        tokenised = Tokenised(
            method=spec.method,
            form=form,
            train=trained,
            valid=validated,
            prompt_tokens=prompt,
            completion_tokens=completion,
            max_length=length,
            max_length_reason=why,
            prompts=_prompts(spec, encoder, form),
            sample=sample(folder / "train.safetensors"),
            valid_sample=sample(folder / "valid.safetensors") if validated is not None else None,
            dated=templates.dated(tokenise.template_text(spec.base, spec.options)),
            remarks=notes,
        )
    prepared = resolve.prepared(
        tokenised, spec.options, spec.hyperparameters, spec.facts, seed=spec.seed, fast_bf16=spec.fast_bf16
    )
    for note in prepared.notes:
        events.note(note)
    return prepared


def _tokenise(
    spec: PrepareJob,
    path: Path,
    param: str,
    encoder: tokenise.Encoder,
    spool: Spool,
    events: Events,
    notes: list[Note],
    source: int = 0,
) -> Format:
    """A file into the spool. Bad rows are left out if the job allows so many of them, and otherwise end it."""
    what = param.replace("_", " ") if not source else f"file {spec.mix[source - 1].file_id}"
    # Only a row's content and the seed say on which side it is.
    key = spec.seed.to_bytes(8, "little") if spec.options.data.validation_fraction is not None else None
    batcher = tokenise.Batcher(encoder, spool, source, key, singly=spec.options.preference.loss == "kto")
    report = read_file(
        path,
        batcher.add,
        format="auto" if source else spec.options.format,
        progress=lambda percent: events.progress("preparing", percent * 0.9, f"tokenising the {what}"),
    )
    batcher.flush()
    allowed = spec.options.data.max_invalid_fraction
    faults = [*report.faults, *(Fault(line=f.line, code=f.code, message=f.message) for f in batcher.faults)]
    faults.sort(key=lambda fault: fault.line)
    lines = list(dict.fromkeys(fault.line for fault in faults))[:FAULTS_KEPT]
    told = report.model_copy(
        update={"faults": faults[:FAULTS_KEPT], "fault_count": report.fault_count + batcher.faulty}
    )
    if report.spoiled(allowed, batcher.faulty):
        message = f"The {what} has {told.fault_count} faults:\n{told.summary()}"
        if told.fault_count == 1:
            message = told.summary()
        if allowed and not report.broken:
            bad, of = report.bad_rows + batcher.faulty, report.rows + report.bad_rows
            message = f"{bad} of {of} rows are bad, more than ext.data.max_invalid_fraction allows. {message}"
        raise refuse("invalid_validation_file" if param == "validation_file" else _TRAINING, message, param, lines)
    if faults:
        bad, of = report.bad_rows + batcher.faulty, report.rows + report.bad_rows
        message = f"{param}: {bad} of {of} rows are bad and were left out:\n{told.summary(10)}"
        notes.append(Note(level="warn", message=message, data={"param": param, "lines": lines}))
    if report.conversion is not None:
        data = {"param": param, "converted_from": report.converted_from}
        notes.append(Note(message=f"{param}: {report.conversion}", data=data))
    assert report.format is not None  # a file without rows is a fault
    formats = catalog.formats(spec.method, spec.options)
    if report.format not in formats:
        message = f"{param}: {report.format} rows don't fit this job, which takes {', '.join(formats)} rows"
        raise refuse("invalid_validation_file" if param == "validation_file" else _TRAINING, message, param)
    return report.format


def _prompts(spec: PrepareJob, encoder: tokenise.Encoder, form: Format) -> list[list[int]]:
    """What the model is to answer while it is trained, as the rows' own prompts are written."""
    wanted, path = spec.options.eval.generate, "ext.eval.generate"
    if isinstance(wanted, dict) and spec.valid is None and spec.options.data.validation_fraction is None:
        raise refuse("invalid_value", f"{path}: validation_rows needs a validation file or validation_fraction", path)
    given, _ = read_prompts(wanted if isinstance(wanted, list) else [], path)
    tokens = []
    for n, prompt in enumerate(given):
        try:
            ids = encoder.prompt(prompt, plain=form in ("completion", "text"))
        except templates.TemplateFault as fault:
            raise refuse("invalid_value", f"{path}[{n}]: {fault.message}", path) from None
        if len(ids) > spec.facts.context_length - ANSWER_TOKENS:
            message = f"{path}[{n}]: {len(ids)} tokens leave no room for an answer in the model's context"
            raise refuse("invalid_value", message, path)
        tokens.append(ids)
    return tokens


def _divide(spec: PrepareJob, spool: Spool, length: int) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Rows to train on, as often as they come, and rows held out; None: all of them, and none."""
    fraction, weights = spec.options.data.validation_fraction, [mixed.weight for mixed in spec.mix]
    if fraction is None and not weights:
        return None, None
    sources = np.array(spool.sources, dtype=np.uint8)
    whole = np.arange(len(sources), dtype=np.int64)
    # Rows that are left out don't count in any share; they come along to be named.
    fits = np.ones(len(sources), bool) if spec.options.data.over_length == "truncate" else spool.lengths <= length
    held = np.zeros(len(sources), bool)
    if fraction is not None:
        try:
            held[fits] = shares.held_out(np.array(spool.digests, dtype=np.uint64)[fits], fraction)
        except shares.TooFew:
            path = "ext.data.validation_fraction"
            message = f"{path}: the data have not two different rows to be divided between training and validation"
            raise refuse("invalid_n_examples", message, path) from None

    def side(mask: NDArray[np.bool_], repeat: bool) -> NDArray[np.int64]:
        rows = whole[mask & fits]
        return rows[shares.mixed(sources[rows], weights, spec.seed, repeat=repeat)]

    chosen = np.sort(np.concatenate([side(~held, True), whole[~fits]]))
    return chosen, side(held, False) if fraction is not None else None


def _write(
    spec: PrepareJob,
    folder: Path,
    name: str,
    spool: Spool,
    length: int,
    chosen: NDArray[np.int64] | None = None,
) -> Counts:
    param = "training_file" if name == "train" or spec.valid is None else "validation_file"
    what = param.replace("_", " ").capitalize()
    policy = spec.options.data.over_length
    counts = spool.write(
        folder / f"{name}.safetensors",
        max_length=length,
        over_length=policy,
        keep_first=spec.facts.bos_token_id is not None,
        chosen=chosen,
    )
    if spec.mix and chosen is not None:
        names = ["training_file", *(mixed.file_id for mixed in spec.mix)]
        kept = chosen if policy == "truncate" else chosen[spool.lengths[chosen] <= length]
        given = np.bincount(np.array(spool.sources, dtype=np.uint8)[kept], minlength=len(names))
        counts.sources = dict(zip(names, given.tolist(), strict=True))
    if policy == "error" and counts.dropped.count:
        long = remarks.where(counts.dropped)
        message = f"{what} has {counts.dropped.count} example(s) of more than {length} tokens: {long}"
        raise refuse(f"invalid_{param}", message, param, counts.dropped.lines)
    needed = spec.min_examples if name == "train" else 1
    if counts.examples < needed:
        left_out = [
            f"{named.count} {why} ({remarks.where(named)})"
            for named, why in (
                (counts.dropped, f"are longer than {length} tokens"),
                (counts.masked, "have nothing to learn from"),
            )
            if named.count
        ]
        rest = f"; {', '.join(left_out)}" if left_out else ""
        message = f"{what} has {counts.examples} example(s), but must have at least {needed} examples{rest}"
        raise refuse("invalid_n_examples", message, param, [*counts.dropped.lines, *counts.masked.lines])
    return counts
