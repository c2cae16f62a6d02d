"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from azurite import Azurite
from faults import World
from remotedict import LocalDictionary, MemoryDictionary
from remotedict.azure import AzureDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remotedict import RemoteDict

# Times say more about the machine than about the code: neither a deadline nor "too slow".
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A red build must mean that the change broke something: the same examples on every run.
settings.register_profile(
    "ci", settings.get_profile("default"), derandomize=True, max_examples=50, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that in the end nobody waits for it."""
    items.sort(key=lambda item: "whatever_the_seed" not in item.name)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azurite, running for the whole session; every test makes its own container in it."""
    with Azurite() as server:
        yield server


def pytest_configure(config: pytest.Config) -> None:
    """Let tests be interrupted in the workers of pytest-xdist, too: these ignore it otherwise."""
    if hasattr(config, "workerinput"):
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Shop:
    """Opens handles on one dictionary of one kind: the `open` of the `shop` fixture's tests."""

    def __init__(self, kind: str, where: str, server: Azurite | None) -> None:
        self.kind = kind
        self.where = where
        self.server = server
        self._handles: list[RemoteDict] = []

    def open(self, **options: Any) -> RemoteDict:
        """Return a new handle, closed at the end of the test; all are on the same dictionary."""
        handle: RemoteDict
        if self.kind == "azure":
            assert self.server is not None
            handle = AzureDictionary(self.server.connection_string, self.where, **options)
        elif self.kind == "local":
            handle = LocalDictionary(self.where, **options)
        else:
            handle = MemoryDictionary(self.where, **options)
        self._handles.append(handle)
        return handle

    def close(self) -> None:
        """Close all handles."""
        for handle in self._handles:
            handle.close()


@pytest.fixture(params=["memory", "local", "azure"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A place for one dictionary, on each of the backends in turn."""
    server = request.getfixturevalue("azurite") if request.param == "azure" else None
    where = str(tmp_path) if request.param == "local" else f"t{uuid.uuid4().hex}"
    shop = Shop(request.param, where, server)
    yield shop
    shop.close()


@pytest.fixture
def d(shop: Shop) -> RemoteDict:
    """An empty dictionary, on each of the backends in turn."""
    return shop.open()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A store that misbehaves on demand, its clients, and a clock that the test owns."""
    world = World()
    monkeypatch.setattr("remotedict.session.default_runtime", lambda: world.runtime)
    return world
