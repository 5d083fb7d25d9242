"""From records to tables. Medians over rounds; the median of ratios taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

Record = Mapping[str, Any]
Results = Mapping[str, Any]
Row = Sequence[str]

ORDER: Final = ("relay", "relay-defaults", "relay-h2corn", "rotel", "otelcol")
NONE: Final = "-"
VOID: Final = "void"


class Table:
    """Records by section and case."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.records: list[Record] = list(results["records"])
        found = {each["contestant"] for each in self.records}
        self.names = [name for name in ORDER if name in found]
        self.peers = [name for name in self.names if not name.startswith("relay")]

    def of(self, section: str, **case: object) -> list[Record]:
        return [
            each
            for each in self.records
            if each["section"] == section
            and all(each.get(key) == wanted for key, wanted in case.items())
        ]

    def values(self, section: str, key: str, **case: object) -> list[Any]:
        """The values that a key has, in order."""
        return sorted({each[key] for each in self.of(section, **case) if key in each})

    def by_round(self, get: Getter, section: str, **case: object) -> dict[int, float]:
        """The figure of each round that is not void and has it."""
        found = {}
        for each in self.of(section, **case):
            if not each["void"] and (value := get(each)) is not None:
                found[each["round"]] = value
        return found

    def median(self, get: Getter, section: str, **case: object) -> float | None:
        values = self.by_round(get, section, **case)
        return statistics.median(values.values()) if values else None

    def ratio(
        self, get: Getter, section: str, ours: str, peer: str, **case: object
    ) -> float | None:
        """Median of the rounds' ratios; None without a round in which both are valid."""
        mine = self.by_round(get, section, contestant=ours, **case)
        other = self.by_round(get, section, contestant=peer, **case)
        ratios = [mine[each] / other[each] for each in mine if other.get(each)]
        return statistics.median(ratios) if ratios else None

    def cell(self, get: Getter, section: str, digits: int = 2, /, **case: object) -> str:
        """A median as text, and what became of rounds that were void."""
        records = self.of(section, **case)
        if not records:
            return NONE
        voids = sum(1 for each in records if each["void"])
        middle = self.median(get, section, **case)
        if middle is None:
            return VOID if voids else NONE
        text = _number(middle, digits)
        return f"{text} ({voids} void)" if voids else text


Getter = Callable[[Record], float | None]


def field(name: str) -> Getter:
    return lambda record: record.get(name)


def quantile(name: str) -> Getter:
    """An answer time; None where too few requests were sent for it to mean anything."""
    least = {"p50": 10, "p99": 100, "p999": 1000}[name]

    def get(record: Record) -> float | None:
        value: float | None = record["answer_ms"].get(name)
        return value if record["answered"] >= least else None

    return get


PER_SPAN: Final = field("us_per_span")


def render(head: Row, rows: Iterable[Row]) -> list[str]:
    """A Markdown table with aligned columns: text left, figures right."""
    listed = [list(head), *(list(row) for row in rows)]
    if len(listed) == 1:
        return []
    widths = [max(len(row[at]) for row in listed) for at in range(len(head))]
    text = [any(_is_text(row[at]) for row in listed[1:]) for at in range(len(head))]
    lines = [
        "| "
        + " | ".join(
            each.ljust(width) if left else each.rjust(width)
            for each, width, left in zip(row, widths, text, strict=True)
        )
        + " |"
        for row in listed
    ]
    marks = [
        "-" * (width + 2) if left else "-" * (width + 1) + ":"
        for width, left in zip(widths, text, strict=True)
    ]
    lines.insert(1, "|" + "|".join(marks) + "|")
    return lines


def _is_text(cell: str) -> bool:
    return cell not in {NONE, VOID} and not cell[:1].isdigit() and cell[:1] not in {"-", "≥"}


def _number(value: float, digits: int = 2) -> str:
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{digits}f}"


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


# ------------------------------------------------------------------------------- sections


def cost(table: Table) -> list[str]:
    head = ["receiver", "spans a request", *table.names]
    ours = [name for name in table.names if name.startswith("relay")]
    pairs = [(mine, peer) for mine in ours for peer in table.peers]
    head += [f"{mine} / {peer}" for mine, peer in pairs]
    rows = []
    for case in _cases(table, "cost"):
        for spans in table.values("cost", "spans", **case):
            where = {**case, "spans": spans}
            row = [_receiver(case), str(spans)]
            row += [table.cell(PER_SPAN, "cost", contestant=each, **where) for each in table.names]
            row += [_ratio(table.ratio(PER_SPAN, "cost", *pair, **where)) for pair in pairs]
            rows.append(row)
    return render(head, rows)


