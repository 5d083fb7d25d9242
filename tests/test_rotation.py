from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from relay.rotation import REST, REST_HUNG, Address, Rotation

A, B, C = (Address(socket.AF_INET, f"127.0.0.{n}", 4318) for n in (1, 2, 3))


def rotation(*addresses: Address) -> Rotation:
    made = Rotation()
    made.replace(addresses)
    return made


def used(turns: Rotation, now: float, times: int) -> list[Address]:
    found = []
    for _ in range(times):
        found.append(turns.order(now)[0])
        turns.used(found[-1])
    return found


def test_in_turn() -> None:
    assert used(rotation(A, B, C), 0.0, 6) == [A, B, C, A, B, C]


def test_one_that_failed_rests_and_comes_back() -> None:
    turns = rotation(A, B)
    turns.failed(A, 100.0)
    assert used(turns, 100.0 + REST[0] - 0.01, 3) == [B, B, B]
    assert set(used(turns, 100.0 + REST[0], 2)) == {A, B}


def test_rests_double_up_to_a_limit_and_success_ends_them() -> None:
    turns = rotation(A, B)
    now = 0.0
    lengths = []
    for _ in range(6):
        turns.failed(A, now)
        start = now
        while turns.order(now)[0] != A:
            turns.used(B)
            now += 0.25
        lengths.append(now - start)
    assert lengths == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    turns.failed(A, now)
    turns.worked(A)
    assert set(used(turns, now, 2)) == {A, B}


def test_a_hung_export_costs_a_longer_rest() -> None:
    turns = rotation(A, B)
    turns.failed(A, 0.0, hung=True)
    assert turns.order(REST_HUNG[0] - 0.01) == [B, A]


def test_when_all_rest_all_are_tried_the_longest_rested_first() -> None:
    turns = rotation(A, B)
    turns.failed(B, 0.0)
    turns.failed(A, 0.5)
    assert turns.order(0.6) == [B, A]


def test_a_look_up_keeps_what_is_known_and_forgets_what_is_gone() -> None:
    turns = rotation(A, B)
    turns.failed(A, 0.0)
    turns.replace([C, A, A])
    assert turns.order(0.5) == [C, A]
    assert B not in turns
    assert len(turns) == 2
    turns.failed(B, 0.0)  # a straggler's verdict on an address that left
    turns.used(B)
    turns.worked(B)
    assert B not in turns


def test_others_fit() -> None:
    turns = rotation(A, B)
    assert turns.others_fit(A, 0.0, {B})
    assert not turns.others_fit(A, 0.0, {A})
    assert not turns.others_fit(A, 0.0, set())
    turns.failed(B, 0.0)
    assert not turns.others_fit(A, 0.5, {B})


def test_how_addresses_read() -> None:
    assert str(A) == "127.0.0.1:4318"
    assert str(Address(socket.AF_INET6, "::1", 80)) == "[::1]:80"
    assert str(Address(socket.AF_UNIX, "/run/x.sock", 0)) == "/run/x.sock"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["used", "worked", "failed", "hung", "replace"]),
            st.sampled_from([A, B, C]),
            st.floats(0, 3),
        )
    )
)
def test_every_address_is_always_in_the_order_and_none_is_left_out_for_good(
    steps: list[tuple[str, Address, float]],
) -> None:
    turns = rotation(A, B, C)
    now = 0.0
    expected = {A, B, C}
    for step, address, wait in steps:
        now += wait
        if step == "replace":
            expected = {A, address}
            turns.replace([A, address])
        elif step in {"failed", "hung"}:
            turns.failed(address, now, hung=step == "hung")
        else:
            getattr(turns, step)(address)
        order = turns.order(now)
        assert set(order) == expected
        assert len(order) == len(expected)
    assert set(used(turns, now + REST_HUNG[1], len(expected))) == expected
