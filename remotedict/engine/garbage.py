"""Garbage: which blobs nothing needs and nobody can come to need any more, and their end."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from remotedict.backend import NOT_MODIFIED, BlobNotFound
from remotedict.errors import CorruptBlobError
from remotedict.pure import codec, naming, records
from remotedict.pure.references import References

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from remotedict.backend import BlobInfo
    from remotedict.engine.index import Known
    from remotedict.engine.patient import Patient
    from remotedict.engine.runtime import Runtime
    from remotedict.pure.entry import Entry
    from remotedict.pure.keyring import Keyring
    from remotedict.pure.naming import Layout
    from remotedict.pure.records import SegmentRef

BATCH = 1000
"""How many blobs are judged, and deleted, at once."""


def seqs_of_age(blobs: Iterable[BlobInfo], layout: Layout, now: float, *ages: float) -> list[int]:
    """Return for each age the newest commit that is known to be so many seconds old; 0 for none.

    By the store's own times. The name of a blob carries a commit that its writer knew: that
    commit, and what it replaced, is no younger than the blob.
    """
    seqs = [0] * len(ages)
    for blob in blobs:
        if layout.reference(blob.name):
            born = naming.born(blob.name)
            for n, age in enumerate(ages):
                if blob.time <= now - age and born > seqs[n]:
                    seqs[n] = born
    return seqs


def references_of(entries: Iterable[tuple[str, Entry]]) -> set[str]:
    """Return the blobs that hold entries, given with their keys; none may be inline."""
    return {entry.range(key).blob for key, entry in entries}


def owner(
    backend: Patient, path: str, reference: str, size: int, keyring: Keyring | None
) -> bytes | None:
    """Return the id of the dictionary that a blob is of, by its bytes; None if it is of none.

    Raises
    ------
    BlobNotFound
        There is no such blob.
    CorruptBlobError
        It is shorter than `size`, or an answer was cut short.
    """

    def read(offset: int, length: int) -> bytes:
        got = backend.get(path, range=(offset, length))
        assert got is not NOT_MODIFIED  # noqa: S101 - for the type checker
        missing = min(length, size - offset) - len(got.data)
        if missing > 0:
            raise CorruptBlobError(path, f"{missing} bytes of its beginning are missing")
        return bytes(got.data)

    if reference[:1] in ("v", "p"):
        return codec.dictionary_of(read(0, codec.START_BYTES))
    return records.dictionary_of(read, size, keyring)


class Judged(NamedTuple):
    """What one blob of a listing is: `reference` is None if its name isn't ours."""

    blob: BlobInfo
    reference: str | None
    garbage: bool


class Garbage:
    """Tells garbage from what is needed, by one state, and deletes it.

    Garbage is what the state doesn't need, and what no later one can: its name carries a seq
    below the horizon. Such a state is that of the very commit that set a horizon, and nothing is
    judged before that is known to stand: so whoever was about to name a blob with such a name is
    refused by now. What once is garbage stays so: to delete it later is as good as now.

    Parameters
    ----------
    backend, layout, runtime
        What to ask, where things are, and what runs it in parallel.
    known : Known
        The state.
    log : sequence of SegmentRef
        The segments that its log names.
    keyring : Keyring, optional
        What opens records.
    dropped : collection of str, optional
        What was listed, and was taken off the list by a commit before that state: if the state
        doesn't need it, it is garbage at once, for what isn't listed can't be named again.
    """

    def __init__(
        self,
        backend: Patient,
        layout: Layout,
        runtime: Runtime,
        known: Known,
        log: Sequence[SegmentRef],
        *,
        keyring: Keyring | None,
        dropped: Collection[str] = (),
    ) -> None:
        assert known.index is not None  # noqa: S101 - for the type checker
        self._backend = backend
        self._layout = layout
        self._runtime = runtime
        self._dictionary = known.index.dictionary
        self._keyring = keyring
        self._dropped = dropped
        self.horizon = known.index.horizon
        checkpoint = known.index.checkpoint
        self.checkpoint_size = checkpoint.size if checkpoint else 0
        self.references = References(known.state, known.index, log)

    def judged(self, blobs: Iterable[BlobInfo]) -> Iterator[list[Judged]]:
        """Yield what each blob of a listing is, in batches."""
        blobs = iter(blobs)
        while batch := list(islice(blobs, BATCH)):
            references = [self._layout.reference(blob.name) for blob in batch]
            ours = [reference for reference in references if reference]
            needed = dict(zip(ours, self.references.needed(ours), strict=True))
            yield [
                Judged(
                    blob,
                    reference,
                    bool(reference and not needed[reference] and self._past(reference)),
                )
                for blob, reference in zip(batch, references, strict=True)
            ]

    def _past(self, reference: str) -> bool:
        """Tell whether nobody may name a blob any more unless it is needed already."""
        return naming.born(reference) < self.horizon or reference in self._dropped

    def delete(self, blobs: Sequence[BlobInfo]) -> set[str]:
        """Delete blobs that are garbage, if they are `own`; return the names of those."""
        doomed = self.own(blobs)
        with self._runtime.still_wanted():  # an interrupt ends it
            pass
        if doomed:
            self._backend.delete(sorted(doomed))
        return doomed

    def own(self, blobs: Sequence[BlobInfo]) -> set[str]:
        """Return the names of those that are this dictionary's, by their first bytes.

        A name may be like ours by chance. And a folder may have what is left of a dictionary
        that was there before, and whose index was lost: somebody may want to repair it.
        """
        mine = self._runtime.map(self._is_own, blobs)
        return {blob.name for blob, own in zip(blobs, mine, strict=True) if own}

    def _is_own(self, blob: BlobInfo) -> bool:
        if not blob.size:
            return False
        reference = self._layout.reference(blob.name) or ""
        try:
            found = owner(self._backend, blob.name, reference, blob.size, self._keyring)
        except BlobNotFound:  # somebody else has deleted it
            return True
        except CorruptBlobError:  # or so it seems this time
            return False
        return found == self._dictionary