def cpu_percent(table: Table) -> list[str]:
    rows = []
    for case in _cases(table, "rates"):
        for rate in table.values("rates", "rate", **case):
            for spans in table.values("rates", "spans", rate=rate, **case):
                where = {**case, "rate": rate, "spans": spans}
                row = [_receiver(case), f"{rate:,}", str(spans)]
                row += [
                    table.cell(field("cpu_percent"), "rates", 1, contestant=each, **where)
                    for each in table.names
                ]
                rows.append(row)
    return render(["receiver", "spans/s", "spans a request", *table.names], rows)


def answer_times(table: Table) -> list[str]:
    rows = []
    for case in _cases(table, "rates"):
        for rate in table.values("rates", "rate", **case):
            for spans in table.values("rates", "spans", rate=rate, **case):
                where = {**case, "rate": rate, "spans": spans}
                row = [_receiver(case), f"{rate:,}", str(spans)]
                row += [
                    _quantiles(table, "rates", contestant=each, **where) for each in table.names
                ]
                rows.append(row)
    return render(["receiver", "spans/s", "spans a request", *table.names], rows)


def outage(table: Table) -> list[str]:
    rows = []
    for spans in table.values("outage", "spans"):
        for collector in ("there", "gone"):
            where: dict[str, object] = {"spans": spans, "collector": collector}
            row = [str(spans), collector]
            for each in table.names:
                found = table.of("outage", contestant=each, **where)
                refused = sum(one["requests"] - one["answered"] for one in found)
                share = refused / max(1, sum(one["requests"] for one in found))
                text = _quantiles(table, "outage", contestant=each, **where)
                row.append(f"{text}; {share:.0%} not accepted" if refused else text)
            rows.append(row)
    return render(["spans a request", "collector", *table.names], rows)


def lossless(table: Table) -> list[str]:
    head = ["collector answers after", *table.names]
    head += [f"relay / {peer}" for peer in table.peers]
    rows = []
    for delay in table.values("lossless", "delay_ms"):
        row = [f"{delay} ms"]
        for each in table.names:
            text = table.cell(
                field("spans_per_second"), "lossless", contestant=each, delay_ms=delay
            )
            found = table.of("lossless", contestant=each, delay_ms=delay)
            endless = found and all(one["failed_at"] is None for one in found)
            row.append(f"≥ {text}" if endless else text)
        row += [
            _ratio(
                table.ratio(field("spans_per_second"), "lossless", "relay", peer, delay_ms=delay)
            )
            for peer in table.peers
        ]
        rows.append(row)
    return render(head, rows)


def memory(table: Table) -> list[str]:
    wanted: list[tuple[str, str, Getter, dict[str, object]]] = [
        ("idle, before the first request", "full_ring", field("idle_mib"), {}),
        ("ring of 2048 full, paced", "full_ring", field("rss_mib"), {"fill": "paced"}),
        ("ring of 2048 full, flooded", "full_ring", field("rss_mib"), {"fill": "flood"}),
        ("idle", "memory", field("idle_mib"), {}),
        ("10,000 spans/s, median", "memory", field("load_mib"), {}),
        ("10,000 spans/s, highest", "memory", field("peak_mib"), {}),
        ("collector gone, buffer full", "outage", field("rss_mib"), {"collector": "gone"}),
        ("slope under load, MiB an hour", "slope", field("mib_per_hour"), {}),
    ]
    rows = []
    for title, section, get, case in wanted:
        if table.of(section, **case):
            cells = [table.cell(get, section, 1, contestant=each, **case) for each in table.names]
            rows.append([title, *cells])
    return render(["MiB resident", *table.names], rows)


def start(table: Table) -> list[str]:
    wanted: list[tuple[str, str, Getter]] = [
        ("start to /readyz, s", "start", field("ready_seconds")),
        ("start to first OTLP answer, s", "start", field("answered_seconds")),
        ("CPU to start, s", "start", field("cpu_seconds")),
        ("installed, MiB", "size", field("mib")),
    ]
    rows = [
        [title, *(table.cell(get, section, contestant=each) for each in table.names)]
        for title, section, get in wanted
        if table.of(section)
    ]
    return render(["", *table.names], rows)


def imports(table: Table) -> list[str]:
    found = table.of("imports")
    if not found:
        return []
    return render(
        ["package", "ms"], [[name, f"{value:.1f}"] for name, value in found[0]["parts"].items()]
    )


def sizes(table: Table) -> list[str]:
    found = table.of("size", contestant="relay")
    if not found:
        return []
    rows = [[name, f"{value:.2f}"] for name, value in found[0]["parts"].items() if value >= 0.1]
    return render(["package", "MiB"], rows)


def growth(table: Table) -> list[str]:
    head = ["", *table.names]
    rows = []
    for section, key, title in (
        ("clients", "clients", "clients"),
        ("attributes", "attribute_bytes", "bytes of attributes"),
    ):
        for value in table.values(section, key):
            cells = [
                table.cell(PER_SPAN, section, contestant=each, **{key: value})
                for each in table.names
            ]
            rows.append([f"{title}: {value:,}", *cells])
    return render(head, rows)


