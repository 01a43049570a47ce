"""Choosing loopback ports, and saying clearly when one is taken."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import socket
import tempfile
from collections import deque
from pathlib import Path

#: Ports are drawn below the range that the kernel hands to outgoing connections, so that none of those takes
#: one of ours between the choice and the listen.
PORT_FIRST = 20_000
PORT_LAST = 31_999
#: Draws before giving up: with fewer than half of the range taken, a failure is beyond bad luck.
DRAWS_MAX = 200
#: Answers of this process that it gives no port of again.
RECENT_MAX = 32

LOOPBACK = "127.0.0.1"


# A lock keeps out other processes, never the one that has it.
_recent: deque[range] = deque(maxlen=RECENT_MAX)


class PortInUse(Exception):
    """A port that a part needs is held by a process outside this run directory."""


def port_is_free(port: int) -> bool:
    """Whether a listener could bind `port` on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection in TIME_WAIT does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(ports: list[int], part: str) -> None:
    """Raises PortInUse naming the first port that is taken."""
    for port in ports:
        if not port_is_free(port):
            raise PortInUse(f"{part} needs port {port} on {LOOPBACK}, which another process holds")


def free_ports(count: int) -> list[int]:
    """`count` consecutive free loopback ports; RuntimeError when none were found in `DRAWS_MAX` draws.

    Until somebody listens on them they are free to look at: so no other process of this user is given them
    here for as long as this process lives, nor is this one soon.
    """
    chooser = random.SystemRandom()
    for _ in range(DRAWS_MAX):
        first = chooser.randint(PORT_FIRST, PORT_LAST - count)
        ports = range(first, first + count)
        if any(ports[0] <= other[-1] and other[0] <= ports[-1] for other in _recent):
            continue
        if all(port_is_free(port) for port in ports) and _claim(first, count):
            _recent.append(ports)
            return list(ports)
    raise RuntimeError(f"no {count} consecutive free ports between {PORT_FIRST} and {PORT_LAST}")


def _claim(first: int, count: int) -> bool:
    """Whether nobody else was given one of these ports; then they are this process'. The byte of each port is
    locked in a file of the user's, which the kernel undoes when the process ends.
    """
    claims = _claims()
    if claims is None:
        return True
    try:
        fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except OSError:
        return False
    return True


@functools.cache
def _claims() -> int | None:
    """The file of claims, open to the end of the process (to close it would give all of them back); None
    where there can be none.
    """
    path = Path(tempfile.gettempdir()) / f"callmesh-ports-{os.getuid()}"
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return None
