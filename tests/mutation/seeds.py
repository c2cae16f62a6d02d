"""What the simulation says of a few seeds: the last that a mutant meets."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("seed", range(30))
def test_a_seed_shows_no_violation(seed):
    from simulation.scenario import draw  # most mutants don't get here
    from simulation.world import simulate

    assert not simulate(draw(seed)).violations
