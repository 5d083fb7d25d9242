"""The vocabulary of the pipeline: signals, their layout on the wire, and outcomes of an export.

Values only: no IO, no clock, no third-party import. Facts about the protocol (service and method
names, field numbers) come from :mod:`proto_stubs`, which is generated from opentelemetry-proto.

Source: OTLP specification 1.11, "OTLP/gRPC" and "OTLP/HTTP" (responses, failures, throttling).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema

__all__ = [
    "LOGS",
    "METRICS",
    "PROFILES",
    "SIGNALS",
    "TRACES",
    "Accepted",
    "Fault",
    "Outcome",
    "Permanent",
    "Retryable",
    "SignalSchema",
]

SIGNALS: tuple[SignalSchema, ...] = (TRACES, METRICS, LOGS, PROFILES)
"""Every signal of OTLP, in the order in which reports list them."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The collector took the request; ``rejected`` items of it were refused for good.

    Source: OTLP specification, "Partial Success": never to be retried.
    """

    code: str = "OK"
    rejected: int = 0
    message: str = ""


class Fault(enum.Enum):
    """Why a permanent failure is permanent, as far as the relay treats the kinds differently."""

    INVALID = "invalid"
    """INVALID_ARGUMENT or HTTP 400: something in the request is at fault."""
    TOO_LARGE = "too_large"
    """RESOURCE_EXHAUSTED without RetryInfo, or HTTP 413."""
    UNIMPLEMENTED = "unimplemented"
    """UNIMPLEMENTED or HTTP 404: the collector does not take this signal."""
    OTHER = "other"
    """Any other final answer."""


@dataclass(frozen=True, slots=True)
class Retryable:
    """The attempt failed in a way that the specification allows to retry.

    ``code`` is the gRPC status name, the HTTP status, ``CONNECT_TIMEOUT`` or ``CONNECT_FAILED``.
    ``delay`` is what the collector asked for, in seconds (RetryInfo, Retry-After), or None.
    ``timed_out``: the attempt used up its time limit; the collector may have taken the request.
    ``rerouted``: the connection was lost under the attempt, but another address of the same
    collector is ready, so this is no failure of the destination.
    """

    code: str
    message: str = ""
    delay: float | None = None
    timed_out: bool = False
    rerouted: bool = False


@dataclass(frozen=True, slots=True)
class Permanent:
    """The collector refused the request for good; sending the same bytes again cannot help."""

    code: str
    fault: Fault
    message: str = ""


Outcome: TypeAlias = Accepted | Retryable | Permanent
