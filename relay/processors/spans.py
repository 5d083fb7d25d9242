"""Spans inside a traces request: where they stand, what the filters ask of one, leaving some out.

Reads what upb reads (see :mod:`relay.wire`), whatever the encoding: fields in any order, repeated
ones (of a singular field the last wins, messages merge), overlong varints, unknown fields, groups.
The ways that SDKs write are walked inline, since these loops run for every span of a request in
which something is to be filtered; everything else goes through :func:`relay.wire.fields`.

Source: protobuf documentation, "Encoding"; OpenTelemetry semantic conventions, "HTTP spans".
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from proto_stubs import (
    ANYVALUE_ARRAY_VALUE_FIELD,
    ANYVALUE_BOOL_VALUE_FIELD,
    ANYVALUE_BYTES_VALUE_FIELD,
    ANYVALUE_DOUBLE_VALUE_FIELD,
    ANYVALUE_INT_VALUE_FIELD,
    ANYVALUE_KVLIST_VALUE_FIELD,
    ANYVALUE_STRING_VALUE_FIELD,
    KEYVALUE_KEY_FIELD,
    KEYVALUE_VALUE_FIELD,
    SPAN_ATTRIBUTES_FIELD,
    SPAN_KIND_FIELD,
    SPAN_KIND_INTERNAL,
    SPAN_KIND_SERVER,
    SPAN_PARENT_SPAN_ID_FIELD,
    SPAN_SPAN_ID_FIELD,
    SPAN_TRACE_ID_FIELD,
    TRACES,
)
from relay import wire
from relay.wire import LEN, MalformedError

I64: Final = 1
I32: Final = 5

__all__ = [
    "ASGI_EVENT",
    "DECIDING_KEYS",
    "KEY_SIZES",
    "NOTHING_USUAL",
    "URL_KEYS",
    "USUAL",
    "Known",
    "Layout",
    "Sifted",
    "SpanFacts",
    "Usual",
    "attribute",
    "cut",
    "layout",
    "path_of_url",
    "read",
    "sift",
    "usual",
    "without",
]

ASGI_EVENT: Final = b"asgi.event.type"
"""Attribute of the spans around an ASGI application's send and receive calls."""
URL_KEYS: Final = (b"url.path", b"http.target", b"http.url")
"""Attributes that hold a request's path; the first that a span has counts."""

_RESOURCES: Final = TRACES.resources << 3 | LEN
_SCOPES: Final = TRACES.scopes << 3 | LEN
_SPANS: Final = TRACES.units << 3 | LEN
_TRACE_ID: Final = SPAN_TRACE_ID_FIELD << 3 | LEN
_SPAN_ID: Final = SPAN_SPAN_ID_FIELD << 3 | LEN
_PARENT_ID: Final = SPAN_PARENT_SPAN_ID_FIELD << 3 | LEN
_KIND: Final = SPAN_KIND_FIELD << 3
_ATTRIBUTES: Final = SPAN_ATTRIBUTES_FIELD << 3 | LEN
_KEY: Final = KEYVALUE_KEY_FIELD << 3 | LEN
_VALUE: Final = KEYVALUE_VALUE_FIELD << 3 | LEN
_STRING: Final = ANYVALUE_STRING_VALUE_FIELD << 3 | LEN
_RESOURCES_TAG: Final = wire.varint(_RESOURCES)
_SCOPES_TAG: Final = wire.varint(_SCOPES)
_STRING_INDEX: Final = 8 << 3
"""AnyValue.string_value_strindex, a reference into the dictionary of a profiles request."""
_NO_STRING: Final = frozenset(
    (
        ANYVALUE_BOOL_VALUE_FIELD << 3,
        ANYVALUE_INT_VALUE_FIELD << 3,
        ANYVALUE_DOUBLE_VALUE_FIELD << 3 | 1,
        ANYVALUE_ARRAY_VALUE_FIELD << 3 | LEN,
        ANYVALUE_KVLIST_VALUE_FIELD << 3 | LEN,
        ANYVALUE_BYTES_VALUE_FIELD << 3 | LEN,
        _STRING_INDEX,
    )
)
"""Tags of the other members of AnyValue's oneof."""

