import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.endpoints import Destination, Endpoint, endpoint, redact, resolve
from relay.config.values import InvalidError


def read(text: str) -> Endpoint:
    found = endpoint().parse(text).value
    assert found is not None
    return found


def grpc(text: str, *, insecure: bool = False) -> Destination:
    return resolve(
        read(text), protocol="grpc", http_path="/v1/traces", own=False, insecure=insecure
    )


def http(text: str, *, own: bool = False, path: str = "/v1/traces") -> Destination:
    return resolve(read(text), protocol="http/protobuf", http_path=path, own=own, insecure=False)


@pytest.mark.parametrize(
    ("text", "target", "encrypted"),
    [
        ("http://collector:4317", "collector:4317", False),
        ("HTTPS://Collector:4317", "collector:4317", True),
        ("https://collector", "collector:443", True),
        ("http://collector", "collector:80", False),
        ("http://collector:4317/", "collector:4317", False),
        ("http://[::2]:4317", "[::2]:4317", False),
        ("http://10.0.0.9:4317", "10.0.0.9:4317", False),
        ("collector:4317", "collector:4317", True),
        ("[fd00::9]:4317", "[fd00::9]:4317", True),
        ("dns:///collector:4317", "collector:4317", True),
        ("dns:collector:4317", "collector:4317", True),
        ("unix:/run/c.sock", "unix:/run/c.sock", False),
        ("unix:///run/c.sock", "unix:/run/c.sock", False),
    ],
)
def test_grpc_targets(text: str, target: str, encrypted: bool) -> None:
    destination = grpc(text)
    assert (destination.target, destination.encrypted) == (target, encrypted)


def test_the_scheme_wins_over_insecure() -> None:
    assert not grpc("collector:4317", insecure=True).encrypted
    assert grpc("https://collector:4317", insecure=True).encrypted
    assert "wins" in grpc("https://collector:4317", insecure=True).hints[0]
    assert not grpc("http://collector:4317", insecure=False).encrypted


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("http://collector", "http://collector/v1/traces"),
        ("https://gateway/otlp", "https://gateway/otlp/v1/traces"),
        ("https://gateway/otlp/", "https://gateway/otlp/v1/traces"),
        ("https://[::2]:1/a/b", "https://[::2]:1/a/b/v1/traces"),
    ],
)
def test_an_http_base_url_gets_the_signals_path(text: str, url: str) -> None:
    assert http(text) == Destination(url, text.startswith("https"))


def test_profiles_have_a_path_of_their_own() -> None:
    target = http("http://c:4318", path="/v1development/profiles").target
    assert target == "http://c:4318/v1development/profiles"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ("http://collector:4318/in/", "http://collector:4318/in/"),
        ("http://collector:4318", "http://collector:4318/"),
        ("https://gateway/in?key=1", "https://gateway/in?key=1"),
    ],
)
def test_the_http_url_of_one_signal_is_used_as_it_is(text: str, url: str) -> None:
    assert http(text, own=True).target == url


def test_a_unix_socket_serves_http_too() -> None:
    assert http("unix:/run/c.sock") == Destination("unix:/run/c.sock", encrypted=False)


@pytest.mark.parametrize(
    "text",
    [
        "collector",
        "collector:",
        "collector:0",
        "http://collector:0",
        "collector:99999",
        "ftp://collector:21",
        "tcp://collector:4317",
        "http://",
        "http:///v1/traces",
        "http://[::1",
        "http://[zz]:4317",
        "http://a b:4317",
        "http://collector:4317\n",
        "http://collector:4317#here",
        "http://user:secret@collector:4317",
        "http://secret@[zz",
        "user:secret@collector:4317",
        "unix:relative",
        "ipv4:10.0.0.1:4317",
        "::1:4317",
        "http://münchen:4317",
    ],
)
def test_refuses_and_never_repeats_a_secret(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read(text)
    assert "secret" not in str(caught.value)
    assert "secret" not in redact(text)


def test_a_password_in_the_url_is_told_where_it_belongs() -> None:
    with pytest.raises(InvalidError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        read("http://user:secret@collector:4317")


def test_http_needs_a_url_and_a_base_without_query() -> None:
    with pytest.raises(InvalidError, match="needs a URL"):
        http("collector:4318")
    with pytest.raises(InvalidError, match="no query"):
        http("http://collector:4318/?a=secret")


@pytest.mark.parametrize(
    ("destination", "hint"),
    [
        (grpc("http://collector:4317/v1/traces"), "no use for the path"),
        (grpc("http://collector"), "port 80"),
        (grpc("http://collector:4318"), "usually OTLP/HTTP"),
        (http("http://collector:4317"), "usually OTLP/gRPC"),
        (http("http://collector:4318", own=True), "not to /v1/traces"),
    ],
)
def test_hints_at_likely_mistakes(destination: Destination, hint: str) -> None:
    assert [hint in each for each in destination.hints] == [True]


@pytest.mark.parametrize(
    "destination",
    [
        grpc("http://collector:4317"),
        grpc("https://collector"),
        grpc("collector:4317", insecure=True),
        http("http://collector:4318"),
        http("http://collector:4318/v1/traces", own=True),
    ],
)
def test_no_hint_where_nothing_is_odd(destination: Destination) -> None:
    assert destination.hints == ()


def test_shown_without_the_content_of_the_query() -> None:
    assert endpoint().parse("https://c/in?key=secret").shown == "https://c/in?<redacted>"
    assert redact("https://c/in?key=secret") == "https://c/in?<redacted>"


@settings(deadline=None)
@given(
    st.one_of(st.text(max_size=40), st.text("htps:/[]@?#.1a", max_size=40).map("http://".__add__))
)
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    try:
        found = read(text)
    except InvalidError:
        return
    for own in (False, True):
        for protocol in ("grpc", "http/protobuf"):
            with contextlib.suppress(InvalidError):
                resolve(found, protocol=protocol, http_path="/v1/logs", own=own, insecure=False)
