"""Half-hour reports: counted right, and once, however often the counting breaks off."""

from __future__ import annotations

from collections import Counter as Count
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from tests.unit.routing.routing_journals import MINUTE, T0, Journal, busy_day

from chassis.testing.lease import ScriptedLease
from routing import codec
from routing.journal import Block
from routing.model import (
    BEFORE_CONNECTION,
    CloseSession,
    ConfigureQueue,
    DeclineOffer,
    EndCall,
    FinishWrapUp,
    HangUp,
    PauseAgent,
    RequestCallback,
    TransferCall,
    WithdrawCall,
)
from routing.publish import UnreadableBlock
from routing.reports import AGENT, QUEUE, SLOT_MS, WAIT_BOUNDS_MS, Counter, Row, Rows, slot_of, wait_class
from routing.reports_feed import BROKEN_SECONDS_MIN, Reports, ShardReports
from routing.reports_store import MemoryReports
from routing.state import ShardState, evolve
from routing.testing import MemoryBlocks, MemoryTail
from routing.views import view_call


def counted(journal: Journal) -> dict[tuple[str, str, int], dict[str, int]]:
    journal.block()
    rows = Rows(lambda start_ms: ())
    counter = Counter("beijing", rows)
    for block in journal.blocks.of("beijing"):
        counter.count(block)
    return figures_of(rows.changed())


def figures_of(rows: list[Row]) -> dict[tuple[str, str, int], dict[str, int]]:
    return {row.key: row.figures for row in rows if any(row.figures.values())}


def test_a_call_from_ringing_to_wrapped_up() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.wait(20 * MINUTE)
    journal.place("c1")
    journal.wait(7_000)
    journal.connect("c1")
    journal.wait(20 * MINUTE)
    journal.do(EndCall(call_id="c1"))
    journal.wait(10_000)
    journal.do(FinishWrapUp(agent="ann", session=1, call_id="c1"))
    journal.wait(5_000)
    journal.do(CloseSession(agent="ann", session=1))
    found = counted(journal)
    first, second = T0, T0 + SLOT_MS
    assert found[(QUEUE, "service", first)] == {
        "offered": 1,
        "answered": 1,
        "answered_in_target": 1,
        "wait_ms": 7_000,
        "wait_max_ms": 7_000,
        "answered_class_1": 1,
    }
    assert found[(QUEUE, "service", second)] == {
        "handled": 1,
        "talk_ms": 20 * MINUTE,
        "wrap_up_ms": 10_000,
    }
    assert found[(AGENT, "ann", first)] == {
        "offered": 1,
        "answered": 1,
        "answered_in_target": 1,
        "wait_ms": 7_000,
        "time_available_ms": 20 * MINUTE,
        "time_reserved_ms": 7_000,
        "time_on_call_ms": 10 * MINUTE - 7_000,
    }
    assert found[(AGENT, "ann", second)] == {
        "handled": 1,
        "talk_ms": 20 * MINUTE,
        "wrap_up_ms": 10_000,
        "time_on_call_ms": 10 * MINUTE + 7_000,
        "time_wrap_up_ms": 10_000,
        "time_available_ms": 5_000,
    }


def test_what_came_to_nothing() -> None:
    journal = Journal()
    journal.place("short")
    journal.wait(5_000)
    journal.do(HangUp(call_id="short", attempt=1))
    journal.place("long")
    journal.wait(61_000)
    journal.do(HangUp(call_id="long", attempt=1))
    journal.place("moved")
    journal.do(WithdrawCall(call_id="moved", attempt=1, move=2))
    journal.agent("ann")
    journal.place("missed")
    journal.wait(16_000)
    offer = view_call(journal.state, "missed").offer_id
    if offer:
        journal.do(DeclineOffer(agent="ann", session=1, offer_id=offer))
    found = counted(journal)[(QUEUE, "service", T0)]
    assert {k: v for k, v in found.items() if "class" in k} == {
        "abandoned_class_1": 1,
        "abandoned_class_5": 1,
    }
    assert (found["short_abandoned"], found["abandoned"], found["moved"]) == (1, 1, 1)
    assert found["offered"] == 4 and found["missed"] == 1
    assert found["abandoned_wait_ms"] == 66_000 and found["wait_max_ms"] == 61_000


