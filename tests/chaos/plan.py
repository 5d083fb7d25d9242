"""What one run of the chaos harness does, drawn from a seed. Pure: a plan is a value.

Times are in seconds from the start of the run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from relay.otlp import LOGS, TRACES, SignalSchema
from relay.sink import Behaviour
from tests.chaos.proxy import Faults

__all__ = ["Behave", "Limits", "Network", "Plan", "Request", "Step", "draw"]

Network: TypeAlias = Literal[
    "cut", "reset", "half-close", "refuse", "listen", "stop", "start", "move", "vanish"
]
"""What happens to connections and listeners. ``vanish``: the collector's listener is gone and the
proxy in front of it does not say so."""


@dataclass(frozen=True, slots=True)
class Behave:
    """From now on the collector answers so, whatever the signal."""

    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class Step:
    """One fault, or the end of all (``None``)."""

    at: float
    does: Behave | Faults | Network | None


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the application, ``gap`` seconds after the answer to the one before."""

    gap: float
    signal: SignalSchema
    items: int
    pad: int
    transport: Literal["grpc", "http"]
    gzip: bool
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The relay's settings. Times in seconds."""

    protocol: Literal["grpc", "http/protobuf"]
    compression: Literal["none", "gzip"]
    timeout: float
    connect_timeout: float
    queue_size: int
    queue_max_bytes: int
    batch_size: int
    schedule_delay: float
    export_max_bytes: int
    concurrent: int

    def environment(self, endpoint: str) -> dict[str, str]:
        """As the variables that the relay reads. ``endpoint``: the collector, ``host:port``."""
        return {
            "RELAY_GRPC_LISTEN": "127.0.0.1:0",
            "RELAY_HTTP_LISTEN": "127.0.0.1:0",
            "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
            "RELAY_SHUTDOWN_LINGER": "0",
            "RELAY_SHUTDOWN_TIMEOUT": "2000",
            "RELAY_EXPORTER_ENDPOINT": f"http://{endpoint}",
            "RELAY_EXPORTER_PROTOCOL": self.protocol,
            "RELAY_EXPORTER_COMPRESSION": self.compression,
            "RELAY_EXPORTER_TIMEOUT": f"{self.timeout * 1000:.0f}",
            "RELAY_CONNECT_TIMEOUT": f"{self.connect_timeout * 1000:.0f}",
            "RELAY_QUEUE_SIZE": str(self.queue_size),
            "RELAY_QUEUE_MAX_BYTES": str(self.queue_max_bytes),
            "RELAY_BATCH_SIZE": str(self.batch_size),
            "RELAY_SCHEDULE_DELAY": f"{self.schedule_delay * 1000:.0f}",
            "RELAY_EXPORT_MAX_BYTES": str(self.export_max_bytes),
            "RELAY_MAX_CONCURRENT_EXPORTS": str(self.concurrent),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    ``poison``: numbers of items that the collector never takes, and ``venom`` how it answers a
    request that holds one. ``max_message``: the collector's own limit, in bytes. ``lossy``: the
    reasons for which the relay may drop, given these faults.
    """

    seed: int
    limits: Limits
    requests: tuple[Request, ...]
    steps: tuple[Step, ...]
    max_message: int
    poison: frozenset[int] = frozenset()
    venom: Behaviour = field(default_factory=Behaviour)
    lossy: frozenset[str] = frozenset()

    @property
    def faults(self) -> int:
        """How many faults are injected."""
        return sum(step.does is not None for step in self.steps) + len(self.poison)

    @property
    def longest_wait(self) -> float:
        """Longest that the collector may ask the relay to wait, in seconds."""
        asked = [
            step.does.behaviour.retry_after or 0.0
            for step in self.steps
            if isinstance(step.does, Behave)
        ]
        wait = max(asked, default=0.0)
        # Retry-After knows whole seconds.
        return float(-int(-wait // 1)) if self.limits.protocol != "grpc" else wait

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", str(self.limits)]
        by_transport = dict.fromkeys(("grpc", "http"), 0)
        for request in self.requests:
            by_transport[request.transport] += 1
        items = sum(request.items for request in self.requests)
        lines.append(f"{len(self.requests)} requests {by_transport}, {items} items")
        lines += [f"{step.at:7.3f} s  {_words(step.does)}" for step in self.steps]
        if self.poison:
            lines.append(f"poison {sorted(self.poison)}: {_words(Behave(self.venom))}")
        lines.append(f"collector's limit {self.max_message} bytes; may be lost: {set(self.lossy)}")
        return "\n".join(lines)


def _words(does: Behave | Faults | Network | None) -> str:
    if does is None:
        return "all is well again"
    if isinstance(does, Behave):
        plain = Behaviour()
        said = {
            name: getattr(does.behaviour, name)
            for name in Behaviour.__slots__
            if getattr(does.behaviour, name) != getattr(plain, name)
        }
        return f"collector answers {said}"
    return f"network: {does}"


RETRYABLE: Final = ("UNAVAILABLE", "ABORTED", "CANCELLED", "OUT_OF_RANGE", "DATA_LOSS")
FINAL: Final = ("INTERNAL", "UNKNOWN", "PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND")
WORDS: Final = (b"HTTP/1.1 503 Oops\r\n\r\n", b"\0" * 64, b"SSH-2.0-OpenSSH_9.9\r\n", b"\xff" * 999)

_PLAIN: Final = frozenset({"queue_full", "queue_bytes"})


def draw(seed: int, *, length: float = 1.0) -> Plan:
    """The plan of a seed. ``length``: roughly the seconds over which faults are spread."""
    rng = random.Random(seed)
    limits = _limits(rng)
    lossy = set(_PLAIN)
    steps = _steps(rng, limits, length, lossy)
    requests = _requests(rng, limits, length)
    poison: set[int] = set()
    venom = Behaviour()
    if rng.random() < 0.25:
        count = sum(each.items for each in requests if each.signal is TRACES)
        venom, reason, most = rng.choice(
            (
                (Behaviour(code="INVALID_ARGUMENT"), "rejected", 5),
                (Behaviour(hang=True), "timeout", 2),  # Each takes the relay many time-outs.
            )
        )
        poison = {rng.randint(1, max(count, 1)) for _ in range(rng.randint(1, most))}
        lossy.add(reason)
    max_message = 4 * 1024 * 1024
    if rng.random() < 0.15:
        max_message = rng.choice((2_000, 20_000, 100_000))
        lossy.add("too_large")
    return Plan(
        seed, limits, requests, steps, max_message, frozenset(poison), venom, frozenset(lossy)
    )


def _limits(rng: random.Random) -> Limits:
    batch = rng.choice((1, 16, 64, 512))
    max_bytes = rng.choice((50_000, 1 << 20, 16 << 20))
    return Limits(
        protocol=rng.choice(("grpc", "http/protobuf")),
        compression=rng.choice(("none", "none", "gzip")),
        timeout=rng.choice((0.3, 0.5, 0.8)),
        connect_timeout=rng.choice((0.3, 0.5)),
        # Thousands of exports of one item each would test the patience of whoever waits.
        queue_size=64 if batch == 1 else max(batch, rng.choice((64, 256, 2048, 10_000))),
        queue_max_bytes=max_bytes,
        batch_size=batch,
        schedule_delay=rng.choice((0.005, 0.02, 0.1)),
        export_max_bytes=min(max_bytes, rng.choice((5_000, 50_000, 4_000_000))),
        concurrent=rng.choice((1, 2, 4, 4)),
    )


def _requests(rng: random.Random, limits: Limits, length: float) -> tuple[Request, ...]:
    largest = rng.choice((3, 30, 300))
    pad = rng.choice((0, 0, 50, 1000))
    transports: tuple[Literal["grpc", "http"], ...] = rng.choice(
        (("grpc",), ("http",), ("grpc", "http"))
    )
    count = rng.choice((20, 60, 150))
    return tuple(
        Request(
            gap=rng.random() * 2 * length / count,
            signal=rng.choice((TRACES, TRACES, TRACES, LOGS)),
            items=rng.randint(1, largest),
            pad=pad if rng.random() < 0.5 else 0,
            transport=rng.choice(transports),
            gzip=rng.random() < 0.2,
            # Now and then an application that does not wait for the answer.
            timeout=rng.choice((0.001, 0.003)) if rng.random() < 0.02 else 30.0,
        )
        for _ in range(count)
    )


def _steps(rng: random.Random, limits: Limits, length: float, lossy: set[str]) -> tuple[Step, ...]:
    at = rng.random() * 0.1 * length
    steps = []
    for _ in range(rng.choice((1, 2, 4, 8))):
        steps.append(Step(at, _fault(rng, limits, lossy)))
        at += rng.random() ** 2 * length
        if rng.random() < 0.4:
            steps.append(Step(at, None))
            at += rng.random() ** 2 * 0.5 * length
    steps.append(Step(at, None))
    return tuple(steps)


def _fault(rng: random.Random, limits: Limits, lossy: set[str]) -> Behave | Faults | Network:
    kind = rng.random()
    if kind < 0.35:
        networks: tuple[Network, ...] = (
            "cut", "reset", "half-close", "refuse", "stop", "move", "vanish",
        )  # fmt: skip
        return rng.choice(networks)
    if kind < 0.6:
        return _bad_network(rng, limits, lossy)
    return Behave(_bad_answer(rng, limits, lossy))


def _bad_network(rng: random.Random, limits: Limits, lossy: set[str]) -> Faults:
    lossy.add("timeout")  # Slow for large batches and not for small ones is the batches' fault.
    return rng.choice(
        (
            Faults(delay=rng.random() * limits.timeout),
            Faults(rate=rng.choice((2_000, 50_000))),
            Faults(stall_up=True),
            Faults(stall_down=True),
            Faults(stall_up=True, stall_down=True),
            Faults(blackhole=True),
            Faults(garbage=rng.choice(WORDS)),
        )
    )


def _bad_answer(rng: random.Random, limits: Limits, lossy: set[str]) -> Behaviour:
    share = rng.choice((1.0, 1.0, 0.5, 0.1))
    after = rng.choice((None, None, 0.05, 0.3))
    garbage = rng.choice((b"\xff\xff\xff", rng.randbytes(40), b"\x0a\x05\x08", b"x" * 100_000))
    answers: tuple[tuple[Behaviour, tuple[str, ...]], ...] = (
        *((Behaviour(code=code, retry_after=after), ()) for code in rng.choices(RETRYABLE, k=3)),
        (Behaviour(code="RESOURCE_EXHAUSTED", retry_after=0.2), ()),
        (Behaviour(code=rng.choice(FINAL)), ("rejected", "malformed")),
        (Behaviour(code="UNIMPLEMENTED"), ("unimplemented",)),
        (Behaviour(hang=True), ("timeout",)),
        (Behaviour(delay=rng.random() * 2 * limits.timeout), ("timeout",)),
        (Behaviour(reject=rng.choice((1, 5, 1000))), ("partial_success",)),
        (Behaviour(close=True), ()),
        # Garbage may happen to say that something was rejected.
        (Behaviour(garbage=garbage), ("partial_success",)),
    )
    answer, reasons = rng.choice(answers)
    lossy.update(reasons)
    return replace(answer, probability=share)