def rings(table: Table) -> list[str]:
    rows = [
        [
            f"{ring:,}",
            table.cell(PER_SPAN, "rings", ring=ring),
            table.cell(field("idle_mib"), "rings", 1, ring=ring),
            table.cell(field("rss_mib"), "rings", 1, ring=ring),
        ]
        for ring in table.values("rings", "ring")
    ]
    return render(["ring, spans", "CPU s per million spans", "idle, MiB", "full, MiB"], rows)


def reach(table: Table) -> list[str]:
    """What was to be reached, against each peer."""
    rows = [
        *_reach_cost(table),
        *_reach_answers(table),
        *_reach_outage(table),
        *_reach_lossless(table),
        *_reach_process(table),
    ]
    return render(["what", "against", "wanted", "measured", ""], rows)


def _judge(
    what: str, against: str, value: float | None, limit: float, aim: float | None = None
) -> Row:
    """A row for what should be at most ``limit``, better at most ``aim``."""
    want = f"at most {limit:g}" + (f", aim {aim:g}" if aim is not None else "")
    if value is None:
        return [what, against, want, NONE, "not measured"]
    verdict = "met" if value <= limit else "**missed**"
    if aim is not None and value <= limit:
        verdict = "met, aim too" if value <= aim else "met, not the aim"
    return [what, against, want, _number(value), verdict]


def _reach_cost(table: Table) -> Iterable[Row]:
    limits = ((512, 0.25, 0.15), (100, 0.25, 0.15), (10, 0.6, None), (1, 1.2, 1.0))
    for peer in table.peers:
        for transport in table.values("cost", "transport"):
            for spans, limit, aim in limits:
                case = {"transport": transport, "tls": False, "spans": spans}
                what = f"CPU per span, {spans} a request, {transport}"
                value = table.ratio(PER_SPAN, "cost", "relay", peer, **case)
                yield _judge(what, peer, value, limit, aim)
                if transport == "grpc" and table.of("cost", contestant="relay-h2corn"):
                    value = table.ratio(PER_SPAN, "cost", "relay-h2corn", peer, **case)
                    yield _judge(f"{what}, h2corn", peer, value, limit, aim)


def _reach_answers(table: Table) -> Iterable[Row]:
    get = quantile("p99")
    for peer in table.peers:
        for transport in table.values("rates", "transport"):
            for spans in table.values("rates", "spans"):
                case = {"transport": transport, "tls": False, "rate": 10_000, "spans": spans}
                value = table.ratio(get, "rates", "relay", peer, **case)
                what = f"answer time p99 at 10k spans/s, {spans} a request, {transport}"
                yield _judge(what, peer, value, 0.5)


def _reach_outage(table: Table) -> Iterable[Row]:
    get = quantile("p99")
    for spans in table.values("outage", "spans"):
        case = {"contestant": "relay", "spans": spans}
        gone = table.by_round(get, "outage", collector="gone", **case)
        there = table.by_round(get, "outage", collector="there", **case)
        ratios = [gone[each] / there[each] for each in gone if there.get(each)]
        value = statistics.median(ratios) if ratios else None
        yield _judge(
            f"p99 with the collector gone, {spans} a request", "itself healthy", value, 1.1
        )


def _reach_lossless(table: Table) -> Iterable[Row]:
    for peer in table.peers if table.of("lossless") else []:
        get = field("spans_per_second")
        value = table.ratio(get, "lossless", "relay", peer, delay_ms=20)
        what = "lossless rate, collector answers after 20 ms"
        verdict = "not measured" if value is None else "met" if value >= 1 else "**missed**"
        yield [what, peer, "at least 1", _ratio(value), verdict]


def _reach_process(table: Table) -> Iterable[Row]:
    for name in ("relay", "relay-defaults", "relay-h2corn"):
        if table.of("memory", contestant=name):
            value = table.median(field("peak_mib"), "memory", contestant=name)
            yield _judge(f"MiB resident at load, highest, {name}", NONE, value, 64, 48)
        if table.of("full_ring", contestant=name):
            value = table.median(field("idle_mib"), "full_ring", contestant=name)
            yield _judge(f"MiB resident idle, {name}", NONE, value, 60)
        for fill in table.values("full_ring", "fill", contestant=name):
            value = table.median(field("rss_mib"), "full_ring", contestant=name, fill=fill)
            yield _judge(f"MiB resident, full ring, {fill}, {name}", NONE, value, 60)
        if table.of("start", contestant=name):
            value = table.median(field("ready_seconds"), "start", contestant=name)
            yield _judge(f"seconds from start to ready, {name}", NONE, value, 0.5)


