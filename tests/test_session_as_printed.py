"""The session that the README shows runs as printed."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from remotedict import LocalDictionary, MemoryDictionary, RemoteDict
from remotedict.azure import AzureDictionary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from azurite import Azurite

Open = tuple["Callable[[], RemoteDict]", str]


@pytest.fixture(params=["azure", "local", "memory"])
def printed(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """What opens the dictionary, and what it shows then."""
    name = f"mycontainer-{uuid.uuid4().hex}"
    if request.param == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return (
            lambda: AzureDictionary(
                azurite.connection_string, container_name=name, folder_name="myfolder"
            ),
            f'Azure Blob Storage. Container: "{name}"; Folder: "myfolder"; Num elements: ',
        )
    if request.param == "local":
        return (
            lambda: LocalDictionary(tmp_path, folder_name="myfolder"),
            f'Local folder. Path: "{tmp_path}"; Folder: "myfolder"; Num elements: ',
        )
    return (
        lambda: MemoryDictionary(name, folder_name="myfolder"),
        f'Memory. Name: "{name}"; Folder: "myfolder"; Num elements: ',
    )


def test_the_session_runs_as_printed(printed: Open) -> None:
    open_, shown = printed
    with open_() as d, open_() as elsewhere:
        assert isinstance(d, RemoteDict)
        assert repr(d) == f"{shown}0"

        d["foo"] = "bar"
        assert d["foo"] == "bar"
        d["n"] = 42
        d["raw"] = b"binary data of any size"
        d["tree"] = {"this": {"is": b"nested"}}
        d["arr"] = arr = np.random.randn(10, 3, 1)  # noqa: NPY002 - as printed
        d["df"] = pd.DataFrame([1, 2, 3, 4])
        d["f"] = lambda x: x + 1
        assert elsewhere["n"] == 42
        assert elsewhere["raw"] == b"binary data of any size"
        assert elsewhere["tree"] == {"this": {"is": b"nested"}}
        np.testing.assert_array_equal(elsewhere["arr"], arr)
        pd.testing.assert_frame_equal(elsewhere["df"], pd.DataFrame([1, 2, 3, 4]))
        assert elsewhere["f"](1) == 2

        d[["a", "b", "c"]] = "hello", b"binary", 42
        assert elsewhere[["a", "b", "c"]] == ["hello", b"binary", 42]
        d["a", "b", "c"] = 1, 2, 3
        x, y = d[["a", "b"]]
        assert (x, y) == (1, 2)
        assert elsewhere["a", "b", "c"] == [1, 2, 3]

        del d["a", "b"]
        assert list(elsewhere) == ["foo", "n", "raw", "tree", "arr", "df", "f", "c"]
        assert repr(elsewhere) == f"{shown}8"

        index = d.index
        assert isinstance(index, pd.Series)
        assert index.name == "name"
        assert list(index.index) == list(d)
        assert all("myfolder" in path for path in index)

        d.lock_item("foo", duration=15)
        assert elsewhere.locks["foo"].pid > 0
        d.unlock_item("foo")
        assert not elsewhere.locks
        with d.lock("foo", "n", timeout=10):
            d["n"] += 1
        assert elsewhere["n"] == 43
