"""The engine: the index blob, its commits and upkeep, and where values are put and found."""
