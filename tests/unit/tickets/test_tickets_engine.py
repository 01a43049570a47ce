"""Decisions: walks over the state tables, resolutions and return visits, verdicts, calls, erasure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from tickets import engine
from tickets import sla as clocks
from tickets.engine import Act, IllegalTransition
from tickets.flows import FLOWS, allowed_verbs
from tickets.model import (
    CALLS_MAX,
    Attached,
    CallFacts,
    Change,
    Channel,
    Dispatch,
    Draft,
    FeeLine,
    IntentKind,
    Kind,
    PartLine,
    Phase,
    Priority,
    Profile,
    Rules,
    Scheduled,
    Ticket,
    TicketRequest,
    Transitioned,
    Updated,
    Visit,
    Visited,
)

NOW = 1_772_452_800_000
DAY = 86_400_000
RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=DAY)
NUMBER = "+8613800138000"
ALL_VERBS = sorted(
    {row.verb for flow in FLOWS.values() for row in flow.transitions} | {"fly", "", "close\x00"}
)


def opened(kind: Kind = Kind.INQUIRY, **changes: object) -> Ticket:
    """A ticket of `kind`; `changes` go into its draft."""
    draft = replace(Draft(subject="My bill is wrong", caller_number=NUMBER), **changes)  # type: ignore[arg-type]
    if kind is Kind.FEE_ORDER:
        draft = replace(draft, fee=(FeeLine(description="visit", quantity=1, amount="9.90", currency="CNY"),))
    if kind in (Kind.REPAIR, Kind.INSTALLATION):
        draft = replace(draft, dispatch=Dispatch(address="Nanjing Road 1", engineer="agents/9"))
    if kind is Kind.PARTS_REQUEST:
        draft = replace(draft, parts=(PartLine(number="m7", quantity=1),))
    visit = Visit(number=1) if kind is Kind.RETURN_VISIT else None
    parent = "p1" if visit else ""
    return engine.open_ticket(
        "t1", kind, draft, RULES, NOW, actor="ann", visit=visit, parent_id=parent
    ).ticket


def act(verb: str, actor: str = "ann", score: int = 0) -> Act:
    return Act(verb=verb, actor=actor, reason="because", resolution="done so", score=score)


def after(ticket: Ticket, *verbs: str, now: int = NOW) -> Ticket:
    for verb in verbs:
        ticket = engine.transition(ticket, act(verb), RULES, now).ticket
    return ticket


def facts(call_id: str = "c1", **changes: object) -> CallFacts:
    request = TicketRequest(
        kind="inquiry", priority="", category="billing", subject="Bill", description="too high"
    )
    made = CallFacts(
        call_id=call_id, ticket_id=f"call-{call_id}", time_ms=NOW, number=NUMBER, agent="agents/7",
        channel=Channel.VOICE, code="billing", reason="billing/roaming", notes="promised to check",
        request=request,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


# ---- state tables


def test_nobody_is_sent_without_an_order_and_a_call_begins_one() -> None:
    request = TicketRequest(kind="repair", priority="", category="", subject="No light", description="")
    ticket = engine.open_from_call(facts(request=request), RULES).ticket
    assert ticket.draft.dispatch == Dispatch(contact=NUMBER)
    with pytest.raises(engine.TransitionIncomplete) as error:
        engine.transition(ticket, act("dispatch"), RULES, NOW)
    assert error.value.values["missing"] == "dispatch,dispatch.engineer"
    order = replace(ticket.draft.dispatch, address="Nanjing Road 1", engineer="agents/9")
    filled = engine.update(ticket, replace(ticket.draft, dispatch=order), RULES, NOW, actor="ann").ticket
    assert after(filled, "dispatch", "need_parts", "resume", "arrive", "resolve").phase is Phase.RESOLVED
    bare = replace(opened(Kind.PARTS_REQUEST), draft=Draft(subject="Parts"))
    with pytest.raises(engine.TransitionIncomplete, match="parts"):
        engine.transition(bare, act("approve"), RULES, NOW)
    done = after(opened(Kind.PARTS_REQUEST), "approve", "order", "deliver", "return", "deliver", "close")
    assert done.phase is Phase.CLOSED


def test_a_complaint_goes_through_the_back_office_and_back() -> None:
    ticket = after(opened(Kind.COMPLAINT), "escalate")
    assert (ticket.state, ticket.phase) == ("back_office", Phase.ACTIVE)
    assert after(ticket, "return", "escalate", "wait", "resume", "resolve").phase is Phase.RESOLVED


@given(
    st.sampled_from(list(Kind)),
    st.lists(st.tuples(st.sampled_from(ALL_VERBS), st.integers(0, 3 * DAY)), max_size=40),
)
def test_random_walks_never_leave_the_table_and_illegal_verbs_change_nothing(
    kind: Kind, walk: list[tuple[str, int]]
) -> None:
    ticket, now = opened(kind), NOW
    for verb, wait in walk:
        now += wait
        legal = verb in allowed_verbs(ticket.flow, ticket.state)
        if not legal:
            before = ticket
            with pytest.raises(IllegalTransition) as error:
                engine.transition(ticket, act(verb), RULES, now)
            assert ticket == before
            assert error.value.values["allowed"] == ",".join(allowed_verbs(ticket.flow, ticket.state))
            continue
        change = engine.transition(ticket, act(verb), RULES, now)
        source, ticket = ticket, change.ticket
        flow = FLOWS[ticket.flow]
        (row,) = (row for row in flow.transitions if row.verb == verb and source.state in row.sources)
        assert ticket.state == row.target
        assert ticket.phase is flow.states[ticket.state]
        step = ticket.history[-1]
        assert (step.source, step.target, step.sequence) == (
            source.state,
            ticket.state,
            source.step_count + 1,
        )
        assert (ticket.resolved_ms is not None) >= (ticket.phase is Phase.RESOLVED)
        assert (ticket.closed_ms is not None) is (ticket.phase in (Phase.CLOSED, Phase.CANCELLED))
        due = engine.next_timer_ms(ticket)
        told = sum(isinstance(happening, Transitioned) for happening in change.happenings)
        assert told == 1
        if not ticket.is_open and not ticket.intents and ticket.follow_up is None:
            assert due is None
    assert len({step.sequence for step in ticket.history}) == len(ticket.history) == ticket.step_count


@pytest.mark.parametrize(("kind", "verb", "field"), [
    (Kind.COMPLAINT, "resolve", "resolution"),
    (Kind.INQUIRY, "cancel", "reason"),
    (Kind.RETURN_VISIT, "dissatisfied", "reason"),
])  # fmt: skip
def test_required_texts_are_named_and_nothing_changes(kind: Kind, verb: str, field: str) -> None:
    ticket = opened(kind)
    if verb == "resolve":
        ticket = after(ticket, "start")
    with pytest.raises(InvalidArgument) as error:
        engine.transition(ticket, Act(verb=verb, actor="ann", reason=" ", resolution="\n"), RULES, NOW)
    assert [violation.field for violation in error.value.details.field_violations] == [field]


@pytest.mark.parametrize(("changes", "field"), [
    ({"reason": "x" * 1025}, "reason"),
    ({"reason": "bell\x07"}, "reason"),
    ({"resolution": "é" * 32_769}, "resolution"),
    ({"score": 9}, "satisfaction_score"),
    ({"score": -1}, "satisfaction_score"),
    ({"score": 5}, "satisfaction_score"),
])  # fmt: skip
def test_bad_texts_and_scores_are_named(changes: dict[str, object], field: str) -> None:
    bad = replace(act("resolve"), **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as error:
        engine.transition(opened(), bad, RULES, NOW)
    assert [violation.field for violation in error.value.details.field_violations] == [field]


def test_history_never_runs_backwards() -> None:
    ticket = after(opened(), "start", now=NOW + 100)
    change = engine.transition(ticket, act("wait"), RULES, NOW)
    assert change.ticket.history[-1].time_ms == NOW + 100


# ---- resolution and return visit


def test_a_resolution_plans_one_visit_with_a_known_name() -> None:
    change = engine.transition(opened(), act("resolve"), RULES, NOW + 5)
    plan = change.ticket.follow_up
    assert plan is not None and not plan.created
    assert (plan.ticket_id, plan.schedule_ms, plan.number) == ("t1.visit-1", NOW + 5 + DAY, 1)
    assert Scheduled(follow_up=plan) in change.happenings
    assert engine.next_timer_ms(change.ticket) == NOW + 5 + DAY
    assert not engine.visit_due(change.ticket, NOW + 4 + DAY)
    assert engine.visit_due(change.ticket, NOW + 5 + DAY)


@pytest.mark.parametrize("kind", [Kind.RETURN_VISIT, Kind.FEE_ORDER, Kind.CARE, Kind.MARKET_SURVEY])
def test_internal_kinds_have_no_visit(kind: Kind) -> None:
    assert not FLOWS[kind.value].follow_up


def test_reopening_before_the_visit_forgets_it_and_the_next_resolution_has_another() -> None:
    ticket = after(opened(), "resolve", "reopen")
    assert ticket.follow_up is None and ticket.reopen_count == 1 and ticket.resolved_ms is None
    again = after(ticket, "resolve")
    assert again.follow_up is not None and again.follow_up.ticket_id == "t1.visit-2"


def test_closing_by_hand_forgets_a_visit_not_made_yet() -> None:
    ticket = after(opened(), "resolve", "close")
    assert ticket.follow_up is None and engine.next_timer_ms(ticket) is None


def test_leaving_resolved_by_hand_cancels_a_visit_that_exists() -> None:
    ticket = engine.visit_made(after(opened(), "resolve"), NOW).ticket
    reopened = after(ticket, "reopen")
    (intent,) = reopened.intents
    assert intent.kind is IntentKind.CANCEL_VISIT
    visit = opened(Kind.RETURN_VISIT)
    cancelled = engine.carry_out(intent, visit, RULES, NOW, cause="t1").ticket
    assert cancelled.phase is Phase.CANCELLED
    assert engine.carry_out(intent, cancelled, RULES, NOW, cause="t1").happenings == ()


def resolved_with_visit() -> tuple[Ticket, Ticket]:
    parent = after(opened(category="billing", customer_id="42"), "resolve")
    visit = engine.make_visit(parent, RULES, NOW + DAY).ticket
    return engine.visit_made(parent, NOW + DAY).ticket, visit


def test_the_visit_knows_whom_and_what_to_ask() -> None:
    parent, visit = resolved_with_visit()
    assert (visit.id, visit.parent_id, visit.kind) == ("t1.visit-1", "t1", Kind.RETURN_VISIT)
    assert visit.visit == Visit(number=1)
    assert (visit.draft.customer_id, visit.draft.caller_number) == ("42", NUMBER)
    assert parent.follow_up is not None and parent.follow_up.created
    assert not engine.visit_due(parent, NOW + 9 * DAY)


@pytest.mark.parametrize(("verb", "phase", "satisfied"), [
    ("satisfied", Phase.CLOSED, True),
    ("dissatisfied", Phase.ACTIVE, False),
])  # fmt: skip
def test_a_verdict_reaches_the_parent_once(verb: str, phase: Phase, satisfied: bool) -> None:
    parent, visit = resolved_with_visit()
    change = engine.transition(visit, act(verb, score=2), RULES, NOW + DAY)
    verdict = Visit(number=1, answered=True, satisfied=satisfied, score=2, comment="because")
    assert change.ticket.visit == verdict and Visited(visit=verdict) in change.happenings
    (intent,) = change.ticket.intents
    done = engine.carry_out(intent, parent, RULES, NOW + DAY, cause=visit.id)
    assert done.ticket.phase is phase
    assert done.ticket.history[-1].actor == f"tickets/{visit.id}"
    assert not done.ticket.intents
    assert [step.verb for step in done.ticket.history][:2] == ["open", "resolve"]
    assert engine.carry_out(intent, done.ticket, RULES, NOW + DAY, cause=visit.id).happenings == ()
    assert engine.without_intent(change.ticket, intent).intents == ()


def test_a_customer_who_cannot_be_reached_leaves_the_parent_closed() -> None:
    parent, visit = resolved_with_visit()
    gone = after(visit, "no_answer", "give_up")
    assert gone.visit == Visit(number=1, comment="because")
    closed = engine.carry_out(gone.intents[0], parent, RULES, NOW, cause=visit.id).ticket
    assert closed.phase is Phase.CLOSED


def test_a_late_verdict_about_an_earlier_resolution_changes_nothing() -> None:
    parent, visit = resolved_with_visit()
    newer = after(parent, "reopen", "resolve")
    verdict = engine.transition(visit, act("dissatisfied"), RULES, NOW).ticket.intents[0]
    assert engine.carry_out(verdict, newer, RULES, NOW, cause=visit.id).happenings == ()


# ---- updates and timers


def test_a_new_priority_sets_a_new_target_and_is_told() -> None:
    ticket = opened()
    hour = 3_600_000
    urgent = replace(ticket.draft, priority=Priority.URGENT)
    change = engine.update(ticket, urgent, RULES, NOW + hour // 6, actor="bob")
    assert change.happenings == (Updated(fields=("priority",), actor="bob"),)
    assert clocks.due_ms(change.ticket.sla.resolution) == NOW + 6 * hour
    late = engine.update(ticket, urgent, RULES, NOW + 7 * hour, actor="bob")
    assert [type(happening).__name__ for happening in late.happenings] == ["Breached", "Breached", "Updated"]


def test_an_update_that_changes_nothing_tells_nothing() -> None:
    ticket = opened()
    assert engine.update(ticket, ticket.draft, RULES, NOW + 1, actor="bob") == Change(ticket=ticket)


def test_breach_is_told_once_and_takes_its_timer_away() -> None:
    ticket = opened()
    due = engine.next_timer_ms(ticket)
    assert due == NOW + 3_600_000
    change = engine.breach(ticket, due)
    assert len(change.happenings) == 1
    assert engine.breach(change.ticket, due).happenings == ()
    assert engine.next_timer_ms(change.ticket) == NOW + DAY


def test_a_failed_timer_is_held_back() -> None:
    held = engine.postponed(opened(), NOW + 9 * DAY)
    assert engine.next_timer_ms(held) == NOW + 9 * DAY


# ---- calls


def test_a_call_opens_a_ticket_with_its_facts() -> None:
    ticket = engine.open_from_call(
        facts(profile=Profile(customer_id="42", version=1, tier="vip")), RULES
    ).ticket
    assert (ticket.id, ticket.creator, ticket.tier) == ("call-c1", "calls/c1", "vip")
    assert ticket.draft.customer_id == "42" and ticket.draft.priority is Priority.NORMAL
    assert ticket.calls[0].opened and ticket.calls[0].notes == "promised to check"
    assert ticket.phase is Phase.NEW and not ticket.first_contact_resolved
    assert ticket.open_key == "c:42|request|billing"


def test_a_matter_settled_in_the_call_is_resolved_at_once() -> None:
    change = engine.open_from_call(facts(resolved=True, follow_up_ms=NOW + 7), RULES)
    ticket = change.ticket
    assert ticket.phase is Phase.RESOLVED and ticket.first_contact_resolved
    assert ticket.resolution == "promised to check" and ticket.open_key == ""
    assert ticket.follow_up is not None and ticket.follow_up.schedule_ms == NOW + 7
    assert Scheduled(follow_up=ticket.follow_up) in change.happenings
    assert not after(ticket, "reopen").first_contact_resolved


def test_a_repair_is_not_resolved_by_talking() -> None:
    request = TicketRequest(kind="repair", priority="high", category="", subject="No signal", description="")
    ticket = engine.open_from_call(facts(resolved=True, request=request), RULES).ticket
    assert ticket.kind is Kind.REPAIR and ticket.phase is Phase.NEW


@given(st.builds(TicketRequest, kind=st.text(), priority=st.text(), category=st.text(), subject=st.text(),
                 description=st.text()),
       st.text(), st.text(), st.text())  # fmt: skip
def test_whatever_an_agent_typed_becomes_a_valid_ticket(
    request: TicketRequest, code: str, reason: str, notes: str
) -> None:
    from tickets.validation import check_draft

    change = engine.open_from_call(facts(request=request, code=code, reason=reason, notes=notes), RULES)
    check_draft(change.ticket.draft)
    assert change.ticket.kind is not Kind.RETURN_VISIT


def other_call(**changes: object) -> CallFacts:
    return facts("c2", time_ms=NOW + 60_000, **changes)


def joins(known: CallFacts, later: CallFacts) -> bool:
    ticket = engine.open_from_call(known, RULES).ticket
    kind, draft = engine.call_draft(later)
    return engine.joinable(kind, draft, [ticket]) == ticket


def asked(**changes: str) -> TicketRequest:
    request = facts().request
    assert request is not None
    return replace(request, **changes)


def test_which_open_ticket_a_repeat_call_joins() -> None:
    ann, bob = Profile(customer_id="ann", version=1), Profile(customer_id="bob", version=1)
    assert joins(facts(), other_call())
    assert joins(facts(), other_call(request=asked(subject="Again")))
    assert joins(facts(), other_call(profile=ann)), "the number was not known to be a customer's then"
    assert joins(facts(profile=ann), other_call(profile=ann, number="+4930123456"))
    assert joins(facts(request=asked(kind="complaint")), other_call())
    assert joins(facts(request=asked(category="")), other_call(request=asked(category="")))
    assert not joins(facts(), other_call(number="+4930123456"))
    assert not joins(facts(), other_call(request=asked(category="network")))
    assert not joins(facts(), other_call(request=asked(kind="complaint"))), "a complaint stays one"
    assert not joins(facts(profile=ann), other_call(profile=bob)), "one number, two people"
    assert not joins(facts(number=""), other_call(number="")), "withheld numbers are nobody's"
    assert not joins(facts(resolved=True), other_call()), "it is not open"
    assert not joins(facts(), other_call(request=asked(kind="fee_order")))


def test_the_newest_fitting_ticket_is_joined() -> None:
    old = engine.open_from_call(facts("old"), RULES).ticket
    new = engine.open_from_call(facts("new", time_ms=NOW + 1), RULES).ticket
    kind, draft = engine.call_draft(other_call())
    assert engine.joinable(kind, draft, [new, old]) == new


def test_attaching_keeps_the_call_raises_priority_and_is_harmless_twice() -> None:
    ticket = engine.open_from_call(facts(), RULES).ticket
    change = engine.attach_call(ticket, other_call(request=asked(priority="urgent")), RULES)
    assert [call.call_id for call in change.ticket.calls] == ["c1", "c2"]
    assert change.ticket.call_count == 2 and not change.ticket.calls[1].opened
    assert change.ticket.draft.priority is Priority.URGENT
    assert isinstance(change.happenings[0], Attached)
    assert engine.attach_call(change.ticket, other_call(), RULES).happenings == ()
    calmer = engine.attach_call(change.ticket, facts("c3", request=asked(priority="low")), RULES)
    assert calmer.ticket.draft.priority is Priority.URGENT


def test_calls_kept_are_bounded_and_the_first_stays() -> None:
    ticket = engine.open_from_call(facts("first"), RULES).ticket
    for n in range(CALLS_MAX + 20):
        ticket = engine.attach_call(ticket, facts(f"n{n}"), RULES).ticket
    assert len(ticket.calls) == CALLS_MAX and ticket.call_count == CALLS_MAX + 21
    assert ticket.calls[0].call_id == "first" and ticket.calls[-1].call_id == f"n{CALLS_MAX + 19}"


def test_the_place_of_an_open_ticket_is_given_up_when_nobody_could_find_its_holder() -> None:
    ticket = engine.open_from_call(facts(), RULES).ticket
    assert ticket.open_key == f"{NUMBER}|request|billing"
    moved = engine.update(ticket, replace(ticket.draft, category="network"), RULES, NOW, actor="ann").ticket
    assert moved.open_key == ""
    assert after(ticket, "cancel").open_key == ""
    assert after(ticket, "start").open_key == ticket.open_key


# ---- customers


def test_a_ticket_is_given_to_the_customer_its_number_turns_out_to_be() -> None:
    ticket = engine.open_from_call(facts(), RULES).ticket
    vip = Profile(customer_id="42", version=1, tier="vip", language="zh-CN")
    change = engine.adopt(ticket, vip, RULES, NOW)
    assert change.ticket.draft.customer_id == "42" and change.ticket.tier == "vip"
    assert change.ticket.sla.rule == "inquiry/normal/vip"
    assert change.happenings == (Updated(fields=("customer", "language", "customer_tier"), actor="system"),)
    assert engine.adopt(change.ticket, vip, RULES, NOW).happenings == ()


def test_erasure_leaves_nothing_personal_and_is_harmless_twice() -> None:
    ticket = after(engine.open_from_call(facts(), RULES).ticket, "resolve")
    erased = engine.erase(ticket, NOW).ticket
    text = repr(erased)
    for word in (NUMBER, "promised", "too high", "because", "done so", "Bill"):
        assert word not in text
    assert erased.phase is ticket.phase and erased.step_count == ticket.step_count
    assert engine.erase(erased, NOW + 1).happenings == ()
