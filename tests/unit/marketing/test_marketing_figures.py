"""What managers are told: reports add up, goals are judged fairly, intervals are as wide as they must be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.marketing.marketing_examples import NOW, cny

from callmesh.marketing.v1 import campaigns_pb2 as C
from callmesh.marketing.v1 import reports_pb2 as R
from chassis.testing import FakeClock
from marketing import judged, learned
from marketing.campaign_engine import endangered, may_follow
from marketing.campaigns import experiment, outlook
from marketing.learned import Policies, Propensities, Uplifts, logged
from marketing.memory_store import MemoryStore
from marketing.model import Considered, Contact, Decision, Outcome, RankedOffer, Reason, ReasonCode, Result
from marketing.offline import Treated, compare, uplift
from marketing.policy import Policy, first_chances
from marketing.propensity import Propensity
from marketing.reports_servicer import ReportServicer

DAY = timedelta(days=1)


def ranked(offer: str = "o1", rank: int = 1) -> RankedOffer:
    return RankedOffer(
        offer=offer, revision=1, product=offer, titles=(), price=cny("10"), worth=cny("7"), rank=rank,
        score=1.0, probability=0.1, propensity=1.0,
        reason=Reason(
            code=ReasonCode.POPULARITY, texts=(), because_product="", share=0.1, customer_count=9, lift=1.0
        ),
    )  # fmt: skip


def decision(id: str, created: datetime, outcome: Outcome | None, **changes: Any) -> Decision:
    whole = {
        "customer": "c1",
        "number": "",
        "contact": Contact(agent="agents/a1"),
        "offers": (ranked(),),
        **changes,
    }
    return Decision(id=id, outcome=outcome, created_at=created, expires_at=created + DAY, **whole)


#: (minute in which it was made, minutes until it was closed or None, what became of it, whether there was
#: anything to offer).
made = st.tuples(
    st.integers(0, 4 * 1_440),
    st.none() | st.integers(0, 2 * 1_440),
    st.sampled_from(list(Result)),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(made, max_size=8), st.integers(1, 4 * 1_440))
def test_a_report_is_the_sum_of_its_parts(decisions: list[Any], cut: int) -> None:
    store = MemoryStore()
    start, end = NOW, NOW + 4 * DAY

    async def fill() -> None:
        for number, (minute, later, result, shown) in enumerate(decisions):
            created = NOW - DAY + timedelta(minutes=minute)
            outcome = None
            if later is not None and shown:
                outcome = Outcome(offer="o1", result=result, at=created + timedelta(minutes=later))
            offers = (ranked(),) if shown else ()
            one = decision(f"d{number}", created, outcome, offers=offers)
            await store.log_decision(one, (), request_key=None, fingerprint=None)

    asyncio.run(fill())
    servicer = ReportServicer(store.shelves, store, FakeClock(NOW), "CNY", 400)

    def report(start: datetime, end: datetime) -> Counter[tuple[str, str]]:
        request = R.GetProfitReportRequest(dimensions=[R.REPORT_DIMENSION_DAY])
        request.interval.start_time.FromDatetime(start)
        request.interval.end_time.FromDatetime(end)
        found = servicer.GetProfitReport(request, None)
        days = {row.keys[0] for row in found.rows}
        assert all(f"{start:%Y-%m-%d}" <= day <= f"{end:%Y-%m-%d}" for day in days), "a day of another span"
        rows, whole = figures(found.rows), figures([found.total])
        assert {name: sum(n for (_, one), n in rows.items() if one == name) for _, name in whole} == {
            name: n for (_, name), n in whole.items()
        }
        return rows

    def figures(rows: Iterable[Any]) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for row in rows:
            key = row.keys[0] if row.keys else ""
            found[key, "offered"] += row.offered_count
            found[key, "accepted"] += row.accepted_count
            found[key, "revenue"] += int(Decimal(row.revenue.amount))
        return found

    middle = start + timedelta(minutes=cut)
    parts = report(start, middle) if middle > start else Counter()
    if middle < end:
        parts += report(middle, end)
    assert +parts == +report(start, end)


def test_a_goal_is_judged_by_its_own_days_and_by_who_can_be_reached() -> None:
    phase = C.Phase(phase_id="invite")
    phase.period.start_time.FromDatetime(NOW)
    phase.period.end_time.FromDatetime(NOW + 10 * DAY)
    campaign = C.Campaign(phases=[phase])
    rows = [C.FunnelRow(phase_id="invite", value_class="A", entered_count=150, interested_count=30)]
    rows.append(C.FunnelRow(phase_id="invite", value_class="B", entered_count=60, interested_count=50))

    def judged(days: float, target: int, closed: tuple[str, ...] = (), **goal: Any) -> tuple[int, bool]:
        metric = {"metric": C.GOAL_METRIC_INTERESTED, **goal}
        found = outlook(
            C.Goal(phase_id="invite", target=target, **metric), campaign, rows, NOW + days * DAY, closed
        )
        return found.projected, found.endangered

    assert judged(8, 100) == (100, False) and judged(8.5, 100) == (94, True)
    # Started on the eighth day: 80 within half a day of two.
    campaign.start_time.FromDatetime(NOW + 8 * DAY)
    assert judged(8.5, 100) == (320, False)
    # All who belong to the segment are in the phase: 210, 60 of them of class B.
    assert judged(8.5, 300, ("invite",)) == (210, True) and judged(8.1, 211, ("invite",))[1]
    assert judged(8.5, 60, ("invite",), value_class="B") == (60, False)
    assert judged(8.5, 61, ("invite",), value_class="B") == (60, True)
    assert not endangered(100, 100, NOW, NOW + DAY, NOW + DAY, 100)


@pytest.mark.parametrize(
    ("touch", "hours"),
    [
        (None, 0),
        (("FAILED", NOW), 0),
        # Left an hour ago; was to be said when the person came, three hours ago.
        (("SENT", NOW - timedelta(hours=1)), 1),
        (("WAITING", NOW - timedelta(hours=3)), -1),
        # Waits for the end of quiet hours; waited for the end of a pause, and leaves any moment.
        (("QUEUED", NOW + timedelta(hours=5)), 7),
        (("QUEUED", NOW - timedelta(days=3)), 2),
        (("SENDING", NOW - timedelta(hours=1)), 2),
    ],
)
def test_the_time_to_answer_begins_when_the_message_leaves(
    touch: tuple[str, datetime] | None, hours: int
) -> None:
    assert may_follow(touch, timedelta(hours=2), NOW) == NOW + timedelta(hours=hours)


def test_without_a_stopping_rule_nobody_wins() -> None:
    class Counted:
        def arms(self, *_: Any) -> dict[str, list[int]]:
            return {"a": [2_000, 20], "b": [2_000, 400]}

    step = C.Step(step_id="sms", variants=[C.Variant(variant_id=id) for id in "ab"])
    campaign = C.Campaign(name="campaigns/k", phases=[C.Phase(phase_id="p", steps=[step])])
    store: Any = Counted()
    assert experiment(campaign, "p", "sms", store)[1] == ""
    campaign.phases[0].steps[0].stopping_rule.metric = C.GOAL_METRIC_BOUGHT
    assert experiment(campaign, "p", "sms", store)[1] == "b"


def test_one_customer_is_one_piece_of_evidence_however_often_they_are_met() -> None:
    log = [
        Treated(customer=f"c{n}", offered=n % 2 == 0, value=float(n % 5 == 0), predicted=0.0)
        for n in range(200)
    ]
    once, often = uplift(log), uplift([entry for entry in log for _ in range(9)])
    assert often.value == pytest.approx(once.value)
    assert often.upper - often.lower == pytest.approx(once.upper - once.lower)
    alone = uplift([replace(entry, customer=f"{entry.offered}") for entry in log])
    assert alone.lower == alone.value == alone.upper, "of one customer an arm nothing is known"


def judging(days: Iterable[int], most: int, monkeypatch: pytest.MonkeyPatch) -> Policies:
    """Policies on a log with a closed decision each so many days ago, of which at most some are looked at."""
    store = MemoryStore()
    candidate = Considered(offer="o1", product="o1", base=0.1, probability=0.1, worth=7.0, chance=1.0)

    async def fill() -> None:
        for number, ago in enumerate(days):
            outcome = Outcome(offer="o1", result=Result.DECLINED, at=NOW)
            one = decision(f"d{number:05}", NOW - ago * DAY, outcome, considered=(candidate,))
            await store.log_decision(one, (), request_key=None, fingerprint=None)

    asyncio.run(fill())
    monkeypatch.setattr(judged, "PAGE", 7)
    monkeypatch.setattr(learned, "JUDGED_MAX", most)
    clock = FakeClock(NOW)
    propensities = Propensities(store.shelves, store, clock, 3)
    return Policies(store.shelves, store, clock, propensities, Policy())


def test_a_policy_is_judged_by_all_decisions_of_the_span_however_many_came_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = judging([*[100] * 60, *[1] * 200], 60, monkeypatch)
    found = policies.evaluate(Policy(), "", NOW - 101 * DAY, NOW - 99 * DAY)
    assert (found.count, found.examined, found.truncated) == (60, 60, False)
    cut = policies.evaluate(Policy(), "", NOW - 101 * DAY, NOW)
    assert (cut.count, cut.examined, cut.truncated) == (60, 60, True)


def test_the_effect_of_offers_is_learned_however_many_were_made_lately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was offered in the last fortnight has no effect yet: it must not take the others' places."""
    monkeypatch.setattr(learned, "DECISIONS_MAX", 50)
    policies = judging([*[20] * 30, *[1] * 100], 1, monkeypatch)
    uplifts = Uplifts(policies._shelves, policies._store, policies._clock, 3)
    assert len(uplifts.examples()) == 30


