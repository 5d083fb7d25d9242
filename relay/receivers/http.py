"""OTLP/HTTP receiver: protobuf and JSON, gzip and deflate, TCP and Unix sockets, TLS.

aiohttp's low-level server, without its application layer: there is one handler and four paths.
Every refusal is an HTTP status with a ``google.rpc.Status`` body in the request's encoding
(protobuf unless the request says JSON). There is no CORS: a browser's page may send to the relay
only through a proxy of its own origin, so that no web page can write into the telemetry of the
machine that shows it.

**Memory.** With ``M = max_request_bytes`` and ``C = max_connections`` the receiver holds at most

    8 M + C * (64 KiB + 320 KiB)

- 4 M: bodies, from their arrival until they are taken, beyond the first 64 KiB of each. A request
  that would exceed this is answered 503; the allowance of 64 KiB keeps small requests served
  whatever large ones do.
- M: one body being joined; 3 M: one JSON request being converted (:mod:`relay.otlp_json`), one at
  a time, those over 16 KiB in a thread so that others are served meanwhile.
- C * 64 KiB: the allowance; C * 320 KiB: what was read from a connection and not yet looked at
  (asyncio reads up to 256 KiB at once, aiohttp then stops reading at 64 KiB).

A body is decompressed as it arrives, never beyond M; compressed bytes are not kept.

**The short way.** A request of the form that exporters use (:mod:`relay.receivers.plain`) and of at
most 64 KiB never meets aiohttp: its connection keeps it until it is whole, and answers it at once.
That is half of the cost of a small request. Whatever turns out to be different on the way (the
client stops, the time is up, more arrives than was announced) is given to aiohttp from its first
byte, so that everything but the one good answer has one place.

Sources: OTLP specification 1.11, "OTLP/HTTP"; RFC 9110 and RFC 9112 (HTTP), RFC 1950 to 1952
(zlib, deflate, gzip).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import socket
import ssl
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, cast

from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from proto_stubs import SignalSchema
from relay import status, web
from relay.otlp import SIGNALS
from relay.receivers import Consumer, ReceiverConfig, Refusal, RefusedError, plain
from relay.receivers.sockets import (
    BACKLOG,
    UnixSocketFile,
    address,
    tcp_sockets,
    unix_socket,
)

__all__ = ["HttpReceiver"]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

BUDGET: Final = 4
"""Bodies in arrival hold at most this many times ``max_request_bytes``, allowances aside."""
ALLOWANCE: Final = 64 * 1024
"""Bytes of each body that the budget does not count."""
INLINE_JSON: Final = 16 * 1024
"""Bytes of JSON converted on the event loop: a few milliseconds at the very worst."""
IDLE_TIMEOUT: Final = 300.0
"""Seconds after which a connection without a request is closed; SDKs send every 60 s or more
often."""
STEP: Final = 256 * 1024
"""Bytes decompressed between two looks at other connections."""
LINGER: Final = 2.0
"""Seconds in which the rest of a refused body is read away, so that the client, who may still be
sending, sees the answer instead of a reset."""
READ_BUFFER: Final = 64 * 1024
MEMBERS: Final = 100
"""Members of one gzip body; senders make one."""
CANCELLED: Final = 0.1
"""Seconds that handlers have to end when they are cancelled."""
LINGERING: Final = 64
"""Connections over the limit that may linger so; further ones are cut at once."""

_SIGNALS: Final = {signal.http_path: signal for signal in SIGNALS}
_CODINGS: Final = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
# Whoever can connect need not learn which versions of what this runs on.
_SERVER: Final = {"Server": "otlp-relay"}
_BUSY = {"Retry-After": "1"}
_STOPPING = {"Retry-After": "5"}

# google.rpc.Code of what an HTTP status stands for, as section "Bad input" pairs them.
_CODES: Final = {400: 3, 404: 12, 405: 12, 408: 4, 413: 8, 415: 3, 417: 3, 500: 13, 503: 14}
_STATUSES: Final = {
    Refusal.INVALID: 400,
    Refusal.TOO_LARGE: 413,
    Refusal.UNAVAILABLE: 503,
}

_SHORT: Final = "the body is shorter than announced"
_BROKEN: Final = "the body is not valid HTTP"

_log = logging.getLogger(__name__)


class _RefuseError(Exception):
    """Ends the handling of a request with a status other than 200."""

    def __init__(
        self,
        http: int,
        message: str,
        refusal: Refusal = Refusal.INVALID,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.http = http
        self.message = message
        self.refusal = refusal
        self.headers = headers or {}


class _BodyError(Exception):
    """The body will not come to its end; the text says why."""


class HttpReceiver:
    """The HTTP listener. ``tls``: a server's context, or None for plaintext."""

    def __init__(
        self, config: ReceiverConfig, consumer: Consumer, tls: ssl.SSLContext | None = None
    ) -> None:
        self.config = config
        self.connections = 0
        """Connections open now, those over the limit not among them."""
        self.held = 0
        """Bytes of bodies in arrival that count against the budget."""
        self._consumer = consumer
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._server: _Server | None = None
        self._socket: UnixSocketFile | None = None
        self._converter: ThreadPoolExecutor | None = None
        self._stopping = False
        self._empty = asyncio.Event()
        self._accepted = b""
        """The answer to a request that was taken the short way, as of :attr:`_dated`."""
        self._dated = -math.inf

    async def start(self) -> list[str]:
        """Listen; returns the bound addresses, ``host:port`` or ``unix:/path``.

        Raises:
            OSError: an address cannot be had.
        """
        listen, config = self.config.http, self.config
        if listen.path:
            sock, self._socket = unix_socket(listen.path, config.socket_mode)
            sockets = [sock]
        else:
            sockets = tcp_sockets(listen)
        bound = [address(sock) for sock in sockets]
        self._converter = ThreadPoolExecutor(1, thread_name_prefix="otlp-json")
        self._server = _Server(self)
        try:
            while sockets:
                self._servers.append(await self._serve(sockets[0]))
                del sockets[0]
        except BaseException:
            for sock in sockets:
                sock.close()
            await self.stop(0)
            raise
        return bound

    async def _serve(self, sock: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        # A client that does not finish its handshake is cut as one that does not finish a request.
        limit = self.config.request_timeout if self._tls else None
        return await create(
            cast("_Server", self._server).connect,
            sock=sock,
            ssl=self._tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=limit,
        )

    def stopping(self) -> None:
        """From now on requests on open connections are answered 503 with Retry-After."""
        self._stopping = True

    async def stop(self, grace: float) -> None:
        """Close the listeners, give requests under way ``grace`` seconds, close. Idempotent."""
        self.stopping()
        for listener in self._servers:
            listener.close()
        self._servers.clear()
        if self._socket is not None:
            self._socket.remove()
            self._socket = None
        server, self._server = self._server, None
        if server is not None:
            for connection in server.connections:
                cast("_Connection", connection).leave()
            if self.connections and grace > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await self._empty.wait()
            await server.shutdown(CANCELLED)
        if self._converter is not None:
            self._converter.shutdown(wait=False, cancel_futures=True)
            self._converter = None

    def left(self) -> None:
        """A connection has gone."""
        self.connections -= 1
        if self._stopping and not self.connections:
            self._empty.set()

    def stopped(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    def take(self, signal: SignalSchema, payload: bytes) -> bytes:
        """Hand on a whole request that came the short way; returns the answer."""
        try:
            self._consumer.consume(signal, payload, "http")
        except RefusedError as refused:
            headers = _STOPPING if refused.refusal is Refusal.UNAVAILABLE else {}
            return _raw(_STATUSES[refused.refusal], refused.message, headers, close=False)
        now = asyncio.get_running_loop().time()
        if now >= self._dated + 1:
            self._dated = now
            self._accepted = _accepted()
        return self._accepted

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection = cast("_Connection", request.protocol)
        connection.begin(asyncio.get_running_loop().time(), request.content)
        try:
            answer = await self._answer(request, connection)
        finally:
            last = connection.end()
        if last or not request.content.is_eof():
            # The relay stops, or nobody waits for what else was to come of the body.
            answer.force_close()
        return answer

    async def _answer(
        self, request: web.BaseRequest, connection: _Connection
    ) -> web.StreamResponse:
        media = request.headers.get("Content-Type", "")
        if media not in (PROTOBUF, JSON):
            media = media.partition(";")[0].strip().lower()
        signal = _SIGNALS.get(request.raw_path) or _SIGNALS.get(request.path)
        if signal is None:
            return _failure(404, f"no such path; there are {', '.join(_SIGNALS)}", media)
        now = asyncio.get_running_loop().time
        complete = 0.0
        body = _Body(self)
        try:
            body.coding = self._check(request, media)
            payload = await self._read(request, body, connection.deadline)
            complete = now()
            if media == JSON:
                payload = await self._convert(payload, signal)
            self._consumer.consume(signal, payload, "http")
        except RefusedError as refused:
            # Counted by whoever refused.
            headers = _STOPPING if refused.refusal is Refusal.UNAVAILABLE else {}
            return _failure(_STATUSES[refused.refusal], refused.message, media, headers)
        except _RefuseError as refused:
            seconds = now() - complete if complete else 0.0
            self._consumer.refused(signal, "http", refused.refusal, seconds)
            return _failure(refused.http, refused.message, media, refused.headers)
        finally:
            body.release()
        return _success(media)

    def _check(self, request: web.BaseRequest, media: str) -> str:
        """What can be said of a request before its body: the content coding, or a _RefuseError."""
        headers, limit = request.headers, self.config.max_request_bytes
        if request.method != "POST":
            raise _RefuseError(405, "send POST", headers={"Allow": "POST"})
        if self._stopping:
            raise _RefuseError(503, "the relay is stopping", Refusal.UNAVAILABLE, _STOPPING)
        if media not in (PROTOBUF, JSON):
            raise _RefuseError(415, f"Content-Type must be {PROTOBUF} or {JSON}")
        name = headers.get("Content-Encoding", "").strip().lower()
        if name not in _CODINGS:
            raise _RefuseError(
                415,
                "Content-Encoding must be gzip, deflate or absent",
                headers={"Accept-Encoding": "gzip, deflate"},
            )
        length = request.content_length
        if length is not None and length > limit:
            raise _too_large(limit)
        expect = headers.get("Expect")
        if expect is not None:
            if expect.lower() != "100-continue":
                raise _RefuseError(417, "Expect must be 100-continue or absent")
            if request.transport is not None and not request.content.is_eof():
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return _CODINGS[name]

    async def _read(self, request: web.BaseRequest, body: _Body, deadline: float) -> bytes:
        """The whole body, decompressed."""
        content = request.content
        try:
            if content.is_eof():
                # Nearly every request: all of it came with its headers.
                await body.add(content.read_nowait())
                return body.finish()
            async with asyncio.timeout_at(deadline):
                while chunk := await content.readany():
                    await body.add(chunk)
            return body.finish()
        except TimeoutError:
            raise _RefuseError(
                408, f"the request did not arrive within {self.config.request_timeout:g} s"
            ) from None
        except _BodyError as exc:
            raise _RefuseError(400, str(exc)) from None
        except RequestPayloadError as exc:
            raise _RefuseError(400, f"{_BROKEN}: {_first_line(exc)}") from None
        except zlib.error as exc:
            raise _RefuseError(400, f"the body cannot be decompressed: {exc}") from None

    async def _convert(self, body: bytes, signal: SignalSchema) -> bytes:
        from relay import otlp_json  # noqa: PLC0415 - most relays never see JSON: it costs memory

        limit = self.config.max_request_bytes
        try:
            if len(body) <= INLINE_JSON or self._converter is None:
                return otlp_json.to_protobuf(body, signal, limit=limit)
            return await asyncio.get_running_loop().run_in_executor(
                self._converter,
                functools.partial(otlp_json.to_protobuf, body, signal, limit=limit),
            )
        except otlp_json.InvalidJsonError as exc:
            raise _RefuseError(400, str(exc)) from None
        except otlp_json.JsonTooLargeError as exc:
            raise _RefuseError(413, str(exc), Refusal.TOO_LARGE) from None


class _Body:
    """A body, while it arrives and until it is taken: what it counts against the budget."""

    __slots__ = ("_buffer", "_decoder", "_held", "_limit", "_receiver", "coding")

    def __init__(self, receiver: HttpReceiver) -> None:
        self._receiver = receiver
        self._decoder: _Inflater | None = None
        self._buffer: bytes | bytearray = b""
        self._held = 0
        self._limit = receiver.config.max_request_bytes
        self.coding = ""

    async def add(self, chunk: bytes) -> None:
        """Take what arrived.

        Raises:
            _RefuseError: too large, or no room for it now.
            zlib.error: what arrived does not decompress.
        """
        if not self.coding:
            self._keep(chunk)
            return
        if self._decoder is None:
            self._decoder = _Inflater(self.coding)
        for piece in self._decoder.feed(chunk):
            self._keep(piece)
            if len(piece) == STEP:
                await asyncio.sleep(0)

    def finish(self) -> bytes:
        """The body.

        Raises:
            zlib.error: the compressed data ends early.
        """
        if self.coding:
            if self._decoder is None:
                raise zlib.error("it ends early")
            self._decoder.finish()
        body, self._buffer = bytes(self._buffer), b""
        return body

    def release(self) -> None:
        self._receiver.held -= self._held
        self._held = 0

    def _keep(self, piece: bytes) -> None:
        size = len(self._buffer) + len(piece)
        if size > self._limit:
            raise _too_large(self._limit)
        if size > ALLOWANCE:
            more = size - ALLOWANCE - self._held
            if self._receiver.held + more > BUDGET * self._limit:
                raise _RefuseError(
                    503, "too many large requests at once", Refusal.UNAVAILABLE, _BUSY
                )
            self._receiver.held += more
            self._held += more
        if not self._buffer:
            self._buffer = piece  # nearly always all of it: no copy
        elif isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
            self._buffer += piece
        else:
            self._buffer += piece


class _Inflater:
    """Decompresses one body, in pieces of at most STEP bytes."""

    __slots__ = ("_coding", "_members", "_start", "_stream")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._members = 0
        self._start = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` decompresses to.

        Raises:
            zlib.error: it does not.
        """
        while data:
            stream = self._stream
            if stream is None or stream.eof:
                if self._start:
                    data, self._start = self._start + data, b""
                if len(data) < 2:
                    self._start = data
                    return
                stream = self._stream = self._open(data)
            piece = stream.decompress(data, STEP)
            # At its end a stream's tail and its unused data may be the same bytes.
            while len(piece) == STEP and not stream.eof:
                yield piece
                piece = stream.decompress(stream.unconsumed_tail, STEP)
            if piece:
                yield piece
            data = stream.unused_data if stream.eof else b""

    def finish(self) -> None:
        """Raise zlib.error unless the data ended where it should."""
        if self._stream is None or not self._stream.eof or self._start:
            raise zlib.error("it ends early")

    def _open(self, start: bytes) -> zlib._Decompress:
        """A decompressor for what begins with ``start`` (two bytes of it count)."""
        self._members += 1
        if self._coding == "gzip":
            # Members may follow each other (RFC 1952, 2.2); each costs a decompressor.
            if self._members > MEMBERS:
                raise zlib.error(f"more than {MEMBERS} members")
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._members > 1:
            raise zlib.error("data after its end")
        # "deflate" is the zlib format (RFC 9110, 8.4.1.2), but some senders leave its two-byte
        # header out. No raw stream begins like one: the bits would be a stored block's padding.
        zlib_header = start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0
        return zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)


class _Server(web.Server):
    """Makes the connections' protocols."""

    def __init__(self, receiver: HttpReceiver) -> None:
        super().__init__(
            receiver.handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_TIMEOUT,
            lingering_time=LINGER,
            read_bufsize=READ_BUFFER,
            logger=_log,
        )
        self.receiver = receiver
        self.lingering = 0

    def __call__(self) -> _Connection:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connect(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        return _Gate(self)


class _Gate(asyncio.Protocol):
    """The first protocol of every connection: lets it in, or turns it away with a 503."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        server = self._server
        receiver = server.receiver
        limit = receiver.config.max_connections
        if receiver.connections < limit:
            connection = server()
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return
        self._transport = transport
        server.lingering += 1
        transport.write(_raw(503, f"more than {limit} connections", _BUSY))
        if server.lingering > LINGERING:
            transport.close()
            return
        # Closing at once would reset the connection under a request in arrival, and with it the
        # answer.
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER, transport.abort)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._transport is not None:
            self._server.lingering -= 1
        if self._timer is not None:
            self._timer.cancel()


class _Connection(web.RequestHandler):
    """One connection: counts itself, limits the time of a request's arrival, words errors.

    A request begins with its first byte and must have arrived ``request_timeout`` later: if its
    headers have not, the timer here answers 408; if its body has not, the handler does.

    The short way is open while it is known where each request ended (``_known``). ``_left`` bytes
    of the one under way are still to be passed on to aiohttp, or those so far are in ``_kept``.
    """

    __slots__ = (
        "_broken",
        "_content",
        "_cut",
        "_ended",
        "_kept",
        "_known",
        "_left",
        "_plain",
        "_receiver",
        "_started",
        "_watchdog",
        "deadline",
    )

    def __init__(self, server: _Server, *, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(server, loop=loop, **kwargs)
        self._receiver = server.receiver
        self._started: float | None = None
        """When the request under way began, in the loop's time; None between requests."""
        self._content: StreamReader | None = None
        """The body of the request that is being handled."""
        self._broken = False
        """Where this body ends and another request begins is not known."""
        self._ended = False
        """The client sends no more, or the relay stops: this request is the last."""
        self._cut = False
        """The client sends no more: what is not here will not come."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._known = True
        self._left = 0
        self._kept = bytearray()
        self._plain: plain.Head | None = None
        """Of what is in :attr:`_kept`."""
        self.deadline = 0.0

    def begin(self, now: float, content: StreamReader) -> None:
        """The headers of a request are there; its handler begins."""
        if self._started is None:
            self._started = now
        self.deadline = self._started + self._receiver.config.request_timeout
        self._content = content
        if self._cut:
            self._end_body(_SHORT)
        elif self._messages:
            self._end_body(_BROKEN)

    def end(self) -> bool:
        """The answer is decided; True: it is the connection's last."""
        self._started = self._content = None
        return self._broken or (self._ended and not self._messages)

    def leave(self) -> None:
        """Close, if nothing is under way; else once it is answered."""
        self._ended = True
        if self._started is None:
            self.force_close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._receiver.connections += 1
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._receiver.left()
        if self._watchdog is not None:
            self._watchdog.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._known and data and self._short_way(data):
            return
        self._pass_on(data)

    def _short_way(self, data: bytes) -> bool:
        """Take or keep ``data``, which is not empty; False: it is aiohttp's."""
        if self._left:
            self._left -= len(data)
            self._known = self._left >= 0
            return False
        head = self._plain
        if head is None:
            head = plain.head(data)
            if head is None or head.path not in _SIGNALS:
                self._known = False
                return False
            size = head.size + head.length
            most = self._receiver.config.max_request_bytes
            if max(size - ALLOWANCE, head.length - most, len(data) - size) > 0 or not self._idle():
                self._left = size - len(data)
                self._known = self._left >= 0
                return False
            if len(data) == size:
                self._take(head, data)
                return True
            self._plain = head
            self._started = now = self._loop.time()
            # The library must not take this connection for an idle one meanwhile.
            patience = max(IDLE_TIMEOUT, self._receiver.config.request_timeout)
            self._next_keepalive_close_time = now + patience
        self._kept += data
        size = head.size + head.length
        if len(self._kept) == size:
            request, self._kept = bytes(self._kept), bytearray()
            self._take(head, request)
        elif len(self._kept) > size:
            self._known = False
            self._let_go()
        return True

    def _idle(self) -> bool:
        """Whether nothing is under way and nothing in the way of an answer."""
        return (
            self._started is None
            and self._waiter is not None
            and not (self._waiter.done() or self._messages or self.writing_paused)
            and not (self._ended or self._close or self._force_close or self._receiver.stopped())
        )

    def _take(self, head: plain.Head, request: bytes) -> None:
        """Answer a whole request."""
        transport = self.transport
        self._plain = self._started = None
        if transport is None:
            return
        try:
            answer = self._receiver.take(_SIGNALS[head.path], request[head.size :])
        except Exception as error:  # noqa: BLE001 - logged; the client is told
            _log.error("cannot handle a request", exc_info=error)
            transport.write(_raw(500, "internal error"))
            self.force_close()
            return
        self._next_keepalive_close_time = self._loop.time() + IDLE_TIMEOUT
        if self._ended:
            transport.write(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            self.force_close()
        else:
            transport.write(answer)

    def _let_go(self) -> None:
        """Give aiohttp what was kept, as if it had just come."""
        if self._plain is None:
            return
        kept, self._kept = bytes(self._kept), bytearray()
        self._left = max(self._plain.size + self._plain.length - len(kept), 0)
        self._plain = None
        self._pass_on(kept)

    def _pass_on(self, data: bytes) -> None:
        if self._started is None and data:
            self._started = self._loop.time()
        super().data_received(data)
        if self._messages and self._content is not None:
            # Nothing comes behind a body that has not ended but the parser's word for its fault.
            self._end_body(_BROKEN)

    # asyncio.Protocol lets it answer; aiohttp narrows that to None.
    def eof_received(self) -> bool:  # type: ignore[override]
        """The client closed its side; True: it may still be waiting for an answer."""
        transport = self.transport
        if transport is None or transport.get_extra_info("ssl_object") is not None:
            return False
        self._let_go()
        self._ended = self._cut = True
        if self._content is not None:
            self._end_body(_SHORT)
            return True
        if self._started is None:
            return False
        if self._waiter is None or self._waiter.done():
            return True  # a whole request is on its way to the handler
        transport.write(_raw(400, "the request ends in its headers"))
        return False

    def _end_body(self, why: str) -> None:
        content = self._content
        if content is not None and not content.is_eof():
            self._broken = True
            content.set_exception(_BodyError(why))
            content.feed_eof()

    def _watch(self) -> None:
        loop = self._loop
        now, limit = loop.time(), self._receiver.config.request_timeout
        if self._started is None or self._content is not None:
            due = now + limit
        else:
            due = self._started + limit
            if due <= now and self._plain is not None:
                # Its handler will find that the time is up, and count it.
                self._let_go()
                due = now + limit
            elif due <= now and self.transport is not None:
                message = f"the request did not arrive within {limit:g} s"
                self.transport.write(_raw(408, message))
                self.force_close()
                return
        self._watchdog = loop.call_at(due, self._watch)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what our handler failed at, and close."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way; there can be no second one")
        if isinstance(exc, ConnectionError):
            _log.debug("a client went away: %s", exc)
        elif status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("cannot handle a request", exc_info=exc)
        else:
            _log.debug("not HTTP from %s: %s", request.remote, message)
        words = "internal error" if status >= 500 else f"not HTTP: {_first_line(message)}"
        answer = _failure(status if status in _CODES else 400, words, PROTOBUF)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        _log.debug(*args, **kw)


def _too_large(limit: int) -> _RefuseError:
    return _RefuseError(413, f"larger than {limit} bytes", Refusal.TOO_LARGE)


def _first_line(message: object) -> str:
    return str(message).strip().partition("\n")[0][:200]


def _success(media: str) -> web.Response:
    # An empty Export response: no bytes in protobuf.
    body = b"{}" if media == JSON else b""
    return web.Response(body=body, headers={"Content-Type": media, **_SERVER})


def _accepted() -> bytes:
    """The same as a whole answer, for requests in protobuf."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {PROTOBUF}"]
    lines += [f"{name}: {value}" for name, value in _SERVER.items()]
    lines += ["Content-Length: 0", f"Date: {formatdate(usegmt=True)}", "", ""]
    return "\r\n".join(lines).encode("ascii")


def _failure(
    http: int, message: str, media: str, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    encode, media = (status.encode_json, JSON) if media == JSON else (status.encode, PROTOBUF)
    return web.Response(
        status=http,
        body=encode(_CODES[http], message),
        headers={"Content-Type": media, **_SERVER, **headers},
    )


def _raw(
    http: int,
    message: str,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    close: bool = True,
) -> bytes:
    """A whole answer, for where aiohttp has no request to answer."""
    body = status.encode(_CODES[http], message)
    lines = [f"HTTP/1.1 {http} {HTTPStatus(http).phrase}", f"Content-Type: {PROTOBUF}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", *(["Connection: close"] if close else []), "", ""]
    return "\r\n".join(lines).encode("ascii") + body
