"""Spans of a request that are filtered for what they look like, see :mod:`relay.processors.shapes`.

They are taken out before anything else is looked at. What they take along, the descendants of the
server spans among them, is worked out when somebody asks; mostly nobody does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final

from relay.processors.remembered import NO_ID, TRACE
from relay.processors.shapes import Member, Shape, Take

__all__ = ["Settled"]

_WEIGHT: Final = 4
"""What all of it weighs beside the spans."""
_EACH: Final = 300
"""Bytes that weigh as much as a span that is worked out."""
_BESIDE: Final = 250
"""Bytes that a part with ids takes beside itself: its header, its trace id, their places."""


class Settled:
    """These spans. ``found``: by shape the part in which all ids are, each time it matched.

    ``others``: the codes of those that are no server spans.
    """

    def __init__(self, found: Mapping[Shape, Sequence[bytes]], others: AbstractSet[int]) -> None:
        self.removed: dict[int, int] = {}
        """How many, by code."""
        self.spans = 0
        """How many they are."""
        self.traces: set[bytes] = set()
        """The trace ids of the server spans."""
        self.weight = _WEIGHT
        """What they take in memory, where a remembered span that is worked out takes 1."""
        self._others = others
        # By shape the parts in which the ids are, for those that have some.
        self._parts: list[tuple[Shape, Sequence[bytes]]] = []
        for shape, parts in found.items():
            number = len(parts)
            for member in shape.members:
                self.removed[member.code] = self.removed.get(member.code, 0) + number
            if shape.trace_id is not None:
                self._parts.append((shape, parts))
                if self._has_servers(shape):
                    self.traces.update(map(shape.trace_id, parts))
            self.spans += number * len(shape.members)
            size = len(parts[0]) + _BESIDE if parts else 0
            self.weight += number * max(len(shape.members), -(-size // _EACH))

    def _has_servers(self, shape: Shape) -> bool:
        return any(each.trace_id and each.code not in self._others for each in shape.members)

    def other_traces(self) -> set[bytes]:
        """The trace ids of the other ones in which there is none of these."""
        found: set[bytes] = set()
        for shape, parts in self._parts:
            if shape.trace_id is not None and not self._has_servers(shape):
                found.update(map(shape.trace_id, parts))
        return found - self.traces

    def span_ids(self) -> set[bytes]:
        """The span ids of all of them."""
        found: set[bytes] = set()
        for member, parts in self._members():
            if member.span_id is not None:
                found.update(map(member.span_id, parts))
        return found

    def _members(self) -> Iterator[tuple[Member, Sequence[bytes]]]:
        for shape, parts in self._parts:
            for member in shape.members:
                yield member, parts

    @cached_property
    def roots(self) -> set[bytes]:
        """The keys (trace id, span id) of the server spans."""
        found: set[bytes] = set()
        for member, parts in self._members():
            if member.code not in self._others:
                found.update(_keys(parts, member.trace_id, member.span_id))
        return {key for key in found if key[TRACE:] != NO_ID}

    @cached_property
    def _below(self) -> dict[bytes, list[bytes]]:
        """By the key of a span the keys of those directly below it."""
        found: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for member, parts in self._members():
            if member.parent_id is not None:
                keys = _keys(parts, member.trace_id, member.span_id)
                above = _keys(parts, member.trace_id, member.parent_id)
                for parent, key in zip(above, keys, strict=True):
                    if key[TRACE:] != NO_ID:
                        found[parent].append(key)
        return dict(found)

    def parents(self) -> Collection[bytes]:
        """The keys of the spans directly above them."""
        return self._below.keys()

    def children(self, keys: AbstractSet[bytes]) -> set[bytes]:
        """The keys of those whose parent is one of ``keys``."""
        below = self._below
        return {key for above in keys if above in below for key in below[above]}

    def condemned(self) -> set[bytes]:
        """The keys of the server spans, and of what is below these among them."""
        keys = set(self.roots)
        frontier: AbstractSet[bytes] = keys
        while frontier:
            frontier = self.children(frontier) - keys
            keys |= frontier
        return keys


def _keys(parts: Iterable[bytes], trace: Take | None, span: Take | None) -> list[bytes]:
    """None where there is no such id."""
    return [trace(part) + span(part) for part in parts] if trace and span else []
