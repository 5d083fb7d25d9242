"""The filters once more, plainly, on the message classes: what the byte-level ones are held to.

And random requests for both, written down in the most awkward ways that the encoding allows.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from proto_stubs import TRACES
from relay import wire
from relay.processors import Result, filters, parents, remembered, search, shapes, traces
from relay.processors.filters import SpanFilter
from relay.processors.patterns import UrlRules

SERVER, INTERNAL = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL


# The plain filters.


@dataclass
class Settings:
    excluded: Sequence[str] = ()
    included: Sequence[str] | None = None
    drop_events: bool = True
    ratio: float = 1.0

    def filter(self) -> SpanFilter:
        rules = UrlRules(self.excluded, self.included)
        return SpanFilter(rules, drop_events=self.drop_events, ratio=self.ratio)

    def traced(self, path: str) -> bool:
        if self.included is not None:
            return any(matches(pattern, path) for pattern in self.included)
        return not any(matches(pattern, path) for pattern in self.excluded)


def matches(pattern: str, path: str) -> bool:
    """Expressions in the tests mean the same to ``re`` as to RE2."""
    if pattern.startswith("^"):
        # Unlike RE2, `re` lets `$` match before a line feed that ends the path, too.
        return re.match(pattern.replace("$", r"\Z"), path) is not None
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern


def strings(span: Span) -> dict[str, str | None]:
    """The attributes, the first of each key; None for other values than strings."""
    found: dict[str, str | None] = {}
    for attribute in span.attributes:
        text = attribute.value.string_value
        is_text = attribute.value.WhichOneof("value") == "string_value"
        found.setdefault(attribute.key, text if is_text else None)
    return found


def is_event(span: Span) -> bool:
    return span.kind == INTERNAL and "asgi.event.type" in strings(span)


def path(span: Span) -> str | None:
    if span.kind not in {SERVER, INTERNAL} or is_event(span):
        return None
    found = strings(span)
    if (text := found.get("url.path")) is not None:
        return text or "/"
    if (text := found.get("http.target")) is not None:
        return text.split("?")[0] or "/"
    if (text := found.get("http.url")) is not None and span.kind == SERVER:
        text = text.split("#")[0].split("?")[0]
        if "://" in text:
            rest = text.split("://", 1)[1]
            text = rest[rest.index("/") :] if "/" in rest else ""
        return text or "/"
    return None


def own_key(span: Span) -> bytes | None:
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.span_id):
        return None
    return span.trace_id + span.span_id


def parent_key(span: Span) -> bytes | None:
    if len(span.trace_id) != 16 or len(span.parent_span_id) != 8 or not any(span.parent_span_id):
        return None
    return span.trace_id + span.parent_span_id


def closure(spans: Sequence[Span], keys: set[bytes], stay: set[int]) -> tuple[set[int], set[bytes]]:
    """All spans below ``keys``, not through ``stay``; and the keys of those."""
    below: set[int] = set()
    found: set[bytes] = set()
    while True:
        new = {
            n
            for n, span in enumerate(spans)
            if n not in below and n not in stay and parent_key(span) in keys | found
        }
        if not new:
            return below, found
        below |= new
        found |= {key for n in new if (key := own_key(spans[n]))}


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    return [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]


@dataclass
class Model:
    """One relay's filter and ring."""

    settings: Settings
    memory: dict[bytes, float] = field(default_factory=dict)
    ring: list[list[Span]] = field(default_factory=list)

    def stay(self, spans: Sequence[Span]) -> set[int]:
        if self.settings.included is None:
            return set()
        included = {
            n for n, s in enumerate(spans) if (p := path(s)) is not None and self.settings.traced(p)
        }
        keys = {key for n in included if (key := own_key(spans[n]))}
        return included | closure(spans, keys, set())[0]

    def process(self, spans: list[Span], now: float) -> tuple[list[str], Counter[str]]:
        """Why each span goes ("" for those that stay); what was removed, from the ring too."""
        stay = self.stay(spans)
        reasons = [""] * len(spans)
        roots = set()
        for n, span in enumerate(spans):
            where = path(span)
            if where is not None and not self.settings.traced(where) and n not in stay:
                listed = self.settings.included is None
                reasons[n] = "excluded_url" if listed else "not_included_url"
                roots.add(own_key(span))
        keys = {key for key in roots if key}
        for n, span in enumerate(spans):
            if self.settings.drop_events and is_event(span):
                reasons[n] = "send_receive"
        recent = {key for key, since in self.memory.items() if now - since <= 60}
        below, found = closure(spans, keys | recent, stay)
        for n in below:
            reasons[n] = reasons[n] or "subtree"
        condemned = keys | found
        bound = round(self.settings.ratio * 2**64)
        if self.settings.ratio < 1:
            for n, span in enumerate(spans):
                if len(span.trace_id) == 16 and not reasons[n]:
                    low = int.from_bytes(span.trace_id) & (2**64 - 1)
                    reasons[n] = "" if low < bound else "sampled_out"
        removed = Counter(reason for reason in reasons if reason)
        if condemned:
            condemned = self.prune(condemned, removed)
        self.memory.update(dict.fromkeys(condemned, now))
        left = [span for span, reason in zip(spans, reasons, strict=True) if not reason]
        if left:
            self.ring.append(left)
        return reasons, removed

    def prune(self, condemned: set[bytes], removed: Counter[str]) -> set[bytes]:
        condemned = set(condemned)
        while True:
            before = len(condemned), removed["subtree"]
            for at, spans in enumerate(self.ring):
                below, found = closure(spans, condemned, self.stay(spans))
                condemned |= found
                removed["subtree"] += len(below)
                self.ring[at] = [span for n, span in enumerate(spans) if n not in below]
            if before == (len(condemned), removed["subtree"]):
                break
        self.ring = [spans for spans in self.ring if spans]
        if not removed["subtree"]:
            del removed["subtree"]
        return condemned


