"""What a job begins from: a model that was tuned before, or a checkpoint of one."""

import hashlib
from typing import Any

from sqlalchemy.orm import Session

from core import options
from core.db.tables import BaseModel
from core.db.tenancy import Tenant
from core.errors import BadRequest, NotFound
from core.options import JobOptions
from core.resolved import Resolved
from core.services import models

Json = dict[str, Any]  # Any: name, prefix, sha256, and files with path, bytes and sha256

# Adapters whose files are the same: one may go on from the other.
_KIN = {"qlora": "lora", "layers": "full"}
_STATE = "state.safetensors"


def origin(session: Session, tenant: Tenant, chosen: JobOptions, base: BaseModel) -> Json | None:
    """Where the weights lie that ``ext.init_from`` names; raises BadRequest where this job can't begin from them."""
    name = chosen.init_from
    if name is None:
        return None
    try:
        found = models.weights_of(session, tenant, name)
    except NotFound as error:
        raise BadRequest(f"ext.init_from: {error.message}", param="ext.init_from", code=error.error_code) from None
    if found.base_model_id != base.id:
        message = f"ext.init_from: {name!r} was tuned on another base model than this job's, {base.name!r}."
        raise BadRequest(message, param="ext.init_from")
    _same_adapter(chosen, Resolved.model_validate(found.resolved), name)
    names = {entry["path"] for entry in found.files}
    if chosen.resume_optimizer and _STATE not in names:
        message = f"ext.resume_optimizer: {name!r} has no optimizer's state; checkpoints have it (…:ckpt-step-<n>)."
        raise BadRequest(message, param="ext.resume_optimizer")
    wanted = [entry for entry in found.files if _needed(entry["path"], chosen)]
    told = "".join(f"{entry['path']} {entry['sha256']}\n" for entry in sorted(wanted, key=lambda entry: entry["path"]))
    return {
        "name": name,
        "prefix": found.prefix,
        "sha256": hashlib.sha256(told.encode()).hexdigest(),
        "files": wanted,
    }


def _needed(path: str, chosen: JobOptions) -> bool:
    if path == _STATE:
        return chosen.resume_optimizer
    return path.startswith(("adapter_", "model")) and "/" not in path


def _same_adapter(chosen: JobOptions, before: Resolved, name: str) -> None:
    """The weights fit only what has their shape, and mean the same only with the same scaling."""
    had, wanted = before.adapter, chosen.adapter
    if _KIN.get(had, had) != _KIN.get(wanted, wanted):
        raise _other("ext.adapter", wanted, had, name)
    pairs: list[tuple[str, object, object]] = []
    if wanted in options.LOW_RANK and before.lora is not None:
        lora = chosen.lora
        pairs = [
            ("ext.lora.rank", lora.rank, before.lora.rank),
            ("ext.lora.alpha", lora.alpha_used, before.lora.alpha),
            ("ext.lora.target_modules", lora.target_modules, before.lora.target_modules),
            ("ext.lora.rslora", lora.rslora, before.lora.rslora),
            ("ext.lora.dora", lora.dora, before.lora.dora),
        ]
    elif wanted == "ia3":
        pairs = [("ext.lora.target_modules", chosen.lora.target_modules, before.target_modules)]
    elif wanted == "peft":
        pairs = [("ext.peft", chosen.peft, before.peft)]
    elif before.prompt is not None:
        pairs = [("ext.prompt.virtual_tokens", chosen.prompt.virtual_tokens, before.prompt.virtual_tokens)]
    for path, asked, was in pairs:
        if asked != was:
            raise _other(path, asked, was, name)


def _other(path: str, asked: object, was: object, name: str) -> BadRequest:
    return BadRequest(f"{path}: {asked} is not what {name!r} was tuned with, {was}; give that.", param=path)