@pytest.mark.parametrize("model", ["", "propensity-000001"])
def test_the_policy_in_force_would_have_earned_what_it_earned(model: str) -> None:
    """Also where a new offer stood at the end of the candidates though more was expected of it."""
    policy, chosen = Policy(), Propensity(model=model, weights={"bias": 0.1} if model else {})
    chances = first_chances(policy, 3, 10**9)
    looked_at = tuple(
        Considered(offer=id, product=id, base=chance, probability=chance, worth=10.0, chance=first)
        for id, chance, first in zip(("a", "b", "new"), (0.3, 0.2, 0.4), chances, strict=True)
    )
    asked = model or "association-000001"
    log = []
    for number, (one, result) in enumerate(
        [(0, Result.ACCEPTED), (0, Result.DECLINED), (1, Result.DECLINED), (2, Result.ACCEPTED)]
    ):
        first = looked_at[one]
        outcome = Outcome(offer=first.offer, result=result, at=NOW)
        done = decision(
            f"d{number}", NOW, outcome, offers=(ranked(first.offer),), considered=looked_at,
            propensity=first.chance, model=asked,
        )  # fmt: skip
        log.append(logged(done, policy, chosen))
    found = compare(log)
    assert [entry.target for entry in log] == [entry.chance for entry in log]
    assert found.inverse_propensity.value == found.logged.value == found.self_normalised.value == 5.0
