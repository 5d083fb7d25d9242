"""How the values of settings are written: one kind of value, one parser.

Every parser is a pure function of the text, and says itself how its value is shown. What it
refuses it says in the words of the person who typed it; it never repeats the value, since only
the caller knows whether that is a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote

from relay import addresses
from relay.headers import usable
from relay.processors import patterns as syntax
from relay.receivers import Listen

T_co = TypeVar("T_co", covariant=True)

MAX_INT = 2**31 - 1
"""The largest number that OpenTelemetry settings must take (specification, "Integer")."""

REDACTED = "<redacted>"


class InvalidError(ValueError):
    """The text is not a value of its kind; the message completes "NAME=value: ..."."""


class Parsed(NamedTuple, Generic[T_co]):
    """A value and how reports show it, with what is secret taken out."""

    value: T_co
    shown: str


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A kind of value: how to read it, what it accepts (in words), what it is when unset."""

    parse: Callable[[str], Parsed[T_co]]
    accepts: str
    unset: Parsed[T_co] | None = None
    unit: str = ""


def _refuse(accepts: str) -> NoReturn:
    raise InvalidError(f"expected {accepts}")


def boolean() -> Kind[bool]:
    """``true`` or ``false``, any case, and nothing else (specification, "Boolean")."""
    accepts = "true or false"

    def parse(text: str) -> Parsed[bool]:
        word = text.lower()
        if word not in {"true", "false"}:
            _refuse(accepts)
        return Parsed(word == "true", word)

    return Kind(parse, accepts)


def integer(low: int, high: int = MAX_INT, *, unit: str = "") -> Kind[int]:
    """A whole number within both bounds."""
    accepts = f"a whole number from {low} to {high}"

    def parse(text: str) -> Parsed[int]:
        if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
            _refuse(accepts)
        return Parsed(int(text), str(int(text)))

    return Kind(parse, accepts, unit=unit)


