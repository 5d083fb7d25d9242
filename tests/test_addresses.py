import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("localhost:4317", ("localhost", 4317, "")),
        ("LocalHost:4317", ("localhost", 4317, "")),
        ("0.0.0.0:0", ("0.0.0.0", 0, "")),
        ("[::]:65535", ("::", 65535, "")),
        ("[fd00::2]:4317", ("fd00::2", 4317, "")),
        ("otel_relay.ns.svc:4317", ("otel_relay.ns.svc", 4317, "")),
        ("unix:/run/otlp.sock", ("", 0, "/run/otlp.sock")),
        ("unix:///run/otlp.sock", ("", 0, "/run/otlp.sock")),
        ("off", ("", 0, "")),
        ("OFF", ("", 0, "")),
    ],
)
def test_parses_where_to_listen(text: str, parsed: tuple[str, int, str]) -> None:
    assert addresses.parse_listen(text) == parsed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost", "port is missing"),
        ("4317", "port is missing"),
        (":4317", "0.0.0.0"),
        ("", "host is missing"),
        ("localhost:", "number up to 65535"),
        ("localhost:65536", "number up to 65535"),
        ("localhost:-1", "number up to 65535"),
        ("localhost:4317x", "number up to 65535"),
        ("localhost:٤٣١٧", "number up to 65535"),
        ("::1:4317", "brackets"),
        ("[::1]4317", "[IPv6]:port"),
        ("[::1", "[IPv6]:port"),
        ("[localhost]:4317", "[IPv6]:port"),
        ("http://localhost:4317", "no scheme"),
        ("local host:4317", "characters"),
        ("*:4317", "characters"),
        ("unix:run/otlp.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/run/", "absolute path"),
        ("unix://run/otlp.sock", "absolute path"),
        ("unix:/" + 103 * "x", "at most 103 bytes"),
    ],
)
def test_refuses_what_is_no_listen_address(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        addresses.parse_listen(text)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    try:
        host, port, path = addresses.parse_listen(text)
    except ValueError:
        return
    assert bool(host) + bool(path) + (text.lower() == "off") == 1
    assert 0 <= port <= 65535


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x7f000001", "127.0.0.1"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("FD00::2", "fd00::2"),
        ("localhost", ""),
        ("1.collector", ""),
        ("otel-collector", ""),
        ("zz::1", ""),
        ("", ""),
    ],
)
def test_numeric_understands_what_resolvers_do_and_looks_up_nothing(
    host: str, address: str
) -> None:
    assert addresses.numeric(host) == address


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_loopback(host: str) -> None:
    assert addresses.is_loopback(host)


@pytest.mark.parametrize("host", ["notlocalhost", "10.0.0.1", "fd00::1", "collector", "0.0.0.0"])
def test_not_loopback(host: str) -> None:
    assert not addresses.is_loopback(host)


@pytest.mark.parametrize(
    ("host", "wild"), [("0.0.0.0", True), ("::", True), ("0", True), ("::1", False), ("a", False)]
)
def test_wildcard(host: str, wild: bool) -> None:
    assert addresses.is_wildcard(host) is wild


def test_brackets_come_and_go() -> None:
    assert addresses.join_host_port(*addresses.split_host_port("[::1]:1")) == "[::1]:1"  # type: ignore[arg-type] # a port was given
    assert addresses.join_host_port("host", 4317) == "host:4317"
