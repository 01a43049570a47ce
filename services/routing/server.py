"""The gRPC process: `python -m routing`. The only place where routing's parts are put together.

A region may have several routers: one leads its shard, the others follow the journal as warm standbys and
take over after `ROUTING_TAKEOVER_SECONDS` of silence. All of them are fronts for clients at any time.
ROUTING_PEERS names the region once for each, and every router says which of them it is:

    export ROUTING_REGION=beijing ROUTING_PEERS=beijing=127.0.0.1:7120,beijing=127.0.0.1:7121
    ROUTING_ADVERTISE=127.0.0.1:7120 ROUTING_GRPC_PORT=7120 ROUTING_HTTP_PORT=7130 python -m routing
    ROUTING_ADVERTISE=127.0.0.1:7121 ROUTING_GRPC_PORT=7121 ROUTING_HTTP_PORT=7131 python -m routing

Both need the same MONGO_URI, ROUTING_MONGO_DATABASE and ROUTING_PLACE_TOKEN_KEY_FILE. /readyz answers 200
when a router leads or follows a living leader. Clients that lose their router open their streams at another
one: an edge with `attempt` + 1 and its place token, a desktop with the next session number. Routers of other
regions back the shard up when the region's `lead_list` in the directory names them (and its own routers,
which come first); without a list the region's own routers may lead.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import secrets
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from chassis import client, metrics, server, tls
from chassis.acts import Acts
from chassis.clock import Clock
from chassis.errors import StartError
from chassis.eventservice import EventSource
from chassis.eventservice import scopes as event_scopes
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from routing import geo, hours, whatif_day
from routing.audit_store import AuditReader
from routing.blocked import BlockedCalls
from routing.config import RoutingSettings
from routing.continuing import Continuing
from routing.directory import DirectoryReader, Snapshot, follow
from routing.directory_servicer import directory_binding
from routing.documents import DOCUMENTS
from routing.explain_handlers import Explainer
from routing.front import Front
from routing.handlers import Handlers
from routing.hold_peers import GrpcHoldPeers
from routing.journal import MongoJournal
from routing.leader import Leader
from routing.lifecycle import LIFECYCLE
from routing.links import SILENT_SECONDS_MIN, Routers, ShardLink
from routing.menus.documents import DOCUMENTS as MENU_DOCUMENTS
from routing.menus.servicer import Menus
from routing.metrics_shard import ShardMetrics
from routing.model import QueueConfig
from routing.peers import PeerTable, watch_own, watch_peer
from routing.planning.process import Elsewhere
from routing.planning.servicer import planning_binding
from routing.profiles import ProfileBook
from routing.regions import Regions
from routing.replay import look_back
from routing.reports_store import ReportReader
from routing.scopes import SCOPES
from routing.seizure import Seizer
from routing.servicer import bindings
from routing.shard_servicer import ShardServicer
from routing.supervision_directory import SupervisionDirectory
from routing.supervision_handlers import SupervisionHandlers
from routing.supervision_servicer import supervision_binding
from routing.tokens import PlaceTokens
from routing.witnesses import Witnesses

log = structlog.get_logger(__name__)


def place_token_key(settings: RoutingSettings) -> bytes:
    """The key from its file; without one a random key, with which places are kept by this router alone."""
    if not settings.place_token_key_file:
        return secrets.token_bytes(32)
    said = Path(settings.place_token_key_file).read_bytes()
    # A text may end with its line, which is no part of the key. Of random bytes the first or the last looks
    # like a space in one key of twenty-two, and is a part of it.
    key = said.strip() if len(said.strip()) >= 32 else said
    if len(key) < 32:
        raise StartError("ROUTING_PLACE_TOKEN_KEY_FILE: the key must have at least 32 bytes")
    return key


class Router:
    """One router: leader or warm standby of its region's shard, backup of the shards whose lead list names
    it, front of its clients, peer of the others.
    """

    def __init__(self, settings: RoutingSettings) -> None:
        self._clock = clock = settings.clock()
        self.settings = settings
        #: As a front: another one after a restart, so that nothing waits for streams that are gone.
        self.router = f"{settings.region}-{settings.instance or os.getpid()}"
        #: As a leader: the address that lead lists and hints name.
        self.address = settings.own_address()
        self.name = self.address or self.router
        self.database = async_database(settings)
        regions = dict.fromkeys((settings.region, *settings.routers()))
        self.peers = PeerTable(clock, settings.silent_seconds, regions)
        # Its own alone: another one may be named to routers before it has any.
        self.peers.expect(settings.region)
        self.regions = Regions(self.peers, clock)
        self.queues: dict[str, QueueConfig] = {}
        self.skills: set[str] = set()
        dialer = client.Dialer(tls.certificates(settings), tls.TokenFile(settings.peer_token_file))
        self.routers = Routers(self.address, settings.routers(), dialer)
        # A link is left after the silence that makes a standby take over.
        silent_seconds = max(settings.takeover_seconds, SILENT_SECONDS_MIN)
        self.links = {
            region: ShardLink(region, self.router, self.routers, silent_seconds=silent_seconds)
            for region in regions
        }
        self.peers.on_leader.append(self._leader_heard)
        #: By shard: this region's, and those that this router is a backup of.
        self.leaders: dict[str, Leader] = {}
        self.figures = ShardMetrics(lambda: self.leaders)
        metrics.use_source("shards", self.figures)
        self.leader = self._make_leader(settings.region)
        self.directory = DirectoryReader(self.database)
        self.front = self._make_front()
        self.profiles = ProfileBook(
            self.database, seconds=settings.profile_seconds, held_max=settings.profiles_held_max
        )
        self.planner = _planner(settings, clock)
        self.blocked = BlockedCalls(self.database, settings.region, clock)
        repeat_window_ms, key = settings.repeat_window_seconds * 1000, place_token_key(settings)
        self.handlers = Handlers(
            front=self.front,
            regions=self.regions,
            tokens=PlaceTokens(key, life_span_ms=settings.place_token_life_seconds * 1000),
            profiles=self.profiles,
            agents=self.directory,
            queues=self.queues,
            skills=self.skills,
            shards=frozenset(self.links),
            clock=clock,
            platform_now_ms=self.leader.platform_ms,
            repeat_window_ms=repeat_window_ms,
            note_blocked=self.blocked.note,
        )
        self.explainer = self._make_explainer(repeat_window_ms)
        self.supervision = SupervisionHandlers(
            front=self.front,
            agents=self.directory,
            peers=self.peers,
            shards=frozenset(self.links),
            zone_of=self.regions.zone_of,
            reports=ReportReader(self.database),
            audit=AuditReader(self.database),
            clock=clock,
        )
        self.menus = Menus(settings, self.database, key, clock, lambda: self.regions.zone_of(settings.region))
        self.shard_servicer = ShardServicer(self.leaders, self.name, self.who_leads)
        self._tasks: set[asyncio.Task[None]] = set()
        self._backups: dict[str, list[asyncio.Task[None]]] = {}

    def _make_front(self) -> Front:
        return Front(
            router=self.router,
            shards=self.links,
            clock=self._clock,
            options=self.settings.front_options(),
            find_overflow=self.regions.find_overflow,
            deserted=self.regions.deserted,
            leaves=self.regions.leaves,
            find_agent=self.directory.region_of,
        )

    def _make_explainer(self, repeat_window_ms: int) -> Explainer:
        return Explainer(
            front=self.front,
            regions=self.regions,
            queues=self.queues,
            skills=self.skills,
            shards=frozenset(self.links),
            look_back=look_back,
            clock=self._clock,
            profiles=self.profiles,
            agent_first=self.handlers.agent_first,
            repeat_window_ms=repeat_window_ms,
        )

    def _make_leader(self, shard: str) -> Leader:
        leader = Leader(
            shard=shard,
            router=self.name,
            store=MongoJournal(self.database),
            clock=self._clock,
            options=self.settings.leader_options(),
            home=shard == self.settings.region,
        )
        leader.ask_others = functools.partial(Witnesses(self.routers).newest, shard)
        options = self.settings.continue_options()
        if options is not None:
            leader.continuing = Continuing(leader, GrpcHoldPeers(self.routers), options)
        self.leaders[shard] = leader
        self.links[shard].use_local(leader)
        # What was read is not looked through again and again for garbage: with many calls that takes as long
        # as a caller notices.
        leader.on_lead.append(gc.freeze)
        leader.on_lead.append(functools.partial(self.figures.begin, leader))
        return leader

    def who_leads(self, shard: str) -> str:
        """The address of the router that is believed to lead a shard; empty when nobody is."""
        heard, leader = self.peers.leader_of(shard), self.leaders.get(shard)
        read = (leader.epoch, leader.opened_by) if leader is not None else (0, "")
        return max(heard, read)[1]

    def _leader_heard(self, shard: str, epoch: int, address: str) -> None:
        link = self.links.get(shard)
        if link is not None:
            link.notice(epoch, address)

    def services(self) -> list[server.ServiceBinding]:
        """All gRPC services of a router."""
        own = bindings(self.handlers, self.front, self.shard_servicer, self.explainer)
        simulate = functools.partial(
            whatif_day.answer,
            mongo_uri=self.settings.mongo_uri,
            database=self.settings.mongo_database,
            mongo_uri_file=self.settings.mongo_uri_file,
        )
        supervision = supervision_binding(
            self.supervision,
            SupervisionDirectory(self._clock),
            simulate,
            Seizer(self.leaders, frozenset(self.links), self.name),
        )
        return [
            server.ServiceBinding(*parts)
            for parts in (
                *own,
                supervision,
                planning_binding(self.planner.answer),
                directory_binding(self.settings, self.regions, self.front, frozenset(self.links)),
                self.menus.binding(),
            )
        ]

    async def start(self) -> None:
        """Begins to follow or lead, to keep up with the directory and to watch the peers."""
        ensure_indexes((*DOCUMENTS, *MENU_DOCUMENTS))
        # The journal is read, and the shards' leaders are looked for, meanwhile.
        self._run(self.leader.run())
        for link in self.links.values():
            self._run(link.run())
        await asyncio.to_thread(geo.load)
        await asyncio.to_thread(hours.load)
        self._run(self._follow_directory(self.leader, self._apply))
        self._run(watch_own(self.peers, self.shard_servicer.voice, self.address))
        self._run(self.front.run_overflow())
        self._run(self.profiles.run())
        self._run(self.menus.recorder.run())
        self._run(self.blocked.run())
        for address in self.routers.others():
            self._run(watch_peer(self.peers, self.routers.dialer, self.name, address))

    def _follow_directory(
        self, leader: Leader, apply: Callable[[Snapshot], None], age_seconds: float = 0.0
    ) -> Coroutine[Any, Any, None]:
        poll_seconds = self.settings.directory_poll_seconds
        return follow(self.directory, leader, leader.shard, poll_seconds, apply, age_seconds)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.add(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """None of these may end before the process: better a restart than a router that is half there."""
        self._tasks.discard(task)
        if not task.cancelled():
            log.error("background_task_ended", task=str(task.get_coro()), error=repr(task.exception()))
            signal.raise_signal(signal.SIGTERM)

    def _apply(self, snapshot: Snapshot) -> None:
        self.queues.clear()
        self.queues.update({queue.id: queue for queue in snapshot.queues})
        self.skills.clear()
        self.skills.update(snapshot.skills)
        self.regions.configure(
            snapshot.regions, {queue.id: queue.overflow_span_ms for queue in snapshot.queues}
        )
        for region in snapshot.regions:
            if region.id in self.links:
                self.links[region.id].use_list(region.lead_list)
                if region.id != self.settings.region:
                    self._back_up(region.id, wanted=bool(self.address) and self.address in region.lead_list)

    def _back_up(self, shard: str, *, wanted: bool) -> None:
        """Begins to follow another region's shard as its backup, or ends it. A backup that leads goes on
        until the shard's journal says otherwise.
        """
        if wanted and shard not in self.leaders:
            leader = self._make_leader(shard)
            # The region's own shard has asked for the version a moment ago.
            age_seconds = 2 * self.settings.directory_poll_seconds
            directory = self._follow_directory(leader, lambda snapshot: None, age_seconds)
            self._backups[shard] = [self._run(leader.run()), self._run(directory)]
        elif not wanted and shard in self._backups and not self.leaders[shard].leading:
            for task in self._backups.pop(shard):
                task.cancel()
            del self.leaders[shard]
            self.links[shard].forget_local()

    def drain(self) -> None:
        """The end is announced: clients are sent to other routers, other routers to the next leader."""
        self.front.drain()
        self.shard_servicer.drain()

    async def stop(self) -> None:
        """Ends everything that was started; the journal needs no farewell."""
        await self.front.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.planner.close()
        await self.menus.recorder.write()
        await self.blocked.write()
        await self.routers.close()
        await self.database.client.close()


def _planner(settings: RoutingSettings, clock: Clock) -> Elsewhere:
    """Forecasts and plans, in a process of their own."""
    return Elsewhere(
        settings.mongo_uri,
        settings.mongo_database,
        settings.region,
        clock,
        settings.planner_kept_seconds,
        mongo_uri_file=settings.mongo_uri_file,
    )


async def run(settings: RoutingSettings) -> None:
    """Serves until told to end."""
    connect(settings)
    router = Router(settings)
    events = EventSource("routing", lambda: router.database)
    await server.serve(
        settings,
        [*router.services(), events.binding()],
        scopes={**SCOPES, **event_scopes("routing")},
        acts=Acts("routing", lambda: router.database, LIFECYCLE.acts),
        on_start=router.start,
        on_drain=[events.drain, router.drain],
        on_stop=[router.stop, disconnect],
        checks={"shard": lambda: router.leader.ready},
    )


def main() -> int:
    """Returns the process's exit status."""
    return server.main(RoutingSettings, run)
