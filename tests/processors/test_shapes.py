from __future__ import annotations

import random
from collections import Counter
from unittest.mock import patch

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from proto_stubs import TRACES
from relay import wire
from relay.processors import shapes
from relay.processors.shapes import Shape, Shapes, outline
from relay.processors.spans import sift, usual
from relay.wire import MalformedError

TRACE = b"0123456789abcdef"


def made(
    *,
    path: str = "/health",
    port: int = 40000,
    name: str = "GET /health",
    parent: bytes = b"",
    trace: bytes = TRACE,
) -> Span:
    span = Span(
        trace_id=trace,
        span_id=b"spanspan",
        parent_span_id=parent,
        name=name,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=5,
        end_time_unix_nano=6,
        flags=1,
    )
    for key, value in (("client.address", "10.0.0.1"), ("url.path", path)):
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="client.port").value.int_value = port
    return span


def framed(span: Span | bytes) -> tuple[bytes, int]:
    """With tag and length, and where the message begins."""
    raw = span if isinstance(span, bytes) else span.SerializeToString()
    head = b"\x12" + wire.varint(len(raw))
    return head + raw, len(head)


def shape_of(*spans: Span | bytes) -> Shape:
    """Of spans side by side."""
    outlines = []
    for code, span in enumerate(spans, 1):
        raw, body = framed(span)
        outlines.append((outline(raw, 0, body, len(raw)), code))
    return Shape(tuple(outlines))


def request(*spans: bytes) -> bytes:
    """With one resource and one scope."""
    scope = b"".join(spans)
    entry = b"\x12" + wire.varint(len(scope)) + scope
    return b"\x0a" + wire.varint(len(entry)) + entry


def test_matches_what_differs_only_where_it_does_not_matter() -> None:
    shape = shape_of(made())
    raw, body = framed(made(port=54321, name="PUT /health"))
    other = raw.replace(TRACE, bytes(16)).replace(b"10.0.0.1", b"10.9.9.9")
    match = shape.match(other, 0)
    assert match
    assert match.end() == shape.size == len(other)
    assert outline(raw, 0, body, len(raw)).ids == (body + 2, body + 20, 0)
    (member,) = shape.members
    assert member.trace_id
    assert member.span_id
    assert (member.trace_id(match[1]), member.span_id(match[1])) == (bytes(16), b"spanspan")
    assert member.parent_id is None


@pytest.mark.parametrize(
    "other",
    [
        made(path="/healtx"),
        made(path="/healthz"),
        made(port=1),
        made(name="GET"),
        made(parent=b"parentid"),
    ],
)
def test_matches_nothing_that_differs_in_what_matters_or_in_length(other: Span) -> None:
    assert not shape_of(made()).match(framed(other)[0], 0)


@pytest.mark.parametrize("kind", [0, 1, 3, 4, 5])
def test_the_kind_matters(kind: Span.SpanKind.ValueType) -> None:
    other = made()
    other.kind = kind
    assert not shape_of(made()).match(framed(other)[0], 0)


def test_the_group_is_the_part_with_the_ids() -> None:
    shape = shape_of(made(parent=b"parentid"))
    match = shape.match(framed(made(parent=b"p@rentid"))[0], 0)
    assert match
    assert match[1] == TRACE + b'\x12\x08spanspan"\x08p@rentid'
    (member,) = shape.members
    assert member.parent_id
    assert member.parent_id(match[1]) == b"p@rentid"
    for incomplete in (Span(span_id=b"spanspan"), Span(trace_id=bytes(16)), Span(name="x")):
        shape = shape_of(incomplete)
        match = shape.match(framed(incomplete)[0], 0)
        assert match
        assert match[1] == b""
        assert shape.trace_id is None
        assert shape.members == [(1, None, None, None)]


def test_ids_may_stand_in_any_order() -> None:
    raw = b'"\x08parentid\x12\x08spanspan0\x02\x0a\x10' + TRACE
    shape = shape_of(made(), raw)
    match = shape.match(framed(made())[0] + framed(raw)[0], 0)
    assert match
    assert shape.trace_id
    assert shape.trace_id(match[1]) == TRACE
    takes = [(one.trace_id, one.span_id, one.parent_id) for one in shape.members]
    assert [[take and take(match[1]) for take in three] for three in takes] == [
        [TRACE, b"spanspan", None],
        [TRACE, b"spanspan", b"parentid"],
    ]


