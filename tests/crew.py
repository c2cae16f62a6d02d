"""Processes of a test, or of a campaign, that end with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

HANG = 120.0  # seconds after which a process counts as hung


class Crew:
    """Processes that end with the test, whatever happens."""

    def __init__(self, method: str) -> None:
        self.context: Any = multiprocessing.get_context(method)
        self._started: list[BaseProcess] = []
        self._ends: list[Connection] = []

    def start(self, target: Callable[..., None], *args: Any) -> BaseProcess:
        process = self.context.Process(target=target, args=args)
        with warnings.catch_warnings():
            # A fork of a process with threads is what users do, and what is tested here.
            warnings.filterwarnings("ignore", r".*multi-?threaded", DeprecationWarning)
            process.start()
        self._started.append(process)
        return process

    def start_with_report(self, target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
        """Start a process whose last argument is a pipe; return it and the end to read."""
        ours, theirs = self.context.Pipe(duplex=False)
        self._ends = [end for end in self._ends if not end.closed] + [ours]
        with theirs:  # so that the end of the process is the end of the pipe
            return self.start(target, *args, theirs), ours

    def join(self, *processes: BaseProcess) -> None:
        """Wait until processes have ended by themselves, and well."""
        deadline = time.monotonic() + HANG
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
            assert process.exitcode is not None, f"{process} hangs"
            assert process.exitcode == 0, f"{process} failed: its traceback is in stderr"

    def kill(self, process: BaseProcess) -> None:
        """Kill a process, and forget it."""
        process.kill()
        process.join()
        self._started.remove(process)
        process.close()

    def end(self) -> None:
        for process in self._started:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for end in self._ends:
            end.close()


@contextlib.contextmanager
def crew_of(method: str) -> Iterator[Crew]:
    crew = Crew(method)
    try:
        yield crew
    finally:
        crew.end()


def received(report: Connection) -> Any:
    """Return the next message of a process."""
    assert report.poll(HANG), "a process hangs"
    try:
        return report.recv()
    except EOFError:
        msg = "a process ended too early: its traceback is in stderr"
        raise AssertionError(msg) from None
