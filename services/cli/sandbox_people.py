"""Who is on duty in a sandbox: agents and callers that do the same thing every time, told by the caller's
number. They are partners as any other, made with the SDK.

| last digit | what the agents do |
|---|---|
| 0 to 4 | accept at once |
| 5 | accept, and end the conversation after `TALK_SECONDS` |
| 6 | decline the first offer, accept the next |
| 7 | let the first offer expire, accept the next |
| 8 | decline every offer |
| 9 | accept; the desktop breaks down in conversation and comes back with the call |

`agents/partner` is a partner's own desktop: its queue always has a caller, who confirms, talks for
`TALK_SECONDS` and hangs up.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import duration_pb2

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2, directory_pb2, directory_pb2_grpc
from callmesh_sdk import AlreadyExists, Caller, CallError, Client, Desk, NotFound

#: The queue of partners' callers, the one nobody is there for, and the one of a partner's own desktop.
QUEUE, UNSTAFFED, OWN = "sandbox", "sandbox-unstaffed", "sandbox-partner"
#: A partner's own desktop, and who is on duty.
PARTNER = "partner"
AGENTS = tuple(f"sandbox-{n}" for n in range(1, 5))
REGION = "beijing"
#: How long a simulated person talks, and how long it rings, real seconds.
TALK_SECONDS, RING_SECONDS = 2.0, 4.0
#: The longest that a queue's setting may be.
DAY_SECONDS = 86_400
#: Calls whose story is remembered.
CALLS_MAX = 10_000
#: How long the routers may take to know a new agent, and how often they are asked, real seconds.
KNOWN_SECONDS_MAX, LOOK_SECONDS = 60.0, 0.1
#: Pause before a simulated person who was refused tries again, real seconds.
AGAIN_SECONDS = 1.0


class Act(enum.Enum):
    """What an agent does with an offer."""

    ACCEPT = "accept"
    DECLINE = "decline"
    IGNORE = "ignore"


class Story:
    """What happened to each call so far; the same for all agents. Pure."""

    def __init__(self) -> None:
        self._offers: OrderedDict[str, int] = OrderedDict()
        self._broken: OrderedDict[str, None] = OrderedDict()

    def on_offer(self, call_id: str, number: str) -> Act:
        """What the agent does who is offered a call from that number."""
        before = self._offers.get(call_id, 0)
        self._offers[call_id] = before + 1
        _bound(self._offers)
        match number[-1:]:
            case "8":
                return Act.DECLINE
            case "6" if before == 0:
                return Act.DECLINE
            case "7" if before == 0:
                return Act.IGNORE
        return Act.ACCEPT

    def breaks_down(self, call_id: str, number: str) -> bool:
        """Whether the desktop breaks down now that the call is connected: once a call."""
        if number[-1:] != "9" or call_id in self._broken:
            return False
        self._broken[call_id] = None
        _bound(self._broken)
        return True

    @staticmethod
    def ends(number: str) -> bool:
        """Whether the agent ends the conversation."""
        return number[-1:] == "5"


def _bound(book: OrderedDict[str, Any]) -> None:
    while len(book) > CALLS_MAX:
        book.popitem(last=False)


async def furnish(client: Client, *, scale: float = 1.0) -> None:
    """Region, skills, queues and agents; what is there already stays. `scale`: business seconds in a real
    one. `CallError`.
    """
    directory: Any = client.stub(directory_pb2_grpc.DirectoryServiceStub)
    region = directory_pb2.Region(
        display_name="Sandbox",
        location=common_pb2.GeoPoint(latitude=39.9, longitude=116.4),
        head_office=True,
    )
    await _make(directory.CreateRegion, directory_pb2.CreateRegionRequest(region_id=REGION, region=region))
    for queue in (QUEUE, UNSTAFFED, OWN):
        await _make(directory.CreateSkill, directory_pb2.CreateSkillRequest(skill_id=queue))
        await _make(
            directory.CreateQueue,
            directory_pb2.CreateQueueRequest(queue_id=queue, queue=_queue(queue, scale)),
        )
    for agent, skill in (*((agent, QUEUE) for agent in AGENTS), (PARTNER, OWN)):
        made = directory_pb2.Agent(
            region=f"regions/{REGION}", skills={skill: 3}, address=f"sip:{agent}@sandbox"
        )
        await _make(directory.CreateAgent, directory_pb2.CreateAgentRequest(agent_id=agent, agent=made))
    await _until_known(client, PARTNER)


def _queue(skill: str, scale: float) -> directory_pb2.Queue:
    def real(seconds: float) -> duration_pb2.Duration:
        return duration_pb2.Duration(seconds=min(DAY_SECONDS, max(1, round(seconds * scale))))

    return directory_pb2.Queue(
        skills=[{"skill": skill, "level_min": 1}],
        ring_timeout=real(RING_SECONDS),
        wrap_up_timeout=real(10 * TALK_SECONDS),
        reject_delay=real(1.0),
        no_answer_delay=real(1.0),
        overflow_threshold=real(3600.0),
        refuse_without_agents=skill == UNSTAFFED,
    )


async def _make(create: Callable[[Any], Awaitable[Any]], request: Any) -> None:
    try:
        await create(request)
    except AlreadyExists:
        return


async def _until_known(client: Client, agent: str) -> None:
    """Waits until the router has read the directory."""
    stub: Any = client.stub(agent_pb2_grpc.AgentServiceStub)
    async with asyncio.timeout(KNOWN_SECONDS_MAX):
        while True:
            try:
                await stub.GetAgentStatus(agent_pb2.GetAgentStatusRequest(name=f"agents/{agent}"))
                return
            except NotFound:
                await asyncio.sleep(LOOK_SECONDS)


class Agent:
    """One agent on duty."""

    def __init__(self, client: Client, agent: str, story: Story) -> None:
        self._desk = Desk(client, f"agents/{agent}")
        self._story = story
        self._numbers: dict[str, str] = {}

    async def work(self) -> None:
        """Until cancelled. `CallError` when the platform does not want this agent."""
        while True:
            async for event in self._desk.events():
                if await self._deal(event):
                    # The desktop breaks down: its stream is dropped, and opened again at once.
                    break

    async def _deal(self, event: Any) -> bool:
        match event.WhichOneof("event"):
            case "offer":
                call = event.offer.call
                await self._answer(
                    event.offer.offer_id, self._story.on_offer(call.call_id, call.caller_number)
                )
            case "connected":
                call = event.connected.call
                self._numbers[call.call_id] = call.caller_number
                if self._story.ends(call.caller_number):
                    await asyncio.sleep(TALK_SECONDS)
                    await self._desk.end_conversation(call.call_id)
                return self._story.breaks_down(call.call_id, call.caller_number)
            case "ended":
                self._numbers.pop(event.ended.call_id, None)
                done = call_pb2.Disposition(code="sandbox", resolved=True)
                await self._desk.wrap_up(event.ended.call_id, done)
            case "status" if event.status.state == agent_pb2.AGENT_STATE_PAUSED:
                # Paused for the offers that it let pass.
                await self._desk.resume()
        return False

    async def _answer(self, offer_id: str, act: Act) -> None:
        if act is Act.ACCEPT:
            await self._desk.accept(offer_id)
        elif act is Act.DECLINE:
            await self._desk.decline(offer_id, "sandbox")


async def call_partner(client: Client) -> None:
    """Callers for a partner's own desktop, one after another, until cancelled."""
    number = 0
    while True:
        number = number % 9_999 + 1
        call = call_pb2.CallRequest(
            call_id=f"sandbox-{uuid.uuid4()}",
            caller_number=f"+86106400{number:04d}",
            queue=f"queues/{OWN}",
        )
        try:
            await _one_call(Caller(client, call))
        except CallError:
            await asyncio.sleep(AGAIN_SECONDS)


async def _one_call(caller: Caller) -> None:
    async for event in caller.events():
        kind = event.WhichOneof("event")
        if kind == "accepted":
            await caller.confirm(event)
        elif kind == "connected":
            await asyncio.sleep(TALK_SECONDS)
            await caller.hang_up()
            return
        elif kind == "ended":
            return


async def on_duty(client: Client) -> None:
    """Everybody, until cancelled. The first failure ends them all."""
    story = Story()
    async with asyncio.TaskGroup() as people:
        for agent in AGENTS:
            people.create_task(Agent(client, agent, story).work())
        people.create_task(call_partner(client))