_IDS: Final = frozenset((_TRACE_ID, _SPAN_ID, _PARENT_ID))
DECIDING_KEYS: Final = (*URL_KEYS, ASGI_EVENT)
"""All attributes that decide what becomes of a span."""
KEY_SIZES: Final = frozenset(len(key) for key in DECIDING_KEYS)
"""Their lengths."""

_GONE: Final = re.compile(rb"[^\x00]+")
"""A run of marked spans."""

_SHORT: Final = 256
"""Bytes that are copied at once; of more a view is taken, which has about so many itself."""
_MANY: Final = 1 << 17
"""From this many spans on, offsets are kept in arrays (4 bytes each), not in lists (40)."""


class SpanFacts(NamedTuple):
    """What the filters ask of a span. Ids are as they stand, of whatever length."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    kind: int
    path: bytes | None
    """Of a server span, the path of its request; None: this is no server span."""
    event: bool
    """Whether this is an ASGI send or receive span."""


# One span.


def attribute(buf: bytes, start: int, end: int) -> tuple[bytes, bytes | None]:
    """Key and string value of the KeyValue in ``buf[start:end]``; None: no string.

    Raises:
        MalformedError: it does not parse.
    """
    key = b""
    values: list[tuple[int, int]] = []
    for number, kind, at, stop, _ in wire.fields(buf, start, end):
        if number == KEYVALUE_KEY_FIELD and kind == LEN:
            key = buf[at:stop]
        elif number == KEYVALUE_VALUE_FIELD and kind == LEN:
            values.append((at, stop))
    text: bytes | None = None
    # Occurrences of the message are merged: of all members of the oneof in them the last counts.
    for begin, behind in values:
        for number, kind, at, stop, _ in wire.fields(buf, begin, behind):
            tag = number << 3 | kind
            if tag == _STRING:
                text = buf[at:stop]
            elif tag in _NO_STRING:
                text = None
    return key, text


def read(buf: bytes, start: int, end: int) -> SpanFacts:
    """The facts of the Span in ``buf[start:end]``.

    Attribute keys should be unique; of several the first counts.

    Raises:
        MalformedError: the span, or an attribute in it that matters, does not parse.
    """
    try:
        facts = _read_usual(buf, start, end)
    except IndexError:
        facts = None
    return _read_any(buf, start, end) if facts is None else facts


def _read_usual(  # noqa: C901, PLR0912, PLR0915 - one loop, inline: it runs for every candidate
    buf: bytes, pos: int, end: int
) -> SpanFacts | None:
    """As :func:`read` for the encodings that SDKs produce; None for any other.

    Attributes are stepped over after a look at the key that they begin with. That another key
    hides in one (a later occurrence wins) is excluded by counting the key's text in the span.
    """
    start = pos
    trace_id = span_id = parent_id = b""
    kind = 0
    found: dict[bytes, bytes] = {}
    while pos < end:
        tag = buf[pos]
        size = buf[pos + 1]
        if tag == _ATTRIBUTES:
            pos += 2
            if size > 0x7F:
                more = buf[pos]
                if more > 0x7F:
                    return None
                size = size & 0x7F | more << 7
                pos += 1
            if buf[pos] == _KEY and buf[pos + 1] in KEY_SIZES:
                key = buf[pos + 2 : pos + 2 + buf[pos + 1]]
                if key in DECIDING_KEYS:
                    found[key] = buf[pos : pos + size]
            pos += size
        elif tag & 7 == I64 and 8 <= tag < 0x80:
            pos += 9
        elif tag & 7 == LEN and tag not in _IDS and 8 <= tag < 0x80:
            pos += 2
            if size > 0x7F:
                more = buf[pos]
                if more > 0x7F:
                    return None
                size = size & 0x7F | more << 7
                pos += 1
            pos += size
        elif size > 0x7F:
            return None
        elif tag == _TRACE_ID:
            pos += 2 + size
            trace_id = buf[pos - size : pos]
        elif tag == _SPAN_ID:
            pos += 2 + size
            span_id = buf[pos - size : pos]
        elif tag == _PARENT_ID:
            pos += 2 + size
            parent_id = buf[pos - size : pos]
        elif tag == _KIND:
            kind = size
            pos += 2
        elif tag & 7 == I32 and tag > 0x7F:
            # A tag of two bytes: the span's flags.
            pos += 6
        else:
            return None
    if pos != end:
        return None
    path: bytes | None = None
    event = False
    if kind in {SPAN_KIND_SERVER, SPAN_KIND_INTERNAL}:
        texts: dict[bytes, bytes | None] = {}
        for key in DECIDING_KEYS:
            field = found.get(key)
            if buf.count(key, start, end) != (field is not None):
                return None
            if field is not None:
                text = _usual_text(field, len(key))
                if text is None:
                    return None
                texts[key] = text
                if key == URL_KEYS[0] and kind == SPAN_KIND_SERVER:
                    break
        event = kind == SPAN_KIND_INTERNAL and ASGI_EVENT in texts
        path = _server_path(kind, texts, event=event)
    return SpanFacts(trace_id, span_id, parent_id, kind, path, event)


def _usual_text(field: bytes, key: int) -> bytes | None:
    """The string value of a KeyValue that begins with a key of ``key`` bytes.

    None unless key and value are all there is in it, each written once and shortly.
    """
    at = key + 4
    size = len(field) - at - 2
    if (
        0 <= size < 0x7E
        and field[key + 2] == _VALUE
        and field[key + 3] == size + 2
        and field[at] == _STRING
        and field[at + 1] == size
    ):
        return field[at + 2 :]
    return None


def _read_any(buf: bytes, start: int, end: int) -> SpanFacts:
    """As :func:`read`, whatever the encoding."""
    trace_id = span_id = parent_id = b""
    kind = 0
    texts: dict[bytes, bytes | None] = {}
    for number, wiretype, at, stop, value in wire.fields(buf, start, end):
        tag = number << 3 | wiretype
        if tag == _ATTRIBUTES:
            key, text = attribute(buf, at, stop)
            if key in DECIDING_KEYS:
                texts.setdefault(key, text)
        elif tag == _TRACE_ID:
            trace_id = buf[at:stop]
        elif tag == _SPAN_ID:
            span_id = buf[at:stop]
        elif tag == _PARENT_ID:
            parent_id = buf[at:stop]
        elif tag == _KIND:
            # An enum is an int32: of a longer varint the low 32 bits count.
            kind = value & 0xFFFF_FFFF
    event = kind == SPAN_KIND_INTERNAL and ASGI_EVENT in texts
    path = _server_path(kind, texts, event=event)
    return SpanFacts(trace_id, span_id, parent_id, kind, path, event)


def _server_path(kind: int, texts: dict[bytes, bytes | None], *, event: bool) -> bytes | None:
    """The path of a server span's request; None: this is no server span, or names no path.

    An INTERNAL span with no more than ``http.url`` may well describe a call that goes out; server
    instrumentations of the old conventions set ``http.target`` too.
    """
    if event or kind not in {SPAN_KIND_SERVER, SPAN_KIND_INTERNAL}:
        return None
    path = texts.get(URL_KEYS[0])
    if path is None and (target := texts.get(URL_KEYS[1])) is not None:
        path = target.partition(b"?")[0]
    if path is None and kind == SPAN_KIND_SERVER and (url := texts.get(URL_KEYS[2])) is not None:
        path = path_of_url(url)
    # RFC 9110, 4.2.3: an empty path means "/".
    return path if path != b"" else b"/"


def path_of_url(url: bytes) -> bytes:
    """The path of a URL, as it stands; ``b""`` when it has none. What has no scheme is a path."""
    url = url.partition(b"#")[0].partition(b"?")[0]
    _, scheme, rest = url.partition(b"://")
    if not scheme:
        return url
    at = rest.find(b"/")
    return rest[at:] if at >= 0 else b""


# All spans of a request.


class Layout(NamedTuple):
    """Where the spans of a request stand, in order: offsets of the tag, and behind the message.

    ``scopes``: per scope entry with spans the offsets (tag, message, behind it) of its resource
    entry and of itself, and the numbers of its first span and behind its last.
    """

    starts: MutableSequence[int]
    ends: MutableSequence[int]
    scopes: list[tuple[int, int, int, int, int, int, int, int]]

    def before(self, offset: int) -> int:
        """The number of the last span that begins at or before ``offset``, or -1."""
        return bisect_right(self.starts, offset) - 1

    def at(self, offset: int) -> int:
        """The number of the span that ``offset`` lies in, or -1."""
        number = bisect_right(self.starts, offset) - 1
        return number if number >= 0 and offset < self.ends[number] else -1

    def body(self, buf: bytes, number: int) -> int:
        """Where a span's message begins."""
        start = self.starts[number]
        if buf[start] == _SPANS:
            if buf[start + 1] < 0x80:
                return start + 2
            if buf[start + 2] < 0x80:
                return start + 3
        _, _, body, _, _ = next(wire.fields(buf, start, self.ends[number]))
        return body


