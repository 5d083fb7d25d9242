"""Receivers: OTLP bytes in over gRPC or HTTP, one call of ``consume``, a status out.

A receiver knows no ring and no exporter. The values here are shared by both transports.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, Protocol

from proto_stubs import SignalSchema

Transport = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a listener listens: a TCP address, a Unix socket, or nowhere.

    ``host`` may be ``localhost``, which means 127.0.0.1 and, where the machine has it, ::1.
    Port 0 lets the kernel choose.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def off(self) -> bool:
        return not self.host and not self.path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.off:
            return "off"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files of the listeners' TLS; with ``client_ca_file`` clients must present a certificate."""

    cert_file: str
    key_file: str
    client_ca_file: str = ""


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """What both receivers need. Sizes in bytes, times in seconds."""

    grpc: Listen
    http: Listen
    socket_mode: int = 0o660
    tls: ServerTls | None = None
    max_request_bytes: int = 16 * 1024 * 1024
    max_connections: int = 1024
    max_streams: int = 128
    request_timeout: float = 30.0
    grpc_engine: str = "grpcio"


class Refusal(enum.Enum):
    """Why a request was refused; the receiver puts it into its transport's words."""

    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNAVAILABLE = "unavailable"


class RefusedError(Exception):
    """Raised by ``consume`` (INVALID, UNAVAILABLE) when it did not take the request.

    The message may be shown to the client.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.message = message


class Consumer(Protocol):
    """What a receiver is given. Synchronous: nothing is awaited between ring and answer."""

    def consume(self, signal: SignalSchema, payload: bytes, transport: Transport) -> None:
        """Take one serialized Export request into the pipeline.

        Raises:
            RefusedError: the request was not taken (malformed, or the relay is stopping).
        """

    def refused(
        self, signal: SignalSchema, transport: Transport, refusal: Refusal, seconds: float
    ) -> None:
        """Count a request that the receiver itself refused (too large, bad encoding, ...).

        ``seconds``: from the whole request in hand to the answer.
        """
