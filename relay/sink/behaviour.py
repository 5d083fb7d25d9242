"""How the sink answers: a value, and the pure decision made from it for each request.

Sources: gRPC status codes (grpc/grpc, doc/statuscodes.md); OTLP specification 1.11, "Failures",
"Partial Success" and "OTLP/HTTP Response".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Protocol

from proto_stubs import SignalSchema

__all__ = [
    "ALWAYS_OK",
    "GRPC_CODES",
    "Behaviour",
    "Dice",
    "decide",
    "grpc_code_of_http",
    "http_status_of",
    "parse_delay",
    "parse_fail",
    "parse_outage",
    "partial_success",
]

GRPC_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {
        name: number
        for number, name in enumerate(
            (
                "OK",
                "CANCELLED",
                "UNKNOWN",
                "INVALID_ARGUMENT",
                "DEADLINE_EXCEEDED",
                "NOT_FOUND",
                "ALREADY_EXISTS",
                "PERMISSION_DENIED",
                "RESOURCE_EXHAUSTED",
                "FAILED_PRECONDITION",
                "ABORTED",
                "OUT_OF_RANGE",
                "UNIMPLEMENTED",
                "INTERNAL",
                "UNAVAILABLE",
                "DATA_LOSS",
                "UNAUTHENTICATED",
            )
        )
    }
)
"""gRPC status names and their numbers."""

# A failure that is retryable over gRPC stays retryable over HTTP (429, 502, 503, 504 are), and
# one that is final stays final, as the Collector's OTLP receiver keeps it.
_HTTP_OF_GRPC: Final[Mapping[str, int]] = MappingProxyType(
    {
        "OK": 200,
        "CANCELLED": 503,
        "INVALID_ARGUMENT": 400,
        "DEADLINE_EXCEEDED": 504,
        "PERMISSION_DENIED": 403,
        "RESOURCE_EXHAUSTED": 429,
        "ABORTED": 503,
        "OUT_OF_RANGE": 503,
        "UNIMPLEMENTED": 404,
        "UNAVAILABLE": 503,
        "DATA_LOSS": 503,
        "UNAUTHENTICATED": 401,
    }
)

_GRPC_OF_HTTP: Final[Mapping[int, str]] = MappingProxyType(
    {
        200: "OK",
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "UNIMPLEMENTED",
        408: "DEADLINE_EXCEEDED",
        413: "RESOURCE_EXHAUSTED",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        501: "UNIMPLEMENTED",
        502: "UNAVAILABLE",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
)


def http_status_of(code: str) -> int:
    """The HTTP status that a gRPC status becomes; final failures without one are 500."""
    return _HTTP_OF_GRPC.get(code, 500)


def grpc_code_of_http(status: int) -> str:
    """The gRPC status name that an HTTP status becomes; UNKNOWN where there is none."""
    return _GRPC_OF_HTTP.get(status, "UNKNOWN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one request is answered.

    ``code``: gRPC status name; ``http_status`` 0: what ``code`` maps to.
    ``probability``: share of the requests that this behaviour applies to, 0 to 1; the others are
    answered OK. ``delay``: seconds between arrival and answer.
    ``hang``: never answer; the client's time limit or a closed listener ends the call.
    ``retry_after``: seconds asked of the client (RetryInfo, ``Retry-After``) with a failure.
    ``reject``: items of the request refused in a partial success (at most all of them);
    ``message`` goes into it or into the failure.
    ``close``: cut the connection in the middle of the answer. Over gRPC, where one connection
    cannot be cut alone, the listener and all its connections go and come back.
    ``garbage``: answered as the body of a success instead of a response message.
    """

    code: str = "OK"
    http_status: int = 0
    probability: float = 1.0
    delay: float = 0.0
    hang: bool = False
    retry_after: float | None = None
    reject: int = 0
    message: str = ""
    close: bool = False
    garbage: bytes | None = None

    def __post_init__(self) -> None:
        if self.code not in GRPC_CODES:
            raise ValueError(f"no gRPC status is called {self.code!r}")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability is {self.probability!r}, not within 0 and 1")
        if self.delay < 0 or self.reject < 0:
            raise ValueError("delay and reject must not be negative")

    @property
    def http_code(self) -> int:
        """The HTTP status of the answer."""
        return self.http_status or http_status_of(self.code)

    @property
    def fails(self) -> bool:
        """Whether the answer is a failure as a whole."""
        return self.code != "OK"


ALWAYS_OK: Final = Behaviour()


class Dice(Protocol):
    """What :func:`decide` needs of ``random.Random``."""

    def random(self) -> float: ...


def decide(behaviour: Behaviour, items: int, dice: Dice) -> Behaviour:
    """What happens to one request of ``items`` items: ``behaviour`` or, by chance, OK.

    The dice are thrown only when ``probability`` is below 1, so that a seed replays a run.
    ``reject`` is capped at the items there are.
    """
    if behaviour.probability < 1.0 and dice.random() >= behaviour.probability:
        return ALWAYS_OK
    if behaviour.reject > items:
        return replace(behaviour, reject=items)
    return behaviour


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} is {text!r}: expected a number of 0 or more")
    return value


def parse_fail(text: str) -> Behaviour:
    """``CODE[:probability]``, CODE a gRPC status name or number, or an HTTP status.

    Raises:
        ValueError: with what is accepted.
    """
    code, colon, share = text.partition(":")
    probability = _number(share, "the probability") if colon else 1.0
    if probability > 1.0:
        raise ValueError(f"the probability is {share!r}: expected 0 to 1")
    status = 0
    name = code.strip().upper()
    if name.isascii() and name.isdigit():
        number = int(name)
        if number >= 100:
            if not 200 <= number <= 599:
                raise ValueError(f"{number} is no HTTP status: expected 200 to 599")
            status, name = number, grpc_code_of_http(number)
        else:
            name = next((n for n, v in GRPC_CODES.items() if v == number), name)
    if name not in GRPC_CODES:
        raise ValueError(
            f"{code!r} is no status: expected a gRPC status name ({', '.join(GRPC_CODES)}), "
            "its number (0 to 16) or an HTTP status (200 to 599)"
        )
    return Behaviour(code=name, http_status=status, probability=probability)


def parse_delay(text: str) -> tuple[float, bool]:
    """``SECONDS`` or ``hang``: (delay, hang).

    Raises:
        ValueError: neither.
    """
    if text.strip().lower() == "hang":
        return 0.0, True
    try:
        return _number(text, "the delay"), False
    except ValueError as error:
        raise ValueError(f"{error}, in seconds, or 'hang'") from None


def parse_outage(text: str) -> tuple[float, float]:
    """``START:DURATION`` in seconds, START counted from the sink's start.

    Raises:
        ValueError: not two numbers.
    """
    start, colon, duration = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r}: expected START:DURATION in seconds")
    return _number(start, "START"), _number(duration, "DURATION")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def partial_success(schema: SignalSchema, rejected: int, message: str) -> bytes:
    """A serialized Export response; empty, as a full success is, when there is nothing to say."""
    if not rejected and not message:
        return b""
    inner = _integer(schema.rejected, rejected)
    if message:
        inner += _bytes(schema.error_message, message.encode())
    return _bytes(schema.partial_success, inner)
