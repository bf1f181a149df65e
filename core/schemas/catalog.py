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


class Offer(BaseModel):
    object: Literal["fine_tuning.model"] = "fine_tuning.model"
    id: str
    aliases: list[str]
    license: str | None
    methods: dict[str, MethodOffer]
    limits: dict[str, Bounds]
    sizes: Sizes
    recommended: dict[str, Any]  # Any: parts of the body that creates a job
    price: None = None
    """Nothing is charged."""
    created_at: int
