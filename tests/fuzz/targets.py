"""What is fuzzed: functions of bytes that raise when a parser breaks its word.

The corpus in tests/corpus is replayed by tests/fuzz/test_corpus.py in every test run;
``python -m tests.campaigns.fuzz`` (``make fuzz``) searches for more. Message classes of protobuf,
RE2 itself and plain models say what is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import re2
from google.protobuf.message import DecodeError

from relay import config, headers, inspect, otlp_json, response, status, wire
from relay.otlp import SIGNALS, SignalSchema
from relay.processors import patterns
from relay.sink import messages
from tests.strategies import request_class
from tests.test_wire import check_count

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]


def _signal(data: bytes) -> tuple[SignalSchema, bytes]:
    """The first byte chooses the signal."""
    return SIGNALS[data[0] % len(SIGNALS)] if data else SIGNALS[0], data[1:]


def _parsed(payload: bytes, schema: SignalSchema) -> Any:
    """The message, or None where the message classes refuse it."""
    try:
        return request_class(schema).FromString(payload)
    except DecodeError:
        return None


def fuzz_wire(data: bytes) -> None:
    """Counting agrees with the message classes; pieces cut anywhere make up the whole."""
    schema, payload = _signal(data)
    if not check_count(payload, schema) or not payload:
        return
    units, items = wire.count(payload, schema)
    size = data[0] * 4
    part, rest = wire.head(payload, schema, items=data[-1], size=size)
    _adds_up(schema, part, rest, units=units, items=items)
    assert part.items <= data[-1]
    assert len(part.payload) <= size
    part, rest = wire.first(payload, schema, units // 2)
    _adds_up(schema, part, rest, units=units, items=items)
    newest = wire.tail(payload, schema, items=data[-1], size=size)
    assert newest.items <= data[-1]
    assert len(newest.payload) <= size
    flags = [bool(number % 3) for number in range(units)]
    kept = wire.keep(payload, schema, flags)
    assert kept.units == (sum(flags) if not schema.whole else kept.units)
    flags = inspect.well_formed(payload, schema)
    assert len(flags) == units
    if _parsed(payload, schema) is not None:
        assert all(flags)


def _adds_up(schema: SignalSchema, *parts: wire.Slice, units: int, items: int) -> None:
    assert sum(part.units for part in parts) == units
    assert sum(part.items for part in parts) == items
    for part in parts:
        if part.units:
            assert wire.count(part.payload, schema) == (part.units, part.items)


def fuzz_json(data: bytes) -> None:
    """What becomes of JSON parses, and is what protobuf's own JSON parser makes of it."""
    schema, body = _signal(data)
    try:
        payload = otlp_json.to_protobuf(body, schema, limit=1 << 20)
    except (otlp_json.InvalidJsonError, otlp_json.JsonTooLargeError):
        return
    ours = _parsed(payload, schema)
    assert ours is not None, "not what the message classes parse"
    with contextlib.suppress(ValueError, RecursionError):
        # Theirs is stricter in places; where both accept it, they have to agree.
        theirs = _parsed(messages.from_json(body, schema), schema)
        assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
            deterministic=True
        )


def fuzz_settings(data: bytes) -> None:
    """Whatever the environment holds: a configuration or faults, never both, never an exception."""
    text = data.decode("utf-8", "surrogateescape")
    environ: dict[str, str] = {}
    names = [setting.name for setting in config.SETTINGS]
    for line in text.split("\n"):
        name, _, value = line.partition("=")
        if name.isdecimal() and name.isascii():
            name = names[int(name[-4:]) % len(names)]
        if name and "\0" not in line:
            environ[name] = value
    loaded = config.load({}, environ)
    assert (loaded.config is None) == bool(loaded.faults)
    for fault in (*loaded.faults, *loaded.warnings):
        assert "\n" not in fault
    with contextlib.suppress(config.UnknownFlagError):
        config.parse_flags(text.split("\n"))


def fuzz_patterns(data: bytes) -> None:
    """A pattern is refused with words, or matches what its kind says."""
    text, _, path = data.partition(b"\n")
    for each in patterns.split(text.decode("utf-8", "surrogateescape")):
        wrong = patterns.check(each)
        if wrong is not None:
            assert wrong
            continue
        pattern = patterns.Pattern(each)
        raw = each.encode("utf-8", "surrogateescape")
        if each.startswith("^"):
            options = re2.Options()
            options.log_errors = False
            options.encoding = re2.Options.Encoding.UTF8
            with contextlib.suppress(re2.error):
                expected = re2.compile(raw, options).match(path) is not None
                assert pattern.matches(path) == expected
        elif each.endswith("*"):
            assert pattern.matches(path) == path.startswith(raw[:-1])
        else:
            assert pattern.matches(path) == (path == raw)
        rules = patterns.PatternSet([each])
        assert rules.matches(path) == (rules.first(path) is not None)


def fuzz_headers(data: bytes) -> None:
    """A headers file is read, and holds what may be sent, or it is refused."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    try:
        found = headers.parse(text, "file")
    except headers.HeadersError:
        return
    for name, value in found:
        assert headers.usable(name)
        assert value.isprintable()
        assert value.isascii()


def fuzz_answers(data: bytes) -> None:
    """What a collector answers never does more harm than to say nothing."""
    schema, body = _signal(data)
    rejected, message = response.partial_success(body, schema)
    assert isinstance(rejected, int)
    message.encode()
    delay = status.retry_delay(body)
    assert delay is None or delay >= 0
    with contextlib.suppress(ValueError):
        status.decode(body)
    with contextlib.suppress(ValueError):
        status.decode_json(body)


TARGETS: Final[Mapping[str, Target]] = {
    "wire": fuzz_wire,
    "json": fuzz_json,
    "settings": fuzz_settings,
    "patterns": fuzz_patterns,
    "headers": fuzz_headers,
    "answers": fuzz_answers,
}
