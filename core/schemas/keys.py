"""API keys as an administrator sees them; the key itself is in one answer only."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core import clock
from core.db.tables import ApiKey

Scope = Literal["read", "train", "admin"]


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=128)
    scopes: list[Scope] = Field(["read", "train"], min_length=1, max_length=3)


class KeyOut(BaseModel):
    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: list[str]
    prefix: str
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


class NewKeyOut(KeyOut):
    key: str


def of(row: ApiKey) -> KeyOut:
    return KeyOut.model_validate(_fields(row))


def of_new(row: ApiKey, key: str) -> NewKeyOut:
    return NewKeyOut.model_validate(_fields(row) | {"key": key})


def _fields(row: ApiKey) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes,
        "prefix": row.prefix,
        "created_at": clock.unix(row.created_at),
        "last_used_at": clock.unix_or_none(row.last_used_at),
        "revoked_at": clock.unix_or_none(row.revoked_at),
    }
