"""A past day from the events of its journals."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.routing.routing_past_examples import HOUR_MS, QUEUES, START_MS, a_day, lived

from chassis.clock import SystemClock
from chassis.errors import InvalidArgument
from routing import codec
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import (
    AcceptOffer,
    AgentConfig,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOutcome,
    CallQueued,
    CallTransferred,
    CallWrappedUp,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    Event,
    FinishWrapUp,
    OpenSession,
    PlaceCall,
    Presence,
    PresenceSet,
    QueueConfig,
    SessionClosed,
    SessionOpened,
)
from routing.past import Chronicle, Directory, past_of
from routing.testing import MemoryBlocks, MemoryJournal
from routing.virtual import Fate
from routing.whatif import Past, Policy, happened, simulate

END_MS = START_MS + 4 * HOUR_MS


def told(events: dict[str, list[tuple[int, Event]]], start_ms: int = START_MS, end_ms: int = END_MS) -> Past:
    chronicles = []
    for shard, rows in sorted(events.items()):
        chronicle = Chronicle(shard)
        for at_ms, event in rows:
            chronicle.apply(event, at_ms, start_ms)
        chronicle.close(max(chronicle.newest_ms, end_ms))
        chronicles.append(chronicle)
    return past_of(chronicles, start_ms, end_ms, Directory(), "a day")


def test_the_journal_tells_the_day_as_it_was() -> None:
    roster, contacts = a_day()
    result, events = lived(roster, contacts)
    past = told(events)
    was = {(o.contact.id, o.fate, o.wait_ms, o.agent) for o in result.outcomes}
    assert {(o.contact.id, o.fate, o.wait_ms, o.agent) for o in happened(past).outcomes} == was
    assert any(o.fate is Fate.ABANDONED for o in result.outcomes)
    by_id = {contact.id: contact for contact in contacts}
    for row in past.seen:
        known = by_id[row.contact.id]
        assert row.contact.arrival_ms == known.arrival_ms
        assert (row.contact.queue, row.contact.home) == (known.queue, known.home)
        if row.fate is Fate.ANSWERED:
            assert (row.contact.talk_ms, row.contact.wrap_up_ms) == (known.talk_ms, known.wrap_up_ms)
    assert past.busy_ms == result.busy_ms
    assert past.roster.sites == roster.sites and past.roster.agents == roster.agents
    assert {queue.id for queue in past.roster.queues} == {queue.id for queue in QUEUES}
    assert any(row.contact.home != past.roster.sites[row.agent] for row in past.seen if row.agent)


def test_a_day_from_the_journal_goes_through_the_engine_again() -> None:
    roster, contacts = a_day()
    _, events = lived(roster, contacts)
    past = told(events)
    compared = simulate(past, Policy(ring_ms=2_000))
    assert compared.proposed.total.answered == pytest.approx(compared.happened.total.answered, abs=3)
    assert compared.proposed.total.asa_seconds == pytest.approx(compared.happened.total.asa_seconds, rel=0.05)
    assert compared.proposed.occupancy_ratio == pytest.approx(compared.happened.occupancy_ratio, rel=0.05)


def test_only_the_span_counts() -> None:
    roster, contacts = a_day()
    _, events = lived(roster, contacts)
    middle = told(events, START_MS + HOUR_MS, START_MS + 2 * HOUR_MS)
    arrivals = [c for c in contacts if START_MS + HOUR_MS <= c.arrival_ms < START_MS + 2 * HOUR_MS]
    assert len(middle.seen) == len(arrivals)
    assert {(d.start_ms, d.end_ms) for d in middle.roster.duties} == {
        (START_MS + HOUR_MS, START_MS + 2 * HOUR_MS)
    }


def test_what_a_pruned_journal_does_not_say_is_assumed_and_said() -> None:
    roster, contacts = a_day()
    _, events = lived(roster, contacts)
    late = {shard: rows[40:] for shard, rows in events.items()}
    past = told(late)
    assert {agent.skills for agent in past.roster.agents} == {()}
    assert {queue.id for queue in past.roster.queues} == {"sales", "service"}
    assert any("logged in before the journal begins" in note for note in past.notes)
    assert any("skills are not known" in note for note in past.notes)


FACTS = CallFacts(call_id="c1", queue="service")


def queued(at_ms: int, attempt: int = 1) -> tuple[int, Event]:
    event = CallQueued(
        facts=FACTS, attempt=attempt, move=1, front="f", queued_ms=at_ms, effective_ms=at_ms, waited_span_ms=0
    )
    return at_ms, event


def connected(at_ms: int, agent: str) -> tuple[int, Event]:
    return at_ms, CallConnected(call_id="c1", offer_id="o", agent=agent)


def test_a_transfer_is_two_contacts() -> None:
    t = START_MS + 1_000
    moved = CallTransferred(
        facts=FACTS, agent="ann", wrap_up_until_ms=t + 40_000, queued_ms=t + 30_000, effective_ms=t
    )
    rows = [queued(t), connected(t + 5_000, "ann"), (t + 30_000, moved), connected(t + 50_000, "bob")]
    rows += [(t + 90_000, CallEnded(call_id="c1", outcome=CallOutcome.COMPLETED))]
    rows += [(t + 90_000, CallWrappedUp(call_id="c1", agent="bob", disposition=None))]
    first, second = told({"north": rows}).seen
    assert (first.contact.id, first.agent, first.contact.talk_ms) == ("c1", "ann", 25_000)
    assert first.contact.wrap_up_ms == 10_000
    assert (second.contact.id, second.agent, second.contact.talk_ms) == ("c1.2", "bob", 40_000)
    assert second.wait_ms == 20_000


def test_after_call_work_of_who_handed_on_ends_when_it_did() -> None:
    t = START_MS + 1_000
    moved = CallTransferred(
        facts=FACTS, agent="ann", wrap_up_until_ms=t + 40_000, queued_ms=t + 30_000, effective_ms=t
    )
    rows = [queued(t), connected(t + 5_000, "ann"), (t + 30_000, moved)]
    rows += [(t + 33_000, CallWrappedUp(call_id="c1", agent="ann", disposition=None))]
    rows += [
        connected(t + 50_000, "bob"),
        (t + 90_000, CallEnded(call_id="c1", outcome=CallOutcome.COMPLETED)),
    ]
    first, second = told({"north": rows}).seen
    assert (first.contact.wrap_up_ms, second.contact.wrap_up_ms) == (3_000, 0)


def test_the_time_until_a_wished_call_back_is_no_wait() -> None:
    t = START_MS + 1_000
    asked = CallbackRequested(call_id="c1", number="+8613800138000", not_before_ms=t + HOUR_MS, expire_ms=0)
    rows = [queued(t), (t + 10_000, asked), (t + HOUR_MS, CallbackDue(call_id="c1"))]
    rows += [connected(t + HOUR_MS + 2_000, "ann")]
    (only,) = told({"north": rows}).seen
    assert (only.wait_ms, only.contact.arrival_ms) == (12_000, t + HOUR_MS - 10_000)


def test_a_call_back_that_is_cancelled_before_its_time_did_not_wait_for_it() -> None:
    t = START_MS + 1_000
    asked = CallbackRequested(call_id="c1", number="+8613800138000", not_before_ms=t + HOUR_MS, expire_ms=0)
    ended = CallEnded(call_id="c1", outcome=CallOutcome.ABANDONED, reason="CALLBACK_CANCELLED")
    (only,) = told({"north": [queued(t), (t + 10_000, asked), (t + 600_000, ended)]}).seen
    assert (only.fate, only.wait_ms) == (Fate.ABANDONED, 10_000)


def test_a_call_that_came_back_before_it_was_answered_is_one_contact() -> None:
    t = START_MS + 1_000
    rows = [queued(t), (t + 9_000, queued(t, attempt=2)[1]), connected(t + 20_000, "ann")]
    (only,) = told({"north": rows}).seen
    assert (only.fate, only.wait_ms, only.contact.talk_ms) == (Fate.ANSWERED, 20_000, 0)


def test_pauses_are_no_time_at_work() -> None:
    t = START_MS

    def presence(at_ms: int, presence: Presence) -> tuple[int, Event]:
        return at_ms, PresenceSet(agent="ann", command=2, presence=presence, pause_reason="")

    opened = SessionOpened(
        agent="ann", session=1, command=1, front="f", presence=Presence.AVAILABLE, pause_reason=""
    )
    rows = [(t, opened), queued(t + 1), presence(t + 60_000, Presence.PAUSED)]
    rows += [presence(t + 90_000, Presence.AVAILABLE), (t + 120_000, SessionClosed(agent="ann"))]
    duties = [(d.start_ms - t, d.end_ms - t) for d in told({"north": rows}).roster.duties]
    assert duties == [(0, 60_000), (90_000, 120_000)]


def test_a_span_without_calls_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="interval: the journal has no call in it"):
        told({"north": []})


async def test_a_leaders_own_journal_is_read() -> None:
    shared = MemoryBlocks()
    options = LeaderOptions(heartbeat_seconds=0.05, takeover_seconds=0.01)
    store = MemoryJournal(shared, now_ms=lambda: START_MS)
    leader = Leader(shard="north", router="r", store=store, clock=SystemClock(), options=options)
    task = asyncio.create_task(leader.run())
    try:
        async with asyncio.timeout(10):
            await leader.wait_until_leading()
            commands: list[Command] = [
                ConfigureQueue(queue=QueueConfig(id="service")),
                ConfigureAgent(agent=AgentConfig(id="ann")),
                OpenSession(agent="ann", session=1, command=1, front="f"),
                PlaceCall(facts=FACTS, attempt=1, move=1, front="f"),
            ]
            for command in commands:
                call = (await leader.submit(command)).answer.call
            assert call is not None
            await leader.submit(AcceptOffer(agent="ann", session=1, offer_id=call.offer_id))
            await leader.submit(ConfirmCall(call_id="c1", offer_id=call.offer_id, attempt=1, move=1))
            await leader.submit(FinishWrapUp(agent="ann", session=1, call_id="c1"))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    rows = [row for block in shared.of("north") for row in codec.decode_events(block.body, block.now_ms)]
    first_ms = min(at_ms for at_ms, _ in rows)
    past = told({"north": rows}, first_ms, first_ms + HOUR_MS)
    (only,) = past.seen
    assert (only.fate, only.agent, only.contact.home) == (Fate.ANSWERED, "ann", "north")
    assert [agent.id for agent in past.roster.agents] == ["ann"] and len(past.roster.duties) == 1
