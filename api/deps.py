"""What routes ask for: the parts, a transaction, the tenant, a JSON body that is read after the key was checked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Header, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from api.auth import administrator, tenant
from api.live import Live
from core.config import MIB
from core.db.session import reading, transaction
from core.db.tenancy import Tenant
from core.errors import BadRequest, TooLarge
from core.wiring import Parts

_MAX_JSON = MIB
Body = TypeVar("Body", bound=BaseModel)


# Coroutines, since they do nothing that could wait: a plain function would cost a hop to a thread.
async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def _live(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


async def _session(request: Request, parts: Annotated[Parts, Depends(_parts)]) -> AsyncIterator[Session]:
    if request.method in ("GET", "HEAD"):
        # Opening and closing it asks the database nothing.
        with reading(parts.sessions) as session:
            yield session
    else:
        async with contextmanager_in_threadpool(transaction(parts.sessions)) as session:
            yield session


PartsDep = Annotated[Parts, Depends(_parts)]
# scope="function": the commit happens before the answer is sent, so a commit that fails is seen by the client.
SessionDep = Annotated[Session, Depends(_session, scope="function")]
TenantDep = Annotated[Tenant, Depends(tenant)]
AdminDep = Annotated[Tenant, Depends(administrator)]
LiveDep = Annotated[Live, Depends(_live)]

AfterQuery = Annotated[str | None, Query(min_length=1, description="The last id of the page before.")]


@dataclass(frozen=True, slots=True)
class Parsed(Generic[Body]):
    """A body as a model, and as the JSON that the client sent."""

    model: Body
    json: dict[str, Any]


def json_body(model: type[Body]) -> Callable[[Request], Awaitable[Parsed[Body]]]:
    """A dependency that reads the body as this model. FastAPI's own reading comes before authentication."""

    async def read(request: Request) -> Parsed[Body]:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MAX_JSON:
                raise TooLarge(f"The request body is larger than {_MAX_JSON:,} bytes.")
        return parse(model, bytes(raw))

    return read


def with_ext_header(model: type[Body]) -> Callable[..., Awaitable[Parsed[Body]]]:
    """The same; a client that can't send keys of ours in the body may send ``ext`` in the header X-Attune-Ext."""
    plain = json_body(model)

    async def read(
        request: Request,
        header: Annotated[
            str | None,
            Header(alias="X-Attune-Ext", description="`ext` as JSON, for clients that can't send it in the body."),
        ] = None,
    ) -> Parsed[Body]:
        parsed = await plain(request)
        if header is None:
            return parsed
        if "ext" in parsed.json:
            raise BadRequest("ext: given in the body and in the header X-Attune-Ext; use one of them.", param="ext")
        try:
            ext = orjson.loads(header)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"X-Attune-Ext is not valid JSON: {error}.", param="ext", code="invalid_json") from None
        return parse(model, orjson.dumps(parsed.json | {"ext": ext}))

    return read


def parse(model: type[Body], raw: bytes) -> Parsed[Body]:
    if not raw.strip():
        raise BadRequest("The request body is empty; it must be a JSON object.", code="invalid_json")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    # PostgreSQL has no NUL in text; it can only come in as this escape, since raw control characters are not JSON.
    if b"\\u0000" in raw:
        raise BadRequest("The body holds a NUL character (\\u0000), which can't be stored.", code="invalid_json")
    try:
        return Parsed(model.model_validate(value), value)
    except ValidationError as error:
        raise first_fault(error, value) from None


def first_fault(error: ValidationError, value: object) -> BadRequest:
    """A pydantic error as one sentence per fault; ``param`` is the path of the first."""
    faults = error.errors()
    sentences = []
    for fault in faults:
        path = dotted(fault["loc"])
        given = fault.get("input")
        shown = "" if fault["type"] == "missing" or isinstance(given, dict | list) else f", not {_short(given)}"
        sentences.append(f"{path}: {_lower(fault['msg'])}{shown}")
    return BadRequest("; ".join(sentences) + ".", param=dotted(faults[0]["loc"]))


def dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """For ``openapi_extra``: the body that a route reads through :func:`json_body`.

    ``api/openapi.py`` puts the model and what it is made of where the references point.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
