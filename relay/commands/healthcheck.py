"""``otlp-relay healthcheck``: is the relay on this machine ready? For container health checks.

It runs every few seconds beside the application, so it costs little more than the interpreter: a
plain socket instead of an HTTP library, and none of the relay's own configuration.
"""

from __future__ import annotations

# What socket is built on: importing the Python half of socket would double the cost of asking.
import _socket
import sys
import time

from relay.addresses import is_wildcard, join_host_port, numeric, parse_listen, split_host_port
from relay.commands import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT = 2.0
"""Seconds for the whole question."""

DEFAULT = "localhost:8888"

USAGE = """\
usage: otlp-relay healthcheck [--admin-listen ADDRESS | --url URL]

Asks a running relay's /readyz and prints one line. Exit code 0: ready; 1: not, or not reachable.

  --admin-listen ADDRESS  host:port or unix:/path, as the relay has it
                          (default: RELAY_ADMIN_LISTEN, else localhost:8888)
  --url URL               http://host:port/path instead
"""

_LONGEST_ANSWER = 65536


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Ask, print one line, and return 0 (ready) or 1.

    Raises:
        UsageError: the command line has what no flag accepts.
    """
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    flags = _flags(argv)
    source = "--url" if "--url" in flags else "--admin-listen"
    text = flags.get(source)
    if text is None:
        source, text = (
            "RELAY_ADMIN_LISTEN",
            environ.get("RELAY_ADMIN_LISTEN", "").strip() or DEFAULT,
        )
    try:
        host, port, path, request_path = _url(text) if source == "--url" else _listen(text)
    except ValueError as error:
        return _say(f"{source}={text!r}: {error}", ready=False)
    where = f"unix:{path}" if path else join_host_port(host, port)
    try:
        status, reason = ask(host, port, path, request_path, time.monotonic() + TIMEOUT)
    except TimeoutError:
        return _say(f"no answer from {where} within {TIMEOUT:g} s", ready=False)
    except (OSError, ValueError) as error:
        return _say(f"no answer from {where}: {error}", ready=False)
    if status == 200:
        return _say(f"ready ({where})", ready=True)
    return _say(f"not ready: {where} answers {status} {reason}".rstrip(), ready=False)


def ask(host: str, port: int, path: str, request_path: str, deadline: float) -> tuple[int, str]:
    """GET over TCP, or over the Unix socket at ``path``: (status, its reason phrase).

    ``deadline``: on the monotonic clock, for everything together.

    Raises:
        TimeoutError: the deadline passed.
        OSError: no connection, or it broke.
        ValueError: what answered is no HTTP server.
    """
    name = "localhost" if path else join_host_port(host, port)
    request = f"GET {request_path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    connection = _connect(host, port, path, deadline)
    try:
        connection.settimeout(_left(deadline))
        connection.sendall(request.encode("ascii"))
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
            connection.settimeout(_left(deadline))
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
    finally:
        connection.close()
    version, _, line = answer.partition(b"\r\n")[0].decode("ascii", "replace").partition(" ")
    status, _, reason = line.partition(" ")
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit()):
        raise ValueError("what listens there does not speak HTTP")
    return int(status), "".join(c for c in reason if c.isprintable())[:80]


def _connect(host: str, port: int, path: str, deadline: float) -> _socket.socket:
    """A connection to the first address that takes one."""
    if path:
        return _open(_socket.AF_UNIX, path, deadline)
    # localhost as the relay binds it, whatever /etc/hosts has to say.
    names = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    refused = OSError("no address")
    for name in names:
        # As bytes: for text the interpreter imports its codec for international names.
        for family, _, _, _, address in _socket.getaddrinfo(
            name.encode("ascii"), port, 0, _socket.SOCK_STREAM
        ):
            try:
                return _open(family, address, deadline)
            except TimeoutError:
                raise
            except OSError as error:
                refused = error
    raise refused


def _open(family: int, address: str | tuple[object, ...], deadline: float) -> _socket.socket:
    connection = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _flags(argv: Sequence[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in {"--url", "--admin-listen"}:
            raise UsageError(f"unknown argument {argument!r}; expected --admin-listen or --url")
        given = value if equals else next(rest, "")
        if not given:
            raise UsageError(f"{name} needs a value")
        flags[name] = given
    return flags


def _listen(text: str) -> tuple[str, int, str, str]:
    """(host, port, socket path, request path) for where the relay says it listens."""
    host, port, path = parse_listen(text)
    if not host and not path:
        raise ValueError("there is no admin listener to ask")
    if is_wildcard(host):
        host = "::1" if ":" in numeric(host) else "127.0.0.1"
    return host, port, path, "/readyz"


def _url(text: str) -> tuple[str, int, str, str]:
    scheme, slashes, rest = text.partition("://")
    if not slashes or scheme.lower() != "http":
        raise ValueError("expected http://host:port/path")
    authority, slash, path = rest.partition("/")
    if not (path.isascii() and path.isprintable()) or " " in path:
        raise ValueError("expected http://host:port/path, percent-encoded")
    host, port = split_host_port(authority)
    return host, 80 if port is None else port, "", slash + path if path else "/readyz"


def _say(line: str, *, ready: bool) -> int:
    print(line, file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1