def _entries(buf: bytes, pos: int, end: int, wanted: int) -> list[tuple[int, int, int]]:
    """Offsets (tag, value, behind it) of a message's length-delimited fields with that tag."""
    found = []
    # There are four bytes behind a tag, but at the end of the payload.
    usual = min(end, len(buf) - 4)
    while pos < end:
        start = pos
        if pos < usual and (tag := buf[pos]) & 7 == LEN and 8 <= tag < 0x80:
            # A length of up to three bytes.
            size = buf[pos + 1]
            pos += 2
            if size > 0x7F:
                size = size & 0x7F | (buf[pos] & 0x7F) << 7
                pos += 1
                if buf[pos - 1] > 0x7F:
                    size |= buf[pos] << 14
                    pos += 1
            if buf[pos - 1] < 0x80 and pos + size <= end:
                if tag == wanted:
                    found.append((start, pos, pos + size))
                pos += size
                continue
        number, kind, value, pos, _ = next(wire.fields(buf, start, end))
        if number << 3 | kind == wanted:
            found.append((start, value, pos))
    return found


def layout(buf: bytes, units: int) -> Layout:
    """Where the ``units`` spans of a request stand.

    Raises:
        MalformedError: the structure is damaged.
    """
    few = units < _MANY
    starts: MutableSequence[int] = [] if few else array("I")
    ends: MutableSequence[int] = [] if few else array("I")
    scopes = []
    for rs_tag, rs_start, rs_end in _entries(buf, 0, len(buf), _RESOURCES):
        for ss_tag, ss_start, ss_end in _entries(buf, rs_start, rs_end, _SCOPES):
            first = len(starts)
            _spans(buf, ss_start, ss_end, starts, ends)
            if len(starts) > first:
                place = rs_tag, rs_start, rs_end, ss_tag, ss_start, ss_end
                scopes.append((*place, first, len(starts)))
    return Layout(starts, ends, scopes)


