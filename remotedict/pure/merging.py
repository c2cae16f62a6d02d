"""Merging: how a table becomes the next one, by whole columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from remotedict.pure.columns import GONE, ITEM, PAST, PAST_ITEM, VALUE, Interner, compacted
from remotedict.pure.table import Table, digests

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from remotedict.pure.entry import Item, Stamp
    from remotedict.pure.packing import Array
    from remotedict.pure.records import Set


def updated(
    table: Table, changes: Mapping[str, Sequence[Item]], forgotten: Collection[str] = ()
) -> Table:
    """Return a new table with `changes` made; none of them may be inline.

    Parameters
    ----------
    table : Table
        Where they are made.
    changes : mapping
        For each key what it became, one after the other: the last is what it is now, and all
        before, with what is in the table, join the past.
    forgotten : collection
        Those of the keys that have no past.
    """
    intern = Interner(table.columns, table.lists)
    keys = list(changes)
    new = intern.columns([items[-1] for items in changes.values()])
    earlier = [(n, item) for n, items in enumerate(changes.values()) for item in items[:-1]]
    past = intern.columns([item for _, item in earlier])
    of = np.array([n for n, _ in earlier], np.int64)
    without_past = np.array([key in forgotten for key in keys], bool)
    return _merged(table, intern, _Moves(table, keys, new), (of, past), without_past)


def extended(table: Table, sets: Sequence[Set], stamp: Stamp, next_order: int) -> tuple[Table, int]:
    """Return a new table with all that a commit sets, and the number of keys that are new.

    Their orders count from `next_order` on. No place may be inline, and no key be there twice.
    """
    intern = Interner(table.columns, table.lists)
    keys = [change.key for change in sets]
    rows = table.find_all(keys)
    new = intern.sets(sets, stamp)
    stays = (rows >= 0) & (rows < table.rows)
    order = (np.cumsum(~stays) - 1).astype("<u8") + np.uint64(next_order)
    metadata = np.full(len(keys), intern.text(""), "<u8")
    order[stays] = table.columns["order"][rows[stays]]
    metadata[stays] = table.columns["metadata"][rows[stays]]
    new |= {"order": order, "metadata": metadata}
    nothing = (np.empty(0, np.int64), intern.columns([]))
    moves = _Moves(table, keys, new, rows)
    merged = _merged(table, intern, moves, nothing, np.zeros(len(keys), bool))
    return merged, int((~stays).sum())


class _Moves:
    """Which rows of a table stay, which are replaced where they are, and which move or are new."""

    def __init__(
        self, table: Table, keys: list[str], new: dict[str, Array], rows: Array | None = None
    ) -> None:
        self.keys = keys
        self.new = new
        self.rows = rows = table.find_all(keys) if rows is None else rows
        live = new["blob"] != GONE
        stays = live & (rows >= 0) & (rows < table.rows)
        stays[stays] = table.columns["order"][rows[stays]] == new["order"][stays]
        self.replaced = np.flatnonzero(stays)
        added = np.flatnonzero(live & ~stays)
        self.added = added[np.argsort(new["order"][added], kind="stable")]
        self.gone = np.flatnonzero(~live)
        self.known = np.flatnonzero(rows >= 0)
        self.keep = np.ones(table.rows + table.tombstones, bool)
        self.keep[rows[~stays & (rows >= 0)]] = False
        # The new row of each old one, and of each key that changes.
        kept = np.cumsum(self.keep) - 1
        alive = int(self.keep[: table.rows].sum())
        self.numbers = np.where(np.arange(len(kept)) < table.rows, kept, kept + len(self.added))
        self.of = np.empty(len(keys), np.int64)
        self.of[self.replaced] = self.numbers[rows[self.replaced]]
        self.of[self.added] = alive + np.arange(len(self.added))
        first_gone = int(self.keep.sum()) + len(self.added)
        self.of[self.gone] = first_gone + np.arange(len(self.gone))
        self.numbers[rows[self.known]] = self.of[self.known]


def _merged(
    table: Table,
    intern: Interner,
    moves: _Moves,
    earlier: tuple[Array, dict[str, Array]],
    without_past: Array,
) -> Table:
    old, new, rows = table.columns, moves.new, moves.rows
    live, dead = moves.keep[: table.rows], moves.keep[table.rows :]
    columns: dict[str, Array] = {}
    for name in ITEM | VALUE:
        column = old[name]
        if len(moves.replaced):
            column = column.astype(new[name].dtype)
            column[rows[moves.replaced]] = new[name][moves.replaced]
        parts = [_taken(column[: table.rows], live), new[name][moves.added]]
        if name in ITEM:
            parts += [_taken(column[table.rows :], dead), new[name][moves.gone]]
        columns[name] = np.concatenate(parts)
    columns |= _merged_keys(table, moves)
    columns |= _merged_past(table, intern, moves, earlier, without_past)
    columns |= intern.stamps()
    since = columns["stamp_seq"][columns["past_stamp"]]
    sort = np.lexsort((columns["past_version"], since, columns["past_of"]))
    columns |= {name: columns[name][sort] for name in PAST}
    return Table.of(*compacted(columns, intern.lists))


def _taken(column: Array, mask: Array) -> Array:
    return column if mask.all() else column[mask]


def _merged_past(
    table: Table,
    intern: Interner,
    moves: _Moves,
    earlier: tuple[Array, dict[str, Array]],
    without_past: Array,
) -> dict[str, Array]:
    """Return the past items: those of the table, what it has now of keys that change, and more."""
    old, rows = table.columns, moves.rows
    forgotten = rows[without_past & (rows >= 0)]
    kept = ~np.isin(old["past_of"], forgotten) if len(forgotten) else np.ones(table.past, bool)
    becomes = moves.known[~without_past[moves.known]]
    becomes = becomes[old["version"][rows[becomes]] > 0]  # a forgotten key has no past
    was_live = becomes[rows[becomes] < table.rows]
    was_dead = becomes[rows[becomes] >= table.rows]
    of, past = earlier
    columns = {
        "past_of": [
            moves.numbers[old["past_of"][kept]],
            moves.of[was_live],
            moves.of[was_dead],
            moves.of[of],
        ]
    }
    nothing = intern.nothing(old["stamp"][rows[was_dead]])
    for name in PAST_ITEM:
        plain = name.removeprefix("past_")
        now = old[plain]
        dead = now[rows[was_dead]] if plain in ITEM else nothing[plain]
        columns[name] = [old[name][kept], now[rows[was_live]], dead, past[plain]]
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _merged_keys(table: Table, moves: _Moves) -> dict[str, Array]:
    """Return the columns that hold and find the keys: kept, added, kept dead, newly dead."""
    old, keep = table.columns, moves.keep
    if keep.all() and not len(moves.added) and not len(moves.gone):
        return {name: old[name] for name in ("key", "key_end", "hash", "hash_row")}
    text, ends = old["key"], old["key_end"].astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    split = int(ends[table.rows - 1]) if table.rows else 0
    texts, sizes, raws = [], [], []
    halves = (
        (text[:split], slice(None, table.rows), moves.added),
        (text[split:], slice(table.rows, None), moves.gone),
    )
    for chars, part, which in halves:
        kept, raw = keep[part], [moves.keys[n].encode() for n in which.tolist()]
        texts += [
            chars if kept.all() else chars[np.repeat(kept, lengths[part])],
            np.frombuffer(b"".join(raw), np.uint8),
        ]
        sizes += [lengths[part][kept], np.fromiter(map(len, raw), np.int64, len(raw))]
        raws += raw
    # Two sorted runs, which are merged in one pass.
    fresh = digests(raws)
    at = np.argsort(fresh, kind="stable")
    stay = keep[old["hash_row"]]
    digest = np.concatenate([old["hash"][stay], fresh[at]])
    row = np.concatenate(
        [
            moves.numbers[old["hash_row"][stay]],
            np.concatenate([moves.of[moves.added], moves.of[moves.gone]])[at],
        ]
    )
    merged = np.argsort(digest, kind="stable")
    return {
        "key": np.concatenate(texts),
        "key_end": np.cumsum(np.concatenate(sizes)),
        "hash": digest[merged],
        "hash_row": row[merged],
    }
