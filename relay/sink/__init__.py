"""A development collector: receives OTLP over gRPC and HTTP, counts it, misbehaves on request.

:class:`Sink` is the collector (``otlp-relay sink`` is a thin command around it, tests and the demo
use it in-process), :class:`Behaviour` says how it answers, :class:`Received` is what arrived.
"""

from __future__ import annotations

from relay.sink.behaviour import ALWAYS_OK, Behaviour, parse_fail
from relay.sink.report import Counts, Received
from relay.sink.server import Sink

__all__ = ["ALWAYS_OK", "Behaviour", "Counts", "Received", "Sink", "parse_fail"]
