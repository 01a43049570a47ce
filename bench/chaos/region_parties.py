"""Edges and desktops of `chaos-region`: callers by area, agents by region, with the routers they know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.chaos.floor import QUEUE, eventually
from bench.chaos.parties import (
    HOMING,
    PATIENCE_SECONDS,
    SERVICE_SECONDS,
    SPEED,
    STUCK_SECONDS,
    ChaosChannels,
    ChaosDesktop,
    ChaosEdge,
    Crowd,
    _Screen,
)
from bench.chaos.region_floor import PLACES, REGIONS, RegionFloor

from callmesh_sdk.watch import Watch
from chassis.clock import SystemClock
from cli.demo.agent import AgentContext
from cli.demo.edge import EdgeContext
from cli.demo.media import Media
from cli.demo.model import DayCall
from cli.demo.timing import ReplayClock


def preferences(routers_of: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each router the order in which an edge that prefers it asks the others: one of each other region,
    then the rest. A region's routers fail together more often than those of two regions do.
    """
    regions = list(routers_of)
    found: dict[str, list[str]] = {}
    for place, region in enumerate(regions):
        others = [*regions[place + 1 :], *regions[:place]]
        for number, router in enumerate(routers_of[region]):
            first = [routers_of[other][number % len(routers_of[other])] for other in others]
            rest = [each for known in routers_of.values() for each in known if each not in (router, *first)]
            found[router] = [router, *first, *rest]
    return found


@dataclass(slots=True)
class RegionCrowd(Crowd):
    """All edges and desktops of four regions. `agents` are in the order of `homes`."""

    #: Each agent's region.
    homes: Mapping[str, str] = field(default_factory=dict)
    media: Any = None
    #: Each call's home.
    home_of: dict[str, str] = field(default_factory=dict)

    async def open(self) -> None:
        """Every desktop logs in; returns when all are available."""
        clock = SystemClock(speed=SPEED)
        replay = ReplayClock(clock, clock.now_ms())
        self.media = Media(dict(self.homes))
        self._channels = ChaosChannels(self.addresses)
        self._watch = Watch(HOMING, lambda name: self._channels[name])
        routers = {region: RegionFloor.routers_of(region) for region in REGIONS}
        self._edge_context = EdgeContext(
            channels=self._channels,
            preference=dict(preferences(routers)),
            clock=replay,
            ledger=self.ledger,
            media=self.media,
            queue_of=lambda kind: f"queues/{QUEUE}",
            prefix=f"chaos-{self.seed}-",
            seed=self.seed,
        )
        screen: Any = _Screen()
        self._agent_context = AgentContext(
            channels=self._channels,
            clock=replay,
            media=self.media,
            service_due=self._edge_context.service_due,
            desk=screen,
            seed=self.seed,
        )
        for number, (agent, region) in enumerate(self.homes.items()):
            known = routers[region]
            turn = number // len(REGIONS) % len(known)
            order = [*known[turn:], *known[:turn]]
            desktop = ChaosDesktop(self._agent_context, agent, order, self._watch, region)
            self.desktops.append(desktop)
            self._keep(asyncio.ensure_future(desktop.run()))
        if not await eventually(lambda: all(d.state == "available" for d in self.desktops), STUCK_SECONDS):
            raise RuntimeError("the desktops could not log in")

    def call(self, service_seconds: float = SERVICE_SECONDS, region: str = "") -> str:
        """One more caller, now, who lives in `region` or, without one, in the next in turn; the call's id."""
        self._calls += 1
        region = region or REGIONS[self._calls % len(REGIONS)]
        rng = random.Random(f"{self.seed}:{self._calls}")
        routers = RegionFloor.routers_of(region)
        call = DayCall(
            id=str(self._calls),
            arrival_seconds=self._edge_context.clock.business(),
            patience_seconds=PATIENCE_SECONDS * SPEED,
            service_seconds=service_seconds * SPEED,
            type="service",
            priority=0,
            customer="",
            number=f"+86{PLACES[region][3]}6{rng.randrange(10**7):07d}",
            home_region=routers[self._calls // len(REGIONS) % len(routers)],
        )
        edge = ChaosEdge(self._edge_context, call, self.assigned, self._stubs)
        self.home_of[edge.call_id] = region
        task = asyncio.ensure_future(edge.run())
        self._edges[edge.call_id] = task
        task.add_done_callback(lambda _: self._edges.pop(edge.call_id, None))
        self._keep(task)
        return edge.call_id

    @property
    def desks_book(self) -> list[Any]:
        """The desktops' conversations."""
        book: list[Any] = self._agent_context.book
        return book
