"""Vacuum: when it runs, and what it may delete."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from remotedict.pure.naming import born
from remotedict.pure.records import Checkpoint, Log, decode
from remotedict.pure.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remotedict.pure.records import Index
    from simulation.scenario import Scenario
    from simulation.witness import Witness

_TINY: dict[str, tuple[Any, ...]] = {
    "INDEX_BYTES": (700, 1200),
    "FAN": (2, 3),
    "CHECKPOINT_MIN": (1, 2000),
    "LOG_SECONDS": (0.0, 0.0, 5.0),
}


def with_vacuum(scenario: Scenario) -> Scenario:
    """Let some of the steps be vacuums, in some of the scenarios.

    Drawn apart from all else, so that the others stay as they were. A restored index names what
    vacuum has deleted since, and a repaired one what an earlier vacuum has taken off the list: those
    scenarios are left alone, but for what is done by itself.
    """
    rng = random.Random(f"vacuum {scenario.seed}")
    if any(blow.kind in {"rewind", "damage"} for blow in scenario.blows):
        scenario.tuning["LOG_SECONDS"] = 86400.0
        for client in scenario.clients:
            client.options["retention"] = 3600.0
        return scenario
    scenario.tuning["BATCH"] = rng.choice((1, 2, 1000))
    if rng.random() < 0.6:
        return scenario
    share = rng.choice((0.1, 0.2, 0.4))
    for client in scenario.clients:
        for steps in client.threads:
            for step in steps:
                if step.kind != "upgrade" and rng.random() < share:
                    step.kind = "vacuum"
    if rng.random() < 0.7:
        for name, values in _TINY.items():
            scenario.tuning[name] = rng.choice(values)
        scenario.tuning["RECENT_IDS"] = 64  # what no id tells of any more, the log does
        for client in scenario.clients:
            client.options["retention"] = rng.choice((0.0, 0.0, 0.5))
            client.options["inline_bytes"] = rng.choice((0, 200, 2048))
            client.options["cache_bytes"] = 0
        if rng.random() < 0.6:  # what one has written others have passed before it is named
            slow = rng.choice(scenario.clients)
            # But not so slow that others renew leases for hours until it is done.
            slow.weather = slow.weather._replace(latency=min(slow.weather.latency * 30, 10.0))
    return scenario


class Keeper:
    """Knows what is named and what was, and so what nobody may delete."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._named: set[str] = set()  # by the index or its log, now
        self._ever: set[str] = set()

    def named(self, index: Index, who: str) -> dict[str, str]:
        """See that what an index names is there; return what it didn't name before, by path."""
        witness, layout = self._witness, self._witness.layout
        refs = [ref.blob for ref in (index.checkpoint, index.log, *index.segments) if ref]
        if index.log:
            data = witness.store.blob(layout.path(index.log.blob))
            if data is not None:
                refs += [
                    ref.blob
                    for ref in decode(data, Log, index.log.blob, witness.keyring)[0].segments
                ]
        named = {layout.path(blob): blob for blob in refs}
        fresh = {path: blob for path, blob in named.items() if path not in self._named}
        for path in fresh:
            if witness.store.blob(path) is None:
                witness.fail("missing", f"{who} named {path}, which isn't there")
        self._named = set(named)
        return fresh

    def landed(self, index: Index, old: Index | None, who: str) -> None:
        """Look at what an index names."""
        for path, blob in self.named(index, who).items():
            if path not in self._ever and born(blob) < index.horizon:
                self._witness.fail(
                    "horizon", f"{who} named {path} below the horizon {index.horizon}"
                )
        self._ever |= self._named
        if old and index.moved != old.moved and index.checkpoint:
            self._moved(index)

    def _moved(self, index: Index) -> None:
        """Learn where values are now: their bytes were copied, and a checkpoint says where to."""
        assert index.checkpoint is not None
        path = self._witness.layout.path(index.checkpoint.blob)
        data = self._witness.store.blob(path)
        if data is None:
            return
        record, table = decode(data, Checkpoint, path, self._witness.keyring)
        state = State.from_checkpoint(record, table, path)
        for key in state.known_keys():
            for item in state.listed(key):
                blob = getattr(item, "blob", lambda _: None)(key)
                if blob is not None:
                    where = item.range(key)
                    which = (key, item.version, item.generation)
                    self._witness.place(which, blob, where.offset, where.length)

    def deleted(self, paths: Iterable[str]) -> None:
        """See that nothing is deleted that is needed, or that somebody may be about to name."""
        witness, paths = self._witness, list(paths)
        if witness.repairs.broken:
            witness.fail("repair", f"{paths} were deleted, though there was no index")
        index = witness.index
        if index is None or witness.rewinds:
            return
        self._ever |= witness.places
        needed = witness.needed()
        for path in paths:
            if path in self._named:
                witness.fail("missing", f"{path} was deleted, but the index or its log names it")
            if path in needed:
                witness.fail("vacuum", f"{path} was deleted, but {needed[path]} is listed")
            if path not in self._ever and born(path) >= index.horizon:
                witness.fail("vacuum", f"{path} was deleted, but may still be named")
