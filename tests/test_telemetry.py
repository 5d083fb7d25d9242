"""The metrics of the contract, section 4, as both real parsers read them."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay import __version__
from relay.limits import PipelineConfig
from relay.otlp import SIGNALS, Accepted, Fault, Outcome, Permanent, Retryable
from relay.pipeline import Pipeline
from relay.receivers import Refusal, RefusedError
from relay.telemetry import DROP_REASONS, FILTER_REASONS, METRICS, registry
from tests import virtual
from tests.numbered import spans

# Contract, section 4: name, kind, labels beside `signal`.
PROMISED = {
    "received_items": ("counter", {"transport"}),
    "received_bytes": ("counter", {"transport"}),
    "received_requests": ("counter", {"transport", "outcome"}),
    "receive_duration_seconds": ("histogram", {"transport"}),
    "filtered_items": ("counter", {"reason"}),
    "dropped_items": ("counter", {"reason"}),
    "exported_items": ("counter", set()),
    "exported_bytes": ("counter", set()),
    "export_attempts": ("counter", {"code"}),
    "export_duration_seconds": ("histogram", set()),
    "export_batch_items": ("histogram", set()),
    "queue_items": ("gauge", set()),
    "queue_bytes": ("gauge", set()),
    "queue_capacity_items": ("gauge", set()),
    "queue_capacity_bytes": ("gauge", set()),
    "queue_oldest_age_seconds": ("gauge", set()),
    "in_flight_items": ("gauge", set()),
    "collector_up": ("gauge", set()),
    "collector_last_success_timestamp_seconds": ("gauge", set()),
    "outage_seconds": ("gauge", set()),
}


class Destination:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.hangs = False

    def ready(self) -> bool:
        return True

    async def connect(self) -> Retryable | None:
        return None

    async def export(self, payload: bytes) -> Outcome:
        if self.hangs:
            await asyncio.Event().wait()
        return self.outcomes.pop(0) if self.outcomes else Accepted()

    async def close(self) -> None: ...


class World:
    """Pipelines of every signal in virtual time; traces are what tests send."""

    def __init__(self) -> None:
        self.to = Destination()
        clock = asyncio.get_running_loop().time
        limits = PipelineConfig(queue_size=20, batch_size=10, schedule_delay=1.0)
        self.lines = {
            schema.name: Pipeline(schema, limits, self.to, clock=clock, random=lambda: 0.5)
            for schema in SIGNALS
        }
        self.registry = registry(self.lines)

    def send(self, count: int) -> None:
        self.lines["traces"].consume(spans(range(count)), "grpc")

    @property
    def families(self) -> dict[str, Metric]:
        families = parse_text(generate_latest(self.registry).decode())
        return {family.name: family for family in families}

    def value(self, name: str, **labels: str) -> float | None:
        """One sample of traces, by its name without the prefix; None: it is not there."""
        wanted = {"signal": "traces", **labels}
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == f"otlp_relay_{name}" and sample.labels == wanted
        ]
        assert len(found) < 2
        return found[0] if found else None


def test_the_table_is_that_of_the_contract() -> None:
    assert {name: (info.kind, set(info.labels)) for name, info in METRICS.items()} == PROMISED
    assert all(info.help.endswith(".") for info in METRICS.values())


async def _used() -> World:
    world = World()
    world.to.outcomes = [Accepted(rejected=1), Retryable("UNAVAILABLE")]
    world.send(10)
    world.lines["traces"].consume(spans([1]), "http")
    with pytest.raises(RefusedError):
        world.lines["traces"].consume(b"\xff", "http")
    await asyncio.sleep(1.2)
    return world


@pytest.mark.parametrize("style", ["text", "OpenMetrics"])
def test_both_formats_parse_and_hold_what_is_promised(style: str) -> None:
    async def main() -> None:
        world = await _used()
        if style == "text":
            families = list(parse_text(generate_latest(world.registry).decode()))
        else:
            text = openmetrics.generate_latest(world.registry).decode()  # type: ignore[no-untyped-call]  # has no types
            assert text.endswith("# EOF\n")
            families = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # has no types
        found = {family.name: family for family in families}
        for name, (kind, labels) in PROMISED.items():
            family = found[f"otlp_relay_{name}"]
            assert family.type == kind, name
            assert family.documentation
            assert family.samples, name
            seen = {label for sample in family.samples for label in sample.labels}
            assert seen - {"le"} == labels | {"signal"}, name
        ours = {name for name in found if name.startswith("otlp_relay_")}
        assert ours == {f"otlp_relay_{name}" for name in PROMISED} | {"otlp_relay_build_info"}
        assert any(name.startswith("process_") for name in found)
        assert any(name.startswith("python_") for name in found)

    virtual.run(main())


def test_counters_that_never_counted_are_there_as_zero() -> None:
    async def main() -> None:
        world = World()
        for reason in FILTER_REASONS:
            assert world.value("filtered_items_total", reason=reason) == 0
        for reason in DROP_REASONS:
            assert world.value("dropped_items_total", reason=reason) == 0
        for transport in ("grpc", "http"):
            assert world.value("received_items_total", transport=transport) == 0
            for outcome in ("accepted", "invalid", "too_large", "unavailable"):
                labels = {"transport": transport, "outcome": outcome}
                assert world.value("received_requests_total", **labels) == 0
        assert world.value("export_batch_items_count") == 0
        # What is not known is not there.
        assert world.value("collector_up") is None
        assert world.value("collector_last_success_timestamp_seconds") is None
        assert world.value("outage_seconds") == 0

    virtual.run(main())


def test_build_info_has_the_versions_and_no_signal() -> None:
    async def main() -> None:
        (sample,) = World().families["otlp_relay_build_info"].samples
        assert sample.value == 1
        assert sample.labels["version"] == __version__
        assert set(sample.labels) == {"version", "python"}

    virtual.run(main())


def test_values_are_those_of_the_books() -> None:
    async def main() -> None:
        world = World()
        world.send(3)
        await asyncio.sleep(0.25)
        assert world.value("queue_items") == 3
        assert world.value("queue_capacity_items") == 20
        assert world.value("queue_capacity_bytes") == 16 * 1024 * 1024
        assert world.value("queue_oldest_age_seconds") == pytest.approx(0.25)
        retained = world.value("queue_bytes")
        assert retained is not None
        assert retained >= len(spans(range(3)))
        assert world.value("received_bytes_total", transport="grpc") == len(spans(range(3)))
        world.to.hangs = True
        await asyncio.sleep(1)
        assert world.value("queue_items") == 0
        assert world.value("in_flight_items") == 3
        world.send(25)
        assert world.value("dropped_items_total", reason="queue_full") == 5

    virtual.run(main())


def test_the_collectors_state_follows_the_latest_attempt() -> None:
    async def main() -> None:
        world = World()
        world.to.outcomes = [
            Accepted(),
            Retryable("UNAVAILABLE"),
            Permanent("INTERNAL", Fault.OTHER),
            Accepted(),
        ]
        world.send(10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.value("collector_up") == 1
        since = world.value("collector_last_success_timestamp_seconds")
        assert since is not None
        assert since > 1_700_000_000
        world.send(10)
        await asyncio.sleep(0.3)
        assert world.value("collector_up") == 0
        assert world.value("outage_seconds") == pytest.approx(0.3)
        assert world.value("collector_last_success_timestamp_seconds") == since
        await asyncio.sleep(5)
        assert world.value("collector_up") == 0  # The final failure: reached, and not accepted.
        world.send(10)
        await asyncio.sleep(1)
        assert world.value("collector_up") == 1
        assert world.value("outage_seconds") == 0
        codes = {
            code: world.value("export_attempts_total", code=code)
            for code in ("OK", "UNAVAILABLE", "INTERNAL")
        }
        assert codes == {"OK": 2, "UNAVAILABLE": 1, "INTERNAL": 1}
        assert world.value("export_batch_items_sum") == 40
        assert world.value("export_duration_seconds_count") == 4
        assert world.value("exported_items_total") == 20

    virtual.run(main())


def test_refused_requests_are_counted_and_their_items_are_not() -> None:
    async def main() -> None:
        world = World()
        world.lines["traces"].refused("http", Refusal.TOO_LARGE, 0.2)
        labels = {"transport": "http", "outcome": "too_large"}
        assert world.value("received_requests_total", **labels) == 1
        assert world.value("received_items_total", transport="http") == 0
        assert world.value("receive_duration_seconds_count", transport="http") == 1

    virtual.run(main())
