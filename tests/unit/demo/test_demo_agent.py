"""The simulated desktop against a scripted router: numbers, one call at a time, coming back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from callmesh.routing.v1 import agent_pb2, call_pb2
from chassis.testing.waiting import eventually
from cli.demo.agent import AgentContext, Desktop
from cli.demo.desk import Desk
from cli.demo.model import Duty

Event = agent_pb2.AgentEvent


class QuietDesk(Desk):
    """No crm, no marketing: remembers whom it greeted."""

    def __init__(self) -> None:
        self.greeted: list[str] = []

    async def greet(self, call: call_pb2.Call, agent: str) -> None:
        self.greeted.append(call.call_id)

    def disposition(self, call: call_pb2.Call) -> call_pb2.Disposition:
        return call_pb2.Disposition(code="done", resolved=True)


@pytest.fixture
def context(rig: Any) -> AgentContext:
    return AgentContext(
        channels=rig.channels,
        clock=rig.clock,
        media=rig.media,
        service_due=rig.context.service_due,
        desk=QuietDesk(),
        seed=1,
    )


def desktop(context: AgentContext, *, until: float = 1500.0) -> Desktop:
    """At work until that business second: long enough for what a test does also on a busy machine."""
    duty = Duty(agent="amy", start_seconds=0.0, end_seconds=until)
    return Desktop(context, "amy", "near", [duty])


def offer(offer_id: str = "o1", call_id: str = "c1") -> Event:
    return Event(offer=Event.Offer(offer_id=offer_id, call=call_pb2.Call(call_id=call_id)))


def connected(call_id: str = "c1", offer_id: str = "o1") -> Event:
    return Event(connected=Event.CallConnected(call=call_pb2.Call(call_id=call_id), offer_id=offer_id))


def ended(call_id: str = "c1") -> Event:
    return Event(ended=Event.CallEnded(call_id=call_id, outcome=call_pb2.CALL_OUTCOME_COMPLETED))


def session(
    log: list[agent_pb2.AgentCommand],
    reply: Callable[[agent_pb2.AgentCommand], list[Event]],
) -> Callable[[AsyncIterator[agent_pb2.AgentCommand]], AsyncIterator[Event]]:
    """A session that answers each command with events, until the desktop closes."""

    async def run(commands: AsyncIterator[agent_pb2.AgentCommand]) -> AsyncIterator[Event]:
        async for command in commands:
            log.append(command)
            for event in reply(command):
                yield event
            if command.WhichOneof("kind") == "close":
                return

    return run


def kinds(log: list[agent_pb2.AgentCommand]) -> list[str]:
    return [command.WhichOneof("kind") for command in log]


async def test_a_duty_with_one_call(rig: Any, context: AgentContext) -> None:
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 120.0

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        kind = command.WhichOneof("kind")
        return {"open": [offer()], "accept": [connected(), ended()]}.get(kind, [])

    rig.near.session = session(log, reply)
    await desktop(context).run()
    assert kinds(log) == ["open", "accept", "wrap_up", "set_state", "close"]
    assert [command.command for command in log] == [1, 2, 3, 4, 5]
    assert log[0].open.agent == "agents/amy"
    assert log[0].open.state == agent_pb2.AGENT_STATE_AVAILABLE
    assert log[1].accept.offer_id == "o1"
    assert (log[2].wrap_up.call_id, log[2].wrap_up.disposition.code) == ("c1", "done")
    assert log[3].set_state.state == agent_pb2.AGENT_STATE_PAUSED
    assert context.desk.greeted == ["c1"]  # type: ignore[attr-defined]
    assert [span.call for span in context.book] == ["c1"]


async def test_wrap_up_comes_when_the_service_time_is_over(rig: Any, context: AgentContext) -> None:
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 240.0
    times: dict[str, float] = {}

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        kind = command.WhichOneof("kind")
        times[kind] = rig.clock.business()
        return {"open": [offer()], "accept": [connected(), ended()]}.get(kind, [])

    rig.near.session = session(log, reply)
    await desktop(context).run()
    assert times["wrap_up"] - times["accept"] >= 239.0


async def test_a_second_offer_is_declined_while_a_call_is_in_hand(rig: Any, context: AgentContext) -> None:
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 200.0

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        kind = command.WhichOneof("kind")
        answers = {"open": [offer()], "accept": [connected(), offer("o2", "c2")], "decline": [ended()]}
        return answers.get(kind, [])

    rig.near.session = session(log, reply)
    await desktop(context).run()
    assert [c.decline.offer_id for c in log if c.WhichOneof("kind") == "decline"] == ["o2"]
    assert [c.accept.offer_id for c in log if c.WhichOneof("kind") == "accept"] == ["o1"]


async def test_an_offer_told_again_is_accepted_again(rig: Any, context: AgentContext) -> None:
    """The shard's next leader has not heard of the accept."""
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 120.0

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        accepts = kinds(log).count("accept")
        answers = {
            "open": [offer(), offer()],
            "accept": [offer()] if accepts == 1 else [connected(), ended()],
        }
        return answers.get(command.WhichOneof("kind"), [])

    rig.near.session = session(log, reply)
    await desktop(context).run()
    assert kinds(log) == ["open", "accept", "accept", "wrap_up", "set_state", "close"]
    assert [span.call for span in context.book] == ["c1"]


