"""OTLP/gRPC receiver on h2corn, an HTTP/2 server in Rust: the optional engine ``h2corn``.

The library speaks HTTP/2 and calls one ASGI application; what makes it gRPC is here: the five
bytes before a message, compression, the status in the trailers, the health service. One coroutine
a call, and a small request costs it three sends and two receives, none of which waits.

Sockets are our own (:mod:`relay.receivers.sockets`); the library serves them on threads of its own
and runs the application on our loop. It is entered below its public ``Server``, which prints a
banner and notifies systemd: hence the exact version in the ``fast`` extra.

**Memory.** With ``M = max_request_bytes`` and ``C = max_connections`` the receiver holds at most

    5 M + C * 256 KiB + 4096 * 32 KiB

- 4 M: messages in arrival, compressed and decompressed bytes both; a message that would exceed
  this is answered UNAVAILABLE. The last M of it is for messages up to 64 KiB, so that those are
  served whatever large ones do. A message that arrives in one piece is taken at once and never
  held. M: one message being joined.
- C * 256 KiB: what clients may send before it is looked at (the flow-control window).
- 4096 calls at once, each with at most 16 KiB of headers, which exist twice; more are answered 503,
  which gRPC clients read as UNAVAILABLE.

A message must have arrived ``request_timeout`` after its call began; the answer is
DEADLINE_EXCEEDED. ``grpc-timeout`` is not looked at: a client resets what it no longer waits for.

**TLS** files are read again when they change. The library builds its acceptor once, so a new server
then takes over the same sockets and the old one closes its connections in order (GOAWAY).

Sources: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md), gRPC status codes (grpc/doc/statuscodes.md),
gRPC compression (grpc/doc/compression.md); ASGI HTTP message format 2.5 and trailers extension.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote

from h2corn import Config
from h2corn._lib import _PreparedTls, prepare_tls, serve_fds
from h2corn._lifespan import PreparedApplication

from proto_stubs import SignalSchema
from relay.files import INTERVAL, Rotating, Warn
from relay.otlp import SIGNALS
from relay.receivers import Consumer, ReceiverConfig, Refusal, RefusedError, ServerTls, health
from relay.receivers.sockets import UnixSocketFile, address, tcp_sockets, unix_socket
from relay.tasks import Tasks
from relay.tls import TlsError, check_server

__all__ = ["H2Receiver"]

BUDGET: Final = 4
"""Messages in arrival hold at most this many times ``max_request_bytes``."""
SMALL: Final = 64 * 1024
"""Messages up to this size may use all of the budget, larger ones a ``max_request_bytes`` less."""
WINDOW: Final = 256 * 1024
"""Bytes that a client may send on one connection before they are looked at."""
HEADERS: Final = 16 * 1024
"""Bytes of a call's headers, as grpc's own default."""
CALLS: Final = 4096
"""Calls at once, over all connections."""
STEP: Final = 256 * 1024
"""Bytes decompressed between two looks at other connections."""
DRAIN: Final = 1.0
"""Seconds that a server which was replaced, or told to stop, gives its calls."""
PATIENCE: Final = 0.1
"""Seconds after which a connection that the library did not accept is one over the limit."""
LOOKS: Final = 5
"""Looks in that time, each of which must find one waiting."""

_PREFIX: Final = 5  # of a message: one byte for compressed or not, four for its length

_Message: TypeAlias = dict[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]

_EXPORTS: Final = {schema.method: schema for schema in SIGNALS}
_CHECK: Final = f"/{health.SERVICE}/Check"
_WATCH: Final = f"/{health.SERVICE}/Watch"
_HEALTH: Final = frozenset({_CHECK, _WATCH})

_GRPC: Final = (b"content-type", b"application/grpc")
_END: Final[_Message] = {"type": "http.request"}
_START: Final[_Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [_GRPC],
    "trailers": True,
}
_EMPTY: Final[_Message] = {"type": "http.response.body", "body": bytes(_PREFIX)}
"""An Export response without a word: no bytes of protobuf."""
_OK: Final[_Message] = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_NOTHING: Final[_Message] = {"type": "http.response.body"}

# google.rpc.Code
_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _NOT_FOUND = 3, 4, 5
_RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE = 8, 12, 13, 14
_CODES: Final = {
    Refusal.INVALID: _INVALID_ARGUMENT,
    Refusal.TOO_LARGE: _RESOURCE_EXHAUSTED,
    Refusal.UNAVAILABLE: _UNAVAILABLE,
}
_WINDOW_BITS: Final = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
_ACCEPTED: Final = (b"grpc-accept-encoding", b"identity, deflate, gzip")
# Printable ASCII but the percent sign stands for itself in grpc-message.
_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

_log = logging.getLogger(__name__)


class _CallError(Exception):
    """Ends a call with a status; ``refusal``: how it counts."""

    def __init__(
        self,
        code: int,
        message: str,
        refusal: Refusal = Refusal.INVALID,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.refusal = refusal
        self.headers = headers
        self.begun = 0.0
        """When the whole message was there, in time.perf_counter(); 0: it never was."""


class _GoneError(Exception):
    """The client reset the call; there is nobody to answer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Server:
    """One server of the library, from its start to the end of its last call."""

    stopped: asyncio.Future[str]
    done: asyncio.Task[None]

    def stop(self) -> None:
        """Accept nothing more; GOAWAY on every connection."""
        if not self.stopped.done():
            self.stopped.set_result("stop")


