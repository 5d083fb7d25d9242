"""The sink's HTTP listener: protobuf or JSON in, a scripted status out."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import typing
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from proto_stubs import SignalSchema
from relay import status, wire
from relay.otlp import SIGNALS
from relay.sink.behaviour import GRPC_CODES, Behaviour, grpc_code_of_http, partial_success
from relay.sink.grpc import ABANDONED, reason
from relay.sink.ports import Hold

if typing.TYPE_CHECKING:
    from relay.sink.report import Received
    from relay.sink.server import Sink

__all__ = ["HttpListener"]

_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpListener:
    """Listens on the held addresses between :meth:`open` and :meth:`close`, once."""

    def __init__(self, sink: Sink, hold: Hold) -> None:
        self._sink = sink
        self._hold = hold
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.BaseTransport] = set()

    async def open(self) -> None:
        app = web.Application(client_max_size=self._sink.max_message)
        for signal in SIGNALS:
            app.router.add_post(signal.http_path, self._handler(signal))
        runner = web.AppRunner(
            app,
            access_log=None,
            # A hung answer ends when its client goes.
            handler_cancellation=True,
            shutdown_timeout=0.01,
        )
        await runner.setup()
        self._runner = runner
        self._hold.listening()
        tls = self._ssl()
        if self._hold.path:
            await web.UnixSite(runner, self._hold.path, ssl_context=tls).start()
        for host, port in self._hold.addresses:
            await web.TCPSite(runner, host, port, ssl_context=tls, reuse_address=True).start()

    def _ssl(self) -> ssl.SSLContext | None:
        tls = self._sink.tls
        if tls is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        if tls.client_ca_file:
            context.load_verify_locations(tls.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        for transport in list(self._transports):
            _abort(transport)
        await runner.cleanup()
        if self._hold.path:
            _remove(self._hold.path)
        else:
            self._hold.closed()

    def _handler(self, signal: SignalSchema) -> _Handler:
        async def export(request: web.Request) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the client has gone")
            self._transports.add(transport)
            try:
                return await self._export(signal, request)
            finally:
                self._transports.discard(transport)

        return export

    async def _export(self, signal: SignalSchema, request: web.Request) -> web.StreamResponse:
        json = request.content_type == _JSON
        if not json and request.content_type != _PROTOBUF:
            return _failure(415, f"send {_PROTOBUF} or {_JSON}", json=False)
        headers = {key.lower(): value for key, value in request.headers.items()}
        try:
            payload = await request.read()
            if json:
                payload = _from_json(payload, signal)
            received, behaviour = self._sink.take(signal, "http", payload, headers)
        except web.HTTPRequestEntityTooLarge:
            return _failure(413, f"larger than {self._sink.max_message} bytes", json=json)
        except (wire.MalformedError, _BadJsonError) as error:
            return _failure(400, str(error), json=json)
        if behaviour.hang:
            await asyncio.Event().wait()
        if behaviour.delay:
            try:
                await asyncio.sleep(behaviour.delay)
            except asyncio.CancelledError:
                self._sink.answered(received, ABANDONED)
                raise
        if behaviour.close:
            return await self._close(received, request)
        if behaviour.fails:
            self._sink.answered(received, str(behaviour.http_code))
            return _failure(
                behaviour.http_code,
                reason(behaviour),
                json=json,
                code=behaviour.code,
                retry_after=behaviour.retry_after,
            )
        self._sink.answered(received, str(behaviour.http_code), behaviour.reject)
        return _success(signal, behaviour, json=json)

    async def _close(self, received: Received, request: web.Request) -> web.StreamResponse:
        """Promise a body, send a part of it, and cut the connection."""
        self._sink.answered(received, ABANDONED)
        response = web.StreamResponse(headers={"Content-Type": _PROTOBUF, "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"\n")
        if request.transport is not None:
            _abort(request.transport)
        return response


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
    else:
        transport.close()


def _success(signal: SignalSchema, behaviour: Behaviour, *, json: bool) -> web.Response:
    body = partial_success(signal, behaviour.reject, reason(behaviour))
    if behaviour.garbage is not None:
        body = behaviour.garbage
    elif json:
        body = _response_as_json(body, signal)
    return web.Response(
        status=behaviour.http_code, body=body, content_type=_JSON if json else _PROTOBUF
    )


def _failure(
    http_status: int,
    message: str,
    *,
    json: bool,
    code: str = "",
    retry_after: float | None = None,
) -> web.Response:
    number = GRPC_CODES[code or grpc_code_of_http(http_status)]
    encode = status.encode_json if json else status.encode
    headers = {}
    if retry_after is not None:
        # delta-seconds is an integer (RFC 9110, 10.2.3): rounded up, so that nobody is early.
        headers["Retry-After"] = str(-int(-retry_after // 1))
    return web.Response(
        status=http_status,
        body=encode(number, message, retry_after),
        content_type=_JSON if json else _PROTOBUF,
        headers=headers,
    )


class _BadJsonError(ValueError):
    """A JSON body that is no request of its signal."""


def _from_json(body: bytes, signal: SignalSchema) -> bytes:
    from relay.sink import messages  # noqa: PLC0415 - message classes only where JSON comes in

    try:
        return messages.from_json(body, signal)
    except ValueError as error:
        raise _BadJsonError(str(error)) from None


def _response_as_json(body: bytes, signal: SignalSchema) -> bytes:
    from relay.sink import messages  # noqa: PLC0415 - as above

    return messages.response_as_json(body, signal)
