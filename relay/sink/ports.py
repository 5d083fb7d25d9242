"""Addresses that stay ours while nothing listens on them.

A collector that goes away and comes back must find its port again. So each TCP address is held
by a socket that is bound but does not listen: connections are refused, the kernel gives the port
to nobody else, and, with SO_REUSEADDR on both, a server may listen on it meanwhile (Linux: a bind
conflicts only with a socket that listens, socket(7)). Elsewhere the hold is released for the time
of listening.
"""

from __future__ import annotations

import errno
import socket
import sys

from relay.addresses import join_host_port
from relay.receivers import Listen

__all__ = ["Hold"]

_ATTEMPTS = 64
_NO_SUCH_ADDRESS = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT))
_SHARES_WITH_LISTENER = sys.platform == "linux"


class Hold:
    """Holds one listen address (``localhost``: 127.0.0.1 and, where there is one, ::1).

    Raises:
        OSError: the address is taken, or is not this machine's.
    """

    def __init__(self, listen: Listen) -> None:
        self._sockets: list[socket.socket] = []
        self.path = listen.path
        self.addresses: list[tuple[str, int]] = []
        """Host and port of each address; empty for a Unix socket."""
        if listen.path:
            return
        hosts = ["127.0.0.1", "::1"] if listen.host == "localhost" else [listen.host]
        for attempt in range(_ATTEMPTS):
            try:
                self._bind(hosts, listen)
            except OSError as error:
                # The port that the kernel chose on 127.0.0.1 may be taken on ::1: choose again.
                if listen.port == 0 and error.errno == errno.EADDRINUSE and attempt < _ATTEMPTS - 1:
                    continue
                raise
            return

    def _bind(self, hosts: list[str], listen: Listen) -> None:
        port = listen.port
        self.release()
        self.addresses = []
        for host in hosts:
            try:
                self._sockets.append(_bound(host, port))
            except OSError as error:
                if host == "::1" and self._sockets and error.errno in _NO_SUCH_ADDRESS:
                    continue
                self.release()
                raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}") from None
            port = int(self._sockets[0].getsockname()[1])
            self.addresses.append((host, port))

    @property
    def endpoint(self) -> str:
        """The first address, ``host:port`` or ``unix:/path``."""
        if self.path:
            return f"unix:{self.path}"
        return join_host_port(*self.addresses[0])

    @property
    def endpoints(self) -> list[str]:
        """All addresses, each ``host:port`` or ``unix:/path``."""
        return (
            [f"unix:{self.path}"]
            if self.path
            else [join_host_port(*each) for each in self.addresses]
        )

    def listening(self) -> None:
        """A server is about to listen."""
        if not _SHARES_WITH_LISTENER:
            self.release()

    def closed(self) -> None:
        """The server has gone: hold again, as far as the system lets us."""
        if not self._sockets:
            self._sockets = [_bound(host, port) for host, port in self.addresses]

    def release(self) -> None:
        """Give the addresses back. Idempotent."""
        for each in self._sockets:
            each.close()
        self._sockets = []


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"{host}: {error.strerror}") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host != "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock
