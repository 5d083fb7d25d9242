"""OTLP/gRPC receiver on grpcio's asyncio server: raw bytes, the Export methods, gRPC health.

Sources: OTLP specification 1.11, "OTLP/gRPC"; gRPC Health Checking Protocol (grpc.health.v1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

from relay.otlp import SIGNALS, SignalSchema
from relay.receivers import Consumer, Listen, ReceiverConfig, Refusal, RefusedError, health
from relay.receivers.sockets import UnixSocketFile, claim_unix, tcp_sockets

__all__ = ["GrpcReceiver"]

_log = logging.getLogger(__name__)

SETTLE = 0.1
"""Seconds at the end in which calls on open connections are refused in words."""

_CODES = {
    Refusal.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}

_Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


_PORT_ATTEMPTS = 8


class GrpcReceiver:
    """The gRPC listener. ``credentials``: TLS, or None for plaintext."""

    def __init__(
        self,
        config: ReceiverConfig,
        consumer: Consumer,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._config = config
        self._consumer = consumer
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None
        self._socket: UnixSocketFile | None = None
        self._serving = True
        self._refusing = False
        self._changed = asyncio.Event()

    async def start(self) -> list[str]:
        """Listen; returns the bound addresses, ``host:port`` or ``unix:/path``.

        Raises:
            OSError: an address cannot be had.
        """
        config = self._config
        server = grpc.aio.server(
            options=[
                # Never share a port with another process.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.max_request_bytes),
                ("grpc.max_concurrent_streams", config.max_streams),
                ("grpc.max_allowed_incoming_connections", config.max_connections),
                # Applications may ping as often as once in 10 s without being hung up on.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        for schema in SIGNALS:
            # Registered methods skip a look-up for each call.
            server.add_registered_method_handlers(
                schema.service,
                {"Export": grpc.unary_unary_rpc_method_handler(self._handler(schema))},
            )
        server.add_registered_method_handlers(
            health.SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )
        self._server = server
        try:
            bound = self._bind(server, config.grpc)
            await server.start()
        except BaseException:
            await self.stop(0)
            raise
        return bound

    def stopping(self) -> None:
        """Turn the health service negative; requests are still taken."""
        self._serving = False
        self._changed.set()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way ``grace`` seconds, close. Idempotent."""
        self.stopping()
        self._refusing = True
        server, self._server = self._server, None
        if server is not None:
            # What arrives while it closes, the library ends as CANCELLED: clients are told first.
            settle = min(SETTLE, grace)
            await asyncio.sleep(settle)
            await server.stop(grace - settle)
        if self._socket is not None:
            self._socket.remove()
            self._socket = None

    def _bind(self, server: grpc.aio.Server, listen: Listen) -> list[str]:
        if listen.path:
            with claim_unix(listen.path, self._config.socket_mode) as file:
                self._add(server, f"unix:{listen.path}")
            self._socket = file
            return [f"unix:{listen.path}"]
        # The library opens its sockets itself. Ours are opened first, for their rules and messages,
        # and closed again, their addresses known.
        for attempt in range(_PORT_ATTEMPTS):
            probes = tcp_sockets(listen)
            names = [probe.getsockname()[:2] for probe in probes]
            for probe in probes:
                probe.close()
            targets = [f"[{host}]:{at}" if ":" in host else f"{host}:{at}" for host, at in names]
            try:
                self._add(server, targets[0])
            except OSError:
                # A port that the kernel chose may be somebody's by now: choose again.
                if listen.port or attempt == _PORT_ATTEMPTS - 1:
                    raise
                continue
            for target in targets[1:]:
                self._add(server, target)
            return targets
        raise AssertionError("unreachable")

    def _add(self, server: grpc.aio.Server, target: str) -> None:
        try:
            if self._credentials is None:
                port = server.add_insecure_port(target)
            else:
                port = server.add_secure_port(target, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {target}: {error}") from error
        if not port and not target.startswith("unix:"):
            raise OSError(f"cannot listen on {target}")

    def _handler(self, schema: SignalSchema) -> _Handler:
        consumer = self._consumer

        async def export(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            if self._refusing:
                consumer.refused(schema, "grpc", Refusal.UNAVAILABLE, 0.0)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the relay is stopping")
            try:
                consumer.consume(schema, request, "grpc")
            except RefusedError as refused:
                await context.abort(_CODES[refused.refusal], refused.message)
            except Exception:  # noqa: BLE001 - logged; the client is told
                # A defect of ours: for the log, not for the client.
                _log.exception("a request of %s failed unexpectedly", schema.name)
                await context.abort(grpc.StatusCode.INTERNAL, "internal error")
            return b""

        return export

    async def _check(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        status = health.status(health.requested(request), serving=self._serving)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return status or b""

    async def _watch(
        self, request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        told = health.status(health.requested(request), serving=self._serving)
        yield told or health.SERVICE_UNKNOWN
        # The one change there ever is: from serving to not serving.
        if told == health.SERVING:
            await self._changed.wait()
            yield health.NOT_SERVING
        # The stream stays open until the client or the server ends it.
        await asyncio.Event().wait()
