r"""OTLP/JSON: Export requests to the protobuf bytes that the pipeline carries, and the answers.

One pass over the bytes of the request, driven by a table of all fields (:mod:`proto_stubs`,
generated from the descriptors), writes protobuf as it goes. No tree of objects is built and no
message class is imported, so what a request costs follows from its size, whatever is in it:
beside the request itself, at most three times the larger of its size and ``limit`` in memory
(a parsed tree of ``[{},{},...`` takes over twenty times the text), and time in proportion to
its size.

The JSON is that of the OTLP specification 1.11, "JSON Protobuf Encoding", which is protobuf's
with these differences: ids are hexadecimal in any case, enums are integers, unknown fields are
ignored. Where a receiver may choose:

- Field names in their original form (``resource_spans``) and enums by name are not valid to
  send, but taken: the Collector takes them, and ignoring them would lose data in silence.
- ``null`` is an absent field; as an element of an array it is an error.
- A field that occurs twice, or two members of a oneof, are an error, as in protobuf's parsers.
- Integers may have a fraction or exponent that leaves them whole (``1.0``, ``1e3``), numbers may
  be strings, floating point has ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
- ``profileId`` is 16 bytes: 32 hexadecimal digits, else base64, which has 22 or 24 characters.
- Base64 is standard or URL-safe, with or without padding. Ids may have any length: whether one
  is valid is for the collector to say.
- A lone surrogate (``\ud800``), which JavaScript sends when it cuts a string inside a character,
  becomes U+FFFD; protobuf's strings cannot hold it.
- Messages nest 100 deep at most, protobuf's own limit: a deeper one no collector would take.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple, NoReturn, TypeAlias

from proto_stubs import SignalSchema
from proto_stubs.json_fields import ENUMS, MESSAGES, REJECTED, Field

__all__ = ["MAX_DEPTH", "InvalidJsonError", "JsonTooLargeError", "response", "to_protobuf"]

MAX_DEPTH: Final = 100
"""Messages inside messages, the request included."""


class InvalidJsonError(ValueError):
    """The bytes are not JSON, or not the request they should be; the text says what and where."""


class JsonTooLargeError(ValueError):
    """As protobuf the request is larger than the limit."""


def to_protobuf(body: bytes, schema: SignalSchema, *, limit: int) -> bytes:
    """Convert one Export request from OTLP/JSON.

    Args:
        body: UTF-8, a byte order mark is skipped.
        schema: the signal.
        limit: the largest result, in bytes.

    Raises:
        InvalidJsonError: not JSON, or a value that its field cannot hold.
        JsonTooLargeError: the result is larger than ``limit``. Protobuf is usually smaller than
            the JSON, but an array of one-digit numbers becomes several times as large.
    """
    _check_utf8(body)
    reader = _Reader(body, limit)
    try:
        reader.request(_TABLES[schema.request])
    except IndexError:
        raise InvalidJsonError(f"not valid JSON: ends early, at byte {len(body)}") from None
    return bytes(reader.out)


def response(schema: SignalSchema, rejected: int = 0, message: str = "") -> bytes:
    """The Export response of a signal as JSON; empty without a partial success.

    Source: OTLP specification, "Full Success" and "Partial Success".
    """
    if not rejected and not message:
        return b"{}"
    partial: dict[str, str] = {}
    if rejected:
        partial[REJECTED[schema.name]] = str(rejected)
    if message:
        partial["errorMessage"] = message
    return json.dumps({"partialSuccess": partial}).encode("ascii")


# Lexical grammar (RFC 8259). Every repetition is possessive: nothing is tried twice, so time and
# memory do not depend on what a string looks like. White space after a token belongs to it.
_SPACE: Final = rb"[ \t\n\r]*+"
_PLAIN: Final = rb'"([^"\\\x00-\x1f]*+)"'
_TEXT: Final = (
    rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+'  # escapes too
)
_NUMBER: Final = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+"

_spaces = re.compile(_SPACE).match
_member = re.compile(_SPACE + b'"(' + _TEXT + b')"' + _SPACE + b":" + _SPACE).match
_scalar = re.compile(
    b'(?:%b|(%b)|(true|false|null)|"(%b)")%b' % (_PLAIN, _NUMBER, _TEXT, _SPACE)
).match
_STRING, _NUMERIC, _LITERAL, _ESCAPED = 1, 2, 3, 4  # groups of _scalar

_number = re.compile(_NUMBER).fullmatch
_short_integer = re.compile(rb"-?[0-9]{1,20}").fullmatch
_base64 = re.compile(rb"[A-Za-z0-9+/_-]*+={0,2}").fullmatch
_sixteen_bytes_hex = re.compile(rb"[0-9a-fA-F]{32}").fullmatch
# Pieces of a string that holds escapes: no character and no surrogate pair is cut in two.
_pieces = re.compile(
    rb"(?:[\x20-\x5b\x5d-\x7f]{1,4096}+|[\xc2-\xf4][\x80-\xbf]{1,3}"
    rb"|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.){1,64}+"
).finditer
_LONG: Final = 65536

_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_ARRAY, _CLOSE_ARRAY, _COMMA, _N = b"{}[],n"


class _Kind(NamedTuple):
    """How a scalar is written: its wire type, its encoder, and what stands for "not set"."""

    wire_type: int
    encode: Callable[[int, bytes], bytes]
    """Group of ``_scalar`` and its text to the wire format; raises ValueError."""
    zero: bytes


# What to do with a field.
_ONE_STRING, _ONE_SCALAR, _ONE_MESSAGE, _MANY_STRINGS, _PACKED, _MANY_MESSAGES, _ATTRIBUTES = range(
    7
)

_Table: TypeAlias = "dict[bytes, _Entry]"


class _Entry(NamedTuple):
    mode: int
    bit: int
    """Of the field, or of the oneof it belongs to: tells a second occurrence."""
    tag: bytes
    name: str
    presence: bool
    """The default value is written too."""
    encode: Callable[[int, bytes], bytes]
    zero: bytes
    table: _Table


class _Reader:
    """One request: where the JSON is read and the protobuf written."""

    __slots__ = ("body", "limit", "out")

    def __init__(self, body: bytes, limit: int) -> None:
        self.body = body
        self.limit = limit
        self.out = bytearray()

    def request(self, table: _Table) -> None:
        """The whole document."""
        body = self.body
        start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
        position = _after_space(body, start)
        if body[position] != _OPEN_OBJECT:
            self.fail(position, "expected an object")
        position = self.message(position + 1, table, 1)
        if position != len(body):
            self.fail(position, "expected the end")

    def message(self, position: int, table: _Table, depth: int) -> int:
        """The members of an object, from after its ``{`` to after its ``}`` and white space."""
        body, out = self.body, self.out
        if depth > MAX_DEPTH:
            self.fail(position, f"nested more than {MAX_DEPTH} deep")
        found = _member(body, position)
        if found is None:
            position = _after_space(body, position)
            return self.close(position, _CLOSE_OBJECT, "a field name or '}'")
        seen = 0
        while True:
            key, position = found[1], found.end()
            entry = table.get(key) or (table.get(_unescape(key)) if b"\\" in key else None)
            if entry is None:
                position = self.skip(position)
            elif body[position] == _N and body.startswith(b"null", position):
                position = _after_space(body, position + 4)
            else:
                if seen & entry.bit:
                    self.fail(position, f"{entry.name}: given twice, or beside its alternative")
                seen |= entry.bit
                mode = entry.mode
                if mode <= _ONE_SCALAR:
                    position = self.scalar(position, entry)
                elif mode == _ONE_MESSAGE:
                    position = self.nested(position, entry, depth)
                else:
                    position = self.array(position, entry, depth)
                if len(out) > self.limit:
                    raise JsonTooLargeError(f"larger than {self.limit} bytes as protobuf")
            if body[position] != _COMMA:
                return self.close(position, _CLOSE_OBJECT, "',' or '}'")
            found = _member(body, position + 1)
            if found is None:
                self.fail(position + 1, "expected a field name")

    def scalar(self, position: int, entry: _Entry) -> int:
        """One value that is neither object nor array; written unless it is the default."""
        found = _scalar(self.body, position)
        if found is None:
            self.fail(position, f"{entry.name}: expected a value")
        kind = found.lastindex or 0
        text: bytes = found[kind]
        if kind == _ESCAPED:
            kind, text = _STRING, _unescape(text)
        if entry.mode == _ONE_STRING and kind == _STRING:
            if text or entry.presence:
                self.out += entry.tag + _varint(len(text))
                self.out += text  # apart: a large one is copied once
            return found.end()
        try:
            value = entry.encode(kind, text)
        except ValueError as exc:
            self.fail(position, f"{entry.name}: {exc}")
        if entry.presence or value != entry.zero:
            self.out += entry.tag + value
        return found.end()

    def nested(self, position: int, entry: _Entry, depth: int) -> int:
        """One message, from its ``{``."""
        out = self.out
        if self.body[position] != _OPEN_OBJECT:
            self.fail(position, f"{entry.name}: expected an object")
        out += entry.tag
        out.append(0)
        mark = len(out)
        position = self.message(position + 1, entry.table, depth + 1)
        size = len(out) - mark
        if size < 0x80:
            out[mark - 1] = size
        else:
            out[mark - 1 : mark] = _varint(size)
        return position

    def array(self, position: int, entry: _Entry, depth: int) -> int:
        """A repeated field, from its ``[``."""
        body = self.body
        if body[position] != _OPEN_ARRAY:
            self.fail(position, f"{entry.name}: expected an array")
        position = _after_space(body, position + 1)
        if body[position] == _CLOSE_ARRAY:
            return _after_space(body, position + 1)
        if entry.mode == _PACKED:
            return self.packed(position, entry)
        if entry.mode == _MANY_STRINGS:
            return self.strings(position, entry)
        return self.messages(position, entry, depth)

    def messages(self, position: int, entry: _Entry, depth: int) -> int:
        """The elements of an array of messages, from the first to after the ``]``."""
        body, out = self.body, self.out
        attributes = entry.mode == _ATTRIBUTES and depth < MAX_DEPTH - 1
        while True:
            if attributes:
                while found := _attribute(body, position):
                    out += _encode_attribute(entry.tag, found)
                    position = found.end()
            position = self.nested(position, entry, depth)
            if len(out) > self.limit:
                raise JsonTooLargeError(f"larger than {self.limit} bytes as protobuf")
            if body[position] != _COMMA:
                return self.close(position, _CLOSE_ARRAY, "',' or ']'")
            position = _after_space(body, position + 1)

    def strings(self, position: int, entry: _Entry) -> int:
        """The elements of an array of strings, from the first to after the ``]``."""
        body = self.body
        while True:
            position = self.scalar(position, entry)
            if body[position] != _COMMA:
                return self.close(position, _CLOSE_ARRAY, "',' or ']'")
            position = _after_space(body, position + 1)

    def packed(self, position: int, entry: _Entry) -> int:
        """The elements of an array of numbers, from the first to after the ``]``."""
        body, limit, encode = self.body, self.limit, entry.encode
        values = bytearray()
        while True:
            found = _scalar(body, position)
            if found is None:
                self.fail(position, f"{entry.name}: expected a number")
            kind = found.lastindex or 0
            text: bytes = found[kind]
            if kind == _ESCAPED:
                kind, text = _STRING, _unescape(text)
            try:
                values += encode(kind, text)
            except ValueError as exc:
                self.fail(position, f"{entry.name}: {exc}")
            if len(values) > limit:
                raise JsonTooLargeError(f"larger than {limit} bytes as protobuf")
            position = found.end()
            if body[position] != _COMMA:
                break
            position = _after_space(body, position + 1)
        self.out += entry.tag + _varint(len(values))
        self.out += values
        return self.close(position, _CLOSE_ARRAY, "',' or ']'")

    def skip(self, position: int) -> int:
        """A value that nobody asked for, which must be JSON all the same.

        However deep it is, it costs one byte a level.
        """
        body, stack = self.body, bytearray()
        while True:
            first = body[position]
            if first == _OPEN_OBJECT:
                found = _member(body, position + 1)
                if found is not None:
                    stack.append(_CLOSE_OBJECT)
                    position = found.end()
                    continue
                position = _after_space(body, position + 1)
                position = self.close(position, _CLOSE_OBJECT, "a field name or '}'")
            elif first == _OPEN_ARRAY:
                position = _after_space(body, position + 1)
                if body[position] != _CLOSE_ARRAY:
                    stack.append(_CLOSE_ARRAY)
                    continue
                position = _after_space(body, position + 1)
            else:
                found = _scalar(body, position)
                if found is None:
                    self.fail(position, "expected a value")
                position = found.end()
            while stack and body[position] != _COMMA:
                position = self.close(position, stack[-1], f"',' or '{chr(stack[-1])}'")
                stack.pop()
            if not stack:
                return position
            position = _after_space(body, position + 1)
            if stack[-1] == _CLOSE_OBJECT:
                found = _member(body, position)
                if found is None:
                    self.fail(position, "expected a field name")
                position = found.end()

    def close(self, position: int, closing: int, expected: str) -> int:
        """The end of an object or array; its position and that of white space after it."""
        if self.body[position] != closing:
            self.fail(position, f"expected {expected}")
        return _after_space(self.body, position + 1)

    def fail(self, position: int, what: str) -> NoReturn:
        if position >= len(self.body):
            raise IndexError  # told apart in one place, as for every read beyond the end
        raise InvalidJsonError(f"not valid OTLP/JSON at byte {position}: {what}")


def _after_space(body: bytes, position: int) -> int:
    found = _spaces(body, position)
    return found.end() if found else position


def _check_utf8(body: bytes) -> None:
    """Raise InvalidJsonError unless the bytes are UTF-8; piecemeal, so that it costs no copy."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _LONG):
            decoder.decode(view[start : start + _LONG])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as exc:
        raise InvalidJsonError(f"not valid JSON: not UTF-8 ({exc.reason})") from None


