"""Use cases on the memory store: redelivery, reordering, crashes between writes, two writers at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.tickets.v1 import events_pb2
from chassis.bus import Event
from chassis.errors import AlreadyExists, EtagMismatch, InvalidArgument, NotFound, Unavailable
from chassis.testing import FakeClock
from chassis.testing.lease import ScriptedLease
from tickets import convert, engine, handlers, inbound
from tickets import desk as desk_rules
from tickets import sla as clocks
from tickets.engine import Act, CustomerErased, IllegalTransition
from tickets.handlers import BATCH_MAX, Create, Handlers, Request
from tickets.hotstore import AsyncMemoryStore
from tickets.model import (
    Attachment,
    CallFacts,
    CallLink,
    CareFacts,
    Channel,
    Comment,
    Draft,
    Kind,
    Phase,
    Priority,
    Profile,
    Rules,
    Ticket,
    TicketRequest,
    Updated,
)
from tickets.opening import Opening
from tickets.store import MemoryStore, Query
from tickets.timers import Timers

DAY_SECONDS = 86_400
NUMBER, OTHER = "+8613800138000", "+8613800138001"
RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=DAY_SECONDS * 1000)


class Crash(Exception):
    """The process dies here."""


class CrashingStore(MemoryStore):
    """Dies right before or right after the n-th write."""

    def __init__(self) -> None:
        super().__init__()
        #: Writes until the crash; None: never.
        self.left: int | None = None
        #: Whether the fatal write is still done.
        self.done_before = False

    def _write(self, work: Any) -> Any:
        if self.left == 0:
            self.left = None
            if self.done_before:
                work()
            raise Crash
        if self.left is not None:
            self.left -= 1
        return work()

    def insert(self, ticket: Ticket, events: Sequence[Event], **more: Any) -> tuple[Ticket, bool]:
        return self._write(lambda: MemoryStore.insert(self, ticket, events, **more))  # type: ignore[no-any-return]

    def update(self, ticket: Ticket, events: Sequence[Event]) -> Ticket:
        return self._write(lambda: MemoryStore.update(self, ticket, events))  # type: ignore[no-any-return]


class Desk:
    """A service in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = CrashingStore()
        self.use = Handlers(self.store, self.clock, RULES, convert.event_of)

    def create(self, kind: Kind = Kind.INQUIRY, **more: Any) -> Ticket:
        draft = more.pop("draft", Draft(subject="Bill", caller_number=NUMBER))
        return self.use.create(Create(kind=kind, draft=draft, actor="ann", **more))

    def act(self, ticket_id: str, verb: str, version: int | None = None, **more: Any) -> Ticket:
        texts = {"reason": "because", "resolution": "done", **more}
        return self.use.transition(ticket_id, version, Act(verb=verb, actor="ann", **texts))

    def told(self, message: Any) -> list[Any]:
        name = message.DESCRIPTOR.full_name
        return [event.message(message) for event in self.store.events if event.type == name]

    def run_timers(self) -> None:
        for ticket_id in self.use.due(1_000):
            self.use.fire(ticket_id)

    def call(self, call_id: str = "c1", **changes: Any) -> CallFacts:
        request = TicketRequest(
            kind="inquiry", priority="", category="billing", subject="Bill", description=""
        )
        facts = CallFacts(
            call_id=call_id, ticket_id=f"call-{call_id}", time_ms=self.clock.now_ms(), number=NUMBER,
            channel=Channel.VOICE, code="billing", request=request,
        )  # fmt: skip
        return replace(facts, **changes)

    def all(self) -> list[Ticket]:
        return self.store.page(Query(), 1_000, None)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- people


def test_a_ticket_is_opened_once_for_one_request(desk: Desk) -> None:
    first = desk.create(request_key="k", fingerprint="f")
    again = desk.create(request_key="k", fingerprint="f")
    assert first == again and first.version == 1
    with pytest.raises(InvalidArgument, match="request_id"):
        desk.create(request_key="k", fingerprint="other")
    assert len(desk.told(events_pb2.TicketCreated)) == 1


def test_a_known_number_brings_customer_tier_and_language(desk: Desk) -> None:
    desk.use.customer_known(
        Profile(customer_id="42", version=1, numbers=(NUMBER,), tier="vip", language="zh-CN")
    )
    ticket = desk.create()
    assert (ticket.draft.customer_id, ticket.tier, ticket.draft.language) == ("42", "vip", "zh-CN")
    (told,) = desk.told(events_pb2.TicketCreated)
    assert told.ticket.customer == "customers/42" and told.ticket.customer_tier == "VIP"
    assert told.ticket.version == 1


@pytest.mark.parametrize(("more", "field"), [
    ({"kind": Kind.RETURN_VISIT}, "ticket.kind"),
    ({"flow": "complaint"}, "ticket.flow"),
    ({"flow": "nowhere"}, "ticket.flow"),
    ({"ticket_id": "a.visit-1"}, "ticket_id"),
    ({"ticket_id": "call-1"}, "ticket_id"),
    ({"ticket_id": "x" * 97}, "ticket_id"),
    ({"parent_id": "nobody"}, "ticket.parent"),
    ({"draft": Draft(subject="")}, "ticket.subject"),
])  # fmt: skip
def test_bad_tickets_are_refused_by_field(desk: Desk, more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        desk.create(**more)
    assert [violation.field for violation in error.value.details.field_violations] == [field]
    assert desk.all() == [] and desk.store.events == []


def test_a_chosen_id_is_taken_once(desk: Desk) -> None:
    assert desk.create(ticket_id="mine").id == "mine"
    with pytest.raises(AlreadyExists):
        desk.create(ticket_id="mine")


def test_dry_runs_change_nothing(desk: Desk) -> None:
    assert desk.create(validate_only=True).state == "new"
    ticket = desk.create()
    events = len(desk.store.events)
    urgent = replace(ticket.draft, priority=Priority.URGENT)
    shown = desk.use.update(ticket.id, None, lambda _: urgent, actor="ann", validate_only=True)
    assert shown.draft.priority is Priority.URGENT
    act = Act(verb="resolve", actor="ann")
    assert desk.use.transition(ticket.id, None, act, validate_only=True).phase is Phase.RESOLVED
    assert desk.store.get(ticket.id) == ticket and len(desk.store.events) == events


def test_a_stale_etag_is_refused_and_changes_nothing(desk: Desk) -> None:
    ticket = desk.create()
    desk.act(ticket.id, "start", version=1)
    with pytest.raises(EtagMismatch):
        desk.act(ticket.id, "resolve", version=1)
    with pytest.raises(EtagMismatch):
        desk.use.update(ticket.id, 1, lambda t: replace(t.draft, subject="x"), actor="ann")
    assert desk.store.get(ticket.id).state == "in_progress"


def test_a_dry_run_sees_that_an_id_is_taken(desk: Desk) -> None:
    desk.create(ticket_id="mine", request_key="k", fingerprint="f")
    with pytest.raises(AlreadyExists):
        desk.create(ticket_id="mine", validate_only=True)
    assert desk.create(ticket_id="mine", request_key="k", fingerprint="f", validate_only=True).id == "mine"


async def test_a_dry_run_on_the_event_loop_sees_that_an_id_is_taken(desk: Desk) -> None:
    opening = Opening(AsyncMemoryStore(desk.store), desk.clock, RULES, convert.event_of)
    command = Create(kind=Kind.INQUIRY, draft=Draft(subject="x"), actor="ann", ticket_id="mine")
    await opening.create(command)
    with pytest.raises(AlreadyExists):
        await opening.create(replace(command, validate_only=True))


def test_a_number_filled_in_later_brings_its_customer(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,), tier="vip"))
    ticket = desk.create(draft=Draft(subject="x"))
    edit = lambda t: replace(t.draft, caller_number=NUMBER)  # noqa: E731
    changed = desk.use.update(ticket.id, None, edit, actor="ann")
    assert (changed.draft.customer_id, changed.tier) == ("42", "vip")
    nobodys = desk.use.update(ticket.id, None, lambda t: replace(t.draft, customer_id=""), actor="ann")
    assert nobodys.draft.customer_id == "", "who takes the customer away means it"


