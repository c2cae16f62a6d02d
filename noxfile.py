"""What continuous integration runs: ``nox`` checks everything, ``nox -s NAME`` only one part.

All sessions use the interpreter that runs nox, except for ``tests_all``, ``tests_oldest`` and ``bench``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
OLD = ["remotedict==0.0.2", "cloudpickle", "numpy<2", "pandas<2"]  # The benchmark's oldest peer.
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the package, and of code that uses it."""
    install(session, "typing")
    session.run("mypy", "remotedict", "tests/typing/api.py")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Run the code in README and documentation; the tests do so, too."""
    install(session, "test")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run the examples, the remote one on Azurite; the tests do so, too."""
    install(session, "test")
    session.run("pytest", "tests/test_examples.py", *session.posargs)


@nox.session
def tests(session: nox.Session, *packages: str) -> None:
    """Run the tests, on two cores; arguments after ``--`` go to pytest instead."""
    install(session, "test", *packages)
    # Three at a time, since many a test waits: for a lease to run out, or for another process.
    session.run("pytest", *(session.posargs or ["-n", "3", "--dist", "worksteal"]))


@nox.session(default=False)
def simulate(session: nox.Session) -> None:
    """Simulate a million seeds, or as ``-- --seeds N`` says; see docs/reliability.md."""
    install(session, "test")
    with session.chdir("tests"):
        session.run("python", "-m", "simulation", *(session.posargs or ["--seeds", "1000000"]))


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Fail unless the tests of the protocol core execute each of its branches."""
    install(session, "coverage")
    core = ("records", "state", "index", "values", "lock_rules", "commit_rules")
    tests = [f"tests/test_{name}.py" for name in core]
    session.run("coverage", "run", "-m", "pytest", "--timeout=0", *tests, *session.posargs)
    session.run("coverage", "report")


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Fail unless the tests notice 95% of the small bugs in records and state; see docs/reliability.md."""
    install(session, "coverage")
    with session.chdir("tests"):
        session.run("python", "-m", "mutation", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Try 20,000 changed inputs of each decoder, or as ``-- N`` says; see docs/security.md."""
    install(session, "test")
    count, *others = session.posargs or ["20000"]
    session.env["FUZZ_EXAMPLES"] = count
    session.run("pytest", "tests/test_fuzz.py", "--timeout=0", *others)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Kill, stop, fork and interrupt processes, and harm requests and disks; see docs/reliability.md."""
    install(session, "test")
    with session.chdir("tests"):
        session.run("python", "-m", "campaigns", *(session.posargs or ["all"]))


@nox.session(python=nox.project.python_versions(PYPROJECT), default=False)
def tests_all(session: nox.Session) -> None:
    """Run the tests on every supported Python that is installed."""
    tests(session)


@nox.session(python="3.11", default=False)
def tests_oldest(session: nox.Session) -> None:
    """Run the tests with the oldest versions of what the package needs, on the oldest Python."""
    project = PYPROJECT["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["crypto"]]
    tests(session, *(one.partition(",")[0].replace(">=", "==") for one in needed))


@nox.session(python="3.11", default=False)
def bench(session: nox.Session) -> None:
    """Measure speed against other packages; with arguments, only what benchmarks/bench.py is told.

    The Python is the newest one for which the oldest peer's pandas has wheels.
    """
    install(session, "bench")
    old = Path(session.create_tmp()).resolve() / "0.0.2"
    python = old / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        session.run("python", "-m", "venv", old)
        session.run(python, "-m", "pip", "install", "-q", *OLD, external=True)
    session.run("python", "benchmarks/bench.py", "--old", python, *session.posargs)
    if not session.posargs:
        session.run("python", "benchmarks/curves.py")


def install(session: nox.Session, group: str, *packages: str) -> None:
    """Install the package, as its users do, and a dependency group of ``pyproject.toml``."""
    # What is imported compiles itself; all of it would take a third of the time that this takes.
    session.install(
        "--no-compile", ".", *nox.project.dependency_groups(PYPROJECT, group), *packages
    )
