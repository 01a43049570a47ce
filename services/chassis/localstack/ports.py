"""Choosing loopback ports, and saying clearly when one is taken."""

from __future__ import annotations

import random
import socket

#: Ports are drawn below the range that the kernel hands to outgoing connections, so that none of those takes
#: one of ours between the choice and the listen.
PORT_FIRST = 20_000
PORT_LAST = 31_999
#: Draws before giving up: with fewer than half of the range taken, a failure is beyond bad luck.
DRAWS_MAX = 200

LOOPBACK = "127.0.0.1"


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
    """`count` consecutive free loopback ports; RuntimeError when none were found in `DRAWS_MAX` draws."""
    chooser = random.SystemRandom()
    for _ in range(DRAWS_MAX):
        first = chooser.randint(PORT_FIRST, PORT_LAST - count)
        ports = list(range(first, first + count))
        if all(port_is_free(port) for port in ports):
            return ports
    raise RuntimeError(f"no {count} consecutive free ports between {PORT_FIRST} and {PORT_LAST}")
