"""What a screen pop shows and says."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm import glance, timeline
from crm.model import CachedOffer, Fact, Interaction, InteractionKind, OfferRanking, RecentCalls

SHANGHAI = "Asia/Shanghai"


def offer(id: str) -> CachedOffer:
    return CachedOffer(offer=f"offers/{id}", titles={"en": id}, reasons={})


def past_call(began: datetime, state: str = "COMPLETED", resolved: bool | None = None) -> Interaction:
    fact = Fact(
        kind=InteractionKind.CALL,
        source="routing",
        source_id="x",
        facet="ended",
        stamp=(1, 1, 1, 1),
        values={"state": state},
        began_ms=int(began.timestamp() * 1000),
    )
    entry = timeline.entry_of(fact)
    if resolved is not None:
        wrapped = {"resolved": resolved}
        entry = timeline.merge(
            entry,
            Fact(
                kind=fact.kind, source=fact.source, source_id="x", facet="wrapped", stamp=(1, 1, 1, 2),
                values=wrapped, began_ms=fact.began_ms,
            ),
        )  # fmt: skip
    return timeline.project(entry)


@pytest.mark.parametrize(
    ("now", "zone", "start"),
    [
        (datetime(2026, 3, 2, 9, 0, tzinfo=UTC), SHANGHAI, datetime(2026, 3, 1, 16, 0, tzinfo=UTC)),
        (datetime(2026, 3, 1, 15, 59, tzinfo=UTC), SHANGHAI, datetime(2026, 2, 28, 16, 0, tzinfo=UTC)),
        # The day on which New York loses an hour.
        (
            datetime(2026, 3, 8, 20, 0, tzinfo=UTC),
            "America/New_York",
            datetime(2026, 3, 8, 5, 0, tzinfo=UTC),
        ),
    ],
)
def test_today_is_the_day_where_the_customer_is(now: datetime, zone: str, start: datetime) -> None:
    assert glance.day_start_ms(now, zone) == int(start.timestamp() * 1000)


def test_third_call_today() -> None:
    calls = RecentCalls(today=2, last=past_call(datetime(2026, 3, 2, 2, 42, tzinfo=UTC), resolved=False))
    assert glance.repeat_notice("en", calls, SHANGHAI) == "third call today, last at 10:42, not resolved"
    assert glance.repeat_notice("zh", calls, SHANGHAI) == "今天第3次来电，上次 10:42，未解决"


@pytest.mark.parametrize(
    ("state", "resolved", "words"),
    [
        ("COMPLETED", True, "resolved"),
        ("COMPLETED", None, ""),
        ("ABANDONED", None, "not answered"),
        ("INTERRUPTED", None, "cut off"),
    ],
)
def test_the_last_calls_outcome_in_words(state: str, resolved: bool | None, words: str) -> None:
    calls = RecentCalls(today=1, last=past_call(datetime(2026, 3, 2, 2, 42, tzinfo=UTC), state, resolved))
    notice = glance.repeat_notice("en", calls, SHANGHAI)
    assert notice == ", ".join(part for part in ("second call today", "last at 10:42", words) if part)


def test_nothing_is_said_of_calls_before_today() -> None:
    yesterday = past_call(datetime(2026, 3, 1, 2, 0, tzinfo=UTC))
    assert glance.repeat_notice("en", RecentCalls(today=0, last=yesterday), SHANGHAI) == ""


@pytest.mark.parametrize(
    ("today", "words"),
    [(10, "11th"), (20, "21st"), (21, "22nd"), (110, "111th"), (9, "tenth"), (1000, "1001st")],
)  # fmt: skip
def test_large_ordinals(today: int, words: str) -> None:
    calls = RecentCalls(today=today, last=past_call(datetime(2026, 3, 2, 2, 0, tzinfo=UTC)))
    assert glance.repeat_notice("en", calls, SHANGHAI).startswith(f"{words} call today")


def test_the_greeting_follows_language_hour_and_name() -> None:
    morning = datetime(2026, 3, 2, 1, 0, tzinfo=UTC)
    assert glance.greeting("zh", "张伟", morning, SHANGHAI, again=False).startswith(
        "张伟，早上好，感谢您的来电"
    )
    assert "再次" in glance.greeting("zh", "张伟", morning, SHANGHAI, again=True)
    assert glance.greeting("en", "Ann", morning, "UTC", again=False).startswith(
        "Good evening, Ann, thank you"
    )
    assert glance.greeting("en", "", morning, SHANGHAI, again=True).startswith("Good morning, thank you for")


@pytest.mark.parametrize(
    ("tag", "language"),
    [("zh-CN", "zh"), ("zh", "zh"), ("en-GB", "en"), ("fr", "en"), ("", "zh"), ("zha", "en")],
)
def test_texts_are_in_a_language_that_the_customer_reads(tag: str, language: str) -> None:
    assert glance.pop_language(tag, "zh") == language


changes = st.one_of(
    st.tuples(st.just("rank"), st.integers(1, 6), st.sampled_from(["d1", "d2"])),
    st.tuples(st.just("answer"), st.integers(1, 6), st.sampled_from(["o1", "o2", "o3"])),
)


def changed(ranking: OfferRanking, change: tuple[str, int, str]) -> OfferRanking:
    what, at_ms, id = change
    if what == "rank":
        return glance.with_ranking(
            ranking, (at_ms, id), tuple(offer(f"o{i}") for i in range(1, 2 + at_ms % 3)), None
        )
    return glance.with_answer(ranking, f"offers/{id}", at_ms)


@given(st.lists(changes, max_size=12), st.randoms(use_true_random=False))
def test_rankings_and_answers_may_come_in_any_order_any_number_of_times(
    story: list[tuple[str, int, str]], chance: random.Random
) -> None:
    nothing = OfferRanking(subject="c:1")
    shuffled = story + chance.choices(story, k=len(story)) if story else []
    chance.shuffle(shuffled)
    assert reduce(changed, shuffled, nothing) == reduce(changed, story, nothing)


def test_an_answered_or_stale_offer_is_not_shown() -> None:
    ranking = glance.with_ranking(
        OfferRanking(subject="c:1"), (100, "d"), (offer("a"), offer("b")), expires_ms=1_000
    )
    assert [o.offer for o in glance.offers_to_show([ranking], 500)] == ["offers/a", "offers/b"]
    assert [o.offer for o in glance.offers_to_show([glance.with_answer(ranking, "offers/a", 150)], 500)] == [
        "offers/b"
    ]
    assert glance.offers_to_show([glance.with_answer(ranking, "offers/a", 99)], 500)[0].offer == "offers/a"
    assert glance.offers_to_show([ranking], 1_000) == ()
    assert glance.offers_to_show([], 0) == glance.offers_to_show([OfferRanking(subject="x")], 0) == ()


def test_the_newest_ranking_counts_whether_made_for_the_customer_or_his_number() -> None:
    old = glance.with_ranking(OfferRanking(subject="n:1"), (100, "d"), (offer("a"),), None)
    new = glance.with_ranking(OfferRanking(subject="c:1"), (200, "e"), (offer("b"),), None)
    assert [o.offer for o in glance.offers_to_show([old, new], 500)] == ["offers/b"]


def test_answers_are_bounded() -> None:
    ranking = OfferRanking(subject="c:1")
    for number in range(200):
        ranking = glance.with_answer(ranking, f"offers/{number}", number)
    assert len(ranking.answers) == glance.ANSWERS_MAX and "offers/199" in ranking.answers


def test_the_most_urgent_ticket_comes_first() -> None:
    def ticket(id: str, priority: str, due_ms: int | None) -> Interaction:
        values = {"ticket": id, "priority": priority, "due_ms": due_ms, "open": True}
        fact = Fact(
            kind=InteractionKind.TICKET, source="tickets", source_id=id, facet="snapshot", stamp=(1,),
            values=values, began_ms=0,
        )  # fmt: skip
        return timeline.project(timeline.entry_of(fact))

    found = [
        ticket("a", "LOW", 1),
        ticket("b", "URGENT", None),
        ticket("c", "URGENT", 5),
        ticket("d", "", 2),
        ticket("e", "NORMAL", 1),
    ]
    assert [t.detail["ticket"] for t in glance.most_urgent(found)] == ["c", "b", "e", "d", "a"]
    assert len(glance.most_urgent(found * 10)) == glance.POP_TICKETS_MAX
