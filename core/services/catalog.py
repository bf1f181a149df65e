"""The base models on offer, each with what it can be tuned with."""

from sqlalchemy.orm import Session

from core import catalog, clock
from core.config import Settings
from core.db.tables import BaseModel
from core.schemas.catalog import AdapterOffer, Bounds, ChatTemplate, MethodOffer, Offer, Price, Sizes
from core.services import base_models


def offers(session: Session, settings: Settings) -> list[Offer]:
    return [_offer(row, settings) for row in base_models.list_ready(session)]


def _offer(row: BaseModel, settings: Settings) -> Offer:
    facts = row.facts or {}
    limits = catalog.limits(facts.get("context_length"), settings.min_examples)
    return Offer(
        id=row.name,
        aliases=row.aliases,
        license=row.license,
        methods={
            name: MethodOffer(
                adapters={adapter: AdapterOffer(**catalog.ADAPTERS[adapter]._asdict()) for adapter in method.adapters},
                formats=list(method.formats),
            )
            for name, method in catalog.METHODS.items()
        },
        limits={name: Bounds(min=least, max=greatest) for name, (least, greatest) in limits.items()},
        sizes=Sizes(**{name: facts.get(name) for name in Sizes.model_fields}),
        chat_template=(
            ChatTemplate(origin=facts["template_origin"], text=facts["chat_template"])
            if "chat_template" in facts
            else None
        ),
        recommended=catalog.recommended(),
        price=price(settings),
        created_at=clock.unix(row.created_at),
    )


def cost(rates: Price, seconds: float, tokens: int) -> float:
    return (rates.per_million_tokens or 0.0) * tokens / 1e6 + (rates.per_hour or 0.0) * seconds / 3600


def price(settings: Settings) -> Price | None:
    if settings.price_per_hour is None and settings.price_per_million_tokens is None:
        return None
    return Price(
        currency=settings.price_currency,
        per_hour=settings.price_per_hour,
        per_million_tokens=settings.price_per_million_tokens,
    )
