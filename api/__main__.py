"""``python -m api``: the API under uvicorn, until SIGTERM."""

import uvicorn

from core import config, wiring


def main() -> None:
    settings = config.load()
    wiring.configure_logging(settings)
    uvicorn.run(
        "api.main:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        # Requests under way may finish, but a client that never ends can't keep the process alive.
        timeout_graceful_shutdown=5,
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
