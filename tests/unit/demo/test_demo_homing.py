"""A simulated desktop that knows two routers: it leaves the one that is lost, and goes back in its next
session when nothing is in hand.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from bench.chaos.parties import HOMING, ChaosDesktop
from bench.chaos.region_floor import REGIONS, RegionFloor
from bench.chaos.region_parties import RegionCrowd

from callmesh.routing.v1 import agent_pb2, call_pb2
from callmesh_sdk.watch import Watch
from chassis.testing.waiting import eventually
from cli.demo.agent import AgentContext
from cli.demo.rpc import StreamEnded

Event = agent_pb2.AgentEvent
AVAILABLE = agent_pb2.AGENT_STATE_AVAILABLE
SOON = dataclasses.replace(
    HOMING, ask_seconds=0.01, trust_seconds=0.02, spread_seconds=0.02, idle_seconds=0.01, look_seconds=0.01
)


class Screen:
    """Nothing to see."""

    async def greet(self, call: call_pb2.Call, agent: str) -> None:
        """Nothing to show."""

    def disposition(self, call: call_pb2.Call) -> call_pb2.Disposition:
        return call_pb2.Disposition(code="done", resolved=True)


class Shard:
    """Both routers' common mind: the newest session has the agent, one before it is ended."""

    def __init__(self, abort: Any) -> None:
        self.abort = abort
        self.away: set[str] = set()
        self.hangs: set[str] = set()
        #: (router, session) in the order of opening, and (router, kind) of all that arrived.
        self.opened: list[tuple[str, int]] = []
        self.arrived: list[tuple[str, str]] = []
        self.desk: asyncio.Queue[Any] = asyncio.Queue()
        #: Whether an accept arrives and is not answered.
        self.loses_accepts = False

    def router(self, name: str) -> Callable[[AsyncIterator[Any]], AsyncIterator[Event]]:
        async def run(commands: AsyncIterator[Any]) -> AsyncIterator[Event]:
            first = await anext(aiter(commands))
            if name in self.away:
                raise self.abort(grpc.StatusCode.UNAVAILABLE, "NO_LEADER", 0.001)
            self.arrived.append((name, "open"))
            if name in self.hangs:
                await asyncio.get_running_loop().create_future()
            before, self.desk = self.desk, asyncio.Queue()
            before.put_nowait(self.abort(grpc.StatusCode.ABORTED, "NEWER_SESSION"))
            self.opened.append((name, first.open.session))
            desk = self.desk
            yield free()
            reading = asyncio.ensure_future(self._read(name, commands, desk))
            try:
                while (event := await desk.get()) is not None:
                    if isinstance(event, Exception):
                        raise event
                    yield event
            finally:
                reading.cancel()

        return run

    async def _read(self, name: str, commands: AsyncIterator[Any], desk: asyncio.Queue[Any]) -> None:
        async for command in commands:
            kind = command.WhichOneof("kind")
            self.arrived.append((name, kind))
            if kind == "accept" and not self.loses_accepts:
                desk.put_nowait(Event(connected={"call": {"call_id": "c1"}, "offer_id": "o1"}))
            elif kind == "wrap_up":
                desk.put_nowait(free())


def free() -> Event:
    return Event(status={"state": AVAILABLE})


