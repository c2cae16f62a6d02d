"""A dictionary is opened by its URL."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import pytest

import remotedict
from azurite import ACCOUNT_KEY
from remotedict import (
    AccessDeniedError,
    CredentialsError,
    InvalidNameError,
    LocalDictionary,
    MemoryDictionary,
    RemoteDict,
)
from remotedict.azure import ENVIRONMENT_VARIABLE, AzureDictionary


@pytest.fixture
def opened():
    """Return `remotedict.open`, whose handles are closed at the end."""
    handles = []

    def open_(*args, **options):
        handles.append(remotedict.open(*args, **options))
        return handles[-1]

    yield open_
    for handle in handles:
        handle.close()


@pytest.fixture
def container():
    return f"t{uuid.uuid4().hex}"


# -- memory ---------------------------------------------------------------------------------


def test_memory_of_one_name_is_one_dictionary(opened):
    name = uuid.uuid4().hex
    opened(f"memory://{name}")["a"] = 1
    assert opened(f"memory://{name}").copy() == {"a": 1}
    assert MemoryDictionary(name).copy() == {"a": 1}
    assert opened(f"memory://{name}x").copy() == {}
    assert opened(f"memory://{name}", folder_name="other").copy() == {}


def test_memory_without_a_name_is_new_each_time(opened):
    opened("memory://")["a"] = 1
    assert opened("memory://").copy() == {}


# -- local folders --------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["plain", "with blank", "größe 日本", "100%", "a#b", "a%20b"])
@pytest.mark.parametrize(
    "form", [str, Path, lambda path: path.as_uri(), os.fspath], ids=["str", "Path", "uri", "fspath"]
)
def test_a_folder_is_opened_by_every_form_of_its_path(opened, tmp_path, folder, form):
    path = tmp_path / folder
    opened(form(path))["a"] = 1
    assert path.is_dir()
    assert [child.name for child in tmp_path.iterdir()] == [folder]
    with LocalDictionary(path) as d:
        assert d["a"] == 1


def test_a_file_url_may_name_this_machine(opened, tmp_path):
    opened(tmp_path.as_uri())["a"] = 1
    assert opened(tmp_path.as_uri().replace("file://", "file://localhost"))["a"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a path of POSIX systems")
def test_a_path_with_a_colon_or_a_question_mark_is_a_path(opened, tmp_path):
    for name in ("a:b", "a?b=c", "az:container", "C:\\folder"):
        opened(str(tmp_path / name))["a"] = 1
        assert (tmp_path / name).is_dir()


def test_a_relative_path_is_below_the_working_directory(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = opened("sub/folder")
    monkeypatch.chdir("/")
    d["a"] = 1
    assert (tmp_path / "sub" / "folder").is_dir()


def test_a_tilde_is_the_home_folder(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for path in ("~/one", Path("~/two")):
        opened(path)["a"] = 1
    assert {child.name for child in tmp_path.iterdir()} == {"one", "two"}


# -- azure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "folder"),
    [("", "default"), ("/", "default"), ("/runs", "runs"), ("/runs/", "runs"), ("/a%20b", "a b")],
)
@pytest.mark.parametrize("scheme", ["az", "azure"])
def test_a_container_and_a_folder_are_named_by_the_url(
    opened, azurite, container, monkeypatch, scheme, tail, folder
):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, azurite.connection_string)
    d = opened(f"{scheme}://{container}{tail}")
    assert f'"{container}"' in repr(d)
    assert f'"{folder}"' in repr(d)
    d["a"] = 1
    with AzureDictionary(azurite.connection_string, container, folder) as same:
        assert same["a"] == 1


@pytest.mark.parametrize(
    "credentials",
    [
        lambda azurite: {"connection_string": azurite.connection_string},
        lambda azurite: {"account_url": azurite.url, "credential": ACCOUNT_KEY},
    ],
    ids=["connection string", "account url"],
)
def test_credentials_may_be_options(opened, azurite, container, monkeypatch, credentials):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    opened(f"az://{container}/runs", **credentials(azurite))["a"] = 1
    assert opened(f"az://{container}", folder_name="runs", **credentials(azurite))["a"] == 1


def test_a_container_without_credentials_is_refused(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(CredentialsError, match=ENVIRONMENT_VARIABLE):
        remotedict.open("az://container/folder")


def test_a_refused_credential_is_told_when_opening(azurite):
    key = ACCOUNT_KEY[::-1].lstrip("=") + "=="
    with pytest.raises(AccessDeniedError):
        remotedict.open("az://container", account_url=azurite.url, credential=key)


# -- what is none of these, and what all take -----------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://bucket/folder",
        "https://account.blob.core.windows.net/container",
        "redis://localhost",
        "://folder",
        "file://server/share",
        "file://",
        "az://",
        "az:///folder",
        "az://container/a/b",
        "az://container/Index",
        "az://container/..",
        "az://container/a%2Fb",
        "az://UPPER/folder",
        "az://container/folder?versionid=1",
        None,
        5,
        b"/folder",
        ["memory://"],
    ],
    ids=repr,
)
def test_what_is_no_place_for_a_dictionary_is_refused(url, monkeypatch, azurite, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, azurite.connection_string)
    with pytest.raises(InvalidNameError) as caught:
        remotedict.open(url)
    assert len(str(caught.value)) > 20  # it says what to do
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["Index", "INDEX", "", "a/b", "a\\b", "..", "a..b", ".packs"])
def test_a_folder_that_cannot_be_is_refused_everywhere(tmp_path, azurite, container, folder):
    for url in ("memory://", tmp_path, f"az://{container}"):
        options = {"connection_string": azurite.connection_string} if "az:" in str(url) else {}
        with pytest.raises(InvalidNameError, match="folder"):
            remotedict.open(url, folder_name=folder, **options)
    assert list(tmp_path.iterdir()) == []


OPTIONS = {
    "author": "ada",
    "timeout": 7.5,
    "max_staleness": 0.25,
    "inline_bytes": 0,
    "cache_bytes": 0,
    "progress": False,
    "pickle_credentials": True,
}


@pytest.mark.parametrize("kind", ["memory", "file", "path", "az"])
def test_options_are_the_same_everywhere(opened, tmp_path, azurite, container, kind):
    url = {
        "memory": "memory://",
        "file": tmp_path.as_uri(),
        "path": tmp_path,
        "az": f"az://{container}",
    }[kind]
    own = {"connection_string": azurite.connection_string} if kind == "az" else {}
    d = opened(url, folder_name="runs", **OPTIONS, **own)
    assert isinstance(d, RemoteDict)
    assert {name: getattr(d._session.options, name) for name in OPTIONS} == OPTIONS
    assert '"runs"' in repr(d)
    d["a"] = 1
    assert d["a"] == 1


@pytest.mark.parametrize("url", ["memory://", "path", "az://container"])
@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"no_such_option": 1}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "60"}, TypeError),
        ({"cache_bytes": -1}, ValueError),
        ({"author": 5}, TypeError),
        ({"folder_name": None}, ValueError),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(url, option, error, azurite, tmp_path):
    own = {"connection_string": azurite.connection_string} if url[:2] == "az" else {}
    with pytest.raises(error):
        remotedict.open(tmp_path / url if url == "path" else url, **option, **own)
    assert list(tmp_path.iterdir()) == []
