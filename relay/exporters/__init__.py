"""Exporters: one serialized Export request out to the collector, an outcome back.

An exporter knows no retry and no ring: it connects, sends once, and sorts what came back into
the outcomes of :mod:`relay.otlp`. Third-party exceptions end in these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from relay.otlp import Outcome, Retryable

Protocol_ = Literal["grpc", "http/protobuf"]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS to the collector. Empty: the system's roots; no client certificate."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True)
class ExporterConfig:
    """One destination of one signal. Times in seconds.

    ``endpoint`` is normalized: for gRPC ``host:port`` or ``unix:/path`` (a gRPC target), for
    http/protobuf the full URL of the signal (``http://host:4318/v1/traces``); a Unix socket for
    http/protobuf is ``unix:/path`` and the request path ``/v1/<signal>`` is used on it.
    ``tls`` None: plaintext. ``timeout`` None: no limit.
    ``headers``: name (lower case for gRPC), value; values are secret and never logged.
    """

    protocol: Protocol_
    endpoint: str
    tls: ClientTls | None = None
    headers: tuple[tuple[str, str], ...] = ()
    headers_file: str = ""
    compression: Literal["none", "gzip"] = "none"
    timeout: float | None = 10.0
    connect_timeout: float = 5.0

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.headers)
        return f"ExporterConfig({self.protocol} {self.endpoint} tls={self.tls} headers=[{names}])"


class Exporter(Protocol):
    """What a pipeline is given: one destination for one signal."""

    def ready(self) -> bool:
        """Whether a connection stands, so that an export would be sent at once."""

    async def connect(self) -> Retryable | None:
        """Establish a connection within the connect limit; None when one is ready.

        Several callers at once share one attempt. The failure's code is CONNECT_TIMEOUT or
        CONNECT_FAILED.
        """

    async def export(self, payload: bytes) -> Outcome:
        """Send one request, once, within the attempt limit. Never raises but CancelledError."""

    async def close(self) -> None:
        """Give the connection back. Idempotent."""
