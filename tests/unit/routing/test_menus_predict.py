"""What is predicted for one caller, and what tickets' events have to do with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo.errors import DuplicateKeyError
from tests.unit.routing.routing_menus import index

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from routing.menus import inbound, predict
from routing.menus.documents import OpenTicketDocument
from routing.menus.predict import DAY_MS, Use

NOW_MS = 1_772_431_200_000
HOTLINE = index()
LEAVES = ["balance", "pay", "order", "expert", "reset", "request"]


def uses(*rows: tuple[str, float]) -> list[Use]:
    """Leaf and days ago."""
    return [Use(leaf=leaf, at_ms=NOW_MS - int(days * DAY_MS)) for leaf, days in rows]


def test_what_was_wanted_lately_and_often_is_wanted_again() -> None:
    found = predict.wants(
        HOTLINE, uses(("pay", 40), ("expert", 10), ("expert", 3), ("gone", 2), ("bills", 1)), False, NOW_MS
    )
    assert found["expert"] > found["pay"] and set(found) == {"expert", "pay"}
    assert sum(found.values()) < 1
    again = predict.wants(HOTLINE, uses(("expert", 3), ("expert", 10), ("pay", 0.01)), False, NOW_MS)
    assert again["pay"] > again["expert"], "who calls again at once calls about the same"
    assert predict.wants(HOTLINE, [], True, NOW_MS) == {"request": pytest.approx(2 / 3)}


def test_a_level_is_told_only_where_it_spares_something() -> None:
    assert predict.personal_level(HOTLINE, {}, "zh") is None
    assert predict.personal_level(HOTLINE, {"request": 0.9}, "zh") is None, "one key already"
    assert predict.personal_level(HOTLINE, {"expert": 0.05}, "zh") is None, "others would listen in vain"
    level = predict.personal_level(HOTLINE, {"order": 0.8}, "zh")
    assert level is not None and level.choices == (("5", "order"),) and not level.before


def test_what_is_predicted_leaves_the_keys_of_own_short_cuts_alone() -> None:
    likely = {"order": 0.8}
    among = predict.personal_level(HOTLINE, likely, "zh", "5")
    assert among is not None and among.choices == (("6", "order"),) and not among.before
    before = predict.personal_level(HOTLINE, likely, "zh", "56789")
    assert before is None, "no key is left among the root's, nor one for everything else before it"
    before = predict.personal_level(HOTLINE, likely, "zh", "5678")
    assert before is not None and before.choices == (("9", "order"),)
    # The root has 1 itself, so the short cut's 1 works behind the hash alone and may be used.
    assert predict.personal_level(HOTLINE, likely, "zh", "1") == predict.personal_level(HOTLINE, likely, "zh")


@settings(max_examples=30, deadline=None)
@given(weights=st.dictionaries(st.sampled_from(LEAVES), st.floats(0.01, 1.0), max_size=6))
def test_a_personal_level_never_costs_more_than_it_spares(weights: dict[str, float]) -> None:
    total = sum(weights.values()) + 0.2
    wanted = {leaf: weight / total for leaf, weight in weights.items()}
    level = predict.personal_level(HOTLINE, wanted, "zh")
    if level is None:
        return
    assert predict._gain(HOTLINE, level, wanted, "zh") > 0
    keys = [key for key, _ in level.choices]
    assert len(set(keys)) == len(keys) <= 3
    if not level.before:
        assert not {child.digit for child in HOTLINE.menu.root.children} & set(keys)
    assert predict.personal_level(HOTLINE, dict(reversed(wanted.items())), "zh") == level


@settings(max_examples=60, deadline=None)
@given(minutes=st.integers(0, 60 * 24 * 3), hours=st.integers(-11, 12))
def test_call_backs_are_within_hours_and_rise(minutes: int, hours: int) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC).astimezone(timezone(timedelta(hours=hours))) + timedelta(
        minutes=minutes
    )
    times = predict.callback_times(now)
    assert len(times) == predict.TIMES_MAX and list(times) == sorted(set(times))
    for at_ms in times:
        at = datetime.fromtimestamp(at_ms / 1000, now.tzinfo) if at_ms else now
        assert predict.FIRST_HOUR <= at.hour < predict.LAST_HOUR
        assert not at_ms or at - now >= predict.TIMES_AFTER
        assert predict.say_time(at_ms, now, "en") and predict.say_time(at_ms, now, "zh")


def ticket(version: int, phase: int, number: str = "+8613800138000", name: str = "tickets/7") -> Event:
    snapshot = tickets_events.TicketSnapshot(
        ticket=name,
        version=version,
        phase=phase,  # type: ignore[arg-type]
        caller_number=number,
    )
    message = tickets_events.TicketTransitioned(ticket=snapshot)
    return Event.of(message, source="tickets", subject=name, time=datetime(2026, 3, 2, tzinfo=UTC))


class Kept(dict[str, tuple[str, int, bool]]):
    def keep(self, ticket: str, number: str, version: int, *, open: bool) -> None:
        self[ticket] = (number, version, open)

    def forget(self, customer: str) -> None:
        self.clear()


class Raced:
    """A collection into which another process puts an older word just before the first upsert."""

    def __init__(self) -> None:
        self.word: dict[str, Any] = {}

    def update_one(self, wanted: dict[str, Any], change: dict[str, Any], *, upsert: bool = False) -> None:
        if not self.word and upsert:
            self.word = {"version": 1, "open": True}
            raise DuplicateKeyError("taken")
        if self.word["version"] < wanted["version"]["$lt"]:
            self.word = change["$set"]
        elif upsert:
            raise DuplicateKeyError("taken")


def test_the_newest_word_on_a_ticket_stays_though_an_older_one_comes_first_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tickets = Raced()
    monkeypatch.setattr(OpenTicketDocument, "_get_collection", lambda: tickets)
    for version, open in ((4, False), (3, True), (4, False)):
        inbound.MongoCallers().keep("7", "+8613800138000", version, open=open)
        assert (tickets.word["version"], tickets.word["open"]) == (4, False)


def test_tickets_are_known_as_open_or_not() -> None:
    kept = Kept()
    inbound.hear(kept, ticket(3, ticket_pb2.TICKET_PHASE_ACTIVE))
    assert kept == {"7": ("+8613800138000", 3, True)}
    inbound.hear(kept, ticket(4, ticket_pb2.TICKET_PHASE_RESOLVED))
    assert kept == {"7": ("+8613800138000", 4, False)}
    inbound.hear(kept, ticket(5, ticket_pb2.TICKET_PHASE_NEW, number=""))
    assert kept["7"][1] == 4, "a ticket without a number is nobody's"
    stub = crm_events.CustomerErased(customer=crm_events.CustomerSnapshot(customer="customers/li"))
    inbound.hear_erased(
        kept, Event.of(stub, source="crm", subject="customers/li", time=datetime(2026, 3, 2, tzinfo=UTC))
    )
    assert not kept
    for bad in (ticket(0, 1), ticket(1, 1, name="7")):
        with pytest.raises(InvalidArgument):
            inbound.hear(kept, bad)