def test_an_illegal_transition_changes_nothing(desk: Desk) -> None:
    ticket = desk.create()
    with pytest.raises(IllegalTransition, match="start, resolve, cancel"):
        desk.act(ticket.id, "reopen")
    assert desk.store.get(ticket.id) == ticket
    with pytest.raises(NotFound):
        desk.act("nobody", "start")


def test_a_repeated_transition_answers_the_ticket_as_it_is(desk: Desk) -> None:
    ticket = desk.create()
    first = desk.act(ticket.id, "resolve", request_key="r", fingerprint="f")
    again = desk.act(ticket.id, "resolve", request_key="r", fingerprint="f")
    assert first == again
    with pytest.raises(InvalidArgument, match="request_id"):
        desk.act(ticket.id, "close", request_key="r", fingerprint="g")


def test_a_long_history_is_kept_whole(desk: Desk) -> None:
    ticket = desk.create()
    desk.act(ticket.id, "start")
    for _ in range(50):
        desk.act(ticket.id, "wait")
        desk.act(ticket.id, "resume")
    steps, after = [], 0
    while page := desk.use.steps(ticket.id, after, 7):
        steps += page
        after = page[-1].sequence
    assert [step.sequence for step in steps] == list(range(1, 103))
    assert len(desk.store.get(ticket.id).history) <= 64


# ---- the way of a resolved ticket


def test_the_visit_is_made_on_time_and_once(desk: Desk) -> None:
    ticket = desk.create()
    desk.act(ticket.id, "resolve")
    desk.clock.advance(DAY_SECONDS - 1)
    desk.run_timers()
    assert len(desk.all()) == 1
    desk.clock.advance(1)
    desk.run_timers()
    desk.run_timers()
    visit = desk.store.get(f"{ticket.id}.visit-1")
    assert visit.kind is Kind.RETURN_VISIT and visit.parent_id == ticket.id
    assert len(desk.all()) == 2
    (scheduled,) = desk.told(events_pb2.FollowUpScheduled)
    assert scheduled.follow_up_ticket == f"tickets/{visit.id}"
    assert [told.ticket.ticket for told in desk.told(events_pb2.TicketCreated)] == [
        f"tickets/{ticket.id}",
        f"tickets/{visit.id}",
    ]


def with_visit(desk: Desk) -> tuple[str, str]:
    ticket = desk.create()
    desk.act(ticket.id, "resolve")
    desk.clock.advance(DAY_SECONDS)
    desk.run_timers()
    return ticket.id, f"{ticket.id}.visit-1"


def test_content_closes_and_discontent_reopens_the_parent(desk: Desk) -> None:
    content, visit = with_visit(desk)
    desk.act(visit, "satisfied", score=5)
    assert desk.store.get(content).phase is Phase.CLOSED
    other = Desk()
    unhappy, visit = with_visit(other)
    answered = other.act(visit, "dissatisfied", score=1, reason="still wrong")
    parent = other.store.get(unhappy)
    assert parent.phase is Phase.ACTIVE and parent.reopen_count == 1
    assert [step.verb for step in parent.history] == ["open", "resolve", "reopen"]
    assert "still wrong" in parent.history[-1].reason
    assert answered.intents == () and other.use.due(10) == []
    (told,) = other.told(events_pb2.FollowUpCompleted)
    assert not told.visit.satisfied and told.visit.satisfaction_score == 1


@pytest.mark.parametrize("erased", [False, True])
def test_a_verdict_is_kept_while_the_database_is_away_and_through_an_erasure(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, erased: bool
) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    parent, visit = with_visit(desk)
    update = desk.store.update

    def away_for_the_parent(ticket: Ticket, events: Sequence[Event]) -> Ticket:
        if ticket.id == parent:
            raise AutoReconnect("gone")
        return update(ticket, events)

    monkeypatch.setattr(desk.store, "update", away_for_the_parent)
    answered = desk.act(visit, "dissatisfied", reason="still wrong")
    assert answered.phase is Phase.CLOSED and answered.intents, "what was said is stored"
    monkeypatch.setattr(desk.store, "update", update)
    if erased:
        desk.use.customer_erased("42", 2)
    desk.run_timers()
    assert desk.store.get(parent).phase is Phase.ACTIVE and not desk.store.get(visit).intents


def test_reopening_by_hand_cancels_the_visit(desk: Desk) -> None:
    parent, visit = with_visit(desk)
    desk.act(parent, "reopen")
    assert desk.store.get(visit).phase is Phase.CANCELLED


def test_each_breach_is_told_once(desk: Desk) -> None:
    desk.create()
    desk.clock.advance(3_600)
    desk.run_timers()
    desk.clock.advance(DAY_SECONDS)
    desk.run_timers()
    desk.run_timers()
    told = desk.told(events_pb2.SlaBreached)
    assert [breach.clock for breach in told] == [
        events_pb2.SLA_CLOCK_TYPE_FIRST_RESPONSE,
        events_pb2.SLA_CLOCK_TYPE_RESOLUTION,
    ]
    assert desk.use.due(10) == []


