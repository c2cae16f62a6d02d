"""Plant each mutant, and run the tests: ``python -m mutation``, from the folder `tests`.

A child is forked for each. If it is in the body of a function, it goes into the one that is there,
beside tests that were collected once; else the package is imported, and the tests are collected, anew.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import gc
import importlib
import os
import resource
import signal
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import coverage
import pytest

from mutation.mutants import Mutant, mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

TESTS = Path(__file__).parents[1]
FIRST = {
    "remotedict.pure.records": ["test_records.py"],
    "remotedict.pure.state": ["test_state.py"],
}
"""The modules, and the tests that must notice their mutants; they need nothing but `pure`."""

LAST = ["mutation/seeds.py"]
"""What those meet that have survived these."""

_SHARE = 0.95
_SECONDS = 1200  # a child that waits so long is killed, as is one that computes for too long
_BYTES = 8 << 30  # of address space; a mutant may be a list without end
_QUIET = ["-xs", "-pno:terminal", "-pno:cacheprovider", "-oaddopts=", "--timeout=0"]


class Planter:
    """A plugin of pytest: instead of running the tests once, it does so for each mutant."""

    def __init__(self, name: str, lines: Sequence[int], processes: int) -> None:
        self.name = name
        self.path = sys.modules[name].__file__ or ""
        self.tree = ast.parse(Path(self.path).read_bytes())
        self.mutants = [one for one in mutants(self.tree) if not lines or one.line in lines]
        self.processes = processes
        self.survived: list[Mutant] = []
        self._tests: list[Test] = []
        self._running: dict[int, Mutant] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork and judge all children."""
        self._tests = self._unharmed(session)
        seconds = sum(test.seconds for test in self._tests)
        print(
            f"{self.name}: {len(self._tests)} tests in {seconds:.1f} s, {len(self.mutants)} mutants"
        )
        gc.freeze()
        for mutant in self.mutants:
            if len(self._running) == self.processes:
                self._judge()
            child = self._in_place if mutant.body else self._anew
            pid = fork(lambda: child(mutant), int(10 + 3 * seconds))  # noqa: B023
            self._running[pid] = mutant
        while self._running:
            self._judge()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say why a test fails: nobody sees it but that of the tests without a mutant."""
        if report.failed:
            print(report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Say why tests can't be collected."""
        if report.failed:
            print(report.longreprtext)

    def _unharmed(self, session: pytest.Session) -> list[Test]:
        """Run the tests as they are; return them, the quickest of those that are first first."""
        tests = []
        tracer = coverage.Coverage(data_file=None, include=[self.path])
        tracer.set_option("run:disable_warnings", ["no-data-collected"])
        for item in session.items:
            tracer.erase()
            began = time.process_time()
            with tracer.collect():
                good = passes(item)
            if not good:
                sys.exit("the tests fail without any mutant")
            lines = set(tracer.get_data().lines(self.path) or ())
            last = any(item.path.match(path) for path in LAST)
            tests.append(Test(last, time.process_time() - began, item, lines))
        return sorted(tests, key=lambda test: test[:2])

    def _judge(self) -> None:
        pid, status = os.wait()
        mutant = self._running.pop(pid)
        if not status:
            self.survived.append(mutant)
            print(f"  {mutant.line}: {mutant.text}", flush=True)

    def _in_place(self, mutant: Mutant) -> bool:
        """Plant it in the function that is there; return whether the tests pass that get there."""
        path = [one.name for one in mutant.outer if isinstance(one, ast.ClassDef)]
        statement = next(one for one in mutant.outer[::-1] if isinstance(one, ast.stmt))
        where = range(statement.lineno, (statement.end_lineno or 0) + 1)
        assert mutant.body
        mutant.plant()
        put(sys.modules[self.name], [*path, mutant.body.name], mutant.outer[1], self.path)
        for test in self._tests:
            if test.last or not test.lines.isdisjoint(where):
                signal.setitimer(signal.ITIMER_PROF, 1 + 5 * test.seconds)  # a deadly signal
                if not passes(test.item):
                    return False
        return True

    def _anew(self, mutant: Mutant) -> bool:
        """Plant it in the source; return whether the tests pass."""
        mutant.plant()
        sys.meta_path.insert(0, Instead(self.name, self.path, self.tree))
        for packages, tests in (("remotedict.pure", FIRST[self.name]), ("remotedict", LAST)):
            for name, module in list(sys.modules.items()):
                if name.startswith(packages) or is_test(module):
                    del sys.modules[name]
            if pytest.main([*_QUIET, *paths(tests)]) != pytest.ExitCode.OK:
                return False
        return True


class Test(NamedTuple):
    """A test, what it costs, and which lines of the module it executes."""

    last: bool
    seconds: float
    item: pytest.Item
    lines: set[int]


def passes(item: pytest.Item) -> bool:
    """Run a test by itself; return whether it passes."""
    before = item.session.testsfailed
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return item.session.testsfailed == before


def paths(tests: list[str]) -> list[str]:
    """Return what to call tests on the command line."""
    return [str(TESTS / test) for test in tests]


class Instead(SourceFileLoader):
    """Finds and loads a module whose source is another one."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        """Find this module and no other."""
        return spec_from_loader(name, self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - it is `name`
        """Return the code of the mutant."""
        return compile(self._tree, self.path, "exec", dont_inherit=True)


def fork(run: Callable[[], bool], seconds: int) -> int:
    """Return the id of a child that ends well if `run` returns True."""
    if pid := os.fork():
        return pid
    good = False
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_SECONDS)
        good = run()
    finally:
        os._exit(not good)


def put(module: ModuleType, path: list[str], source: ast.AST, file: str) -> None:
    """Give a function of a module, or of a class in it, the code that it has in `source`."""
    flags = __future__.annotations.compiler_flag
    whole = ast.Module([source], [])  # type: ignore[list-item]
    code, there = compile(whole, file, "exec", flags, dont_inherit=True), module
    for name in path:
        code = next(one for one in code.co_consts if getattr(one, "co_name", None) == name)
        there = vars(there)[name]
    function: Any = getattr(there, "fget", None) or getattr(there, "__func__", there)
    function.__code__ = code


def is_test(module: ModuleType) -> bool:
    """Tell whether a module is one of the tests, or what they share."""
    file = Path(getattr(module, "__file__", None) or "/")
    return TESTS in file.parents and Path(__file__).parent not in file.parents


def main() -> int:
    """Kill what can be killed; return an exit code."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=[*FIRST], help="which to change")
    parser.add_argument("--line", type=int, nargs="*", default=[], help="only mutants of these")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ["CI"] = "1"  # the same examples each time
    good = True
    for name in arguments.modules:
        importlib.import_module(name)
        planter = Planter(name, arguments.line, arguments.processes)
        if pytest.main([*_QUIET, *paths(FIRST[name] + LAST)], plugins=[planter]):
            return 2
        total, survived = len(planter.mutants), len(planter.survived)
        share = (total - survived) / total
        print(f"{name}: {total - survived} of {total} killed ({share:.1%}), {survived} survived")
        good = good and share >= _SHARE
    return not good


if __name__ == "__main__":
    sys.exit(main())