# The real ones, and a ring as the pipeline keeps it.


@dataclass
class Real:
    filter: SpanFilter
    ring: list[bytes] = field(default_factory=list)

    def process(self, payload: bytes, now: float) -> tuple[Result, Counter[str]]:
        units, items = self.filter.count(payload)
        assert (units, items) == wire.count(payload, TRACES)
        result = self.filter.process(payload, units, items, now)
        removed = Counter(result.removed)
        learned = result.learned
        while learned and self.filter.affects(self.ring):
            learned = False
            for at in range(len(self.ring) - 1, -1, -1):
                waiting = self.ring[at]
                pruned = self.filter.prune(waiting, *wire.count(waiting, TRACES), now)
                check_counts(pruned)
                removed.update(pruned.removed)
                self.ring[at] = pruned.payload
                learned = learned or pruned.learned
        self.ring = [payload for payload in self.ring if payload]
        check_counts(result)
        if result.units:
            self.ring.append(result.payload)
        return result, removed


def check_counts(result: Result) -> None:
    assert (result.units, result.items) == wire.count(result.payload, TRACES)
    assert bool(result.units) == bool(result.payload)


class Raw(NamedTuple):
    """A request's spans as bytes."""

    spans: list[bytes]

    @classmethod
    def of(cls, payload: bytes) -> Raw:
        units = wire.index(payload, TRACES).units
        return cls([payload[start:end] for _, _, start, end in units])


def without(request: ExportTraceServiceRequest, gone: Sequence[str]) -> ExportTraceServiceRequest:
    """The message less the spans that have a reason to go, and the entries that this empties."""
    out = ExportTraceServiceRequest()
    out.CopyFrom(request)
    del out.resource_spans[:]
    reasons = iter(gone)
    for resource in request.resource_spans:
        scopes: list[ScopeSpans] = []
        had = kept = 0
        for scope in resource.scope_spans:
            left = [span for span in scope.spans if not next(reasons)]
            had += len(scope.spans)
            kept += len(left)
            if left or not scope.spans:
                copy = ScopeSpans()
                copy.CopyFrom(scope)
                del copy.spans[:]
                copy.spans.extend(left)
                scopes.append(copy)
        if had and not kept:
            continue
        entry = out.resource_spans.add()
        entry.CopyFrom(resource)
        del entry.scope_spans[:]
        entry.scope_spans.extend(scopes)
    return out


