"""The configuration of several services, with a record of who changed what, when and why.

``python examples/configuration.py [FOLDER]`` keeps it in an empty folder; without an argument in a
temporary one. With an ``AzureDictionary`` in `open_configuration`, services and people can be
anywhere.
"""

from __future__ import annotations

import sys
import tempfile
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from remotedict import LocalDictionary, VersionConflictError

if TYPE_CHECKING:
    from remotedict import Event

FIRST = {
    "checkout/timeout": 3.0,
    "checkout/providers": ["acme", "globex"],
    "search/limit": 50,
    "search/weights": {"popularity": 1.0, "freshness": 0.2},
}
OWNERS = {"checkout": "payments", "search": "catalogue"}


def open_configuration(folder: str, author: str) -> LocalDictionary:
    """Open the configuration that all share. With ``history="all"`` no version is ever dropped."""
    return LocalDictionary(folder, "configuration", author=author, history="all")


class Service:
    """A service whose settings are the keys that begin with its name.

    It reads a mirror: a copy of the configuration in its own memory, kept current in the
    background. So a setting can be read as often as one likes, and while the store can't be
    reached the service goes on with what it has.
    """

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.applied: SimpleQueue[Event] = SimpleQueue()
        self._config = open_configuration(folder, author=name)
        # How many seconds lie between two looks: at first, and when nothing has happened for long.
        poll = (0.05, 1.0)
        self._mirror = self._config.mirror(prefetch=True, poll=poll)
        # `since` makes sure that no change falls between the mirror's beginning and this one.
        self._config.on_change(self._apply, f"{name}/*", since=self._mirror.seq, poll=poll)

    def settings(self) -> dict[str, Any]:
        """Return all settings as of one moment: never one half of somebody's commit."""
        own = f"{self.name}/"
        return {key.removeprefix(own): v for key, v in self._mirror.items() if key.startswith(own)}

    def _apply(self, change: Event) -> None:
        """Apply a change. Called in a background thread, once for each, in the order of commits."""
        if change.kind == "set":
            # The mirror looks by itself, and may be a moment behind.
            self._mirror.wait_for(change.key, version=change.version, timeout=30)
            # Here a real service would make a new client, resize a pool...
            self.applied.put(change)

    def stop(self) -> None:
        """Close the configuration, which ends all that follows it."""
        self._config.close()


class Form(NamedTuple):
    """A setting on somebody's screen, as it was when they opened it."""

    key: str
    value: Any
    version: int


def look(config: LocalDictionary, key: str) -> Form:
    """Open a setting for editing."""
    now = config.snapshot()  # So the value and its version are of the same moment.
    return Form(key, now[key], now.version(key))


def save(config: LocalDictionary, form: Form, value: Any, *, author: str, comment: str) -> None:
    """Save what was edited, unless somebody else has saved since the form was opened.

    Raises
    ------
    VersionConflictError
        Somebody has. Nothing was written.
    """
    with config.commit(author=author, comment=comment):
        config.put(form.key, value, version=form.version + 1)


def publish(config: LocalDictionary) -> int:
    """Write the first configuration; return the number of its commit."""
    with config.commit(author="ann", comment="first configuration") as commit:
        for key, value in FIRST.items():
            config.put(key, value, metadata={"owner": OWNERS[key.partition("/")[0]]})
    assert commit.seq is not None
    return commit.seq


def add_provider(config: LocalDictionary) -> None:
    """Change two settings that belong together: all services see both changes, or none."""
    with config.commit(author="ann", comment="initech joins, and is slow"):
        config["checkout/providers"] = [*config["checkout/providers"], "initech"]
        config["checkout/timeout"] = 5.0
        config.metadata["checkout/timeout"].update(ticket="PAY-17")


def edit_at_once(config: LocalDictionary) -> VersionConflictError | None:
    """Let two people edit the same setting. Nothing that either of them did may be lost."""
    refused = None
    anns, bobs = look(config, "search/weights"), look(config, "search/weights")
    save(config, anns, {**anns.value, "freshness": 0.5}, author="ann", comment="newest first")
    mine = {"author": "bob", "comment": "bestsellers first"}
    try:
        save(config, bobs, {**bobs.value, "popularity": 2.0}, **mine)
    except VersionConflictError as conflict:
        refused = conflict
        show("Bob is told that he isn't the first", conflict)
        # He looks at what was done since he opened his form, finds that his own change still makes
        # sense, and makes it anew, on what is there now.
        history = config.history(conflict.key)
        show("He looks at what was done meanwhile", table(history[history.version > bobs.version]))
        bobs = look(config, conflict.key)
        save(config, bobs, {**bobs.value, "popularity": 2.0}, **mine)
    return refused