K = TypeVar("K")

_Part = tuple[int, int, int, Sequence[int] | None]
"""A scope entry out of which something is cut: offsets of its tag, its message, and behind it; then
where what stays of the message begins and ends, in turn. None: the whole entry goes."""
_Cut = tuple[int, int, int, list[_Part] | None]
"""The same of a resource entry, with those of its scope entries out of which something is cut."""


class Sifted(NamedTuple):
    """The spans of a request that are known by their looks, taken out.

    ``spans``, ``left``: how many there are, and without those. ``cuts``: for :func:`cut`.
    """

    spans: int
    left: int
    cuts: list[_Cut]


class Known(NamedTuple, Generic[K]):
    """Spans side by side that are known by their looks.

    ``test``: matches them in the payload, at the offset of the first one's tag. ``told``: what that
    tells. ``size``: their bytes. ``spans``: how many they are.
    """

    test: Callable[[bytes, int], re.Match[bytes] | None]
    told: K
    size: int
    spans: int


class Usual(NamedTuple):
    """Sizes of spans that stay, tag and length included, see :func:`usual`."""

    sizes: Mapping[int, None]
    """In the order in which they are tried."""
    passing: Callable[[bytes, int, int], re.Match[bytes] | None]
    """(payload, where a tag stands, where the scope ends): matches the spans of these sizes that
    stand there side by side, up to :data:`_PASSED`; ``lastindex`` says how many."""


