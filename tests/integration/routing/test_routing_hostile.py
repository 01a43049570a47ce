"""Clients that vanish without a word, flood, or say things twice harm nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.routing.routing_parties import Seat, consent, until
from tests.integration.routing.routing_platform import Clients, RouterPlatform, running_router

from callmesh.routing.v1 import agent_pb2, routing_pb2
from chassis.testing.waiting import eventually
from routing.model import CallOutcome, CallState

pytestmark = pytest.mark.integration
#: What a desktop sends that floods: more than a stream's window holds.
FLOOD = 3_000
#: The window of a stream that is not read stays as it was at first, 64 KiB, however fast the line is.
FIXED_WINDOW = (("grpc.http2.bdp_probe", 0),)


class SilentLine:
    """A TCP connection to the router that may go silent: nothing arrives any more, and nobody is told."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._silent = False
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Its address."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def fall_silent(self) -> None:
        self._silent = True

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, there[1]]
        ways = ((reader, there[1]), (there[0], writer))
        self._tasks += [asyncio.create_task(self._pass_on(*way)) for way in ways]

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if not self._silent:
                    writer.write(data)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()


@pytest_asyncio.fixture
async def platform(mongo_uri: str, mongo_database: str) -> AsyncIterator[RouterPlatform]:
    """One that soon notices who is gone."""
    soon = {"keepalive_seconds": 1, "keepalive_timeout_seconds": 1, "grace_seconds": 0.5}
    async with running_router(mongo_uri, mongo_database, **soon) as (address, router):
        platform = RouterPlatform(address, router)
        yield platform
        await platform.channel.close()


async def test_who_vanishes_floods_or_says_it_twice_harms_nobody_else(platform: RouterPlatform) -> None:
    await platform.furnish_with(["gone", "ann", "loud"])
    stream = await vanish(platform)
    behind = Clients(platform.address, FIXED_WINDOW)
    loud = flood(behind)
    await accept_thrice(platform, stream)
    # Its stream stays open, with a window that lets nothing through.
    agent = platform.router.leader.state.agents["loud"]
    await eventually(lambda: not agent.attached)
    assert "loud" not in platform.router.front.desks
    loud.stream.cancel()
    await behind.channel.close()


async def vanish(platform: RouterPlatform) -> Any:
    """A caller waits and an agent is rung, both behind a line that goes silent: no FIN, no reset. Returns the
    stream of the call that rang there.
    """
    line = SilentLine(platform.address)
    behind = Clients(await line.start())
    waiting = behind.call("c0", skills=[{"skill": "english", "level_min": 1}])
    await until(waiting, "queued")
    seat = Seat(behind.agents, "gone")
    await seat.until("status")
    line.fall_silent()
    calls, agents = platform.router.leader.state.calls, platform.router.leader.state.agents
    stream = platform.call("c1")
    await eventually(lambda: "c1" in calls and calls["c1"].agent == "gone")
    # The ringing time is 15 s, and nobody hangs up for the caller.
    await eventually(lambda: calls["c1"].state is CallState.WAITING and not agents["gone"].attached)
    await eventually(lambda: calls["c0"].outcome is CallOutcome.ABANDONED)
    assert calls["c0"].reason == "STREAM_LOST"
    await line.stop()
    await behind.channel.close()
    return stream


def flood(clients: Clients) -> Seat:
    """A desktop that says more than anybody can read, and reads nothing."""
    loud = Seat(clients.agents, "loud", state=agent_pb2.AGENT_STATE_PAUSED)
    for number in range(FLOOD):
        loud.send(accept={"offer_id": f"beijing.1.{number}"})
    return loud


async def accept_thrice(platform: RouterPlatform, stream: Any) -> None:
    """An agent accepts an offer twice, again in the conversation, and once more when it is over: one
    conversation, and nobody else's call.
    """
    ann = Seat(platform.agents, "ann")
    offer = (await ann.until("offer")).offer
    assert offer.call.call_id == "c1", "what rang at a desk that is gone rings elsewhere"
    other = platform.call("c2")
    await until(other, "queued")
    for _ in range(2):
        ann.send(accept={"offer_id": offer.offer_id})
    accepted = await until(stream, "accepted")
    assert (await platform.routing.ConfirmCall(consent(accepted, "c1"))).confirmed
    await ann.until("connected")
    ann.send(accept={"offer_id": offer.offer_id})
    calls, agents = platform.router.leader.state.calls, platform.router.leader.state.agents
    assert (calls["c1"].state, calls["c2"].state) == (CallState.CONNECTED, CallState.WAITING)
    other.cancel()
    await eventually(lambda: calls["c2"].outcome is CallOutcome.ABANDONED)
    assert agents["ann"].calls == {"c1"}
    await platform.routing.EndCall(routing_pb2.EndCallRequest(call_id="c1"))
    ann.send(accept={"offer_id": offer.offer_id})
    refused = (await ann.until("refused")).refused
    assert (refused.command, refused.reason) == (5, "OFFER_ENDED"), "only the last is an error"
    stream.cancel()
