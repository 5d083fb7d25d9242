"""Listening sockets for every listener of the relay: TCP, the localhost pair, Unix sockets.

A port or a socket that another process serves is never shared or stolen. So ``SO_REUSEPORT`` is
never set. ``SO_REUSEADDR`` is: on Linux it lets a restarted relay have its port back while old
connections are in TIME_WAIT, and still refuses a port on which anybody listens (socket(7)). On
macOS it would also allow a specific address beside somebody's wildcard, so there the port is
probed first.

Every failure is an OSError whose message names the address and the cause.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.receivers import Listen

__all__ = ["UnixSocketFile", "address", "claim_unix", "tcp_sockets", "unix_socket"]

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel caps it (net.core.somaxconn)."""

_PAIR_ATTEMPTS = 64
_PROBE_TIMEOUT = 1.0
_LOCK_TIMEOUT = 5.0
_NO_SUCH_ADDRESS = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT))


def address(sock: socket.socket) -> str:
    """Where a bound socket listens: ``127.0.0.1:4318``, ``[::1]:4318``, ``unix:/path``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    return _address(name[0], name[1])


def tcp_sockets(listen: Listen, *, backlog: int = BACKLOG) -> list[socket.socket]:
    """Non-blocking sockets that listen on a TCP address.

    ``localhost`` gives 127.0.0.1 and, where the machine has it, ::1, on one port, also when the
    kernel chooses it (port 0). ``::`` takes IPv4 too, as servers in Go and gRPC do. A name gives
    one socket for each of its addresses.

    Raises:
        OSError: the address cannot be had (in use, no such address or name, no permission).
    """
    if listen.host != "localhost":
        try:
            found = socket.getaddrinfo(
                listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as exc:
            raise OSError(
                exc.errno, f"cannot listen on {listen}: {exc.strerror or 'unknown host name'}"
            ) from exc
        hosts = list(dict.fromkeys(str(item[4][0]) for item in found))
        return _bind_all(hosts, listen.port, backlog)
    for attempt in range(_PAIR_ATTEMPTS):
        try:
            return _bind_all(["127.0.0.1", "::1"], listen.port, backlog)
        except OSError as exc:
            # The port that the kernel chose on 127.0.0.1 may be somebody's on ::1: choose again.
            if listen.port or exc.errno != errno.EADDRINUSE or attempt == _PAIR_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _bind_all(hosts: list[str], port: int, backlog: int) -> list[socket.socket]:
    """One socket per host, all on one port; a lacking ::1 is left out when another was bound."""
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            try:
                sockets.append(_bind(host, port, backlog))
            except OSError as exc:
                if host == "::1" and sockets and exc.errno in _NO_SUCH_ADDRESS:
                    continue
                raise
            port = sockets[0].getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind(host: str, port: int, backlog: int) -> socket.socket:
    sock = None
    try:
        if sys.platform != "linux" and port:
            _refuse_served_port(host, port)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        sock.bind((host, port))
        # Two that bound one free port with SO_REUSEADDR are told apart here: one fails.
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as exc:
        if sock is not None:
            sock.close()
        why = "another process listens there" if exc.errno == errno.EADDRINUSE else exc.strerror
        raise OSError(exc.errno, f"cannot listen on {_address(host, port)}: {why}") from exc
    return sock


def _refuse_served_port(host: str, port: int) -> None:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison
    with contextlib.suppress(OSError), socket.create_connection((target, port), _PROBE_TIMEOUT):
        raise OSError(errno.EADDRINUSE, "in use") from None


@dataclass(slots=True)
class UnixSocketFile:
    """The file of a Unix socket that this process serves."""

    path: str
    identity: tuple[int, int] | None = None
    """Device and inode, so that only our own file is ever removed; None until it is bound."""

    def remove(self) -> None:
        """Remove the file, if it is still ours. Idempotent."""
        with contextlib.suppress(OSError):
            if self.identity is not None and _identity(self.path) == self.identity:
                Path(self.path).unlink()
        self.identity = None


@contextlib.contextmanager
def claim_unix(path: str, mode: int) -> Iterator[UnixSocketFile]:
    """Make way for a Unix socket at ``path``; the body of the ``with`` binds it and listens.

    A socket that another process serves (a connection attempt is not refused) is left alone, and
    so is a file that is no socket; a stale socket is removed. Two relays that start at once take
    turns, by a lock on the directory. From its creation the socket is the owner's alone; its
    ``mode`` is set when the body is done.

    Raises:
        OSError: the path is taken, or cannot be had.
    """
    file = UnixSocketFile(path)
    try:
        with _locked(Path(path).parent):
            _refuse_served_path(path)
            previous = os.umask(0o177)
            try:
                yield file
            finally:
                os.umask(previous)
            file.identity = _identity(path)
            Path(path).chmod(mode)
    except OSError as exc:
        file.remove()
        why = exc.strerror or str(exc)
        if not why.startswith("cannot listen"):
            why = f"cannot listen on unix:{path}: {why}"
        raise OSError(exc.errno or errno.EINVAL, why) from exc


def unix_socket(
    path: str, mode: int, *, backlog: int = BACKLOG
) -> tuple[socket.socket, UnixSocketFile]:
    """A non-blocking socket that listens on ``path``, and its file, to be removed at the end.

    Raises:
        OSError: the path is taken, or cannot be had.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with claim_unix(path, mode) as file:
            sock.bind(path)
            sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock, file


def _refuse_served_path(path: str) -> None:
    """Remove a stale socket at ``path``; raise OSError for anything else that is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # somebody listens, and is behind with accepting
        except OSError as exc:
            raise OSError(exc.errno, f"cannot tell whether it is served: {exc.strerror}") from exc
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EAGAIN, "its directory is locked") from None
                time.sleep(0.01)  # noqa: TID251 - at start, before anything is served
        yield
    finally:
        os.close(descriptor)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