class H2Receiver:
    """The gRPC listener. ``warn`` takes what is wrong with TLS files that changed.

    Raises:
        relay.tls.TlsError: a certificate or key cannot be used.
    """

    def __init__(self, config: ReceiverConfig, consumer: Consumer, *, warn: Warn) -> None:
        self.config = config
        self.held = 0
        """Bytes of messages in arrival."""
        self._consumer = consumer
        self._tls: Rotating[_PreparedTls] | None = None
        if config.tls is not None:
            self._tls = _rotating(config.tls, warn)
        self._sockets: list[socket.socket] = []
        self._file: UnixSocketFile | None = None
        self._server: _Server | None = None
        self._servers: set[_Server] = set()
        self._tasks = Tasks()
        self._bouncer: _Bouncer | None = None
        # Calls whose message is still arriving, the oldest first, and when they began.
        self._arriving: dict[asyncio.Task[Any], float] = {}
        self._verdicts: dict[asyncio.Task[Any], _CallError] = {}
        self._serving = True
        self._refusing = False
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._clock = time.monotonic

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> list[str]:
        """Listen; returns the bound addresses, ``host:port`` or ``unix:/path``.

        Raises:
            OSError: an address cannot be had.
        """
        listen = self.config.grpc
        if listen.path:
            sock, self._file = unix_socket(listen.path, self.config.socket_mode)
            self._sockets = [sock]
        else:
            self._sockets = tcp_sockets(listen)
        try:
            self._server = await self._serve(self._latest())
        except BaseException:
            await self.stop(0)
            raise
        self._tasks.spawn(self._watch_over())
        self._bouncer = _Bouncer(self._sockets)
        return [address(sock) for sock in self._sockets]

    def stopping(self) -> None:
        """Turn the health service negative; requests are still taken."""
        self._serving = False
        self._changed.set()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way ``grace`` seconds, close. Idempotent.

        Calls that ignore the end are given :data:`DRAIN` seconds at most.
        """
        self.stopping()
        self._refusing = True
        await self._tasks.cancel()
        if self._bouncer is not None:
            self._bouncer.close()
            self._bouncer = None
        for server in self._servers:
            server.stop()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._file is not None:
            self._file.remove()
            self._file = None
        self._closing.set()
        running = [server.done for server in self._servers]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=grace)
        if late:
            for task in list(self._arriving):
                self._end(task, _stopping())
            await asyncio.wait(late)

    async def _serve(self, prepared: _PreparedTls | None) -> _Server:
        """Start a server on the sockets.

        Raises:
            OSError: the library cannot serve them.
        """
        loop = asyncio.get_running_loop()
        config = _server_config(self.config, self._sockets)
        application = PreparedApplication(cast("Any", self.application), False, "off")
        await application.startup(required=False)
        stopped: asyncio.Future[str] = loop.create_future()
        started: asyncio.Future[None] = loop.create_future()

        def begun(error: BaseException | None = None) -> None:
            loop.call_soon_threadsafe(_settle, started, error)

        native = serve_fds(
            application,
            [sock.fileno() for sock in self._sockets],
            config,
            _result(stopped),
            None,
            begun,
            prepared_tls=prepare_tls(config) if prepared is None else prepared,
        )
        # Owned by its _Server: awaited in stop(), its end told by _served().
        server = _Server(stopped, loop.create_task(_awaited(native)))
        self._servers.add(server)
        server.done.add_done_callback(lambda done: self._served(server, done))
        await asyncio.wait((started, server.done), return_when=asyncio.FIRST_COMPLETED)
        for outcome in (started, server.done):
            if outcome.done() and (error := outcome.exception()) is not None:
                raise OSError(f"h2corn cannot serve: {error}") from error
        return server

    def _served(self, server: _Server, done: asyncio.Task[None]) -> None:
        self._servers.discard(server)
        error = None if done.cancelled() else done.exception()
        if not server.stopped.done() or error is not None:
            server.stop()
            _log.error("the gRPC server ended by itself: %s", error or "no reason given")

    def _latest(self) -> _PreparedTls | None:
        return None if self._tls is None else self._tls.current(self._clock())

    async def _watch_over(self) -> None:
        """Every second: end calls whose message does not arrive; follow the TLS files."""
        current = self._latest()
        while True:
            await asyncio.sleep(INTERVAL)
            limit = self.config.request_timeout
            due = self._clock() - limit
            for task, began in list(self._arriving.items()):
                if began > due:
                    break
                text = f"the request did not arrive within {limit:g} s"
                self._end(task, _CallError(_DEADLINE_EXCEEDED, text))
            if (latest := self._latest()) is current:
                continue
            former, current = self._server, latest
            try:
                self._server = await self._serve(latest)
            except OSError as error:
                _log.warning("%s; the former certificates stay in use", error)
                continue
            if former is not None:
                former.stop()

    def _end(self, task: asyncio.Task[Any], verdict: _CallError) -> None:
        if task not in self._verdicts:
            self._verdicts[task] = verdict
            task.cancel()

    # -- calls ------------------------------------------------------------------------------

    async def application(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one call (ASGI). The first half is the way of nearly every request."""
        schema = _EXPORTS.get(scope["path"])
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._arriving[task] = self._clock()
        try:
            if (
                schema is None
                or self._refusing
                or _GRPC not in scope["headers"]
                or "http.response.trailers" not in scope["extensions"]
                or scope["method"] != "POST"
            ):
                await self._unusual(schema, scope, receive, send)
                return
            first = await receive()
            second = None
            body = first.get("body", b"")
            size = len(body) - _PREFIX
            if whole := (
                body[:1] == b"\0"
                and int.from_bytes(body[1:_PREFIX], "big") == size
                and size <= self.config.max_request_bytes
            ):
                second = await receive() if first.get("more_body") else _END
            if whole and second == _END:
                payload = body[_PREFIX:]
            else:
                payload = await self._gather(scope, receive, first, second)
            del self._arriving[task]
            self._consumer.consume(schema, payload, "grpc")
            await send(_START)
            await send(_EMPTY)
            await send(_OK)
        except RefusedError as refused:
            await _fail(send, _CallError(_CODES[refused.refusal], refused.message))
        except _CallError as error:
            await self._refuse(schema, send, error)
        except asyncio.CancelledError:
            # By the library: the client reset the call. By _end(): there is an answer to give.
            verdict = self._verdicts.pop(task, None)
            if verdict is None:
                raise
            task.uncancel()
            await self._refuse(schema, send, verdict)
        except (_GoneError, OSError):
            pass  # there is nobody to answer
        except Exception:  # noqa: BLE001 - a defect must not end more than the call
            _log.exception("cannot handle a request")
            await _fail(send, _CallError(_INTERNAL, "internal error"))
        finally:
            self._arriving.pop(task, None)
            self._verdicts.pop(task, None)

    async def _refuse(self, schema: SignalSchema | None, send: _Send, error: _CallError) -> None:
        if schema is not None:
            seconds = time.perf_counter() - error.begun if error.begun else 0.0
            self._consumer.refused(schema, "grpc", error.refusal, seconds)
        await _fail(send, error)

    async def _unusual(
        self, schema: SignalSchema | None, scope: _Message, receive: _Receive, send: _Send
    ) -> None:
        """Answer what is no plain Export call."""
        if (status := _not_grpc(scope)) is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send(_NOTHING)
            return
        path = scope["path"]
        if schema is None and path not in _HEALTH:
            raise _CallError(_UNIMPLEMENTED, f"unknown method {path}")
        if schema is not None and self._refusing:
            raise _stopping()
        payload = await self._gather(scope, receive, await receive(), None)
        self._arriving.pop(cast("asyncio.Task[Any]", asyncio.current_task()), None)
        if schema is not None:
            self._consumer.consume(schema, payload, "grpc")
            answer = b""
        elif path == _WATCH:
            await self._watch(health.requested(payload), send)
            return
        else:
            found = health.status(health.requested(payload), serving=self._serving)
            if found is None:
                raise _CallError(_NOT_FOUND, "unknown service")
            answer = found
        await send(_START)
        await send(_framed(answer))
        await send(_OK)

    async def _watch(self, service: str, send: _Send) -> None:
        told = health.status(service, serving=self._serving)
        await send(_START)
        await send(_framed(told or health.SERVICE_UNKNOWN, more=True))
        # The one change there ever is: from serving to not serving.
        if told == health.SERVING:
            await self._changed.wait()
            await send(_framed(health.NOT_SERVING, more=True))
        await self._closing.wait()
        await send({**_NOTHING, "more_body": False})
        await send({"type": "http.response.trailers", "headers": _trailers(_stopping())})

    async def _gather(
        self, scope: _Message, receive: _Receive, first: _Message, second: _Message | None
    ) -> bytes:
        """Return the one message of a call that did not come in one plain piece.

        Raises:
            _CallError: there is not exactly one, or it cannot be taken.
            _GoneError: the client went away.
        """
        arrival = _Arrival(self)
        try:
            arrival.add(first)
            latest = first
            while latest.get("more_body", False):
                latest, second = second or await receive(), None
                arrival.add(latest)
            return await arrival.message(scope)
        finally:
            arrival.release()


