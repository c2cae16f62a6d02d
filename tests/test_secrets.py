"""A canary: unmistakable secrets go everywhere that secrets go, and are looked for everywhere else.

They may show in no message, repr, log line, warning, traceback (its locals included), pickle or
blob. What counts is what the package and its libraries show: the frames of this file know them.
"""

from __future__ import annotations

import base64
import copy
import functools
import gc
import logging
import pickle
import re
import socket
import traceback
import types
import warnings
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

import remotedict
from azurite import ACCOUNT_KEY, ACCOUNT_NAME
from remotedict import LocalDictionary, MemoryDictionary
from remotedict.azure import ENVIRONMENT_VARIABLE, AzureDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azurite import Azurite

CANARY = "Canary0Canary1Canary2Canary3Canary4Canary5"
KEY = base64.b64encode(f"{CANARY}{CANARY}".encode()).decode()
SAS = f"sv=2024-01-01&se=2099-01-01&sr=c&sp=rwdl&sig={CANARY}%2Fmore%3D"
SIGNING = f"{CANARY}-signing"
ENCRYPTION = f"{CANARY}-encryption"
SECRET_OPTIONS = {"signing_key": SIGNING, "encryption_key": ENCRYPTION}
"""The options of all dictionaries that hold secrets: a new one belongs here."""

HALF = len(CANARY) // 2
MARKS = {CANARY[:HALF], CANARY[HALF:], KEY[:24], KEY[24:48], ACCOUNT_KEY[:24], ACCOUNT_KEY[40:64]}


class Found:
    """All that was shown, in which no mark may be."""

    def __init__(self) -> None:
        self.marks = set(MARKS)
        self.looked = 0

    def look(self, where: str, shown: str | bytes) -> None:
        text = shown if isinstance(shown, str) else bytes(shown).decode("latin-1")
        self.looked += 1
        for form in (text, unquote(text)):
            for mark in self.marks:
                if mark in form:
                    at = form.index(mark)
                    pytest.fail(f"{where} shows a secret: …{form[max(at - 300, 0) : at + 80]}…")

    def look_at_error(self, error: BaseException, *, named: bool = False) -> None:
        """Look at an error, at all that it stems from, and at the locals of all their frames.

        Not at those of the package, if a secret was `named`: given in place of a plain name.
        """
        seen: set[int] = set()
        todo: list[BaseException | None] = [error]
        while todo:
            one = todo.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
            where = type(one).__name__
            for shown in (str(one), repr(one), repr(one.args), repr(vars(one))):
                self.look(where, shown)
            self.look(where, repr(getattr(one, "__notes__", ())))
            told = traceback.TracebackException.from_exception(
                one, capture_locals=True, lookup_lines=False
            )
            for frame in told.stack:
                if frame.filename != __file__ and not named:
                    place = f"{where} in {frame.filename}:{frame.lineno} ({frame.name})"
                    self.look(place, repr(frame.locals))
            if isinstance(one, remotedict.RemoteDictError):
                self.look(where, pickle.dumps(one))

    def look_into(self, handle: Any) -> None:
        """Look at the repr of all that a handle is made of, but for plain containers."""
        seen: set[int] = set()
        todo = [handle]
        while todo:
            one = todo.pop()
            if id(one) in seen or isinstance(one, _ELSEWHERE):
                continue
            seen.add(id(one))
            if not isinstance(one, _PLAIN):
                try:
                    shown = f"{one!r} {one!s}"
                except Exception:  # noqa: BLE001, S112 - it can't be shown
                    continue
                self.look(f"the repr of a {type(one).__name__}", shown)
            if isinstance(one, types.FunctionType):
                todo += [cell.cell_contents for cell in one.__closure__ or ()]
            else:
                todo += gc.get_referents(one)


