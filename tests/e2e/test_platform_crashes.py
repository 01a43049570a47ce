"""kill -9 in the middle of work: what was promised stays promised, and nothing has an effect twice."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tests.e2e.platform_parties import (
    AGENTS,
    RECOVERY_SECONDS,
    WAIT_SECONDS,
    Caller,
    Desktop,
    EventTap,
    Wire,
    connect,
    eventually,
    settled,
)

from callmesh.crm.v1 import timeline_pb2
from callmesh.routing.v1 import call_pb2, routing_pb2
from callmesh.tickets.v1 import ticket_service_pb2
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

CALLS = 30
#: Who is killed after how many calls: in the middle, whatever the machine's speed.
KILLED_AFTER = {"tickets-worker": 6, "crm-worker": 12, "routing-worker": 18}
#: What the bus is told of a call that is answered at once.
CALL_EVENTS = ("CallQueued", "CallOffered", "CallConnected", "CallEnded", "CallWrappedUp")


@contextlib.asynccontextmanager
async def working(wire: Wire, key: str) -> AsyncIterator[list[str]]:
    """The agents of the queue "burst", who take calls and ask for a ticket of each. Gives the list of calls
    that they have wrapped up, by the platform's own word; it grows.
    """
    wrapped_up: list[str] = []

    def disposition(call_id: str) -> dict[str, Any]:
        ticket = {"kind": "repair", "category": key, "subject": f"Ticket of {call_id}"}
        return {"code": "burst", "contact_reason": key, "ticket": ticket}

    desktops = [Desktop(wire, agent) for agent, (queue, _) in AGENTS.items() if queue == "burst"]
    await asyncio.gather(*(desktop.open() for desktop in desktops))
    tasks = [asyncio.create_task(desktop.work(disposition, wrapped_up)) for desktop in desktops]
    try:
        yield wrapped_up
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(desktop.close() for desktop in desktops))
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def one_call(wire: Wire, call_id: str, number: str) -> None:
    """From the caller's first word to the end of the conversation."""
    caller = Caller(wire, call_id, number, "burst")
    try:
        caller.open()
        answer = await caller.confirm(await caller.until("accepted", RECOVERY_SECONDS))
        assert answer.confirmed, answer.refusal
        ended = await caller.end()
        assert ended.outcome == call_pb2.CALL_OUTCOME_COMPLETED
    finally:
        await caller.close()


async def timeline_of(wire: Wire, number: str) -> Sequence[Any]:
    answer = await wire.timeline.ListInteractions(
        timeline_pb2.ListInteractionsRequest(phone_number=number), timeout=WAIT_SECONDS
    )
    return list(answer.interactions)


async def tickets_of(wire: Wire, key: str) -> Sequence[Any]:
    answer = await wire.tickets.ListTickets(
        ticket_service_pb2.ListTicketsRequest(page_size=1000, filter=f'category = "{key}"'),
        timeout=WAIT_SECONDS,
    )
    return list(answer.tickets)


async def test_killed_workers_apply_every_event_once(
    platform_stack: Stack, wire: Wire, event_tap: EventTap
) -> None:
    """One dies over a ticket, one over a timeline, and the relay over what it publishes to both."""
    key = f"burst-{secrets.token_hex(3)}"
    numbers = secrets.SystemRandom().sample(range(64_000_000, 65_000_000), CALLS)
    callers = {f"{key}-{n}": f"+8610{number}" for n, number in enumerate(numbers)}
    async with working(wire, key) as wrapped_up:

        async def kill_in_the_middle() -> None:
            for worker, count in KILLED_AFTER.items():
                await until_reached(wrapped_up, count)
                await asyncio.to_thread(platform_stack.kill, worker)

        await asyncio.gather(kill_in_the_middle(), *(one_call(wire, *caller) for caller in callers.items()))
        await until_reached(wrapped_up, CALLS)
    for worker in KILLED_AFTER:
        await asyncio.to_thread(platform_stack.restart, worker)
    await every_call_once(wire, key, callers)
    figures = await settled(platform_stack)
    assert figures.dead == 0
    told = {event.id for event in event_tap.events() if event.subject.startswith(f"calls/{key}")}
    assert len(told) == CALLS * len(CALL_EVENTS)


async def until_reached(wrapped_up: list[str], count: int) -> None:
    async def look() -> bool:
        return len(wrapped_up) >= count

    await eventually(look, f"{count} calls wrapped up", RECOVERY_SECONDS)


async def every_call_once(wire: Wire, key: str, callers: dict[str, str]) -> None:
    """One ticket a call, of that call; one call and one ticket in each caller's timeline."""

    async def look() -> bool:
        return len(await tickets_of(wire, key)) >= CALLS

    await eventually(look, "a ticket of each call", RECOVERY_SECONDS)
    tickets = await tickets_of(wire, key)
    assert sorted(t.subject for t in tickets) == sorted(f"Ticket of {call_id}" for call_id in callers)
    for ticket in tickets:
        call_id = ticket.subject.removeprefix("Ticket of ")
        assert [(link.call, link.opened_ticket) for link in ticket.calls] == [(f"calls/{call_id}", True)]
        assert ticket.caller_number == callers[call_id] and ticket.HasField("due_time")
    for call_id, number in callers.items():
        entries = await told(wire, call_id, number, "burst")
        (call,) = [e for e in entries if e.kind == timeline_pb2.INTERACTION_KIND_CALL]
        (ticket,) = [e for e in entries if e.kind == timeline_pb2.INTERACTION_KIND_TICKET]
        assert call.source_id == call_id and call.call.state == timeline_pb2.CallDetail.STATE_COMPLETED
        assert ticket.ticket.subject == f"Ticket of {call_id}"


