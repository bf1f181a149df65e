"""The application: routes under ``/v1`` behind a key, health beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI

from api import auth, docs, errors, memory, openapi
from api.limits import RequestLimit
from api.live import Live
from api.requests import RequestIds
from api.routes import (
    admin,
    artifacts,
    catalog,
    estimates,
    files,
    health,
    jobs,
    metrics,
    models,
    permissions,
    queue,
    reports,
    uploads,
    webhooks,
)
from core import wiring
from core.wiring import Parts

THREADS = 24


def install(app: FastAPI, parts: Parts) -> None:
    """Give the application what its routes ask for."""
    app.state.parts = parts
    app.state.limit = RequestLimit(parts.settings)
    app.state.live = Live(parts)


def create_app(parts: Parts | None = None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        memory.steady()
        # Threads for requests that wait for something, each with a connection of its own: a pool that is smaller
        # would open and close connections all the time, and more threads only take turns at Python's lock.
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        install(app, parts or wiring.assemble(pool_size=THREADS))
        app.state.live.open()
        yield
        await app.state.live.close()
        app.state.parts.close()

    app = FastAPI(
        title="Attune",
        summary="The OpenAI fine-tuning API on your own machines.",
        version="0.1.0",
        lifespan=lifespan,
        # A trailing slash is another URL, not a redirect that some clients turn into a GET.
        redirect_slashes=False,
        # FastAPI's own pages load their scripts from the network; api/docs needs none.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.draining = False
    errors.install(app)
    openapi.install(app)
    docs.install(app)
    app.add_middleware(RequestIds)
    # The key comes first: this dependency runs before a route's own, so without one nothing else is looked at.
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(auth.tenant)])
    # Artifacts before models: the latter's names take everything that follows.
    for noun in (
        files,
        reports,
        uploads,
        estimates,
        jobs,
        metrics,
        permissions,
        catalog,
        queue,
        artifacts,
        models,
        admin,
        webhooks,
    ):
        v1.include_router(noun.router)
    app.include_router(v1)
    app.include_router(health.router)
    return app