def test_a_digit_may_follow_a_trace_id() -> None:
    """Tag of the start time: 9."""
    raw = b"\x12\x08spanspan\x0a\x10" + TRACE + b"9starting"
    shape = shape_of(raw, raw)
    match = shape.match(2 * framed(raw)[0], 0)
    assert match
    assert (
        match[1]
        == b"spanspan\x0a\x10" + TRACE + b"9starting\x12\x25\x12\x08spanspan\x0a\x10" + TRACE
    )


def test_spans_in_one_shape_are_of_one_trace() -> None:
    nothing = Span(name="without ids")
    shape = shape_of(made(), nothing, made(parent=b"parentid"), made())
    assert shape.trace_id
    for traces, fits in (("aaa", True), ("aab", False), ("aba", False), ("baa", False)):
        one, two, three = (framed(made(trace=16 * each.encode()))[0] for each in traces)
        two = framed(made(trace=16 * traces[1].encode(), parent=b"p@rentid"))[0]
        raw = one + framed(nothing)[0] + two + three
        match = shape.match(raw, 0)
        assert bool(match) == fits
        if match:
            assert match.end() == len(raw)
            assert shape.trace_id(match[1]) == 16 * b"a"


@pytest.mark.parametrize(
    "more",
    [
        b"\x12\x08spanspan",  # the span id again
        b"\x0a\x01x",  # a trace id of another length
        b"\xff",  # not a field
        b"\x0c",  # the end of a group that never began
    ],
)
def test_gives_up_on_what_is_written_otherwise(more: bytes) -> None:
    with pytest.raises(MalformedError):
        shape_of(made().SerializeToString() + more)


def test_a_key_that_is_written_twice_is_taken_literally() -> None:
    odd = b"\x0a\x01k\x0a\x01l\x12\x03\x0a\x01v"
    raw = made().SerializeToString() + b"\x4a" + bytes((len(odd),)) + odd
    shape = shape_of(raw)
    assert shape.match(framed(raw)[0], 0)
    assert not shape.match(framed(raw.replace(b"\x01v", b"\x01w"))[0], 0)


def test_learns_after_some_of_one_size_and_no_more_than_its_bounds() -> None:
    known = Shapes()
    raw, body = framed(made())
    for _ in range(3):
        known.learn(raw, 0, body, len(raw), 1)
    assert not known.by_size
    known.learn(raw, 0, body, len(raw), 1)
    (found,) = known.by_size[len(raw)]
    assert found.test(raw, 0)
    assert (found.size, found.spans) == (len(raw), 1)
    assert [member.code for member in found.told.members] == [1]
    for _ in range(200):  # What is known already is not learned again.
        known.learn(raw, 0, body, len(raw), 1)
    assert known.by_size[len(raw)] == [found]
    with patch.object(shapes, "_PAUSE", 1), patch.object(shapes, "_SEEN", 1):
        rng = random.Random(1)
        for _ in range(1000):
            raw, body = framed(made(path="/" + "x" * rng.randrange(2000)))
            known.learn(raw, 0, body, len(raw), 1)
    assert sum(map(len, known.by_size.values())) <= 64
    assert max(known.by_size) <= 2048


def test_waits_between_two_shapes() -> None:
    known = Shapes()
    for size in range(30):
        raw, body = framed(made(path="/" * size))
        for _ in range(10):
            known.learn(raw, 0, body, len(raw), 1)
    assert 2 <= len(known.by_size) <= 4


def taught(*spans: Span) -> Shapes:
    """Shapes that know these spans, one by one."""
    known = Shapes()
    with patch.object(shapes, "_PAUSE", 0), patch.object(shapes, "_SEEN", 1):
        for code, span in enumerate(spans, 1):
            raw, body = framed(span)
            known.learn(raw, 0, body, len(raw), code)
    return known


FIRST, SECOND, THIRD = (made(path=path, parent=b"parentid") for path in ("/a", "/bb", "/ccc"))