def _unescape(text: bytes) -> bytes:
    """The UTF-8 of a string, from between its quotes."""
    if len(text) <= _LONG:
        return _unescape_piece(text)
    out = bytearray()
    for found in _pieces(text):
        out += _unescape_piece(found[0])
    return bytes(out)


def _unescape_piece(text: bytes) -> bytes:
    string: str = json.loads(b'"' + text + b'"')
    try:
        return string.encode()
    except UnicodeEncodeError:
        units = string.encode("utf-16-le", "surrogatepass")
        return units.decode("utf-16-le", "replace").encode()


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(kind: int, text: bytes, low: int, high: int) -> int:
    if kind == _LITERAL:
        raise ValueError("expected an integer")
    if _short_integer(text):
        value = int(text)
    else:
        if not _number(text):
            raise ValueError("expected an integer")
        exact = Decimal(text.decode("ascii"))
        # Looked at before it is written out: an exponent may stand for gigabytes of digits.
        if exact.adjusted() > 20:
            raise ValueError("out of range")
        if exact != exact.to_integral_value():
            raise ValueError("expected an integer")
        value = int(exact)
    if not low <= value <= high:
        raise ValueError("out of range")
    return value


def _varint_of(bits: int, *, signed: bool) -> Callable[[int, bytes], bytes]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def encode(kind: int, text: bytes) -> bytes:
        # A negative number has ten bytes, of 32 bits too (protobuf encoding, "Signed Integers").
        return _varint(_integer(kind, text, low, high) & 0xFFFF_FFFF_FFFF_FFFF)

    return encode


