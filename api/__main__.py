"""``python -m api``: the API under uvicorn, until SIGTERM."""

import contextlib
import socket
import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.main import create_app
from core import config, telemetry, wiring


class Server(uvicorn.Server):
    """Ends the streams before it waits for the requests under way: by themselves they would end with their jobs."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: not ready any more, and serve on for a while. The second one: the end."""
        seconds = self._app.state.parts.settings.drain_seconds if self.started else 0
        if seconds == 0 or self._app.state.draining:
            super().handle_exit(sig, frame)
            return
        self._app.state.draining = True
        end = threading.Timer(seconds, super().handle_exit, (sig, frame))
        end.daemon = True
        end.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.live.end()
        await super().shutdown(sockets)


def main() -> None:
    settings = config.load()
    wiring.configure_logging(settings)
    telemetry.serve(settings)
    app = create_app()
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            # Requests under way may finish, but a client that never ends can't keep the process alive.
            timeout_graceful_shutdown=5,
            timeout_keep_alive=75,
        ),
        app,
    )
    # Ctrl-C has ended the server in good order already; uvicorn raises it once more for whoever called.
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main()
