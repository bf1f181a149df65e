"""A checkpoint permission, as OpenAI's wire has it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from core import clock
from core.db.tables import Permission as Row


class PermissionCreate(BaseModel):
    model_config = ConfigDict(strict=True, json_schema_extra={"example": {"project_ids": ["proj_abc123"]}})

    project_ids: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(min_length=1, max_length=100)


class Permission(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


def of(row: Row) -> Permission:
    return Permission(id=row.id, created_at=clock.unix(row.created_at), project_id=row.granted_project_id)
