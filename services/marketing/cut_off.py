"""An end to talks over a connection that go on for too long as a whole. A socket's own timeout is for each
wait: who sends a byte now and then is waited for without end.

One thread looks after all talks; it shuts the connection of one that is late down, whereupon whoever reads or
writes there meets its end. With eventlet's threads and sockets as with real ones. Loads no grpc.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Any

#: How often talks are looked at, seconds.
LOOK_SECONDS = 0.25


class Talk:
    """A talk that ends after so many seconds, `with` whose connections it knows. For one thread at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._connections: list[Any] = []

    def over(self, connection: Any) -> None:
        """Names a connection that it goes over: its `sock` is the socket, None while there is none."""
        if connection not in self._connections:
            self._connections.append(connection)

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._ends

    def cut(self) -> None:
        """Shuts its connections down. Repeatable."""
        for connection in tuple(self._connections):
            if (found := connection.sock) is not None:
                # Under TLS whoever reads there may meet a ValueError then, and not the end.
                with contextlib.suppress(OSError, ValueError):
                    found.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Talk:
        _watch.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watch.remove(self)


class _Watch:
    """Cuts off talks that are late, until they have ended."""

    def __init__(self) -> None:
        self._talks: set[Talk] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, talk: Talk) -> None:
        with self._changed:
            self._talks.add(talk)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="talks-cut-off", daemon=True)
                self._thread.start()
            if len(self._talks) == 1:
                self._changed.notify()

    def remove(self, talk: Talk) -> None:
        with self._changed:
            self._talks.discard(talk)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._talks:
                    self._changed.wait()
                late = [talk for talk in self._talks if talk.late]
            for talk in late:
                # Once more each time: a connection may have come about since.
                talk.cut()
            time.sleep(LOOK_SECONDS)


_watch = _Watch()
