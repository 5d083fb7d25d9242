"""What is filtered: a table to read, sequences, and both held against the plain model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from proto_stubs import TRACES
from relay import wire
from relay.processors import NOTHING, ProcessorConfig, Result, build, parents, shapes
from relay.processors.filters import SpanFilter, sampling_bound
from relay.processors.patterns import DEFAULT_EXCLUDED, UrlRules, split
from tests.processors import model

Kind = Span.SpanKind
SERVER, INTERNAL, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CLIENT
PRODUCER, CONSUMER = Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER
UNSPECIFIED = Span.SPAN_KIND_UNSPECIFIED
TRACE = b"0123456789abcdef"


def span(
    name: str,
    parent: str = "",
    *,
    kind: Span.SpanKind.ValueType = INTERNAL,
    trace: bytes = TRACE,
    **attributes: object,
) -> Span:
    """A span whose id is its name; ``url_path`` and the like become ``url.path``."""
    made = Span(
        trace_id=trace,
        span_id=name.encode().ljust(8, b"_"),
        parent_span_id=parent.encode().ljust(8, b"_") if parent else b"",
        name=name,
        kind=kind,
    )
    for key, value in attributes.items():
        any_value = made.attributes.add(key=key.replace("_", ".")).value
        if isinstance(value, int):
            any_value.int_value = value
        else:
            any_value.string_value = str(value)
    return made


def request(*spans: Span) -> bytes:
    out = ExportTraceServiceRequest()
    out.resource_spans.add().scope_spans.add().spans.extend(spans)
    return out.SerializeToString()


def names(payload: bytes) -> str:
    return " ".join(s.name for s in model.spans_of(ExportTraceServiceRequest.FromString(payload)))


def made(
    excluded: str = "", included: str | None = None, *, events: bool = True, ratio: float = 1
) -> SpanFilter:
    rules = UrlRules(split(excluded), None if included is None else split(included))
    return SpanFilter(rules, drop_events=events, ratio=ratio)


def run(filters: SpanFilter, *spans: Span, now: float = 0) -> tuple[str, Mapping[str, int]]:
    payload = request(*spans)
    result = filters.process(payload, *filters.count(payload), now)
    model.check_counts(result)
    return names(result.payload), result.removed


# How one request's path stands in a span, by convention.
CONVENTIONS = {
    "url.path": lambda path: {"url_path": path},
    "url.path with query": lambda path: {"url_path": path, "url_query": "x=/other"},
    "http.target": lambda path: {"http_target": path},
    "http.target with query": lambda path: {"http_target": path + "?next=/other"},
    "http.target and http.url": lambda path: {
        "http_url": "http://h:80/other",
        "http_target": path,
    },
    "http.url": lambda path: {"http_url": "http://shop:8000" + path + "?q=/x#y"},
    "all": lambda path: {
        "http_url": "http://h/other",
        "http_target": "/other",
        "url_path": path,
    },
}

# patterns, path, whether a server span with that path is filtered
DECISIONS = [
    ("/health", "/health", True),
    ("/health", "/api/v1/health", False),
    ("/health", "/healthz", False),
    ("/", "/", True),
    ("/", "/api", False),
    ("/api/*", "/api/users", True),
    ("/api/*", "/api/", True),
    ("/api/*", "/api", False),
    ("/a.c", "/a.c", True),
    ("/a.c", "/abc", False),
    ("", "/health", False),
    (r"/a\,b", "/a,b", True),
    (r"^/a{1\,2}$", "/aa", True),
    (r"^/a{1\,2}$", "/aaa", False),
    ("^/api/v[0-9]/health", "/api/v1/health", True),
    ("^/v[0-9]", "/api/v1", False),
    ("^.*health", "/api/v1/health", True),
    ("/x,/health,/y", "/health", True),
    ("*", "/anything", True),
]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("patterns", "path", "filtered"), DECISIONS)
def test_decision_table(patterns: str, path: str, filtered: bool, convention: str) -> None:
    server = span("server", "remote", kind=SERVER, **CONVENTIONS[convention](path))
    left, removed = run(made(patterns), server)
    assert (left, removed) == (("", {"excluded_url": 1}) if filtered else ("server", {}))
    # The same patterns as inclusions decide the other way round; exclusions then do not count.
    left, removed = run(made("*", patterns), server)
    assert (left, removed) == (("server", {}) if filtered else ("", {"not_included_url": 1}))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    ("kind", "judged"),
    [
        (SERVER, True),
        (INTERNAL, True),
        (CLIENT, False),
        (PRODUCER, False),
        (CONSUMER, False),
        (UNSPECIFIED, False),
    ],
)
def test_only_server_spans_are_judged(
    kind: Span.SpanKind.ValueType, judged: bool, convention: str
) -> None:
    one = span("one", kind=kind, **CONVENTIONS[convention]("/health"))
    if kind == INTERNAL and convention == "http.url":
        # That may be the URL of a call that goes out.
        judged = False
    assert run(made("/health"), one)[0] == ("" if judged else "one")
    assert run(made("", "/other"), one)[0] == ("" if judged else "one")


@pytest.mark.parametrize("patterns", ["/", "*", "/health"])
def test_an_empty_path_is_the_root(patterns: str) -> None:
    for one in (
        span("one", kind=SERVER, url_path=""),
        span("one", kind=SERVER, http_target="?x"),
        span("one", kind=SERVER, http_url="http://shop"),
    ):
        left, _ = run(made(patterns), one)
        assert left == ("one" if patterns == "/health" else "")


def test_a_span_without_a_path_is_never_judged() -> None:
    for attributes in ({}, {"url_path": 5}, {"rpc_service": "/health"}, {"url_full": "/health"}):
        one = span("one", kind=SERVER, **attributes)
        assert run(made("/health,/"), one)[0] == "one"
        assert run(made("", "/api/*"), one)[0] == "one"


def test_a_value_that_is_no_string_gives_way_to_the_next() -> None:
    assert (
        run(made("/health"), span("one", kind=SERVER, url_path=5, http_target="/health"))[0] == ""
    )


def test_texts_of_patterns_elsewhere_filter_nothing() -> None:
    looks = (
        "/health",
        "\n\x08url.path\x12\t\n\x07/health",
        "J\x15\n\x08url.path\x12\t\n\x07/health",
        "0\x02",
    )
    for text in looks:
        one = span(text, kind=SERVER, url_path="/x" + text, log=text, note="GET " + text)
        one.events.add(name=text).attributes.add(key="url.path").value.string_value = "/health"
        one.links.add(trace_state=text).attributes.add(key="url.path").value.string_value = text
        one.trace_state = text
        one.status.message = text
        one.attributes.add(key=text).value.string_value = "/health"
        nested = one.attributes.add(key="nested").value.kvlist_value.values.add(key="url.path")
        nested.value.string_value = "/health"
        payload = request(one)
        filters = made("/health")
        assert filters.process(payload, 1, 1, 0) == Result(payload, 1, 1)


# Subtrees.

TREE = (
    span("server", "remote", kind=SERVER, url_path="/health"),
    span("send", "server", asgi_event_type="http.response.start"),
    span("middle", "server"),
    span("db", "middle", kind=CLIENT),
    span("self", "db", kind=SERVER, url_path="/other"),
    span("below", "self"),
    span("other", "remote", kind=SERVER, url_path="/other"),
    span("child", "other"),
    span("lonely", "unknown"),
    span("root"),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_subtree_goes_whole_in_whatever_order_it_stands(seed: int) -> None:
    spans = list(TREE)
    random.Random(seed).shuffle(spans)
    left, removed = run(made("/health"), *spans)
    assert sorted(left.split()) == ["child", "lonely", "other", "root"]
    assert removed == {"excluded_url": 1, "send_receive": 1, "subtree": 4}


def test_a_subtree_spans_resources_and_scopes() -> None:
    out = ExportTraceServiceRequest()
    for one in TREE:
        out.resource_spans.add().scope_spans.add().spans.append(one)
    payload = out.SerializeToString()
    result = made("/health").process(payload, len(TREE), len(TREE), 0)
    assert names(result.payload) == "other child lonely root"


def test_the_same_span_id_in_another_trace_is_another_span() -> None:
    left, _ = run(made("/health"), TREE[0], span("middle", "server", trace=b"another trace id"))
    assert left == "middle"


@pytest.mark.parametrize("depth", [5, 50])
def test_descendants_reach_as_far_as_the_tree(depth: int) -> None:
    chain = [span(f"s{n + 1}", f"s{n}") for n in range(depth)]
    server = span("s0", kind=SERVER, url_path="/health")
    assert run(made("/health"), *chain, server)[1] == {"excluded_url": 1, "subtree": depth}
    assert run(made("/health"), server, *reversed(chain))[1]["subtree"] == depth


def test_circles_end() -> None:
    spans = (
        span("a", "b"),
        span("b", "a"),
        span("server", "b", kind=SERVER, url_path="/health"),
        span("self", "self", kind=SERVER, url_path="/health"),
        span("c", "server"),
    )
    assert run(made("/health"), *spans)[0] == "a b"
    assert run(made("", "/x"), *spans)[0] == "a b"


def test_invalid_ids_take_nothing_along() -> None:
    for identity in (b"", bytes(8), b"short", b"nine long"):
        server = span("server", kind=SERVER, url_path="/health")
        server.span_id = identity
        child = span("child")
        child.parent_span_id = identity
        assert run(made("/health"), server, child)[0] == "child"
        filters = made("/health")
        run(filters, server)
        assert run(filters, child)[0] == "child"


# Inclusions.


def test_what_has_no_server_span_above_it_stays() -> None:
    left, removed = run(
        made("", "/api/*"),
        span("job"),
        span("query", "job", kind=CLIENT),
        span("page", kind=SERVER, url_path="/page"),
        span("db", "page", kind=CLIENT),
        span("api", kind=SERVER, url_path="/api/x"),
        span("db2", "api", kind=CLIENT),
    )
    assert left == "job query api db2"
    assert removed == {"not_included_url": 1, "subtree": 1}


def test_an_included_server_span_stays_with_all_below_it() -> None:
    left, removed = run(
        made("", "/api/*"),
        span("api", kind=SERVER, url_path="/api/x"),
        span("mounted", "api", url_path="/x"),
        span("db", "mounted", kind=CLIENT),
        span("again", "db", kind=SERVER, url_path="/other"),
        span("deep", "again"),
    )
    assert left == "api mounted db again deep"
    assert removed == {}


def test_an_included_server_span_stays_below_one_that_is_not() -> None:
    left, removed = run(
        made("", "/api/*"),
        span("page", kind=SERVER, url_path="/page"),
        span("call", "page", kind=CLIENT),
        span("api", "call", kind=SERVER, url_path="/api/x"),
        span("db", "api", kind=CLIENT),
    )
    assert left == "api db"
    assert removed == {"not_included_url": 1, "subtree": 1}


def test_a_mounted_app_that_is_excluded_goes_alone() -> None:
    left, _ = run(
        made("/sub/health"),
        span("outer", kind=SERVER, url_path="/x"),
        span("mounted", "outer", url_path="/sub/health"),
        span("db", "mounted"),
        span("after", "outer"),
    )
    assert left == "outer after"


# ASGI event spans.


@pytest.mark.parametrize("kind", Kind.values())
def test_event_spans_are_internal_and_have_the_attribute(kind: Span.SpanKind.ValueType) -> None:
    event = span("event", kind=kind, asgi_event_type="http.request")
    assert run(made(), event)[1] == ({"send_receive": 1} if kind == INTERNAL else {})
    assert run(made(events=False), event)[0] == "event"
    assert run(made(), span("event", kind=kind, text="asgi.event.type"))[0] == "event"


def test_what_is_below_an_event_span_stays_unless_its_server_span_goes() -> None:
    send = span("send", "server", asgi_event_type="http.response.start")
    inner = span("inner", "send")
    server = span("server", kind=SERVER, url_path="/x")
    assert run(made("/health"), server, send, inner)[0] == "server inner"
    assert run(made("/x"), server, send, inner) == (
        "",
        {"excluded_url": 1, "send_receive": 1, "subtree": 1},
    )
    # What a send span is counted as does not depend on what else is in its request.
    assert run(made("/x", events=False), server, send)[1] == {"excluded_url": 1, "subtree": 1}


# From one request to the next.


def test_descendants_that_arrive_later_go_for_a_minute() -> None:
    filters = made("/health")
    assert run(filters, TREE[0], now=1000)[1] == {"excluded_url": 1}
    assert run(filters, span("middle", "server"), now=1060)[1] == {"subtree": 1}
    assert run(filters, span("late", "server"), now=1060.5)[0] == "late"
    # Each of them is remembered from when it was filtered.
    assert run(filters, span("db", "middle"), now=1120)[1] == {"subtree": 1}
    assert run(filters, span("db", "middle"), now=1121)[0] == "db"


def test_event_spans_known_by_their_looks_pass_on_what_is_above_them() -> None:
    """An event span that arrives after its server span: what is below it goes, too."""
    with patch.object(shapes, "_SEEN", 0), patch.object(shapes, "_PAUSE", 0):
        filters = made("/health")
        run(filters, span("other", "nothing", asgi_event_type="x"))
        assert filters._shapes.by_size
        assert run(filters, span("server", kind=SERVER, url_path="/health"))[1]
        assert run(filters, span("event", "server", asgi_event_type="x"))[1] == {"send_receive": 1}
        assert run(filters, span("below", "event")) == ("", {"subtree": 1})


def test_event_spans_known_by_their_looks_pass_on_that_an_included_one_is_above() -> None:
    api = span("api", kind=SERVER, url_path="/api/x")
    event = span("event", "api", asgi_event_type="x")
    page = span("page", kind=SERVER, url_path="/page")
    cases = [
        # What is below it stays, whatever its path.
        ((api, event, span("again", "event", kind=SERVER, url_path="/other")), "api again"),
        # It ends the subtree of another one, even if that has the same id.
        ((api, event, page, span("api", kind=SERVER, url_path="/page")), "api"),
        # So it does from further above.
        (
            (
                api,
                span("mid", "api", kind=CLIENT),
                span("event", "mid", asgi_event_type="x"),
                span("mid", kind=SERVER, url_path="/page"),
            ),
            "api mid",
        ),
    ]
    for spans, left in cases:
        plain, knowing = made("", "/api/*"), made("", "/api/*")
        with patch.object(shapes, "_SEEN", 0), patch.object(shapes, "_PAUSE", 0):
            run(knowing, span("event", "api", asgi_event_type="x", trace=bytes(16)))
        assert knowing._shapes.by_size
        expected = run(plain, *spans)
        assert expected[0] == left
        assert run(knowing, *spans) == expected
        # Nor does the event span take along what waits or comes later.
        for filters in (plain, knowing):
            assert run(filters, span("late", "event"))[0] == "late"


def test_event_spans_known_by_their_looks_are_remembered_for_a_minute_of_their_own() -> None:
    """Also if the one above them is forgotten meanwhile."""
    server = span("server", kind=SERVER, url_path="/health")
    event = span("event", "server", asgi_event_type="x")
    plain, knowing = made("/health"), made("/health")
    with patch.object(shapes, "_SEEN", 0), patch.object(shapes, "_PAUSE", 0):
        for known in (server, event):
            other = Span.FromString(known.SerializeToString())
            other.trace_id = bytes(16)
            run(knowing, other, now=0)
    assert len(knowing._shapes.by_size) == 2
    for filters in (plain, knowing):
        assert run(filters, server, now=100)[1] == {"excluded_url": 1}
        assert run(filters, event, now=159)[1] == {"send_receive": 1}
        run(filters, span("unrelated", trace=bytes(range(16))), now=166)
        assert run(filters, span("child", "event"), now=167) == ("", {"subtree": 1})


def test_requests_of_one_trace_are_not_worked_on_for_what_they_have_nothing_to_do_with() -> None:
    """Who calls chooses the trace: it may be the same for health checks and all else."""
    filters = made("/health")
    real = model.Real(filters)
    for number in range(100):
        real.process(request(span(f"o{number}", f"p{number}", url_path="/x")), 0)
    with (
        patch.object(filters, "prune", wraps=filters.prune) as pruned,
        patch.object(parents, "_windows", wraps=parents._windows) as listed,
    ):
        for number in range(50):
            real.process(request(span(f"h{number}", kind=SERVER, url_path="/health")), 0)
        assert pruned.call_count == 0
        assert listed.call_count < 100 + 50 + 50
        for number in range(50):
            real.process(request(span(f"m{number}", f"q{number}")), 0)
        assert listed.call_count < 100 + 50 + 50 + 100
        assert len(filters._remembered) == 50
        _, removed = real.process(request(span("p7", kind=SERVER, url_path="/health")), 0)
        assert removed == {"excluded_url": 1, "subtree": 1}
        assert pruned.call_count > 0
    assert len(real.ring) == 149


@pytest.mark.parametrize("order", [("server", "event"), ("event", "server")])
def test_what_is_known_by_its_looks_takes_along_what_is_below_it(order: tuple[str, str]) -> None:
    def spans(trace: bytes) -> list[Span]:
        both = {
            "server": span("server", kind=SERVER, url_path="/health", trace=trace),
            "event": span("event", "server", asgi_event_type="x", trace=trace),
        }
        return [both[name] for name in order]

    filters = made("/health")
    with patch.object(shapes, "_SEEN", 0), patch.object(shapes, "_PAUSE", 0):
        run(filters, *spans(b"another trace id"))
    waiting = [request(span("deep", "waiting"), span("x")), request(span("waiting", "event"))]
    for payload in waiting:
        filters.process(payload, *filters.count(payload), 100)
    real = model.Real(filters, waiting)
    with patch.object(filters, "_judge") as judged:
        result, removed = real.process(request(*spans(TRACE)), 100)
    assert not judged.called
    assert result.removed == {"excluded_url": 1, "send_receive": 1}
    assert removed == {"excluded_url": 1, "send_receive": 1, "subtree": 2}
    assert [names(payload) for payload in real.ring] == ["x"]
    assert run(filters, span("late", "event"), now=160)[1] == {"subtree": 1}
    assert run(filters, span("later", "deep"), now=160)[1] == {"subtree": 1}
    assert run(filters, span("gone", "server"), now=161)[0] == "gone"


def test_descendants_that_wait_are_taken_back() -> None:
    filters = made("/health")
    waiting = [
        request(span("deep", "db"), span("other")),
        request(span("db", "middle", kind=CLIENT)),
        request(span("x", "y")),
        request(span("middle", "server")),
    ]
    for payload in waiting:
        assert not filters.process(payload, *wire.count(payload, TRACES), 0).learned
    real = model.Real(filters, waiting)
    payload = request(TREE[0])
    result, removed = real.process(payload, 1)
    assert result.learned
    assert result.removed == {"excluded_url": 1}
    assert removed == {"excluded_url": 1, "subtree": 3}
    assert [names(payload) for payload in real.ring] == ["other", "x"]
    assert run(filters, span("late", "deep"), now=2)[1] == {"subtree": 1}


@given(st.integers(0, 2**32))
def test_counts_while_it_walks_as_strictly_as_without(seed: int) -> None:
    """Whatever is damaged or written unusually: the numbers, or the refusal, of wire.count."""
    rng = random.Random(seed)
    one = [span("a", "b", kind=SERVER, url_path=path) for path in ("/health", "/health", "/other")]
    with model.tuned(rng):
        filters = made("/health")
        assert run(filters, *one)[1] == {"excluded_url": 2}
        rng.shuffle(one)
        payload = bytearray(request(*one))
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(len(payload))
            if rng.random() < 0.5:
                payload[at] = rng.choice((0, 1, 0x0A, 0x12, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            else:
                del payload[at : at + rng.choice((1, 1, 3, len(payload)))]
        damaged = bytes(payload)
        try:
            expected = wire.count(damaged, TRACES)
        except wire.MalformedError:
            with pytest.raises(wire.MalformedError):
                filters.count(damaged)
        else:
            assert filters.count(damaged) == expected
            model.check_counts(filters.process(damaged, *expected, 0))


@pytest.mark.parametrize("servers", [1, 20])
@pytest.mark.parametrize("note", ["", "x" * 10_000])
def test_says_whether_anything_that_waits_is_affected(servers: int, note: str) -> None:
    filters = made("/health")
    identities = [n.to_bytes(16) for n in range(servers)]
    waiting = [
        request(span("child", "server", trace=identities[-1], note=note), span("x")),
        request(span("other", "server", trace=b"another trace id", note=note)),
    ]
    for payload in waiting:
        assert filters.process(payload, *filters.count(payload), 0).payload is payload
    assert not filters.affects(waiting)
    server = [span("server", kind=SERVER, url_path="/health", trace=t) for t in identities]
    run(filters, *server)
    assert filters.affects(waiting)
    assert filters.affects(waiting[:1])
    pruned = filters.prune(waiting[0], 2, 2, 0)
    assert (names(pruned.payload), pruned.removed) == ("x", {"subtree": 1})
    left = filters.prune(waiting[1], 1, 1, 0)
    assert (left.payload, left.removed) == (waiting[1], {})


def test_pruning_leaves_what_is_included() -> None:
    filters = made("", "/api/*")
    waiting = request(
        span("api", "call", kind=SERVER, url_path="/api/x"),
        span("db", "api"),
        span("call", "page", kind=CLIENT),
    )
    filters.process(waiting, 3, 3, 0)
    page = request(span("page", kind=SERVER, url_path="/page"))
    assert filters.process(page, 1, 1, 0).removed == {"not_included_url": 1}
    pruned = filters.prune(waiting, 3, 3, 0)
    assert (names(pruned.payload), pruned.removed) == ("api db", {"subtree": 1})


def test_only_what_filters_a_server_span_asks_for_pruning() -> None:
    filters = made("/health", ratio=0.5)
    event = request(span("send", asgi_event_type="x"), span("x", trace=b"\xff" * 16))
    result = filters.process(event, 2, 2, 0)
    assert result == Result(b"", 0, 0, {"send_receive": 1, "sampled_out": 1}, learned=False)


def test_nothing_to_do_gives_the_very_payload_back() -> None:
    payload = request(*(span(f"s{n}", kind=SERVER, url_path=f"/orders/{n}") for n in range(100)))
    filters = build(TRACES, ProcessorConfig(excluded=DEFAULT_EXCLUDED))
    assert filters is not None
    result = filters.process(payload, 100, 100, 0)
    assert result.payload is payload
    assert result.removed is NOTHING


# Sampling.


@given(
    st.one_of(st.sampled_from([0.0, 1e-19, 1e-9, 0.1, 0.5, 1 - 1e-9, 1.0]), st.floats(0, 1)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_samples_as_the_python_sdk_does(ratio: float, rng: random.Random) -> None:
    sampler = TraceIdRatioBased(ratio)
    assert sampling_bound(ratio) == sampler.bound
    ids = [rng.getrandbits(128) for _ in range(20)]
    # And where the decision changes.
    high = rng.getrandbits(64) << 64
    ids += [high | min(max(sampler.bound + n, 0), 2**64 - 1) for n in (-1, 0, 1)]
    kept = [
        f"{trace:032x}"
        for trace in ids
        if sampler.should_sample(None, trace, "x").decision is Decision.RECORD_AND_SAMPLE
    ]
    spans = [span("x", trace=trace.to_bytes(16)) for trace in ids]
    for one in spans:
        one.name = one.trace_id.hex()
    left, removed = run(made(ratio=ratio), *spans)
    assert left.split() == kept
    assert removed.get("sampled_out", 0) == len(ids) - len(kept)


def test_filters_count_before_sampling() -> None:
    dropped = b"\xff" * 16
    server = span("server", trace=dropped, kind=SERVER, url_path="/health")
    child, other = span("child", "server", trace=dropped), span("other", trace=dropped)
    assert run(made("/health", ratio=0.1), server, child, other)[1] == {
        "excluded_url": 1,
        "subtree": 1,
        "sampled_out": 1,
    }


@pytest.mark.parametrize("trace", [b"", b"\xff" * 8, b"\xff" * 17])
def test_an_invalid_trace_id_is_not_sampled_out(trace: bytes) -> None:
    assert run(made(ratio=0.0), span("one", trace=trace))[0] == "one"


# Bad input, and much of it.


def test_a_span_that_does_not_parse_stays_as_it_is() -> None:
    good = span("server", kind=SERVER, url_path="/health").SerializeToString()
    bad = [good[:-1], good + b"\xff", good + b"\x0c", good + b"\x12\x80\x80\x80\x80\x80\x00"]
    frame = b"".join(b"\x12" + wire.varint(len(s)) + s for s in (*bad, good))
    frame = b"\x12" + wire.varint(len(frame)) + frame
    payload = b"\x0a" + wire.varint(len(frame)) + frame
    units, items = wire.count(payload, TRACES)
    for filters in (made("/health"), made("", "/x"), made("/health", ratio=0.5)):
        result = filters.process(payload, units, items, 0)
        assert model.Raw.of(result.payload).spans[: len(bad)] == bad
        assert sum(result.removed.values()) == 1


@given(st.binary(max_size=200), st.randoms(use_true_random=False))
def test_nothing_inside_a_span_breaks_the_filters(noise: bytes, rng: random.Random) -> None:
    good = span("server", kind=SERVER, url_path="/health").SerializeToString()
    at = rng.randint(0, len(good))
    body = good[:at] + noise + good[rng.randint(at, len(good)) :]
    frame = b"\x12" + wire.varint(len(body)) + body
    frame = b"\x12" + wire.varint(len(frame)) + frame
    payload = b"\x0a" + wire.varint(len(frame)) + frame
    for filters in (made("/health"), made("", "/x"), made("*", ratio=0.5)):
        model.check_counts(filters.process(payload, 1, 1, 0))
        model.check_counts(filters.prune(payload, 1, 1, 0))


def test_a_payload_full_of_candidates_for_parent_ids_is_read_instead() -> None:
    server = span("server", kind=SERVER, url_path="/health", log='"\x08' * 100_000)
    child = span("child", "server")
    assert run(made("/health"), child, server, span("x"))[1] == {"excluded_url": 1, "subtree": 1}


# Against the model.


@given(st.integers(0, 2**64))
@settings(max_examples=500, deadline=None)
def test_filters_as_the_model_does_for_new_cases(seed: int) -> None:
    rng = random.Random(seed)
    case = model.case(rng)
    with model.tuned(rng):
        model.compare(*case)


def test_filters_as_the_model_does() -> None:
    seen: Counter[str] = Counter()
    for seed in range(2000):
        rng = random.Random(seed)
        case = model.case(rng)
        with model.tuned(rng):
            try:
                seen += model.compare(*case)
            except Exception as error:
                error.add_note(
                    f"seed {seed}: python -m tests.campaigns.filters --seed {seed} --cases 1"
                )
                raise
    # Else the cases are not about much.
    assert min(seen[reason] for reason in ("excluded_url", "not_included_url", "subtree")) > 200
    assert min(seen[reason] for reason in ("send_receive", "sampled_out", "")) > 200


@pytest.mark.parametrize("wide", [False, True])
def test_large_requests_are_filtered_as_small_ones(wide: bool) -> None:
    """Across the windows in which parent ids are listed, by RE2's searches."""
    rng = random.Random(7)
    filters = model.Settings(("/health",), None)
    real, plain = model.Real(filters.filter()), model.Model(filters)
    for now in range(4):
        spans = []
        for n in range(600):
            trace = rng.randbytes(16)
            path = rng.choice(("/health", "/orders/17"))
            note = "x" * (rng.randrange(900) if wide else 5)
            tree = [
                span(f"s{n}", "remote", kind=SERVER, trace=trace, url_path=path, note=note),
                span(f"a{n}", f"s{n}", trace=trace, note=note),
                span(f"b{n}", f"a{n}", trace=trace),
            ]
            spans += [one for one in tree if rng.random() < 0.8]
        rng.shuffle(spans)
        reasons, expected = plain.process(spans, now)
        result, removed = real.process(request(*spans), now)
        assert removed == expected
        assert names(result.payload).split() == [
            one.name for one, reason in zip(spans, reasons, strict=True) if not reason
        ]
