"""What each region's leader says of its load, for placement: own figures at once, others' over a stream.

Hints, not facts: they promise nothing and wait for no commit. A region that has been silent for
`silent_seconds` counts as down. Every router is watched, for any of them may lead a shard, or several; only
who leads one speaks for it, and an older epoch is not listened to.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Container, Iterable

import grpc
import structlog

from callmesh.routing.v1 import directory_pb2, shard_pb2, shard_pb2_grpc
from chassis import client
from chassis.clock import Clock
from chassis.metrics import gauge
from routing.leader import Leader
from routing.views import QueueLoad, queue_loads

#: State is looked at this often, and told when it changed what calls do. The more routers are told the longer
#: it takes: to tell all costs as much as they are. Nobody hears later than half of the second that placement
#: allows. Real seconds.
COALESCE_SECONDS, COALESCE_SECONDS_A_WATCHER, COALESCE_SECONDS_MAX = 0.02, 0.01, 0.5
#: Figures that change nothing so soon are told when they have not been for this long, real seconds.
FIGURES_SECONDS = 0.25
#: From so many free agents on one more or less is such a figure.
FEW_AGENTS = 8
#: Who leads nothing looks this often whether it does by now.
IDLE_SECONDS = 0.1
#: Unchanged it is repeated this often.
HEARTBEAT_SECONDS = 0.5
RECONNECT_SECONDS = 0.25

log = structlog.get_logger(__name__)
_UP = gauge("callmesh_peer_up", "1 while a region's leader is heard.", ["region"])


class PeerTable:
    """The newest state of every region and when it was heard."""

    def __init__(self, clock: Clock, silent_seconds: float, regions: Container[str] | None = None) -> None:
        """`regions` are those that this router has links to; None: all. What another router says of a region
        that was added since is of no use here: no call can be placed there.
        """
        self._clock = clock
        self._regions = regions
        self._silent_seconds = silent_seconds
        self._heard: dict[str, tuple[shard_pb2.PeerState, float]] = {}
        self._leaders: dict[str, str] = {}
        self.on_change: list[Callable[[], None]] = []
        #: Called with (shard, epoch, address) for each word of a shard's newest leader.
        self.on_leader: list[Callable[[str, int, str], None]] = []

    def expect(self, region: str) -> None:
        """Shows a region as silent until it is heard: of one that never was, nobody would say so."""
        # Asked whenever it is scraped, so that a silent region shows even if nobody calls.
        _UP.labels(region).set_function(functools.partial(self.alive, region))

    def hear(self, state: shard_pb2.PeerState, address: str = "") -> None:
        """Takes a region's state from the router at `address`; one of an older epoch is dropped, as is one of
        a region without a link.
        """
        known = self._heard.get(state.region)
        if known is not None and state.epoch < known[0].epoch:
            return
        if self._regions is not None and state.region not in self._regions:
            return
        if known is None:
            self.expect(state.region)
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
        expected_wait_ms=load.own_wait_span_ms,
    )


def coalesce_seconds(watchers: int) -> float:
    """How often a leader that so many routers listen to tells what decides, real seconds."""
    return min(COALESCE_SECONDS_MAX, max(COALESCE_SECONDS, watchers * COALESCE_SECONDS_A_WATCHER))


def _standing(leader: Leader, loads: Iterable[QueueLoad]) -> object:
    """What of a shard's state sends calls elsewhere or brings them: how many agents are free where they are
    few, whether calls wait, whether anybody is there.
    """
    decides = [
        (each.queue, min(each.agents_free, FEW_AGENTS), each.waiting > 0, each.agents_present > 0)
        for each in loads
    ]
    return leader.epoch, leader.state.draining, decides


class _Shard:
    """What was last seen, and last told, of a shard that is led here."""

    __slots__ = ("loads", "news", "standing", "state", "told_seconds", "words")

    def __init__(self) -> None:
        self.loads: list[QueueLoad] = []
        self.standing: object = None
        #: Numbers of the newest that is news to this router, and that other routers are told.
        self.news = self.words = 0
        self.told_seconds = float("-inf")
        self.state = shard_pb2.PeerState()


class Voice:
    """Speaks for the shards that are led in this process: looks at them once for all who listen, and only
    while somebody does. Belongs to one event loop.
    """

    def __init__(self, leaders: Callable[[], Iterable[Leader]], router: str) -> None:
        """`leaders` are those of this process, leading or not, read anew each time."""
        self._leaders = leaders
        self._router = router
        self._shards: dict[str, _Shard] = {}
        self._listeners = 0
        #: Other routers among them.
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        #: What listeners wait for: this router's own, the others.
        self._news: asyncio.Future[None] | None = None
        self._words: asyncio.Future[None] | None = None

    async def listen(
        self, ended: Callable[[], bool] = lambda: False, *, own: bool = False
    ) -> AsyncGenerator[shard_pb2.PeerState, None]:
        """The state of each shard led here: at once, every heartbeat, at once again when it changes what
        calls do, and otherwise when it has changed for a while; nothing of those that are only followed.
        `own`: for this router itself, which hears of every change. Raises what looking at a shard raises:
        who only heard nothing more would take the region for lost.
        """
        heard: dict[str, int] = {}
        try:
            self._begin(own)
            while not ended():
                turn = self._next_turn(own)
                for shard, seen in list(self._shards.items()):
                    number = seen.news if own else seen.words
                    if heard.get(shard) != number:
                        heard[shard] = number
                        yield seen.state
                # Whoever stops to listen does not end the others' wait.
                await asyncio.shield(turn)
        finally:
            self._end(own)

    def _next_turn(self, own: bool) -> asyncio.Future[None]:
        """Done when there is something to hear again, or it is time to see whether to go on."""
        turn = self._news if own else self._words
        if turn is None:
            turn = asyncio.get_running_loop().create_future()
            if own:
                self._news = turn
            else:
                self._words = turn
        return turn

    def _begin(self, own: bool) -> None:
        self._listeners += 1
        self._watchers += not own
        if self._looking is None:
            self._look()
            self._looking = asyncio.create_task(self._run())

    def _end(self, own: bool) -> None:
        self._listeners -= 1
        self._watchers -= not own
        if not self._listeners and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _run(self) -> None:
        try:
            await self._look_on()
        except Exception as error:
            # Whoever listens next looks anew.
            turns, self._news, self._words, self._looking = (self._news, self._words), None, None, None
            for turn in turns:
                if turn is not None:
                    turn.set_exception(error)

    async def _look_on(self) -> None:
        loop, turned_seconds = asyncio.get_running_loop(), float("-inf")
        while True:
            await asyncio.sleep(coalesce_seconds(self._watchers) if self._shards else IDLE_SECONDS)
            news, words = self._look()
            if loop.time() - turned_seconds >= HEARTBEAT_SECONDS:
                turned_seconds, news, words = loop.time(), True, True
            if news and self._news is not None:
                self._news.set_result(None)
                self._news = None
            if words and self._words is not None:
                self._words.set_result(None)
                self._words = None

    def _look(self) -> tuple[bool, bool]:
        """Looks at every shard that is led here; whether there is news for this router, and for others."""
        leading = {each.shard: each for each in self._leaders() if each.leading}
        for shard in self._shards.keys() - leading.keys():
            del self._shards[shard]
        found = [self._look_at(leader) for leader in leading.values()]
        return any(news for news, _ in found), any(words for _, words in found)

    def _look_at(self, leader: Leader) -> tuple[bool, bool]:
        now, loads = asyncio.get_running_loop().time(), queue_loads(leader.state)
        seen = self._shards.get(leader.shard)
        if seen is None:
            seen = self._shards[leader.shard] = _Shard()
        standing, silent_seconds = _standing(leader, loads), now - seen.told_seconds
        changed = loads != seen.loads or standing != seen.standing
        due = silent_seconds >= (FIGURES_SECONDS if changed else HEARTBEAT_SECONDS)
        words = due or standing != seen.standing
        if changed or due:
            seen.loads, seen.state = loads, state_of(leader, self._router)
            seen.news = next(self._numbers)
        if words:
            seen.words, seen.standing, seen.told_seconds = seen.news, standing, now
        return changed or due, words


async def watch_own(table: PeerTable, voice: Voice, address: str) -> None:
    """Keeps the table's rows of the shards led in this process."""
    async for state in voice.listen(own=True):
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
