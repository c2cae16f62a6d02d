"""All that users can ask of a dictionary, with what each does by itself."""

from __future__ import annotations

import copy
import io
import pickle
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import remotedict
from remotedict import RemoteDict

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = bytes(range(256)) * 400  # has a blob of its own

# What `object` has as well, but a dictionary does in its own way, or by requests of its own.
_INHERITED = {"__eq__", "__init__", "__reduce__", "__repr__"}  # not: what only says no
_NOT_OPERATIONS = {
    *("__abstractmethods__", "__annotations__", "__class_getitem__", "__dict__", "__module__"),
    *("__orig_bases__", "__slots__", "__weakref__", "__parameters__", "__firstlineno__"),
    *("__static_attributes__", "__protocol_attrs__"),
}


class Operation(NamedTuple):
    """One way to call one public name.

    Attributes
    ----------
    name : str
        The name.
    act : callable
        Given a handle, calls it; what it returns must be the same each time.
    commits : int
        How many commits it makes at the most. One that makes several may stop between them.
    """

    name: str
    act: Callable[[RemoteDict], Any]
    commits: int = 0


def public_names() -> set[str]:
    """Return the public names of a dictionary, as Python knows them."""
    own = {name for name in dir(RemoteDict) if name not in dir(object)} | _INHERITED
    special = {"_repr_html_", "_ipython_key_completions_"}
    return {
        name
        for name in own - _NOT_OPERATIONS
        if not name.startswith("_") or name in special or name.startswith("__")
    }


def _exported(d: RemoteDict) -> Any:
    url = f"memory://{uuid.uuid4().hex}"
    d.export(url)
    return remotedict.open(url).copy()


def prepare(d: RemoteDict) -> None:
    """Put into an empty dictionary what the operations expect."""
    d.history_policy = "all"
    d["a", "b", "gone"] = 1, 2, 3
    d.put("large", LARGE, metadata={"owner": "ann"})
    d["a"] = "one"
    del d["gone"]


def seen(observer: RemoteDict) -> Any:
    """Return all that users can see of a dictionary, but who and when."""
    history = observer.history()
    return (
        observer.copy(),
        {key: dict(metadata) for key, metadata in observer.metadata.items()},
        history[["key", "kind", "version"]].values.tolist(),
        sorted(observer.locks),
        observer.history_policy,
    )


def _section(d: RemoteDict) -> Any:
    with d.lock("a"):
        d["a"] = f"{d['a']} more"
        return d["a"]


def _lock_and_unlock(d: RemoteDict) -> Any:
    d.lock_item(["a", "b"])
    d["a"] = "locked"
    d.unlock_item(["a", "b"])


def _gather(d: RemoteDict) -> None:
    with d.commit("a comment"):
        d["a"] = 10
        d["new"] = LARGE
        del d["b"]


def _transaction(d: RemoteDict) -> Any:
    with d.transaction() as t:
        t["new"] = t["a"], len(t["large"])
        t["b"] = 20
        return t["new"]


def _transfer(t: Any) -> Any:
    t["a", "b"] = t["b"], t["a"]
    return t["a"]


def _write_policy(d: RemoteDict) -> None:
    d.history_policy = 7


def _downloaded(d: RemoteDict) -> bytes:
    file = io.BytesIO()
    d.get_file("large", file)
    return file.getvalue()


def _opened(d: RemoteDict) -> bytes:
    with d.open("large") as file:
        file.seek(1000)
        return file.read(50_000)


def _subscribe(d: RemoteDict) -> Any:
    seen: list[str] = []
    subscription = d.on_change(lambda event: seen.append(event.key), since=0, poll=(0.01, 0.02))
    for _ in range(500):
        if len(seen) == 7:
            break
        d._engine.runtime.sleep(0.01)
    subscription.stop()
    return seen


def _mirror(d: RemoteDict) -> Any:
    with d.mirror(prefetch=True, poll=(0.01, 0.02)) as m:
        return dict(m)


def _in_context(d: RemoteDict) -> Any:
    with copy.copy(d) as other:
        return other["a"]


def _leave(d: RemoteDict) -> Any:
    other = copy.copy(d)
    other.lock_item("b")
    other.close()


def _merged(d: RemoteDict) -> Any:
    d |= {"a": "merged", "new": LARGE}


def _delete(d: RemoteDict) -> None:
    del d["a", "large"]


def _set_many(d: RemoteDict) -> None:
    d["a", "n1", "n2"] = "many", LARGE[:30_000], LARGE[:40_000]


def _set_small(d: RemoteDict) -> None:
    d["a"] = "small"


def _set_large(d: RemoteDict) -> None:
    d["a"] = LARGE * 2


def _annotate(d: RemoteDict) -> None:
    d.metadata["large"] = {"stage": "raw"}


def _annotate_more(d: RemoteDict) -> None:
    d.metadata["large"].update(stage="raw")


def _open_with_policy(d: RemoteDict) -> Any:
    session = d._session
    timeout = session.options.timeout
    with RemoteDict(session.place, session.layout.folder, history=5, timeout=timeout) as other:
        return other["a"], other.history_policy


