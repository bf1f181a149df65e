"""What a base model can be tuned with, and within which limits."""

from typing import Any, Literal

from pydantic import BaseModel


class AdapterOffer(BaseModel):
    output: Literal["adapter", "model"]
    """What a job ends with: an adapter for the base model, or a whole model."""
    mergeable: bool
    """Whether the adapter can become part of the base model's weights."""
    vllm: bool
    """Whether vLLM can load what comes out."""


class MethodOffer(BaseModel):
    adapters: dict[str, AdapterOffer]
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


class Price(BaseModel):
    """The operator's rates, which add up."""

    currency: str
    per_hour: float | None
    """Of training, from an idle worker to the written model."""
    per_million_tokens: float | None
    """That training reads: the tokens of all epochs."""


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
    price: Price | None
    """Null where the operator has set no rates."""
    created_at: int
