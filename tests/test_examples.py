"""The examples run to their end, each in an empty folder; the remote one on Azurite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remotedict.azure import ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    from azurite import Azurite

EXAMPLES = Path(__file__).parent.parent / "examples"
REMOTE = "shared_results.py"


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.iterdir() if path.is_file())
)
def test_an_example_runs(example: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    command = [sys.executable]
    if example.endswith(".ipynb"):
        command += ["-m", "jupyter", "execute", "--timeout=60"]
    environment = {k: v for k, v in os.environ.items() if k != ENVIRONMENT_VARIABLE}
    if example == REMOTE:
        server: Azurite = request.getfixturevalue("azurite")
        environment[ENVIRONMENT_VARIABLE] = server.connection_string
    done = subprocess.run(
        [*command, EXAMPLES / example],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
