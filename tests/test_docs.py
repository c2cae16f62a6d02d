"""The documentation runs as printed, names everything public, and links to what exists."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import remotedict
from remotedict import RemoteDict, errors
from remotedict.azure import ENVIRONMENT_VARIABLE, AzureDictionary
from remotedict.session import Options

if TYPE_CHECKING:
    from azurite import Azurite

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = "\n".join(page.read_text("utf-8") for page in PAGES if page.parent.name == "docs")

FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def modules() -> list[str]:
    found = pkgutil.walk_packages(remotedict.__path__, "remotedict.")
    return ["remotedict", *(module.name for module in found)]


def public_names(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_")]


def parameters(function: Any) -> list[str]:
    hidden = {"self", "options", "items", "other", "more", "item", "key", "default"}
    return [name for name in inspect.signature(function).parameters if name not in hidden]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_runs(page, tmp_path, monkeypatch, request):
    """The snippets of a page share their names, as in one session; they end in an empty folder."""
    text = page.read_text("utf-8")
    snippets = [
        (match[1], text.count("\n", 0, match.start()) + 1) for match in FENCE.finditer(text)
    ]
    names: dict[str, Any] = {"__name__": "__main__"}
    if any("Azure" in code for code, _ in snippets):
        server: Azurite = request.getfixturevalue("azurite")
        names["CONNECTION_STRING"] = server.connection_string
        names["ACCOUNT_URL"], names["ACCOUNT_KEY"] = server.url, account_key(server)
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, server.connection_string)
    monkeypatch.chdir(tmp_path)
    for code, line in snippets:
        # Lines as in the page, so that a traceback points there.
        source = "\n" * line + code
        if ">>>" in code:
            run_session(source, names, page)
        else:
            exec(compile(source, str(page), "exec"), names)  # noqa: S102


def account_key(server: Azurite) -> str:
    return re.search(r"AccountKey=([^;]+)", server.connection_string)[1]


def run_session(source: str, names: dict[str, Any], page: Path) -> None:
    """Run a block that shows what is typed and what is answered."""
    test = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), 0)
    test.globs = names  # not a copy: the next block goes on with these
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    assert runner.run(test, out=said.append, clear_globs=False).failed == 0, "".join(said)


@pytest.mark.parametrize("name", modules())
def test_every_docstring_example_runs(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", sorted({*remotedict.__all__, "AzureDictionary"}))
def test_every_public_name_is_documented(name):
    assert re.search(rf"\b{name}\b", DOCS), f"docs/ doesn't mention {name}"


@pytest.mark.parametrize("name", public_names(RemoteDict))
def test_every_method_is_documented(name):
    assert re.search(rf"\bd\.{name}\b", DOCS), f"docs/ doesn't show d.{name}"


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *(field.name for field in fields(Options)),
            *parameters(RemoteDict.lock_item),
            *parameters(RemoteDict.unlock_item),
            *parameters(RemoteDict.lock),
            *parameters(AzureDictionary),
        }
    ),
)
def test_every_option_is_documented(name):
    # A trailing "=" tells an option from a word of the text; a table has them in backquotes.
    assert re.search(rf"\b{name}=|`{name}`", DOCS), f"docs/ doesn't explain {name}="


def error_classes() -> list[str]:
    return [
        name
        for name in errors.__all__
        if issubclass(getattr(errors, name), errors.RemoteDictError)
        and name != "RemoteDictError"
        and getattr(errors, name).__name__ == name
    ]


def builtins_of(error: type) -> set[str]:
    """Return the builtins that an error, or an error that it derives from, names as bases."""
    ours = [cls for cls in error.__mro__ if cls.__module__ == errors.__name__]
    bases = {base for cls in ours for base in cls.__bases__ if base.__module__ == "builtins"}
    return {base.__name__ for base in bases - {Exception}}


@pytest.mark.parametrize("name", error_classes())
def test_every_error_is_in_the_table_with_its_builtins(name):
    page = (ROOT / "docs" / "dictionary.md").read_text("utf-8")
    row = re.search(rf"^\| `{name}` \|([^|]*)\|", page, re.MULTILINE)
    assert row, f"the table of errors lacks {name}"
    assert set(re.findall(r"\w+", row[1])) == builtins_of(getattr(errors, name))


def test_the_tree_of_errors_shows_all_of_them():
    assert errors.__doc__ is not None
    for name in error_classes():
        assert re.search(rf"─ {name}\b", errors.__doc__), f"the tree lacks {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}, which isn't there"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name} links to {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_the_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text("utf-8")
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "`pip install nox && nox`" in readme
    assert "pip install nox && python3 -m nox" in ci
    assert "`pip install . && python examples/quickstart.py`" in readme


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_every_example_says_what_it_shows(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert path.name in (ROOT / "README.md").read_text("utf-8")
