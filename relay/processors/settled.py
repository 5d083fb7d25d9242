"""Spans of a request that are filtered for what they look like, see :mod:`relay.processors.shapes`.

They are taken out before anything else is looked at. What they take along, the descendants of the
server spans among them, is worked out when somebody asks; mostly nobody does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property

from relay.processors.remembered import NO_ID, TRACE
from relay.processors.shapes import Member, Shape, Take

__all__ = ["Settled"]

_WEIGHT = 4
"""What all of it takes beside the spans; a span that is worked out takes some 300 bytes."""
_PART = 128
"""Bytes of a span's part with the ids; usually that has 46."""


class Settled:
    """These spans. ``found``: by shape what its expression's groups matched, each time.

    ``others``: the codes of those that are no server spans.
    """

    def __init__(
        self, found: Mapping[Shape, Sequence[tuple[bytes, ...]]], others: AbstractSet[int]
    ) -> None:
        self.removed: dict[int, int] = {}
        """How many, by code."""
        self.ids: list[bytes] = []
        """Their span ids."""
        self.servers = False
        """Whether there are server spans among them that have ids."""
        self.weight = _WEIGHT
        """What they take in memory, where a remembered span that is worked out takes 1."""
        self._others = others
        # By member of a shape the part of each such span in which its ids are.
        self._parts: list[tuple[Member, tuple[bytes, ...]]] = []
        for shape, matches in found.items():
            groups = zip(*matches, strict=True)
            for member in shape.members:
                self.removed[member.code] = self.removed.get(member.code, 0) + len(matches)
                if member.span_id is not None:
                    parts = next(groups)
                    self._parts.append((member, parts))
                    self.weight += len(parts) * (1 + len(parts[0]) // _PART)
                    self.ids += next(groups)
                    self.servers = self.servers or member.code not in others

    def parent_ids(self) -> list[bytes]:
        """The span ids of what is directly above them."""
        found: list[bytes] = []
        for member, parts in self._parts:
            if member.parent_id is not None:
                found += map(member.parent_id, parts)
        return found

    @cached_property
    def roots(self) -> set[bytes]:
        """The keys (trace id, span id) of the server spans."""
        found: set[bytes] = set()
        for member, parts in self._parts:
            if member.code not in self._others:
                found.update(_keys(parts, member.trace_id, member.span_id))
        return {key for key in found if key[TRACE:] != NO_ID}

    @cached_property
    def _below(self) -> dict[bytes, list[bytes]]:
        """By the key of a span the keys of those directly below it."""
        found: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for member, parts in self._parts:
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

    def condemned(self, known: Callable[[Iterable[bytes]], AbstractSet[bytes]]) -> set[bytes]:
        """The keys of the server spans, and of what is below these or below others that went.

        ``known``: which of these keys are of spans that went before.
        """
        keys = set(self.roots)
        frontier: AbstractSet[bytes] = keys | known(self.parents())
        while frontier:
            frontier = self.children(frontier) - keys
            keys |= frontier
        return keys


def _keys(parts: Iterable[bytes], trace: Take | None, span: Take | None) -> list[bytes]:
    """None where there is no such id."""
    return [trace(part) + span(part) for part in parts] if trace and span else []