def voids(table: Table) -> list[str]:
    found = [each for each in table.records if each["void"]]
    lines = []
    for each in found:
        case = ", ".join(
            f"{key} {each[key]}"
            for key in ("transport", "tls", "rate", "spans", "clients", "attribute_bytes", "ring",
                        "collector")
            if key in each
        )  # fmt: skip
        who = f"{each['section']}, {each['contestant']}, round {each['round'] + 1}"
        lines.append(f"- {who}, {case}: {each['void']}")
    return lines


def client(table: Table) -> list[str]:
    """Whether the client for given rates was itself the limit."""
    found = [each for each in table.of("rates") if not each["void"]]
    if not found:
        return []
    busy = max(each["client_cpu_percent"] for each in found)
    lates = sorted(each["late_ms"].get("p99", 0.0) for each in found)
    told = (
        f"The client used at most {busy:.0f} % of a core; in the median run 99 % of its requests "
        f"left less than {lates[len(lates) // 2]:.2f} ms late, in the worst {lates[-1]:.2f} ms "
        "(answer times include it)."
    )
    return [told]


def _cases(table: Table, section: str) -> list[dict[str, object]]:
    return [
        {"transport": transport, "tls": tls}
        for tls in (False, True)
        for transport in ("grpc", "http")
        if table.of(section, transport=transport, tls=tls)
    ]


def _receiver(case: Mapping[str, object]) -> str:
    name = {"grpc": "gRPC", "http": "HTTP"}[str(case["transport"])]
    return f"{name}, TLS" if case["tls"] else name


def _quantiles(table: Table, section: str, **case: object) -> str:
    cells = [table.cell(quantile(name), section, **case) for name in ("p50", "p99", "p999")]
    return cells[0] if len(set(cells)) == 1 else " / ".join(each.split(" ")[0] for each in cells)


PARTS: Final[Sequence[tuple[str, str, Callable[[Table], list[str]]]]] = (
    ("What was to be reached", "Ratios are this project's figure divided by the peer's.", reach),
    (
        "CPU per span",
        (
            "CPU seconds of the process per million spans; requests as fast as they are answered, "
            "16 at once."
        ),
        cost,
    ),
    ("CPU at a given rate", "Percent of one core.", cpu_percent),
    (
        "Answer time",
        (
            "Milliseconds, 50th / 99th / 99.9th percentile, from the moment a request was due. A "
            "percentile is given from 10, 100 and 1000 requests on."
        ),
        answer_times,
    ),
    ("", "", client),
    (
        "Answer time with the collector gone",
        "The same, 10,000 spans/s over gRPC; each pair in one process, its buffer full when gone.",
        outage,
    ),
    (
        "Highest rate without loss",
        (
            "Spans a second, 100 a request, over gRPC. Every request answered with success and "
            "within a second, everything at the collector a second after the last."
        ),
        lossless,
    ),
    (
        "Memory",
        (
            "A full ring: 2048 spans of some 470 bytes, every default, the collector away; filled "
            "by one client with 20 spans a request and 2000 a second, or flooded with 100 a "
            "request, 16 at once. A fresh process for each."
        ),
        memory,
    ),
    ("Start and size", "Python itself is not counted.", start),
    ("Installed size by package", "Of the relay; 0.1 MiB and more.", sizes),
    ("Import time by package", "Of everything that the daemon loads; own time.", imports),
    (
        "Growth: clients and attributes",
        "CPU seconds per million spans, 100 a request, over gRPC.",
        growth,
    ),
    (
        "Growth: the ring",
        "The relay with a full ring and no collector: every span displaces another.",
        rings,
    ),
    ("Void runs", "Not everything that was sent arrived; their figures count nowhere.", voids),
)


def markdown(results: Results, *, level: int = 2) -> str:
    """All tables of a results file, without a title."""
    table = Table(results)
    machine = [[key, value] for key, value in {**results["machine"], **results["versions"]}.items()]
    out = render(["", "measured on"], machine)
    kind = "quick, to see that it works; not figures to rely on" if results["quick"] else "full"
    rounds: dict[str, int] = {}
    for each in table.records:
        rounds[each["section"]] = max(rounds.get(each["section"], 0), each["round"] + 1)
    told = ", ".join(f"{section} {number}" for section, number in rounds.items())
    out += [
        "",
        f"{results['started']}, {kind}. Rounds: {told}.",
        "",
        f"Load average of the machine at the start: {results['load_before']:.2f}.",
        "",
        f"Command: `{results['command']}`.",
    ]
    for title, about, part in PARTS:
        lines = part(table)
        if lines:
            out += ["", f"{'#' * level} {title}"] if title else []
            out += ["", about] if about else []
            out += ["", *lines]
    return "\n".join(out) + "\n"
