"""Regions that are networks of their own, and the links between them, which can be cut and mended again.

Each region has four links: to its peers, to the database, to the broker, and to its clients (edges and
desktops). A cut link swallows everything and says nothing, as a dead line does: no connection is refused or
reset.

Where the machine allows it, every region is a network namespace (`Namespaces`): its links are virtual cables
to four switches, and to cut one is to pull it out of the switch. Nothing touches the machine's own network:
the command itself first moves to a namespace of its own (`move_in`), and all of it is gone when the last of
its processes ends. Addresses are of 127/8 nevertheless, let out of the loopback device, because a platform
without credentials serves loopback addresses only.

Elsewhere (`Proxies`), the regions' processes share the machine's loopback device, every link but the clients'
leads through a proxy in this process, and a cut link is one that the proxy does not read any more. The region
that a connection comes from is that of the process that the kernel says holds its other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from chassis.localstack.process import ManagedProcess, wait_for

#: Set for the process that has moved to a namespace of its own.
MOVED_IN = "CALLMESH_CHAOS_NETWORK"
#: How long a namespace may take to be there, and a proxy to listen, seconds.
START_SECONDS_MAX = 10.0
#: Bytes that a proxy reads at once.
PROXY_BYTES = 1 << 16
#: How often the kernel's table, which changes while it is read, is looked at for one connection.
LOOKS_MAX = 5
HUB, CLIENTS = "127.0.0.1", "127.77.255.1"


class Link(enum.StrEnum):
    """What a region is connected with."""

    PEERS = "peers"
    DATABASE = "database"
    BROKER = "broker"
    CLIENTS = "clients"


class Network(Protocol):
    """Regions and their links. Methods may be called from any thread."""

    #: What the report calls it.
    kind: str

    def listen(self, region: str, port: int) -> tuple[str, int]:
        """Where a router of a region listens, and its clients reach it, that others know by `port`."""

    def advertised(self, region: str, port: int) -> str:
        """`host:port` by which peers reach that router."""

    def command(self, region: str, command: Sequence[str]) -> list[str]:
        """A command, to be run within a region."""

    def mongo_uri(self, region: str) -> str:
        """The database, as the region's processes reach it."""

    def amqp_uri(self, region: str) -> str:
        """The broker, likewise."""

    def cut(self, region: str, links: Iterable[Link]) -> None:
        """From now on nothing goes through these links of the region."""

    def mend(self, region: str) -> None:
        """All links of the region are whole again."""

    def close(self) -> None:
        """Takes everything down."""


def move_in() -> None:
    """Goes on in a network namespace of this process's own, where that is allowed; otherwise stays here."""
    if MOVED_IN in os.environ:
        if os.environ[MOVED_IN] == "own":
            _ip(["link set lo up"])
        return
    for flags in (["--net"], ["--user", "--map-root-user", "--net"]):
        if _allowed(["unshare", *flags]):
            os.environ[MOVED_IN] = "own"
            os.execvp("unshare", ["unshare", *flags, "--", *_this_command()])
    os.environ[MOVED_IN] = "shared"


