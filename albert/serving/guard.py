"""What stands in front of the service: whose requests are taken, how many and how large."""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from albert.serving.abilities import Limits
from albert.serving.metrics import Metrics

# Of a request that is refused so much is read and dropped, so that the client gets to see why: one
# that is still sending when its connection is closed may not.
_DROPPED_BYTES = 64 * 2**20
_DROPPED_SECONDS = 10.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens under this name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refusal(status: int, sentence: str, **headers: str) -> JSONResponse:
    """Every error has this form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": sentence}, status, named)


class _Cut(Exception):
    """The body is too large."""


class _Gone(Exception):
    """The client has closed the connection."""


class Guard:
    """ASGI in front of the app: counts requests, and lets through those that are within the limits
    with their bodies read.

    Args:
      app: behind it.
      limits: of body, time, and requests at once.
      token: that requests must bear, but for reading the pages in `open_paths`; None: none.
      at_once: requests with a body that may be on their way.
      paths: what there is, for counting.
      open_paths: that need no token.
      count: `Metrics.count_request`.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        token: str | None,
        at_once: int,
        paths: Iterable[str],
        open_paths: Iterable[str],
        metrics: Metrics,
    ):
        self._app = app
        self._limits = limits
        self._token = token
        self._at_once = at_once
        self._paths = frozenset(paths)
        self._open_paths = frozenset(open_paths)
        self._metrics = metrics
        self._on_their_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if response := self._refused(scope):
                await _drop(scope, receive)
                await response(scope, receive, counted)
            elif scope["method"] != "POST":
                await self._app(scope, receive, counted)
            else:
                self._on_their_way += 1
                try:
                    await self._with_body(scope, receive, counted)
                finally:
                    self._on_their_way -= 1
        except _Gone:
            status = 499
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count_request(path, status, time.perf_counter() - begin)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        """Why a request is not even read; None where it is."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is None:
            # A page elsewhere whose name leads to this machine could ask in a browser's name.
            host = headers.get(b"host", "").rpartition("@")[2]
            name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
            if not is_loopback(name):
                return refusal(
                    403,
                    f"This service answers on this machine alone, and not under the name "
                    f"{host!r}; started with --token it answers under any.",
                )
        elif scope["method"] == "POST" or scope["path"] not in self._open_paths:
            given = headers.get(b"authorization", "")
            kind, _, token = given.partition(" ")
            right = hmac.compare_digest(token.strip().encode(), self._token.encode())
            if kind.lower() != "bearer" or not right:
                what = "The token is not that of this service" if given else "A token is needed"
                return refusal(
                    401,
                    f"{what}: send the header Authorization: Bearer TOKEN.",
                    WWW_Authenticate="Bearer",
                )
        if scope["method"] != "POST":
            return None
        if self._on_their_way >= self._at_once:
            return refusal(
                429,
                f"{self._on_their_way} requests are on their way, and no more are taken; try again "
                "later.",
                Retry_After="1",
            )
        media = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            shown = repr(media) if media else "not said"
            return refusal(415, f"The body's type is {shown}; send Content-Type: application/json.")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            return self._too_large(f"{int(length):,} bytes")
        return None

    def _too_large(self, size: str) -> JSONResponse:
        return refusal(
            413,
            f"The body has {size}, and {self._limits.body_bytes:,} is the most that is taken; send "
            "fewer texts at once.",
        )

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body, and calls the app with it."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await self._read(receive)
        except TimeoutError:
            seconds = f"{self._limits.seconds:g} s"
            await refusal(408, f"The body did not arrive within {seconds}.")(scope, receive, send)
            return
        except _Cut:
            await _drop(scope, receive)
            await self._too_large("more bytes than that")(scope, receive, send)
            return
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_body, send)

    async def _read(self, receive: Receive) -> bytes:
        parts = []
        size = 0
        async for part in _parts(receive):
            size += len(part)
            if size > self._limits.body_bytes:
                raise _Cut
            parts.append(part)
        return b"".join(parts)


async def _parts(receive: Receive):
    """The body, as it comes; raises _Gone."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _drop(scope: Scope, receive: Receive) -> None:
    """Reads what a client is about to send, unless it waits to be asked for it."""
    headers: dict[bytes, Any] = dict(scope["headers"])
    if headers.get(b"expect", b"").lower() == b"100-continue":
        return
    size = 0
    try:
        async with asyncio.timeout(_DROPPED_SECONDS):
            async for part in _parts(receive):
                size += len(part)
                if size > _DROPPED_BYTES:
                    return
    except TimeoutError:
        pass
