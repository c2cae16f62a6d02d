"""An interrupt of the main thread at a moment that a test chooses."""

from __future__ import annotations

import signal
import threading


class Interrupt:
    """One KeyboardInterrupt of the main thread, which waits, by another one."""

    def __init__(self):
        self.over = threading.Event()
        self._seen = []
        self._lock = threading.Lock()  # none is sent once it is over

    def strike(self):
        if threading.current_thread() is threading.main_thread():
            return
        while not self.over.wait(0.1):  # one that comes just before the wait doesn't end it
            with self._lock:
                if not self.over.is_set():
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def before(self, act):
        """Return what strikes, and then acts."""

        def acts(*args):
            self.strike()
            return act(*args)

        return acts

    def after(self, act):
        """Return what acts, and then strikes."""

        def acts(*args):
            done = act(*args)
            self.strike()
            return done

        return acts

    def __enter__(self):
        self._handler = signal.signal(signal.SIGINT, self._once)

    def _once(self, *_):
        if not self._seen:
            self._seen.append(True)
            raise KeyboardInterrupt

    def __exit__(self, *_):
        with self._lock:
            self.over.set()
        signal.signal(signal.SIGINT, self._handler)
