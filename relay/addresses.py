"""Addresses as settings write them: ``host:port``, ``[v6]:port``, ``unix:/path``, ``off``.

Plain tuples and hardly an import, because the health check reads its address here and must cost
what a bare interpreter costs.
"""

from __future__ import annotations

# What socket is built on; the Python half of socket takes longer to import than all of this.
import _socket

LISTEN_ACCEPTS = "host:port, [IPv6]:port, unix:/absolute/path or off"

# sun_path of sockaddr_un: 108 bytes on Linux, 104 on macOS, both with the closing NUL.
UNIX_PATH_MAX = 103

_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def parse_listen(text: str) -> tuple[str, int, str]:
    """Parse where to listen; returns (host in lower case, port, path), all empty for ``off``.

    Raises:
        ValueError: the text is none of the accepted forms; the message says what is accepted.
    """
    if text.lower() == "off":
        return "", 0, ""
    if text.startswith("unix:"):
        return "", 0, parse_unix(text)
    if "://" in text:
        raise ValueError(f"a listener has no scheme; expected {LISTEN_ACCEPTS}")
    host, port = split_host_port(text)
    if port is None:
        raise ValueError(f"the port is missing; expected {LISTEN_ACCEPTS}")
    return host.lower(), port, ""


def parse_unix(text: str) -> str:
    """The path of ``unix:/path`` or ``unix:///path``.

    Raises:
        ValueError: not an absolute path, or longer than the system's limit.
    """
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError("expected an absolute path to a socket, as in unix:/run/otlp.sock")
    if len(path.encode()) > UNIX_PATH_MAX:
        raise ValueError(f"the path of a Unix socket has at most {UNIX_PATH_MAX} bytes")
    return path


def split_host_port(text: str) -> tuple[str, int | None]:
    """Split ``host:port``, ``[v6]:port`` or a host alone; the brackets are removed.

    Raises:
        ValueError: no host, an impossible host, or a port that is no number up to 65535.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not is_ipv6(host) or (rest and not rest.startswith(":")):
            raise ValueError("expected [IPv6]:port, as in [::1]:4317")
        port_text = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(":")
        if ":" in rest:
            raise ValueError("an IPv6 address needs brackets, as in [::1]:4317")
        if not host:
            raise ValueError("the host is missing; 0.0.0.0 or [::] stands for every interface")
        if not _HOST_CHARACTERS.issuperset(host):
            raise ValueError("the host has characters that no host name has")
        port_text = rest if colon else None
    if port_text is None:
        return host, None
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise ValueError("the port must be a number up to 65535")
    port = int(port_text)
    if port > 65535:
        raise ValueError("the port must be a number up to 65535")
    return host, port


def join_host_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ipv6(host: str) -> bool:
    """Whether the text is an IPv6 address (without brackets and without a zone)."""
    try:
        _socket.inet_pton(_socket.AF_INET6, host)
    except OSError:
        return False
    return True


def numeric(host: str) -> str:
    """The address that a literal stands for in its usual spelling, or "" for a name.

    Understands what resolvers do: ``127.1`` and ``0`` are 127.0.0.1 and 0.0.0.0, and
    ``::ffff:127.0.0.1`` is 127.0.0.1. Never looks a name up.
    """
    if ":" in host:
        try:
            packed = _socket.inet_pton(_socket.AF_INET6, host)
        except OSError:
            return ""
        if packed.startswith(b"\0" * 10 + b"\xff\xff"):
            return _socket.inet_ntop(_socket.AF_INET, packed[12:])
        return _socket.inet_ntop(_socket.AF_INET6, packed)
    if not host[:1].isdigit():
        return ""
    try:
        return _socket.inet_ntop(_socket.AF_INET, _socket.inet_aton(host))
    except OSError:
        return ""


def is_localhost(host: str) -> bool:
    """Whether a name is localhost (RFC 6761, section 6.3: with everything below it)."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether a host is the machine's loopback by its spelling alone."""
    address = numeric(host)
    return is_localhost(host) or address.startswith("127.") or address == "::1"


def is_wildcard(host: str) -> bool:
    """Whether a host stands for every interface (a client connecting to it reaches loopback)."""
    return numeric(host) in {"0.0.0.0", "::"}  # noqa: S104 - recognised here, not bound
