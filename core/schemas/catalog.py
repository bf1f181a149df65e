"""What a base model can be tuned with, and within which limits."""

from typing import Any, Literal

from pydantic import BaseModel


class MethodOffer(BaseModel):
    adapters: list[str]
    formats: list[str]
    """Of training rows."""


class Bounds(BaseModel):
    min: float
    max: float | None


class Sizes(BaseModel):
    parameters: int | None
    bytes: int | None
    hidden_size: int | None
    layers: int | None
    vocab_size: int | None
    context_length: int | None


class ChatTemplate(BaseModel):
    origin: str
    """``model``, ``given`` at registration, or ``default:`` and the name of a template that ships with the service."""
    text: str


class Offer(BaseModel):
    object: Literal["fine_tuning.model"] = "fine_tuning.model"
    id: str
    aliases: list[str]
    license: str | None
    methods: dict[str, MethodOffer]
    limits: dict[str, Bounds]
    sizes: Sizes
    chat_template: ChatTemplate | None
    """What turns conversations into text, unless a job brings its own."""
    recommended: dict[str, Any]  # Any: parts of the body that creates a job
    price: None = None
    """Nothing is charged."""
    created_at: int
