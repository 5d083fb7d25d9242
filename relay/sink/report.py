"""What the sink saw: each request as a value, and the counts over all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from proto_stubs import SignalSchema
from relay.otlp import SIGNALS

__all__ = ["HUNG", "PENDING", "Counts", "Received", "as_json"]

PENDING = ""
"""``Received.answer`` until the request is answered."""
HUNG = "HUNG"
"""``Received.answer`` of a request that was never answered."""


@dataclass(slots=True, eq=False)
class Received:
    """One request that reached the sink.

    ``payload``: the serialized Export request, after decompression (a JSON body as the protobuf
    it stands for); b"" once looked at by a sink that does not record. ``size``: its bytes.
    ``headers``: gRPC metadata or HTTP headers, names in lower case, binary values decoded.
    ``at``: monotonic seconds. ``answer``: gRPC status name or HTTP status, :data:`PENDING` until
    answered. ``rejected``: items refused in a partial success.
    """

    signal: SignalSchema
    transport: str
    payload: bytes
    size: int
    units: int
    items: int
    headers: Mapping[str, str]
    at: float
    number: int = 0
    answer: str = PENDING
    rejected: int = 0

    @property
    def accepted(self) -> bool:
        """Answered with a success (which may be a partial one)."""
        return self.answer in ("OK", "200")


@dataclass(slots=True)
class Counts:
    """Counts of one signal.

    ``items`` and ``bytes``: all that arrived; ``accepted_items``: what was answered with
    success, less the rejected ones; ``largest_batch``: items in one request.
    """

    requests: int = 0
    items: int = 0
    bytes: int = 0
    accepted_items: int = 0
    rejected_items: int = 0
    largest_batch: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    def arrived(self, received: Received) -> None:
        self.requests += 1
        self.items += received.items
        self.bytes += received.size
        self.largest_batch = max(self.largest_batch, received.items)

    def answered(self, received: Received) -> None:
        self.answers[received.answer] += 1
        if received.accepted:
            self.accepted_items += received.items - received.rejected
            self.rejected_items += received.rejected


def as_json(counts: Mapping[str, Counts]) -> str:
    """One line of JSON: an object per signal, in the order of :data:`relay.otlp.SIGNALS`."""
    return json.dumps(
        {
            signal.name: {
                "requests": count.requests,
                "items": count.items,
                "bytes": count.bytes,
                "accepted_items": count.accepted_items,
                "rejected_items": count.rejected_items,
                "largest_batch": count.largest_batch,
                "answers": dict(sorted(count.answers.items())),
            }
            for signal in SIGNALS
            for count in (counts[signal.name],)
        }
    )
