"""Tokens are prepared once: the hash that tells whether two jobs would get the same, and using what there is.

A set in the store is as good as a run of the prepare child: its files are told apart from damaged ones by size here,
and by sha256 when they are staged for training.
"""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from sqlalchemy.orm import Session

from core import options
from core.config import Settings
from core.db.session import transaction
from core.db.tables import Answer, BaseModel, File, Job, TokenSet
from core.options import Hyperparameters
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import data, estimates, runs, token_sets
from core.services.data import Named
from core.states import FileStatus, Wish
from core.storage import store as layout
from core.wiring import Parts
from worker.cache import file_sha256
from worker.prepare import resolve
from worker.prepare.folder import Facts, Note, Prepared, Tokenised

log = structlog.get_logger()

Json = dict[str, Any]  # Any: JSON

_TOKEN_FILES = ("train.safetensors", "valid.safetensors", "chat_template.jinja")
_ROOT = Path(__file__).resolve().parents[1]
_CODE = ("core/formats/**/*", "worker/prepare/*.py", "worker/token_file.py")
_LIBRARIES = ("jinja2", "numpy", "tokenizers")
# Options that decide what the tokens are; all others decide what is learned from them.
_DECISIVE = ("train_on", "max_length", "chat_template", "format", "data")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Wanted(NamedTuple):
    """What a job, or a question about one that is not made yet, wants to be prepared."""

    project_id: str
    base_model_id: str
    files: list[Named]
    method: str
    hyperparameters: Json
    options: Json
    seed: int


def of_job(job: Job) -> Wanted:
    kind = job.method["type"]
    return Wanted(
        project_id=job.project_id,
        base_model_id=job.base_model_id,
        files=data.named(job.training_file, job.validation_file, options.parse(job.options)),
        method=kind,
        hyperparameters=job.method[kind]["hyperparameters"],
        options=job.options,
        seed=job.seed,
    )


def of_question(row: Answer) -> Wanted:
    asked = row.question
    return Wanted(
        project_id=row.project_id,
        base_model_id=asked["base_model_ids"][0],
        files=data.named(asked["training_file_id"], asked["validation_file_id"], options.parse(asked["ext"])),
        method=asked["method"],
        hyperparameters=asked["hyperparameters"],
        options=asked["ext"],
        seed=asked["seed"],
    )


