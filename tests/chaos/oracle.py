"""Where every item went: what was sent and acknowledged, what was found, what was counted.

Pure: the judgement of one run, for each signal apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.e2e.harness import ranges

__all__ = ["Books", "Life", "Trace", "judge"]


@dataclass(frozen=True, slots=True)
class Books:
    """The relay's counters of one signal at one moment."""

    received: int = 0
    filtered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    exported: int = 0
    queued: int = 0
    in_flight: int = 0
    up: bool | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Items in the relay's memory."""
        return self.queued + self.in_flight

    @property
    def balanced(self) -> bool:
        """Contract section 4: nothing is uncounted."""
        parts = self.filtered + sum(self.dropped.values()) + self.exported + self.waiting
        return self.received == parts


@dataclass(slots=True)
class Life:
    """One relay process, from its start to its end.

    ``books``: the latest that were read, after at least the first ``read`` of the acknowledged
    numbers; ``killed``: it ended without a word after them.
    """

    books: Books = field(default_factory=Books)
    acknowledged: list[int] = field(default_factory=list)
    """In the order of the answers."""
    uncertain: set[int] = field(default_factory=set)
    """Sent without an answer: it may have them or not."""
    killed: bool = False
    read: int = 0


@dataclass(slots=True)
class Trace:
    """All that is known of one signal in one run.

    ``found``: how often each number was in a request that the collector accepted.
    ``lossy``: the reasons for which items may have been dropped. ``room``: items of the ring.
    """

    lossy: frozenset[str]
    room: int
    lives: list[Life] = field(default_factory=lambda: [Life()])
    found: Counter[int] = field(default_factory=Counter)

    @property
    def life(self) -> Life:
        """Of the relay that runs now."""
        return self.lives[-1]

    @property
    def duplicates(self) -> int:
        """Items that arrived more than once, counted as often as they were too many."""
        return self.found.total() - len(self.found)


def judge(trace: Trace) -> list[str]:
    """What is wrong, in words; empty when every promise held."""
    wrong: list[str] = []
    known: set[int] = set()
    for number, life in enumerate(trace.lives):
        known.update(life.acknowledged, life.uncertain)
        wrong += [f"relay {number + 1}: {each}" for each in _judge_life(life, trace)]
    invented = set(trace.found) - known
    if invented:
        wrong.append(f"found, but never sent: {ranges(invented)}")
    if len(trace.lives) == 1:
        wrong += _judge_order(trace)
    return wrong


def _judge_life(life: Life, trace: Trace) -> list[str]:
    books = life.books
    wrong = []
    if not books.balanced:
        wrong.append(f"the books do not balance: {books}")
    most = len(life.acknowledged) + len(life.uncertain)
    if life.killed:
        if books.received > most:
            wrong.append(f"received {books.received} of {most} sent")
    elif not len(life.acknowledged) <= books.received <= most:
        wrong.append(
            f"received {books.received}, but {len(life.acknowledged)} of {most} were acknowledged"
        )
    unexpected = set(books.dropped) - trace.lossy
    if unexpected:
        wrong.append(f"dropped without need: { {r: books.dropped[r] for r in unexpected} }")
    found = sum(n in trace.found for n in (*life.acknowledged, *life.uncertain))
    refused = books.dropped.get("partial_success", 0)
    if books.exported + refused > found:
        wrong.append(f"exported {books.exported} + {refused}, but {found} were found")
    missing = sum(n not in trace.found for n in life.acknowledged)
    covered = sum(books.dropped.values()) - refused + books.filtered
    if life.killed:
        # What was in memory, and what came after the books were read.
        covered += books.waiting + len(life.acknowledged) - life.read
    elif books.waiting:
        wrong.append(f"{books.waiting} items are still waiting")
    if missing > covered:
        gone = {n for n in life.acknowledged if n not in trace.found}
        wrong.append(f"LOST UNCOUNTED {missing - covered} among {ranges(gone)}: {books}")
    return wrong


def _judge_order(trace: Trace) -> list[str]:
    """Whoever is displaced sees as many newer items in the ring as it holds: these survive."""
    life = trace.life
    if life.killed or life.uncertain or set(life.books.dropped) - {"queue_full", "partial_success"}:
        return []
    newest = set(sorted(life.acknowledged)[-trace.room :])
    lost = newest - set(trace.found)
    if lost:
        return [f"among the newest {trace.room} items, yet gone: {ranges(lost)}"]
    return []