async def test_an_offer_that_is_gone_is_not_accepted(
    rig: Any, context: AgentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long after the word that it is gone, however slow the machine; a shift lasts three times as long.
    monkeypatch.setattr("cli.demo.agent.PICK_UP_SECONDS", 100.0)
    log: list[agent_pb2.AgentCommand] = []
    gone = Event(offer_gone=Event.OfferGone(offer_id="o1", outcome=call_pb2.OFFER_OUTCOME_CANCELLED))

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        return [offer(), gone] if command.WhichOneof("kind") == "open" else []

    rig.near.session = session(log, reply)
    await desktop(context, until=300.0).run()
    assert kinds(log) == ["open", "set_state", "close"]


async def test_a_broken_stream_is_attached_again_with_the_same_session_and_the_call_held(
    rig: Any, context: AgentContext, abort: Any
) -> None:
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 500.0
    streams = 0

    async def run(commands: AsyncIterator[agent_pb2.AgentCommand]) -> AsyncIterator[Event]:
        nonlocal streams
        streams += 1
        first = streams == 1
        async for command in commands:
            log.append(command)
            kind = command.WhichOneof("kind")
            if first and kind == "open":
                yield offer()
            elif first and kind == "accept":
                yield connected()
                raise abort(grpc.StatusCode.UNAVAILABLE, "GOING_AWAY")
            elif kind == "open":
                yield ended()
            elif kind == "close":
                return

    rig.near.session = run
    await desktop(context).run()
    opens = [command for command in log if command.WhichOneof("kind") == "open"]
    assert len(opens) == 2
    assert opens[0].open.session == opens[1].open.session
    assert opens[1].command == 3
    assert list(opens[1].open.calls_held) == ["c1"]
    assert kinds(log)[-3:] == ["wrap_up", "set_state", "close"]
    assert len(context.book) == 1


async def test_a_conversation_that_ended_unheard_is_over_for_who_rings_at_once(
    rig: Any, context: AgentContext, abort: Any
) -> None:
    """The stream breaks in a conversation; by the first word on the next one the agent is reserved again."""
    log: list[agent_pb2.AgentCommand] = []
    context.service_due.update(c1=1e6, c2=60.0)
    reserved = Event(status={"state": agent_pb2.AGENT_STATE_RESERVED, "offers_held": ["o2"]})

    async def run(commands: AsyncIterator[agent_pb2.AgentCommand]) -> AsyncIterator[Event]:
        async for command in commands:
            log.append(command)
            match command.WhichOneof("kind"), kinds(log).count("open"):
                case "open", 1:
                    yield offer()
                case "accept", 1:
                    yield connected()
                    raise abort(grpc.StatusCode.UNAVAILABLE, "GOING_AWAY")
                case "open", 2:
                    yield reserved
                    yield offer("o2", "c2")
                case "accept", 2:
                    yield connected("c2", "o2")

    rig.near.session = run
    seat = desktop(context, until=1e6)
    working = asyncio.ensure_future(seat.run())
    await eventually(lambda: seat.state == "talking" and context.book)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert kinds(log) == ["open", "accept", "open", "accept"], "nothing is declined"
    assert [span.call for span in context.book] == ["c1", "c2"]


async def test_a_lost_region_ends_the_conversation_and_begins_a_new_session(
    rig: Any, context: AgentContext, forever: Any
) -> None:
    log: list[agent_pb2.AgentCommand] = []
    context.service_due["c1"] = 900.0

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        kind = command.WhichOneof("kind")
        if kind == "open" and not command.open.calls_held and command.open.session == log[0].open.session:
            return [offer()]
        if kind == "accept":
            asyncio.get_running_loop().call_later(0.05, rig.media.lose, "near")
            return [connected()]
        return []

    rig.near.session = session(log, reply)
    await desktop(context).run()
    opens = [command.open for command in log if command.WhichOneof("kind") == "open"]
    assert opens[1].session > opens[0].session
    assert list(opens[1].calls_held) == []
    assert len(context.book) == 1
    assert "wrap_up" not in kinds(log)


async def test_a_desktop_waits_for_its_router(rig: Any, context: AgentContext, abort: Any) -> None:
    log: list[agent_pb2.AgentCommand] = []
    tries = 0
    good = session(log, lambda command: [])

    async def run(commands: AsyncIterator[agent_pb2.AgentCommand]) -> AsyncIterator[Event]:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise abort(grpc.StatusCode.UNAVAILABLE, "NO_LEADER", 0.05)
        async for event in good(commands):
            yield event

    rig.near.session = run
    await desktop(context).run()
    assert tries == 4
    assert kinds(log)[0] == "open"


async def test_refused_commands_are_counted_by_reason(rig: Any, context: AgentContext) -> None:
    refused = Event(refused=Event.CommandRefused(command=2, reason="OFFER_ENDED"))

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        return {"open": [offer()], "accept": [refused]}.get(command.WhichOneof("kind"), [])

    rig.near.session = session([], reply)
    await desktop(context, until=300.0).run()
    assert context.refusals == {"OFFER_ENDED": 1}


async def test_the_refusal_of_one_accept_is_not_that_of_the_next_offer(
    rig: Any, context: AgentContext
) -> None:
    """The first offer ends in the moment of its accept, and another one rings before the refusal is told."""
    log: list[agent_pb2.AgentCommand] = []

    def reply(command: agent_pb2.AgentCommand) -> list[Event]:
        gone = Event(offer_gone=Event.OfferGone(offer_id="o1", outcome=call_pb2.OFFER_OUTCOME_CANCELLED))
        refused = Event(refused=Event.CommandRefused(command=2, reason="OFFER_ENDED"))
        answers = {
            "open": [offer()],
            "accept": [gone, offer("o2", "c2"), refused]
            if kinds(log).count("accept") == 1
            else [connected("c2", "o2"), ended("c2")],
        }
        return answers.get(command.WhichOneof("kind"), [])

    rig.near.session = session(log, reply)
    working = asyncio.ensure_future(desktop(context, until=1e6).run())
    await eventually(lambda: context.book)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert [c.accept.offer_id for c in log if c.WhichOneof("kind") == "accept"] == ["o1", "o2"]
    assert [span.call for span in context.book] == ["c2"]


async def test_breaks_between_duties_are_logged_out(rig: Any, context: AgentContext) -> None:
    log: list[agent_pb2.AgentCommand] = []
    rig.near.session = session(log, lambda command: [])
    duties = [
        Duty(agent="amy", start_seconds=0.0, end_seconds=400.0),
        Duty(agent="amy", start_seconds=700.0, end_seconds=1100.0),
    ]
    await Desktop(context, "amy", "near", duties).run()
    assert kinds(log) == ["open", "set_state", "close"] * 2
    assert log[3].open.session > log[0].open.session


async def test_dispositions_depend_on_seed_and_call_alone(rig: Any) -> None:
    def desk(seed: int) -> Desk:
        return Desk(crm=rig.channels["near"], marketing=rig.channels["far"], type_of={}, seed=seed)

    calls = [call_pb2.Call(call_id=f"c{n}") for n in range(400)]
    first = [desk(1).disposition(call) for call in calls]
    assert first == [desk(1).disposition(call) for call in calls]
    assert first != [desk(2).disposition(call) for call in calls]
    share = sum(d.HasField("ticket") for d in first) / len(first)
    assert share == pytest.approx(0.10, abs=0.05)
    assert all(1 <= len(d.code) <= 64 for d in first)


async def test_a_desk_without_crm_and_marketing_counts_the_errors_and_goes_on(rig: Any) -> None:
    # The scripted routers serve neither: both answer UNIMPLEMENTED.
    desk = Desk(crm=rig.channels["near"], marketing=rig.channels["far"], type_of={}, seed=1)
    await desk.greet(call_pb2.Call(call_id="c1", caller_number="+8613800000000"), "amy")
    assert desk.figures.errors == {"crm: UNIMPLEMENTED": 1, "marketing: UNIMPLEMENTED": 1}
    assert (desk.figures.pops, desk.figures.offers_made) == (0, 0)
