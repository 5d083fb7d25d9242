"""The admin listener: metrics, health, readiness, status and its page; plain HTTP, read-only.

Readiness is the relay's own: it does not depend on the collector.

Sources: contract, sections 2, 4 and 7; OpenMetrics 1.0 (content negotiation).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from relay import page, web
from relay.receivers import Listen
from relay.receivers.sockets import BACKLOG, UnixSocketFile, address, tcp_sockets, unix_socket

__all__ = ["Admin"]

STOP_GRACE = 0.2
"""Seconds that an answer under way has once the listener closes; a client may have stopped reading.
"""

_Handler = Callable[[web.BaseRequest], web.Response]
_ALLOW = "GET,HEAD"
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_log = logging.getLogger(__name__)


class Admin:
    """Serves what it is given: a registry, a readiness, a status.

    ``status`` returns what ``/status.json`` shows; it must hold no secret.
    """

    def __init__(
        self,
        listen: Listen,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        status: Callable[[], Mapping[str, object]],
        *,
        socket_mode: int = 0o660,
    ) -> None:
        self._listen = listen
        self._registry = registry
        self._ready = ready
        self._status = status
        self._socket_mode = socket_mode
        self._servers: list[asyncio.Server] = []
        self._server: web.Server | None = None
        self._file: UnixSocketFile | None = None
        self._routes: Mapping[str, _Handler] = {}
        self._history = page.History()
        self._sampling: asyncio.TimerHandle | None = None

    async def start(self) -> list[str]:
        """Listen; returns the bound addresses.

        Raises:
            OSError: an address cannot be had.
        """
        sockets: list[socket.socket]
        if self._listen.path:
            unix, self._file = unix_socket(self._listen.path, self._socket_mode)
            sockets = [unix]
        else:
            sockets = tcp_sockets(self._listen)
        bound = [address(sock) for sock in sockets]
        self._routes = self._paths()
        self._server = web.Server(self._handle, access_log=None, logger=_log)
        self._sample()
        try:
            while sockets:
                self._servers.append(await self._serve(self._server, sockets[0]))
                del sockets[0]
        except BaseException:
            for sock in sockets:
                sock.close()
            await self.stop()
            raise
        return bound

    async def _serve(self, server: web.Server, sock: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        return await create(server, sock=sock, backlog=BACKLOG)

    async def stop(self) -> None:
        """Close the listener. Idempotent."""
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        for listener in self._servers:
            listener.close()
        self._servers.clear()
        server, self._server = self._server, None
        if server is not None:
            await asyncio.sleep(0)  # what has just arrived begins to be handled
            server.pre_shutdown()
            await server.shutdown(STOP_GRACE)
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _paths(self) -> dict[str, _Handler]:
        return {
            "/metrics": self._metrics,
            "/healthz": lambda _: web.Response(text="ok\n"),
            "/readyz": self._readyz,
            "/status.json": lambda _: _json(self._status()),
            "/history.json": lambda _: _json(self._history.document()),
            **{path: _serve(asset) for path, asset in page.assets().items()},
        }

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        handler = self._routes.get(request.path)
        if handler is None:
            return web.Response(status=404, text="not found\n")
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="read-only\n", headers={"Allow": _ALLOW})
        return handler(request)

    def _metrics(self, request: web.BaseRequest) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(self._registry))
        response.headers["Content-Type"] = content_type
        return response

    def _readyz(self, _: web.BaseRequest) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready: starting or stopping\n")

    def _sample(self) -> None:
        self._history.add(self._status())
        loop = asyncio.get_running_loop()
        self._sampling = loop.call_later(page.INTERVAL, self._sample)


def _json(document: Mapping[str, object]) -> web.Response:
    return web.Response(
        text=json.dumps(document), content_type="application/json", headers=_NO_STORE
    )


def _serve(asset: page.Asset) -> _Handler:
    return lambda _: web.Response(
        text=asset.text, content_type=asset.content_type, charset="utf-8", headers=page.HEADERS
    )
