"""The application with one more route that does nothing: what a request costs before it asks for anything."""

from fastapi import APIRouter, Depends, FastAPI

from api import auth
from api.main import create_app as real_app

EMPTY = "/v1/_bench/empty"


def create_app() -> FastAPI:
    app = real_app()
    router = APIRouter(dependencies=[Depends(auth.tenant)])

    @router.get(EMPTY)
    def empty() -> dict[str, str]:
        return {"object": "nothing"}

    app.include_router(router)
    return app
