"""Links of `chaos-region` where the machine allows no network namespaces: what is cut is silent, and whole
again when it is mended.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from bench.chaos.region_net import HUB, Link, Proxies

from chassis.localstack import free_ports

#: How long an answer may take, and how long none must come, seconds.
PATIENCE_SECONDS, SILENT_SECONDS = 30.0, 0.2


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(64):
            self.request.sendall(data)


@contextmanager
def echoing(port: int) -> Iterator[None]:
    with socketserver.ThreadingTCPServer((HUB, port), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class Line:
    """A connection of this process to `port`, over IPv4 or as a program that speaks IPv6 makes it."""

    def __init__(self, port: int, *, six: bool = False, own: int = 0) -> None:
        family, host = (socket.AF_INET6, f"::ffff:{HUB}") if six else (socket.AF_INET, HUB)
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, own))
        self._socket.connect((host, port))
        self.own = self._socket.getsockname()[1]

    def say(self) -> None:
        self._socket.sendall(b"x")

    def hears(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(1) == b"x"
        except TimeoutError:
            return False

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    ("own", "cut", "link", "silent"),
    [
        ("chengdu", "beijing", Link.PEERS, True),
        ("chengdu", "chengdu", Link.PEERS, True),
        ("chengdu", "shanghai", Link.PEERS, False),
        ("chengdu", "beijing", Link.DATABASE, False),
        # What a region's own routers say to each other leaves it not.
        ("beijing", "beijing", Link.PEERS, False),
    ],
)
@pytest.mark.parametrize("six", [False, True])
def test_a_cut_link_says_nothing_until_it_is_mended(
    own: str, cut: str, link: Link, silent: bool, six: bool
) -> None:
    regions = ("beijing", "shanghai", "chengdu")
    ports = free_ports(30)
    known = dict(zip(regions, ports, strict=False))
    net = Proxies(
        {region: [port] for region, port in known.items()},
        ports[5:],
        ports[3],
        ports[4],
        lambda pid: own if pid == os.getpid() else "",
    )
    behind = net.listen("beijing", known["beijing"])[1]
    with closing(net), echoing(behind), closing(Line(known["beijing"], six=six)) as line:
        line.say()
        assert line.hears(PATIENCE_SECONDS)
        net.cut(cut, [link])
        line.say()
        if silent:
            assert not line.hears(SILENT_SECONDS)
            net.mend(cut)
        assert line.hears(PATIENCE_SECONDS)


def test_a_line_is_known_from_an_ended_connection_with_the_same_port_of_its_own() -> None:
    first, second, other, mongo, amqp, *free = free_ports(30)
    regions = {"beijing": [first], "chengdu": [second]}
    net = Proxies(regions, free, mongo, amqp, lambda pid: "chengdu" if pid == os.getpid() else "")
    with closing(net), echoing(other), echoing(net.listen("beijing", first)[1]):
        with closing(Line(other)) as ended:
            ended.say()
            assert ended.hears(PATIENCE_SECONDS)
        with closing(Line(first, six=True, own=ended.own)) as line:
            line.say()
            assert line.hears(PATIENCE_SECONDS)
            net.cut("chengdu", [Link.PEERS])
            line.say()
            assert not line.hears(SILENT_SECONDS)


def test_a_database_is_cut_off_for_one_region_alone_and_nobody_there_is_told_so() -> None:
    ports = free_ports(30)
    regions = {"beijing": [ports[0]], "chengdu": [ports[1]]}
    net = Proxies(regions, ports[5:], ports[3], ports[4], lambda pid: "")
    addresses = {
        region: int(net.mongo_uri(region).rpartition(":")[2].partition("/")[0]) for region in regions
    }
    with closing(net), echoing(ports[3]):
        with closing(Line(addresses["beijing"])) as cut, closing(Line(addresses["chengdu"])) as whole:
            net.cut("beijing", [Link.DATABASE])
            for line in (cut, whole):
                line.say()
            assert whole.hears(PATIENCE_SECONDS)
            assert not cut.hears(SILENT_SECONDS)
            net.mend("beijing")
            assert cut.hears(PATIENCE_SECONDS)
        with closing(Line(known := ports[1])) as nobody:
            # Nobody listens behind it: closed, as a refused connection would be.
            assert known and not nobody.hears(PATIENCE_SECONDS)
