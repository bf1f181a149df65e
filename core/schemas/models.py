"""Model, as OpenAI's wire has it, and the administrator's view of a base model."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core import clock
from core.db.tables import BaseModel as BaseModelRow
from core.db.tables import TunedModel


class ModelExt(BaseModel):
    kind: Literal["base", "tuned"]
    base_model: str | None = None
    job_id: str | None = None
    result_files: list[str] = []
    alias_of: str | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    ext: ModelExt


class BaseModelCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    source: str = Field(min_length=4, max_length=1024, pattern=r"^(hf|path|gguf):.+$")
    revision: str | None = Field(None, max_length=128)
    chat_template: str | None = Field(None, max_length=65536)
    aliases: list[str] = Field([], max_length=32)
    license: str | None = Field(None, max_length=256)


class ArtifactFile(BaseModel):
    path: str
    bytes: int
    sha256: str
    url: str


class BaseModelOut(BaseModel):
    object: Literal["base_model"] = "base_model"
    id: str
    source: str
    revision: str | None
    aliases: list[str]
    license: str | None
    status: Literal["registering", "ready", "failed"]
    progress: dict[str, Any] | None  # {percent, message}
    error: dict[str, Any] | None  # {code, message, param}
    facts: dict[str, Any] | None  # worker/prepare/folder.Facts without its file list
    created_at: int
    artifacts: list[ArtifactFile] | None = None


def base_of(row: BaseModelRow, artifacts: list[ArtifactFile] | None = None) -> BaseModelOut:
    facts = {key: value for key, value in row.facts.items() if key != "files"} if row.facts else None
    return BaseModelOut(
        id=row.name,
        source=row.source,
        revision=row.revision,
        aliases=row.aliases,
        license=row.license,
        status=row.status,
        progress=row.progress,
        error=row.error,
        facts=facts,
        created_at=clock.unix(row.created_at),
        artifacts=artifacts,
    )


def of_base(row: BaseModelRow, name: str, owner: str) -> Model:
    return Model(
        id=name,
        created=clock.unix(row.created_at),
        owned_by=owner,
        ext=ModelExt(kind="base", base_model=row.name, alias_of=row.name if name != row.name else None),
    )


def of_tuned(row: TunedModel, base_model: str, result_files: list[str], owner: str) -> Model:
    return Model(
        id=row.id,
        created=clock.unix(row.created_at),
        owned_by=owner,
        ext=ModelExt(kind="tuned", base_model=base_model, job_id=row.job_id, result_files=result_files),
    )
