"""However often and in whatever order reports arrive, the timeline is the same."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from crm import timeline
from crm.model import CallState, Entry, Fact, InteractionKind


def call(
    facet: str, stamp: tuple[int, ...], state: str = "", began_ms: int = 1_000, **values: object
) -> Fact:
    told = {"number": "+8613800000001", **({"state": state} if state else {}), **values}
    return Fact(
        kind=InteractionKind.CALL,
        source="routing",
        source_id="call-1",
        facet=facet,
        stamp=stamp,
        values=told,
        began_ms=began_ms,
    )


def grown(facts: list[Fact]) -> Entry:
    return reduce(timeline.merge, facts[1:], timeline.entry_of(facts[0]))


STORY = [
    call("queued", (1, 1, 5, 10), "WAITING", 1_000, queue="queues/bills", region="regions/beijing"),
    call("ended", (1, 1, 5, 11), "MOVING", reason="OVERFLOW", ended_ms=2_000, region="regions/beijing"),
    call("queued", (1, 2, 3, 90), "WAITING", 1_000, queue="queues/bills", region="regions/chengdu"),
    call("connected", (1, 2, 3, 95), "CONNECTED", 1_000, connect_ms=9_000, wait_ms=8_000, agent="agents/a7"),
    call("ended", (1, 2, 3, 99), "COMPLETED", 1_000, ended_ms=60_000, talk_ms=51_000, wait_ms=8_000,
         connect_ms=9_000, agent="agents/a7"),
    call("wrapped", (1, 2, 3, 104), "", 70_000, disposition="billing-explained", resolved=False,
         contact_reason="billing/roaming", agent="agents/a7", notes="", wants_to_leave=True),
]  # fmt: skip

versions = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 6))
reports = st.builds(
    lambda facet, stamp, state, began, agent: call(
        facet, stamp, state if facet != "wrapped" else "", began, agent=agent
    ),
    st.sampled_from(["queued", "connected", "ended", "wrapped"]),
    versions,
    st.sampled_from(["WAITING", "CONNECTED", "COMPLETED", "ABANDONED", "MOVING"]),
    st.integers(0, 10_000),
    st.sampled_from(["", "agents/a", "agents/b"]),
)


@given(st.lists(reports, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_of_any_reports_gives_the_same_interaction(
    facts: list[Fact], chance: random.Random
) -> None:
    shuffled = facts + chance.choices(facts, k=len(facts))
    chance.shuffle(shuffled)
    assert grown(shuffled) == grown(facts)
    assert timeline.project(grown(shuffled)) == timeline.project(grown(facts))


@given(st.permutations(STORY), st.lists(st.sampled_from(STORY), max_size=6))
def test_a_calls_story_ends_the_same_however_it_is_told(order: list[Fact], again: list[Fact]) -> None:
    seen = timeline.project(grown([*order, *again]))
    assert seen.detail["state"] == CallState.COMPLETED
    assert (seen.detail["attempt"], seen.detail["move"]) == (1, 2)
    assert (seen.agent, seen.region, seen.contact_reason) == (
        "agents/a7",
        "regions/chengdu",
        "billing/roaming",
    )
    assert (seen.began_ms, seen.ended_ms) == (1_000, 60_000)
    assert seen.detail["resolved"] is False and seen.detail["wants_to_leave"] is True
    assert not seen.open


def test_being_moved_is_not_the_end() -> None:
    moved = timeline.project(grown(STORY[:2]))
    assert moved.detail["state"] == CallState.MOVING and moved.open and moved.ended_ms is None
    assert timeline.project(grown(STORY[:3])).detail["state"] == CallState.WAITING


def test_a_second_attempt_outweighs_the_end_of_the_first() -> None:
    interrupted = call("ended", (1, 2, 3, 99), "INTERRUPTED", ended_ms=5_000)
    reopened = call("queued", (2, 1, 1, 1), "WAITING")
    for order in ([interrupted, reopened], [reopened, interrupted]):
        seen = timeline.project(grown(order))
        assert seen.detail["state"] == CallState.WAITING and seen.open and seen.ended_ms is None


def test_queued_and_refused_in_one_block_is_refused() -> None:
    queued, refused = call("queued", (1, 1, 5, 10), "WAITING"), call("ended", (1, 1, 5, 10), "REFUSED")
    for order in ([queued, refused], [refused, queued]):
        assert timeline.project(grown(order)).detail["state"] == CallState.REFUSED


def test_after_call_work_alone_tells_that_the_call_is_over() -> None:
    assert timeline.project(grown([STORY[-1]])).detail["state"] == CallState.COMPLETED
    assert timeline.project(grown([STORY[3], STORY[-1]])).detail["state"] == CallState.COMPLETED


def test_a_report_that_tells_nothing_new_changes_nothing() -> None:
    entry = grown(STORY)
    assert all(timeline.merge(entry, fact) is entry for fact in STORY)


def ticket(version: int, *, open: bool, customer: str = "", number: str = "+8613800000001") -> Fact:
    values = {
        "ticket": "tickets/t1",
        "open": open,
        "subject": f"v{version}",
        "customer": customer,
        "number": number,
        "changed_ms": version * 1_000,
    }
    return Fact(
        kind=InteractionKind.TICKET,
        source="tickets",
        source_id="t1",
        facet="snapshot",
        stamp=(version,),
        values=values,
        began_ms=500,
    )


@given(st.permutations([ticket(v, open=v < 4) for v in range(1, 5)]))
def test_the_newest_snapshot_of_a_ticket_counts(order: list[Fact]) -> None:
    seen = timeline.project(grown(order))
    assert (seen.summary, seen.open, seen.ended_ms) == ("v4", False, 4_000)


def test_whose_timeline_it_is() -> None:
    entry = timeline.entry_of(ticket(1, open=True))
    assert timeline.subject_for(entry, None) == "n:+8613800000001"
    assert timeline.subject_for(entry, "c9") == "c:c9"
    known = replace(entry, subject="c:c1")
    assert timeline.subject_for(known, "c9") == "c:c1", "numbers change hands, history does not"
    assert timeline.subject_for(timeline.merge(known, ticket(2, open=True, customer="c5")), "c9") == "c:c5"
    assert timeline.subject_for(timeline.entry_of(ticket(1, open=True, number="")), None) == ""


def test_ids_follow_from_the_source_and_do_not_meet() -> None:
    ids = {
        timeline.entry_id(kind, source, id)
        for kind in InteractionKind
        for source, id in (("a", "bc"), ("ab", "c"), ("a", 'b","c'))
    }
    assert len(ids) == 3 * len(InteractionKind)
    assert timeline.entry_id(InteractionKind.CALL, "routing", "x" * 10_000).isalnum()