def story(desk: Desk, write: int | None, done_before: bool) -> str:
    """Open, breach, resolve, visit, discontent; a crash at one write, then the worker goes on."""
    ticket = desk.create(ticket_id="t")
    desk.store.left, desk.store.done_before = write, done_before
    steps = [
        lambda: desk.clock.advance(3_601),
        desk.run_timers,
        lambda: desk.act(ticket.id, "resolve", request_key="1"),
        lambda: desk.clock.advance(DAY_SECONDS),
        desk.run_timers,
        lambda: desk.act("t.visit-1", "dissatisfied", request_key="2"),
    ]
    for step in steps:
        try:
            step()
        except Crash:
            step()  # the client or the worker's next process tries again
    desk.run_timers()
    desk.store.left = None
    desk.run_timers()
    return repr([(t.id, t.state, t.reopen_count, t.intents) for t in desk.all()]) + repr(
        sorted(event.type for event in desk.store.events)
    )


@pytest.mark.parametrize("done_before", [False, True])
@pytest.mark.parametrize("write", range(8))
def test_a_crash_at_any_write_changes_nothing_in_the_end(write: int, done_before: bool) -> None:
    untroubled = story(Desk(), None, False)
    assert "('t', 'in_progress', 1, ())" in untroubled and untroubled.count("SlaBreached") == 1
    assert story(Desk(), write, done_before) == untroubled


def test_a_failing_ticket_is_held_back_and_others_go_on(desk: Desk) -> None:
    ticket = desk.create()
    desk.clock.advance(3_600)
    assert desk.use.due(10) == [ticket.id]
    desk.use.postpone(ticket.id)
    assert desk.use.due(10) == []
    desk.clock.advance(61)
    assert desk.use.due(10) == [ticket.id]


# ---- calls


def test_redelivery_makes_one_ticket(desk: Desk) -> None:
    first = desk.use.call_wrapped_up(desk.call())
    assert first is not None and first.id == "call-c1"
    assert desk.use.call_wrapped_up(desk.call()) == first
    desk.act(first.id, "cancel")
    desk.use.call_wrapped_up(desk.call())
    assert len(desk.all()) == 1, "not even after its ticket is finished"


def test_a_call_without_a_ticket_makes_none(desk: Desk) -> None:
    assert desk.use.call_wrapped_up(desk.call(request=None)) is None
    assert desk.all() == []


def test_a_caller_who_was_not_satisfied_opens_the_ticket_again_once(desk: Desk) -> None:
    ticket = desk.use.call_wrapped_up(desk.call())
    assert ticket is not None

    def answered(satisfaction: float, call_id: str = "c1", seconds: int = 0) -> Ticket | None:
        time_ms = desk.clock.now_ms() + seconds * 1000
        return desk.use.survey_answered(
            call_id, satisfaction, actor="surveys", reason="1.0 of 5", time_ms=time_ms
        )

    assert answered(1.0) is None, "it is still being worked on"
    desk.act(ticket.id, "resolve")
    assert answered(3.0) is None and answered(0.0) is None and answered(1.0, "c9") is None
    assert answered(50.0) is None and desk.store.get(ticket.id).satisfaction == 3, "what was said is kept"
    assert answered(1.0, seconds=-60) is None, "an answer from before the resolution says nothing of it"
    opened = answered(1.0)
    assert opened is not None and opened.phase is Phase.ACTIVE and opened.reopen_count == 1
    assert opened.satisfaction == 1
    assert answered(1.0) is None
    desk.clock.advance(60)
    desk.act(ticket.id, "resolve")
    assert answered(1.0, seconds=-30) is None, "the same answer, delivered again"


def test_a_repeat_call_joins_and_a_redelivered_repeat_call_changes_nothing(desk: Desk) -> None:
    first = desk.use.call_wrapped_up(desk.call())
    assert first is not None
    joined = desk.use.call_wrapped_up(desk.call("c2"))
    assert joined is not None and joined.id == first.id and joined.call_count == 2
    desk.act(first.id, "resolve")
    assert desk.use.call_wrapped_up(desk.call("c2")) == desk.store.get(first.id)
    assert len(desk.all()) == 1
    (told,) = desk.told(events_pb2.CallAttached)
    assert told.call.call == "calls/c2" and told.ticket.call == "calls/c1" and told.ticket.call_count == 2