def test_spans_that_often_stand_side_by_side_get_a_shape_in_common() -> None:
    known = taught(FIRST, SECOND, THIRD)
    one, two, three = (framed(span)[0] for span in (FIRST, SECOND, THIRD))
    other = framed(made(path="/other"))[0]
    payload = request(*(4 * [one, two, three, other]), one, other)
    for _ in range(100):
        known.look(payload, 18)
    longest = known.by_size[len(one)][0]
    assert longest.size == len(one + two + three)
    assert [member.code for member in longest.told.members] == [1, 2, 3]
    result = sift(payload, known.by_size)
    assert result
    sifted, found = result
    assert (sifted.spans, sifted.left) == (18, 5)
    assert sum(len(shape.members) * len(each) for shape, each in found.items()) == 13
    (part,) = set(found[longest.told])
    takes = [member.span_id for member in longest.told.members]
    assert [take and take(part) for take in takes] == 3 * [b"spanspan"]
    assert len(found[longest.told]) == 4


def test_spans_of_different_traces_get_no_shape_in_common() -> None:
    known = taught(FIRST, SECOND)
    other = made(path="/bb", parent=b"parentid", trace=bytes(16))
    payload = request(*(8 * [framed(FIRST)[0], framed(other)[0]]))
    for _ in range(100):
        known.look(payload, 16)
    assert [each.spans for found in known.by_size.values() for each in found] == [1, 1]


def test_looks_more_and_more_seldom_for_what_is_not_there() -> None:
    known = taught(FIRST)
    payload = request(framed(FIRST)[0], framed(made(path="/other"))[0])
    with patch.object(shapes, "sift", wraps=sift) as walks:
        for _ in range(5000):
            known.look(payload, 2)
    assert 5 < walks.call_count < 15


def test_a_shape_has_so_many_members_at_most() -> None:
    known = taught(FIRST)
    payload = request(*(100 * [framed(FIRST)[0]]))
    assert 8 * len(framed(FIRST)[0]) < 2048
    for _ in range(1000):
        known.look(payload, 100)
    (same_size,) = known.by_size.values()
    assert [each.spans for each in same_size] == sorted((e.spans for e in same_size), reverse=True)
    assert same_size[0].spans == 8
    result = sift(payload, known.by_size)
    assert result
    assert (result[0].spans, result[0].left) == (100, 0)


def test_a_shape_does_not_reach_beyond_the_end_of_its_scope() -> None:
    """What follows a scope entry begins with the tag that a span has, too."""
    plain = Span(trace_id=TRACE, span_id=bytes(8), name="may be a scope entry as well")
    known = taught(FIRST, plain)
    one, two = (framed(span)[0] for span in (FIRST, plain))
    for _ in range(10):
        known.look(request(*(4 * [one, two])), 8)
    assert known.by_size[len(one)][0].spans == 2
    entry = b"\x12" + wire.varint(len(one)) + one + two
    payload = b"\x0a" + wire.varint(len(entry)) + entry
    result = sift(payload, known.by_size)
    assert result
    assert (result[0].spans, result[0].left) == (wire.count(payload, TRACES)[0], 1)
    assert [shape.size for shape in result[1]] == [len(one)]


def test_shapes_in_common_are_few_and_small() -> None:
    """Spans in ever other orders: what is learned one by one stays."""
    kinds = [made(path="/" + "x" * size, parent=b"parentid") for size in range(1, 12)]
    known = taught(*kinds)
    single = {size: each for size, (each,) in known.by_size.items()}
    large = framed(made(path="/" + "y" * 1500))[0]
    raws = [framed(kind)[0] for kind in kinds]
    rng = random.Random(1)
    joint = []
    with patch.object(shapes, "_LOOK", 1), patch.object(shapes, "_LOOK_SELDOM", 1):
        known._until_look = 1
        for _ in range(300):
            rng.shuffle(raws)
            some = 4 * raws[: rng.randrange(2, 12)]
            known.look(request(*some, large, large), len(some) + 2)
            several = [e for found in known.by_size.values() for e in found if e.spans > 1]
            joint.append(len(several))
            assert all(e.size <= 2048 for e in several)
            assert max(map(len, known.by_size.values())) <= 4
    assert max(joint) == 16
    assert min(joint[20:]) < 16
    assert {size: found[-1] for size, found in known.by_size.items()} == single


