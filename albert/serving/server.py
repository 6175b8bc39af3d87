"""From an app to an open port, until it is asked to stop."""

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from albert.runtime import RunError

_BACKLOG = 256  # connections that nobody has looked at yet


def claim(host: str, port: int) -> socket.socket:
    """The port, which nobody can connect to yet; 0: any that is free.

    Raises RunError when it is taken, or there is no such host.
    """
    claimed = None
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        claimed = socket.socket(family, kind, number)
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind(address)
    except OSError as error:
        if claimed:
            claimed.close()
        raise RunError(
            f"{host}:{port} cannot be listened on: {error.strerror}. Choose others with --host and "
            "--port."
        ) from error
    return claimed


def make_server(app: ASGIApp, seconds: float) -> uvicorn.Server:
    """What serves the app. When it is stopped, requests that are there are answered within
    `seconds`, and new ones are not taken."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # /metrics counts
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(seconds)),
        server_header=False,
        lifespan="on",
    )
    return uvicorn.Server(config)


def run(app: ASGIApp, port: socket.socket, seconds: float, on_open: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT, and returns when what had come is answered.

    `on_open` is called when the port is open: who comes at once waits for a moment.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes these, and raises them again behind its end, which is no reason to die.
        signal.signal(number, lambda *_: None)
    port.listen(_BACKLOG)
    on_open()
    make_server(app, seconds).run(sockets=[port])
