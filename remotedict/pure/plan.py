"""Plans: how commits enter the index, when they leave it, and what is merged when.

The tail holds the newest commits. When it would outgrow its limit it becomes a segment. Segments
of like size are merged, so that the index names O(log n) of them; and when they outgrow the
checkpoint, a new checkpoint takes their place. Both amortise to a small share of a commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from remotedict.pure import naming
from remotedict.pure.records import (
    HEADER_BYTES,
    Change,
    CheckpointRef,
    Commit,
    Index,
    LogRef,
    Range,
    Segment,
    SegmentRef,
    Set,
    encode,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remotedict.pure.keyring import Keyring

INDEX_BYTES = 13 * 1024
"""The size that the index blob keeps to: what the first round trip of a connection carries.

That is 10 segments, 14,600 bytes, with the headers of the request; benchmarks/limits.py measures it.
"""

FAN = 6
"""How many segments are merged at the least."""

WEIGHT = 3
"""The oldest segment of a merge is at most so many times as large as the others together.

So a large segment isn't rewritten for the sake of a few small ones. By simulation of 20,000 keys
(docs/design.md) a reopen reads at most a dozen blobs, whatever the sizes of values and commits."""

CHECKPOINT_MIN = 256 * 1024
"""Segments of fewer bytes than this are not worth a checkpoint."""


PAST_MIN = 4096
"""So many items of the past are not worth to be looked through between checkpoints."""


class NewSegment(NamedTuple):
    """A segment to be written before the index that names it."""

    ref: SegmentRef
    blob: bytes
    commits: list[Commit]  # with every place as the segment's readers will see it


def genesis(dictionary: bytes, incarnation: bytes) -> Index:
    """Return the index of a dictionary in which nothing has happened yet."""
    return Index(dictionary, incarnation, [], 1, 0, 0, 0, 0, 1, b"", None, None, [], [])


def extend(
    index: Index,
    commits: Sequence[Commit],
    uuid: Callable[[], bytes],
    keyring: Keyring | None = None,
    *,
    settle: bool = False,
) -> tuple[Index, NewSegment | None]:
    """Return `index` with `commits` added, and the segment that must be written first, if any.

    If they don't fit, or if it is to `settle` its tail, the whole tail moves into a segment,
    together with those of `commits` that still don't fit then: the longest suffix that does stays
    inline, where readers that are nearly up to date find it without another request.
    """
    after = replace(
        index,
        revision=index.revision + 1,
        seq=index.seq + len(commits),
        tail=[*index.tail, *commits],
    )
    limit = INDEX_BYTES - HEADER_BYTES - (keyring.overhead if keyring else 0)
    fits = size(after) <= limit
    if not after.tail or (fits and not (settle and index.tail)):
        return after, None
    room = limit - size(replace(after, tail=[])) - 256  # the new segment's reference
    kept = 0
    for commit in reversed(commits):
        room -= size(commit)
        if room < 0:
            break
        kept += 1
    cut = len(after.tail) - kept
    sealed, tail = after.tail[:cut], after.tail[cut:]
    segment = seal(index, sealed, index.base, last_blob(index), uuid(), keyring)
    after = replace(after, base=sealed[-1].id, segments=[*index.segments, segment.ref], tail=tail)
    return after, segment


def last_blob(index: Index) -> str:
    """Return the newest blob of the chain of segments and checkpoints, "" for none."""
    if index.segments:
        return index.segments[-1].blob
    return index.checkpoint.blob if index.checkpoint else ""


def seal(
    index: Index,
    commits: Sequence[Commit],
    base: bytes,
    previous: str,
    uuid: bytes,
    keyring: Keyring | None = None,
) -> NewSegment:
    """Return the segment that holds `commits`; their inline values go to its data area."""
    blob = f"s:{naming.unique(index.seq, uuid)}"
    stored, data = lay_out(commits)
    record = Segment(index.dictionary, index.incarnation, previous, base, index.horizon, stored)
    encoded = encode(record, data, keyring)
    ref = SegmentRef(blob, commits[0].seq, commits[-1].seq, len(encoded))
    return NewSegment(ref, encoded, resolve(stored, blob))


def lay_out(commits: Iterable[Commit]) -> tuple[list[Commit], list[bytes]]:
    """Return commits as their segment stores them, and the inline values for its data area.

    Where each value comes to lie follows from the commits alone: so whoever has seen them in the
    tail knows it without reading the segment.
    """
    data: list[bytes] = []
    at = HEADER_BYTES
    stored: list[Commit] = []
    for commit in commits:
        changes: list[Change] = []
        for change in commit.changes:
            if isinstance(change, Set) and isinstance(change.place, bytes):
                data.append(change.place)
                changes.append(replace(change, place=Range("", at, len(change.place))))
                at += len(change.place)
            else:
                changes.append(change)
        stored.append(replace(commit, changes=changes))
    return stored, data


def resolve(commits: Iterable[Commit], blob: str) -> list[Commit]:
    """Return the commits of the segment `blob` with every place named in full."""
    return [
        replace(
            commit,
            changes=[
                replace(change, place=replace(change.place, blob=blob))
                if isinstance(change, Set)
                and isinstance(change.place, Range)
                and not change.place.blob
                else change
                for change in commit.changes
            ],
        )
        for commit in commits
    ]


def due_merge(index: Index) -> list[SegmentRef]:
    """Return the newest segments, oldest first, if they should be merged now; else nothing.

    As many as can be, but the oldest of them must not be much larger than the others together.
    """
    start = total = 0
    for at, ref in reversed(list(enumerate(index.segments))):
        if ref.size <= WEIGHT * max(total, INDEX_BYTES):
            start = at
        total += ref.size
    run = index.segments[start:]
    return run if len(run) >= FAN else []


def merge(
    index: Index,
    refs: Sequence[SegmentRef],
    segments: Sequence[Segment],
    uuid: bytes,
    keyring: Keyring | None = None,
) -> NewSegment:
    """Return one segment with the commits of several; the values stay where they are."""
    commits = [
        commit
        for ref, segment in zip(refs, segments, strict=True)
        for commit in resolve(segment.commits, ref.blob)
    ]
    return seal(index, commits, segments[0].base, segments[0].previous, uuid, keyring)


def swap_merged(index: Index, refs: Sequence[SegmentRef], merged: SegmentRef) -> Index | None:
    """Return `index` with `merged` in place of `refs`.

    None when they are no longer there, or when vacuum may have taken `merged` for garbage.
    """
    blobs = [ref.blob for ref in index.segments]
    first = refs[0].blob
    if first not in blobs or naming.born(merged.blob) < index.horizon:
        return None
    at = blobs.index(first)
    if index.segments[at : at + len(refs)] != list(refs):
        return None
    segments = [*index.segments[:at], merged, *index.segments[at + len(refs) :]]
    return replace(index, revision=index.revision + 1, segments=segments)


def raise_horizon(index: Index, old: int) -> Index:
    """Return `index` with the horizon that may stand if commit `old` is old enough.

    It never shrinks. Nor does it pass the commit at which the one before was set: so an upload
    that was refused, and begun anew, outlives the next one, however long it takes.
    """
    allowed = min(old, index.horizon_seq or old)
    return replace(
        index,
        revision=index.revision + 1,
        horizon=max(index.horizon, allowed),
        horizon_seq=index.seq,
    )


def due_checkpoint(index: Index) -> bool:
    """Tell whether the segments have outgrown the checkpoint."""
    limit = max(CHECKPOINT_MIN, index.checkpoint.size if index.checkpoint else 0)
    return sum(ref.size for ref in index.segments) > limit


def due_drop(past: int, keys: int) -> bool:
    """Tell whether there is more past than present, and enough of it not to wait any longer.

    A large dictionary has a checkpoint seldom; if a few keys are overwritten over and over, what
    they were would fill the memory until then.
    """
    return past > max(PAST_MIN, keys)


def swap_checkpoint(
    index: Index, checkpoint: CheckpointRef, covered: Sequence[SegmentRef], log: LogRef
) -> Index | None:
    """Return `index` with a newer checkpoint, or None when it has no place there.

    It covers whole segments, never the tail, and replaces only an older one; and its log must
    have just these segments, beside those of the log before.
    """
    if list(index.segments[: len(covered)]) != list(covered):
        return None
    if min(naming.born(checkpoint.blob), naming.born(log.blob)) < index.horizon:
        return None
    return replace(
        index,
        revision=index.revision + 1,
        checkpoint=checkpoint,
        log=log,
        segments=index.segments[len(covered) :],
    )
