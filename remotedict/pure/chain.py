"""Chains: how segments and checkpoints that were found fit together, where no index says so.

A commit is known by its number and its id. A segment is a *link* from the commit before its first
one to its last; a checkpoint is where a chain may begin.
"""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from remotedict.pure.records import Commit

    Node = tuple[int, bytes]


class Link(NamedTuple):
    """Commits that are known to follow each other.

    Attributes
    ----------
    blob : str
        The reference of the segment; "" for the tail of an index.
    first : int
        The first commit.
    base : bytes
        The id of the commit before it.
    ids : tuple of bytes
        The ids of the commits.
    certain : int
        Up to which commit they were made for certain. A writer puts the commits that it is about
        to make into a segment, and may then lose the race.
    size : int
        Of the blob.
    time : float
        When the store took it.
    made_up : bool
        Whether it stands for lost commits, by ones without changes: a repair has made them up. It
        leads nowhere: a repair that came no further may have left it.
    """

    blob: str
    first: int
    base: bytes
    ids: tuple[bytes, ...]
    certain: int
    size: int = 0
    time: float = 0.0
    made_up: bool = False

    @classmethod
    def of(
        cls,
        commits: Sequence[Commit],
        base: bytes,
        *,
        certain: int,
        blob: str = "",
        size: int = 0,
        time: float = 0.0,
    ) -> Link:
        """Return the link that these commits are, of which there is one at least."""
        ids = tuple(commit.id for commit in commits)
        made_up = not any(commit.changes for commit in commits)
        return cls(blob, commits[0].seq, base, ids, certain, size, time, made_up)

    @property
    def last(self) -> int:
        """The last commit."""
        return self.first + len(self.ids) - 1

    @property
    def is_segment(self) -> bool:
        """Whether it is in the store, and not what somebody has in memory."""
        return self.blob.startswith("s:")

    @property
    def start(self) -> Node:
        """The commit before the first."""
        return self.first - 1, self.base

    @property
    def end(self) -> Node:
        """The last commit, with its id."""
        return self.last, self.ids[-1] if self.ids else self.base

    def upto(self, last: int) -> Link:
        """Return the part that ends with commit `last`."""
        return self._replace(ids=self.ids[: last - self.first + 1])

    def after(self, node: Node) -> tuple[bytes, ...] | None:
        """Return the ids of the commits after `node`; None if that isn't on the way."""
        seq, known = node
        at = seq - self.first
        if not -1 <= at < len(self.ids) - 1 or known != (self.ids[at] if at >= 0 else self.base):
            return None
        return self.ids[at + 1 :]


class Base(NamedTuple):
    """A state that a chain may begin with, such as that of a checkpoint.

    `time` is when the store took the blob; `certain` up to which commit it tells what was made. A
    repair makes up commits that come after those, and others may then have been quicker.
    """

    seq: int
    head: bytes
    blob: str
    time: float = 0.0
    certain: float = inf

    @property
    def is_certain(self) -> bool:
        """Whether there was such a state, whatever others have built on it."""
        return self.certain >= self.seq

    @property
    def node(self) -> Node:
        """The commit, with its id."""
        return self.seq, self.head


BEGINNING = Base(0, b"", "")
"""Nothing, before the first commit."""


class Gap(NamedTuple):
    """Commits that are lost, `first` to `last`; `head` is the id of the last one.

    `sealed` is when the store took what comes before: whatever it took later can't belong to
    commits before the gap.
    """

    first: int
    last: int
    head: bytes
    sealed: float


class Chain(NamedTuple):
    """What to begin with, what follows, and what came before.

    Attributes
    ----------
    base : Base
        The state to begin with.
    steps : list of Link and Gap
        What follows it, without a break. A link may be a part of its segment.
    before : list of Link
        Segments that lead to the base, without a break.
    rivals : set of str
        The segments of which each may be the one that goes on where the chain ends: writers have
        raced for that. None of them is in it.
    """

    base: Base
    steps: list[Link | Gap]
    before: list[Link]
    rivals: frozenset[str]

    @property
    def seq(self) -> int:
        """The newest commit of the chain."""
        return self.steps[-1].last if self.steps else self.base.seq

    @property
    def sealed(self) -> float:
        """When the store took the newest blob of the chain."""
        times = [step.time for step in self.steps if isinstance(step, Link)]
        return times[-1] if times else self.base.time

    @property
    def gaps(self) -> list[Gap]:
        """The steps that are missing."""
        return [step for step in self.steps if isinstance(step, Gap)]


