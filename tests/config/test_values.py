import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config import values
from relay.config.values import InvalidError, Kind

KINDS: dict[str, Kind[object]] = {
    "boolean": values.boolean(),
    "integer": values.integer(1, 100),
    "size": values.size(1024),
    "duration": values.duration(0, 3_600_000),
    "ratio": values.ratio(),
    "choice": values.choice("grpc", "http/protobuf"),
    "mode": values.mode(),
    "listen": values.listen(),
    "file": values.file(),
    "name": values.name(),
    "attributes": values.attributes(),
    "headers": values.headers(),
    "patterns": values.patterns(cleared=()),
}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("boolean", "true", True),
        ("boolean", "FALSE", False),
        ("integer", "1", 1),
        ("integer", "0100", 100),
        ("size", "1024", 1024),
        ("size", "16MiB", 16 * 2**20),
        ("size", "16 mib", 16 * 2**20),
        ("size", "1GiB", 2**30),
        ("duration", "0", 0.0),
        ("duration", "5000", 5.0),
        ("duration", "250ms", 0.25),
        ("duration", "250 ms", 0.25),
        ("duration", "1.5s", 1.5),
        ("duration", "30 s", 30.0),
        ("ratio", "1", 1.0),
        ("ratio", "0.0", 0.0),
        ("ratio", ".25", 0.25),
        ("ratio", "1e-3", 0.001),
        ("choice", "GRPC", "grpc"),
        ("choice", "http/protobuf", "http/protobuf"),
        ("mode", "0660", 0o660),
        ("mode", "777", 0o777),
        ("mode", "0o600", 0o600),
        ("attributes", "a=1, b = two%2C2 ,", (("a", "1"), ("b", "two,2"))),
        ("attributes", "a=1,a=2", (("a", "2"),)),
        ("attributes", "a=b=c", (("a", "b=c"),)),
        ("headers", "Authorization=Bearer%20x%3D%3D", (("Authorization", "Bearer x=="),)),
        ("headers", "a=Bearer x==", (("a", "Bearer x=="),)),
        ("headers", " a = 1 , b=,", (("a", "1"), ("b", ""))),
        ("headers", "A=1,a=2", (("a", "2"),)),
        ("headers", "a=1;2", (("a", "1;2"),)),
        ("patterns", "", ()),
        ("patterns", r"/a,^/b{1\,2}, /c*", ("/a", "^/b{1,2}", "/c*")),
    ],
)
def test_accepts(kind: str, text: str, value: object) -> None:
    assert KINDS[kind].parse(text).value == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("boolean", "1"),
        ("boolean", "yes"),
        ("boolean", ""),
        ("integer", "0"),
        ("integer", "101"),
        ("integer", "-1"),
        ("integer", "+1"),
        ("integer", "1_0"),
        ("integer", "1.0"),
        ("integer", "٣"),
        ("integer", "9" * 5000),
        ("size", "1023"),
        ("size", "16MB"),
        ("size", "1.5MiB"),
        ("size", "4GiB"),
        ("duration", "-1"),
        ("duration", "1m"),
        ("duration", "1.5"),
        ("duration", "1h"),
        ("duration", "3600001"),
        ("ratio", "1.01"),
        ("ratio", "-0.1"),
        ("ratio", "nan"),
        ("ratio", "inf"),
        ("ratio", "1e999"),
        ("ratio", "50%"),
        ("choice", "http/json"),
        ("mode", "888"),
        ("mode", "1777"),
        ("mode", "rw-rw----"),
        ("listen", "4317"),
        ("file", "a\0b"),
        ("attributes", "a"),
        ("attributes", "=1"),
        ("attributes", "a=%ff"),
        ("headers", "secret"),
        ("headers", "=secret"),
        ("headers", "a b=secret"),
        ("headers", "a=%0d%0asecret"),
        ("headers", "a=sécret"),
        ("headers", "a=secret%ff"),
        ("headers", "grpc-timeout=secret"),
        ("headers", "trace-bin=secret"),
        ("headers", "Content-Type=secret"),
        ("headers", ":authority=secret"),
        ("patterns", "^/("),
    ],
)
def test_refuses(kind: str, text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        KINDS[kind].parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_a_value_or_refused(kind: str, text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert isinstance(KINDS[kind].parse(text).shown, str)


@settings(deadline=None)
@given(
    kind=st.sampled_from([values.size(1), values.duration(0), values.ratio(), values.mode()]),
    number=st.integers(0, 511),
)
def test_what_is_shown_can_be_typed_again(kind: Kind[object], number: int) -> None:
    # As a mode this is octal, as a ratio a fraction.
    text = {"a number from 0.0 to 1.0": str(number / 511)}.get(kind.accepts, f"{number:o}")
    try:
        parsed = kind.parse(text)
    except InvalidError:
        return  # a size of 0
    assert kind.parse(parsed.shown) == parsed


def test_a_timeout_of_zero_is_said_to_be_no_limit() -> None:
    kind = values.duration(1, zero="no limit")
    assert kind.parse("0") == (0.0, "0 (no limit)")
    assert "0: no limit" in kind.accepts


def test_headers_are_shown_by_number_alone() -> None:
    assert values.headers().parse("token=secret,b=2").shown == "2 headers, <redacted>"
    assert values.headers().parse("token=secret").shown == "1 header, <redacted>"


def test_a_wrong_pattern_is_named_with_its_reason() -> None:
    with pytest.raises(InvalidError, match=r"\^/\(: .+; \^\[: .+; expected patterns"):
        values.patterns(cleared=()).parse("/ok,^/(,^[")


def test_bounds_are_said_in_the_units_of_their_kind() -> None:
    assert values.duration(1000, 3_600_000).accepts.endswith("from 1 s to 3600 s")
    assert values.size(1024, 2**40).accepts.endswith("from 1 KiB to 1024 GiB")