def key(session: Session, wanted: Wanted, settings: Settings) -> str:
    """The id of the set that these data make: project, data, template, tokenizer, limits and code, hashed."""
    base = session.get_one(BaseModel, wanted.base_model_id)
    chosen = options.parse(wanted.options)
    assert base.facts is not None
    assert base.files is not None
    facts = Facts.model_validate(base.facts)
    contents = {entry["path"]: entry["sha256"] for entry in base.files["files"]}
    asked: dict[str, Any] = {name: chosen.model_dump(mode="json")[name] for name in _DECISIVE}
    own = chosen.chat_template == "base"
    asked["chat_template"] = (
        contents.get("chat_template.jinja") if own else hashlib.sha256(chosen.chat_template.encode()).hexdigest()
    )
    # Only these draw lots: without them any seed gives the same rows.
    drawn = chosen.data.mix is not None or chosen.data.validation_fraction is not None
    decisive = {
        "project": wanted.project_id,
        "code": code(),
        "data": {file.param: session.get_one(File, file.file_id).sha256 for file in wanted.files},
        "method": wanted.method,
        # Pairs are rows of their own for KTO.
        "judged_singly": wanted.method == "dpo" and chosen.preference.loss == "kto",
        "options": asked,
        "seed": wanted.seed if drawn else None,
        "prompts": chosen.eval.generate if isinstance(chosen.eval.generate, list) else None,
        "tokenizer": {name: contents.get(name) for name in _TOKENIZER_FILES},
        "special": [facts.special_tokens, facts.adds_bos, facts.bos_token_id, facts.eos_token_ids],
        "limits": [facts.context_length, settings.min_examples],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@lru_cache
def code() -> str:
    """A hash of the code that prepares rows: what another version made is not what this one would make."""
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(path for path in _ROOT.glob(pattern) if path.is_file()):
            digest.update(f"{path.name}\0".encode())
            digest.update(path.read_bytes())
    for name in _LIBRARIES:
        digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()


class Ready(NamedTuple):
    id: str
    base: BaseModel
    prepared: Prepared


def find(parts: Parts, wanted: Wanted) -> Ready | None:
    """What preparing would give, from a set that is there already; None when there is none."""
    with transaction(parts.sessions) as session:
        if any(session.get_one(File, file.file_id).status == FileStatus.UPLOADED for file in wanted.files):
            return None
        id = key(session, wanted, parts.settings)
        found = token_sets.find(session, id)
        base = session.get_one(BaseModel, wanted.base_model_id)
    if found is None or not _whole(parts, found):
        return None
    prepared = resolve.prepared(
        Tokenised.model_validate(found.found),
        options.parse(wanted.options),
        Hyperparameters.model_validate(wanted.hyperparameters),
        Facts.model_validate(base.facts),
        seed=wanted.seed,
        fast_bf16=False,
    )
    return Ready(id, base, prepared)


def use(parts: Parts, job: Job, claim: Claim) -> bool:
    """Prepare the job from a set that is there already; False when there is none, and nothing was changed."""
    ready = find(parts, of_job(job))
    if ready is None:
        return False
    reused = Note(message="The data were tokenised before for this model, template and limits: those tokens are used.")
    prepared = ready.prepared.model_copy(update={"notes": [reused, *ready.prepared.notes]})
    with fenced(parts.sessions, Job, claim.id, claim.generation) as (session, row):
        if row.wish == Wish.CANCEL:
            runs.cancelled(session, row)
            return True
        taken = token_sets.take(session, ready.id, row)
        if taken is None:
            return False
        settle(session, row, ready.base, taken, prepared, parts.settings)
    log.info("tokens.reused", job_id=claim.id, token_set=ready.id)
    return True


def _whole(parts: Parts, found: TokenSet) -> bool:
    """Whether every file of the set has its size; a set that has not is forgotten."""
    for name, entry in found.files.items():
        if (size := parts.store.size(entry["key"])) != entry["bytes"]:
            log.warning("tokens.damaged", token_set=found.id, file=name, bytes=size, expected=entry["bytes"])
            with transaction(parts.sessions) as session:
                keys = token_sets.discard(session, found.id)
            parts.store.delete(*keys)
            return False
    return True


def upload(parts: Parts, claim: Claim, folder: Path) -> Json:
    """The token files that a child has left in the folder, into the store."""
    files = {}
    for name in _TOKEN_FILES:
        path = folder / name
        if path.exists():
            place = layout.prepared(claim.id, claim.generation, name)
            parts.store.put_file(place, path)
            files[name] = {"key": place, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return files


def keep(session: Session, id: str, wanted: Wanted, job: Job | None, prepared: Prepared, files: Json) -> TokenSet:
    """What a child has made, for all that want the same; for this job alone where each day may give other rows."""
    if prepared.dated:
        assert job is not None
        id = f"{id}-{job.id}"
    tokenised = Tokenised(**{name: getattr(prepared, name) for name in Tokenised.model_fields})
    return token_sets.keep(
        session,
        id,
        wanted.project_id,
        job,
        file_ids=[file.file_id for file in wanted.files],
        found=tokenised.model_dump(mode="json"),
        files=files,
    )


def settle(
    session: Session, job: Job, base: BaseModel, tokens: TokenSet, prepared: Prepared, settings: Settings
) -> None:
    """Into the train queue, with the files of this set."""
    job.expected_seconds = estimates.seconds(session, base, prepared.model_dump(mode="json"), settings)
    runs.prepared(
        session,
        job,
        resolved=prepared.resolved.model_dump(mode="json"),
        hyperparameters=prepared.resolved.hyperparameters.model_dump(mode="json"),
        data={
            "train": prepared.train.model_dump(mode="json"),
            "valid": prepared.valid.model_dump(mode="json") if prepared.valid else None,
        },
        prepared={
            "files": tokens.files,
            "base": {"name": base.name, "sha256": base.content_sha256},
            "prompts": prepared.prompts,
            "ends": Facts.model_validate(base.facts).eos_token_ids,
        },
        notes=[note.model_dump(mode="json") for note in prepared.notes],
    )