def _this_command() -> list[str]:
    """How this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def _allowed(unshare: list[str]) -> bool:
    """Whether namespaces can be made, cables laid and loopback addresses let out of the loopback device."""
    trial = (
        "ip link set lo up && ip link add t0 type bridge && ip link add t1 type veth peer name t2"
        " && ip link set t1 master t0 && sysctl -qw net.ipv4.conf.all.route_localnet=1 && unshare --net true"
        " && nsenter --net=/proc/self/ns/net true"
    )
    try:
        done = subprocess.run([*unshare, "sh", "-c", trial], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def has_own_network() -> bool:
    """Whether this process has moved."""
    return os.environ.get(MOVED_IN) == "own"


def _ip(lines: Iterable[str], enter: Sequence[str] = ()) -> None:
    """Commands of `ip`, all or an error."""
    text = "\n".join(lines) + "\n"
    done = subprocess.run([*enter, "ip", "-batch", "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()} in\n{text}")


class Namespaces:
    """A namespace a region."""

    kind = "network namespaces"

    def __init__(self, run_dir: Path, regions: Sequence[str], mongo_uri: str, amqp_uri: str, amqp_port: int):
        self._mongo, self._amqp = mongo_uri, amqp_uri
        self._number = {region: number for number, region in enumerate(regions, 1)}
        self._keepers = {region: ManagedProcess(run_dir, f"network-{region}") for region in regions}
        self._enter: dict[str, list[str]] = {}
        try:
            self._lay(regions, amqp_port)
        except BaseException:
            self.close()
            raise

    def _lay(self, regions: Sequence[str], amqp_port: int) -> None:
        subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True)
        _ip(line for link in Link for line in (f"link add {link} type bridge", f"link set {link} up"))
        _ip([f"addr add {CLIENTS}/32 dev lo"])
        for region in regions:
            self._found(region)
        for region in regions:
            self._connect(region, amqp_port)

    def _found(self, region: str) -> None:
        """The region's namespace, kept by a process that does nothing else, and its cables."""
        keeper, number = self._keepers[region], self._number[region]
        path = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        keeper.start(["unshare", "--net", "sleep", "infinity"], env=path)
        own = os.readlink("/proc/self/ns/net")
        namespace = f"/proc/{keeper.pid()}/ns/net"
        if not wait_for(lambda: os.readlink(namespace) != own, START_SECONDS_MAX):
            raise RuntimeError(f"no network namespace for {region}")
        self._enter[region] = ["nsenter", f"--net={namespace}"]
        cables = [f"link add {link}{number} type veth peer name {link} netns {keeper.pid()}" for link in Link]
        _ip([*cables, *(f"link set {link}{number} master {link} up" for link in Link)])
        subprocess.run(
            [*self._enter[region], "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True
        )

    def _connect(self, region: str, amqp_port: int) -> None:
        """Addresses and ways: what goes to the database and what to the broker is told apart by the port."""
        own = f"127.77.{self._number[region]}"
        others = [number for other, number in self._number.items() if other != region]
        _ip(
            [
                "link set lo up",
                f"addr del {HUB}/8 dev lo",
                *(f"addr add {own}.{last}/32 dev lo" for last in (1, 2, 3)),
                *(f"link set {link} up" for link in Link),
                *(f"route add 127.77.{number}.1 dev {Link.PEERS} src {own}.1" for number in others),
                f"route add {CLIENTS} dev {Link.CLIENTS} src {own}.1",
                f"route add {HUB} dev {Link.DATABASE} src {own}.2",
                f"route add {HUB} dev {Link.BROKER} src {own}.3 table 77",
                f"rule add to {HUB} ipproto tcp dport {amqp_port} lookup 77",
            ],
            self._enter[region],
        )
        _ip(
            [
                f"route add {own}.1 dev {Link.CLIENTS} src {CLIENTS} table local",
                f"route add {own}.2 dev {Link.DATABASE} src {HUB} table local",
                f"route add {own}.3 dev {Link.BROKER} src {HUB} table local",
            ]
        )

    def listen(self, region: str, port: int) -> tuple[str, int]:
        return f"127.77.{self._number[region]}.1", port

    def advertised(self, region: str, port: int) -> str:
        return f"127.77.{self._number[region]}.1:{port}"

    def command(self, region: str, command: Sequence[str]) -> list[str]:
        return [*self._enter[region], *command]

    def mongo_uri(self, region: str) -> str:
        return self._mongo

    def amqp_uri(self, region: str) -> str:
        return self._amqp

    def cut(self, region: str, links: Iterable[Link]) -> None:
        _ip(f"link set {link}{self._number[region]} nomaster" for link in links)

    def mend(self, region: str) -> None:
        _ip(f"link set {link}{self._number[region]} master {link}" for link in Link)

    def close(self) -> None:
        # A namespace ends with its last process, and its cables with it.
        for keeper in self._keepers.values():
            keeper.kill()
        for link in Link:
            with contextlib.suppress(RuntimeError):
                _ip([f"link del {link}"])


class Proxies:
    """Links of regions that share the machine's network."""

    kind = "proxies on loopback"

    def __init__(
        self,
        routers: Mapping[str, Sequence[int]],
        ports: Iterable[int],
        mongo_port: int,
        amqp_port: int,
        region_of: Callable[[int], str],
    ):
        """`routers` are the ports by which each region's routers are known, `ports` free ones of which three
        a region and one a router are used; `region_of` says the region of a process id.
        """
        free = iter(ports)
        self._region_of = region_of
        self._behind = {port: next(free) for known in routers.values() for port in known}
        self._mongo = {region: next(free) for region in routers}
        self._amqp = {region: next(free) for region in routers}
        self._cut: set[tuple[str, Link]] = set()
        self._changed: asyncio.Event | None = None
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        try:
            self._run(self._serve(routers, mongo_port, amqp_port))
        except BaseException:
            self.close()
            raise

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS_MAX)

    async def _serve(self, routers: Mapping[str, Sequence[int]], mongo_port: int, amqp_port: int) -> None:
        self._changed = asyncio.Event()
        for region, known in routers.items():
            for port in known:
                await self._listen(port, self._behind[port], region, Link.PEERS)
            await self._listen(self._mongo[region], mongo_port, region, Link.DATABASE)
            await self._listen(self._amqp[region], amqp_port, region, Link.BROKER)

    async def _listen(self, port: int, behind: int, region: str, link: Link) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("peername")[1]
            ends = {region} if link is not Link.PEERS else {region, self._caller_of(peer, port)}
            # What a region's own routers say to each other leaves it not.
            watched = {(end, link) for end in ends} if len(ends) > 1 or link is not Link.PEERS else set()
            await self._carry(reader, writer, behind, watched)

        self._servers.append(await asyncio.start_server(connected, HUB, port))

    def _caller_of(self, port: int, called: int) -> str:
        """The region of the process that called from `port`; empty for none of theirs."""
        for _ in range(LOOKS_MAX):
            # Other connections, ended ones too, may have the same local port: both ends tell ours.
            if inode := _socket_of(port, called):
                return next((region for pid in _holders(inode) if (region := self._region_of(pid))), "")
        return ""

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        behind: int,
        watched: set[tuple[str, Link]],
    ) -> None:
        """Both directions, until either end closes."""
        await self._whole(watched)
        far = None
        try:
            far_reader, far = await asyncio.open_connection(HUB, behind)
            ways = [self._one_way(reader, far, watched), self._one_way(far_reader, writer, watched)]
            tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:
            # Nobody listens there: the connection is closed as a refused one would be.
            pass
        finally:
            writer.close()
            if far is not None:
                far.close()

    async def _one_way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watched: set[tuple[str, Link]]
    ) -> None:
        while data := await reader.read(PROXY_BYTES):
            await self._whole(watched)
            writer.write(data)
            await writer.drain()

    async def _whole(self, watched: set[tuple[str, Link]]) -> None:
        """Until none of these links is cut."""
        while watched & self._cut:
            assert self._changed is not None
            await self._changed.wait()

    def listen(self, region: str, port: int) -> tuple[str, int]:
        return HUB, self._behind[port]

    def advertised(self, region: str, port: int) -> str:
        return f"{HUB}:{port}"

    def command(self, region: str, command: Sequence[str]) -> list[str]:
        return list(command)

    def mongo_uri(self, region: str) -> str:
        return f"mongodb://{HUB}:{self._mongo[region]}/?directConnection=true"

    def amqp_uri(self, region: str) -> str:
        return f"amqp://guest:guest@{HUB}:{self._amqp[region]}//"

    def cut(self, region: str, links: Iterable[Link]) -> None:
        self._set(self._cut | {(region, link) for link in links})

    def mend(self, region: str) -> None:
        self._set({pair for pair in self._cut if pair[0] != region})

    def _set(self, cut: set[tuple[str, Link]]) -> None:
        async def change() -> None:
            assert self._changed is not None
            self._cut = cut
            before, self._changed = self._changed, asyncio.Event()
            before.set()

        self._run(change())

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        """Takes no more connections and breaks those that there are."""
        for server in self._servers:
            server.close()
        carried = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)


def _socket_of(local: int, remote: int) -> str:
    """The open socket with these ports at its own end and the other; empty for none.

    Those of programs that speak IPv6 too stand in a table of their own.
    """
    ports = (f":{local:04X}", f":{remote:04X}")
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for row in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = row.split()
            ends = (fields[1][-5:], fields[2][-5:])
            # A connection that ended and waits for stragglers belongs to nobody.
            if ends == ports and fields[9] != "0":
                return fields[9]
    return ""


def _holders(inode: str) -> Iterable[int]:
    """Ids of the processes that hold a socket."""
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(file) == wanted for file in (process / "fd").iterdir()):
                    yield int(process.name)
