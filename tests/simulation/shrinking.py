"""Shrinking: a smaller scenario that still breaks a promise."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from simulation.world import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulation.scenario import Scenario

_SEEDS = 5
"""With what is left out the rest happens otherwise: so several interleavings are tried."""


def shrunk(scenario: Scenario, *, rounds: int = 20) -> Scenario:
    """Return a scenario with as little in it as breaks a promise of the same kind."""
    wanted = {violation.kind for violation in simulate(scenario).violations}
    for _ in range(rounds):
        smaller = next((s for s in _smaller(scenario) if _breaks(s, wanted)), None)
        if smaller is None:
            return scenario
        scenario = smaller
    return scenario


def _breaks(scenario: Scenario, wanted: set[str]) -> bool:
    return any(violation.kind in wanted for violation in simulate(scenario).violations)


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Yield scenarios with less in them, the much smaller ones first."""
    for reduced in _reductions(scenario):
        for n in range(_SEEDS):
            reduced.seed = scenario.seed + n
            yield deepcopy(reduced) if n else reduced


def _reductions(scenario: Scenario) -> Iterator[Scenario]:
    def changed() -> Scenario:
        return deepcopy(scenario)

    for n, client in enumerate(scenario.clients):
        if len(scenario.clients) > 1:
            new = changed()
            del new.clients[n]
            new.blows = [blow for blow in new.blows if blow.client != n]
            for blow in new.blows:
                blow.client -= blow.client > n
            yield new
        for t, steps in enumerate(client.threads):
            for half in (slice(0, len(steps) // 2), slice(len(steps) // 2, None)):
                if len(steps) > 1:
                    new = changed()
                    del new.clients[n].threads[t][half]
                    yield new
    if scenario.blows:
        new = changed()
        new.blows = []
        yield new
    for n, client in enumerate(scenario.clients):
        if client.weather.rate:
            new = changed()
            new.clients[n].weather = client.weather._replace(rate=0.0)
            yield new
            for fault in client.weather.faults:
                rest = tuple(f for f in client.weather.faults if f != fault)
                if rest:
                    new = changed()
                    new.clients[n].weather = client.weather._replace(faults=rest)
                    yield new
        for t, steps in enumerate(client.threads):
            for s in range(len(steps)):
                new = changed()
                del new.clients[n].threads[t][s]
                yield new
    for n in range(len(scenario.blows)):
        new = changed()
        del new.blows[n]
        yield new