def compare(settings: Settings, steps: Sequence[tuple[bytes, float, bool]]) -> Counter[str]:
    """Run requests (payload, seconds until it comes, was the ring sent before it) through both.

    Returns how often each reason held, to see that a campaign looks at something.
    """
    model, real = Model(settings), Real(settings.filter())
    now, seen = 0.0, Counter[str]()
    for payload, wait, sent in steps:
        now += wait
        if sent:
            model.ring.clear()
            real.ring.clear()
        request = ExportTraceServiceRequest.FromString(payload)
        spans = spans_of(request)
        if not spans:
            continue
        reasons, expected = model.process(spans, now)
        result, removed = real.process(payload, now)
        assert removed == expected, (removed, expected)
        originals = Raw.of(payload).spans
        left = [raw for raw, reason in zip(originals, reasons, strict=True) if not reason]
        assert Raw.of(result.payload).spans == left
        if left:
            assert canonical(result.payload) == without(request, reasons).SerializeToString()
        waiting = [span for spans in model.ring for span in spans]
        found = [
            span
            for payload_ in real.ring
            for span in spans_of(ExportTraceServiceRequest.FromString(payload_))
        ]
        assert found == waiting
        seen.update(removed)
        seen[""] += len(left)
    return seen


def canonical(payload: bytes) -> bytes:
    return ExportTraceServiceRequest.FromString(payload).SerializeToString()


# Random requests.

TRACES_ = (
    b"trace-one-16-byt",
    b"trace-one-16-byt",
    b"\x22\x08aaaaaaaa\xa2\x00\x22\x08zz",
    bytes(range(200, 216)),
)
IDS = (*(bytes([65 + n]) * 8 for n in range(8)), b"\x22\x08AAAAAA", b'"\x08"\x08"\x08"\x08')
PATHS = (
    "/health",
    "/api/v1/health",
    "/healthz",
    "/",
    "",
    "/api/orders/17",
    "/api/",
    "/api",
    "/a,b",
    "/metricsX",
    "/metrics",
    "/xmetrics",
    "/api/docs",
    "/é/health",
)
SETTINGS = (
    Settings(("/health", "/metrics", "/api/docs")),
    Settings(("/health", "/metrics"), drop_events=False),
    Settings(("/", "/api/*")),
    Settings(("^/api/(docs|orders)", "/health")),
    Settings(("^/.*health$",)),
    Settings(("^/healthz?$", r"^/met\\w+", r"^/api/docs|^/a,b$")),
    Settings(()),
    Settings((), ("/api/*", "/health")),
    Settings(("/health",), ("/",), ratio=0.7),
    Settings(("/health",), ("^/api",), drop_events=False),
    Settings(("/health",), (), drop_events=False),
    Settings(("/metrics",), ratio=0.3),
    Settings(("*",)),
)


def parses(span: bytes) -> bool:
    for tag in (b"\x12", b"\x12", b"\x0a"):
        span = tag + wire.varint(len(span)) + span
    try:
        ExportTraceServiceRequest.FromString(span)
    except DecodeError:
        return False
    return True