class _Arrival:
    """The message of one call while it arrives: what it counts against the budget."""

    __slots__ = ("_held", "_length", "_pieces", "_receiver", "_size")

    def __init__(self, receiver: H2Receiver) -> None:
        self._receiver = receiver
        self._pieces: list[bytes] = []
        self._size = 0
        self._held = 0
        self._length: int | None = None
        """Of the message, as its prefix says."""

    def add(self, event: _Message) -> None:
        """Take what arrived.

        Raises:
            _CallError: too large, no room for it now, or more than one message.
            _GoneError: the client went away.
        """
        if event["type"] != "http.request":
            raise _GoneError
        piece = event.get("body", b"")
        if not piece:
            return
        self._size += len(piece)
        self._pieces.append(piece)
        if self._length is None and self._size >= _PREFIX:
            self._pieces = [b"".join(self._pieces)]
            self._length = int.from_bytes(self._pieces[0][1:_PREFIX], "big")
            if self._length > self._receiver.config.max_request_bytes:
                raise self._too_large()
        if self._length is not None and self._size > _PREFIX + self._length:
            raise _CallError(_UNIMPLEMENTED, "more than one message in a unary call")
        self._hold(len(piece))

    async def message(self, scope: _Message) -> bytes:
        """Return the message, decompressed.

        Raises:
            _CallError: there is none, not all of it, or it cannot be decompressed.
        """
        begun = time.perf_counter()
        try:
            return await self._message(scope)
        except _CallError as error:
            error.begun = begun
            raise

    async def _message(self, scope: _Message) -> bytes:
        if not self._size:
            raise _CallError(_UNIMPLEMENTED, "no message in a unary call")
        if self._length is None or self._size < _PREFIX + self._length:
            raise _CallError(_INVALID_ARGUMENT, "the message is shorter than announced")
        flag = self._pieces[0][0]
        self._pieces[0] = self._pieces[0][_PREFIX:]
        payload = b"".join(self._pieces)
        self._pieces.clear()
        if flag == 0:
            return payload
        if flag == 1:
            return await self._decompressed(payload, scope)
        raise _CallError(_INVALID_ARGUMENT, f"not a gRPC message: it begins with byte {flag}")

    def release(self) -> None:
        self._receiver.held -= self._held
        self._held = 0

    async def _decompressed(self, data: bytes, scope: _Message) -> bytes:
        coding = next(
            (value for name, value in scope["headers"] if name == b"grpc-encoding"), b"identity"
        )
        if coding == b"identity":
            raise _CallError(_INTERNAL, "a compressed message, but grpc-encoding names no coding")
        bits = _WINDOW_BITS.get(coding)
        if bits is None:
            name = coding.decode("ascii", "replace")[:100]
            raise _CallError(_UNIMPLEMENTED, f"unknown grpc-encoding {name}", headers=(_ACCEPTED,))
        stream = zlib.decompressobj(bits)
        size = 0
        pieces = []
        try:
            while True:
                piece = stream.decompress(data, STEP)
                pieces.append(piece)
                size += len(piece)
                if size > self._receiver.config.max_request_bytes:
                    raise self._too_large()
                self._hold(len(piece), size)
                data = stream.unconsumed_tail
                if len(piece) < STEP:
                    break
                await asyncio.sleep(0)
        except zlib.error as error:
            raise _CallError(
                _INVALID_ARGUMENT, f"the message cannot be decompressed: {error}"
            ) from None
        if not stream.eof or stream.unused_data:
            why = "data after its end" if stream.eof else "it ends early"
            raise _CallError(_INVALID_ARGUMENT, f"the message cannot be decompressed: {why}")
        return b"".join(pieces)

    def _hold(self, more: int, size: int = 0) -> None:
        receiver = self._receiver
        large = max(size, self._size, self._length or 0) > SMALL
        budget = (BUDGET - large) * receiver.config.max_request_bytes
        if receiver.held + more > budget:
            raise _CallError(_UNAVAILABLE, "too many large requests at once", Refusal.UNAVAILABLE)
        receiver.held += more
        self._held += more

    def _too_large(self) -> _CallError:
        limit = self._receiver.config.max_request_bytes
        return _CallError(_RESOURCE_EXHAUSTED, f"larger than {limit} bytes", Refusal.TOO_LARGE)


