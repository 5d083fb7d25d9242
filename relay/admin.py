"""The admin listener: metrics, health, readiness, status and its page; plain HTTP, read-only.

Readiness is the relay's own: it does not depend on the collector.

Sources: contract, sections 2, 4 and 7; OpenMetrics 1.0 (content negotiation).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from relay import page
from relay.receivers import Listen
from relay.receivers.sockets import UnixSocketFile, address, tcp_sockets, unix_socket

__all__ = ["Admin"]

STOP_GRACE = 0.2
"""Seconds that an answer under way has once the listener closes; a client may have stopped reading.
"""

_Handler = Callable[[web.Request], Awaitable[web.Response]]


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
        self._runner: web.AppRunner | None = None
        self._file: UnixSocketFile | None = None
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
        app = web.Application()
        for path, handler in self._routes().items():
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=STOP_GRACE
        )
        await self._runner.setup()
        self._sample()
        for sock in sockets:
            await web.SockSite(self._runner, sock).start()
        return [address(sock) for sock in sockets]

    async def stop(self) -> None:
        """Close the listener. Idempotent."""
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _routes(self) -> Mapping[str, _Handler]:
        return {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status.json": self._status_json,
            "/history.json": self._history_json,
            **{path: _serve(asset) for path, asset in page.assets().items()},
        }

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(self._registry))
        response.headers["Content-Type"] = content_type
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready: starting or stopping\n")

    async def _status_json(self, _: web.Request) -> web.Response:
        return _json(self._status())

    async def _history_json(self, _: web.Request) -> web.Response:
        return _json(self._history.document())

    def _sample(self) -> None:
        self._history.add(self._status())
        loop = asyncio.get_running_loop()
        self._sampling = loop.call_later(page.INTERVAL, self._sample)


def _json(document: Mapping[str, object]) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.json_response(document, headers=headers)


def _serve(asset: page.Asset) -> _Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(
            text=asset.text, content_type=asset.content_type, charset="utf-8", headers=page.HEADERS
        )

    return answer