def test_a_transfer_is_offered_to_the_other_queue() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.place("c1")
    journal.connect("c1")
    journal.wait(3 * MINUTE)
    journal.do(TransferCall(call_id="c1", queue="sales"))
    found = counted(journal)
    service, sales = found[(QUEUE, "service", T0)], found[(QUEUE, "sales", T0)]
    assert (service["transferred"], service["handled"], service["talk_ms"]) == (1, 1, 3 * MINUTE)
    assert sales == {"offered": 1}
    assert found[(AGENT, "ann", T0)]["transferred"] == 1


@pytest.mark.parametrize("then", ["", "service", "sales"])
def test_after_call_work_of_who_handed_on_is_that_of_the_queue_that_was_served(then: str) -> None:
    """Whether its call is ended meanwhile there, or handed on again, first within its queue, too."""
    journal = Journal()
    for agent in ("ann", "bob"):
        journal.agent(agent)
    journal.place("c1")
    journal.connect("c1")
    first = view_call(journal.state, "c1").agent
    journal.do(TransferCall(call_id="c1", queue="service" if then == "sales" else "sales"))
    journal.connect("c1")
    journal.wait(2_000)
    journal.do(TransferCall(call_id="c1", queue=then) if then else EndCall(call_id="c1"))
    journal.wait(10_000)
    journal.do(FinishWrapUp(agent=first, session=1, call_id="c1"))
    found = counted(journal)
    assert found[(QUEUE, "service", T0)]["wrap_up_ms"] == 12_000
    assert "wrap_up_ms" not in found[(QUEUE, "sales", T0)]
    assert found[(AGENT, first, T0)]["wrap_up_ms"] == 12_000
    tallies = journal.state.tallies
    assert (tallies["service"].wrapped, tallies["sales"].wrapped) == (1, 0)


@pytest.mark.parametrize("finished", [True, False])
def test_a_call_is_remembered_while_who_handed_it_on_is_at_after_call_work(finished: bool) -> None:
    """What came of it is still to be told, though whoever took it over ended it at once."""
    journal = Journal()
    journal.do(ConfigureQueue(queue=replace(journal.state.queues["service"], wrap_up_span_ms=60 * MINUTE)))
    for agent in ("ann", "bob"):
        journal.agent(agent)
    journal.place("c1")
    journal.connect("c1")
    first = view_call(journal.state, "c1").agent
    journal.do(TransferCall(call_id="c1", queue="sales"))
    journal.connect("c1")
    journal.do(EndCall(call_id="c1"))
    journal.wait(20 * MINUTE)
    if finished:
        answer = journal.do(FinishWrapUp(agent=first, session=1, call_id="c1"))
        assert answer.refusal is None
    else:
        journal.wait(40 * MINUTE)
    assert "c1" in journal.state.calls
    assert not journal.state.agents[first].wraps
    spans: Count[tuple[str, str]] = Count()
    for key, figures in counted(journal).items():
        spans[key[:2]] += figures.get("wrap_up_ms", 0)
    span_ms = (20 if finished else 60) * MINUTE
    assert +spans == {(QUEUE, "service"): span_ms, (AGENT, first): span_ms}
    assert journal.state.tallies["service"].wrapped == 1
    journal.wait(60 * MINUTE)
    assert "c1" not in journal.state.calls


@pytest.mark.parametrize("closed", [False, True])
def test_a_call_back_that_is_given_up_before_its_time_did_not_wait_for_it(closed: bool) -> None:
    journal = Journal()
    journal.place("c1")
    journal.wait(4_000)
    later_ms = journal.now_ms + 20 * MINUTE
    journal.do(RequestCallback(call_id="c1", number="+8613800138000", not_before_ms=later_ms))
    journal.wait(10 * MINUTE)
    if closed:
        closing = replace(journal.state.queues["service"], closed=True)
        journal.do(ConfigureQueue(queue=closing))
        journal.wait(1)
    else:
        journal.do(EndCall(call_id="c1"))
    call, tally = view_call(journal.state, "c1"), journal.state.tallies["service"]
    assert call.ended_ms - call.queued_ms == 4_000, "as its event says"
    found = counted(journal)[(QUEUE, "service", T0)]
    if closed:
        assert (found["refused"], tally.refused) == (1, 1)
    else:
        assert (found["short_abandoned"], found["abandoned_wait_ms"], found["wait_max_ms"]) == (
            1,
            4_000,
            4_000,
        )
        assert (tally.short_abandoned, tally.abandoned) == (1, 0)