class _Bouncer:
    """Turns connections over the limit away.

    The library leaves them unaccepted, where they would wait in silence until a place is free or
    the client gives up. It accepts within microseconds while it may; so a connection that waits
    for :data:`PATIENCE` is one too many.
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = list(sockets)
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        for sock in sockets:
            self._loop.add_reader(sock, self._look, sock, LOOKS)

    def close(self) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock)
        for timer in self._timers.values():
            timer.cancel()

    def _look(self, sock: socket.socket, left: int) -> None:
        self._loop.remove_reader(sock)
        if left and _acceptable(sock):
            # One look could find one that the library is about to accept.
            self._timers[sock] = self._loop.call_later(PATIENCE / LOOKS, self._look, sock, left - 1)
            return
        if not left:
            self._turn_away(sock)
        self._loop.add_reader(sock, self._look, sock, LOOKS)

    @staticmethod
    def _turn_away(sock: socket.socket) -> None:
        for _ in range(64):
            try:
                connection, _address = sock.accept()
            except OSError:
                return  # no more of them
            connection.close()


def _acceptable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _server_config(config: ReceiverConfig, sockets: list[socket.socket]) -> Config:
    tls = config.tls
    return Config(
        bind=tuple(f"fd://{sock.fileno()}" for sock in sockets),
        certfile=None if tls is None else Path(tls.cert_file),
        keyfile=None if tls is None else Path(tls.key_file),
        ca_certs=Path(tls.client_ca_file) if tls is not None and tls.client_ca_file else None,
        cert_reqs="required" if tls is not None and tls.client_ca_file else "none",
        lifespan="off",
        runtime_threads=1,
        http1=False,
        grpc=True,
        access_log=False,
        date_header=False,
        max_concurrent_streams=config.max_streams,
        limit_connections=config.max_connections,
        limit_concurrency=CALLS,
        h2_max_header_list_size=HEADERS,
        h2_max_header_block_size=HEADERS,
        h2_initial_stream_window_size=WINDOW,
        h2_initial_connection_window_size=WINDOW,
        # A connection may be idle for as long as it likes, as with grpcio.
        timeout_keep_alive=0.0,
        timeout_graceful_shutdown=DRAIN,
    )


def _rotating(files: ServerTls, warn: Warn) -> Rotating[_PreparedTls]:
    from h2corn._server import TlsMaterial  # noqa: PLC0415 - loads its command line as well

    config = Config(
        certfile=Path(files.cert_file),
        keyfile=Path(files.key_file),
        ca_certs=Path(files.client_ca_file) if files.client_ca_file else None,
        cert_reqs="required" if files.client_ca_file else "none",
    )

    def build() -> _PreparedTls:
        if faults := check_server(files):  # in the words that every part uses for them
            raise TlsError("; ".join(faults))
        authority = Path(files.client_ca_file).read_bytes() if files.client_ca_file else None
        return prepare_tls(
            config,
            TlsMaterial(
                certificate=Path(files.cert_file).read_bytes(),
                private_key=Path(files.key_file).read_bytes(),
                client_ca=authority,
            ),
        )

    paths = tuple(path for path in (files.cert_file, files.key_file, files.client_ca_file) if path)
    try:
        return Rotating(paths, build, warn=warn)
    except OSError as error:
        raise TlsError(f"cannot read the TLS files: {error}") from error


def _not_grpc(scope: _Message) -> int | None:
    """Return the HTTP status for what is no gRPC call, or None."""
    if scope["method"] != "POST":
        return 405
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    name = kind.partition(b";")[0]
    if name.strip().lower().partition(b"+")[0] != b"application/grpc":
        return 415
    # Without `te: trailers` there is no place for the status.
    return None if "http.response.trailers" in scope["extensions"] else 400


def _stopping() -> _CallError:
    return _CallError(_UNAVAILABLE, "the relay is stopping", Refusal.UNAVAILABLE)


def _framed(message: bytes, *, more: bool = False) -> _Message:
    return {
        "type": "http.response.body",
        "body": b"\0" + len(message).to_bytes(4, "big") + message,
        "more_body": more,
    }


def _trailers(error: _CallError) -> list[tuple[bytes, bytes]]:
    text = quote(error.message, safe=_PLAIN).encode("ascii")
    return [(b"grpc-status", b"%d" % error.code), (b"grpc-message", text), *error.headers]


async def _fail(send: _Send, error: _CallError) -> None:
    """Answer with a status alone, which gRPC calls Trailers-Only."""
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [_GRPC, *_trailers(error)],
    }
    try:
        await send(start)
        await send(_NOTHING)
    except OSError:
        pass  # the client is gone


async def _result(future: asyncio.Future[str]) -> str:
    return await asyncio.shield(future)


async def _awaited(native: Awaitable[None]) -> None:
    await native


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