def test_no_shape_is_made_twice_for_what_reaches_beyond_its_scope() -> None:
    plain = Span(trace_id=TRACE, span_id=bytes(8), name="may be a scope entry as well")
    known = taught(FIRST, plain)
    one, two = (framed(span)[0] for span in (FIRST, plain))
    entry = 8 * (b"\x12" + wire.varint(len(one)) + one + two)
    payload = b"\x0a" + wire.varint(len(entry)) + entry
    with patch.object(shapes, "_LOOK", 1), patch.object(shapes, "_LOOK_SELDOM", 1):
        known._until_look = 1
        for _ in range(100):
            known.look(request(*(4 * [one, two])), 8)
            known.look(payload, wire.count(payload, TRACES)[0])
    assert known.by_size[len(one)][0].spans == 2
    assert [each.spans for each in known.by_size[len(one)]] == sorted(
        {each.spans for each in known.by_size[len(one)]}, reverse=True
    )


def kept(size: int) -> bytes:
    """A span that stays, of so many bytes with its frame."""
    raw = framed(made(path="/kept/" + "k" * 200))[0]
    return framed(made(path="/kept/" + "k" * (200 + size - len(raw))))[0]


def test_sizes_that_many_spans_have_which_stay_become_usual() -> None:
    known = taught(FIRST)
    one = framed(FIRST)[0]
    sizes = [size for number, size in enumerate(range(300, 310)) for _ in range(number + 3)]
    payload = request(one, *map(kept, sizes), one, kept(5000))
    for _ in range(100):
        known.look(payload, len(sizes) + 3)
    assert list(known.usual.sizes) == list(range(309, 301, -1))
    plain, quick = sift(payload, known.by_size), sift(payload, known.by_size, known.usual)
    assert quick == plain
    assert quick
    assert quick[0].spans == wire.count(payload, TRACES)[0] == len(sizes) + 3


def test_what_is_usual_stays_until_others_are_worthwhile() -> None:
    known = taught(FIRST)
    before = Counter({300: 90, 400: 10, 500: 3, 20: 100, 20_000: 100})
    known._note_usual(before)
    assert list(known.usual.sizes) == [300, 400]  # Of other sizes too few, or too small or large.
    usual = known.usual
    known._note_usual(before + Counter({600: 30}))
    assert known.usual is usual
    known._note_usual(before + Counter({600: 60}))
    assert list(known.usual.sizes) == [300, 600, 400]
    known._note_usual(Counter({len(framed(FIRST)[0]): 1000}))
    assert list(known.usual.sizes) == [300, 600, 400]


def test_a_size_that_gets_a_shape_is_not_usual_any_more() -> None:
    """Else what is filtered would be passed by."""
    other = made(path="/" + "x" * 100)
    raw, body = framed(other)
    known = taught(FIRST)
    known._note_usual(Counter({len(raw): 10, len(raw) + 1: 10}))
    assert list(known.usual.sizes) == [len(raw), len(raw) + 1]
    with patch.object(shapes, "_PAUSE", 0), patch.object(shapes, "_SEEN", 1):
        known.learn(raw, 0, body, len(raw), 1)
    assert list(known.usual.sizes) == [len(raw) + 1]
    result = sift(request(raw, raw), known.by_size, known.usual)
    assert result
    assert (result[0].spans, result[0].left) == (2, 0)


def test_usual_spans_end_where_their_scope_does() -> None:
    """What follows has the same tag; here it has the size of a usual span as well."""
    known = taught(FIRST)
    one = framed(FIRST)[0]
    second = framed(kept(300) + one)[0]
    known._note_usual(Counter({300: 10, len(second): 10}))
    assert list(known.usual.sizes) == [300, len(second)]
    payload = framed(framed(kept(300))[0] + second)[0]
    payload = b"\x0a" + payload[1:]
    result = sift(payload, known.by_size, known.usual)
    assert result == sift(payload, known.by_size)
    assert result
    assert (result[0].spans, result[0].left) == (3, 2)
    # A span that is longer than its scope is nobody's.
    short = framed(kept(300)[:-1])[0]
    payload = b"\x0a" + framed(short + kept(300))[0][1:]
    assert sift(payload, known.by_size, known.usual) is None


def test_up_to_eight_usual_spans_pass_at_once() -> None:
    passing = usual([300, 320]).passing
    for number in range(1, 11):
        sizes = [300 if n % 2 else 320 for n in range(number)]
        payload = b"".join(map(kept, sizes))
        match = passing(payload, 0, len(payload))
        assert match
        assert match.lastindex == min(number, 8)
        assert match.end() == sum(sizes[:8])
        assert not passing(payload, len(payload) - sizes[-1], len(payload) - 1)
    assert not passing(kept(310), 0, 310)
