"""The pure part: records, state, conditions, codec. No I/O, no clock, no threads."""