def usual(sizes: Iterable[int]) -> Usual:
    """Passes spans of these sizes (each in :data:`USUAL`) in half the time of a loop."""
    tried = dict.fromkeys(sizes)
    heads = [
        re.escape(bytes((body & 0x7F | 0x80, body >> 7))) + b".{%d}+" % body
        for body in (size - 3 for size in tried)
    ]
    # An alternative that is missing never matches. Each span has a group of its own, empty, since
    # the number of the last one is all that an expression tells about how often it went around.
    span = re.escape(bytes((_SPANS,))) + b"(?:%b)()" % (b"|".join(heads) or rb"(?!)")
    expression = span
    for _ in range(_PASSED - 1):
        expression = b"%b(?:%b|)" % (span, expression)
    return Usual(tried, re.compile(expression, re.DOTALL).match)


USUAL: Final = range(0x80 + 3, 0x4000 + 3)
"""Sizes of spans whose length takes two bytes."""
_PASSED: Final = 8
"""Spans that one match passes at most: more are hardly faster, but take longer to compile."""
NOTHING_USUAL: Final = usual(())


def sift(  # noqa: C901, PLR0912, PLR0915 - three loops in each other; apart they would be calls
    buf: bytes, known: Mapping[int, Sequence[Known[K]]], often: Usual = NOTHING_USUAL
) -> tuple[Sifted, dict[K, list[bytes]]] | None:
    """Count the spans, and find in the same walk those that are known by their looks.

    ``known``: what to try, by the size of the (first) span, tag and length included. ``often``:
    other sizes, of spans to pass. Returns also, by what the first matching test tells, the groups
    that it matched, each time. None when something in the request is not written as all SDKs write
    it; a request that is taken is as well-formed as ``wire.count`` wants it.
    """
    found: defaultdict[K, list[bytes]] = defaultdict(list)
    is_span = _SPANS
    cuts: list[_Cut] = []
    spans = gone = 0
    read3, steps = wire.read3, wire.STEPS
    sizes, passing = often
    pos, request_end = 0, len(buf)
    try:
        while pos < request_end:
            rs_tag = pos
            tag, size = read3(buf, pos)
            if tag != _RESOURCES:
                return None
            if step := steps[size]:
                rs_end = pos + step
                pos += 3 if size & 0x80 else 2
            else:
                _, _, pos, rs_end, _ = next(wire.fields(buf, pos, request_end))
            rs_start = pos
            rs_spans, rs_gone = spans, gone
            parts: list[_Part] = []
            while pos < rs_end:
                ss_tag = pos
                tag, size = read3(buf, pos)
                step = steps[size]
                if tag != _SCOPES:
                    if not step or tag & 7 != LEN or not 8 <= tag < 0x80:
                        return None
                    pos += step
                    continue
                if step:
                    ss_end = pos + step
                    pos += 3 if size & 0x80 else 2
                else:
                    _, _, pos, ss_end, _ = next(wire.fields(buf, pos, rs_end))
                ss_start = pos
                ss_spans, ss_gone = spans, gone
                edges = [pos]
                while pos < ss_end:
                    tag, size = read3(buf, pos)
                    step = steps[size]
                    if not step:
                        return None
                    if tag == is_span:
                        if step in sizes and (run := passing(buf, pos, ss_end)):
                            spans += run.lastindex or 0
                            pos = run.end()
                            continue
                        spans += 1
                        if step in known:
                            for test, told, whole_size, number in known[step]:
                                match = test(buf, pos)
                                if match and pos + whole_size <= ss_end:
                                    found[told].append(match[1])
                                    spans += number - 1
                                    gone += number
                                    step = whole_size
                                    if edges[-1] == pos:
                                        edges[-1] = pos + step
                                    else:
                                        edges += (pos, pos + step)
                                    break
                    elif tag & 7 != LEN or not 8 <= tag < 0x80:
                        return None
                    pos += step
                if pos != ss_end:
                    return None
                if gone > ss_gone:
                    edges.append(ss_end)
                    whole = gone - ss_gone == spans - ss_spans
                    parts.append((ss_tag, ss_start, ss_end, None if whole else edges))
            if pos != rs_end:
                return None
            if parts:
                whole = gone - rs_gone == spans - rs_spans
                cuts.append((rs_tag, rs_start, rs_end, None if whole else parts))
    except (struct.error, MalformedError):  # fewer than three bytes are left, or nothing is right
        return None
    return (Sifted(spans, spans - gone, cuts), found) if pos == request_end else None


