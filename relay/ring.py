"""The ring: waiting units in order of arrival, bounded by items and by bytes, drop-oldest.

Requests wait as the bytes they came in (:class:`Chunk`); they are cut only when a batch or the
limits need a part of one. Pure: no clock, no IO; whoever loses items is told by return value.

Source: contract, "The way of a request", points 3, 4 and 7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from proto_stubs import SignalSchema
from relay import wire

__all__ = ["CHUNK_OVERHEAD", "Chunk", "Dropped", "Ring"]

CHUNK_OVERHEAD = 240
"""Bytes that a waiting request costs beside its payload: the headers of the bytes object and of
the chunk, its numbers, and its place in the deque (measured with ``sys.getsizeof`` on 64 bit)."""

_PIECE = 64 * 1024
"""A request that loses units to the byte limit is first halved until its oldest piece is no larger
than this, so that a large request is not copied anew for every unit that goes."""

C = TypeVar("C")


class Dropped(NamedTuple):
    """Items that had to go, by the limit they went for."""

    queue_full: int = 0
    queue_bytes: int = 0


class Chunk(Generic[C]):
    """One request, or what is left of one, that waits.

    ``first`` is the arrival number of its first unit: it orders all chunks of a ring for good.
    The first ``skip`` units of ``payload`` are dropped already; ``units`` and ``items`` count what
    is left. ``arrived``: monotonic seconds. ``tag``: what its owner knows about it, None at first.
    """

    __slots__ = ("arrived", "first", "items", "payload", "skip", "tag", "units")

    def __init__(self, first: int, payload: bytes, units: int, items: int, arrived: float) -> None:
        self.first = first
        self.payload = payload
        self.units = units
        self.items = items
        self.arrived = arrived
        self.skip = 0
        self.tag: C | None = None

    def piece(self, part: wire.Slice, offset: int) -> Chunk[C]:
        """A chunk for a part of this one whose first unit is this chunk's unit ``offset``."""
        chunk: Chunk[C] = Chunk(
            self.first + offset, part.payload, part.units, part.items, self.arrived
        )
        chunk.tag = self.tag
        return chunk

    def __repr__(self) -> str:
        return f"Chunk({self.first}+{self.skip}, units={self.units}, items={self.items})"