def choose(bases: Collection[Base], links: Collection[Link]) -> Chain:
    """Return the newest chain that can be made.

    It begins with the base from which one comes farthest. Where commits are missing it leaves a
    gap, and goes on with what comes then. Commits that their writer was about to make count only
    if nothing speaks against them.

    Parameters
    ----------
    bases : collection of Base
        `BEGINNING`, and checkpoints, as far as they are whole.
    links : collection of Link
        Segments, as far as they are whole, and the tail, be it empty, of an index that can still
        be read: there the chain ends.
    """
    for tail in [link for link in links if not link.blob]:
        bases = [base for base in bases if base.seq < tail.first]
        links = [link for link in links if link is tail or link.last < tail.first]
    ways = _Ways(bases, links)
    base = max(bases, key=lambda one: (ways.reach(one.node, one.certain), one.seq))
    steps: list[Link | Gap] = []
    node, time = base.node, base.time
    while True:
        path = ways.path(node)
        steps += path
        if path:
            node, time = path[-1].end, path[-1].time
        onward = ways.next_start(node[0])
        if onward is None:
            break
        steps.append(Gap(node[0] + 1, *onward, time))
        node = onward
    rivals = _extend(steps, node, links)
    return Chain(base, steps, ways.back(base.node), rivals)


class _Ways:
    """Which links lead from where, and how far one comes."""

    def __init__(self, bases: Iterable[Base], links: Iterable[Link]) -> None:
        self._known = {base.node for base in bases if base.is_certain}
        self._from: dict[Node, list[Link]] = defaultdict(list)
        self._to: dict[Node, list[Link]] = defaultdict(list)
        for link in links:
            if not link.made_up:
                self._from[link.start].append(link)
            self._to[link.end].append(link)
        # The tail of an index counts more than any number of commits that it doesn't know.
        self._best: dict[Node, tuple[bool, int, Link]] = {}
        for node in sorted(self._from, reverse=True):
            self._best[node] = max(
                ((*self._reach_by(link), link) for link in self._from[node]),
                key=lambda way: (way[0], way[1], way[2].last, way[2].size),
            )

    def _reach_by(self, link: Link) -> tuple[bool, int]:
        if not link.blob:
            return True, link.last
        if link.end in self._best:
            ends, far, _ = self._best[link.end]
            if ends or far >= link.last:  # who built on it knew that it was made
                return ends, far
        return False, link.last if link.end in self._known else min(link.certain, link.last)

    def reach(self, node: Node, certain: float = inf) -> tuple[bool, float]:
        """Return whether one comes from there to the tail, and to which commit at the most."""
        here = (False, min(certain, node[0]))
        return max(self._best[node][:2], here) if node in self._best else here

    def path(self, node: Node) -> list[Link]:
        """Return the links by which one comes farthest, as far as they are certain."""
        path: list[Link] = []
        while node in self._best:
            link = self._best[node][2]
            reached = self._reach_by(link)[1]
            if reached < link.first:
                break
            path.append(link if reached >= link.last else link.upto(reached))
            node = path[-1].end
        return path

    def next_start(self, seq: int) -> Node | None:
        """Return the commit nearest behind `seq` from which some way leads on."""
        ways = [(node, *self.reach(node)) for node in self._from if node[0] > seq]
        tail = min((node[0] for node, ends, _ in ways if ends), default=None)
        onward = [
            (node[0], not ends, -far, node)
            for node, ends, far in ways
            if ends or (far > node[0] and (tail is None or far <= tail))
        ]
        return min(onward)[-1] if onward else None

    def back(self, node: Node) -> list[Link]:
        """Return the links that lead to a node, from as far as there are any."""
        begins: dict[Node, tuple[int, Link | None]] = {}
        for end in sorted(self._to):
            begins[end] = min(
                (
                    (begins.get(link.start, (link.first, None))[0], link)
                    for link in self._to[end]
                    if link.is_segment
                ),
                key=lambda way: (way[0], way[1].first),
                default=(end[0], None),
            )
        path: list[Link] = []
        while node in begins and (link := begins[node][1]):
            path.append(link)
            node = link.start
        return path[::-1]


def _extend(steps: list[Link | Gap], node: Node, links: Iterable[Link]) -> frozenset[str]:
    """Add what was about to be made after `node` if all who were about to do so agree.

    Else return the segments in which they say what.
    """
    onward = [(ids, link) for link in links if not link.made_up and (ids := link.after(node))]
    if not onward:
        return frozenset()
    ids, longest = max(onward, key=lambda way: len(way[0]))
    if any(ids[: len(other)] != other for other, _ in onward):
        return frozenset(link.blob for _, link in onward)
    rest = longest._replace(first=node[0] + 1, base=node[1], ids=ids)
    if steps and isinstance(last := steps[-1], Link) and last.blob == longest.blob:
        rest = last._replace(ids=last.ids + ids)
        steps.pop()
    steps.append(rest)
    return frozenset()