def _force(d: RemoteDict) -> None:
    with copy.copy(d) as other:
        other.lock_item("b")
        d.unlock_item("b", force=True)


OPERATIONS = [
    # Reads.
    Operation("__getitem__", lambda d: d["a"]),
    Operation("__getitem__", lambda d: d["large"]),
    Operation("__getitem__", lambda d: d[["large", "a", "b"]]),
    Operation("get", lambda d: (d.get("large"), d.get("gone", "no"))),
    Operation("__contains__", lambda d: ("a" in d, "gone" in d)),
    Operation("__len__", len),
    Operation("__iter__", list),
    Operation("__reversed__", lambda d: list(reversed(d))),
    Operation("keys", lambda d: list(d.keys())),
    Operation("values", lambda d: list(d.values())),
    Operation("items", lambda d: list(d.items())),
    Operation("copy", lambda d: d.copy()),
    Operation("__eq__", lambda d: d == {"a": "one", "b": 2, "large": LARGE}),
    Operation("__or__", lambda d: d | {"a": "other"}),
    Operation("__ror__", lambda d: {"a": "other"} | d),
    Operation("version", lambda d: d.version("a")),
    Operation("metadata", lambda d: dict(d.metadata["large"])),
    Operation("query", lambda d: list(d.query(owner="ann"))),
    Operation("glob", lambda d: d.glob("l*")),
    Operation("info", lambda d: d.info()[["version"]].to_dict()),
    Operation("index", lambda d: d.index.index.tolist()),
    Operation("open", _opened),
    Operation("get_file", _downloaded),
    Operation("history_policy", lambda d: d.history_policy),
    Operation("history", lambda d: d.history()[["key", "kind", "version"]].values.tolist()),
    Operation("at", lambda d: d.at("a", 1)),
    Operation("snapshot", lambda d: dict(d.snapshot())),
    Operation("snapshot", lambda d: dict(d.snapshot(2))),
    Operation("diff", lambda d: d.diff(1)["change"].to_dict()),
    Operation("watch", lambda d: [e.key for e in d.watch(since=0, timeout=0)]),
    Operation("on_change", _subscribe),
    Operation("mirror", _mirror),
    Operation("locks", lambda d: d.locks),
    Operation("stats", lambda d: d.stats.requests > 0),
    Operation("__repr__", lambda d: "Num elements: 3" in repr(d)),
    Operation("_repr_html_", lambda d: "large" in d._repr_html_()),
    Operation("_ipython_key_completions_", lambda d: d._ipython_key_completions_()),
    Operation("__init__", _open_with_policy, 2),
    Operation("__copy__", lambda d: copy.copy(d)["large"]),
    Operation("__deepcopy__", lambda d: copy.deepcopy(d)["a"]),
    Operation("__reduce__", lambda d: len(pickle.dumps(d)) > 0),
    Operation("__enter__", _in_context),
    Operation("__exit__", _in_context),
    Operation("verify", lambda d: d.verify(deep=True).ok),
    Operation("repair", lambda d: d.repair().whole),
    Operation("export", _exported),
    # Writes.
    Operation("vacuum", lambda d: d.vacuum().blobs, 1),
    Operation("__setitem__", _set_small, 1),
    Operation("__setitem__", _set_large, 1),
    Operation("__setitem__", _set_many, 1),
    Operation("update", lambda d: d.update(a="updated", new=LARGE), 1),
    Operation("__ior__", _merged, 1),
    Operation("__delitem__", _delete, 1),
    Operation("pop", lambda d: d.pop("large"), 1),
    Operation("popitem", lambda d: d.popitem(), 1),
    Operation("setdefault", lambda d: (d.setdefault("a", 5), d.setdefault("new", 5)), 1),
    Operation("clear", lambda d: d.clear(), 1),
    Operation("put", lambda d: d.put("a", "put", version=3, metadata={"n": 1}), 1),
    Operation("put", lambda d: d.put("new", LARGE, if_absent=True), 1),
    Operation("put_file", lambda d: d.put_file("a", io.BytesIO(LARGE * 3)), 1),
    Operation("copy_item", lambda d: d.copy_item("large", "b"), 1),
    Operation("revert", lambda d: d.revert("a", 1), 1),
    Operation("forget", lambda d: d.forget("large"), 2),
    Operation("metadata", _annotate, 1),
    Operation("metadata", _annotate_more, 1),
    Operation("history_policy", _write_policy),
    Operation("commit", _gather, 1),
    Operation("transaction", _transaction, 1),
    Operation("run", lambda d: d.run(_transfer), 1),
    Operation("modify", lambda d: d.modify("b", lambda n: n + 1), 1),
    # Locks.
    Operation("lock_item", lambda d: d.lock_item("a", wait=False), 1),
    Operation("unlock_item", _lock_and_unlock, 3),
    Operation("unlock_item", _force, 2),
    Operation("lock", _section, 3),
    Operation("close", _leave, 2),
]
