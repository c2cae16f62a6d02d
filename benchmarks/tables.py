"""The benchmark's results as tables: as text, and as Markdown for the documentation."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from lab import OLD, Sample
from proxy import Counts
from works import WORKS

Results = dict[str, dict[str, dict[str, Sample]]]
"""By round-trip time in ms, work and peer."""

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PUBLISHED = RESULTS / "published.json"
"""The results that the documentation shows."""

PAGE = HERE.parent / "docs" / "performance.md"

MINE = "remotedict"


def environment() -> dict[str, str]:
    """Return on what was measured."""
    packages = ["azure-storage-blob", "obstore", "adlfs", "minimalkv", "remotedict"]
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processors": str(os.cpu_count()),
        **{name: version(name) for name in packages},
    }


def median(sample: Sample) -> float:
    """Return the median time in ms."""
    return statistics.median(sample.seconds) * 1000


def spread(sample: Sample) -> tuple[float, float]:
    """Return the quartiles in ms."""
    if len(sample.seconds) < 2:
        return median(sample), median(sample)
    low, _, high = statistics.quantiles(sample.seconds, n=4, method="inclusive")
    return low * 1000, high * 1000


def best(by_peer: dict[str, Sample]) -> str | None:
    """Return the fastest peer, if there is any."""
    others = [peer for peer in by_peer if peer != MINE]
    return min(others, key=lambda peer: median(by_peer[peer]), default=None)


def requests(sample: Sample) -> float:
    """Return the number of requests of an operation."""
    return sample.counts.requests / sample.operations


def verdicts(work: str, rtt: str, by_peer: dict[str, Sample]) -> list[tuple[str, bool | None]]:
    """Return the parts of a goal, each with what was found, and whether it is met."""
    goal, mine = WORKS[work].goal, by_peer.get(MINE)
    if mine is None:
        return []
    found: list[tuple[str, bool | None]] = []
    if goal.requests is not None:
        number = statistics.median(mine.requests)
        noun = "request" if goal.requests == 1 else "requests"
        found.append((f"≤ {goal.requests} {noun}: {number:.3g}", number <= goal.requests))
    if goal.ratio is not None:
        against = goal.against or best(by_peer)
        what = f"≤ {goal.ratio:.3g} × {goal.against or 'the best peer'}"
        if against in by_peer:
            ratio = median(mine) / median(by_peer[against])
            found.append((f"{what}: {ratio:.3g}", ratio <= goal.ratio))
    if goal.seconds is not None:
        seconds = median(mine) / 1000
        met = seconds <= goal.seconds if float(rtt) == 20 else None
        found.append((f"≤ {goal.seconds:g} s at 20 ms: {seconds:.3g}", met))
    if goal.round_trips is not None and float(rtt):
        trips = median(mine) / float(rtt)
        found.append(
            (f"≤ {goal.round_trips:g} round trips: {trips:.3g}", trips <= goal.round_trips)
        )
    return found


def text(samples: Results) -> str:
    """Return all that was found, for a terminal."""
    lines = []
    for rtt, by_work in samples.items():
        for work, by_peer in by_work.items():
            lines.append(f"{rtt} ms  {work}: {WORKS[work].title}")
            for peer, sample in by_peer.items():
                low, high = spread(sample)
                each = sample.operations
                counts = sample.counts
                lines.append(
                    f"    {peer:12} {median(sample):9.2f} ms  [{low:.2f} … {high:.2f}]"
                    f"  {requests(sample):7.2f} requests  {counts.up / each:11,.0f} B up"
                    f" {counts.down / each:11,.0f} B down  {sample.cpu / each * 1000:8.2f} ms CPU"
                    f"  {_answers(sample)}"
                )
            for what, met in verdicts(work, rtt, by_peer):
                lines.append(f"    {'' if met is None else 'ok  ' if met else 'NOT '} {what}")
    return "\n".join(lines)


def _answers(sample: Sample) -> str:
    return ", ".join(
        f"{number / sample.operations:.3g} {name}" for name, number in sample.counts.answers.items()
    )


def markdown(samples: Results, rtt: str) -> str:
    """Return a table for one round-trip time: medians in ms, and requests in brackets."""
    peers = [MINE, "obstore", "sdk", "adlfs", "minimalkv", OLD]
    lines = [
        "| work | " + " | ".join(peers) + " | goal: found |",
        "| --- " * (len(peers) + 2) + "|",
    ]
    for work, by_peer in samples[rtt].items():
        cells = [WORKS[work].title]
        cells += [_cell(by_peer[peer]) if peer in by_peer else "–" for peer in peers]
        goals = [
            what if met is None else f"{'✓' if met else '✗'} {what}"
            for what, met in verdicts(work, rtt, by_peer)
        ]
        lines.append("| " + " | ".join([*cells, "; ".join(goals)]) + " |")
    return "\n".join(lines) + "\n"


def _cell(sample: Sample) -> str:
    low, high = spread(sample)
    return f"{_ms(median(sample))} ± {_ms((high - low) / 2)} ({_number(requests(sample))})"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def write(path: Path, began: str, samples: Results) -> None:
    """Keep results in a file."""
    report = {
        "began": began,
        "environment": environment(),
        "samples": {
            rtt: {
                work: {peer: asdict(sample) for peer, sample in by_peer.items()}
                for work, by_peer in by_work.items()
            }
            for rtt, by_work in samples.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def publish(path: Path) -> None:
    """Put results into the documentation, between its marks ``<!-- rtt 20 -->`` and ``<!-- end -->``."""
    report = json.loads(path.read_text("utf-8"))
    samples = {
        rtt: {
            work: {
                peer: Sample(**{**sample, "counts": Counts(**sample["counts"])})
                for peer, sample in by_peer.items()
            }
            for work, by_peer in by_work.items()
        }
        for rtt, by_work in report["samples"].items()
    }
    page = PAGE.read_text("utf-8")
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    shown = {f"rtt {rtt}": markdown(samples, rtt) for rtt in samples}
    shown["environment"] = f"Measured on {report['began'][:10]}: {where}.\n"
    for mark, block in shown.items():
        between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = between.sub(lambda match, block=block: match[1] + block + match[2], page)
    PAGE.write_text(page, "utf-8")
    if path.resolve() != PUBLISHED:
        PUBLISHED.write_bytes(path.read_bytes())
