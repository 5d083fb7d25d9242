"""The gRPC health service (grpc.health.v1), as every server of OTLP/gRPC here answers it.

Values in, values out; who asks when and who waits for a change is the receivers' business.
Source: gRPC Health Checking Protocol (grpc/doc/health-checking.md, grpc/health/v1/health.proto).
"""

from __future__ import annotations

from typing import Final

from relay.otlp import SIGNALS

__all__ = ["NOT_SERVING", "SERVICE", "SERVICE_UNKNOWN", "SERVING", "requested", "status"]

SERVICE: Final = "grpc.health.v1.Health"

# HealthCheckResponse { ServingStatus status = 1 }
SERVING: Final = b"\x08\x01"
NOT_SERVING: Final = b"\x08\x02"
SERVICE_UNKNOWN: Final = b"\x08\x03"
"""What Watch tells of a service that is not here; Check answers NOT_FOUND."""

# Empty: the server as a whole.
_KNOWN: Final = frozenset({"", *(schema.service for schema in SIGNALS)})


def requested(request: bytes) -> str:
    """Read HealthCheckRequest { string service = 1 }, by hand: one short string."""
    if len(request) > 1 and request[0] == 0x0A:
        return request[2 : 2 + request[1]].decode(errors="replace")
    return ""


def status(service: str, *, serving: bool) -> bytes | None:
    """Return the serialized answer for a service; None for one that is not here."""
    if service not in _KNOWN:
        return None
    return SERVING if serving else NOT_SERVING