_ELSEWHERE = (types.ModuleType, type, types.FrameType, types.CodeType, logging.Logger)
_PLAIN = (str, bytes, bytearray, int, dict, list, tuple, set, frozenset, types.CellType)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Found]:
    """Look at each log line and warning, whoever writes it."""
    found, root, records = Found(), logging.getLogger(), []
    handler = logging.Handler(0)
    handler.emit = records.append  # type: ignore[method-assign]
    root.addHandler(handler)
    levels = {}
    for name in ("", "azure", "remotedict", "urllib3", "msal", "obstore"):
        logger = logging.getLogger(name)
        levels[logger] = logger.level
        logger.setLevel(1)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    root.removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)
    formatter = logging.Formatter()
    for record in records:
        found.look(f"a log line of {record.name}", formatter.format(record))
        found.look(f"a log record of {record.name}", repr(record.args))
    for warning in caught:
        found.look("a warning", str(warning.message))
    assert found.looked, "nothing was looked at"


def test_the_canary_is_heard() -> None:
    """It must be able to fail."""

    def knows(secret: str) -> None:
        raise ValueError(str(len(secret)))

    found = Found()
    elsewhere = types.FunctionType(
        knows.__code__.replace(co_filename="elsewhere.py"), globals(), "knows"
    )
    with pytest.raises(ValueError, match="42") as caught:
        elsewhere(CANARY)
    for act in (
        lambda: found.look("a text", f"sig={quote(CANARY)}"),
        lambda: found.look_at_error(caught.value),
        lambda: found.look_into([types.SimpleNamespace(key=CANARY)]),
    ):
        with pytest.raises(pytest.fail.Exception, match="shows a secret"):
            act()


# -- what goes wrong ----------------------------------------------------------------------------


def refused_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def string(url: str, key: str = KEY) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT_NAME};AccountKey={key};BlobEndpoint={url};"


NOWHERE = "http://127.0.0.1:{port}/devstoreaccount1"
WRONG: dict[str, Callable[[str], Any]] = {
    "wrong key": lambda url: AzureDictionary(string(url), "container"),
    "wrong key of a URL": lambda url: AzureDictionary(
        account_url=url, credential=KEY, container_name="container"
    ),
    "wrong SAS": lambda url: AzureDictionary(
        account_url=url, credential=SAS, container_name="container"
    ),
    "SAS in the URL": lambda url: AzureDictionary(
        account_url=f"{url}?{SAS}", container_name="container"
    ),
    "SAS in a string": lambda url: AzureDictionary(
        f"BlobEndpoint={url};SharedAccessSignature={SAS}", "container"
    ),
    "nobody there": lambda _: AzureDictionary(
        string(NOWHERE.format(port=refused_port())), "container", timeout=0.3
    ),
    "nobody there for a SAS": lambda _: AzureDictionary(
        account_url=NOWHERE.format(port=refused_port()),
        credential=SAS,
        container_name="container",
        timeout=0.3,
    ),
    "no such name": lambda _: AzureDictionary(
        string("http://no-such-host.invalid"), "container", timeout=0.3
    ),
    "malformed": lambda _: AzureDictionary(f"AccountName=a;AccountKey={KEY[:-3]}", "container"),
    "no string": lambda _: AzureDictionary(f"AccountKey={KEY}".encode(), "container"),  # type: ignore[arg-type]
    "no protocol": lambda url: AzureDictionary(
        string(url).replace("=http;", "=gopher;"), "container"
    ),
    "both": lambda url: AzureDictionary(string(url), "container", account_url=url),
    "credential for a string": lambda url: AzureDictionary(
        string(url), "container", credential=KEY
    ),
    "credential of no kind": lambda url: AzureDictionary(
        account_url=url, credential=f"!{CANARY}!", container_name="container"
    ),
    "credential that is an object": lambda url: AzureDictionary(
        account_url=url, credential=[KEY], container_name="container"
    ),
    "URL of no kind": lambda _: AzureDictionary(
        account_url=f"ftp://{CANARY}", credential=KEY, container_name="container"
    ),
    "as container": lambda url: AzureDictionary(string(url), string(url)),
    "as folder": lambda url: AzureDictionary(string(url), "container", folder_name=string(url)),
    "as path": lambda url: LocalDictionary(string(url)),
    "as URL": lambda url: remotedict.open(string(url)),
    "SAS as URL": lambda url: remotedict.open(f"{url}?{SAS}"),
    "by URL": lambda url: remotedict.open("az://container", connection_string=string(url)),
    "wrong container": lambda url: AzureDictionary(string(url), "NO CONTAINER"),
    "wrong folder": lambda url: AzureDictionary(string(url), "container", folder_name="a/b"),
    "another option": lambda url: AzureDictionary(
        string(url), "container", **SECRET_OPTIONS, codec="no such"
    ),
    "no option": lambda url: remotedict.open(
        "az://container", connection_string=string(url), **SECRET_OPTIONS, nonsense=1
    ),
    "option of all": lambda _: MemoryDictionary(**SECRET_OPTIONS, timeout=-1),
    "local option": lambda _: LocalDictionary("x", **SECRET_OPTIONS, timeout="1"),
    **{
        f"{name} {kind}": functools.partial(
            lambda name, value, _: MemoryDictionary(**{name: value}), name, value
        )
        for name in SECRET_OPTIONS
        for kind, value in {
            "too short": CANARY[:HALF][:10],
            "too short in a list": [CANARY, CANARY[:12]],
            "of no kind": {CANARY: CANARY},
            "list of no kind": [CANARY, 5],
        }.items()
    },
}