def _zigzag_of(bits: int) -> Callable[[int, bytes], bytes]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def encode(kind: int, text: bytes) -> bytes:
        value = _integer(kind, text, low, high)
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)

    return encode


def _fixed_of(bits: int, *, signed: bool) -> Callable[[int, bytes], bytes]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    layout = "<" + {32: "I", 64: "Q"}[bits]
    pack = struct.Struct(layout.lower() if signed else layout).pack

    def encode(kind: int, text: bytes) -> bytes:
        return pack(_integer(kind, text, low, high))

    return encode


_pack_double = struct.Struct("<d").pack
_NOT_FINITE = {b"NaN": float("nan"), b"Infinity": float("inf"), b"-Infinity": float("-inf")}


def _double(kind: int, text: bytes) -> bytes:
    if kind == _STRING and text in _NOT_FINITE:
        return _pack_double(_NOT_FINITE[text])
    if not _number(text):
        raise ValueError("expected a number")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return _pack_double(value)


def _bool(kind: int, text: bytes) -> bytes:
    if kind != _LITERAL or text == b"null":
        raise ValueError("expected true or false")
    return b"\x01" if text == b"true" else b"\x00"


def _enum_of(names: dict[str, int]) -> Callable[[int, bytes], bytes]:
    known = {name.encode(): _varint(number) for name, number in names.items()}
    integer = _varint_of(32, signed=True)

    def encode(kind: int, text: bytes) -> bytes:
        if kind == _STRING and text in known:
            return known[text]
        try:
            # A number without a name is kept: newer peers know it.
            return integer(kind, text)
        except ValueError:
            raise ValueError("expected the number of an enum's value") from None

    return encode


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _hex(kind: int, text: bytes) -> bytes:
    if kind == _STRING:
        try:
            return _sized(binascii.unhexlify(text))
        except binascii.Error:
            pass
    raise ValueError("expected hexadecimal digits, two for each byte")


