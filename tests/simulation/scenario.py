"""Scenarios: what one seed does, drawn by swarm testing.

Each seed has a mix of its own: of operations, faults, clients and tuning. So rare things meet
often in some seed, and not a little in all (Groce et al., "Swarm Testing", ISSTA 2012).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from simulation.network import FAULTS, Weather
from simulation.vacuum import with_vacuum


@dataclass
class Step:
    """One operation of a thread: what, and the seed of its details."""

    number: int
    kind: str
    seed: int


@dataclass
class Blow:
    """Something that befalls a client, or the index, at a time."""

    time: float
    kind: str
    client: int
    seconds: float


@dataclass
class Client:
    """One client: its options, its network, and what each of its threads does."""

    options: dict[str, Any]
    weather: Weather
    threads: list[list[Step]]
    interruptible: bool
    pause: float
    skew: float
    newer: bool


@dataclass
class Scenario:
    """What happens, as far as it is drawn before."""

    seed: int
    theme: str
    keys: int
    sizes: tuple[int, ...]
    clients: list[Client]
    blows: list[Blow]
    tuning: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """All kinds of operations in it."""
        return {step.kind for client in self.clients for steps in client.threads for step in steps}


KINDS = {
    "get": 6,
    "get_default": 1,
    "get_many": 3,
    "contains": 1,
    "len": 1,
    "keys": 1,
    "backwards": 0.5,
    "items": 2,
    "copy": 1,
    "values": 0.5,
    "pairs_backwards": 0.3,
    "has_pair": 0.5,
    "equal": 0.5,
    "merged": 0.3,
    "glob": 0.3,
    "shown": 0.2,
    "info": 0.2,
    "history": 0.3,
    "diff": 0.3,
    "get_file": 1.5,
    "version": 1,
    "metadata": 0.5,
    "query": 0.3,
    "at": 1,
    "snapshot": 1.5,
    "locks": 0.3,
    "set": 6,
    "set_many": 3,
    "update": 1.5,
    "put_file": 1.5,
    "put": 3,
    "delete": 2,
    "delete_many": 1,
    "pop": 1.5,
    "popitem": 1,
    "setdefault": 1.5,
    "clear": 0.5,
    "annotate": 1,
    "copy_item": 1.5,
    "revert": 1.5,
    "modify": 2,
    "transaction": 3,
    "commit": 1.5,
    "run": 1.5,
    "lock": 2,
    "unlock": 1.5,
    "force": 0.5,
    "section": 3,
    "forget": 0.7,
    "policy": 0.5,
    "watch": 1.5,
    "on_change": 0.5,
    "mirror": 1,
    "reopen": 0.5,
    "sleep": 1,
    "upgrade": 0.3,
}
"""Kinds of operations, and how often they are drawn; beside vacuum."""

_MORE = {"vacuum": 3, "export": 3, "stopped": 3, "repair": 3}
"""Kinds that are drawn by rare themes alone."""

SIGNING = (b"a key to sign with, 32 bytes long", b"and another one, for after that.")

BLOWS = ("pause", "kill", "fork", "interrupt", "rewind", "retag")

_TINY = {"INDEX_BYTES": (700, 1200), "FAN": (2, 3), "CHECKPOINT_MIN": (1, 2000)}
THEMES: dict[str, tuple[str, str, dict[str, tuple[Any, ...]]]] = {
    "locks": (
        "get set put lock unlock section force delete",
        "pause fork",
        {"LEASE_SECONDS": (2.0,), "keys": (1, 2), "latency": (0.02, 0.2), "spikes": (0.1, 0.2)},
    ),
    "bytes": (
        "get get_many items copy set set_many forget copy_item snapshot at revert mirror",
        "pause",
        {"cache_bytes": (0,), "inline_bytes": (0, 200), "keys": (2, 3), **_TINY},
    ),
    "growth": (
        "get set set_many put keys version delete watch modify",
        "pause kill retag",
        {**_TINY, "steps": (8, 12), "rate": (0.0, 0.1)},
    ),
    "following": (
        "set set_many delete watch on_change mirror annotate forget policy",
        "pause retag",
        {**_TINY, "rate": (0.1, 0.25), "steps": (8,), "timeout": (3.0, 20.0)},
    ),
    "past": (
        "get set delete at revert snapshot policy copy_item put",
        "pause",
        {**_TINY, "retention": (0.0,)},
    ),
    "restore": ("get set put keys version items get_many", "rewind pause", {"keys": (1, 2)}),
    "forgetting": (
        "set_many get get_many forget:2 copy_item revert items",
        "pause",
        {
            "cache_bytes": (0,),
            "inline_bytes": (0, 200),
            "keys": (3, 5),
            "count": (3, 4),
            "rate": (0.0, 0.0, 0.1),
            **_TINY,
        },
    ),
    "mirrors": (
        "set set_many delete mirror:3 forget put_file",
        "pause",
        {
            "cache_bytes": (0,),
            "inline_bytes": (0, 200),
            "retention": (0.0,),
            "keys": (2, 3),
            "count": (3, 4),
            "slowness": (1, 60),
            "steps": (3, 5),
            **_TINY,
        },
    ),
    "interrupts": (
        "set set_many update put_file get put delete pop popitem transaction section",
        "interrupt",
        {"inline_bytes": (0,), "keys": (1, 2), "rate": (0.0, 0.1), "blows": (3, 6)},
    ),
    "sections": (
        "section get set",
        "pause kill",
        {"keys": (2,), "threads": (3,), "rate": (0.0, 0.03), "steps": (3, 5)},
    ),
    "formats": ("get set put items delete upgrade watch", "pause", {}),
}
"""What meets more often than by chance: kinds of operations, blows, and tuning."""

RARE: dict[str, tuple[str, str, dict[str, tuple[Any, ...]]]] = {
    "overtaking": (  # of one answer by another, in one handle
        "get get_default contains version get_many items set put",
        "",
        {
            "keys": (1, 2),
            "count": (2, 3),
            "threads": (3,),
            "steps": (8, 12),
            "pause": (0.0, 0.01),
            "latency": (0.02, 0.2),
            "spikes": (0.1, 0.2),
            "rate": (0.0,),
        },
    ),
    "abandoned": (  # writes, interrupted while they look whether a lock's holder is dead
        "set:4 put forget:3 lock:2",
        "interrupt",
        {
            "LEASE_SECONDS": (2.0,),
            "inline_bytes": (2048,),
            "keys": (3,),
            "count": (2, 3),
            "threads": (1,),
            "steps": (8, 12),
            "pause": (0.0,),
            "latency": (0.2,),
            "spikes": (0.2,),
            "rate": (0.0,),
            "blows": (30,),
            "longer": (10,),
        },
    ),
    "crowd": (  # of writers who get in each other's way
        "set:3 put get",
        "",
        {
            "count": (4, 5),
            "steps": (8, 12),
            "pause": (0.0,),
            "slowness": (1, 10),
            "rate": (0.0,),
            "_PATIENT_LOSSES": (2,),
        },
    ),
    "losses": (  # of locks that several threads of one handle rely on
        "stopped:2 section set:4 get",
        "",
        {
            "LEASE_SECONDS": (2.0,),
            "keys": (1, 2),
            "count": (2, 3),
            "threads": (2, 3),
            "steps": (8, 12),
            "pause": (0.1, 1.0),
            "latency": (0.002, 0.02),
            "spikes": (0.0,),
            "rate": (0.0,),
        },
    ),
    "merges": (  # that take longer than vacuums
        "set:2 set_many vacuum:2",
        "",
        {
            **_TINY,
            "CHECKPOINT_MIN": (256 * 1024,),
            "inline_bytes": (2048,),
            "count": (1, 2),
            "threads": (3,),
            "steps": (8, 12),
            "pause": (0.0, 0.01),
            "spikes": (0.1, 0.2),
            "rate": (0.0,),
        },
    ),
    "copies": (  # to another store, of a dictionary that others write to
        "set:3 set_many export:2 get delete forget lock put_file vacuum",
        "kill rewind",
        {**_TINY, "count": (2, 3), "threads": (1, 2), "steps": (6, 8), "pause": (0.0, 0.1)},
    ),
    "signed": (  # with two keys, of which some clients use the one, and some the other
        "set set_many get put copy_item revert put_file get_file forget snapshot items reopen export",
        "kill",
        {**_TINY, "cache_bytes": (0,), "signing": (True,), "codec": ("pickle", "safe")},
    ),
}
"""What one seed of ten is about: rare encounters, each of which needs much to come together."""

REPAIR: tuple[str, str, dict[str, tuple[Any, ...]]] = (
    (
        "set:3 set_many put put_file get get_many items keys version delete copy_item revert annotate "
        "transaction section lock watch mirror snapshot repair:2 reopen"
    ),
    "damage",
    {
        "INDEX_BYTES": (700, 1200, 2500),
        "FAN": (2, 3),
        "CHECKPOINT_MIN": (1, 2000, 8000),
        "count": (2, 3),
        "threads": (1, 1, 2),
        "steps": (6, 10),
        "pause": (0.0, 0.01, 0.1),
        "blows": (1, 2, 2, 3),
        "slowness": (1, 1, 10),
    },
)
"""What one seed of fifty is about: an index that is lost or damaged, and repaired."""


def _often(kind: str) -> tuple[str, int]:
    """Return a kind of operation in a theme, and how many times as often as else it is drawn."""
    name, _, times = kind.partition(":")
    return name, int(times or 1)


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    rng = random.Random(seed)
    chance = rng.random
    theme = rng.choice([*THEMES, "locks", "bytes"]) if chance() < 0.75 else ""
    if seed % 10 == 8:
        theme = [*RARE][seed // 10 % len(RARE)]
    if seed % 50 == 48:
        theme = "repair"
    themed = {**THEMES, **RARE, "repair": REPAIR}.get(theme, ("", "", {}))

    def choice(options: Any, name: str = "") -> Any:
        return rng.choice(themed[2].get(name, options))

    often = dict(_often(kind) for kind in themed[0].split()) or dict.fromkeys(KINDS, 1)
    kinds = list(often)
    few = rng.sample(kinds, rng.randint(3, len(kinds) // 2 + 2))
    if chance() < 0.3:
        few = kinds
    if chance() < 0.9:
        few = [*{*few, "get", "set"}]
        few.sort()
    weights = [
        {**KINDS, **_MORE}[kind] * often.get(kind, 1) * choice((0.3, 1, 1, 3)) for kind in few
    ]

    faults = tuple(rng.sample(FAULTS, rng.randint(1, len(FAULTS))))
    rate = choice((0.0, 0.03, 0.1, 0.25), "rate")
    latency = choice((0.002, 0.02, 0.2), "latency")
    spikes = choice((0.0, 0.02, 0.1), "spikes")
    pause = choice((0.0, 0.01, 0.1, 3.0), "pause")
    count = choice((1, 2, 2, 3, 3, 4), "count")
    steps = choice(range(2, 9), "steps")
    number = 0

    def thread() -> list[Step]:
        nonlocal number
        drawn = []
        for kind in rng.choices(few, weights, k=rng.randint(1, steps)):
            number += 1
            drawn.append(Step(number, kind, rng.getrandbits(32)))
        return drawn

    inline = choice((0, 200, 2048), "inline_bytes")
    history = choice((None, None, "all", 2))
    timeout = choice((3.0, 20.0, 60.0), "timeout")
    retention = choice((0.0, 0.5, 3600.0), "retention")
    staleness = choice((0.0, 0.0, 0.0, 0.0, 0.5))
    clients = []
    for n in range(count):
        slowly = choice((1, 1, 1, 10), "slowness")
        mine = Weather(min(latency * slowly, 1.0), spikes, rate * choice((0, 1, 1, 1)), faults)
        clients.append(
            Client(
                {
                    "author": "ABCDEFG"[n],
                    "timeout": timeout,
                    "max_staleness": staleness,
                    "inline_bytes": inline if chance() < 0.8 else choice((0, 200, 2048)),
                    "cache_bytes": choice((0, 2000, 1_000_000), "cache_bytes"),
                    "retention": retention,
                    "history": history if n == 0 or chance() < 0.2 else None,
                },
                mine,
                [thread() for _ in range(choice((1, 1, 1, 2, 3), "threads"))],
                interruptible=False,
                pause=pause,
                skew=choice((0.0, 0.0, -100.0, 1000.0)),
                newer=chance() < 0.5,
            )
        )
    length = steps * (latency * 6 + pause) * themed[2].get("longer", (1,))[0]
    blows = []
    struck = rng.sample(BLOWS, rng.randint(0, 3)) if chance() < 0.4 else []
    always = theme in RARE or theme == "repair"
    struck += [
        kind for kind in themed[1].split() if (chance() < 0.5 or always) and kind not in struck
    ]
    # A forgotten key would come back with an index from before that.
    if "rewind" in struck and {"forget", "vacuum"} & {*few}:
        struck.remove("rewind")
    if "damage" in struck:
        struck = [kind for kind in struck if kind != "rewind"]
        # Who may not list begins anew where an index is lost; and what arrives cut is damaged.
        for n, client in enumerate(clients):
            told = tuple(f for f in client.weather.faults if f not in {"deny", "truncate"})
            calmer = client.weather._replace(faults=told, rate=client.weather.rate if told else 0.0)
            clients[n].weather = calmer
    for kind in struck:
        for _ in range(choice((1, 2, 3), "blows")):
            seconds = choice((0.1, 5.0, 20.0, 40.0))
            blows.append(Blow(chance() * length, kind, rng.randrange(count), seconds))
    blows.sort(key=lambda blow: blow.time)
    for blow in blows:
        if blow.kind == "interrupt":
            clients[blow.client].interruptible = True
    log_seconds = choice((0.0, 5.0, 86400.0))
    scenario = Scenario(
        seed,
        theme,
        keys=choice((1, 2, 2, 3, 5), "keys"),
        sizes=choice(((0,), (0, 100), (0, 300, 3000), (0, 0, 100, 300, 3000))),
        clients=clients,
        blows=blows,
        tuning={
            "INDEX_BYTES": choice((700, 1200, 2500, 16384), "INDEX_BYTES"),
            "FAN": choice((2, 3, 6), "FAN"),
            "CHECKPOINT_MIN": choice((1, 2000, 8000, 256 * 1024), "CHECKPOINT_MIN"),
            "LOG_SECONDS": log_seconds,
            "PIECE_BYTES": choice((256, 1024, 8 << 20)),
            "PACK_BYTES": choice((500, 16 << 20)),
            "CHUNK_BYTES": choice((600, 1 << 20)),
            "_SMALL": choice((600, 1 << 20)),
            "_UPLOAD_ITEMS": choice((2, 10_000)),
            "_WINDOW_ITEMS": choice((1, 4096)),
            "LEASE_SECONDS": choice((2.0, 15.0, 15.0), "LEASE_SECONDS"),
            "RECENT_IDS": choice((6, 64)) if log_seconds > 3600 else 64,
            "_PATIENT_LOSSES": choice((5,), "_PATIENT_LOSSES"),
        },
    )
    if themed[2].get("signing"):
        codec = choice(("pickle",), "codec")
        for n, client in enumerate(clients):
            keys = SIGNING if n % 2 else SIGNING[::-1]
            client.options |= {"signing_key": list(keys), "codec": codec}
    return with_vacuum(scenario)
