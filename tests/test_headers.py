from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.headers import MAX_BYTES, HeadersError, HeaderSource, parse, usable

SECRET = "s3cr3t-v4lue"


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_lines_comments_and_space() -> None:
    text = "# tokens\n\n  Authorization = Bearer a=b%20c  \r\nx-tenant=\n\t#x=1\n"
    assert parse(text, "f") == (("authorization", "Bearer a=b%20c"), ("x-tenant", ""))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (SECRET, "not name=value"),
        (f"Bearer {SECRET}=", "no header name"),
        (f"={SECRET}", "no header name"),
        (f"a={SECRET}\n# x\nA={SECRET}", "line 3: a is set twice"),
        (f"a={SECRET}\x00", "printable ASCII"),
        (f"a={SECRET}é", "printable ASCII"),
        (f"Content-Length={SECRET}", "set by the transport"),
        (f"grpc-timeout={SECRET}", "set by the transport"),
        (f":path={SECRET}", "no header name"),
    ],
)
def test_faults_name_the_line_and_never_a_value(line: str, fault: str) -> None:
    with pytest.raises(HeadersError, match=fault) as caught:
        parse(line, "tokens.txt")
    assert "tokens.txt" in str(caught.value)
    assert SECRET not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text, "f")
    except HeadersError:
        return
    for name, value in found:
        assert usable(name)
        assert name == name.lower()
        assert "\n" not in value
        assert "\r" not in value


def test_without_a_file_the_configured_ones_are_sent_as_they_are() -> None:
    warnings: list[str] = []
    static = (("x-a", "1"), ("x-b", "2"))
    source = HeaderSource(static, "", warn=warnings.append)
    assert source.current(0.0) is static
    assert not source.refused(0.0)
    assert warnings == []


def test_the_file_wins_and_is_read_again(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = tmp_path / "headers"
    path.write_text("authorization=Bearer 1\n")
    source = HeaderSource(
        (("Authorization", "old"), ("x-tenant", "t")), str(path), warn=warnings.append
    )
    assert source.current(0.0) == (("x-tenant", "t"), ("authorization", "Bearer 1"))
    replace(path, "authorization=Bearer 22\n")
    assert source.current(0.5) == (("x-tenant", "t"), ("authorization", "Bearer 1"))
    assert source.current(1.0) == (("x-tenant", "t"), ("authorization", "Bearer 22"))
    assert warnings == []


def test_a_refusal_looks_at_once_and_says_whether_it_helps(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("authorization=Bearer 1\n")
    source = HeaderSource((), str(path), warn=print)
    assert source.current(0.0) == (("authorization", "Bearer 1"),)
    assert not source.refused(0.0)
    replace(path, "authorization=Bearer 22\n")
    assert source.refused(0.0)
    assert source.current(0.0) == (("authorization", "Bearer 22"),)
    assert not source.refused(0.0)


@pytest.mark.parametrize(
    "broken",
    [
        SECRET.encode(),
        b"a=" + b"x" * MAX_BYTES,
        b"\xff\xfe\x00",
    ],
)
def test_a_broken_file_keeps_the_last_good_values(tmp_path: Path, broken: bytes) -> None:
    warnings: list[str] = []
    path = tmp_path / "headers"
    path.write_text("a=1\n")
    source = HeaderSource((), str(path), warn=warnings.append)
    path.write_bytes(broken)
    assert source.current(1.0) == (("a", "1"),)
    assert source.current(2.0) == (("a", "1"),)
    assert len(warnings) == 1
    assert SECRET not in warnings[0]
    assert str(path) in warnings[0]


def test_a_missing_file_is_reported_and_picked_up_later(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = tmp_path / "headers"
    source = HeaderSource((("a", "static"),), str(path), warn=warnings.append)
    assert source.current(0.0) == (("a", "static"),)
    assert len(warnings) == 1
    path.write_text("a=file\n")
    assert source.current(1.0) == (("a", "file"),)
