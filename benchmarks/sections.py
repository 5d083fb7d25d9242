"""What is measured, section by section. Each run becomes one flat record.

In every section the contestants take turns, case by case and round by round, each with a fresh
process, so that whatever else the machine does falls on all of them. A run in which not every span
that was sent arrived at the sink is void: its record says why, and its figures count nowhere.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import contestants, load, paced, process
from benchmarks.contestants import Contestant, Running

BATCH: Final = 512
FILLS: Final = ("paced", "flood")
"""How a ring is filled: requests of 20 spans from one client, 2000 spans a second; requests of 100
from four clients, as fast as 16 at once are answered."""
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything; :data:`FULL` and :data:`QUICK`."""

    rounds: int
    spans: tuple[int, ...]
    transports: tuple[str, ...]
    tls: tuple[bool, ...]
    cost_spans: Mapping[int, int]
    """Spans sent in one run of the cost section, by spans in a request."""
    rates: tuple[int, ...]
    seconds: float
    """Of load in one run at a given rate."""
    delays_ms: tuple[int, ...]
    ladder_seconds: float
    ladder: tuple[int, ...]
    bisections: int
    slope_seconds: float
    starts: int
    clients: tuple[int, ...]
    attribute_bytes: tuple[int, ...]
    rings: tuple[int, ...]


LADDER: Final = (10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 130_000, 160_000, 200_000,
                 250_000, 320_000, 400_000)  # fmt: skip

FULL: Final = Plan(
    rounds=5,
    spans=(1, 10, 100, 512),
    transports=("grpc", "http"),
    tls=(False, True),
    cost_spans={1: 20_480, 10: 153_600, 100: 512_000, 512: 1_048_576},
    rates=(1_000, 10_000, 50_000),
    seconds=6.0,
    delays_ms=(0, 5, 20),
    ladder_seconds=5.0,
    ladder=LADDER,
    bisections=2,
    slope_seconds=600.0,
    starts=9,
    clients=(1, 4, 16, 64),
    attribute_bytes=(64, 256, 1024, 4096, 16_384),
    rings=(2048, 16_384, 131_072, 1_048_576),
)
QUICK: Final = dataclasses.replace(
    FULL,
    rounds=2,
    tls=(False,),
    cost_spans={1: 5_120, 10: 25_600, 100: 102_400, 512: 204_800},
    rates=(10_000,),
    seconds=2.0,
    delays_ms=(0, 20),
    ladder_seconds=1.5,
    ladder=LADDER[1::2],
    bisections=0,
    slope_seconds=10.0,
    starts=3,
    clients=(1, 16, 64),
    attribute_bytes=(64, 1024, 16_384),
    rings=(2048, 131_072),
)


