"""Run a campaign: ``python -m campaigns NAME``, from the folder `tests`, or ``all`` of them."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

from campaigns.report import Report

NAMES = ("replies", "kills", "stops", "forks", "interrupts", "disks", "histories")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m campaigns")
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument("--on", choices=["local", "azure"], help="a local folder, or Azurite")
    parser.add_argument("--times", type=int, help="by default, what the documentation tells of")
    parser.add_argument("--small", action="store_true", help="as few times as the tests do")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    # For the processes that campaigns start.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    multiprocessing.set_forkserver_preload([f"campaigns.{name}" for name in NAMES])
    anomalies = 0
    for name in NAMES if given.name == "all" else [given.name]:
        campaign = importlib.import_module(f"campaigns.{name}")
        for kind in [given.on] if given.on else campaign.KINDS:
            if given.small and kind not in getattr(campaign, "SMALL_KINDS", campaign.KINDS):
                continue
            times = given.times or (campaign.SMALL if given.small else campaign.FULL)
            report, begun = Report(), time.monotonic()
            print(f"{name} on {kind}: {times} times, seed {given.seed}", flush=True)
            try:
                campaign.run(kind, times, random.Random(given.seed), report)
            finally:
                took = time.monotonic() - begun
                print(f"{name} on {kind}, in {took:,.0f} s: {report}", flush=True)
            anomalies += len(report.anomalies)
    sys.exit(anomalies > 0)


if __name__ == "__main__":
    main()
