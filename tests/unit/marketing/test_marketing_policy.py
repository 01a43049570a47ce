"""Experiments, off-line estimates, learning and campaigns' pure rules."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import bson
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.marketing.marketing_examples import NOW, offer

from callmesh.marketing.v1 import events_pb2, recommendations_pb2
from chassis.bus.event import Event
from chassis.mongo import pending_entry
from marketing import wire
from marketing.association import RuleTable
from marketing.campaign_engine import (
    Arm,
    Cap,
    Courtesy,
    Quiet,
    StepChannel,
    capped,
    endangered,
    fill,
    quiet_until,
    variant_of,
    winner,
)
from marketing.documents import _ranked_fields, decision_fields, decision_raw, pending_raw, ranked_raw
from marketing.learning import phone
from marketing.learning.baskets import Baskets, baselines, bought, purchases
from marketing.learning.metrics import calibration_error, hit_and_recall
from marketing.learning.offers import Example, learn
from marketing.model import Channel, Considered, Contact, Decision, NoOffer, Outcome, Profile, Result, Text
from marketing.offline import Logged, Treated, compare, qini, spread_of, uplift
from marketing.policy import Policy, arrange, first_chances, held_out
from marketing.propensity import Propensity, corrected, traits
from marketing.ranking import Ranker

MANY = 10_000


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 10), st.sampled_from([0.0, 0.05, 0.2, 0.5]))
def test_logged_propensities_are_those_of_the_draws(count: int, limit: int, ratio: float) -> None:
    chances = first_chances(Policy(exploration_ratio=ratio), count, MANY)
    assert sum(chances) == pytest.approx(1)
    # Every list that can come out, with its chance: places' propensities must add up over the lists.
    shown: dict[tuple[int, int], float] = {}
    propensities: dict[tuple[int, int], float] = {}
    below = 0.0
    for chance in chances:
        if chance <= 0:
            continue
        places, whole = arrange(chances, limit, min(below + chance / 2, 1 - 1e-12))
        assert whole == pytest.approx(chance)
        for at, place in enumerate(places):
            shown[place.candidate, at] = shown.get((place.candidate, at), 0.0) + chance
            propensities[place.candidate, at] = place.propensity
        below += chance
    for key, propensity in propensities.items():
        assert propensity == pytest.approx(shown[key])


def test_the_holdout_is_a_fixed_share_and_begins_with_enough_customers() -> None:
    policy = Policy(holdout_ratio=0.1)
    held = {f"c{number}" for number in range(5_000) if held_out(policy, f"c{number}", MANY)}
    assert 400 < len(held) < 600
    assert all(held_out(policy, customer, MANY) for customer in held)
    assert not any(held_out(policy, customer, 10) for customer in held)
    assert not held_out(policy, "", MANY)


@pytest.mark.parametrize(("often", "length"), [(0.7, 400), (0.98, 300)])
def test_estimates_hold_the_truth_as_often_as_they_say(often: float, length: int) -> None:
    draw = random.Random(5)
    chances, target, success = (often, 1 - often), (0.2, 0.8), (0.2, 0.5)
    inside = {"inverse_propensity": 0, "self_normalised": 0, "doubly_robust": 0}
    # The model is off by a third: what it says of the spread must do.
    spread = spread_of(zip(chances, target, (0.3, 0.35), (1.0, 1.0), strict=True))
    for _ in range(100):
        log = []
        for _ in range(length):
            action = 0 if draw.random() < often else 1
            log.append(
                Logged(
                    chance=chances[action],
                    target=target[action],
                    reward=float(draw.random() < success[action]),
                    expected=0.3,
                    expected_target=0.3,
                    spread=spread,
                )
            )
        found = compare(log)
        for name in inside:
            estimate = getattr(found, name)
            inside[name] += estimate.lower <= 0.44 <= estimate.upper
    assert all(count >= 88 for count in inside.values()), inside
    with pytest.raises(ValueError, match="nothing"):
        compare([])


def test_uplift_and_qini_tell_who_is_moved() -> None:
    draw = random.Random(3)
    log = []
    for _ in range(4_000):
        moved, offered = draw.random() < 0.5, draw.random() < 0.5
        value = float(draw.random() < (0.5 if moved and offered else 0.1))
        log.append(Treated(offered=offered, value=value, predicted=float(moved) + draw.random() / 10))
    gain = uplift(log)
    assert gain.lower > 0.1 and gain.upper < 0.3
    assert qini(log) > 0.01
    assert qini([Treated(offered=True, value=1.0, predicted=1.0)]) == 0.0


#: Kinds of customers: their share, how many buy of themselves, and what being offered something adds to that.
KINDS = ((0.3, 0.2, 0.3), (0.4, 0.3, 0.0), (0.3, 0.3, -0.2))
#: The mean effect, 0.09 - 0.06, and the area of the curve with the kinds in this order: it rises by 0.3 over
#: the first 30 %, is level, and falls by 0.2 over the last 30 %; the straight line ends at 0.03.
MEAN_EFFECT = 0.03
QINI = 0.09 * 0.3 / 2 + 0.09 * 0.4 + (0.09 + 0.03) / 2 * 0.3 - MEAN_EFFECT / 2


def dealt(
    draw: random.Random, count: int, held: float, leave: float, *, logged: bool = True
) -> list[Treated]:
    """Decisions under a model that lets through those it does good, and a share of those it harms."""
    log = []
    for _ in range(count):
        kind = draw.choices(range(3), [share for share, _, _ in KINDS])[0]
        _, own, effect = KINDS[kind]
        chance = (1 - held) * (1.0 if effect >= 0 else leave)
        offered = draw.random() < chance
        if not logged and not offered and draw.random() >= held / (1 - chance):
            continue  # left alone by the model, and not by the holdout: was not looked at
        bought = draw.random() < own + (effect if offered else 0)
        log.append(
            Treated(offered=offered, value=float(bought), predicted=effect, chance=chance if logged else None)
        )
    return log


def test_uplift_and_qini_are_unbiased_where_a_model_decides_whom_to_leave_alone() -> None:
    draw = random.Random(11)
    worlds = 200
    gains, areas, inside = [], [], 0
    for _ in range(worlds):
        log = dealt(draw, 2_000, held=0.1, leave=0.15)
        gain = uplift(log)
        gains.append(gain.value)
        areas.append(qini(log))
        inside += gain.lower <= MEAN_EFFECT <= gain.upper
    for found, truth in ((gains, MEAN_EFFECT), (areas, QINI)):
        error = statistics.stdev(found) / worlds**0.5
        assert abs(statistics.mean(found) - truth) < 3.5 * error, (statistics.mean(found), truth, error)
    assert inside >= 0.92 * worlds
    # Without the chances those let through are taken for everybody.
    blind = statistics.mean(uplift(dealt(draw, 2_000, 0.1, 0.15, logged=False)).value for _ in range(30))
    assert blind > MEAN_EFFECT + 0.05


def test_who_is_never_offered_anything_is_compared_with_nobody() -> None:
    draw = random.Random(2)
    log = dealt(draw, 6_000, held=0.2, leave=0.0)
    # Of those who may be offered something 3 of 7 are moved by 0.3.
    gain = uplift(log)
    assert gain.lower < 0.9 / 7 < gain.upper and gain.upper - gain.lower < 0.1
    alone = [replace(entry, chance=0.0, offered=False) for entry in log]
    assert uplift(alone).value == 0.0 and qini(alone) == 0.0


def test_the_event_says_what_protobufs_own_json_says() -> None:
    ranked = Ranker([offer(), offer(id="o2", product="tv")], RuleTable()).rank(
        Profile(customer="c1"), Contact(), NOW, 3
    )
    worthless = [
        structs.replace(line, score=float("0"), probability=float("0"), propensity=-0.0) for line in ranked
    ]
    for offers, why in ((ranked, None), (tuple(worthless), None), ((), NoOffer.HOLDOUT)):
        decision = Decision(
            id="d1",
            customer="c1",
            number="+8613800138000",
            contact=Contact(call_id="x", agent="agents/7"),
            offers=offers,
            no_offer=why,
            created_at=NOW,
            expires_at=NOW + timedelta(milliseconds=1),
        )
        event = Event.from_json(wire.recommendation_told(decision).body)
        assert MessageToDict(event.message(events_pb2.RecommendationMade)) == event.data
        # The second time from what was kept of the first.
        for told in (wire.recommendation_told(decision), wire.recommendation_told(decision)):
            assert Event.from_json(told.body) == event
            assert (told.id, told.source, told.type, told.traceparent) == (
                event.id, event.source, event.type, event.traceparent
            )  # fmt: skip
            # As it waits in the outbox.
            assert bson.decode(pending_raw(told)) == pending_entry(told)


def test_a_line_encoded_beforehand_is_the_line() -> None:
    (line,) = Ranker([offer()], RuleTable()).rank(Profile(customer="c1"), Contact(), NOW, 3)
    for made in (line, structs.replace(line, rank=7, score=0.25, probability=0.5, propensity=0.125)):
        assert bson.decode(ranked_raw(made)) == bson.decode(bson.encode(_ranked_fields(made)))


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_a_decision_encoded_beforehand_is_the_decision(count: int, holdout: bool) -> None:
    ranked = Ranker([offer(id=f"o{n}", product=f"p{n}") for n in range(count)], RuleTable()).rank(
        Profile(customer="c1"), Contact(), NOW, count
    )
    made = Decision(
        id="d1",
        customer="c1" if count else "",
        number="+8613800138000",
        contact=Contact(call_id="x", channel=Channel.VOICE, products_asked=("p1", "p2"), reason="账单"),
        offers=() if holdout else ranked,
        no_offer=NoOffer.HOLDOUT if holdout else None,
        holdout=holdout,
        held_chance=0.02 if count else None,
        leave=0.05 if holdout else 1.0,
        considered=tuple(Considered(one.offer, one.product, 0.25, 0.5, 59.9, 1e-9) for one in ranked),
        traits=traits(Profile(customer="c1", tier="金"), Contact()),
        created_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    told = wire.recommendation_told(made)
    for about, events in (({"version": 1, "created_at": NOW}, [told]), ({"version": 1}, [])):
        plain = {"_id": "d1", **about, **decision_fields(made), "outbox": [pending_entry(e) for e in events]}
        assert bson.decode(decision_raw(made, events, about).raw) == bson.decode(bson.encode(plain))


def test_a_line_of_an_answer_is_what_protobuf_makes_of_it() -> None:
    long = offer(titles=(Text(language="zh", text="流量" * 60), Text(language="en", text="x")))
    (line,) = Ranker([long], RuleTable()).rank(Profile(customer="c1"), Contact(), NOW, 3)
    lines = (line, structs.replace(line, rank=300, score=0.25, probability=0.5, propensity=0.125))
    made = Decision(
        id="d1",
        customer="c1",
        number="",
        contact=Contact(),
        offers=lines,
        no_offer=None,
        created_at=NOW,
        expires_at=NOW,
    )
    for _ in range(2):
        answer = wire.decision_to_proto(made)
        assert len(answer.offers[0].SerializeToString()) > 127
        for told, entry in zip(answer.offers, lines, strict=True):
            expected = wire._still_proto(entry)
            expected.rank, expected.score = entry.rank, entry.score
            expected.acceptance_probability, expected.propensity = entry.probability, entry.propensity
            assert told == expected


@pytest.mark.parametrize("outcome", [None, Outcome(offer="o2", result=Result.DECLINED, at=NOW)])
@pytest.mark.parametrize(
    "contact", [Contact(), Contact(call_id="x", channel=Channel.VOICE, agent="agents/7")]
)
@pytest.mark.parametrize("figures", [{}, {"score": 0.0}, {"score": 0.0, "probability": 0.0}])
def test_an_answer_put_together_is_what_protobuf_writes_of_it(
    outcome: Outcome | None, contact: Contact, figures: dict[str, float]
) -> None:
    ranked = Ranker([offer(), offer(id="o2", product="tv")], RuleTable()).rank(
        Profile(customer="c1"), contact, NOW, 3
    )
    made = Decision(
        id="d1",
        customer="" if figures else "c1",
        number="+8613800138000",
        contact=contact,
        offers=tuple(structs.replace(line, **figures) for line in ranked),
        no_offer=None,
        model="m",
        outcome=outcome,
        created_at=NOW,
        expires_at=NOW + timedelta(milliseconds=1),
    )
    for _ in range(2):
        encoded = wire.decision_wire(made)
        answer = recommendations_pb2.Decision.FromString(encoded)
        # Fields in the order of their numbers, none with its default: the very bytes.
        assert answer.SerializeToString() == encoded
        assert answer.context.call_id == contact.call_id and answer.context.agent == contact.agent
        assert (answer.name, answer.model, answer.policy) == ("decisions/d1", "models/m", "policies/default")
        assert answer.HasField("outcome") == (outcome is not None)
        assert answer.create_time.ToDatetime(tzinfo=UTC) == made.created_at
        assert answer.expire_time.ToDatetime(tzinfo=UTC) == made.expires_at


def test_the_propensity_model_learns_who_takes_what_or_says_why_not() -> None:
    draw = random.Random(1)
    examples = [
        Example(
            offer="o1",
            traits=(f"tier={tier}",),
            base=0.1,
            accepted=draw.random() < (0.4 if tier == "vip" else 0.05),
        )
        for tier in (draw.choice(["vip", "standard"]) for _ in range(2_000))
    ]
    found = learn(examples)
    assert not found.failure and found.metrics["log_loss"] < found.metrics["log_loss_base"]
    model = Propensity(model="m", weights=found.weights)
    assert corrected(model, "o1", ("tier=vip",), 0.1) == pytest.approx(0.4, abs=0.06)
    assert corrected(model, "o1", ("tier=standard",), 0.1) == pytest.approx(0.05, abs=0.03)
    assert "200 outcomes" in learn(examples[:50]).failure
    with pytest.raises(ValueError, match="no number"):
        Propensity(model="m", weights={"base": float("nan")})


def test_phone_propensity_predicts_before_it_learns() -> None:
    import pandas as pd

    draw = np.random.default_rng(0)
    rows = 4_800
    job = draw.choice(["student", "services"], rows)
    yes = draw.random(rows) < np.where(job == "student", 0.3, 0.05)
    frame = pd.DataFrame(
        {
            "job": job,
            "age": draw.integers(20, 70, rows),
            "euribor3m": np.arange(rows) / 100.0,
            "duration": yes * 900,
        }
    )
    frame["y"] = np.where(yes, "yes", "no")
    used, labels = phone.split_label(frame)
    assert "duration" not in used
    found = phone.PhonePropensity().prequential(used, labels)
    assert np.all(found[: phone.BLOCK_ROWS] == phone.PRIOR_YES)
    later = slice(phone.BLOCK_ROWS, None)
    assert calibration_error(labels[later], labels[later]) == 0.0
    assert calibration_error(labels[later], found[later]) < 0.1
    assert found[later][job[later] == "student"].mean() > 1.5 * found[later][job[later] != "student"].mean()
    with pytest.raises(ValueError, match="column"):
        phone.split_label(used)


def test_next_products_are_ranked_for_every_household() -> None:
    import pandas as pd

    draw = random.Random(2)
    rows = [
        {
            "household_id": household,
            "basket_id": f"{household}-{day}",
            "product_id": product,
            "transaction_timestamp": f"{datetime(2017, 1, 1) + timedelta(days=day):%Y-%m-%d %H:%M:%S}",
        }
        for household in range(30)
        for day in range(0, 100, 9)
        for product in {household % 5, draw.randrange(12)}
    ]
    products = pd.DataFrame(
        [{"product_id": n, "product_type": f"t{n:02}", "product_category": "c"} for n in range(12)]
    )
    history = purchases(pd.DataFrame(rows), products)
    before, after = history[history["at"] < "2017-04-01"], history[history["at"] >= "2017-04-01"]
    ranks = Baskets().fit(before).rank(before)
    assert all(len(set(ranks[str(household)])) == 10 for household in range(30))
    assert ranks["7"][0] == "t02"
    assert set(baselines(before)) == {"global", "personal", "als", "smoothed"}
    assert hit_and_recall(ranks, ranks[""], bought(after))[0] > 0.9


def test_quiet_hours_are_the_persons_own() -> None:
    courtesy, zone = Courtesy(), ZoneInfo("Asia/Shanghai")

    def until(hour: int) -> datetime | None:
        at = datetime(2025, 6, 2, hour, 30, tzinfo=zone).astimezone(UTC)
        return quiet_until(courtesy.quiet, StepChannel.SMS, at, zone)

    assert until(9) is None
    assert until(12) == datetime(2025, 6, 2, 14, tzinfo=zone)
    assert until(23) == datetime(2025, 6, 3, 8, tzinfo=zone)
    assert until(3) == datetime(2025, 6, 2, 8, tzinfo=zone)
    calls_only = (Quiet(start_minute=0, end_minute=1_439, channels=frozenset({StepChannel.OUTBOUND_CALL})),)
    assert quiet_until(calls_only, StepChannel.SMS, NOW, zone) is None
    assert quiet_until(courtesy.quiet, StepChannel.TOUCH_POINT, NOW, zone) is None


def test_caps_variants_goals_and_placeholders() -> None:
    courtesy = Courtesy(caps=(Cap(channel=StepChannel.SMS, touches_max=1, days=7),))
    lately = [(NOW - timedelta(days=1), "SMS")]
    assert capped(courtesy, lately, StepChannel.SMS, NOW)
    assert not capped(courtesy, lately, StepChannel.EMAIL, NOW)
    assert not capped(courtesy, lately, StepChannel.SMS, NOW + timedelta(days=7))
    dealt = [variant_of("s", f"c{number}", [("a", 3), ("b", 1)]) for number in range(2_000)]
    assert 1_400 < dealt.count("a") < 1_600
    start, end = NOW, NOW + timedelta(days=10)
    assert endangered(100, 10, start, end, NOW + timedelta(days=5))
    assert not endangered(100, 60, start, end, NOW + timedelta(days=5))
    assert not endangered(100, 0, start, end, NOW + timedelta(hours=1))
    assert fill("{{ display_name }}, {{nothing}}{{", {"display_name": "Li"}) == "Li, {{"


def test_the_sequential_test_names_a_winner_rarely_where_there_is_none() -> None:
    draw, wrong, right = random.Random(7), 0, 0
    for difference in (0.0, 0.08):
        for _ in range(60):
            counts = {"a": [0, 0], "b": [0, 0]}
            named = ""
            for look in range(3_000):
                name = "ab"[look % 2]
                counts[name][0] += 1
                counts[name][1] += draw.random() < 0.1 + (difference if name == "b" else 0)
                if look % 100 == 99 and not named:
                    arms = [Arm(variant=key, contacts=n, successes=s) for key, (n, s) in counts.items()]
                    named = winner(arms, contacts_min=100, contacts_max=0, error_max=0.05)[0]
            wrong += bool(named) and not difference
            right += named == "b" and bool(difference)
    assert wrong <= 6
    assert right >= 50