def test_a_call_back_for_another_number_or_time_is_the_one_that_was_promised() -> None:
    journal = Journal()
    journal.place("c1")
    for number, later in (("+8613800138000", 0), ("+8613900139000", 0), ("+8613900139000", MINUTE)):
        not_before_ms = journal.now_ms + later if later else 0
        journal.do(RequestCallback(call_id="c1", number=number, not_before_ms=not_before_ms))
    assert counted(journal)[(QUEUE, "service", T0)]["callbacks"] == 1


def test_a_quiet_day_is_counted_in_its_half_hours_and_a_week_of_silence_is_not() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.do(PauseAgent(agent="ann", paused=True, reason="lunch"))
    journal.block()
    journal.now_ms += 5 * SLOT_MS + 1
    found = counted(journal)
    paused = {key[2]: f["time_paused_ms"] for key, f in found.items() if key[0] == AGENT}
    assert paused == {T0 + i * SLOT_MS: SLOT_MS for i in range(5)}
    silent = Journal()
    silent.agent("ann")
    silent.block()
    silent.now_ms += 7 * 48 * SLOT_MS
    assert not [key for key in counted(silent) if key[0] == AGENT]


@pytest.mark.parametrize("wait_ms", [0, 1, 4_999, 5_000, 9_999, 10_000, 299_999, 300_000, 10**9])
def test_classes_of_waits(wait_ms: int) -> None:
    bounds = (0, *WAIT_BOUNDS_MS, 10**12)
    assert bounds[wait_class(wait_ms)] <= wait_ms < bounds[wait_class(wait_ms) + 1]


def test_an_unreadable_block_is_said_to_be_one() -> None:
    journal = Journal()
    journal.block()
    block = journal.blocks.of("beijing")[-1]
    counter = Counter("beijing", Rows(lambda start_ms: ()))
    with pytest.raises(UnreadableBlock):
        counter.count(Block(**{**_fields(block), "body": b"\xc1"}))
    with pytest.raises(UnreadableBlock):
        counter.count(Block(**{**_fields(block), "format": codec.FORMAT + 1}))


def _fields(block: Block) -> dict[str, Any]:
    return {name: getattr(block, name) for name in Block.__dataclass_fields__}


# --- laws ---


def reference(journal: Journal) -> dict[tuple[str, int, str], int]:
    """Agents' time by (agent, half-hour, state), walked state by state."""
    state = ShardState("beijing")
    since: dict[str, tuple[int, str]] = {}
    spans: Count[tuple[str, int, str]] = Count()

    def close(agent: str, until: int) -> None:
        begin, name = since[agent]
        while begin < until:
            end = min(until, slot_of(begin) + SLOT_MS)
            spans[(agent, slot_of(begin), name)] += end - begin
            begin = end

    last = T0
    for block in journal.blocks.of("beijing"):
        for at_ms, event in codec.decode_events(block.body, block.now_ms):
            evolve(state, event, at_ms)
            last = state.now_ms
            for agent, entry in state.agents.items():
                if agent not in since or since[agent][1] != entry.state.value:
                    if agent in since:
                        close(agent, last)
                    since[agent] = (last, entry.state.value)
        last = state.now_ms = max(state.now_ms, block.now_ms)
    for agent in since:
        # What is not over yet is counted up to the half-hour's beginning.
        close(agent, max(since[agent][0], slot_of(last)))
    return {key: span for key, span in spans.items() if key[2] != "offline"}


def waiting(state: ShardState, queue: str) -> int:
    calls = state.calls.values()
    return sum(call.facts.queue == queue and call.state in BEFORE_CONNECTION for call in calls)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_figures_agree_with_the_leaders_own_and_with_a_slow_reference(seed: int) -> None:
    journal = busy_day(seed)
    found = counted(journal)
    for queue, tally in journal.state.tallies.items():
        total: Count[str] = Count()
        for (kind, subject, _), figures in found.items():
            if (kind, subject) == (QUEUE, queue):
                total.update(figures)
        for name in ("offered", "answered", "answered_in_target", "abandoned", "short_abandoned", "handled"):
            assert total[name] == getattr(tally, name), name
        assert total["wait_ms"] == tally.wait_total_ms
        ends = ("answered", "abandoned", "short_abandoned", "refused", "moved")
        assert total["offered"] == sum(total[name] for name in ends) + waiting(journal.state, queue)
        answered = sum(n for name, n in total.items() if name.startswith("answered_class"))
        abandoned = sum(n for name, n in total.items() if name.startswith("abandoned_class"))
        assert answered == tally.answered and abandoned == tally.abandoned + tally.short_abandoned
    times = {
        (agent, start, name.removeprefix("time_").removesuffix("_ms")): span
        for (kind, agent, start), figures in found.items()
        for name, span in figures.items()
        if kind == AGENT and name.startswith("time_") and span
    }
    assert times == reference(journal)


