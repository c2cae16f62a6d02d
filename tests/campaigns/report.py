"""What a campaign has done, and what it has found."""

from __future__ import annotations

import reprlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Counts of what was done, and a sentence about each thing that should not be."""

    counts: Counter[str] = field(default_factory=Counter)
    anomalies: list[str] = field(default_factory=list)

    def did(self, what: str, times: int = 1) -> None:
        """Count something."""
        self.counts[what] += times

    def wrong(self, what: str) -> None:
        """Take down an anomaly, and say it at once."""
        self.anomalies.append(what)
        print(f"ANOMALY: {what}", flush=True)

    def check(self, right: bool, what: str) -> None:
        """Take down an anomaly unless all is right."""
        if not right:
            self.wrong(what)

    def __str__(self) -> str:
        counts = ", ".join(f"{what} {times:,}" for what, times in self.counts.items())
        return f"{counts}; {len(self.anomalies)} anomalies"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 20


def short(value: Any) -> str:
    """Return a repr that leaves out what is long."""
    return _SHORT.repr(value)
