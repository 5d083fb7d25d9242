"""OTLP/HTTP to the collector: one POST per export, over connections that stand before it begins.

The HTTP is aiohttp's; which connection a request takes is decided here, since the pipeline must
know that one stands before it takes a batch, and since a name may have several addresses. So every
connection is a session of its own with room for one connection to one address (:class:`_Line`),
and :class:`HttpExporter` keeps the idle ones.

Codes of attempts: the HTTP status; ``CONNECT_TIMEOUT`` and ``CONNECT_FAILED`` where there was no
connection; and where there was no status: ``TIMEOUT`` (attempt limit), ``CONNECTION_LOST`` (closed
or reset before the answer was complete) and ``BAD_RESPONSE`` (what came back is not HTTP).

Source: OTLP specification 1.11, "OTLP/HTTP"; RFC 9110 for Retry-After and status codes; the order
in which addresses are tried follows RFC 8305, section 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import io
import ipaddress
import os
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

import aiohttp
import aiohttp.abc
import aiohttp.http
from yarl import URL

from proto_stubs import SignalSchema
from relay import __version__, response, status
from relay.exporters import ClientTls, ExporterConfig
from relay.files import Rotating, Warn
from relay.headers import HeaderSource, usable
from relay.lookup import look_up
from relay.otlp import Accepted, Fault, Outcome, Permanent, Retryable
from relay.rotation import Address, Rotation
from relay.tls import rotating_client_context

__all__ = ["HttpExporter", "outcome", "retry_after"]

MAX_RESPONSE_BYTES: Final = 64 * 1024
"""Most of an answer's body that is read; a full success has none."""

ERROR_BODY: Final = 1.0
"""Seconds that the body of an error may take, once its status is known."""

MAX_RETRY_AFTER: Final = 60.0
"""Longest wait in seconds that a collector can ask for."""

MAX_IDLE: Final = 15.0
"""Seconds after which an idle connection is not used again: servers close idle ones, and a request
that meets the closing has to be repeated."""

NEXT_ADDRESS: Final = 0.25
"""Seconds that an address gets before the next one is tried as well (RFC 8305, section 5)."""

CLAIMS: Final = 10
"""Times an export asks for a connection, as others take those that stand."""

RESOLVE_INTERVAL: Final = 30.0
"""Seconds after which the name is looked up again, while all is well."""

RESOLVE_AGAIN: Final = 1.0
"""The same after a failure, and how long a connect waits for that before it uses what it has."""

GZIP_LEVEL: Final = 1
"""On typical payloads level 6 costs 2 to 4 times the CPU of level 1 and saves 6 to 10 percent."""

GZIP_THREAD_BYTES: Final = 128 * 1024
"""From this size on gzip runs in a thread: at 5 to 10 ms a megabyte, 1 ms on the event loop."""

MESSAGE_LENGTH: Final = 300
"""Longest piece of a collector's own words in a message."""

_USER_AGENT: Final = f"OTel-OTLP-Exporter-otlp-relay/{__version__}"
_BUSY: Final = frozenset({429, 502, 503, 504})
_FAULTS: Final = {400: Fault.INVALID, 404: Fault.UNIMPLEMENTED, 413: Fault.TOO_LARGE}
_ENDLESS: Final = 1e9  # "never", for an option of aiohttp that wants a number of seconds
_NO_LIMITS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None)
_READ_ERRORS: Final = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError)


# --- What an answer means: pure -------------------------------------------------------------------


def outcome(
    code: int, body: bytes | None, schema: SignalSchema, *, delay: float | None = None
) -> Outcome:
    """Sort a collector's answer.

    Args:
        code: the HTTP status.
        body: of the answer, as protobuf; None when it is something else or too large to be read.
        schema: the signal's.
        delay: seconds, from Retry-After.
    """
    name = str(code)
    if 200 <= code < 300:
        rejected, message = response.partial_success(body or b"", schema)
        return Accepted(name, rejected, _clean(message))
    said = _words(body)
    if code in _BUSY:
        return Retryable(name, said, delay)
    return Permanent(name, _FAULTS.get(code, Fault.OTHER), said)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, 0 to 60; None without a usable one.

    ``now``: Unix time in seconds, for the form that is a date.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), MAX_RETRY_AFTER))
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": UTC, of an unknown place
        date = date.replace(tzinfo=dt.UTC)
    return min(max(date.timestamp() - now, 0.0), MAX_RETRY_AFTER)