class Bench:
    """One measuring run; records gather in :attr:`records`."""

    def __init__(
        self, plan: Plan, who: Sequence[Contestant], folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.plan = plan
        self.who = who
        self.folder = folder
        self.records: list[Record] = []
        self.sink = contestants.SinkProcess()
        self._tell = tell

    def close(self) -> None:
        self.sink.stop()

    # ---------------------------------------------------------------- tools

    def setting(self, **options: Any) -> contestants.Setting:
        grpc, http, admin = contestants.free_ports(3)
        ports = contestants.Ports(grpc, http, admin, self.sink.port)
        return contestants.Setting(ports, self.folder, **options)

    def record(self, section: str, who: Contestant, number: int, **values: Any) -> Record:
        made = {"section": section, "contestant": who.name, "round": number, "void": None, **values}
        self.records.append(made)
        shown = " ".join(f"{key}={_short(value)}" for key, value in made.items() if key != "void")
        self._tell(f"VOID ({made['void']}): {shown}" if made["void"] else shown)
        return made

    def turns(
        self, cases: Iterable[Mapping[str, Any]], rounds: int | None = None
    ) -> Iterable[tuple[int, Mapping[str, Any], Contestant]]:
        """Round, case, contestant: A B, A B, ..."""
        listed = list(cases)
        for number in range(rounds or self.plan.rounds):
            for case in listed:
                for who in self.who:
                    if case.get("tls") and not who.tls:
                        continue
                    yield number, case, who

    def paced(
        self, running: Running, rate: float, spans: int, seconds: float, *,
        grpc: bool = True, tls: bool = False, patience: float = 10.0,
    ) -> Record:  # fmt: skip
        """Load at ``rate`` spans a second by a client of its own process.

        The spans are a multiple of a batch, so that none has to wait for a batch to fill.
        """
        step = BATCH // math.gcd(BATCH, spans)
        requests = max(step, round(rate * seconds / spans / step) * step)
        task = paced.Task(
            "127.0.0.1",
            running.setting.ports.grpc if grpc else running.setting.ports.http,
            rate / spans,
            requests,
            spans,
            grpc=grpc,
            tls=tls,
            connections=4 if grpc else 32,
            pid=running.pid,
            patience=patience,
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.paced", json.dumps(dataclasses.asdict(task))],
            cwd=contestants.ROOT, env=contestants.clean_environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise load.LoadError(f"the client failed:\n{done.stderr[-2000:]}")
        answer: Record = json.loads(done.stdout)
        answer["requests"] = requests
        answer["cpu_percent"] = 100 * answer["cpu_seconds"] / answer["seconds"]
        answer["client_cpu_percent"] = 100 * answer.pop("client_cpu_seconds") / answer["seconds"]
        return answer

    # ---------------------------------------------------------------- 1. cost per span

    def cost(self) -> None:
        """CPU seconds per million spans, requests as fast as they are answered."""
        plan = self.plan
        cases = [
            {"transport": transport, "tls": tls, "spans": spans}
            for tls in plan.tls
            for transport in plan.transports
            for spans in plan.spans
        ]
        for number, case, who in self.turns(cases):
            self._cost("cost", number, case, who)

    def _cost(
        self,
        section: str,
        number: int,
        case: Mapping[str, Any],
        who: Contestant,
        **load_options: Any,
    ) -> None:
        spans = case["spans"]
        step = BATCH // math.gcd(BATCH, spans)
        total = load_options.pop("total", self.plan.cost_spans.get(spans, 102_400))
        requests = max(step, total // spans // step * step)
        warm = max(step, requests // 10 // step * step)
        grpc, tls = case["transport"] == "grpc", case["tls"]
        with contestants.running(who, self.setting(tls=tls, roomy=True)) as running:

            def send(count: int) -> tuple[load.Load, int]:
                before = self.sink.spans()
                done = load.closed_loop(
                    running.endpoint(grpc=grpc), spans, count,
                    folder=self.folder, grpc=grpc, tls=tls, **load_options,
                )  # fmt: skip
                return done, self.sink.wait_for(before + count * spans, 10) - before

            send(warm)
            cpu, sink_cpu = process.cpu_seconds(running.pid), self.sink.cpu_seconds()
            began = time.perf_counter()
            done, arrived = send(requests)
            took = time.perf_counter() - began
            cpu = process.cpu_seconds(running.pid) - cpu
            self.record(
                section, who, number, **case,
                void=_void(done.answered, requests, arrived, spans),
                us_per_span=1e6 * cpu / (requests * spans),
                us_per_request=1e6 * cpu / requests,
                cpu_seconds=cpu,
                spans_per_second=requests * spans / took,
                sink_cpu_percent=100 * (self.sink.cpu_seconds() - sink_cpu) / took,
                **process.memory(running.pid),
            )  # fmt: skip

    # ---------------------------------------------------------------- 1, 2. at a given rate

    def rates(self) -> None:
        """CPU percent and answer times at rates that were offered."""
        plan = self.plan
        cases = [
            {"transport": transport, "tls": tls, "rate": rate, "spans": spans}
            for tls in plan.tls
            for transport in plan.transports
            for rate in plan.rates
            for spans in plan.spans
            # With TLS at one rate: what it adds does not depend on it.
            if not tls or rate == 10_000
        ]
        for number, case, who in self.turns(cases):
            grpc, tls, spans = case["transport"] == "grpc", case["tls"], case["spans"]
            with contestants.running(who, self.setting(tls=tls)) as running:
                begun = self.sink.spans()
                warm = self.paced(running, case["rate"], spans, 0.5, grpc=grpc, tls=tls)
                before = self._settled(begun + warm["requests"] * spans)
                done = self.paced(running, case["rate"], spans, plan.seconds, grpc=grpc, tls=tls)
                arrived = self.sink.wait_for(before + done["requests"] * spans, 8) - before
                void = _void(done["answered"], done["requests"], arrived, spans)
                self.record(
                    "rates", who, number, **case, void=void, **done, **process.memory(running.pid)
                )

    def _settled(self, wanted: int = 0) -> int:
        """What the sink has once it has ``wanted``, if that comes, and nothing more comes."""
        seen = self.sink.wait_for(wanted, 8)
        while True:
            time.sleep(0.4)
            now = self.sink.spans()
            if now == seen:
                return now
            seen = now

    # ---------------------------------------------------------------- 2, 4. the collector gone

    def outage(self) -> None:
        """Answer times with the collector, then without, in the same process; memory beside."""
        rate = 10_000
        cases = [{"transport": "grpc", "rate": rate, "spans": spans} for spans in (10, 100)]
        for number, case, who in self.turns(cases):
            spans = case["spans"]
            with contestants.running(who, self.setting()) as running:
                begun = self.sink.spans()
                warm = self.paced(running, rate, spans, 0.5)
                before = self._settled(begun + warm["requests"] * spans)
                healthy = self.paced(running, rate, spans, self.plan.seconds)
                arrived = self.sink.wait_for(before + healthy["requests"] * spans, 8) - before
                void = _void(healthy["answered"], healthy["requests"], arrived, spans)
                memory = process.memory(running.pid)
                self.sink.stop()
                try:
                    # Fills the ring: what is measured is the state in which it stays.
                    self.paced(running, rate, spans, 1.0, patience=2)
                    gone = self.paced(running, rate, spans, self.plan.seconds, patience=2)
                    in_outage = process.memory(running.pid)
                finally:
                    self.sink.start()
                there: Record = {**case, **healthy, **memory, "collector": "there", "void": void}
                self.record("outage", who, number, **there)
                self.record("outage", who, number, **case, **gone, **in_outage, collector="gone")

    # ---------------------------------------------------------------- 3. without loss

    def lossless(self) -> None:
        """The highest rate of the ladder that is forwarded whole and at once.

        Sustained: every request was answered with success, no answer took longer than a second,
        and the sink had everything a second after the last answer. So a queue that fills is no
        capacity. A rate fails when it fails twice. Nothing for those whose batches may wait longer
        than that to fill.
        """
        cases = [
            {"transport": "grpc", "spans": 100, "delay_ms": each} for each in self.plan.delays_ms
        ]
        for number, case, who in self.turns(cases):
            if who is contestants.DEFAULTS:
                continue
            self.sink.stop()
            self.sink.delay = case["delay_ms"] / 1000
            self.sink.start()
            best, beyond, why = 0, None, ""
            for rate in self.plan.ladder:
                why = self._fails(who, rate, case["spans"])
                if why:
                    beyond = rate
                    break
                best = rate
            for _ in range(self.plan.bisections):
                if beyond is None or best == 0:
                    break
                rate = (best + beyond) // 2
                failed = self._fails(who, rate, case["spans"])
                if failed:
                    beyond, why = rate, failed
                else:
                    best = rate
            self.record(
                "lossless", who, number, **case,
                spans_per_second=best, failed_at=beyond, because=why,
            )  # fmt: skip
        self.sink.stop()
        self.sink.delay = 0.0
        self.sink.start()

    def _fails(self, who: Contestant, rate: int, spans: int) -> str:
        """Empty, or why not; a second attempt, since the machine may have stalled."""
        return self._sustains(who, rate, spans) and self._sustains(who, rate, spans)

    def _sustains(self, who: Contestant, rate: int, spans: int) -> str:
        """Empty, or why not."""
        with contestants.running(who, self.setting()) as running:
            self.paced(running, min(rate, 10_000), spans, 0.5)
            before = self._settled()
            done = self.paced(running, rate, spans, self.plan.ladder_seconds, patience=5)
            sent = done["requests"] * spans
            arrived = self.sink.wait_for(before + sent, 1.0) - before
            lost = before + sent - self.sink.wait_for(before + sent, 8.0)
        if done["answered"] < done["requests"]:
            return f"{done['requests'] - done['answered']} of {done['requests']} requests refused"
        if arrived != sent:
            late = sent - arrived - lost
            return f"of {sent} spans {lost} lost, {late} more than a second late"
        if done["answer_ms"]["max"] > 1000:
            return f"an answer took {done['answer_ms']['max']:.0f} ms"
        return ""

    # ---------------------------------------------------------------- 4. memory

    def memory(self) -> None:
        """MiB resident: idle, at load, with a full ring."""
        rate, spans = 10_000, 100
        for number, case, who in self.turns([{"rate": rate, "spans": spans}]):
            with contestants.running(who, self.setting()) as running:
                time.sleep(1.0)
                idle = process.memory(running.pid)["rss_mib"]
                samples = self._loaded(running, rate, spans, max(self.plan.seconds, 4))
                self.record(
                    "memory", who, number, **case, idle_mib=idle,
                    load_mib=statistics.median(mib for _, mib in samples),
                    peak_mib=process.memory(running.pid)["peak_mib"],
                    threads=process.threads(running.pid),
                )  # fmt: skip
        self._full_rings()

    def _full_rings(self) -> None:
        """MiB resident with the collector away: before a request, and once the ring is full.

        Twice, each in a fresh process: from one client at an ordinary pace, and by a flood, of
        which the library holds several large requests at once.
        """
        ours = [who for who in self.who if who.ours]
        self.sink.stop()
        try:
            for number in range(self.plan.rounds):
                for fill in FILLS:
                    for who in ours:
                        with contestants.running(who, self.setting(), warm=False) as running:
                            self._full_ring(running, number, fill)
        finally:
            self.sink.start()

    def _full_ring(self, running: Running, number: int, fill: str) -> None:
        time.sleep(1.0)
        idle = process.memory(running.pid)["rss_mib"]
        if fill == "paced":
            spans, rate = 20, 2000
            self._loaded(running, rate, spans, 3.0, connections=1)
        else:
            spans, requests = 100, 200
            load.closed_loop(running.endpoint(grpc=True), spans, requests,
                             folder=self.folder, grpc=True)  # fmt: skip
        held = process.memory(running.pid)
        waiting = running.metric('otlp_relay_queue_items{signal="traces"}')
        capacity = running.metric('otlp_relay_queue_capacity_items{signal="traces"}')
        self.record(
            "full_ring", running.contestant, number, fill=fill, spans=spans,
            void=None if waiting == capacity else f"the ring holds {waiting:.0f} of {capacity:.0f}",
            ring=int(capacity), idle_mib=idle, ready_seconds=running.ready_after, **held,
        )  # fmt: skip

    def slope(self) -> None:
        """How memory goes on under constant load: MiB an hour, by least squares."""
        rate, spans = 10_000, 100
        for _, case, who in self.turns([{"rate": rate, "spans": spans}], rounds=1):
            with contestants.running(who, self.setting()) as running:
                samples = self._loaded(running, rate, spans, self.plan.slope_seconds)
                # The first fifth is warming up.
                kept = [each for each in samples if each[0] >= self.plan.slope_seconds / 5]
                slope = statistics.linear_regression(*zip(*kept, strict=True)).slope
                thinned = samples[:: max(1, len(samples) // 200)]
                self.record(
                    "slope", who, 0, **case, seconds=self.plan.slope_seconds,
                    mib_per_hour=slope * 3600, first_mib=kept[0][1], last_mib=kept[-1][1],
                    samples=[[round(at, 1), round(mib, 2)] for at, mib in thinned],
                )  # fmt: skip

    def _loaded(
        self, running: Running, rate: int, spans: int, seconds: float, connections: int = 4
    ) -> list[tuple[float, float]]:
        """Seconds and MiB while under load."""
        task = paced.Task(
            "127.0.0.1", running.setting.ports.grpc, rate / spans,
            int(rate / spans * seconds), spans, connections=connections, patience=5,
        )  # fmt: skip
        samples = []
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.paced", json.dumps(dataclasses.asdict(task))],
            cwd=contestants.ROOT, env=contestants.clean_environment(), stdout=subprocess.DEVNULL,
        ) as client:  # fmt: skip
            while client.poll() is None:
                time.sleep(0.25)
                samples.append(
                    (time.perf_counter() - began, process.memory(running.pid)["rss_mib"])
                )
        return samples

    # ---------------------------------------------------------------- 5. start and size

    def start(self) -> None:
        """From start to the first answer; installed size; what imports cost."""
        for number, _, who in self.turns([{}], rounds=self.plan.starts):
            with contestants.running(who, self.setting()) as running:
                self.record(
                    "start", who, number,
                    answered_seconds=running.answered_after, ready_seconds=running.ready_after,
                    cpu_seconds=process.cpu_seconds(running.pid),
                )  # fmt: skip
        for who in self.who:
            if who is not contestants.DEFAULTS:
                sizes = contestants.installed_size(who.name)
                self.record("size", who, 0, mib=sum(sizes.values()), parts=sizes)
        if any(who.ours for who in self.who):
            self.record(
                "imports",
                contestants.RELAY,
                0,
                parts=dict(contestants.import_times("relay.daemon")),
            )

    # ---------------------------------------------------------------- 6. growth

    def growth(self) -> None:
        """How cost grows with clients, with the size of spans, and with the ring."""
        common = {"transport": "grpc", "tls": False, "spans": 100}
        cases = [{"clients": each, **common} for each in self.plan.clients]
        for number, case, who in self.turns(cases):
            self._cost("clients", number, case, who, clients=case["clients"], streams=2)
        cases = [{"attribute_bytes": each, **common} for each in self.plan.attribute_bytes]
        for number, case, who in self.turns(cases):
            size = case["attribute_bytes"]
            # About 100 MB in all, whatever the size.
            total = max(12_800, min(self.plan.cost_spans[100], 100_000_000 // (size + 60)))
            self._cost("attributes", number, case, who, attribute_bytes=size, total=total)
        self._rings()

    def _rings(self) -> None:
        """A full ring and no collector: what a span costs that displaces another, and memory."""
        for number in range(self.plan.rounds):
            for ring in self.plan.rings:
                who, spans = contestants.RELAY, 100
                environ = {"RELAY_QUEUE_SIZE": str(ring), "RELAY_QUEUE_MAX_BYTES": str(2**30)}
                with contestants.running(who, self.setting(environ=environ)) as running:
                    idle = process.memory(running.pid)["rss_mib"]
                    self.sink.stop()
                    try:
                        endpoint = running.endpoint(grpc=True)
                        options: Any = {"folder": self.folder, "grpc": True}
                        load.closed_loop(endpoint, spans, ring // spans + 128, **options)
                        cpu = process.cpu_seconds(running.pid)
                        requests = max(512, self.plan.cost_spans[100] // spans // 2)
                        done = load.closed_loop(endpoint, spans, requests, **options)
                        cpu = process.cpu_seconds(running.pid) - cpu
                        void = None if done.answered == requests else "not all were answered"
                        self.record(
                            "rings", who, number, ring=ring, spans=spans, void=void,
                            us_per_span=1e6 * cpu / (requests * spans), idle_mib=idle,
                            **process.memory(running.pid),
                        )  # fmt: skip
                    finally:
                        self.sink.start()


SECTIONS: Final[Mapping[str, Callable[[Bench], None]]] = {
    "cost": Bench.cost,
    "rates": Bench.rates,
    "outage": Bench.outage,
    "lossless": Bench.lossless,
    "memory": Bench.memory,
    "slope": Bench.slope,
    "start": Bench.start,
    "growth": Bench.growth,
}


def _void(answered: int, requests: int, arrived: int, spans: int) -> str | None:
    if answered != requests:
        return f"{requests - answered} of {requests} requests were not answered with success"
    if arrived != requests * spans:
        return f"{requests * spans} spans were sent, {arrived} arrived"
    return None


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}:{_short(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{len(value)}]"
    return str(value)
