"""Where the collector is: reading an endpoint, and what it means for each protocol.

Source: OpenTelemetry protocol exporter specification, "Configuration Options" and "Endpoint URLs
for OTLP/HTTP". Where the specification leaves a choice:

- A URL without a port has its scheme's port, 80 or 443 (RFC 9110, section 4.2), for gRPC too.
- ``host:port`` without a scheme is for gRPC only, and needs its port.
- What the relay would have to ignore is refused or warned about, not ignored silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from relay import addresses
from relay.config.values import InvalidError, Kind, Parsed

ACCEPTS = "http://host:port, https://host:port, unix:/absolute/path or, for grpc, host:port"

DEFAULT_GRPC = "http://otel-collector:4317"
DEFAULT_HTTP = "http://otel-collector:4318"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as written.

    ``scheme`` "" is ``host:port`` alone; ``path`` of "unix" is the socket's, otherwise the URL's;
    ``query`` is without its question mark.
    """

    scheme: Literal["http", "https", "unix", ""]
    host: str = ""
    port: int | None = None
    path: str = ""
    query: str = ""

    @property
    def effective_port(self) -> int:
        """The port that is connected to; 0 for a Unix socket."""
        if self.port is not None:
            return self.port
        return {"http": 80, "https": 443}.get(self.scheme, 0)

    def __str__(self) -> str:
        """As a URL, with the query's content redacted: some carry their token there."""
        if self.scheme == "unix":
            return f"unix:{self.path}"
        prefix = f"{self.scheme}://" if self.scheme else ""
        return f"{prefix}{self.authority}{self.path}{'?<redacted>' if self.query else ''}"

    @property
    def authority(self) -> str:
        """``host`` or ``host:port``, as written."""
        if self.port is not None:
            return addresses.join_host_port(self.host, self.port)
        return f"[{self.host}]" if ":" in self.host else self.host


def endpoint() -> Kind[Endpoint | None]:
    """An endpoint; unset is the default that the protocol gives."""
    return Kind(_parse, ACCEPTS, Parsed(None, f"{DEFAULT_GRPC} (:4318 for http/protobuf)"))


def redact(text: str) -> str:
    """An endpoint that could not be read, without what may be a secret in it."""
    text = re.sub(r"^((?:[^/:@]*://)?).*@", r"\1<redacted>@", text, flags=re.DOTALL)
    return re.sub(r"\?.*", "?<redacted>", text, flags=re.DOTALL)


def _parse(text: str) -> Parsed[Endpoint | None]:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise InvalidError(f"contains spaces or control characters; expected {ACCEPTS}")
    try:
        found = _read(text)
    except InvalidError:
        raise
    except ValueError as error:
        raise InvalidError(f"{error}; expected {ACCEPTS}") from None
    return Parsed(found, str(found))


def _read(text: str) -> Endpoint:
    if text.lower().startswith("unix:"):
        return Endpoint("unix", path=addresses.parse_unix("unix:" + text[5:]))
    if "://" in text:
        return _url(text)
    # gRPC's name for "look the name up", which is what a name alone does as well.
    host, port = addresses.split_host_port(text.removeprefix("dns:"))
    if port is None:
        raise ValueError("the port is missing")
    return Endpoint("", host, _connectable(port))


def _url(text: str) -> Endpoint:
    try:
        url = urlsplit(text)
    except ValueError:  # its message may repeat what stands before an @
        raise InvalidError(f"expected {ACCEPTS}") from None
    if url.scheme == "dns" and not url.netloc:
        return _read("dns:" + url.path.removeprefix("/"))
    if url.scheme not in {"http", "https"}:
        raise InvalidError(f"the scheme {url.scheme}:// is unknown; expected {ACCEPTS}")
    if "@" in url.netloc:
        raise InvalidError(
            "a user or password in a URL is not sent; put an Authorization header into "
            "OTEL_EXPORTER_OTLP_HEADERS or RELAY_EXPORTER_HEADERS_FILE"
        )
    if "#" in text:
        raise InvalidError(f"a fragment (#) is never sent; expected {ACCEPTS}")
    return _from(url)


def _from(url: SplitResult) -> Endpoint:
    if not url.netloc:
        raise ValueError("the host is missing")
    host, port = addresses.split_host_port(url.netloc.removesuffix(":"))
    return Endpoint(
        "https" if url.scheme == "https" else "http",
        host.lower(),
        None if port is None else _connectable(port),
        url.path,
        url.query,
    )


def _connectable(port: int) -> int:
    if port == 0:
        raise ValueError("nothing listens on port 0")
    return port


@dataclass(frozen=True, slots=True)
class Destination:
    """What an endpoint comes to for one signal and protocol.

    ``target``: as ``ExporterConfig.endpoint`` wants it. ``hints``: what is allowed but looks like
    a mistake.
    """

    target: str
    encrypted: bool
    hints: tuple[str, ...] = ()


def resolve(
    found: Endpoint, *, protocol: str, http_path: str, own: bool, insecure: bool
) -> Destination:
    """Apply the protocol's rules to an endpoint.

    ``http_path``: the signal's path (``/v1/traces``). ``own``: the endpoint was given for this
    signal, so that an HTTP URL is used as it is; otherwise it is a base that the path is added to.

    Raises:
        InvalidError: the endpoint cannot be used with the protocol.
    """
    if found.scheme == "unix":
        return Destination(f"unix:{found.path}", encrypted=False)
    if protocol == "grpc":
        return _grpc(found, insecure=insecure)
    if not found.scheme:
        raise InvalidError("http/protobuf needs a URL: expected http://host:port or https://...")
    hints = []
    if own:
        path = found.path or "/"
        if path == "/":
            hints.append(
                f"the endpoint of a single signal is used as it is, so requests go to /, "
                f"not to {http_path}"
            )
    elif found.query:
        raise InvalidError("a base URL has no query; expected http://host:port/path")
    else:
        path = found.path.rstrip("/") + http_path
    if found.port == 4317:
        hints.append("port 4317 is usually OTLP/gRPC, but the protocol is http/protobuf")
    query = f"?{found.query}" if found.query else ""
    return Destination(
        f"{found.scheme}://{found.authority}{path}{query}", found.scheme == "https", tuple(hints)
    )


def _grpc(found: Endpoint, *, insecure: bool) -> Destination:
    hints = []
    if found.path.strip("/") or found.query:
        hints.append("gRPC has no use for the path of the URL")
    if found.scheme == "http" and found.port is None:
        hints.append("no port, so http:// means port 80; OTLP/gRPC is usually 4317")
    if found.port == 4318:
        hints.append("port 4318 is usually OTLP/HTTP, but the protocol is grpc")
    if found.scheme == "https" and insecure:
        hints.append("https:// wins over INSECURE=true: the connection is encrypted")
    encrypted = found.scheme == "https" or (not found.scheme and not insecure)
    target = addresses.join_host_port(found.host, found.effective_port)
    return Destination(target, encrypted, tuple(hints))
