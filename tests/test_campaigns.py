"""The campaigns with real processes and real faults, in small; and that they can fail."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from campaigns import replies
from campaigns.__main__ import NAMES
from campaigns.operations import OPERATIONS, public_names
from campaigns.report import Report
from remotedict.engine.committer import Committer

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has neither fork nor signals"
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_no_promise_is_broken(name):
    command = [sys.executable, "-m", "campaigns", name, "--small", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        command, cwd=TESTS, env=environment, text=True, capture_output=True, check=False
    )
    print(done.stdout)  # noqa: T201 - what was done, and how long it took
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_operation_is_harmed():
    assert {operation.name for operation in OPERATIONS} == public_names(), (
        "name it in campaigns/operations.py, with what it does"
    )


def test_a_write_that_is_made_twice_is_found():
    def verdict(round_, now, there, doubt):  # that takes a lost answer for a lost request
        return None

    report = Report()
    sets = [operation for operation in OPERATIONS if operation.name == "__setitem__"][:1]
    with (
        patch.object(Committer, "_verdict", staticmethod(verdict)),
        patch.object(replies, "OPERATIONS", sets),
        patch.object(replies, "public_names", lambda: {"__setitem__"}),
    ):
        replies.run("azure", 1000, random.Random(1), report)
    assert any("LOSE_REPLY" in text for text in report.anomalies)