def _bytes(kind: int, text: bytes) -> bytes:
    # A single character left over is no byte; a2b_base64 would let it pass.
    if kind == _STRING and _base64(text) and len(digits := text.rstrip(b"=")) % 4 != 1:
        padded = digits.ljust(-(-len(digits) // 4) * 4, b"=")
        return _sized(base64.b64decode(padded.translate(_URL_SAFE)))
    raise ValueError("expected base64")


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _profile_id(kind: int, text: bytes) -> bytes:
    if kind == _STRING and _sixteen_bytes_hex(text):
        return _hex(kind, text)
    return _bytes(kind, text)


def _string(kind: int, text: bytes) -> bytes:
    if kind != _STRING:
        raise ValueError("expected a string")
    return _sized(text)


_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
_KINDS: Final = {
    "int32": _Kind(_VARINT, _varint_of(32, signed=True), b"\0"),
    "int64": _Kind(_VARINT, _varint_of(64, signed=True), b"\0"),
    "uint32": _Kind(_VARINT, _varint_of(32, signed=False), b"\0"),
    "uint64": _Kind(_VARINT, _varint_of(64, signed=False), b"\0"),
    "sint32": _Kind(_VARINT, _zigzag_of(32), b"\0"),
    "sint64": _Kind(_VARINT, _zigzag_of(64), b"\0"),
    "bool": _Kind(_VARINT, _bool, b"\0"),
    "fixed32": _Kind(_FIXED32, _fixed_of(32, signed=False), bytes(4)),
    "fixed64": _Kind(_FIXED64, _fixed_of(64, signed=False), bytes(8)),
    "sfixed32": _Kind(_FIXED32, _fixed_of(32, signed=True), bytes(4)),
    "sfixed64": _Kind(_FIXED64, _fixed_of(64, signed=True), bytes(8)),
    "double": _Kind(_FIXED64, _double, bytes(8)),
    "bytes": _Kind(_SIZED, _bytes, b"\0"),
    "string": _Kind(_SIZED, _string, b"\0"),
    "message": _Kind(_SIZED, _string, b""),
}
# By name: OTLP's deviation from protobuf's JSON mapping goes by the names of the fields.
_IDS: Final = {
    "trace_id": _hex,
    "span_id": _hex,
    "parent_span_id": _hex,
    "profile_id": _profile_id,
}
_KEY_VALUE: Final = "opentelemetry.proto.common.v1.KeyValue"
_ANY_VALUE: Final = "opentelemetry.proto.common.v1.AnyValue"


def _entry(field: Field, bit: int) -> _Entry:
    kind = (
        _Kind(_VARINT, _enum_of(ENUMS[field.of]), b"\0")
        if field.type == "enum"
        else _KINDS[field.type]
    )
    encode = _IDS[field.name] if field.type == "bytes" and field.name in _IDS else kind.encode
    wire_type = kind.wire_type
    table: _Table = {}
    if field.type == "message":
        mode = _ONE_MESSAGE
        if field.repeated:
            mode = _ATTRIBUTES if field.of == _KEY_VALUE else _MANY_MESSAGES
        table = _TABLES[field.of]
    elif field.type == "string":
        mode = _MANY_STRINGS if field.repeated else _ONE_STRING
    elif field.repeated:
        mode, wire_type = _PACKED, _SIZED
    else:
        mode = _ONE_SCALAR
    return _Entry(
        mode=mode,
        bit=bit,
        tag=_varint(field.number << 3 | wire_type),
        name=field.json_name,
        presence=bool(field.oneof) or field.repeated,
        encode=encode,
        zero=kind.zero,
        table=table,
    )


_TABLES: Final[dict[str, _Table]] = {name: {} for name in MESSAGES}


def _fill_tables() -> None:
    for message, fields in MESSAGES.items():
        bits: dict[str, int] = {}
        for field in fields:
            bit = bits.setdefault(field.oneof or field.name, 1 << len(bits))
            entry = _entry(field, bit)
            _TABLES[message][field.name.encode()] = entry
            _TABLES[message][field.json_name.encode()] = entry


_fill_tables()

# Attributes are most of a request, and nearly all look like this: {"key": "...", "value":
# {"stringValue": "..."}}. One match and one write for those; everything else goes the general way
# (an escaped string, another type, an unknown field, another order). Followed by a comma, so that
# the last element is left to the caller, who knows how an array ends.
_attribute = re.compile(
    rb'\{W"key"W:W"([^"\\\x00-\x1f]*+)"W,W"value"W:W\{W'
    rb'(?:"stringValue"W:W"([^"\\\x00-\x1f]*+)"|"intValue"W:W(?:"(-?[0-9]{1,18})"|(0|-?[1-9][0-9]{0,17}))'
    rb'|"boolValue"W:W(true|false))W\}W\}W,W'.replace(b"W", _SPACE)
).match
_KEY_TAG: Final = _TABLES[_KEY_VALUE][b"key"].tag
_VALUE_TAG: Final = _TABLES[_KEY_VALUE][b"value"].tag
_STRING_TAG: Final = _TABLES[_ANY_VALUE][b"stringValue"].tag
_INT_TAG: Final = _TABLES[_ANY_VALUE][b"intValue"].tag
_BOOL_TAG: Final = _TABLES[_ANY_VALUE][b"boolValue"].tag


def _encode_attribute(tag: bytes, found: re.Match[bytes]) -> bytes:
    key, text, quoted, bare, boolean = found.groups()
    if text is not None:
        value = _STRING_TAG + _varint(len(text)) + text
    elif boolean is not None:
        value = _BOOL_TAG + (b"\x01" if boolean == b"true" else b"\x00")
    else:
        value = _INT_TAG + _varint(int(quoted or bare) & 0xFFFF_FFFF_FFFF_FFFF)
    start = _KEY_TAG + _varint(len(key)) + key if key else b""
    start += _VALUE_TAG + _varint(len(value))
    return tag + _varint(len(start) + len(value)) + start + value
