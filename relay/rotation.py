"""Which of a collector's addresses is next: in turn, with rests for those that fail.

Pure: time is an argument, and there is no IO here. An address that failed rests for a while that
doubles from failure to failure; then it is tried like any other. When all of them rest, all of them
are tried, the one that has rested longest first: with one address, resting changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["Address", "Rotation"]

REST: Final = 1.0, 5.0
"""Shortest and longest rest in seconds after a refused or lost connection. An address that comes
back is used again within the longest."""

REST_HUNG: Final = 10.0, 60.0
"""The same after an export that hung: finding out costs a whole attempt limit each time."""


class Address(NamedTuple):
    """One place to connect to. ``family``: as in the socket module; ``port`` 0 for a Unix path."""

    family: int
    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class _State:
    failures: int = 0
    rests_until: float = float("-inf")


class Rotation:
    """The addresses behind one name, in the order in which exports should go to them."""

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: dict[Address, _State] = {}  # in the order of turns: the first is next

    def __contains__(self, address: Address) -> bool:
        return address in self._states

    def __len__(self) -> int:
        return len(self._states)

    def replace(self, addresses: Iterable[Address]) -> None:
        """Take what a name look-up found; what is known of addresses that stay is kept."""
        found = dict.fromkeys(addresses)
        stay = {address: state for address, state in self._states.items() if address in found}
        # New ones go first: nothing went to them yet.
        self._states = {address: _State() for address in found if address not in stay} | stay

    def order(self, now: float) -> list[Address]:
        """Return all addresses, the best first: those whose turn it is, then those that rest."""
        if len(self._states) < 2:
            return list(self._states)
        fit = [address for address, state in self._states.items() if state.rests_until <= now]
        resting = [address for address, state in self._states.items() if state.rests_until > now]
        return fit + sorted(resting, key=lambda address: self._states[address].rests_until)

    def used(self, address: Address) -> None:
        """Note that an export goes there: its next turn comes after all the others'."""
        state = self._states.pop(address, None)
        if state is not None:
            self._states[address] = state

    def worked(self, address: Address) -> None:
        """Note that it answered, whatever it said."""
        if (state := self._states.get(address)) is not None:
            state.failures = 0
            state.rests_until = float("-inf")

    def failed(self, address: Address, now: float, *, hung: bool = False) -> None:
        """Note that a connection could not be made or was lost, or that an export hung."""
        if (state := self._states.get(address)) is not None:
            first, longest = REST_HUNG if hung else REST
            state.rests_until = now + min(longest, first * 2 ** min(state.failures, 16))
            state.failures += 1

    def others_fit(self, address: Address, now: float, standing: Collection[Address]) -> bool:
        """Whether another address is connected (is in ``standing``) and not known to fail."""
        return any(
            other != address and other in standing and state.rests_until <= now
            for other, state in self._states.items()
        )
