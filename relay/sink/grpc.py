"""The sink's gRPC listener: raw bytes in, a scripted status out."""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from proto_stubs import SignalSchema
from relay import status, wire
from relay.otlp import SIGNALS
from relay.sink.behaviour import GRPC_CODES, Behaviour, partial_success
from relay.sink.ports import Hold

if typing.TYPE_CHECKING:
    from relay.sink.report import Received
    from relay.sink.server import Sink

__all__ = ["ABANDONED", "GrpcListener", "reason"]

ABANDONED = "ABANDONED"
"""``Received.answer`` when the client or the listener went away before the answer."""

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Handler = Callable[[bytes, _Context], Awaitable[bytes]]
_CODES = {code.name: code for code in grpc.StatusCode}


class GrpcListener:
    """Listens on the held addresses between :meth:`open` and :meth:`close`, once."""

    def __init__(self, sink: Sink, hold: Hold) -> None:
        self._sink = sink
        self._hold = hold
        self._server: grpc.aio.Server | None = None

    async def open(self) -> None:
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._sink.max_message),
                ("grpc.max_send_message_length", -1),
                # A collector that has just come back must not be slow to answer pings.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            )
        )
        for signal in SIGNALS:
            handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
                self._handler(signal)
            )
            server.add_registered_method_handlers(signal.service, {"Export": handler})
        self._hold.listening()
        try:
            for endpoint in self._hold.endpoints:
                self._bind(server, endpoint)
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"cannot listen on {self._hold.endpoint}: {error}") from None
        self._server = server

    def _bind(self, server: grpc.aio.Server, endpoint: str) -> None:
        tls = self._sink.tls
        if tls is None:
            server.add_insecure_port(endpoint)
            return
        client_ca = Path(tls.client_ca_file).read_bytes() if tls.client_ca_file else None
        credentials = grpc.ssl_server_credentials(
            [(Path(tls.key_file).read_bytes(), Path(tls.cert_file).read_bytes())],
            root_certificates=client_ca,
            require_client_auth=client_ca is not None,
        )
        server.add_secure_port(endpoint, credentials)

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
            if not self._hold.path:
                self._hold.closed()

    def _handler(self, signal: SignalSchema) -> _Handler:
        async def export(payload: bytes, context: _Context) -> bytes:
            return await self._export(signal, payload, context)

        return export

    async def _export(self, signal: SignalSchema, payload: bytes, context: _Context) -> bytes:
        headers = {key.lower(): _text(value) for key, value in context.invocation_metadata() or ()}
        try:
            received, behaviour = self._sink.take(signal, "grpc", payload, headers)
        except wire.MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if behaviour.hang:
            await asyncio.Event().wait()
        if behaviour.delay:
            try:
                await asyncio.sleep(behaviour.delay)
            except asyncio.CancelledError:
                self._sink.answered(received, ABANDONED)
                raise
        if behaviour.close:
            await self._close(received, context)
        if behaviour.fails:
            self._sink.answered(received, behaviour.code)
            await _fail(behaviour, context)
        self._sink.answered(received, "OK", behaviour.reject)
        if behaviour.garbage is not None:
            return behaviour.garbage
        return partial_success(signal, behaviour.reject, reason(behaviour))

    async def _close(self, received: Received, context: _Context) -> NoReturn:
        self._sink.answered(received, ABANDONED)
        with contextlib.suppress(Exception):
            await context.send_initial_metadata(())
        self._sink.cut()
        # The listener's end cancels this call.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def _fail(behaviour: Behaviour, context: _Context) -> NoReturn:
    message = reason(behaviour)
    trailers: tuple[tuple[str, Any], ...] = ()
    if behaviour.retry_after is not None:
        details = status.encode(GRPC_CODES[behaviour.code], message, behaviour.retry_after)
        trailers = (("grpc-status-details-bin", details),)
    await context.abort(_CODES[behaviour.code], message, trailing_metadata=trailers)


def reason(behaviour: Behaviour) -> str:
    """The message of an answer that has something to complain about."""
    if behaviour.message or not (behaviour.fails or behaviour.reject):
        return behaviour.message
    return "the sink was told to answer so"


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