NAMED = {"as container", "as folder", "as path", "as URL", "SAS as URL"}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_goes_wrong_tells_no_secret(
    found: Found, azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found.marks |= {CANARY[:10]}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of all kinds
        make(azurite.url)
    found.look_at_error(caught.value, named=make in [WRONG[name] for name in NAMED])


@pytest.mark.parametrize("how", ["string", "identity"])
def test_a_wrong_environment_tells_no_secret(
    found: Found, azurite: Azurite, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for value in (string("http://elsewhere.invalid"), f"AccountKey={KEY}", string(azurite.url)):
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
        with AzureDictionary(azurite.connection_string, "container") as d:
            travelled = pickle.dumps(d)
        act: Callable[[], Any] = functools.partial(pickle.loads, travelled)
        if how == "string":
            act = functools.partial(AzureDictionary, container_name="container", timeout=0.3)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of all kinds
            len(act())
        found.look_at_error(caught.value)


@pytest.mark.parametrize("name", SECRET_OPTIONS)
def test_a_wrong_key_tells_no_secret(found: Found, tmp_path: Path, name: str) -> None:
    with LocalDictionary(tmp_path, **SECRET_OPTIONS) as d:
        d["k"] = np.arange(5000)
    others = {**SECRET_OPTIONS, name: f"{CANARY}-another"}
    less = {key: value for key, value in SECRET_OPTIONS.items() if key != name}
    for options in (others, less, {}):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of all kinds
            LocalDictionary(tmp_path, **options)
        found.look_at_error(caught.value)


# -- what goes right ----------------------------------------------------------------------------


@contextmanager
def opened(kind: str, azurite: Azurite, found: Found, tmp_path: Path) -> Iterator[Any]:
    """Yield a handle that has secrets."""
    if kind == "local":
        made: Any = LocalDictionary(tmp_path / "d", **SECRET_OPTIONS, cache_dir=tmp_path / "cache")
    elif kind == "memory":
        made = MemoryDictionary(**SECRET_OPTIONS)
    else:
        container = f"secrets-{kind}"
        with AzureDictionary(azurite.connection_string, container) as d:
            d["there"] = 1
        sas = generate_container_sas(
            ACCOUNT_NAME,
            container,
            account_key=ACCOUNT_KEY,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        signature = unquote(re.search(r"sig=([^&]+)", sas)[1])
        found.marks |= {signature[:20], signature[20:40]}
        credentials: dict[str, Any] = {
            "string": {"connection_string": azurite.connection_string},
            "key": {"account_url": azurite.url, "credential": ACCOUNT_KEY},
            "sas": {"account_url": azurite.url, "credential": sas},
        }[kind]
        made = AzureDictionary(
            container_name=container, folder_name="signed", **credentials, **SECRET_OPTIONS
        )
    with made:
        yield made


def use(d: Any) -> Any:
    """Do something of all kinds; return what can be shown."""
    d["k"], d["large"] = 1, np.random.default_rng(0).bytes(3_000_000)
    d.update({f"k{n}": n for n in range(50)})
    d.metadata["k"] = {"a": 1}
    with d.lock("k"), d.transaction() as t:
        t["k"] += 1
    assert d.open("large").read(10) == d["large"][:10]
    mirror, watch = d.mirror(), d.watch()
    shown = [d, d.snapshot(), mirror, watch, d.index, d.info(), d.stats, d.metadata, d.history("k")]
    shown += [d.locks, d.keys(), d.items(), d._session, d._session.options, d._engine, vars(d)]
    shown += [d._session.place, d._session.parts(), d._engine.tuning, d._engine.keyring]
    mirror.close()
    watch.stop()
    return shown


KINDS = ["memory", "local", "string", "key", "sas"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_can_be_seen_of_a_handle_tells_a_secret(
    found: Found, azurite: Azurite, tmp_path: Path, kind: str
) -> None:
    with opened(kind, azurite, found, tmp_path) as d:
        for shown in use(d):
            found.look(f"the repr of a {type(shown).__name__}", f"{shown!r} {shown!s}")
            if hasattr(shown, "_repr_html_"):
                found.look(type(shown).__name__, shown._repr_html_() or "")
        found.look_into(d)
        for other in (copy.copy(d), copy.deepcopy(d)):
            found.look("a copy", repr(other))
            found.look_into(other)
        for protocol in range(2, 6):
            found.look("a pickle", pickle.dumps(d, protocol))
        d["handle"] = {"a function that mentions it": d}
        for info in d._engine.backend.raw.list(""):
            found.look(f"blob {info.name}", d._engine.backend.raw.get(info.name).data)
        for error in failures(d):
            found.look_at_error(error)
    with pytest.raises(remotedict.ClosedError) as caught:
        d["k"]
    found.look_at_error(caught.value)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            found.look(f"file {file.name}", file.read_bytes())
    gc.collect()


def failures(d: Any) -> Iterator[Exception]:
    """Yield the errors that operations of a good handle end in."""
    acts: list[Callable[[], Any]] = [
        lambda: d["not there"],
        lambda: d[5],
        lambda: d.put("k", 1, version=99),
        lambda: d.metadata["k"].update(a={1}),
        lambda: d.__setitem__("bad", (n for n in ())),
        lambda: d.open("k"),
        lambda: d.unlock_item("k"),
        lambda: d.nonsense,
        lambda: setattr(d, "nonsense", 1),
        lambda: damaged(d),
    ]
    for act in acts:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of all kinds
            act()
        yield caught.value


def damaged(d: Any) -> None:
    """Read what somebody has changed, with all that the engine knows in the frames."""
    backend, path = d._engine.backend.raw, d.index["large"]
    data = bytearray(backend.get(path).data)
    data[len(data) // 2] ^= 1
    backend.put(path, bytes(data))
    d._engine.values.cache.clear()
    d._engine.values._blobs._disk = None
    d["large"]


def test_credentials_travel_only_on_request(found: Found, azurite: Azurite) -> None:
    with AzureDictionary(
        azurite.connection_string,
        "travels",
        pickle_credentials=True,
        **SECRET_OPTIONS,
    ) as d:
        travelled = pickle.dumps(d)
        assert ACCOUNT_KEY.encode() in travelled
        found.look("a repr", repr(d))
        with pickle.loads(travelled) as again:
            again["k"] = 1
            assert d["k"] == 1
            found.look_into(again)
