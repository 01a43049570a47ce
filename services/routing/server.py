"""The gRPC process: `python -m routing`. The only place where routing's parts are put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import structlog

from chassis import client, server
from chassis.errors import StartError
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from routing import geo
from routing.config import RoutingSettings
from routing.directory import DirectoryReader, Snapshot, follow
from routing.directory_servicer import directory_binding
from routing.documents import DOCUMENTS
from routing.front import Front
from routing.handlers import Handlers
from routing.journal import MongoJournal
from routing.leader import Leader
from routing.links import LocalShard, RemoteShard, ShardPort
from routing.model import QueueConfig
from routing.peers import PeerTable, watch_own, watch_peer
from routing.profiles import ProfileReader
from routing.regions import Regions
from routing.scopes import SCOPES
from routing.servicer import ShardServicer, bindings
from routing.tokens import PlaceTokens

log = structlog.get_logger(__name__)


def place_token_key(settings: RoutingSettings) -> bytes:
    """The key from its file; without one a random key, with which places are kept by this router alone."""
    if not settings.place_token_key_file:
        return secrets.token_bytes(32)
    key = Path(settings.place_token_key_file).read_bytes().strip()
    if len(key) < 32:
        raise StartError("ROUTING_PLACE_TOKEN_KEY_FILE: the key must have at least 32 bytes")
    return key


class Router:
    """One router: leader of its region's shard, front of its clients, peer of the others."""

    def __init__(self, settings: RoutingSettings) -> None:
        clock = settings.clock()
        self.settings = settings
        self.router = f"{settings.region}-{settings.instance or os.getpid()}"
        self.database = async_database(settings)
        self.leader = Leader(
            shard=settings.region,
            router=self.router,
            store=MongoJournal(self.database),
            clock=clock,
            options=settings.leader_options(),
        )
        self.peers = PeerTable(clock, settings.silent_seconds)
        self.regions = Regions(self.peers, clock)
        self.queues: dict[str, QueueConfig] = {}
        self.channels: dict[str, grpc.aio.Channel] = {
            region: client.channel(address) for region, address in settings.peer_addresses().items()
        }
        self.remotes = {
            region: RemoteShard(region, self.router, channel) for region, channel in self.channels.items()
        }
        self.directory = DirectoryReader(self.database)
        shards: dict[str, ShardPort] = {settings.region: LocalShard(self.leader, self.router), **self.remotes}
        self.front = Front(
            router=self.router,
            shards=shards,
            clock=clock,
            options=settings.front_options(),
            find_overflow=self.regions.find_overflow,
            find_agent=self.directory.region_of,
        )
        self.handlers = Handlers(
            front=self.front,
            regions=self.regions,
            tokens=PlaceTokens(
                place_token_key(settings), life_span_ms=settings.place_token_life_seconds * 1000
            ),
            profiles=ProfileReader(self.database, seconds=settings.profile_seconds),
            agents=self.directory,
            queues=self.queues,
            shards=frozenset(shards),
            clock=clock,
        )
        self.shard_servicer = ShardServicer(self.leader, settings.region, self.router)
        self._tasks: list[asyncio.Task[None]] = []

    def services(self) -> list[server.ServiceBinding]:
        """All gRPC services of a router."""
        own = bindings(self.handlers, self.front, self.shard_servicer)
        return [
            server.ServiceBinding(*parts) for parts in (*own, directory_binding(self.settings, self.regions))
        ]

    async def start(self) -> None:
        """Begins to lead, to follow the directory and to watch the peers."""
        ensure_indexes(DOCUMENTS)
        await asyncio.to_thread(geo.load)
        region = self.settings.region
        self._run(self.leader.run())
        self._run(
            follow(self.directory, self.leader, region, self.settings.directory_poll_seconds, self._apply)
        )
        self._run(watch_own(self.peers, self.leader, region, self.router))
        self._run(self.front.run_overflow())
        for name, channel in self.channels.items():
            self._run(watch_peer(self.peers, channel, self.router))
            self._run(self.remotes[name].run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """None of these may end before the process: better a restart than a router that is half there."""
        if not task.cancelled():
            log.error("background_task_ended", task=str(task.get_coro()), error=repr(task.exception()))
            signal.raise_signal(signal.SIGTERM)

    def _apply(self, snapshot: Snapshot) -> None:
        self.queues.clear()
        self.queues.update({queue.id: queue for queue in snapshot.queues})
        self.regions.configure(
            snapshot.regions, {queue.id: queue.overflow_span_ms for queue in snapshot.queues}
        )

    def drain(self) -> None:
        """The end is announced: clients are sent to other routers, other routers to the next leader."""
        self.front.drain()
        self.shard_servicer.drain()

    async def stop(self) -> None:
        """Ends everything that was started; the journal needs no farewell."""
        await self.front.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self.channels.values():
            with contextlib.suppress(Exception):
                await channel.close(None)
        await self.database.client.close()


async def run(settings: RoutingSettings) -> None:
    """Serves until told to end."""
    connect(settings)
    router = Router(settings)
    await server.serve(
        settings,
        router.services(),
        scopes=SCOPES,
        on_start=router.start,
        on_drain=router.drain,
        on_stop=[router.stop, disconnect],
        checks={"leading": lambda: router.leader.leading},
    )


def main() -> int:
    """Returns the process's exit status."""
    return server.main(RoutingSettings, run)
