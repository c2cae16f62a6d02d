"""Campaigns: real processes and real faults, on Azurite and in local folders.

Each module is one campaign, and the first lines of it say what befalls whom. ``python -m campaigns
NAME`` runs one, from the folder `tests`; see docs/reliability.md.
"""
