"""What each region's leader says of its load, for placement: own figures at once, others' over a stream.

Hints, not facts: they promise nothing and wait for no commit. A region that has been silent for
`silent_seconds` counts as down. Every router is watched, for any of them may lead a shard, or several; only
who leads one speaks for it, and an older epoch is not listened to.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterable

import grpc
import structlog

from callmesh.routing.v1 import directory_pb2, shard_pb2, shard_pb2_grpc
from chassis import client
from chassis.clock import Clock
from chassis.metrics import gauge
from routing.leader import Leader
from routing.views import QueueLoad, queue_loads

#: State is looked at, and sent when it changed, this often; unchanged it is repeated every heartbeat. The
#: more routers are told the longer it takes: to tell all costs as much as they are. Nobody hears later than
#: half of the second that placement allows. Real seconds.
COALESCE_SECONDS, COALESCE_SECONDS_A_WATCHER, COALESCE_SECONDS_MAX = 0.02, 0.01, 0.5
#: Who leads nothing looks this often whether it does by now.
IDLE_SECONDS = 0.1
HEARTBEAT_SECONDS = 0.5
RECONNECT_SECONDS = 0.25

log = structlog.get_logger(__name__)
_UP = gauge("callmesh_peer_up", "1 while a region's leader is heard.", ["region"])


class PeerTable:
    """The newest state of every region and when it was heard."""

    def __init__(self, clock: Clock, silent_seconds: float) -> None:
        self._clock = clock
        self._silent_seconds = silent_seconds
        self._heard: dict[str, tuple[shard_pb2.PeerState, float]] = {}
        self._leaders: dict[str, str] = {}
        self.on_change: list[Callable[[], None]] = []
        #: Called with (shard, epoch, address) for each word of a shard's newest leader.
        self.on_leader: list[Callable[[str, int, str], None]] = []

    def hear(self, state: shard_pb2.PeerState, address: str = "") -> None:
        """Takes a region's state from the router at `address`; one of an older epoch is dropped."""
        known = self._heard.get(state.region)
        if known is not None and state.epoch < known[0].epoch:
            return
        if known is None:
            # Asked whenever it is scraped, so that a silent region shows even if nobody calls.
            _UP.labels(state.region).set_function(functools.partial(self.alive, state.region))
        self._heard[state.region] = (state, self._clock.monotonic())
        self._leaders[state.region] = address
        for told in self.on_leader:
            told(state.shard, state.epoch, address)
        for callback in self.on_change:
            callback()

    def age_seconds(self, region: str) -> float | None:
        """Since the region was last heard; None if never."""
        known = self._heard.get(region)
        return None if known is None else self._clock.monotonic() - known[1]

    def alive(self, region: str) -> bool:
        """Heard within the silent time."""
        age = self.age_seconds(region)
        return age is not None and age <= self._silent_seconds

    def leader_of(self, region: str) -> tuple[int, str]:
        """(epoch, address) of the newest leader heard; (0, "") for none."""
        known = self._heard.get(region)
        return (0, "") if known is None else (known[0].epoch, self._leaders[region])

    def state(self, region: str) -> shard_pb2.PeerState | None:
        """The newest state heard, however old."""
        known = self._heard.get(region)
        return None if known is None else known[0]

    def load(self, region: str, queue: str) -> shard_pb2.PeerState.QueueLoad | None:
        """The region's load in a queue, if it is alive and has one."""
        state = self.state(region)
        if state is None or not self.alive(region):
            return None
        return next((load for load in state.queues if load.queue == queue), None)


def state_of(leader: Leader, router: str) -> shard_pb2.PeerState:
    """A leader's own state, as its peers are told; a region is a shard."""
    draining = leader.state.draining
    return shard_pb2.PeerState(
        region=leader.shard,
        shard=leader.shard,
        epoch=leader.epoch,
        sequence=leader.sequence,
        state=directory_pb2.REGION_STATE_DRAINING if draining else directory_pb2.REGION_STATE_UP,
        queues=[_load(load) for load in queue_loads(leader.state)],
        router=router,
    )


def _load(load: QueueLoad) -> shard_pb2.PeerState.QueueLoad:
    return shard_pb2.PeerState.QueueLoad(
        queue=load.queue,
        waiting=load.waiting,
        # Whoever has not come back after a change of leader answers no call.
        agents_logged_in=load.agents_present,
        agents_free=load.agents_free,
        expected_wait_ms=load.expected_wait_span_ms,
    )


def coalesce_seconds(watchers: int) -> float:
    """How often a leader that so many routers listen to tells its changes, real seconds."""
    return min(COALESCE_SECONDS_MAX, max(COALESCE_SECONDS, watchers * COALESCE_SECONDS_A_WATCHER))


async def changes(
    leaders: Callable[[], Iterable[Leader]],
    router: str,
    ended: Callable[[], bool] = lambda: False,
    watchers: Callable[[], int] = lambda: 1,
) -> AsyncGenerator[shard_pb2.PeerState, None]:
    """The state of each shard led here whenever it changed, and every heartbeat; nothing of those that are
    only followed. `watchers` says how many are told.
    """
    loop = asyncio.get_running_loop()
    told: dict[str, tuple[list[QueueLoad], float]] = {}
    while not ended():
        leading = [each for each in leaders() if each.leading]
        for leader in leading:
            loads = queue_loads(leader.state)
            last, sent = told.get(leader.shard, (None, 0.0))
            if loads != last or loop.time() - sent >= HEARTBEAT_SECONDS:
                told[leader.shard] = (loads, loop.time())
                yield state_of(leader, router)
        await asyncio.sleep(coalesce_seconds(watchers()) if leading else IDLE_SECONDS)


async def watch_own(
    table: PeerTable, leaders: Callable[[], Iterable[Leader]], router: str, address: str
) -> None:
    """Keeps the table's rows of the shards led in this process."""
    async for state in changes(leaders, router):
        table.hear(state, address)


async def watch_peer(table: PeerTable, dialer: client.Dialer, router: str, address: str) -> None:
    """Keeps the table's rows of the shards that the router at `address` leads, until cancelled."""
    request = shard_pb2.WatchPeersRequest(router=router)
    while True:
        try:
            stub = shard_pb2_grpc.ShardServiceStub(dialer.channel(address))
            async for state in stub.WatchPeers(request, metadata=dialer.metadata()):
                table.hear(state, address)
        except grpc.aio.AioRpcError as error:
            log.debug("peer_silent", router=address, code=error.code().name)
        await asyncio.sleep(RECONNECT_SECONDS)
