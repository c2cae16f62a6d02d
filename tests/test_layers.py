"""Imports run downwards: the face imports features, features the engine, the engine the rest."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import remotedict

ROOT = Path(remotedict.__file__).parent

# From the bottom up; a module may import those of lower layers, and its own.
LAYERS = [
    "errors",
    "pure",
    "backend",
    "engine",
    "features",
    "session",
    "versioned",
    "lockable",
    "transactional",
    "maintained",
    "mendable",
    "dictionary",
]
FACE = ["azure", "local", "memory", "opening", "moving", "__init__"]
ALLOWED_IN_PURE = {
    *("__future__", "bisect", "collections", "contextlib", "copyreg", "dataclasses", "datetime"),
    *("decimal", "functools", "hashlib", "hmac", "importlib", "io", "itertools", "math"),
    *("operator", "pathlib", "pickle", "platform", "re", "struct", "sys", "types", "typing"),
    *("uuid", "zoneinfo"),
    *("cloudpickle", "cramjam", "cryptography", "lz4", "msgspec", "numpy", "pandas", "remotedict"),
    "xxhash",
}


def layer(module):
    """Return the number of the layer that a dotted module name belongs to."""
    name = ([*module.split("."), "__init__"])[1]
    return len(LAYERS) + FACE.index(name) if name in FACE else LAYERS.index(name)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_is_below_it(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    mine = layer(".".join(parts))
    for module in imports(path):
        if module.split(".")[0] == "remotedict":
            below = layer(module)
            same_package = parts[1] in ("pure", "backend", "engine", "features")
            assert below < mine or (below == mine and same_package), f"{path} imports {module}"
    if parts[1] == "pure":
        assert {m.split(".")[0] for m in imports(path)} <= ALLOWED_IN_PURE


def test_no_module_is_two_things():
    lengths = {p.name: len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > 640} == {}


def test_importing_the_package_starts_no_thread_and_prints_nothing():
    code = "import remotedict, threading; assert threading.active_count() == 1"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
