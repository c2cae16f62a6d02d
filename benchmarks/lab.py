"""The emulator, the proxy before it, and the processes that work for the benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from azure.storage.blob import BlobServiceClient

from peers import PEERS, Account
from proxy import Counts, Proxy

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from azurite import ACCOUNT_KEY, ACCOUNT_NAME, Azurite  # noqa: E402 - not a package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD = "0.0.2"

QUIET_SECONDS = 0.3
"""Without a request for so long, nobody is at work: longer than the longest round trip."""


@dataclass
class Sample:
    """What some operations cost, of one kind and by one peer.

    Attributes
    ----------
    operations : int
        How many.
    seconds : list of float
        Of each operation, as a rule.
    cpu : float
        Seconds of CPU of all of them, in all threads of the client's process.
    counts : Counts
        Of all of them, and of what they caused beside them (upkeep).
    requests : list of float
        Requests for one operation, in each visit.
    """

    operations: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    counts: Counts = field(default_factory=Counts)
    requests: list[float] = field(default_factory=list)

    def __iadd__(self, other: Sample) -> Self:
        """Add further operations of the same kind."""
        self.operations += other.operations
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.counts += other.counts
        self.requests += other.requests
        return self


class Process:
    """A process of `worker.py`, for one peer."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Have a method of `worker.Worker` called, and return its answer."""
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Have a method called, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest `send` that has none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = f"a worker has ended: {self._process.args}"
            raise RuntimeError(msg)
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@contextlib.contextmanager
def _node_options(options: str) -> Iterator[None]:
    """Have Node.js started with these."""
    before = os.environ.get("NODE_OPTIONS")
    os.environ["NODE_OPTIONS"] = f"{before or ''} {options}"
    try:
        yield
    finally:
        del os.environ["NODE_OPTIONS"]
        if before is not None:
            os.environ["NODE_OPTIONS"] = before


class Lab(contextlib.ExitStack):
    """Emulator, proxy and workers, for as long as a ``with`` statement lasts.

    Parameters
    ----------
    old : str, optional
        The interpreter of the environment in which remotedict 0.0.2 is installed.
    profiles : Path, optional
        A folder for profiles of the workers.
    """

    def __init__(self, old: str | None = None, profiles: Path | None = None) -> None:
        super().__init__()
        self._old, self._profiles = old, profiles
        self._processes = 0
        self._filled: set[str] = set()

    def __enter__(self) -> Self:
        """Start emulator and proxy."""
        super().__enter__()
        with _node_options(f"--require {HERE / 'keep_alive.js'}"):
            azurite = self.enter_context(Azurite())
        self.proxy = self.enter_context(Proxy("127.0.0.1", azurite.port))
        url = azurite.url.replace(str(azurite.port), str(self.proxy.port))
        self.account = Account(ACCOUNT_NAME, ACCOUNT_KEY, url)
        self._service = self.enter_context(
            BlobServiceClient.from_connection_string(azurite.connection_string)
        )
        return self

    def container(self, name: str) -> str:
        """Make a container and return its name."""
        name = name.lower().replace(".", "-")
        self._service.create_container(name)
        return name

    def blobs(self, number: int) -> str:
        """Return the name of a container with so many small blobs, made when first needed."""
        name = f"blobs-{number}"
        if name not in self._filled:
            with contextlib.closing(self.process("obstore")) as process:
                process.ask("open", self.container(name))
                process.ask("set_many", [f"key-{n:06d}" for n in range(number)])
            self._filled.add(name)
        return name

    def process(self, peer: str) -> Process:
        """Start a worker."""
        environment = dict(os.environ)
        interpreter = sys.executable
        if peer == OLD:
            assert self._old
            interpreter = self._old
            environment.pop("PYTHONPATH", None)
        command = [interpreter, str(HERE / "worker.py"), peer]
        command += [self.account.name, self.account.key, self.account.url]
        if self._profiles:
            self._processes += 1
            command += ["--profile", str(self._profiles / f"{peer}-{self._processes}.prof")]
        process = Process(command, environment)
        self.callback(process.close)
        return process

    def measure(self, act: Callable[[], list[dict[str, Any]]]) -> Sample:
        """Count what goes through the proxy for answers of workers, and what follows them."""
        self._settle()
        self.proxy.reset()
        answers = act()
        self._settle()
        counts = self.proxy.counts()
        seconds = [each for answer in answers for each in answer["seconds"]]
        return Sample(
            len(seconds),
            seconds,
            sum(answer["cpu"] for answer in answers),
            counts,
            [counts.requests / len(seconds)],
        )

    def _settle(self) -> None:
        """Wait until all is quiet: what was written before may still be tidied up."""
        counts, before = self.proxy.counts(), None
        while counts != before or counts.open:
            time.sleep(QUIET_SECONDS)
            counts, before = self.proxy.counts(), counts

    @property
    def peers(self) -> list[str]:
        """Those that can be measured."""
        return [peer for peer in PEERS if peer != OLD or self._old]
