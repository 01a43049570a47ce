"""The two books: honest days pass, a planted loss and a planted double booking are found."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cli.demo.ledger import (
    Conversation,
    Entry,
    Fact,
    Ledger,
    conversations,
    double_booked,
    lost_calls,
    recovery,
    tally,
    untaken_calls,
)


def entry(call: str, fact: Fact, at: float, **fields: str) -> Entry:
    return Entry(call=call, fact=fact, at=at, business=at * 100, **fields)


def book(*entries: Entry) -> Ledger:
    ledger = Ledger()
    for one in entries:
        ledger.write(one)
    return ledger


def honest_day(seed: int, calls: int, agents: int) -> Ledger:
    """Calls served one after another by each agent, some hang up, some break off and are taken up again."""
    rng = random.Random(seed)
    free_at = [0.0] * agents
    entries: list[Entry] = []
    for number in range(calls):
        call, at = f"c{number}", number + rng.random()
        entries += [entry(call, Fact.ASKED, at), entry(call, Fact.QUEUED, at + 0.01, region="r")]
        if rng.random() < 0.2:
            entries.append(entry(call, Fact.HUNG_UP, at + 0.1))
            continue
        parts = 2 if rng.random() < 0.1 else 1
        for part in range(parts):
            agent = min(range(agents), key=lambda a: free_at[a])
            start = max(at + 0.05, free_at[agent])
            end = start + rng.expovariate(1.0) + 1e-6
            free_at[agent], at = end, end
            name = f"a{agent}"
            entries.append(entry(call, Fact.BRIDGED, start, agent=name, region="r"))
            last = part == parts - 1
            entries.append(entry(call, Fact.TALKED if last else Fact.BROKEN, end, agent=name, region="r"))
            if not last:
                entries.append(entry(call, Fact.REOPENED, end + 1e-7))
    ledger = Ledger()
    for one in sorted(entries, key=lambda e: e.at):
        ledger.write(one)
    return ledger


days = st.builds(honest_day, st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 5))


@given(days)
def test_an_honest_day_has_no_loss_and_no_double_booking(ledger: Ledger) -> None:
    assert lost_calls(ledger) == []
    assert untaken_calls(ledger) == []
    assert double_booked(conversations(ledger)) == {}


@given(days, st.integers(0, 10_000))
def test_a_planted_loss_is_found(ledger: Ledger, pick: int) -> None:
    victims = sorted(ledger.by_call())
    victim = victims[pick % len(victims)]
    kept = Ledger()
    ends = (Fact.TALKED, Fact.HUNG_UP)
    for one in ledger.entries:
        if one.call != victim or one.fact not in ends:
            kept.write(one)
    assert lost_calls(kept) == [victim]


@given(days, st.integers(0, 10_000))
def test_a_planted_double_booking_is_found(ledger: Ledger, pick: int) -> None:
    spans = conversations(ledger)
    if not spans:
        return
    victim = spans[pick % len(spans)]
    middle = (victim.start + victim.end) / 2
    planted = Conversation(agent=victim.agent, call="other", start=middle, end=middle + 100)
    assert victim.agent in double_booked([*spans, planted])


def test_what_is_lost_and_what_is_not() -> None:
    def ends_with(fact: Fact, *, acknowledged: bool = True) -> Ledger:
        middle = [entry("c", Fact.QUEUED, 2)] if acknowledged else []
        return book(entry("c", Fact.ASKED, 1), *middle, entry("c", fact, 3))

    assert lost_calls(ends_with(Fact.DROPPED)) == ["c"]
    assert lost_calls(ends_with(Fact.GAVE_UP)) == ["c"]
    assert lost_calls(ends_with(Fact.BROKEN)) == ["c"]
    assert lost_calls(ends_with(Fact.REOPENED)) == ["c"]
    assert lost_calls(book(entry("c", Fact.QUEUED, 1))) == ["c"]
    for good in (Fact.TALKED, Fact.HUNG_UP, Fact.REFUSED, Fact.STILL_WAITING):
        assert lost_calls(ends_with(good)) == []
    assert lost_calls(ends_with(Fact.GAVE_UP, acknowledged=False)) == []
    assert untaken_calls(ends_with(Fact.GAVE_UP, acknowledged=False)) == ["c"]


def test_back_to_back_conversations_do_not_overlap() -> None:
    spans = [
        Conversation(agent="amy", call="one", start=1.0, end=2.0),
        Conversation(agent="amy", call="two", start=2.0, end=3.0),
        Conversation(agent="bob", call="three", start=1.5, end=2.5),
    ]
    assert double_booked(spans) == {}


def test_a_short_call_inside_a_long_one_is_found_behind_another() -> None:
    spans = [
        Conversation(agent="amy", call="long", start=0.0, end=10.0),
        Conversation(agent="amy", call="short", start=1.0, end=2.0),
        Conversation(agent="amy", call="late", start=5.0, end=6.0),
    ]
    assert double_booked(spans) == {"amy": ("long", "short")}
    assert double_booked([spans[0], spans[2]]) == {"amy": ("long", "late")}


def test_a_call_bridged_twice_at_once_closes_its_first_conversation() -> None:
    ledger = book(
        entry("c", Fact.BRIDGED, 1, agent="amy"),
        entry("c", Fact.BRIDGED, 2, agent="bob"),
        entry("c", Fact.TALKED, 3, agent="bob"),
    )
    assert [(s.agent, s.start, s.end) for s in conversations(ledger)] == [("amy", 1, 2), ("bob", 2, 3)]


def test_an_open_conversation_runs_on() -> None:
    ledger = book(entry("c", Fact.BRIDGED, 1, agent="amy"))
    assert conversations(ledger)[0].end == float("inf")


def test_the_tally_of_a_small_day() -> None:
    ledger = book(
        entry("home", Fact.ASKED, 1), entry("home", Fact.QUEUED, 1.1, region="x"),
        entry("home", Fact.BRIDGED, 1.2, region="x", agent="amy"), entry("home", Fact.TALKED, 2, agent="amy"),
        entry("away", Fact.ASKED, 1), entry("away", Fact.QUEUED, 1.1, region="x"),
        entry("away", Fact.MOVED, 1.2, region="y"),
        entry("away", Fact.BRIDGED, 1.4, region="y", agent="bob"), entry("away", Fact.TALKED, 2, agent="bob"),
        entry("gone", Fact.ASKED, 1), entry("gone", Fact.QUEUED, 1.1, region="x"),
        entry("gone", Fact.HUNG_UP, 1.5),
        entry("full", Fact.ASKED, 1), entry("full", Fact.REFUSED, 1.5, why="QUEUE_FULL"),
    )  # fmt: skip
    found = tally(ledger, {"home": "x", "away": "x", "gone": "x", "full": "x"})
    assert (found.offered, found.answered_at_home, found.rerouted, found.reopened) == (4, 1, 1, 0)
    assert [round(wait) for wait in found.answered_waits] == [20, 40]
    assert [round(wait) for wait in found.abandoned_waits] == [50]
    assert found.refused == {"QUEUE_FULL": 1}


def test_recovery_is_measured_from_the_kill() -> None:
    ledger = book(
        entry("waiting", Fact.ASKED, 1), entry("waiting", Fact.QUEUED, 2, region="lost"),
        entry("talking", Fact.ASKED, 1), entry("talking", Fact.BRIDGED, 3, region="lost", agent="amy"),
        entry("other", Fact.ASKED, 1), entry("other", Fact.QUEUED, 3, region="safe"),
        entry("talking", Fact.BROKEN, 10, region="lost"), entry("talking", Fact.REOPENED, 10),
        entry("new", Fact.ASKED, 10.5), entry("talking", Fact.QUEUED, 11, region="safe"),
        entry("new", Fact.QUEUED, 12.5, region="safe"), entry("waiting", Fact.REOPENED, 11),
        entry("waiting", Fact.QUEUED, 13, region="safe"), entry("other", Fact.HUNG_UP, 20),
    )  # fmt: skip
    found = recovery(ledger, "lost", 10.0, {"new": "lost"})
    assert (found.affected, found.worst_seconds, found.first_new_call_seconds) == (2, 3.0, 2.5)
    nobody = recovery(ledger, "quiet", 10.0, {})
    assert (nobody.affected, nobody.worst_seconds, nobody.first_new_call_seconds) == (0, None, None)
