"""Pages of a list: ``after`` is the last id of the page before; ``has_more`` says whether to ask again."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class EndedPage(Page[Item], Generic[Item]):
    """A page that names its ends, where OpenAI's does."""

    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True