@given(seed=st.integers(0, 10**6), breaks=st.lists(st.integers(0, 9), max_size=12), upto=st.integers(5, 60))
@settings(max_examples=8, deadline=None)
def test_counting_that_breaks_off_counts_once(seed: int, breaks: list[int], upto: int) -> None:
    journal = busy_day(seed, steps=50)
    expected = counted(journal)
    store, clock = MemoryReports(), Stopwatch()
    partial = MemoryBlocks()
    for block in journal.blocks.of("beijing")[:upto]:
        partial.put(block)
    feeds = [ShardReports("beijing", MemoryTail(partial), store, clock) for _ in range(2)]
    for number, breaks_after in enumerate(breaks):
        if number == len(breaks) // 2:
            for block in journal.blocks.of("beijing"):
                partial.put(block)
        store.breaks_after = breaks_after
        clock.seconds += 2
        feed = feeds[number % 2]
        try:
            feed.step()
        except ConnectionError:
            feed.restart()
    store.breaks_after = None
    for block in journal.blocks.of("beijing"):
        partial.put(block)
    for _ in range(8):
        # Each may have been overtaken by the other, and then begins again.
        clock.seconds += 2
        for feed in feeds:
            feed.step()
    assert figures_of(list(store.rows.values())) == expected
    assert store.cursors["beijing"].sequence == journal.blocks.newest("beijing")


class Stopwatch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_gap_stops_a_shard_for_a_while_and_is_mended() -> None:
    journal, store, clock = busy_day(1, steps=20), MemoryReports(), Stopwatch()
    journal.block()
    whole = journal.blocks.of("beijing")
    journal.blocks.remove("beijing", 2)
    feed = ShardReports("beijing", MemoryTail(journal.blocks), store, clock)
    clock.seconds = 2
    assert feed.step() == 0 and not store.rows
    journal.blocks.put(whole[1])
    assert feed.step() == 0, "it rests"
    clock.seconds += BROKEN_SECONDS_MIN
    assert feed.step() == len(whole)
    clock.seconds += 2
    feed.step()
    assert store.rows


def test_only_who_has_the_lease_counts() -> None:
    journal, store, clock, lease = busy_day(2, steps=20), MemoryReports(), Stopwatch(), ScriptedLease()
    journal.block()
    lease.granted = False
    reports = Reports(MemoryTail(journal.blocks), store, lease, monotonic=clock)
    rounds: list[float] = []

    def stopping(seconds: float) -> bool:
        clock.seconds += seconds + 1
        rounds.append(seconds)
        lease.granted = len(rounds) >= 3
        if len(rounds) < 3:
            assert not store.rows
        return len(rounds) > 8

    reports.run(stopping)
    assert store.rows and lease.released == 1


def test_who_counts_no_longer_speaks_for_no_stopped_shard() -> None:
    journal, clock, lease = busy_day(1, steps=20), Stopwatch(), ScriptedLease()
    journal.block()
    journal.blocks.remove("beijing", 2)
    reports = Reports(MemoryTail(journal.blocks), MemoryReports(), lease, monotonic=clock)
    told: list[float | None] = []

    def stopping(seconds: float) -> bool:
        told.append(REGISTRY.get_sample_value("callmesh_reports_shard_stopped", {"shard": "beijing"}))
        lease.held, lease.granted = False, len(told) < 2
        return len(told) > 2

    reports.run(stopping)
    assert told[1:] == [1, 0]


def test_old_half_hours_are_forgotten() -> None:
    journal, store, clock = Journal(), MemoryReports(), Stopwatch()
    journal.place("old")
    journal.block()
    feed = ShardReports("beijing", MemoryTail(journal.blocks), store, clock)
    clock.seconds = 2
    feed.step()
    assert [key[3] for key in store.rows] == [T0]
    journal.now_ms += 402 * 86_400_000
    journal.place("new")
    journal.block()
    clock.seconds += 2
    feed.step()
    assert [key[3] for key in store.rows] == [slot_of(journal.now_ms)]
