import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.processors.search import SMALL, Needles, compiled, literal


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_a_literal_is_found_as_bytes_find_finds_it(
    needle: bytes, before: bytes, after: bytes
) -> None:
    search = compiled(literal(needle))
    payload = before + needle + after
    found = search(payload, 0)
    assert found is not None
    assert found.start() == payload.find(needle)


@given(
    st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=5),
    st.binary(max_size=30),
    st.booleans(),
)
def test_present_means_that_any_of_them_is(
    needles: list[bytes], payload: bytes, large: bool
) -> None:
    if large:
        payload += bytes(SMALL)
        needles = [needle + b"!" for needle in needles]
    expected = any(needle in payload for needle in needles)
    found = Needles(needles)
    assert found.present(payload) == expected
    assert (found.find(payload, 0) is not None) == expected


@pytest.mark.parametrize("size", [0, SMALL])
@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x00", b"\x88\x80\x80\x80\x00"])
def test_keys_are_found_however_their_length_is_written(size: int, length: bytes) -> None:
    keys = Needles([b"url.path", b"http.target"], keys=True)
    payload = b"." * size + b"\x0a" + length + b"url.path" + b"." * size
    assert keys.present(payload)
    found = keys.find(payload, 0)
    assert found is not None
    assert found.start() == payload.index(b"url.path")
    assert not keys.present(payload.replace(b"path", b"full"))


def test_a_needle_in_another_is_enough() -> None:
    found = Needles([b"/health", b"/healthz", b"/health/live"])
    assert found.present(b"x/healthzy")
    assert not found.present(b"x/healt")
