"""Questions about data, around their child: what goes into the folder, and what its answer does to the answer's row."""

from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from core import options
from core.config import MIB
from core.db.session import transaction
from core.db.tables import Answer, File, WorkItem
from core.errors import JobError, LostAuthority
from core.options import Hyperparameters
from core.queue import claims
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import base_models, data, replies, token_sets
from core.states import AnswerKind
from core.storage import store as layout
from core.wiring import Parts
from worker import stage, tokens
from worker.cache import ModelCache
from worker.prepare.folder import (
    ANSWER,
    Model,
    Prepared,
    PrepareJob,
    PreviewFile,
    Spec,
    SurveyFile,
    ValidateFile,
)

Json = dict[str, Any]  # Any: JSON

BEGINNING = 16 * MIB
"""Of a JSONL file: four of the longest lines there may be."""


def stage_question(parts: Parts, cache: ModelCache, item: WorkItem, folder: Path) -> Spec:
    """The child's task, with all that it names in the folder or in the cache."""
    with transaction(parts.sessions) as session:
        row = replies.question(session, item.subject_id)
    if row is None:
        raise LostAuthority(f"{item.subject_id}: nobody asks for it any more")
    asked = row.question
    models = [_model(parts, cache, id) for id in asked["base_model_ids"]]
    if row.kind == AnswerKind.PREVIEW:
        return PreviewFile(
            data=_beginning(parts, asked, folder),
            model=models[0],
            options=options.parse(asked["ext"]),
            limit=asked["limit"],
        )
    if row.kind == AnswerKind.ESTIMATE:
        return _preparing(parts, asked, models[0], folder)
    data = _file(parts, asked["file_id"], folder / "data.data", "file_id")
    other = asked["validation_file_id"]
    validation = None if other is None else _file(parts, other, folder / "validation.data", "validation_file")
    if row.kind == AnswerKind.REPORT:
        return SurveyFile(data=data, validation=validation, models=models)
    return ValidateFile(
        data=data,
        validation=validation,
        model=models[0],
        method=asked["method"],
        formats=asked["formats"],
        options=options.parse(asked["ext"]),
        min_examples=asked["min_examples"],
    )


def _preparing(parts: Parts, asked: Json, model: Model, folder: Path) -> PrepareJob:
    """An estimate prepares the rows as the job would: what it makes is kept for that job."""
    chosen = options.parse(asked["ext"])
    named = data.named(asked["training_file_id"], asked["validation_file_id"], chosen)
    paths = {name.param: _file(parts, name.file_id, folder / f"{n}.data", name.param) for n, name in enumerate(named)}
    wanted = Hyperparameters.model_validate(asked["hyperparameters"])
    return stage.preparing(model, named, paths, asked["method"], chosen, wanted, asked["seed"], parts.settings)


def known(parts: Parts, item: WorkItem, claim: Claim) -> bool:
    """Answer from what is there already, without a child; False when that can't be done."""
    with transaction(parts.sessions) as session:
        row = replies.question(session, item.subject_id)
    if row is None or row.kind != AnswerKind.ESTIMATE:
        return False
    ready = tokens.find(parts, tokens.of_question(row))
    if ready is None:
        return False
    with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, mine):
        token_sets.take(session, ready.id, None)
        _settle(session, mine, ready.prepared.model_dump(mode="json"), {})
    return True


def finish_estimate(parts: Parts, claim: Claim, folder: Path, prepared: Prepared) -> None:
    # Rows that are others tomorrow are not kept for a job that is made then.
    files = {} if prepared.dated else tokens.upload(parts, claim, folder)
    kept: Json = {}
    try:
        with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, item):
            row = replies.question(session, item.subject_id)
            if row is None:
                raise LostAuthority(f"{item.subject_id}: nobody asks for it any more")
            wanted = tokens.of_question(row)
            if files:
                id = tokens.key(session, wanted, parts.settings)
                kept = tokens.keep(session, id, wanted, None, prepared, files).files
            _settle(session, item, prepared.model_dump(mode="json"), {})
    finally:
        if kept != files:
            parts.store.delete(*(entry["key"] for entry in files.values()))


def _model(parts: Parts, cache: ModelCache, id: str) -> Model:
    with transaction(parts.sessions) as session:
        base = base_models.by_id(session, id)
    return stage.reader_of(cache, base)


def _file(parts: Parts, id: str, path: Path, param: str) -> Path:
    file = _row(parts, id, param)
    return stage.download(parts.store, file.storage_key, file.sha256, path)


def _row(parts: Parts, id: str, param: str) -> File:
    with transaction(parts.sessions) as session:
        file = session.get_one(File, id)
    if file.deleted_at is not None:
        raise JobError(f"The file {id!r} was deleted.", code="not_found", param=param)
    return file


def _beginning(parts: Parts, asked: Json, folder: Path) -> Path:
    """Rows that came with the question, or as much of the file as a preview can take."""
    path = folder / "data.data"
    if asked["rows"] is not None:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in asked["rows"]))
        return path
    file = _row(parts, asked["training_file_id"], "training_file")
    report = file.report or {}
    if file.bytes <= BEGINNING or report.get("container") != "jsonl" or report.get("compression") is not None:
        return stage.download(parts.store, file.storage_key, file.sha256, path)
    with path.open("wb") as out:
        for piece in parts.store.stream(file.storage_key):
            out.write(piece)
            if out.tell() >= BEGINNING:
                break
    with path.open("r+b") as whole:
        # The last line is cut in two.
        content = whole.read()
        whole.truncate(content.rfind(b"\n") + 1)
    return path


def finish(parts: Parts, claim: Claim, folder: Path, answer: Json) -> None:
    """The answer becomes visible in one transaction, after all that belongs to it lies in the store."""
    with transaction(parts.sessions) as session:
        item = session.get(WorkItem, claim.id)
    if item is None:
        raise LostAuthority(f"{claim.id}: nobody asks for it any more")
    objects = _store(parts, item.subject_id, folder, answer)
    try:
        with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, row):
            _settle(session, row, answer, objects)
    except LostAuthority:
        with transaction(parts.sessions) as session:
            unwanted = session.get(Answer, item.subject_id) is None
        if unwanted:
            # It was deleted meanwhile, and nobody else knows of these objects.
            parts.store.delete(*objects.values())
        raise


def _store(parts: Parts, id: str, folder: Path, answer: Json) -> dict[str, str]:
    objects = {}
    for path in sorted((folder / ANSWER).glob("*")):
        objects[path.name] = layout.answer(id, path.name)
        parts.store.put_file(objects[path.name], path)
    if not replies.fits_row(answer):
        objects[replies.RESULT] = layout.answer(id, replies.RESULT)
        parts.store.put(objects[replies.RESULT], orjson.dumps(answer))
    return objects


def _settle(session: Session, item: WorkItem, answer: Json, objects: dict[str, str]) -> None:
    replies.settle(session, item.subject_id, None if replies.RESULT in objects else answer, objects)
    claims.done(item)
