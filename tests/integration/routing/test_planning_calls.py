"""The dialler's ports against a router: what it sees, places and takes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.routing.routing_parties import DEADLINE_SECONDS, Seat
from tests.integration.routing.test_routing_server import Platform, platform

from callmesh.routing.v1 import call_pb2, directory_pb2, routing_pb2
from chassis.client import Dialer
from chassis.testing.waiting import eventually
from routing.planning.dialler_main import GrpcCalls, GrpcFloor, Peers
from routing.planning.dialler_ports import Call, Person

pytestmark = pytest.mark.integration
__all__ = ["platform"]
PERSON = Person(contact="contactLists/l/contacts/c", number="+8613800138000", attempt=2)


async def furnished(platform: Platform) -> Peers:
    await platform.furnish(agents=2)
    await platform.directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id="outbound"))
    queue = directory_pb2.Queue(skills=[{"skill": "outbound"}])
    await platform.directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id="callout", queue=queue))
    agent = directory_pb2.Agent(name="agents/a0", blended=True)
    await platform.directory.UpdateAgent(
        directory_pb2.UpdateAgentRequest(agent=agent, update_mask={"paths": ["blended"]})
    )
    router = platform.router
    assert router is not None
    await eventually(lambda: "callout" in router.queues)
    return Peers(Dialer(connect=lambda target, credentials: platform.channel), "here", "here")


async def state_of(platform: Platform, call: Call) -> Any:
    asking = routing_pb2.GetCallRequest(name=f"calls/{call.call_id}")
    return (await platform.routing.GetCall(asking)).state


async def seen(floor: GrpcFloor, agents: list[tuple[str, bool]]) -> None:
    """Waits until the floor shows these agents: a router's figures may be a second old."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while [(each.agent, each.free) for each in (await floor.look()).agents] != agents:
            await asyncio.sleep(0.05)


async def test_a_contact_is_offered_taken_back_and_talked_to(platform: Platform) -> None:
    peers = await furnished(platform)
    floor, calls = GrpcFloor(peers, "beijing", "service"), GrpcCalls(peers, "callout", "dialler-x")
    assert await floor.blended() == {"a0": frozenset({"chinese"})}
    await seen(floor, [])
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    await seen(floor, [("a0", True)])

    # Taken back before the agent accepts: nobody is connected, and the agent is free again.
    call = await calls.begin(replace(PERSON, lease_ms=7), "a0")
    offer = (await seat.until("offer")).offer
    assert offer.call.attributes["contact"] == PERSON.contact
    assert (offer.call.attributes["attempt"], offer.call.caller_number) == ("2", PERSON.number)
    await call.withdraw()
    await seat.until("offer_gone")
    assert await call.wait_answered() is False
    assert await state_of(platform, call) == call_pb2.CALL_STATE_ENDED

    # Accepted: it is a conversation, and taking it back does no more.
    call = await calls.begin(replace(PERSON, lease_ms=8), "a0")
    await seat.accept()
    assert await call.wait_answered() is True
    await call.withdraw()
    assert await state_of(platform, call) == call_pb2.CALL_STATE_CONNECTED
    # Another dialler tells them apart by their reservations alone.
    other = GrpcCalls(peers, "callout", "dialler-y")
    for lease_ms, ended in ((7, True), (8, False), (9, False)):
        assert await other.unanswered(replace(PERSON, lease_ms=lease_ms)) is ended
    await seen(floor, [("a0", False)])
    seat.send(end_conversation={"call_id": call.call_id})
    seat.send(wrap_up={"call_id": call.call_id})

    # Both at once: whatever came first, both sides say the same.
    call = await calls.begin(PERSON, "a0")
    offer = (await seat.until("offer")).offer
    seat.send(accept={"offer_id": offer.offer_id})
    await call.withdraw()
    connected = await state_of(platform, call) == call_pb2.CALL_STATE_CONNECTED
    assert await call.wait_answered() is connected


async def test_an_agent_who_declines_ends_it_for_everybody(platform: Platform) -> None:
    peers = await furnished(platform)
    calls = GrpcCalls(peers, "callout", "dialler-x")
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    call = await calls.begin(PERSON, "a0")
    offer = (await seat.until("offer")).offer
    seat.send(decline={"offer_id": offer.offer_id})
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await call.wait_answered() is False
        await call.wait_ended()