class Writer:
    """Writes protobuf as nobody would, if ``odd``; what it means stays well-defined."""

    def __init__(self, rng: random.Random, history: list[bytes] | None = None) -> None:
        self.rng = rng
        self.history = [] if history is None else history
        """Spans written before, of which variations are written again."""
        self.odd = rng.random() < 0.6

    def chance(self, probability: float) -> bool:
        return self.odd and self.rng.random() < probability

    def varint(self, value: int, longest: int) -> bytes:
        out = bytearray(wire.varint(value))
        if self.chance(0.04):
            for _ in range(self.rng.randint(1, longest) - len(out)):
                out[-1] |= 0x80
                out.append(0)
        return bytes(out)

    def tag(self, number: int, kind: int) -> bytes:
        return self.varint(number << 3 | kind, 5)

    def data(self, number: int, value: bytes) -> bytes:
        return self.tag(number, 2) + self.varint(len(value), 5) + value

    def number(self, number: int, value: int) -> bytes:
        if self.chance(0.05):
            value |= self.rng.getrandbits(28) << 32
        return self.tag(number, 0) + self.varint(value, 10)

    def unknown(self, numbers: Sequence[int] = (17, 40, 5000)) -> bytes:
        number = self.rng.choice(numbers)
        match self.rng.randrange(6):
            case 0:
                return self.tag(number, 0) + self.varint(self.rng.getrandbits(60), 10)
            case 1:
                return self.tag(number, 1) + self.rng.randbytes(8)
            case 2:
                return self.tag(number, 5) + self.rng.randbytes(4)
            case 3:
                inner = b"".join(self.unknown() for _ in range(self.rng.randrange(2)))
                return self.tag(number, 3) + inner + self.tag(number, 4)
            case _:
                return self.data(number, self.decoy())

    def decoy(self) -> bytes:
        """Bytes that look like what filters look for."""
        rng = self.rng
        look = rng.choice(
            (
                b"/health",
                b"url.path",
                b"asgi.event.type",
                b"\x0a\x08url.path\x12\x09\x0a\x07/health",
                b"\x4a\x15\x0a\x08url.path\x12\x09\x0a\x07/health",
                b"\x4a\x14\x0a\x0fasgi.event.type\x12\x01",
                b'"\x08' + rng.choice(IDS),
                b"0\x02",
                b"plain",
                b"",
            )
        )
        return rng.choice((b"", b"see ")) + look + rng.choice((b"", b"z", b" there"))

    def mixed(self, fields: list[bytes], unknown: Sequence[int] = (17, 40, 5000)) -> bytes:
        if self.chance(0.15):
            fields.insert(self.rng.randint(0, len(fields)), self.unknown(unknown))
        if self.chance(0.2):
            self.rng.shuffle(fields)
        return b"".join(fields)

    def again(self, number: int, value: bytes, others: Sequence[bytes]) -> list[bytes]:
        """A singular field of bytes: of several occurrences the last one counts."""
        fields = [self.data(number, value)]
        while self.chance(0.06):
            fields.insert(self.rng.randint(0, 1), self.data(number, self.rng.choice(others)))
        return fields

    # Messages.

    def any_value(self, text: str | None) -> bytes:
        rng = self.rng
        others = [
            self.number(2, 1),
            self.number(3, 8080),
            self.tag(4, 1) + rng.randbytes(8),
            self.data(5, self.data(1, self.data(1, b"/health"))),
            self.data(6, self.data(1, self.data(1, b"url.path"))),
            self.data(7, b"/health"),
            self.number(8, 1),
            self.data(2, b"/health"),
        ]
        fields = [] if text is None else [self.data(1, text.encode())]
        if text is None or self.chance(0.1):
            fields.insert(rng.randint(0, len(fields)), rng.choice(others))
        if self.chance(0.05):
            fields.append(self.data(1, rng.choice(PATHS).encode()))
        return self.mixed(fields)

    def pair(self, key: str, text: str | None) -> bytes:
        keys = (b"url.path", b"http.target", b"asgi.event.type", b"other")
        fields = self.again(1, key.encode(), keys)
        fields.append(self.data(2, self.any_value(text)))
        if self.chance(0.06):
            fields.append(self.data(2, self.any_value(self.rng.choice((text, "/health", None)))))
        return self.mixed(fields, (4, 17))

    def attributes(self) -> list[tuple[str, str | None]]:
        rng = self.rng
        where = rng.choice(PATHS)
        pairs: list[tuple[str, str | None]] = [("http.method", "GET")]
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            key = rng.choice(("url.path", "http.target", "http.url", "asgi.event.type"))
            text: str | None = where
            if key == "http.target":
                text = where + rng.choice(("", "?a=/health", "?", "#x"))
            elif key == "http.url":
                host = rng.choice(("http://h:80", "https://u@[::1]", "", "h"))
                text = host + where + rng.choice(("", "?q=http://x/y", "#/health", "?a#b"))
            elif key == "asgi.event.type":
                text = "http.response.start"
            pairs.append((key, None if rng.random() < 0.08 else text))
        if rng.random() < 0.3:
            pairs.append(("log", self.decoy().decode()))
        if rng.random() < 0.3:
            pairs.append(("long", "x" * rng.choice((126, 127, 128, 300))))
        rng.shuffle(pairs)
        return pairs

    def span(self) -> bytes:
        if self.history and self.rng.random() < 0.4:
            return self.variation(self.rng.choice(self.history))
        self.history.append(self.new_span())
        return self.history[-1]

    def variation(self, span: bytes) -> bytes:
        """The same span with other ids; or with any byte changed, if that is still a span."""
        rng = self.rng
        other = span
        for pool in (TRACES_, IDS):
            for old in pool:
                new = rng.choice(pool)
                if rng.random() < 0.5 and len(old) == len(new):
                    other = other.replace(old, new)
        if rng.random() < 0.5:
            at = rng.randrange(len(span))
            byte = rng.choice((span[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
            other = other[:at] + bytes((byte,)) + other[at + 1 :]
        return other if parses(other) else span

    def new_span(
        self, kind: int | None = None, attributes: Sequence[tuple[str, str | None]] | None = None
    ) -> bytes:
        rng = self.rng
        ids = (*IDS, *IDS, b"", bytes(8), b"short", b"nine-long")
        fields = [
            *self.again(
                1, rng.choice(TRACES_) if rng.random() < 0.95 else b"fifteen-bytes-x", TRACES_
            ),
            *self.again(2, rng.choice(ids), ids),
        ]
        if rng.random() < 0.2:
            fields.append(self.data(3, b"vendor=" + self.decoy()))
        if rng.random() < 0.8:
            fields += self.again(4, rng.choice(ids), ids)
        if rng.random() < 0.3:
            fields.append(self.tag(16, 5) + bytes((1, 1, 0, 0)))
        fields.append(self.data(5, self.decoy()))
        if kind is not None or rng.random() < 0.9:
            fields.append(self.number(6, kind or rng.choice((1, 1, 1, 2, 2, 2, 3, 4, 5))))
        if self.chance(0.06):
            fields.append(self.number(6, rng.randint(0, 3)))
        fields += [self.tag(7, 1) + rng.randbytes(8), self.tag(8, 1) + rng.randbytes(8)]
        pairs = self.attributes() if attributes is None else attributes
        fields += [self.data(9, self.pair(*pair)) for pair in pairs]
        if rng.random() < 0.2:
            event = self.tag(1, 1) + rng.randbytes(8) + self.data(2, self.decoy())
            event += self.data(3, self.pair("url.path", "/health"))
            fields.append(self.data(11, event))
        if rng.random() < 0.1:
            fields.append(self.data(15, self.data(2, self.decoy()) + self.number(3, 2)))
        if self.chance(0.05):
            fields.append(self.tag(6, 2) + b"\x01\x02")
        if self.chance(0.05):
            fields.append(self.tag(4, 0) + b"\x01")
        return self.mixed(fields)

    def health_check(self) -> list[bytes]:
        """The spans of a request that mostly goes."""
        rng = self.rng
        path = (("url.path", "/health"), ("log", self.decoy().decode()))
        event = (("asgi.event.type", "http.response.start"),)
        spans = [self.new_span(1, event) for _ in range(rng.randint(0, 2))]
        spans.append(self.new_span(2, path))
        rng.shuffle(spans)
        return spans

    def block(self, kinds: Sequence[bytes]) -> list[bytes]:
        """Spans of these kinds, in this order, of one trace; now and then with a change."""
        rng = self.rng
        trace = rng.choice(TRACES_)
        spans = []
        for span in kinds:
            other = self.variation(span) if rng.random() < 0.05 else span
            for old in TRACES_:
                other = other.replace(old, trace)
            for old in IDS:
                if rng.random() < 0.5:
                    other = other.replace(old, rng.choice(IDS))
            spans.append(other if parses(other) else span)
        return spans

    def regular(self, blocks: Sequence[Sequence[bytes]]) -> bytes:
        """A request with some of these, in any order."""
        rng = self.rng
        scope = [self.data(1, self.data(1, self.decoy()))]
        for _ in range(rng.randint(1, 12)):
            scope += [self.data(2, span) for span in self.block(rng.choice(blocks))]
        entry = self.data(1, self.data(1, self.pair("service.name", "shop")))
        return self.data(1, entry + self.data(2, self.mixed(scope)))

    def request(self, most: int) -> bytes:
        rng = self.rng
        resources = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            entry = [self.data(1, self.data(1, self.pair("service.name", "shop")))]
            for _ in range(rng.choice((1, 1, 2))):
                scope = [self.data(1, self.data(1, self.decoy()))]
                scope += [self.data(2, self.span()) for _ in range(rng.randint(0, most))]
                entry.append(self.data(2, self.mixed(scope)))
            entry.append(self.data(3, b"https://example.org/health"))
            resources.append(self.data(1, self.mixed(entry)))
        return self.mixed(resources, (2, 17))


@contextmanager
def tuned(rng: random.Random) -> Iterator[None]:
    """Which search is used follows from a payload's size; here also for small ones."""
    with (
        patch.object(search, "SMALL", rng.choice((0, 4096))),
        patch.object(parents, "SMALL", rng.choice((0, 4096))),
        patch.object(traces, "_LARGEST", rng.choice((0, 1 << 20))),
        patch.object(parents, "_WINDOW", rng.choice((32, 300, 65536))),
        patch.object(traces, "_WINDOW", rng.choice((32, 300, 65536))),
        patch.object(remembered, "_SMALL", rng.choice((0, 0, 8192))),
        patch.object(remembered, "_WORTH", 0),
        patch.object(remembered, "_COMPILED", rng.choice((3, 128))),
        patch.object(filters, "_ROUNDS", rng.choice((0, 1, 8))),
        patch.object(shapes, "_SEEN", 0),
        patch.object(shapes, "_PAUSE", 0),
        patch.object(shapes, "_LOOK", rng.choice((1, 1, 8))),
        patch.object(shapes, "_LOOK_SELDOM", 1),
        patch.object(shapes, "_MOST", rng.choice((1, 64))),
        patch.object(shapes, "_WORTHWHILE", rng.choice((1, 8, 1000))),
        patch.object(filters, "_SIFTED", rng.choice((0, 1 << 20))),
        patch.object(filters, "_MANY_IDS", rng.choice((0, 1024))),
    ):
        yield


def case(rng: random.Random) -> tuple[Settings, list[tuple[bytes, float, bool]]]:
    """Settings, and some requests that come one after the other."""
    steps: list[tuple[bytes, float, bool]] = []
    history: list[bytes] = []
    blocks: list[list[bytes]] = []
    if rng.random() < 0.2:
        # An app that does the same few things again and again, so that its spans become known.
        writer = Writer(rng)
        writer.odd = rng.random() < 0.1
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.4:
                blocks.append(writer.health_check())
            else:
                blocks.append([writer.new_span() for _ in range(rng.randint(1, 4))])
    for _ in range(rng.choice((4, 8, 12) if blocks else (1, 2, 3, 6))):
        writer = Writer(rng, history)
        if blocks and rng.random() < 0.95:
            writer.odd = rng.random() < 0.1
            payload = writer.regular(blocks)
        else:
            payload = writer.request(rng.choice((1, 3, 6)))
        steps.append(
            (payload, rng.choice((0.0, 0.5, 6.0, 30.0, 55.0, 59.0, 61.0)), rng.random() < 0.3)
        )
    return rng.choice(SETTINGS), steps