def cut(buf: bytes, cuts: Sequence[_Cut]) -> bytes:
    """The request without what ``cuts`` leave out; joined once, however large it is."""
    out: list[bytes | memoryview] = []
    view = memoryview(buf)
    done = 0
    for rs_tag, rs_start, rs_end, parts in cuts:
        out.append(view[done:rs_tag])
        done = rs_end
        if parts is None:
            continue
        head = len(out)
        out.append(b"")  # Not known yet: how long it is going to be.
        pos, missing = rs_start, 0
        for ss_tag, _, ss_end, edges in parts:
            out.append(view[pos:ss_tag])
            pos = ss_end
            missing += ss_end - ss_tag
            if edges is not None:
                pieces = [
                    buf[a:b] if b - a < _SHORT else view[a:b]
                    for a, b in zip(edges[::2], edges[1::2], strict=True)
                ]
                size = sum(map(len, pieces))
                ss_head = _SCOPES_TAG + wire.varint(size)
                out.append(ss_head)
                out += pieces
                missing -= len(ss_head) + size
        out.append(view[pos:rs_end])
        out[head] = _RESOURCES_TAG + wire.varint(rs_end - rs_start - missing)
    out.append(view[done:])
    return b"".join(out)


def _spans(
    buf: bytes,
    pos: int,
    end: int,
    starts: MutableSequence[int],
    ends: MutableSequence[int],
) -> None:
    """Append where the spans in a ScopeSpans stand."""
    begin = starts.append
    # There are two bytes behind a tag, but at the end of the payload.
    usual = min(end, len(buf) - 2)
    while pos < end:
        first = len(starts)
        while pos < usual and buf[pos] == _SPANS:
            size = buf[pos + 1]
            if size < 0x80:
                begin(pos)
                pos += size + 2
            elif (more := buf[pos + 2]) < 0x80:
                begin(pos)
                pos += (more << 7) + size - 0x7D  # (size & 0x7F) + 3
            else:
                break
        if len(starts) > first:
            # They stood side by side.
            ends.extend(starts[first + 1 :])
            ends.append(pos)
        if pos < end:
            number, kind, _, stop, _ = next(wire.fields(buf, pos, end))
            if number << 3 | kind == _SPANS:
                begin(pos)
                ends.append(stop)
            pos = stop
    if pos != end:
        raise MalformedError(f"span before byte {pos} is longer than its scope")


def without(buf: bytes, where: Layout, gone: bytearray) -> bytes:
    """The request without the spans whose byte in ``gone`` is not 0; ``b""`` when none is left.

    Scope and resource entries that have no span left go too; the other ones keep all else that is
    in them. Only tag and length of entries that were cut are written anew.
    """
    if all(gone):
        return b""
    cuts: list[_Cut] = []
    number = 0
    scopes = where.scopes
    while number < len(scopes):
        rs_tag, rs_start, rs_end = scopes[number][:3]
        mine = [scopes[number]]
        while (number := number + 1) < len(scopes) and scopes[number][0] == rs_tag:
            mine.append(scopes[number])
        first, last = mine[0][6], mine[-1][7]
        missing = last - first - gone.count(0, first, last)
        if missing:
            whole = missing == last - first
            parts = (
                None if whole else [_part(s, where, gone) for s in mine if any(gone[s[6] : s[7]])]
            )
            cuts.append((rs_tag, rs_start, rs_end, parts))
    return cut(buf, cuts)


def _part(
    scope: tuple[int, int, int, int, int, int, int, int], where: Layout, gone: bytearray
) -> _Part:
    """What is cut out of a scope entry."""
    _, _, _, ss_tag, ss_start, ss_end, first, last = scope
    if not gone.count(0, first, last):
        return ss_tag, ss_start, ss_end, None
    starts, ends = where.starts, where.ends
    edges = array("I", (ss_start,))
    for run in _GONE.finditer(gone, first, last):
        one, behind = run.span()
        if starts[one + 1 : behind] == ends[one : behind - 1]:
            # Side by side: all at once.
            edges.extend((starts[one], ends[behind - 1]))
        else:
            for start, end in zip(starts[one:behind], ends[one:behind], strict=True):
                edges.extend((start, end))
    edges.append(ss_end)
    return ss_tag, ss_start, ss_end, edges
