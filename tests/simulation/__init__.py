"""Deterministic simulation: the engine unchanged, on a store, a clock and a network that are made up.

One seed draws a scenario and every interleaving; `run.simulate` replays it to the same trace.
"""
