"""relay.receivers.health: the values, against those of the health protocol's own definition."""

from __future__ import annotations

import pytest

from relay.otlp import SIGNALS
from relay.receivers import health

# google.protobuf wire format of HealthCheckRequest and HealthCheckResponse, written out.
SERVICES = [schema.service for schema in SIGNALS]


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_what_is_here_serves_until_the_end(service: str) -> None:
    assert health.status(service, serving=True) == bytes([1 << 3, 1])
    assert health.status(service, serving=False) == bytes([1 << 3, 2])


@pytest.mark.parametrize("service", ["x", SERVICES[0] + "x", SERVICES[0].lower()])
def test_what_is_not_here_is_unknown(service: str) -> None:
    assert health.status(service, serving=True) is None
    assert bytes([1 << 3, 3]) == health.SERVICE_UNKNOWN


@pytest.mark.parametrize(
    ("request_bytes", "service"),
    [
        (b"", ""),
        (b"\x0a\x00", ""),
        (b"\x0a\x03abc", "abc"),
        (b"\x0a\x03abc\x10\x01", "abc"),  # a field from the future
        (b"\x10\x01", ""),
        (b"\x0a", ""),
        (b"\x0a\x02\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
    ],
)
def test_the_service_asked_for(request_bytes: bytes, service: str) -> None:
    assert health.requested(request_bytes) == service
