"""Questions to the network and to this machine, each within a time limit, none of them harmful.

A probe reports what it saw and judges nothing; :mod:`relay.doctor` does.

Sources: RFC 9113, section 3.4 (connection preface) and 6.8 (GOAWAY); proc(5) for who listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from relay.addresses import join_host_port
from relay.doctor import spoken
from relay.lookup import look_up
from relay.receivers import Listen

__all__ = [
    "Answer", "Handshake", "Place", "Resolution", "alert", "ask", "bindable", "connected", "get",
    "handshake", "owner", "resolve", "unverified", "why",
]  # fmt: skip

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_GOODBYE: Final = b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0"
_LONGEST: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Something to connect to: one address and port, or a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else join_host_port(self.host, self.port)


def why(error: BaseException) -> str:
    """An error of the system in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name is unknown"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


# --- Names and connections ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a look-up gave: addresses, how long it took in seconds, and a fault or ""."""

    addresses: tuple[str, ...]
    seconds: float
    fault: str = ""


async def resolve(host: str, port: int, limit: float) -> Resolution:
    """Look a name up as the exporters do, within ``limit`` seconds."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            found = await look_up(host, port)
    except TimeoutError:
        return Resolution((), time.monotonic() - started, f"no answer within {limit:g} s")
    except (OSError, UnicodeError) as error:
        return Resolution((), time.monotonic() - started, why(error))
    addresses = tuple(dict.fromkeys(each.host for each in found))
    return Resolution(addresses, time.monotonic() - started)


@contextlib.asynccontextmanager
async def connected(
    place: Place, limit: float, context: ssl.SSLContext | None = None, name: str = ""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection for a few questions; what goes wrong is an OSError (ssl.SSLError is one)."""
    options: dict[str, Any] = {"ssl": context, "limit": 65536}
    if context is not None:
        options |= {"server_hostname": name or place.host, "ssl_handshake_timeout": limit}
    async with asyncio.timeout(limit):
        if place.path:
            reader, writer = await asyncio.open_unix_connection(place.path, **options)
        else:
            reader, writer = await asyncio.open_connection(place.host, place.port, **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


# --- TLS ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a TLS handshake went. ``certificate``: as ``SSLSocket.getpeercert`` gives it."""

    error: OSError | None = None
    version: str = ""
    protocol: str = ""
    certificate: dict[str, Any] = field(default_factory=dict)
    der: bytes = b""


async def handshake(place: Place, name: str, context: ssl.SSLContext, limit: float) -> Handshake:
    """Shake hands once; ``name`` is what the certificate must be for."""
    try:
        async with connected(place, limit, context, name) as (_, writer):
            tls = writer.get_extra_info("ssl_object")
            return Handshake(
                version=tls.version() or "",
                protocol=tls.selected_alpn_protocol() or "",
                certificate=tls.getpeercert() or {},
                der=tls.getpeercert(binary_form=True) or b"",
            )
    except OSError as error:
        return Handshake(error=error)


def unverified(protocols: list[str]) -> ssl.SSLContext:
    """A context that looks at whatever certificate there is; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    return context


async def alert(
    place: Place, name: str, context: ssl.SSLContext, limit: float
) -> ssl.SSLError | None:
    """What a server says that hangs up after a handshake which this side took for complete.

    In TLS 1.3 a server looks at the client's certificate only then. asyncio shows its alert as a
    plain end of the stream, so this asks with a blocking socket, in a thread.
    """

    def listen() -> ssl.SSLError | None:
        try:
            with (
                socket.create_connection((place.host, place.port), limit) as plain,
                context.wrap_socket(plain, server_hostname=name) as wrapped,
            ):
                wrapped.recv(1)
        except ssl.SSLError as error:
            return error
        except OSError:
            pass
        return None

    return await asyncio.to_thread(listen)


# --- Protocols ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: ``what`` in the words of :func:`relay.doctor.spoken`, "closed" or "silent".

    ``date``: Unix time of the Date header, or None. ``error``: of the connection, or None.
    """

    what: str
    date: float | None = None
    error: OSError | None = None


async def ask(
    place: Place, how: str, limit: float, context: ssl.SSLContext | None = None, name: str = ""
) -> Answer:
    """Say hello as HTTP/2 (``http2``) or HTTP/1.1 (``http1``) does, and listen to the answer."""
    authority = "localhost" if place.path else str(place)
    hello = (
        _PREFACE
        if how == "http2"
        else f"GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
    )
    first = b""
    try:
        async with connected(place, limit, context, name) as (reader, writer):
            writer.write(hello)
            async with asyncio.timeout(limit):
                while b"\r\n\r\n" not in first if how == "http1" else len(first) < 9:
                    piece = await reader.read(4096)
                    if not piece or len(first) > 65536:
                        break
                    first += piece
            if spoken(first) == "http2":
                writer.write(_GOODBYE)
                with contextlib.suppress(OSError):
                    await writer.drain()
    except TimeoutError:
        return Answer(spoken(first) or "silent")
    except OSError as error:
        return Answer(spoken(first) or "closed", error=error)
    return Answer(spoken(first) or "closed", _date(first))


def _date(answer: bytes) -> float | None:
    for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                return parsedate_to_datetime(value.decode("latin-1").strip()).timestamp()
            except ValueError:
                return None
    return None


async def get(place: Place, path: str, limit: float) -> tuple[int, bytes]:
    """GET over plain HTTP/1.1: status and body.

    Raises:
        OSError: no connection, it broke, or it took too long.
        ValueError: what answers is no HTTP server.
    """
    authority = "localhost" if place.path else str(place)
    request = f"GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    found = b""
    async with connected(place, limit) as (reader, writer):
        writer.write(request.encode("ascii"))
        async with asyncio.timeout(limit):
            while len(found) < _LONGEST and (piece := await reader.read(65536)):
                found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("what listens there does not speak HTTP")
    return int(words[1]), body


# --- This machine ---------------------------------------------------------------------------------


def bindable(listen: Listen) -> OSError | None:
    """Why a relay could not listen on a TCP address now; None when it could.

    Binds without listening, so that nobody can connect, and lets go at once.
    """
    hosts = ["127.0.0.1", "::1"] if listen.host == "localhost" else [listen.host]
    for host in hosts:
        try:
            answers = socket.getaddrinfo(
                host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            return error
        for family, _, _, _, address in answers:
            try:
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
                    sock.bind(address)
            except OSError as error:
                lacks = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
                if listen.host == "localhost" and host == "::1" and error.errno in lacks:
                    continue
                return error
    return None


def owner(port: int) -> str:
    """Which process listens on a TCP port, as "name (pid N)"; "" where that cannot be seen.

    Linux only, and only processes of one's own unless one is root.
    """
    inodes = _listening(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    name = (process / "comm").read_text().strip()
                    return f"{name} (pid {process.name})"
        except OSError:
            continue  # Ended meanwhile, or another user's.
    return ""


def _listening(port: int) -> set[str]:
    """Inodes of sockets that listen on a port, as links of file descriptors name them."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{words[9]}]")
    return found