@pytest.fixture
async def floor(rig: Any, abort: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """(shard, desktop) whose own router, "near", was away when it logged in."""
    for bound in ("MOVE_SECONDS_MAX", "FAREWELL_SECONDS_MAX"):
        monkeypatch.setattr(f"cli.demo.agent.{bound}", 30.0)
    shard = Shard(abort)
    shard.away = {"near"}

    async def serves(channel: Any) -> bool:
        return "near" not in shard.away

    # It says so as soon as it is there, and not before.
    monkeypatch.setattr("callmesh_sdk.watch.serves", serves)
    rig.near.session, rig.far.session = shard.router("near"), shard.router("far")
    screen: Any = Screen()
    context = AgentContext(
        channels=rig.channels,
        clock=rig.clock,
        media=rig.media,
        service_due=rig.context.service_due,
        desk=screen,
    )
    watch = Watch(SOON, lambda name: rig.channels[name])
    desktop = ChaosDesktop(context, "amy", ["near", "far"], watch)
    working = asyncio.ensure_future(desktop.run())
    await eventually(lambda: shard.opened and desktop.state == "available")
    yield shard, desktop
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await watch.close()


async def test_it_goes_home_when_its_call_is_done(floor: Any) -> None:
    shard, desktop = floor
    assert [router for router, _ in shard.opened] == ["far"] and not desktop.at_home
    shard.desk.put_nowait(Event(offer={"offer_id": "o1", "call": {"call_id": "c1"}}))
    await eventually(lambda: desktop.state == "talking")
    shard.away = set()
    await eventually(lambda: desktop._watch.servers.trusted("near"))
    assert [router for router, _ in shard.opened] == ["far"], "a call is in hand"
    shard.desk.put_nowait(Event(ended={"call_id": "c1"}))
    await eventually(lambda: desktop.at_home and "wrap_up" in dict(map(reversed, shard.arrived)))
    (far, first), (near, second) = shard.opened
    assert (far, near) == ("far", "near") and second == first + 1
    # Before or after the change, whichever came first.
    assert sorted(kind for _, kind in shard.arrived) == ["accept", "open", "open", "wrap_up"]
    shard.desk.put_nowait(Event(offer={"offer_id": "o2", "call": {"call_id": "c2"}}))
    await eventually(lambda: shard.arrived[-1] == ("near", "accept"))


async def test_it_goes_home_though_its_last_word_was_refused(floor: Any) -> None:
    """The after-call work was over by the router's timer, and the wrap-up came too late."""
    shard, desktop = floor
    shard.desk.put_nowait(Event(refused={"command": 2, "reason": "CALL_ENDED"}))
    await eventually(lambda: desktop._context.refusals)
    shard.away = set()
    await eventually(lambda: desktop.at_home)
    assert [router for router, _ in shard.opened] == ["far", "near"]


async def test_it_goes_home_though_the_end_of_an_offer_was_lost_with_the_stream(
    floor: Any, abort: Any
) -> None:
    """It picked up at a router that was going, and the offer was over when it came to the next one."""
    shard, desktop = floor
    shard.loses_accepts = True
    shard.desk.put_nowait(Event(offer={"offer_id": "o1", "call": {"call_id": "c1"}}))
    await eventually(lambda: ("far", "accept") in shard.arrived)
    shard.desk.put_nowait(abort(grpc.StatusCode.UNAVAILABLE, "NO_LEADER", 0.001))
    await eventually(lambda: len(shard.opened) == 2 and desktop.state == "available")
    shard.away = set()
    await eventually(lambda: desktop.at_home)


async def test_a_home_that_hangs_is_left_alone(floor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.demo.agent.MOVE_SECONDS_MAX", 0.05)
    shard, desktop = floor
    shard.away, shard.hangs = set(), {"near"}
    await eventually(lambda: ("near", "open") in shard.arrived)
    shard.desk.put_nowait(Event(offer={"offer_id": "o1", "call": {"call_id": "c1"}}))
    await eventually(lambda: desktop.state == "talking")
    assert [router for router, _ in shard.opened] == ["far"], "the old stream goes on"


async def test_the_desktops_of_a_region_go_home_like_all_others_and_are_lost_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(*_: Any) -> bool:
        return True

    monkeypatch.setattr("bench.chaos.region_parties.HOMING", SOON)
    monkeypatch.setattr("bench.chaos.region_parties.eventually", nothing)
    monkeypatch.setattr("bench.chaos.parties.ChaosDesktop.run", nothing)
    region = REGIONS[1]
    crowd = RegionCrowd(
        dict.fromkeys(RegionFloor.routers_of(region), "127.0.0.1:1"), ["amy"], homes={"amy": region}
    )
    await crowd.open()
    [desktop], watch = crowd.desktops, crowd._watch
    try:
        home, other = desktop._routers
        desktop.region = home
        desktop._leave(StreamEnded(None))
        assert desktop._routers[desktop._turn] == other and not watch.servers.trusted(home)
        desktop.region, desktop._idle_since = other, 0.0
        assert desktop._better() is None
        now = time.monotonic()
        # Well beyond: that very second may be a rounding short, by how long the machine has run.
        for later in (0.0, 2 * SOON.trust_seconds):
            watch.servers.heard(home, True, now + later)
        await eventually(lambda: desktop._better() == home)
        session = desktop._session
        crowd.media.lose(region)
        assert desktop._session > session
    finally:
        await crowd.close()