async def told(wire: Wire, call_id: str, number: str, disposition: str) -> Sequence[Any]:
    """A caller's timeline, once the call is wrapped up in it with that disposition, and its ticket, if one
    was asked for, is in it too.
    """
    wanted = 2 if disposition == "burst" else 1

    async def look() -> Sequence[Any]:
        entries = await timeline_of(wire, number)
        wrapped = any(entry.call.disposition == disposition for entry in entries)
        return entries if wrapped and len(entries) >= wanted else []

    return await eventually(look, f"{call_id} in the timeline", RECOVERY_SECONDS)


# --- a region's router ------------------------------------------------------------------------------------

GUANGZHOU, WAITING = "+862038001001", "+862038001002"
#: How long a place has been waited in when it is lost, real seconds. Two shards' clocks differ by tens of
#: milliseconds, which is seconds of their time here; after less waiting that alone looked like a lost place.
WAITED_SECONDS = 0.25


async def test_a_killed_router_loses_no_caller(platform_stack: Stack, wire: Wire) -> None:
    """Guangzhou has one agent, who talks to one caller while another waits, when its router is killed. The
    conversation goes on; who waited is served in Shanghai at the old place in time; the restarted router
    leads again and knows what it knew.
    """
    key = secrets.token_hex(3)
    home, away = Desktop(wire, "standby-home"), Desktop(wire, "standby-away")
    talker = Caller(wire, f"talks-{key}", GUANGZHOU, "standby")
    waiter = Caller(wire, f"waits-{key}", WAITING, "standby")
    try:
        await home.open()
        talker.open()
        await connect(talker, home)
        await home.until("connected")
        waiter.open("guangzhou")
        first = await waiter.until("queued")
        assert first.queued.region == "regions/guangzhou"
        before = await get_call(wire, waiter)
        await asyncio.sleep(WAITED_SECONDS)

        await asyncio.to_thread(platform_stack.kill, "routing-guangzhou")
        await waiter.until_broken()
        await away.open()
        await served_elsewhere(waiter, away, before)

        _, status = await asyncio.gather(
            asyncio.to_thread(platform_stack.restart, "routing-guangzhou"), home.open([talker.call_id])
        )
        assert list(status.calls_held) == [talker.call_id]
        await remembered(wire, talker, waiter)
        await home.wrap_up(talker.call_id, code="done", resolved=True)
        await waiter.end()
        await away.wrap_up(waiter.call_id, code="done", resolved=True)
        await told_once(wire, {talker.call_id: GUANGZHOU, waiter.call_id: WAITING})
    finally:
        for party in (talker, waiter, home, away):
            await party.close()


async def get_call(wire: Wire, caller: Caller, region: str = "beijing") -> Any:
    return await wire.routing(region).GetCall(
        routing_pb2.GetCallRequest(name=f"calls/{caller.call_id}"), timeout=WAIT_SECONDS
    )


def milliseconds(start: Any, end: Any) -> int:
    return int(end.ToMilliseconds() - start.ToMilliseconds())


async def served_elsewhere(waiter: Caller, away: Desktop, before: Any) -> None:
    """Opened again at another router with the place token: the time waited counts, and Shanghai answers."""
    waiter.open("beijing", reopen_reason=call_pb2.REOPEN_REASON_STREAM_LOST)
    queued = await waiter.until("queued", RECOVERY_SECONDS)
    assert queued.version.attempt == 2
    offer = await away.until("offer", RECOVERY_SECONDS)
    assert offer.offer.call.call_id == waiter.call_id
    # Had it begun to wait anew, it would have done so at the moment of the second QUEUED.
    lost = milliseconds(before.queue_time, offer.offer.call.queue_time)
    assert abs(lost) < milliseconds(before.queue_time, queued.event_time) / 2, "the place in time was lost"
    await away.take(offer)
    answer = await waiter.confirm(await waiter.until("accepted"))
    assert answer.confirmed and answer.agent == "agents/standby-away"
    connected = await waiter.until("connected")
    assert connected.shard == "shanghai"


async def remembered(wire: Wire, talker: Caller, waiter: Caller) -> None:
    """The restarted router answers from its journal; the conversation ends through it."""
    call = await get_call(wire, talker, "guangzhou")
    assert call.state == call_pb2.CALL_STATE_CONNECTED and call.agent == "agents/standby-home"
    assert (await get_call(wire, waiter, "guangzhou")).agent == "agents/standby-away"
    ended = await talker.end("guangzhou")
    assert ended.outcome == call_pb2.CALL_OUTCOME_COMPLETED and ended.shard == "guangzhou"


async def told_once(wire: Wire, calls: dict[str, str]) -> None:
    """Each caller's timeline has the call once, completed, though one of them was in two journals."""
    for call_id, number in calls.items():
        (entry,) = await told(wire, call_id, number, "done")
        assert entry.source_id == call_id and entry.call.state == timeline_pb2.CallDetail.STATE_COMPLETED