_SIZES = {"": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def size(low: int, high: int = MAX_INT) -> Kind[int]:
    """A size in bytes; the suffixes KiB, MiB and GiB are powers of 1024."""
    accepts = f"bytes, or a number with KiB, MiB or GiB, from {_size(low)} to {_size(high)}"

    def parse(text: str) -> Parsed[int]:
        match = re.fullmatch(r"([0-9]{1,19}) ?(|[KMG]iB)", text, re.IGNORECASE)
        if match is None:
            _refuse(accepts)
        value = int(match[1]) * _SIZES[match[2].lower()]
        if not low <= value <= high:
            _refuse(accepts)
        return Parsed(value, _size(value))

    return Kind(parse, accepts, unit="bytes")


def _size(value: int) -> str:
    for suffix, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if value >= factor and value % factor == 0:
            return f"{value // factor} {suffix}"
    return str(value)


def duration(low: int, high: int = MAX_INT, *, zero: str = "") -> Kind[float]:
    """A time, in seconds once parsed; a plain number is milliseconds, as OpenTelemetry has it.

    ``low`` and ``high`` in milliseconds. ``zero``: what 0 stands for; it is then accepted
    although it is below ``low``.
    """
    accepts = f"milliseconds, or a number with ms or s, from {_time(low)} to {_time(high)}"
    if zero:
        accepts += f", or 0: {zero}"

    def parse(text: str) -> Parsed[float]:
        match = re.fullmatch(r"([0-9]{1,19})(?: ?ms)?|([0-9]{1,16}(?:\.[0-9]{1,6})?) ?s", text)
        if match is None:
            _refuse(accepts)
        millis = float(match[1]) if match[1] is not None else float(match[2]) * 1000
        if millis == 0 and zero:
            return Parsed(0.0, f"0 ({zero})")
        if not low <= millis <= high:
            _refuse(accepts)
        return Parsed(millis / 1000, f"{millis:.16g} ms")

    return Kind(parse, accepts, unit="ms")


def _time(millis: int) -> str:
    return f"{millis // 1000} s" if millis and millis % 1000 == 0 else f"{millis} ms"


def ratio() -> Kind[float]:
    """A number from 0 to 1."""
    accepts = "a number from 0.0 to 1.0"

    def parse(text: str) -> Parsed[float]:
        if not re.fullmatch(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\.", text):
            _refuse(accepts)
        value = float(text)
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            _refuse(accepts)
        return Parsed(value, repr(value))

    return Kind(parse, accepts)


def choice(*words: str) -> Kind[str]:
    """One of some words, any case."""
    accepts = " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"

    def parse(text: str) -> Parsed[str]:
        word = text.lower()
        if word not in words:
            _refuse(accepts)
        return Parsed(word, word)

    return Kind(parse, accepts)


def mode() -> Kind[int]:
    """Permission bits, in octal."""
    accepts = "octal permission bits from 0000 to 0777"

    def parse(text: str) -> Parsed[int]:
        match = re.fullmatch("(?:0o)?([0-7]{1,5})", text)
        if match is None or int(match[1], 8) > 0o777:
            _refuse(accepts)
        value = int(match[1], 8)
        return Parsed(value, f"{value:04o}")

    return Kind(parse, accepts)


def listen() -> Kind[Listen]:
    """Where to listen."""

    def parse(text: str) -> Parsed[Listen]:
        try:
            host, port, path = addresses.parse_listen(text)
        except ValueError as error:
            raise InvalidError(str(error)) from None
        value = Listen(host=host, port=port, path=path)
        return Parsed(value, str(value))

    return Kind(parse, addresses.LISTEN_ACCEPTS)


def file() -> Kind[str]:
    """The path of a file; whether it can be read is seen later, with everything known."""

    def parse(text: str) -> Parsed[str]:
        if "\0" in text:
            _refuse("a path")
        return Parsed(text, text)

    return Kind(parse, "the path of a readable file", Parsed("", "unset"))


def name() -> Kind[str]:
    """Any text."""
    return Kind(lambda text: Parsed(text, text), "any text", Parsed("", "unset"))


def attributes() -> Kind[tuple[tuple[str, str], ...]]:
    """Resource attributes: ``key=value,key=value``, percent-decoded.

    Source: Resource SDK specification, "Specifying resource information via an environment
    variable": one error discards the whole value.
    """
    accepts = "key=value,key=value with commas in values as %2C"

    def parse(text: str) -> Parsed[tuple[tuple[str, str], ...]]:
        pairs = {key: value for _, key, value in _pairs(text, accepts)}
        shown = ",".join(f"{key}={value}" for key, value in pairs.items())
        return Parsed(tuple(pairs.items()), shown)

    return Kind(parse, accepts, Parsed((), "unset"))


# Printable US-ASCII and the space: what gRPC metadata takes (gRPC over HTTP2, "ASCII-Value"),
# and the part of RFC 9110's field-value that means the same everywhere.
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


def headers() -> Kind[tuple[tuple[str, str], ...]]:
    """Headers: ``name=value,name=value``, percent-decoded; the last of a repeated name counts.

    Source: OTLP exporter specification, "Specifying headers via environment variables": the W3C
    Baggage format without properties, so a semicolon belongs to the value. No message contains
    a part of the value, not even of a malformed entry: that may be the token itself.
    """
    accepts = "name=value,name=value with special characters percent-encoded"

    def parse(text: str) -> Parsed[tuple[tuple[str, str], ...]]:
        found: dict[str, tuple[str, str]] = {}
        for position, header, value in _pairs(text, accepts):
            if not usable(header):
                raise InvalidError(
                    f"entry {position}: the name is no header's, or one that the protocol sets "
                    "itself (content-type, grpc-...)"
                )
            if not _HEADER_VALUE.fullmatch(value):
                raise InvalidError(f"entry {position}: a value must be printable ASCII")
            found[header.lower()] = (header, value)
        count = f"{len(found)} header" + ("s" if len(found) != 1 else "")
        return Parsed(tuple(found.values()), f"{count}, {REDACTED}")

    return Kind(parse, accepts, Parsed((), "unset"))


def _pairs(text: str, accepts: str) -> list[tuple[int, str, str]]:
    """Entries of a comma-separated list: (position from 1, name, value), percent-decoded."""
    pairs = []
    for position, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise InvalidError(f"entry {position} is not name=value; expected {accepts}")
        try:
            pair = unquote(key.strip(), errors="strict"), unquote(value.strip(), errors="strict")
        except UnicodeDecodeError:
            raise InvalidError(f"entry {position} does not decode to UTF-8") from None
        pairs.append((position, *pair))
    return pairs


def patterns(*, cleared: tuple[str, ...] | None) -> Kind[tuple[str, ...] | None]:
    """URL patterns. ``cleared``: the value of an empty or unset text."""
    accepts = r"patterns separated by commas (\, for a comma): exact, prefix* or ^expression"

    def parse(text: str) -> Parsed[tuple[str, ...] | None]:
        found = syntax.split(text)
        wrong = [f"{each}: {why}" for each in found if (why := syntax.check(each)) is not None]
        if wrong:
            raise InvalidError(f"{'; '.join(wrong)}; expected {accepts}")
        return Parsed(found, text) if found else Parsed(cleared, "none")

    return Kind(parse, accepts, Parsed(cleared, "unset"))