class Ring(Generic[C]):
    """Waiting units of one signal. ``C`` is the type of the chunks' tags.

    ``items`` and ``retained`` never exceed ``max_items`` and ``max_bytes`` between two calls.
    ``retained`` counts the bytes held in memory: payloads, dropped units that were not cut off yet
    included, and :data:`CHUNK_OVERHEAD` for each chunk.
    """

    def __init__(self, schema: SignalSchema, max_items: int, max_bytes: int) -> None:
        self.schema = schema
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.items = 0
        self.payload_bytes = 0
        self._chunks: deque[Chunk[C]] = deque()
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Chunk[C]]:
        return iter(self._chunks)

    @property
    def retained(self) -> int:
        """Bytes held in memory for what waits."""
        return self.payload_bytes + len(self._chunks) * CHUNK_OVERHEAD

    @property
    def oldest(self) -> Chunk[C] | None:
        """The chunk whose units arrived first, or None."""
        return self._chunks[0] if self._chunks else None

    def offer(self, payload: bytes, units: int, items: int, now: float) -> Dropped | None:
        """Take a request of ``units`` > 0; return what had to go for it, None if nothing had to."""
        chunk: Chunk[C] = Chunk(self._arrivals, payload, units, items, now)
        self._arrivals += units
        self._chunks.append(chunk)
        self.items += items
        self.payload_bytes += len(payload)
        if self.items <= self.max_items and self.retained <= self.max_bytes:
            return None
        return self._shrink()

    def put_back(self, chunks: Iterable[Chunk[C]]) -> Dropped | None:
        """Return chunks to the places that their arrival gives them, as if they had never left."""
        waiting = self._chunks
        # From the newest: each then is inserted in front of the one before.
        for chunk in sorted(chunks, key=lambda chunk: chunk.first, reverse=True):
            place = 0
            # What comes back is nearly always older than all that waits.
            while place < len(waiting) and waiting[place].first < chunk.first:
                place += 1
            waiting.insert(place, chunk)
            self.items += chunk.items
            self.payload_bytes += len(chunk.payload)
        if self.items <= self.max_items and self.retained <= self.max_bytes:
            return None
        return self._shrink()

    def take(self, items: int, size: int, eligible: Callable[[C | None], bool]) -> list[Chunk[C]]:
        """Remove and return the oldest chunks whose tag is eligible, as one batch.

        The batch holds at most ``items`` items and ``size`` bytes, unless its single unit is
        larger. A chunk that does not fit is cut to fill it, but not for the last quarter: cutting
        costs more than the somewhat smaller batch. A signal whose requests are never joined
        (profiles) gives one chunk. Empty when nothing is eligible.
        """
        quarter_items, quarter_size = items // 4, size // 4
        chunks = self._chunks
        batch: list[Chunk[C]] = []
        passed: list[Chunk[C]] = []
        while chunks and (items or not batch):
            chunk = chunks.popleft()
            if not eligible(chunk.tag):
                passed.append(chunk)
                continue
            if chunk.skip:
                self._compact(chunk)
            length = len(chunk.payload)
            if (chunk.items <= items and length <= size) or (self.schema.whole and not batch):
                batch.append(chunk)
                items -= chunk.items
                size -= length
                if self.schema.whole:
                    break
                continue
            if batch and (items <= quarter_items or size <= quarter_size):
                chunks.appendleft(chunk)
                break
            part, rest = self._cut(chunk, items, size, alone=not batch)
            if part is not None:
                batch.append(part)
            if rest is not None:
                chunks.appendleft(rest)
            break
        chunks.extendleft(reversed(passed))
        for chunk in batch:
            self.items -= chunk.items
            self.payload_bytes -= len(chunk.payload)
        return batch

    def take_tagged(self, tag: C) -> list[Chunk[C]]:
        """Remove and return every chunk that carries this very tag."""
        batch = [chunk for chunk in self._chunks if chunk.tag is tag]
        if batch:
            self._chunks = deque(chunk for chunk in self._chunks if chunk.tag is not tag)
        for chunk in batch:
            if chunk.skip:
                self._compact(chunk)
            self.items -= chunk.items
            self.payload_bytes -= len(chunk.payload)
        return batch

    def clear(self) -> int:
        """Drop all that waits; return the items."""
        items = self.items
        self._chunks.clear()
        self.items = self.payload_bytes = 0
        return items

    def revise(self, rewrite: Callable[[bytes, int, int], wire.Slice | None]) -> None:
        """Pass each waiting payload, units and items through ``rewrite``, the newest first.

        It returns what the payload is to be replaced with, or None to leave it as it is. Arrival
        numbers stay: the chunk keeps its place.
        """
        gone = False
        for chunk in reversed(self._chunks):
            if chunk.skip:
                self._compact(chunk)
            new = rewrite(chunk.payload, chunk.units, chunk.items)
            if new is None:
                continue
            self.items += new.items - chunk.items
            self.payload_bytes += len(new.payload) - len(chunk.payload)
            chunk.payload, chunk.units, chunk.items = new
            gone = gone or not new.units
        if gone:
            self._chunks = deque(chunk for chunk in self._chunks if chunk.units)

    def split(self, chunks: list[Chunk[C]]) -> tuple[list[Chunk[C]], list[Chunk[C]]]:
        """Halve a batch that was taken, by units; the older half first."""
        half = sum(chunk.units for chunk in chunks) // 2
        older: list[Chunk[C]] = []
        newer: list[Chunk[C]] = []
        for chunk in chunks:
            if half >= chunk.units:
                older.append(chunk)
                half -= chunk.units
            elif half == 0:
                newer.append(chunk)
            else:
                total = chunk.units, chunk.items
                left, right = wire.first(chunk.payload, self.schema, half, total=total)
                older.append(chunk.piece(left, 0))
                newer.append(chunk.piece(right, half))
                half = 0
        return older, newer

    def _cut(
        self, chunk: Chunk[C], items: int, size: int, *, alone: bool
    ) -> tuple[Chunk[C] | None, Chunk[C] | None]:
        """Cut what fits off a chunk; its first unit in any case if it would be ``alone``."""
        if chunk.units == 1:
            return (chunk, None) if alone else (None, chunk)
        total = chunk.units, chunk.items
        part, rest = wire.head(chunk.payload, self.schema, items=items, size=size, total=total)
        if not part.units:
            if not alone:
                return None, chunk
            part, rest = wire.first(chunk.payload, self.schema, 1, total=total)
        # The header of resource and scope now stands in both.
        self.payload_bytes += len(part.payload) + len(rest.payload) - len(chunk.payload)
        taken = chunk.piece(part, 0)
        return taken, chunk.piece(rest, part.units) if rest.units else None

    def _compact(self, chunk: Chunk[C]) -> None:
        """Cut off the units that were dropped already."""
        _, rest = wire.first(chunk.payload, self.schema, chunk.skip)
        self.payload_bytes += len(rest.payload) - len(chunk.payload)
        chunk.first += chunk.skip
        chunk.payload = rest.payload
        chunk.skip = 0

    def _shrink(self) -> Dropped:
        """Drop the oldest units, one by one, until both limits hold."""
        full = 0
        while (excess := self.items - self.max_items) > 0:
            full += self._drop_items(excess)
        large = 0
        while (excess := self.retained - self.max_bytes) > 0:
            large += self._drop_bytes(excess)
        return Dropped(full, large)

    def _drop_items(self, excess: int) -> int:
        """Drop at most ``excess`` items' worth of the oldest chunk; return the items dropped."""
        chunk = self._chunks[0]
        if chunk.items < excess or chunk.units == 1:
            return self._drop_oldest()
        if chunk.units == chunk.items:
            # Every unit weighs one: no need to cut before somebody reads the payload. What this
            # leaves in memory is counted, and at most the oldest request has such a rest.
            if chunk.items == excess:
                return self._drop_oldest()
            chunk.skip += excess
            chunk.units -= excess
            chunk.items -= excess
            self.items -= excess
            return excess
        return self._trim(chunk, items=chunk.items - excess, size=len(chunk.payload))

    def _drop_bytes(self, excess: int) -> int:
        chunk = self._chunks[0]
        if chunk.skip:
            self._compact(chunk)
            return 0
        if len(chunk.payload) + CHUNK_OVERHEAD <= excess or chunk.units == 1:
            return self._drop_oldest()
        if self._halve_oldest():
            return 0
        return self._trim(chunk, items=chunk.items, size=len(chunk.payload) - excess)

    def _drop_oldest(self) -> int:
        chunk = self._chunks.popleft()
        self.items -= chunk.items
        self.payload_bytes -= len(chunk.payload)
        return chunk.items

    def _trim(self, chunk: Chunk[C], *, items: int, size: int) -> int:
        total = chunk.units, chunk.items
        rest = wire.tail(chunk.payload, self.schema, items=items, size=size, total=total)
        if not rest.units:
            return self._drop_oldest()
        dropped = chunk.items - rest.items
        self.items -= dropped
        self.payload_bytes += len(rest.payload) - len(chunk.payload)
        chunk.first += chunk.units - rest.units
        chunk.payload, chunk.units, chunk.items = rest
        return dropped

    def _halve_oldest(self) -> bool:
        """Cut a large oldest chunk in two, if that repeats little of resource and scope."""
        chunk = self._chunks[0]
        size = len(chunk.payload)
        if size <= _PIECE or chunk.units < 2 or self.schema.whole:
            return False
        half = chunk.units // 2
        total = chunk.units, chunk.items
        older, newer = wire.first(chunk.payload, self.schema, half, total=total)
        repeated = len(older.payload) + len(newer.payload) - size
        if repeated > size // 16:
            return False
        self._chunks[0] = chunk.piece(newer, half)
        self._chunks.appendleft(chunk.piece(older, 0))
        self.payload_bytes += repeated
        return True