def _words(body: bytes | None) -> str:
    """Return the message of the status that an OTLP server answers errors with."""
    if not body:
        return ""
    try:
        return _clean(status.decode(body).message)
    except ValueError:
        return ""


def _clean(text: str) -> str:
    """Make a stranger's words fit for one line of a log."""
    text = " ".join(text[: 4 * MESSAGE_LENGTH].split())
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 3] + "..."


def gzip(payload: bytes) -> bytes:
    """Compress as Content-Encoding: gzip wants it."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(payload) + packer.flush()


# --- One connection -------------------------------------------------------------------------------


class _ConnectedError(Exception):
    """Ends a request of aiohttp where it would be sent: there is a connection now."""


class _Pinned(aiohttp.abc.AbstractResolver):
    """Answers every look-up with one address, so that a connection is to that and no other."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def resolve(
        self,
        host: str,
        port: int = 0,  # noqa: ARG002 - the interface's
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the interface's
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            {
                "hostname": host,
                "host": self._address.host,
                "port": self._address.port,
                "family": self._address.family,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        """Hold nothing."""


async def _body(answer: aiohttp.ClientResponse) -> bytes | None:
    """Read an answer's body; None when it is too large."""
    found = bytearray()
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > MAX_RESPONSE_BYTES:
            return None
    return bytes(found)


class _Line:
    """One connection to one address, kept open from request to request."""

    __slots__ = ("address", "answered", "generation", "idle_since", "session", "transport")

    def __init__(self, address: Address, generation: int, session: aiohttp.ClientSession) -> None:
        self.address = address
        self.generation = generation
        """Of the TLS settings it was made with."""
        self.session = session
        self.transport: asyncio.BaseTransport | None = None
        self.answered = False
        """Whether a request was answered on it."""
        self.idle_since = 0.0

    @property
    def alive(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @classmethod
    async def open(
        cls, url: URL, address: Address, context: ssl.SSLContext | None, generation: int
    ) -> _Line:
        """Connect, with the TLS handshake where there is one. The caller sets the time limit.

        Raises:
            aiohttp.ClientError, OSError: there is no connection.
        """
        connector: aiohttp.BaseConnector
        if address.port:
            connector = aiohttp.TCPConnector(
                ssl=context or True,
                resolver=_Pinned(address),
                use_dns_cache=False,
                limit=1,
                keepalive_timeout=_ENDLESS,
            )
        else:
            connector = aiohttp.UnixConnector(address.host, limit=1, keepalive_timeout=_ENDLESS)
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_LIMITS,
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )
        line = cls(address, generation, session)

        async def stop_when_connected(
            request: aiohttp.ClientRequest, _send: object
        ) -> aiohttp.ClientResponse:
            connection = await connector.connect(request, [], _NO_LIMITS)
            line.transport = connection.transport
            connection.release()  # into the pool of one, for the first real request
            raise _ConnectedError

        try:
            await session.post(url, middlewares=(stop_when_connected,))
        except _ConnectedError:
            pass
        except BaseException:
            await line.close()
            raise
        return line

    async def post(
        self, url: URL, body: bytes, headers: dict[str, str]
    ) -> tuple[aiohttp.ClientResponse, bytes | None]:
        """Send one request; return the answer and its body, None for one that is too large.

        Raises:
            aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError: there is no whole
                answer. An error's body that breaks off or does not come is None instead.
        """
        # aiohttp writes large bodies in pieces only when they come as a file.
        data = io.BytesIO(body) if len(body) > 2**19 else body
        answer = await self.session.post(url, data=data, headers=headers, allow_redirects=False)
        try:
            if answer.status < 300:
                return answer, await _body(answer)
            try:
                # The status has decided; what comes behind it is worth a moment.
                async with asyncio.timeout(ERROR_BODY):
                    return answer, await _body(answer)
            except _READ_ERRORS:
                return answer, None
        finally:
            if not answer.content.at_eof():
                self.transport = None  # the rest of the answer is in the way of another request
            answer.close() if self.transport is None else answer.release()

    def abort(self) -> None:
        """Drop the connection at once."""
        transport, self.transport = self.transport, None
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    async def close(self) -> None:
        self.abort()
        await self.session.close()


# --- The exporter ---------------------------------------------------------------------------------


class HttpExporter:
    """One destination of one signal over OTLP/HTTP; a :class:`relay.exporters.Exporter`.

    ``ready`` means that an idle connection stands, to the address whose turn it is. Exports that
    run at once use a connection each.
    """

    def __init__(
        self,
        schema: SignalSchema,
        config: ExporterConfig,
        *,
        warn: Warn,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,  # noqa: TID251 - Retry-After may be a date
    ) -> None:
        """Prepare; nothing connects yet. ``warn`` takes lines for the log, without secrets.

        Raises:
            ValueError: the endpoint is no URL, or the TLS files cannot be used.
        """
        self._schema = schema
        self._config = config
        self._clock = clock
        self._wall = wall
        self._url, path = _target(config.endpoint, schema)
        self._tls: Rotating[ssl.SSLContext] | None = None
        if not path and (self._url.scheme == "https" or config.tls is not None):
            self._tls = rotating_client_context(config.tls or ClientTls(), warn=warn)
        static = tuple(pair for pair in config.headers if usable(pair[0]))
        for name, value in config.headers:
            if not usable(name):
                warn(f"header {name!r} for the collector is not sent: the transport sets it itself")
            if any(character in value for character in "\r\n\0"):
                raise ValueError(f"the value of header {name!r} holds a line break or NUL")
        self._headers = HeaderSource(static, config.headers_file, warn=warn)

        self._rotation = Rotation()
        self._fixed = _fixed(self._url, path)
        if self._fixed:
            self._rotation.replace([self._fixed])
        self._resolved_at: float | None = None
        self._doubt = False
        """Something failed since the last look-up of the name."""
        self._resolve_fault = ""

        self._idle: dict[Address, deque[_Line]] = {}
        self._busy: set[_Line] = set()
        self._discarded: list[_Line] = []
        self._openers: dict[Address, asyncio.Task[Retryable | None]] = {}
        self._resolving: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[Retryable | None] | None = None
        self._closed = False

    # What stands.

    def ready(self) -> bool:
        """Whether a connection stands, so that an export would be sent at once."""
        now = self._clock()
        self._retire(now)
        turn = next((at for at in self._rotation.order(now) if at not in self._openers), None)
        return bool(self._idle.get(turn)) if turn else bool(self._idle)

    def _retire(self, now: float) -> None:
        """Let go of idle lines that must not be used again."""
        generation = self._generation(now)
        for address in list(self._idle):
            lines = self._idle[address]
            kept = deque(line for line in lines if self._usable(line, now, generation))
            if len(kept) != len(lines):
                self._discarded.extend(line for line in lines if line not in kept)
            if kept:
                self._idle[address] = kept
            else:
                del self._idle[address]

    def _usable(self, line: _Line, now: float, generation: int) -> bool:
        return (
            line.alive
            and now - line.idle_since < MAX_IDLE
            and line.generation == generation
            and line.address in self._rotation
        )

    def _generation(self, now: float) -> int:
        if self._tls is None:
            return 0
        self._tls.current(now)
        return self._tls.generation

    def _take(self) -> _Line | None:
        """Claim an idle line: of the address whose turn it is, else of any."""
        now = self._clock()
        self._retire(now)
        for address in self._rotation.order(now):
            if lines := self._idle.get(address):
                line = lines.pop()  # the latest used, so that the others may grow old
                if not lines:
                    del self._idle[address]
                self._rotation.used(address)
                self._busy.add(line)
                return line
        return None

    def _give_back(self, line: _Line) -> None:
        self._busy.discard(line)
        now = self._clock()
        line.idle_since = now
        if self._closed or not self._usable(line, now, self._generation(now)):
            self._discarded.append(line)
        else:
            self._idle.setdefault(line.address, deque()).append(line)

    async def _sweep(self) -> None:
        """Close what was let go of."""
        while self._discarded:
            await self._discarded.pop().close()

    # Connecting.

    async def connect(self) -> Retryable | None:
        """Establish a connection within the connect limit; None when one is ready."""
        if self._closed:
            return Retryable("CONNECT_FAILED", "the exporter is closed")
        if self.ready():
            return None
        if self._connecting is None or self._connecting.done():
            # Shared by all who call meanwhile; close() cancels it.
            self._connecting = asyncio.create_task(self._connect())  # noqa: TID251
        attempt = self._connecting
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if attempt.cancelled() and not (this is not None and this.cancelling()):
                return Retryable("CONNECT_FAILED", "the exporter was closed")
            raise

    async def _connect(self) -> Retryable | None:
        await self._sweep()
        deadline = asyncio.get_running_loop().time() + self._config.connect_timeout
        if (failure := await self._find_addresses(deadline)) is not None:
            return failure
        order = self._rotation.order(self._clock())
        untried = deque(address for address in order if address not in self._openers)
        openers = list(self._openers.values())  # of earlier callers, whom another address served
        while True:
            if untried:
                openers.append(self._open(untried.popleft(), deadline))
            # With another address at hand, one that is slow to answer is not waited for: it goes
            # on connecting, and is used when that succeeds.
            fallback = bool(untried or self._idle)
            pending = [task for task in openers if not task.done()]
            if pending:
                await asyncio.wait(
                    pending,
                    timeout=NEXT_ADDRESS if fallback else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            self._retire(self._clock())
            if self._idle or any(task.done() and task.result() is None for task in openers):
                return None
            if not untried and all(task.done() for task in openers):
                return _worst([failure for task in openers if (failure := task.result())])

    def _open(self, address: Address, deadline: float) -> asyncio.Task[Retryable | None]:
        """Begin to connect to an address."""
        # Kept until it is done; it ends at the deadline, and close() cancels it.
        opener = asyncio.create_task(self._opened(address, deadline))  # noqa: TID251
        self._openers[address] = opener
        return opener

    async def _opened(self, address: Address, deadline: float) -> Retryable | None:
        """Open one line and add it to the idle ones."""
        failure: Retryable | None = None
        try:
            generation = self._generation(self._clock())
            context = self._tls.current(self._clock()) if self._tls is not None else None
            async with asyncio.timeout_at(deadline):
                line = await _Line.open(self._url, address, context, generation)
            if not line.alive:
                failure = Retryable("CONNECT_FAILED", f"{self._at(address)}: accepted and closed")
            self._give_back(line)
        except TimeoutError:
            limit = f"{self._config.connect_timeout:g} s"
            doing = "no TCP connection or TLS handshake" if self._tls else "no connection"
            failure = Retryable("CONNECT_TIMEOUT", f"{doing} with {self._at(address)} in {limit}")
        except _READ_ERRORS as error:
            failure = Retryable("CONNECT_FAILED", f"{self._at(address)}: {_reason(error)}")
        finally:
            self._openers.pop(address, None)
        if failure is not None:
            self._failed(address)
        return failure

    def _at(self, address: Address) -> str:
        """Name an address for a message: the configured name, and where that led."""
        host = self._url.host or ""
        return str(address) if self._fixed else f"{host} ({address})"

    def _failed(self, address: Address, *, hung: bool = False) -> None:
        self._doubt = True
        self._rotation.failed(address, self._clock(), hung=hung)

    # Names.

    def _resolve_due(self) -> bool:
        if self._fixed is not None or self._closed:
            return False
        if self._resolved_at is None:
            return True
        age = self._clock() - self._resolved_at
        return age >= (RESOLVE_AGAIN if self._doubt else RESOLVE_INTERVAL)

    def _look_again(self) -> None:
        """Begin to look the name up, unless that is under way."""
        if self._resolving is None or self._resolving.done():
            # Catches what goes wrong itself; close() cancels it.
            self._resolving = asyncio.create_task(self._resolve())  # noqa: TID251

    async def _resolve(self) -> None:
        host, port = self._url.host or "", self._url.port or 0
        self._doubt = False
        try:
            found = await look_up(host, port)
        except (OSError, UnicodeError) as error:
            self._resolve_fault = _clean(getattr(error, "strerror", None) or str(error))
            self._doubt = True
        else:
            self._resolve_fault = ""
            self._rotation.replace(found)
        self._resolved_at = self._clock()

    async def _find_addresses(self, deadline: float) -> Retryable | None:
        """Have addresses to connect to; wait for the name only as far as need be."""
        patient = self._doubt and not self._idle
        if self._resolve_due():
            self._look_again()
        task = self._resolving
        if task is not None and not task.done():
            now = asyncio.get_running_loop().time()
            if not self._rotation:
                await asyncio.wait([task], timeout=deadline - now)
            elif patient:
                await asyncio.wait([task], timeout=min(RESOLVE_AGAIN, deadline - now))
        if self._rotation:
            return None
        name = self._url.host
        if task is not None and not task.done():
            limit = f"{self._config.connect_timeout:g} s"
            return Retryable("CONNECT_TIMEOUT", f"looking up the name {name!r} took over {limit}")
        fault = self._resolve_fault or "it has no addresses"
        return Retryable("CONNECT_FAILED", f"cannot look up the name {name!r}: {fault}")

    # Exporting.

    async def export(self, payload: bytes) -> Outcome:
        """Send one request, once, within the attempt limit. Never raises but CancelledError."""
        deadline = None
        if self._config.timeout is not None:
            deadline = asyncio.get_running_loop().time() + self._config.timeout
        body = await self._packed(payload)
        result = await self._attempt(body, deadline)
        if result.code == "401" and self._headers.refused(self._clock()):
            # The collector saw a token that has been replaced meanwhile.
            result = await self._attempt(body, deadline)
        if self._resolve_due():
            self._look_again()
        await self._sweep()
        return result

    async def _attempt(self, body: bytes, deadline: float | None) -> Outcome:
        """Make one attempt, on a line that stands or else on a new one."""
        for _ in range(CLAIMS):
            if (line := self._take()) is not None:
                return await self._on(line, body, deadline)
            try:
                async with asyncio.timeout_at(deadline):
                    failure = await self.connect()
            except TimeoutError:
                failure = Retryable(
                    "CONNECT_TIMEOUT", f"no connection in {self._config.timeout:g} s"
                )
            if failure is not None:
                return failure
        return Retryable("CONNECT_FAILED", "every connection was closed again at once, or taken")

    async def _packed(self, payload: bytes) -> bytes:
        if self._config.compression != "gzip":
            return payload
        if len(payload) < GZIP_THREAD_BYTES:
            return gzip(payload)
        return await asyncio.to_thread(gzip, payload)

    async def _on(self, line: _Line, body: bytes, deadline: float | None) -> Outcome:
        """Make one attempt on a line, and give the line back or let go of it."""
        answered = line.answered
        try:
            async with asyncio.timeout_at(deadline):
                answer, found = await line.post(self._url, body, self._request_headers())
        except TimeoutError:
            return self._lost(
                line, "TIMEOUT", f"no answer in {self._config.timeout:g} s", hung=True
            )
        except _READ_ERRORS as error:
            code = "BAD_RESPONSE" if _garbage(error) else "CONNECTION_LOST"
            return self._lost(line, code, _reason(error), reused=answered)
        except BaseException:
            line.abort()
            self._lost_line(line)
            raise
        line.answered = True
        self._rotation.worked(line.address)
        self._give_back(line)
        return self._sorted(answer, found)

    def _request_headers(self) -> dict[str, str]:
        headers = dict(self._headers.current(self._clock()))
        own = {
            "Content-Type": "application/x-protobuf",
            "Accept": "application/x-protobuf",
            "Accept-Encoding": "identity",
        }
        if not any(name.lower() == "user-agent" for name in headers):
            own["User-Agent"] = _USER_AGENT
        if self._config.compression == "gzip":
            own["Content-Encoding"] = "gzip"
        return headers | own

    def _sorted(self, answer: aiohttp.ClientResponse, body: bytes | None) -> Outcome:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        readable = kind in {"application/x-protobuf", "application/protobuf", ""}
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            readable = False
        delay = retry_after(answer.headers.get("Retry-After"), self._wall())
        result = outcome(answer.status, body if readable else None, self._schema, delay=delay)
        if isinstance(result, Accepted) or result.message:
            return result
        if 300 <= answer.status < 400:
            target = _host(answer.headers.get("Location", ""))
            said = f"the collector redirects to {target}; redirects are not followed"
        else:
            said = _clean(f"{answer.status} {answer.reason or ''}")
            if kind.startswith("text/") and body:
                said = _clean(body.decode("utf-8", "replace")) or said
            elif kind == "application/json" and body:
                with contextlib.suppress(ValueError):  # gateways answer so, whatever was asked
                    said = _clean(status.decode_json(body).message) or said
        if isinstance(result, Retryable):
            return Retryable(result.code, said, result.delay)
        return Permanent(result.code, result.fault, said)

    def _lost(
        self, line: _Line, code: str, message: str, *, hung: bool = False, reused: bool = False
    ) -> Retryable:
        """Sort an attempt that got no answer; no other is made here: the collector may have it.

        A connection that had lain idle may have been closed by the collector as the request was
        on its way, which says as little about the destination as the loss of one address: the next
        connect will tell.
        """
        self._lost_line(line)
        self._failed(line.address, hung=hung)
        standing = {other.address for other in self._busy} | self._idle.keys()
        others = self._rotation.others_fit(line.address, self._clock(), standing)
        return Retryable(
            code,
            f"{self._at(line.address)}: {message}",
            timed_out=hung,
            rerouted=others or (reused and code == "CONNECTION_LOST"),
        )

    def _lost_line(self, line: _Line) -> None:
        line.abort()
        self._busy.discard(line)
        self._discarded.append(line)

    # The end.

    async def close(self) -> None:
        """Give the connections back. Idempotent; an export under way fails as a lost one."""
        self._closed = True
        tasks: list[asyncio.Task[None] | asyncio.Task[Retryable | None]] = [*self._openers.values()]
        tasks.extend(task for task in (self._connecting, self._resolving) if task is not None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lines in self._idle.values():
            self._discarded.extend(lines)
        self._idle.clear()
        for line in self._busy:
            line.abort()
        await self._sweep()


# --- Odds and ends --------------------------------------------------------------------------------


def _target(endpoint: str, schema: SignalSchema) -> tuple[URL, str]:
    """Return the URL of requests, and the path of the socket where it is a Unix socket."""
    if endpoint.startswith("unix:"):
        return URL(f"http://localhost{schema.http_path}"), endpoint.removeprefix("unix:")
    url = URL(endpoint, encoded=endpoint.isascii())  # as it is: %2F stays %2F
    if url.scheme not in {"http", "https"} or not url.host or not url.port:
        raise ValueError(f"not an http:// or https:// URL: {endpoint!r}")
    return url, ""


def _fixed(url: URL, path: str) -> Address | None:
    """Return the one address of an endpoint that is no name."""
    if path:
        return Address(socket.AF_UNIX, path, 0)
    host = url.host or ""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return Address(socket.AF_INET6 if version == 6 else socket.AF_INET, host, url.port or 0)


def _worst(failures: list[Retryable]) -> Retryable:
    """Make one failure of those of several addresses."""
    code = "CONNECT_FAILED"
    if any(failure.code == "CONNECT_TIMEOUT" for failure in failures):
        code = "CONNECT_TIMEOUT"
    return Retryable(code, "; ".join(failure.message for failure in failures))


def _garbage(error: Exception) -> bool:
    """Whether bytes came back that are no HTTP answer."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return False  # an answer began, and broke off
    return isinstance(error, aiohttp.http.HttpProcessingError | aiohttp.ClientResponseError)


def _reason(error: Exception) -> str:
    """Say what went wrong with a connection, in words for the log."""
    cause: BaseException | None = error
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        cause = (
            error.os_error
            if isinstance(error, aiohttp.ClientConnectorError)
            else error.certificate_error
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the collector's certificate is not accepted: {_clean(cause.verify_message)}"
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or str(cause)).replace("_", " ").lower()
        hint = "; does it speak TLS at all?" if "wrong version" in reason else ""
        return f"TLS failed: {_clean(reason)}{hint}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed the connection before it answered"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "closed the connection in the middle of its answer"
    if _garbage(error):
        return "what it answers is not HTTP/1.1; is this the port of OTLP over HTTP?"
    if isinstance(cause, OSError):
        # asyncio puts words of its own in the place of the system's: "Connect call failed".
        number = 0 if isinstance(cause, socket.gaierror) else cause.errno or 0
        if words := os.strerror(number) if number > 0 else cause.strerror:
            return _clean(words)
    return _clean(str(error)) or type(error).__name__


def _host(location: str) -> str:
    """Name the host of a redirect; what follows it may hold secrets."""
    try:
        host = URL(location).host
    except ValueError:
        host = None
    return _clean(host) if host else "another path"