def test_calls_from_two_workers_at_once_make_one_ticket(desk: Desk) -> None:
    errors: list[Exception] = []

    def take(call_id: str) -> None:
        try:
            desk.use.call_wrapped_up(desk.call(call_id))
        except Unavailable:
            desk.use.call_wrapped_up(desk.call(call_id))  # the bus delivers again
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(f"c{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not errors
    (ticket,) = desk.all()
    assert ticket.call_count == 12 and len({call.call_id for call in ticket.calls}) == 12


@pytest.mark.parametrize("seed", range(10))
def test_any_order_and_repetition_of_events_gives_the_same_tickets(seed: int) -> None:
    desk, order = Desk(), random.Random(seed)
    profile = Profile(customer_id="42", version=2, numbers=(NUMBER,), tier="vip")
    stale = Profile(customer_id="42", version=1, numbers=(NUMBER, "+8613900139000"), tier="gold")
    events: list[Any] = [
        lambda: desk.use.customer_known(profile),
        lambda: desk.use.customer_known(stale),
        *(lambda n=n: desk.use.call_wrapped_up(desk.call(f"c{n}")) for n in range(3)),
    ] * 2
    order.shuffle(events)
    for event in events:
        event()
    (ticket,) = desk.all()
    assert ticket.draft.customer_id == "42" and ticket.call_count == 3
    assert ticket.tier in ("vip", "gold"), "the tier as known when it was opened or adopted"
    assert desk.store.profile("42") == profile


def test_times_that_cannot_be_right_are_replaced(desk: Desk) -> None:
    now = desk.clock.now_ms()
    ticket = desk.use.call_wrapped_up(desk.call(time_ms=0))
    assert ticket is not None and ticket.created_ms == now
    settled = desk.call("c2", resolved=True, follow_up_ms=now - 1, number="")
    later = desk.use.call_wrapped_up(settled)
    assert later is not None and later.follow_up is not None
    assert later.follow_up.schedule_ms == now + DAY_SECONDS * 1000


# ---- tickets merged at once


class MeanwhileStore(MemoryStore):
    """Something else happens right before the n-th write of a merge, or between its reads and that."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.meanwhile: Any = None

    def update(self, ticket: Ticket, events: Sequence[Event]) -> Ticket:
        self.left -= 1
        if self.left == 0:
            self.meanwhile()
        return super().update(ticket, events)


@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("ring", [2, 3])
def test_tickets_merged_in_a_ring_at_once_leave_one_with_everything(writes: int, ring: int) -> None:
    store = MeanwhileStore()
    use = Handlers(store, FakeClock(), RULES, convert.event_of)
    ids = [f"t{n}" for n in range(ring)]
    for id in ids:
        use.create(Create(kind=Kind.INQUIRY, draft=Draft(subject=id), actor="ann", ticket_id=id))
        said = Comment(sequence=0, body=id, public=False, author="ann", from_customer=False, time_ms=0)
        use.comment(Request(ticket_id=id), said)

    def merge(place: int) -> None:
        with contextlib.suppress(desk_rules.TicketFinal, EtagMismatch):
            use.merge(Request(ticket_id=ids[(place + 1) % ring]), ids[place], "ann", "")

    store.left, store.meanwhile = writes, lambda: [merge(place) for place in range(1, ring)]
    merge(0)
    for id in use.due(10):
        use.fire(id)
    (stays,) = [ticket for ticket in store.page(Query(), 10, None) if ticket.is_open]
    assert sorted(said.body for said in use.comments(stays.id, 0, 10)) == ids


@pytest.mark.parametrize("done_before", [True, False])
def test_what_a_merge_left_over_goes_to_who_took_its_target_over(desk: Desk, done_before: bool) -> None:
    for id in "abc":
        desk.create(ticket_id=id)
        said = Comment(sequence=0, body=id, public=False, author="ann", from_customer=False, time_ms=0)
        desk.use.comment(Request(ticket_id=id), said)
    desk.store.left, desk.store.done_before = 2, done_before
    with pytest.raises(Crash):
        desk.use.merge(Request(ticket_id="b"), "a", "ann", "")
    desk.use.merge(Request(ticket_id="c"), "b", "ann", "")
    desk.run_timers()
    assert sorted(said.body for said in desk.use.comments("c", 0, 10)) == ["a", "b", "c"]
    assert not desk.store.get("a").intents and not desk.store.get("a").comments


# ---- customers


def test_open_tickets_of_a_number_go_to_its_customer(desk: Desk) -> None:
    ticket = desk.create()
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    assert desk.store.get(ticket.id).draft.customer_id == "42"
    assert desk.store.get(ticket.id).draft.caller_number == NUMBER


def test_all_open_tickets_of_a_number_go_to_its_customer(desk: Desk) -> None:
    for _ in range(BATCH_MAX + 5):
        desk.create()
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    assert {ticket.draft.customer_id for ticket in desk.all()} == {"42"}


def taken(id: str, into: str, version: int = 2) -> Profile:
    """A customer who was merged."""
    return Profile(customer_id=id, version=version, merged_into=into)


def test_a_merge_moves_all_tickets_with_their_texts(desk: Desk) -> None:
    for n in range(BATCH_MAX + 5):
        desk.create(draft=Draft(subject="a", description="kept", customer_id="old"), ticket_id=f"t{n}")
    survivor = Profile(customer_id="new", version=3)
    for _ in range(2):
        desk.use.customers_merged(survivor, [taken("old", "new")])
    assert {ticket.draft.customer_id for ticket in desk.all()} == {"new"}
    assert desk.store.get("t3").draft.description == "kept"


def test_an_unmerge_gives_back_the_tickets_that_were_somebodys(desk: Desk) -> None:
    for id, customer in (("t1", "a"), ("t2", "b"), ("t3", "c")):
        desk.create(draft=Draft(subject="a", customer_id=customer), ticket_id=id)
    a, b, c = (Profile(customer_id=id, version=3) for id in "abc")
    desk.use.customers_merged(a, [taken("b", "a")])
    desk.use.customers_merged(c, [taken("a", "c", 4)])
    desk.create(draft=Draft(subject="later", customer_id="c"), ticket_id="t4")
    assert {ticket.draft.customer_id for ticket in desk.all()} == {"c"}
    for _ in range(2):
        desk.use.customers_unmerged(replace(c, version=4), [replace(a, version=5)])
    owners = {ticket.id: ticket.draft.customer_id for ticket in desk.all()}
    assert owners == {"t1": "a", "t2": "a", "t3": "c", "t4": "c"}
    desk.use.customers_unmerged(replace(a, version=5), [replace(b, version=5)])
    owners = {ticket.id: ticket.draft.customer_id for ticket in desk.all()}
    assert owners == {"t1": "a", "t2": "b", "t3": "c", "t4": "c"}


def alive(id: str, version: int) -> Profile:
    return Profile(customer_id=id, version=version)


#: Whose a's ticket is after all of it: news as (survivor, who was merged into it or given back).
MERGES: list[tuple[str, list[tuple[Profile, Profile]]]] = [
    ("a", [(alive("b", 2), taken("a", "b")), (alive("b", 3), alive("a", 3))]),
    (
        "c",
        [
            (alive("b", 2), taken("a", "b")),
            (alive("b", 3), alive("a", 3)),
            (alive("c", 2), taken("a", "c", 4)),
        ],
    ),
    ("c", [(alive("b", 2), taken("a", "b")), (alive("c", 2), taken("b", "c", 3))]),
    (
        "a",
        [
            (alive("b", 2), taken("a", "b")),
            (alive("c", 2), taken("b", "c", 3)),
            (alive("c", 3), alive("b", 4)),
            (alive("b", 5), alive("a", 3)),
        ],
    ),
]


@pytest.mark.parametrize(("owner", "news"), MERGES)
def test_merges_and_their_undoing_are_heard_of_in_any_order(
    owner: str, news: list[tuple[Profile, Profile]]
) -> None:
    for order in itertools.permutations([*news, news[0]]):
        desk = Desk()
        ticket = desk.create(draft=Draft(subject="a", customer_id="a"))
        for survivor, other in order:
            told = desk.use.customers_merged if other.merged_into else desk.use.customers_unmerged
            told(survivor, [other])
        assert desk.store.get(ticket.id).draft.customer_id == owner, order


def test_a_ticket_that_people_gave_to_another_stays_there(desk: Desk) -> None:
    ticket = desk.create(draft=Draft(subject="a", customer_id="a"))
    desk.use.customers_merged(alive("b", 2), [taken("a", "b")])
    desk.use.update(ticket.id, None, lambda t: replace(t.draft, customer_id="c"), actor="ann")
    desk.use.customers_unmerged(alive("b", 3), [alive("a", 3)])
    assert desk.store.get(ticket.id).draft.customer_id == "c"


@pytest.mark.parametrize("undone_first", [True, False])
def test_an_erased_survivor_takes_no_ticket_of_one_who_was_given_back(desk: Desk, undone_first: bool) -> None:
    kept = desk.create(draft=Draft(subject="kept", customer_id="a"))
    gone = desk.create(draft=Draft(subject="secret", customer_id="b"))
    desk.use.customers_merged(alive("b", 2), [taken("a", "b")])
    news = [
        lambda: desk.use.customers_unmerged(alive("b", 3), [alive("a", 3)]),
        lambda: desk.use.customer_erased("b", 4),
    ]
    for hear in news if undone_first else reversed(news):
        hear()
    assert desk.store.get(kept.id).draft == Draft(subject="kept", customer_id="a")
    assert desk.store.get(gone.id).draft == Draft(subject="(erased)")


def told_by_crm(message: Any) -> Event:
    return Event.of(message, source="crm", subject="customers/42", time=datetime.now(UTC))


def test_care_and_leaving_become_tickets_once(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,), tier="vip"))
    raised = crm_events.CareTaskRaised(care_task="careTasks/1", kind="CONTRACT_EXPIRES", text="合约将到期")
    raised.customer.customer = "customers/42"
    for _ in range(2):
        inbound.take(desk.use, told_by_crm(raised))
    (ticket,) = desk.all()
    assert ticket.kind is Kind.CARE and ticket.draft.subject == "合约将到期" and ticket.tier == "vip"
    assert ticket.draft.customer_id == "42" and ticket.draft.category == "contract-expires"
    birthday = crm_events.CareTaskRaised(care_task="careTasks/2", kind="BIRTHDAY", customer=raised.customer)
    inbound.take(desk.use, told_by_crm(birthday))
    assert len(desk.all()) == 1, "a birthday is for who speaks to the customer"
    over = crm_events.CareTaskClosed(care_task="careTasks/1", customer="customers/42", state="DONE")
    for _ in range(2):
        inbound.take(desk.use, told_by_crm(over))
    assert desk.store.get(ticket.id).phase is Phase.CANCELLED
    leaving = crm_events.LeaveIntentFlagged(caller_number=NUMBER, wants_to_leave=True)
    leaving.event_time.FromMilliseconds(desk.clock.now_ms())
    risk = crm_events.ChurnRiskChanged(customer="customers/42", score=0.8, reasons=["WANTS_TO_LEAVE"])
    for message in (leaving, risk, leaving, crm_events.ChurnRiskChanged(customer="customers/42", score=0.5)):
        inbound.take(desk.use, told_by_crm(message))
    (open_one,) = [ticket for ticket in desk.all() if ticket.is_open]
    assert open_one.draft.category == "retention" and open_one.draft.priority is Priority.HIGH
    assert open_one.draft.customer_id == "42", "one for who wants to leave, by whatever it is known"


def care_task() -> tuple[Event, Event]:
    """(an occasion for care, its end)."""
    raised = crm_events.CareTaskRaised(care_task="careTasks/1", kind="CONTRACT_EXPIRES", text="合约将到期")
    raised.customer.customer = "customers/42"
    over = crm_events.CareTaskClosed(care_task="careTasks/1", customer="customers/42", state="DONE")
    return told_by_crm(raised), told_by_crm(over)


def test_an_occasion_and_its_end_are_heard_of_in_any_order() -> None:
    """Its ticket stayed open for ever where the end came first."""
    news = care_task()
    for order in itertools.permutations(news * 2):
        desk = Desk()
        for event in order:
            inbound.take(desk.use, event)
        assert [ticket.phase for ticket in desk.all()] in ([], [Phase.CANCELLED]), order


class Interrupted(MemoryStore):
    """Lets others work just before the n-th thing that is asked of it."""

    def __init__(self, place: int, others: Any) -> None:
        super().__init__()
        #: Things asked for until then; None: not counted any more.
        self.left: int | None = place
        self.others = others
        #: Things asked for after that until the process dies; None: it lives.
        self.dies_after: int | None = None

    def __getattribute__(self, name: str) -> Any:
        found = MemoryStore.__getattribute__(self, name)
        if name.startswith("_") or not callable(found) or name == "others":
            return found

        def ask(*args: Any, **named: Any) -> Any:
            if self.left == 0:
                self.left, after = None, self.dies_after
                self.dies_after = None
                self.others()
                self.dies_after = after
            elif self.left is not None:
                self.left -= 1
            elif self.dies_after is not None:
                self.dies_after -= 1
                if self.dies_after < 0:
                    self.dies_after = None
                    raise Crash
            return found(*args, **named)

        return ask


@pytest.mark.parametrize("dies_after", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("raised_first", [True, False])
def test_an_occasion_and_its_end_may_be_handled_at_the_very_same_time(
    raised_first: bool, dies_after: int | None
) -> None:
    """One between any two steps of the other; that one may die afterwards, and is delivered again."""
    one, other = care_task() if raised_first else reversed(care_task())
    for place in itertools.count():
        store = Interrupted(place, lambda: None)
        store.dies_after = dies_after
        use = Handlers(store, FakeClock(), RULES, convert.event_of)
        store.others = lambda use=use: inbound.take(use, other)
        try:
            inbound.take(use, one)
        except Crash:
            inbound.take(use, one)
        if store.left is not None:
            break  # there are no more places
        assert [ticket.phase for ticket in store._tickets.values()] in ([], [Phase.CANCELLED]), place
    assert place > 1


@pytest.mark.parametrize("merge_first", [True, False])
@pytest.mark.parametrize("begun", [(), ("merge",), ("merge", "unmerge")])
def test_a_merge_and_its_undoing_may_be_handled_at_the_very_same_time(
    merge_first: bool, begun: tuple[str, ...]
) -> None:
    """One, perhaps a late repeat, between any two steps of the other."""

    def hear(use: Handlers, what: str) -> None:
        if what == "merge":
            use.customers_merged(alive("b", 2), [taken("a", "b")])
        else:
            use.customers_unmerged(alive("b", 3), [alive("a", 3)])

    first, second = ("merge", "unmerge") if merge_first else ("unmerge", "merge")
    for place in itertools.count():
        store = Interrupted(10**9, lambda: None)
        use = Handlers(store, FakeClock(), RULES, convert.event_of)
        command = Create(kind=Kind.INQUIRY, draft=Draft(subject="a", customer_id="a"), actor="ann")
        ticket = use.create(command)
        for what in begun:
            hear(use, what)
        store.left, store.others = place, lambda use=use: hear(use, second)
        hear(use, first)
        if store.left is not None:
            break  # there are no more places
        assert store.get(ticket.id).draft.customer_id == "a", place
    assert place > 3


def churn_task(customer: str = "42", **fields: Any) -> Event:
    message = crm_events.CareTaskRaised(care_task="careTasks/9", kind="CHURN", text="请关怀挽留")
    message.customer.customer = f"customers/{customer}"
    message.customer.state = fields.get("state", customers_pb2.CUSTOMER_STATE_ACTIVE)
    return told_by_crm(message)


def test_a_retention_ticket_is_one_even_when_it_changed_hands_and_is_ended_by_people(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1))
    inbound.take(desk.use, churn_task())
    desk.use.customers_merged(Profile(customer_id="7", version=2), [taken("42", "7")])
    risk = crm_events.ChurnRiskChanged(customer="customers/7", score=0.9)
    over = crm_events.CareTaskClosed(care_task="careTasks/9", customer="customers/42", state="EXPIRED")
    for message in (risk, over):
        inbound.take(desk.use, told_by_crm(message))
    (ticket,) = desk.all()
    assert ticket.is_open and ticket.draft.customer_id == "7" and ticket.draft.category == "retention"


def test_what_is_told_of_one_who_was_merged_or_deleted_finds_whom_it_concerns(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="7", version=2, tier="vip"))
    desk.use.customer_known(Profile(customer_id="8", version=2, merged_into="7"))
    desk.use.customer_known(Profile(customer_id="42", version=2, merged_into="8"))
    inbound.take(desk.use, churn_task(state=customers_pb2.CUSTOMER_STATE_DELETED))
    assert not desk.all()
    inbound.take(desk.use, churn_task())
    assert [(ticket.draft.customer_id, ticket.tier) for ticket in desk.all()] == [("7", "vip")]


async def test_what_is_opened_for_one_who_was_merged_is_the_survivors(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="7", version=2, tier="vip"))
    desk.use.customer_known(Profile(customer_id="8", version=2, merged_into="7"))
    desk.use.customer_known(Profile(customer_id="42", version=2, merged_into="8"))
    draft = Draft(subject="Bill", customer_id="8")
    opening = Opening(AsyncMemoryStore(desk.store), desk.clock, RULES, convert.event_of)
    late = Draft(subject="Bill", customer_id="42")
    tickets = [
        await opening.create(Create(kind=Kind.INQUIRY, draft=draft, actor="ann")),
        desk.create(draft=draft),
        await opening.create(Create(kind=Kind.INQUIRY, draft=late, actor="ann")),
    ]
    named = desk.create(draft=Draft(subject="Bill"))
    tickets.append(desk.use.update(named.id, None, lambda t: replace(t.draft, customer_id="42"), actor="ann"))
    assert [(ticket.draft.customer_id, ticket.tier) for ticket in tickets] == [("7", "vip")] * 4
    restored = Profile(customer_id="8", version=3)
    desk.use.customers_unmerged(Profile(customer_id="7", version=3, tier="vip"), [restored])
    owners = [desk.store.get(ticket.id).draft.customer_id for ticket in tickets]
    assert owners == ["8"] * 4, "what named 42 means 8 now"


def test_erasure_removes_profile_and_texts(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,), tier="vip"))
    ticket = desk.create()
    for _ in range(70):
        desk.act(ticket.id, "resolve", reason="secret")
        desk.act(ticket.id, "reopen", reason="secret")
    desk.use.customer_erased("42", 2)
    desk.use.customer_erased("42", 2)
    again = desk.clock.now_ms() + handlers.LOOK_AGAIN_SECONDS * 1000
    erased = Profile(
        customer_id="42",
        version=2,
        former_numbers=(NUMBER,),
        erased=True,
        erased_ms=desk.clock.now_ms(),
        again_ms=again,
    )
    assert desk.store.profile("42") == erased
    desk.clock.advance(handlers.LOOK_AGAIN_SECONDS)
    later = desk.create()
    desk.use.erase_again("42")
    done = replace(erased, former_numbers=(), again_ms=None)
    assert desk.store.profile("42") == done, "nothing of whom it was is left"
    assert desk.store.get(later.id).draft == later.draft, "that is somebody else's, for all that is known"
    assert desk.store.get(ticket.id).draft == Draft(subject="(erased)")
    assert all(step.reason == "" for step in desk.use.steps(ticket.id, 0, 1_000))


def test_what_is_opened_in_the_moment_of_an_erasure_is_erased_soon_after(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    insert = desk.store.insert

    def erased_meanwhile(ticket: Ticket, events: Sequence[Event], **more: Any) -> tuple[Ticket, bool]:
        desk.use.customer_erased("42", 2)
        return insert(ticket, events, **more)

    monkeypatch.setattr(desk.store, "insert", erased_meanwhile)
    ticket = desk.create(draft=Draft(subject="secret", customer_id="42"))
    assert desk.use.erased_due(9) == []
    desk.clock.advance(handlers.LOOK_AGAIN_SECONDS)
    loop = Timers(desk.use, ScriptedLease(), desk.clock, poll_seconds=1.0, batch_max=9)
    monkeypatch.setattr(loop, "step", lambda: 9)
    loop.run(lambda seconds: True)  # one round, and a full one
    assert desk.store.get(ticket.id).draft == Draft(subject="(erased)")
    assert desk.use.erased_due(9) == [] and desk.store.profile("42").again_ms is None  # type: ignore[union-attr]


async def _opened(use: Handlers, store: MemoryStore) -> None:
    opening = Opening(AsyncMemoryStore(store), use._clock, RULES, convert.event_of)
    draft = Draft(subject="secret", description="secret", customer_id="42")
    await opening.create(Create(kind=Kind.INQUIRY, draft=draft, actor="ann"))


def _created(**whose: str) -> Any:
    draft = Draft(subject="secret", description="secret", **whose)
    return lambda use, store: use.create(Create(kind=Kind.COMPLAINT, draft=draft, actor="ann"))


def _called(use: Handlers, store: MemoryStore) -> None:
    wish = TicketRequest(kind="inquiry", priority="", category="", subject="secret", description="secret")
    facts = CallFacts(
        call_id="c9",
        ticket_id="call-9",
        time_ms=use._clock.now_ms(),
        number=NUMBER,
        notes="secret",
        request=wish,
    )
    use.call_wrapped_up(facts)


def _split(use: Handlers, store: MemoryStore) -> None:
    part = Create(kind=Kind.COMPLAINT, draft=Draft(subject="part", customer_id="7"), actor="ann")
    use.split(Request(ticket_id="theirs"), part, ["c-secret"], range(1, 11))


def _care(use: Handlers, store: MemoryStore) -> None:
    facts = CareFacts(ticket_id="care-9", subject="secret", category="silence", customer_id="42")
    use.care_wanted(facts)


#: What brings or moves a customer's words.
BRINGING: dict[str, Any] = {
    "opened": lambda use, store: asyncio.run(_opened(use, store)),
    "created by name": _created(customer_id="42"),
    "created by number": _created(caller_number=NUMBER),
    "called": _called,
    "cared for": _care,
    "split": _split,
    "merged into another's": lambda use, store: use.merge(Request(ticket_id="others"), "theirs", "ann", ""),
    "another's merged into it": lambda use, store: use.merge(
        Request(ticket_id="theirs"), "others", "ann", ""
    ),
    "customers merged": lambda use, store: use.customers_merged(alive("7", 5), [taken("42", "7", 5)]),
    "became known": lambda use, store: use.customer_known(
        Profile(customer_id="42", version=2, numbers=(NUMBER, OTHER))
    ),
    "followed up": lambda use, store: [use.fire(id) for id in use.due(99)],
}


@pytest.mark.parametrize("what", BRINGING)
def test_an_erasure_between_any_two_steps_of_anything_leaves_no_words(what: str) -> None:
    for place in itertools.count():
        store = Interrupted(10**9, lambda: None)
        desk = Desk()
        desk.store = store  # type: ignore[assignment]
        desk.use = use = Handlers(store, desk.clock, RULES, convert.event_of)
        use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
        with_words(desk, "secret", id="theirs", customer_id="42")
        with_words(desk, "theirs", id="others", customer_id="7")
        if what == "became known":
            with_words(desk, "secret", caller_number=OTHER)
        if what == "followed up":
            resolved = with_words(desk, "secret", customer_id="42")
            use.transition(resolved.id, None, Act(verb="resolve", actor="ann", resolution="secret"))
            desk.clock.advance(2 * DAY_SECONDS)
        store.left, store.others = place, lambda use=use: use.customer_erased("42", 9)
        with contextlib.suppress(CustomerErased, desk_rules.TicketFinal):
            BRINGING[what](use, store)
        if store.left is not None:
            break  # there are no more places
        desk.clock.advance(handlers.LOOK_AGAIN_SECONDS)
        for id in use.erased_due(9):
            use.erase_again(id)
        kept = repr((store._tickets, store._old_steps, store._old_comments)).replace("c-secret", "")
        assert "secret" not in kept and "'42'" not in kept, (
            place,
            kept[max(0, kept.find("secret") - 90) :][:200],
        )
    assert place > 2


def words_of(desk: Desk, ticket_id: str) -> list[str]:
    said = [comment.body for comment in desk.use.comments(ticket_id, 0, 1_000)]
    ticket = desk.store.get(ticket_id)
    return [*said, *(call.notes for call in ticket.calls), *(file.uri for file in ticket.attachments)]


def with_words(desk: Desk, word: str, id: str = "", **draft: str) -> Ticket:
    ticket = desk.create(draft=Draft(subject=word, **draft), ticket_id=id)
    desk.use.change(
        Request(ticket_id=ticket.id),
        lambda t, now: desk_rules.attach(t, Attachment(id=f"f-{word}", uri=word, file_name=word), now),
    )
    for _ in range(10):
        said = Comment(sequence=0, body=word, public=True, author="a", from_customer=True, time_ms=0)
        desk.use.comment(Request(ticket_id=ticket.id), said)
    called = desk.store.get(ticket.id)
    link = CallLink(call_id=f"c-{word}", time_ms=desk.clock.now_ms(), notes=word)
    return desk.store.update(replace(called, calls=(link,), call_count=1), ())


@pytest.mark.parametrize("whose", [{"customer_id": "42"}, {"caller_number": NUMBER}])
@pytest.mark.parametrize("way", ["merge", "merge twice", "split"])
def test_an_erasure_finds_words_in_the_tickets_of_others(desk: Desk, way: str, whose: dict[str, str]) -> None:
    """What a merge or a split brought into another customer's ticket survived the erasure."""
    source, host = with_words(desk, "secret", **whose), with_words(desk, "theirs", customer_id="7")
    if "split" in way:
        draft = Draft(subject="part", customer_id="7")
        part = Create(kind=Kind.COMPLAINT, draft=draft, actor="ann")
        made = desk.use.split(Request(ticket_id=source.id), part, ["c-secret"], range(1, 11))
        host = desk.store.get(made.created.id)
    else:
        desk.use.merge(Request(ticket_id=host.id), source.id, "ann", "")
    if "twice" in way:
        last = with_words(desk, "last", customer_id="8")
        desk.use.merge(Request(ticket_id=last.id), host.id, "ann", "")
        host = last
    assert words_of(desk, host.id).count("secret") >= 11
    kept = [word for word in words_of(desk, host.id) if word != "secret"]
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    for _ in range(2):
        desk.use.customer_erased("42", 2)
    assert [word for word in words_of(desk, host.id) if word] == kept
    assert desk.store.get(host.id).guests == (("7",) if "twice" in way else ())
    kept_of = repr((desk.store.get(host.id), desk.use.comments(host.id, 0, 1_000)))
    assert "'42'" not in kept_of and NUMBER not in kept_of, "whose they were is gone, too"
    for customer in ("7", "8"):
        desk.use.customer_erased(customer, 3)
    assert not any(words_of(desk, host.id))


def test_a_split_takes_along_only_those_whose_words_go_over(desk: Desk) -> None:
    source, host = (with_words(desk, word, customer_id=id) for word, id in (("secret", "42"), ("own", "7")))
    desk.use.merge(Request(ticket_id=host.id), source.id, "ann", "")
    for calls, guests in ((["c-own"], ()), (["c-secret"], ("42",))):
        part = Create(kind=Kind.COMPLAINT, draft=Draft(subject="part", customer_id="7"), actor="ann")
        made = desk.use.split(Request(ticket_id=host.id), part, calls, ())
        assert desk.store.get(made.created.id).guests == guests
    left = engine.forget_guest(desk.store.get(host.id), "42", 0)
    assert left.happenings == (Updated(fields=("attachments", "comments"), actor="system"),), (
        "no call is left"
    )


def test_an_erasure_that_finds_very_many_tickets_of_others_goes_on_where_it_was(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "MOVES_MAX", 2)
    monkeypatch.setattr(handlers, "BATCH_MAX", 2)
    hosts = [desk.create(draft=Draft(subject="x", customer_id="7")) for _ in range(5)]
    for host in hosts:
        desk.store.update(replace(host, guests=("42",)), ())
    for _ in range(2):
        with pytest.raises(Unavailable, match="more tickets than one delivery handles"):
            desk.use.customer_erased("42", 2)
    desk.use.customer_erased("42", 2)
    assert not any(desk.store.get(host.id).guests for host in hosts)


@pytest.mark.parametrize("when", ["in between", "after a crash"])
def test_a_visit_made_while_its_ticket_is_reopened_is_withdrawn(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Nobody knew of it any more, and the customer was asked about a matter that was open again."""
    ticket = desk.act(desk.create().id, "resolve")
    desk.clock.advance(2 * DAY_SECONDS)
    insert = desk.store.insert

    def reopened_meanwhile(made: Ticket, events: Sequence[Event], **more: Any) -> tuple[Ticket, bool]:
        if when == "in between":
            desk.act(ticket.id, "reopen")
            return insert(made, events, **more)
        insert(made, events, **more)
        raise Crash

    monkeypatch.setattr(desk.store, "insert", reopened_meanwhile)
    with contextlib.suppress(Crash):
        desk.run_timers()
    if when == "after a crash":
        desk.act(ticket.id, "reopen")
    desk.run_timers()
    visit = desk.store.get(f"{ticket.id}.visit-1")
    assert visit.state == "cancelled" and desk.store.get(ticket.id).state == "in_progress"


def test_nobody_is_asked_about_the_ticket_of_who_was_erased(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER,)))
    ticket = desk.create()
    desk.use.customer_erased("42", 2)
    assert desk.act(ticket.id, "resolve").follow_up is None
    desk.clock.advance(3 * DAY_SECONDS)
    desk.run_timers()
    assert [one.id for one in desk.all()] == [ticket.id]


def test_an_erasure_reaches_what_was_over_before_its_number_was_known(desk: Desk) -> None:
    over, others = (desk.create(draft=Draft(subject="secret", caller_number=n)) for n in (NUMBER, OTHER))
    for ticket in (over, others):
        desk.act(ticket.id, "cancel")
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER, OTHER)))
    desk.use.customer_known(Profile(customer_id="41", version=1, numbers=(OTHER,)))
    for _ in range(2):
        desk.use.customer_erased("42", 2)
    assert desk.store.get(over.id).draft == Draft(subject="(erased)")
    assert desk.store.get(others.id).draft == others.draft, "by now the number is somebody else's"


def test_an_erasure_reaches_what_came_from_a_deleted_customers_number(desk: Desk) -> None:
    over, others = (desk.create(draft=Draft(subject="secret", caller_number=n)) for n in (NUMBER, OTHER))
    for ticket in (over, others):
        desk.act(ticket.id, "cancel")
    desk.use.customer_known(Profile(customer_id="42", version=1, numbers=(NUMBER, OTHER)))
    deleted = crm_events.CustomerDeleted(released_numbers=[NUMBER, OTHER])
    deleted.customer.customer, deleted.customer.version = "customers/42", 2
    deleted.customer.state = customers_pb2.CUSTOMER_STATE_DELETED
    inbound.take(desk.use, told_by_crm(deleted))
    desk.use.customer_known(Profile(customer_id="41", version=1, numbers=(OTHER,)))
    desk.use.customer_erased("42", 3)
    assert desk.store.get(over.id).draft == Draft(subject="(erased)")
    assert desk.store.get(others.id).draft == others.draft, "by now the number is somebody else's"
    assert desk.store.profile("42").numbers == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("first", ["survivor", "absorbed"])
def test_a_merge_heard_of_between_two_erasures_brings_nobody_back(desk: Desk, first: str) -> None:
    ticket = desk.create(draft=Draft(subject="secret", customer_id="absorbed"))
    second = "absorbed" if first == "survivor" else "survivor"
    desk.use.customer_erased(first, 3)
    desk.use.customers_merged(Profile(customer_id="survivor", version=2), [taken("absorbed", "survivor")])
    desk.use.customer_erased(second, 3)
    assert desk.store.get(ticket.id).draft == Draft(subject="(erased)")


def test_merges_heard_of_in_another_order_end_with_the_last_survivor(desk: Desk) -> None:
    ticket = desk.create(draft=Draft(subject="a", customer_id="a"))
    b, c = Profile(customer_id="b", version=2), Profile(customer_id="c", version=2)
    desk.use.customer_known(Profile(customer_id="b", version=3, merged_into="c"))
    desk.use.customers_merged(c, [taken("b", "c", 3)])
    desk.use.customers_merged(b, [taken("a", "b")])
    assert desk.store.get(ticket.id).draft.customer_id == "c"
    desk.use.customers_unmerged(replace(c, version=4), [replace(b, version=4)])
    assert desk.store.get(ticket.id).draft.customer_id == "b"
    desk.use.customers_unmerged(replace(b, version=5), [Profile(customer_id="a", version=5)])
    assert desk.store.get(ticket.id).draft.customer_id == "a"


def test_nothing_is_begun_for_who_was_erased(desk: Desk) -> None:
    desk.use.customer_known(Profile(customer_id="42", version=1))
    named = Draft(subject="Bill", customer_id="42")
    resolved, other = desk.create(draft=named), desk.create()
    desk.act(resolved.id, "resolve")
    desk.use.customer_erased("42", 2)
    desk.clock.advance(2 * DAY_SECONDS)
    desk.run_timers()
    inbound.take(desk.use, churn_task())
    leaving = crm_events.LeaveIntentFlagged(customer="customers/42", wants_to_leave=True)
    inbound.take(desk.use, told_by_crm(leaving))
    assert {ticket.id for ticket in desk.all()} == {resolved.id, other.id}, "no visit, no retention"
    for begin in (
        lambda: desk.create(draft=named),
        lambda: desk.use.update(other.id, None, lambda _: named, actor="ann"),
    ):
        with pytest.raises(CustomerErased):
            begin()
