"""Counts of things that add up over any division of the lines, the order in which they were met included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

Thing = TypeVar("Thing")

Place = tuple[int, int]
"""(number of the line, how many other things it has before this one)."""


@dataclass(kw_only=True, slots=True)
class OrderedTally(Generic[Thing]):
    """How often each of some things occurs in numbered lines, and where it occurs first.

    Lines may be counted in any order and by any number of tallies that are merged: counts and order come
    out the same. Reports print things that are equally common in the order in which a reader of the data
    set meets them.
    """

    counts: Counter[Thing] = field(default_factory=Counter)
    first: dict[Thing, Place] = field(default_factory=dict)

    def add(self, line: int, things: Sequence[Thing]) -> None:
        """Count what line number ``line`` has, from left to right."""
        self.counts.update(things)
        for number, thing in enumerate(dict.fromkeys(things)):
            self._met(thing, (line, number))

    def merge(self, other: OrderedTally[Thing]) -> None:
        """Add what ``other`` counted in other lines."""
        self.counts.update(other.counts)
        for thing, place in other.first.items():
            self._met(thing, place)

    def in_order(self) -> Counter[Thing]:
        """The counts, by where each thing occurs first."""
        return Counter(
            {thing: self.counts[thing] for thing in sorted(self.first, key=self.first.__getitem__)}
        )

    def pieces(self, most: int) -> Iterator[OrderedTally[Thing]]:
        """Tallies of at most ``most`` things each, which merged are this one."""
        entries = iter(self.counts.items())
        while part := dict(islice(entries, most)):
            yield OrderedTally(counts=Counter(part), first={thing: self.first[thing] for thing in part})

    def _met(self, thing: Thing, place: Place) -> None:
        known = self.first.get(thing)
        if known is None or place < known:
            self.first[thing] = place