def break_something(config: LocalDictionary) -> None:
    """Make a mistake."""
    with config.commit(author="bob", comment="tidying up"):
        config["checkout/timeout"] = 0.3
        config["search/limit"] = 40


def repair(config: LocalDictionary) -> None:
    """Take back one of the changes of a commit. That is a new version: it hides nothing."""
    with config.commit(author="ann", comment="0.3 s was a slip: nobody could pay"):
        config.revert("checkout/timeout", version=2)
        config.metadata["checkout/timeout"].update(ticket="PAY-18")


def main(folder: str) -> None:
    """Tell the story from the first configuration to an incident, and its end."""
    config = open_configuration(folder, author="console")
    if config.history().size:
        raise SystemExit(f"{folder} has a configuration already; this needs an empty folder")
    first = publish(config)
    show("The first configuration", config.info()[["type", "version", "author", "metadata"]])

    checkout, search = services = [Service("checkout", folder), Service("search", folder)]
    show("Services start", *(f"{service.name}: {service.settings()}" for service in services))

    add_provider(config)
    applied = [wait(checkout), wait(checkout)]
    show("The settings that checkout uses now", checkout.settings())

    refused = edit_at_once(config)
    applied += [wait(search), wait(search)]
    show("Search has what both of them wanted", search.settings())

    before = config.snapshot()
    break_something(config)
    applied += [wait(checkout), wait(search)]
    show("Customers complain! What has changed since then?", config.diff(before))
    for key in config.diff(before).index:
        show(f"{key} was {before[key]}, and is {config[key]}")
    show("Who did that, and why?", table(config.history("checkout/timeout")))

    repair(config)
    applied.append(wait(checkout))
    show("Repaired", checkout.settings())

    show("All that ever happened, newest first", table(config.history()))
    show("What the team of payments owns", config.query(owner="payments"))
    show("What was changed last for ticket PAY-18", config.query(ticket="PAY-18"))
    show("All as it was at first", config.snapshot(at=first).copy())

    # Both services use what is in the dictionary now, and have it from changes that each of them
    # was told of exactly once.
    used = {f"{s.name}/{name}": value for s in services for name, value in s.settings().items()}
    assert used == {
        "checkout/timeout": 5.0,
        "checkout/providers": ["acme", "globex", "initech"],
        "search/limit": 40,
        "search/weights": {"popularity": 2.0, "freshness": 0.5},
    }
    assert config == used
    assert [(change.key, change.version, change.author) for change in applied] == [
        ("checkout/providers", 2, "ann"),
        ("checkout/timeout", 2, "ann"),
        ("search/weights", 2, "ann"),
        ("search/weights", 3, "bob"),
        ("checkout/timeout", 3, "bob"),
        ("search/limit", 2, "bob"),
        ("checkout/timeout", 4, "ann"),
    ]
    assert checkout.applied.empty()
    assert search.applied.empty()

    # Bob's first attempt was refused, and left no trace.
    assert refused is not None
    assert (refused.key, refused.provided, refused.expected) == ("search/weights", 2, 3)
    weights = config.history("search/weights").query("kind == 'set'")
    assert weights["author"].tolist() == ["bob", "ann", "ann"]

    # Each version of each setting is still there, with its author and comment.
    timeout = config.history("checkout/timeout").query("kind == 'set'")
    assert timeout["version"].tolist() == [4, 3, 2, 1]
    assert [config.at("checkout/timeout", version) for version in (4, 3, 2, 1)] == [5, 0.3, 5, 3]
    assert timeout["comment"].tolist() == [
        "0.3 s was a slip: nobody could pay",
        "tidying up",
        "initech joins, and is slow",
        "first configuration",
    ]
    assert config.snapshot(at=first) == FIRST
    assert config.diff(before)["change"].to_dict() == {
        "checkout/timeout": "changed",
        "search/limit": "changed",
    }
    assert config.metadata["checkout/timeout"] == {"owner": "payments", "ticket": "PAY-18"}
    assert config.history_policy == "all"

    for service in services:
        service.stop()
    config.close()


def wait(service: Service) -> Event:
    """Wait until a service has applied its next change."""
    change = service.applied.get(timeout=30)
    show(f"{service.name} applies version {change.version} of {change.key}, by {change.author}")
    return change


def table(history: Any) -> str:
    """Return a history as somebody who looks for a culprit wants to read it."""
    columns = ["time", "author", "kind", "key", "version", "comment"]
    shown = history[columns].assign(time=history["time"].dt.strftime("%H:%M:%S"))
    return str(shown.to_string(index=False))


def show(title: str, *values: object) -> None:
    """Print a title, and values below it."""
    print(f"-- {title}")
    for value in values:
        print("   " + str(value).replace("\n", "\n   "))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
