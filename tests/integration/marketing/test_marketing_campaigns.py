"""Campaigns on real MongoDB: taken in once whatever is cut off, capped, courteous, delivered, compared."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from aiosmtpd.controller import Controller
from tests.unit.marketing.marketing_examples import cny, moment, offer

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import campaigns_pb2 as C
from chassis import mongo
from chassis.bus import Event
from chassis.localstack import free_ports
from chassis.testing import FakeClock
from chassis.testing.waiting import wait_until
from marketing import sales, touch_retention
from marketing.call_lists import contact_id
from marketing.campaign_delivery import Delivery
from marketing.campaign_engine import CampaignState, Cap, Courtesy, StepChannel, capped
from marketing.campaign_model import Campaign, Phase, Step, Variant
from marketing.campaign_runner import Runner
from marketing.campaign_store import CAMPAIGN_DOCUMENTS, CampaignStore
from marketing.campaigns import CAP_DAYS_MAX, courtesy_of, default_policy
from marketing.config import MarketingSettings
from marketing.consumers import MarketingConsumers
from marketing.documents import ComplaintDocument, ProfileDocument
from marketing.engine import OfferSoldOut
from marketing.handlers import Facts, Upkeep
from marketing.inbound import learn
from marketing.kinds import CAMPAIGNS, CONTACT_LISTS, CONTACTS, LEADS, RESPONSES, USAGE
from marketing.lifecycle import _name_customers
from marketing.model import Audience, Profile, Text
from marketing.senders import Message, SenderConfig, Senders, SendFailed
from marketing.shelf import MongoShelves, Row
from marketing.store import MongoStore

pytestmark = pytest.mark.integration

#: 10:00 in Shanghai.
NOW = datetime(2025, 6, 2, 2, 0, tzinfo=UTC)
PEOPLE = 50


@pytest.fixture
def store(mongo_uri: str, mongo_database: str) -> Iterator[CampaignStore]:
    mongo.connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    mongo.ensure_indexes((*CAMPAIGN_DOCUMENTS, ProfileDocument, ComplaintDocument))
    people = [
        {
            "_id": f"c{number:03}",
            "numbers": [f"+86138000000{number:02}"],
            "display_name": f"Person {number}",
            "language": "en",
            "home_region": "regions/beijing",
            "value_class": "AB"[number % 2],
            "email_addresses": [f"p{number:03}@post.example"] if number % 4 else [],
            "refused_channels": ["SMS"] if number % 10 == 0 else [],
            "consents": dict.fromkeys(("SMS", "EMAIL", "VOICE")),
            "alive": True,
        }
        for number in range(PEOPLE)
    ]
    ProfileDocument._get_collection().insert_many(people)
    yield CampaignStore()
    mongo.disconnect()


def campaign(*steps: Step, id: str = "spring", rule: str = "") -> Campaign:
    phase = Phase(id="invite", start=NOW - timedelta(days=1), end=NOW + timedelta(days=9), steps=steps)
    return Campaign(id=id, state=CampaignState.RUNNING, rule=rule, phases=(phase,))


def step(id: str = "sms", channel: StepChannel = StepChannel.SMS, wait_days: int = 2) -> Step:
    bodies = (("", Text(language="en", text="Hello {{display_name}}: {{offer_title}}")),)
    variants = (
        Variant(id="a", weight=1, subjects=(Text(language="en", text="News"),), bodies=bodies),
        Variant(id="b", weight=1, subjects=(Text(language="en", text="News"),), bodies=bodies),
    )
    return Step(id=id, channel=channel, wait=timedelta(days=wait_days), variants=variants)


def runner(store: CampaignStore, **changes: Any) -> Runner:
    return Runner(store=store, courtesy=Courtesy(), batch=20, **changes)


def run_all(store: CampaignStore, made: Campaign, now: datetime) -> None:
    while runner(store).take_in(made, made.phases[0], now):
        pass


class Cut(Exception):
    """The process dies here."""


@pytest.mark.parametrize("at", ["touches", "contacts", "advance"])
def test_whatever_is_cut_off_nobody_is_addressed_twice_or_skipped(store: CampaignStore, at: str) -> None:
    made = campaign(step())
    cut = runner(store)

    def die(*_: Any, **__: Any) -> Any:
        raise Cut

    if at == "advance":
        store.advance = die  # type: ignore[method-assign]
    else:
        broken = getattr(store, at)
        setattr(store, at, type("Broken", (), {"insert_many": staticmethod(die), "find": broken.find})())
    with pytest.raises(Cut):
        cut.take_in(made, made.phases[0], NOW)
    whole = CampaignStore()
    run_all(whole, made, NOW)
    touched = [raw["customer"] for raw in whole.touches.find({"campaign": "spring"})]
    assert sorted(touched) == [f"c{number:03}" for number in range(PEOPLE) if number % 10]
    _, done, counts = whole.run("spring", "invite")
    assert (done, counts["segment"], counts["NO_CONSENT"], counts["touches"]) == (True, PEOPLE, 5, 45)
    assert whole.contacts.count_documents({"campaign": "spring"}) == PEOPLE


def by_events(*steps: Step, id: str = "spring") -> Campaign:
    return replace(campaign(*steps, id=id), segment="leaving")


def touched(store: CampaignStore, campaign: str) -> list[str]:
    return sorted(raw["customer"] for raw in store.touches.find({"campaign": campaign}))


@pytest.mark.parametrize("at", ["touches", "contacts", "settle"])
def test_whatever_is_cut_off_newcomers_are_addressed_once(store: CampaignStore, at: str) -> None:
    made, cut = by_events(step()), runner(store)
    store.join("leaving", "c001", NOW)
    run_all(store, made, NOW)
    store.join("leaving", "c003", NOW)

    def die(*_: Any, **__: Any) -> Any:
        raise Cut

    if at == "settle":
        store.settle = die  # type: ignore[method-assign]
    else:
        broken = getattr(store, at)
        setattr(store, at, type("Broken", (), {"insert_many": staticmethod(die), "find": broken.find})())
    with pytest.raises(Cut):
        cut.newcomers([made], NOW)
    whole = CampaignStore()
    while runner(whole).newcomers([made], NOW):
        pass
    assert touched(whole, "spring") == ["c001", "c003"]
    assert whole.contacts.count_documents({"touched.invite": 1}) == 2


def test_who_joins_while_a_campaign_is_paused_is_addressed_when_it_goes_on(store: CampaignStore) -> None:
    spring, summer = by_events(step()), by_events(step(), id="summer")
    store.join("leaving", "c005", NOW)
    for made in (spring, summer):
        run_all(store, made, NOW)

    def newcomers(running: list[Campaign], paused: list[Campaign]) -> None:
        while runner(store).newcomers(running, NOW, paused):
            pass

    newcomers([spring, summer], [])
    for who in ("c003", "c007"):
        store.join("leaving", who, NOW)
    newcomers([spring], [summer])
    assert (touched(store, "spring"), touched(store, "summer")) == (["c003", "c005", "c007"], ["c005"])
    newcomers([spring, summer], [])
    assert touched(store, "spring") == touched(store, "summer") == ["c003", "c005", "c007"]
    assert not store.fresh("leaving", 10) and not store.runs.count_documents({"missed": True})


def test_caps_hold_over_all_campaigns(store: CampaignStore) -> None:
    for number in range(3):
        run_all(store, campaign(step(), id=f"k{number}"), NOW + timedelta(hours=number / 10))
    assert store.touches.count_documents({"campaign": "k1"}) == 45
    assert store.touches.count_documents({"campaign": "k2"}) == 0
    assert store.run("k2", "invite")[2]["FREQUENCY_CAP"] == 45


def test_quiet_hours_put_off_and_answers_end_the_steps(store: CampaignStore) -> None:
    made = campaign(step(), step("mail", StepChannel.WEBHOOK), rule='value_class == "B"')
    at_noon = NOW + timedelta(hours=3)
    run_all(store, made, at_noon)
    due = {raw["due_at"] for raw in store.touches.find({})}
    assert due == {NOW + timedelta(hours=4)}  # 14:00 in Shanghai
    store.answer("spring", "c001", "", "DECLINED")
    assert store.answer("spring", "c999", "", "DECLINED") is None
    later = at_noon + timedelta(days=3)

    def second(at: datetime) -> set[str]:
        for _ in range(2):
            runner(store).next_steps(made, at)
        return {raw["customer"] for raw in store.touches.find({"step": "mail"})}

    # The campaign was paused, say: those who have not been told yet have two days from when they are.
    assert second(later) == set() and store.arms("spring", "invite", "sms", ("BOUGHT",)) == {}
    delivery(store, (StepChannel.SMS, Sink())).deliver([made], later + timedelta(hours=1))
    assert second(later + timedelta(days=2)) == set()
    silent = {f"c{number:03}" for number in range(1, PEOPLE, 2)} - {"c001"}
    assert second(later + timedelta(days=2, hours=1)) == silent
    rows = store.funnel("spring", "invite")
    assert [(row["entered"], row["declined"]) for row in rows] == [(25, 1)]


def test_who_has_answered_in_a_phase_hears_no_more_of_it(store: CampaignStore) -> None:
    made, sink = campaign(step(), step("mail", StepChannel.WEBHOOK), rule='value_class == "B"'), Sink()
    run_all(store, made, NOW + timedelta(hours=3))  # at 13:00 there: messages wait
    store.answer("spring", "c001", "invite", "BOUGHT")
    # While it is being noted that somebody is at the next step, they answer.
    due = store.due("spring", NOW + timedelta(days=3), 1)
    store.answer("spring", due[0]["customer"], "invite", "INTERESTED")
    store.contacts.update_one({"_id": due[0]["_id"]}, {"$set": {"next_at": NOW}})
    silent = {f"c{number:03}" for number in range(1, PEOPLE, 2)} - {"c001", due[0]["customer"]}
    delivery(store, (StepChannel.SMS, sink)).deliver([made], NOW + timedelta(hours=5))
    assert set(sink.taken) == silent
    while runner(store).next_steps(made, NOW + timedelta(days=3)):
        pass
    assert {raw["customer"] for raw in store.touches.find({"step": "mail"})} == silent


def test_who_answers_while_the_next_phase_runs_is_taken_into_it(store: CampaignStore) -> None:
    first = campaign(step(), rule='value_class == "B"')
    invite = replace(first.phases[0], id="invite", entry_rule='response("survey") == "interested"')
    made = replace(first, phases=(replace(invite, id="survey", entry_rule=""), invite))
    courtesy = Courtesy(caps=())

    def invited(now: datetime = NOW) -> list[str]:
        while Runner(store=store, courtesy=courtesy).work(made, now):
            pass
        found = store.touches.find({"phase": "invite"})
        return sorted(raw["customer"] for raw in found)

    assert invited() == []
    store.answer("spring", "c001", "survey", "INTERESTED")
    store.answer("spring", "c003", "survey", "REGISTERED")
    # The worker dies before it has noted that it looked at them.
    before = store.answered("spring", 10)
    assert invited() == ["c001"]
    store.contacts.update_many({"_id": {"$in": [raw["_id"] for raw in before]}}, {"$set": {"fresh": True}})
    store.answer("spring", "c003", "survey", "INTERESTED")
    store.settle_answers(before)
    assert [raw["customer"] for raw in store.answered("spring", 10)] == ["c003"], "what it said since"
    assert invited() == ["c001", "c003"] and not store.answered("spring", 10)
    store.answer("spring", "c005", "survey", "INTERESTED")
    assert invited(NOW + timedelta(days=9)) == ["c001", "c003"], "the phase is over"


@pytest.mark.parametrize(("answer", "goes_on"), [("INTERESTED", True), ("DECLINED", False)])
def test_a_late_answer_to_an_earlier_phase_leaves_the_steps_of_the_present_one(
    store: CampaignStore, answer: str, goes_on: bool
) -> None:
    first = campaign(step(), step("mail", StepChannel.WEBHOOK), rule='value_class == "B"')
    invite = first.phases[0]
    made = replace(first, phases=(replace(invite, id="survey", end=NOW + timedelta(hours=1)), invite))
    for phase, now in zip(made.phases, (NOW, NOW + timedelta(hours=1)), strict=True):
        while runner(store).take_in(made, phase, now):
            pass
    delivery(store, (StepChannel.SMS, Sink())).deliver([made], NOW + timedelta(hours=1))
    late = store.answer("spring", "c001", "survey", answer)
    assert late is not None and ("next_at" in late) == goes_on
    while runner(store).next_steps(made, NOW + timedelta(days=3)):
        pass
    mail = {"customer": "c001", "phase": "invite", "step": "mail"}
    assert store.touches.count_documents(mail) == goes_on


def test_what_failed_is_not_counted_as_reached(store: CampaignStore) -> None:
    """Nor in a comparison: one variant whose messages fail does not lose by it."""
    made = campaign(step(), rule='value_class == "B"')
    run_all(store, made, NOW)
    dealt = {raw["customer"]: raw["variant"] for raw in store.touches.find({})}

    class Picky(Sink):
        def send(self, message: Message) -> None:
            if dealt[message.profile.customer] == "a" and int(message.profile.customer[1:]) > 10:
                raise SendFailed("unknown here", final=True)
            super().send(message)

    sink = Picky()
    delivery(store, (StepChannel.SMS, sink)).deliver([made], NOW)
    failed = [who for who, variant in dealt.items() if variant == "a" and int(who[1:]) > 10]
    assert failed and len(sink.taken) == 25 - len(failed)
    for customer in (sink.taken[0], failed[0]):
        store.answer("spring", customer, "invite", "BOUGHT")
        store.mark_answered("spring", "invite", customer, "BOUGHT")
    arms = store.arms("spring", "invite", "sms", ("BOUGHT",))
    sent = {variant: sum(dealt[who] == variant for who in sink.taken) for variant in "ab"}
    assert {variant: people for variant, (people, _) in arms.items()} == sent
    assert sum(yes for _, yes in arms.values()) == 1
    (row,) = store.funnel("spring", "invite")
    assert (row["entered"], row["reached"], row["bought"]) == (25, len(sink.taken) + 1, 2)
    # Nor by caps: whom nothing reached another campaign may still address.
    once = Courtesy(caps=(Cap(touches_max=1, days=7),), quiet=())
    other = campaign(step(), id="other", rule='value_class == "B"')
    Runner(store=store, courtesy=once).take_in(other, other.phases[0], NOW)
    assert set(store.touches.distinct("customer", {"campaign": "other"})) == set(failed)


def test_what_has_not_left_is_said_in_the_words_that_won_and_costs_nothing(store: CampaignStore) -> None:
    made, said = campaign(step(), rule='value_class == "B"'), Counter[str]()
    run_all(store, made, NOW)
    cost = (MongoStore().touch_days, "spring/invite/sms", NOW, NOW + timedelta(days=1))
    assert cost[0](*cost[1:]) == []
    assert set(store.touches.distinct("variant")) == {"a", "b"}

    class Heard(Sink):
        def send(self, message: Message) -> None:
            said[message.origin["variant"]] += 1
            super().send(message)

    decided = replace(made.phases[0], steps=(replace(step(), winner="b"),))
    left = NOW + timedelta(minutes=20)
    delivery(store, (StepChannel.SMS, Heard())).deliver([replace(made, phases=(decided,))], left)
    assert said == {"b": 25} and store.touches.distinct("variant") == ["b"]
    # Told by the quarter of an hour, for somewhere each of them begins a day.
    assert cost[0](*cost[1:]) == [(NOW + timedelta(minutes=15), "regions/beijing", 25)]


def test_who_bought_has_bought_though_they_opt_out(store: CampaignStore) -> None:
    run_all(store, campaign(step(), rule='value_class == "B"'), NOW)
    assert store.bought("spring/c001", NOW, "1", "0", "", "token")
    for customer, answer in (
        ("c001", "BOUGHT"),
        ("c001", "OPTED_OUT"),
        ("c003", "BOUGHT"),
        ("c003", "DECLINED"),
    ):
        told = store.answer("spring", customer, "", answer)
        store.mark_answered("spring", "invite", customer, answer)
        assert told is not None and told["response"] == answer and "next_at" not in told
    (row,) = store.funnel("spring", "invite")
    assert (row["bought"], row["declined"]) == (1, 1), "no sale was noted of the other"
    assert store.touches.find_one({"customer": "c001"})["answered"] == "BOUGHT"  # type: ignore[index]


def test_what_campaigns_sell_takes_stock_once_whatever_is_cut_off(
    store: CampaignStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, made = MongoStore(), campaign(step())
    run_all(store, made, NOW)
    fibre = offer(id="fibre", product="fibre", stock=2, value=cny("300"), unit_cost=cny("40"))
    shop.insert_offer(fibre, (), request_key=None, fingerprint=None)

    def sell(customer: str) -> bool:
        place = store.place("spring", customer)
        assert place is not None
        return sales.sell(shop, store, fibre, place, "agents/7", NOW)

    def die(*_: Any, **__: Any) -> Any:
        raise Cut

    def used_after_sweep() -> int:
        Upkeep(shop, FakeClock(NOW), 1.0).sweep(datetime.now(UTC) + timedelta(seconds=60))
        return shop.offer("fibre").units_used

    assert store.place("spring", "nobody") is None
    assert [sell("c001"), sell("c001")] == [True, False] and used_after_sweep() == 1
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(CampaignStore, "bought", die)
        sell("c003")
    (left,) = shop.stale_claims(datetime.now(UTC) + timedelta(seconds=60), 9)
    assert shop.offer("fibre").units_used == 2 and used_after_sweep() == 1
    assert not store.bought("spring/c003", NOW, "1", "0", "", left.token), "its unit went back"
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(MongoStore, "add_purchases", die)
        sell("c003")
    assert used_after_sweep() == 2 and not shop.stale_claims(datetime.now(UTC) + timedelta(seconds=60), 9)
    with pytest.raises(OfferSoldOut):
        sell("c005")
    assert not store.has_bought("spring/c005")
    owners = ProfileDocument._get_collection().distinct("_id", {"products": "fibre"})
    assert owners == ["c001", "c003"]
    sold = [(sale.customer, sale.worth, sale.cost) for sale in shop.sales(NOW, NOW + timedelta(days=1), 9)]
    assert sold == [(who, Decimal(300), Decimal(40)) for who in ("c001", "c003")]


class Hook(BaseHTTPRequestHandler):
    """Takes messages; the first of each is answered with 503."""

    seen: ClassVar[list[str]] = []
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = not Hook.seen
        Hook.seen.append(self.headers["Idempotency-Key"])
        if not first:
            Hook.bodies.append(body)
        self.send_response(503 if first else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_messages_leave_by_webhook_each_once_and_again_when_the_sender_was_down(store: CampaignStore) -> None:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = f"http://127.0.0.1:{server.server_port}/"
    config = SenderConfig(id="gateway", channel=StepChannel.SMS, adapter="webhook", target=target)
    made = campaign(step())
    run_all(store, made, NOW)
    delivery = Delivery(store=store, senders=Senders([config]), values=lambda *_: {"offer_title": "fibre"})
    moment = NOW
    for _ in range(5):
        delivery.deliver([made], moment)
        moment += timedelta(minutes=5)
    server.shutdown()
    server.server_close()
    assert len({body["id"] for body in Hook.bodies}) == len(Hook.bodies) == 45
    assert Hook.bodies[0]["body"].startswith("Hello Person ") and Hook.bodies[0]["body"].endswith(": fibre")
    assert store.touches.count_documents({"state": "SENT", "outbox.0": {"$exists": True}}) == 45


def hear_of_crm(customer: str, *, consents: bool, version: int) -> None:
    """A customer as crm tells it, through the worker's own reading."""
    told = crm.CustomerSnapshot(
        customer=f"customers/{customer}",
        version=version,
        value_class=customers_pb2.VALUE_CLASS_A,
        email_addresses=["crm@post.example"],
    )
    told.consents.add(
        channel=common_pb2.CHANNEL_EMAIL, purpose=customers_pb2.PURPOSE_MARKETING, granted=consents
    )
    message = crm.CustomerUpdated(customer=told)
    learn(Facts(MongoStore()), Event.of(message, source="crm", subject=told.customer, time=NOW))


def test_mail_leaves_by_smtp_with_the_id_of_its_touch(store: CampaignStore) -> None:
    class Box:
        def __init__(self) -> None:
            self.mails: list[Any] = []

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            self.mails.append(envelope)
            return "250 taken"

    box = Box()
    port = free_ports(1)[0]
    relay = Controller(box, hostname="127.0.0.1", port=port)
    relay.start()
    config = SenderConfig(
        id="mail",
        channel=StepChannel.EMAIL,
        adapter="smtp",
        target=f"127.0.0.1:{port}",
        sender="news@example.net",
    )
    senders = Senders([config])
    hear_of_crm("c000", consents=True, version=1)
    made = campaign(step("mail", StepChannel.EMAIL), rule='value_class == "A"')
    while runner(store, reachable=senders.reaches).take_in(made, made.phases[0], NOW):
        pass
    # Of every other of them crm knew no address; one withdraws between queueing and sending.
    assert store.run("spring", "invite")[2]["NO_ADDRESS"] == 12
    hear_of_crm("c002", consents=False, version=1)
    Delivery(store=store, senders=senders, values=lambda *_: {}).deliver([made], NOW)
    relay.stop()
    told = sorted(to for mail in box.mails for to in mail.rcpt_tos)
    assert told == ["crm@post.example", *(f"p{number:03}@post.example" for number in range(6, PEOPLE, 4))]
    assert all(b"Message-ID: <spring.invite.mail.c" in mail.content for mail in box.mails)
    assert store.touches.distinct("customer", {"state": "FAILED"}) == ["c002"]


class Sink:
    """A sender that takes what it gets, or not."""

    def __init__(self, *, seconds: float = 0.0, down: bool = False) -> None:
        self.taken: list[str] = []
        self.tries = 0
        self.down = down
        #: How long it asks to be left alone while it is down.
        self.pause_seconds = 0.0
        self.hold = threading.Event()
        self.seconds = seconds

    def reaches(self, profile: Profile) -> bool:
        return True

    def send(self, message: Message) -> None:
        self.tries += 1
        if self.seconds:
            self.hold.wait(self.seconds)
        if self.down:
            raise SendFailed("away", pause_seconds=self.pause_seconds)
        self.taken.append(message.profile.customer)


def delivery(store: CampaignStore, *channels: tuple[StepChannel, Sink], **changes: Any) -> Delivery:
    return Delivery(store=store, senders=Senders([], dict(channels)), values=lambda *_: {}, **changes)


def test_what_was_fine_when_queued_is_looked_at_again_before_it_leaves(store: CampaignStore) -> None:
    made, sink = campaign(step(), rule='value_class == "B"'), Sink()
    run_all(store, made, NOW)
    sends = delivery(store, (StepChannel.SMS, sink))
    noon = NOW + timedelta(hours=2, minutes=5)
    sends.deliver([made], noon)
    assert not sink.tries and store.touches.distinct("due_at") == [NOW + timedelta(hours=4)]
    complaint = {"_id": "t1", "customer": "c001", "open": True, "version": 1}
    ComplaintDocument._get_collection().insert_one(complaint)
    store.answer("spring", "c003", "", "DECLINED")
    store.opt_out("c005", noon)
    afternoon = NOW + timedelta(hours=5)
    sends.deliver([made], afternoon)
    left = {f"c{number:03}" for number in range(7, PEOPLE, 2)}
    assert set(sink.taken) == left
    states = {raw["customer"]: raw["state"] for raw in store.touches.find({"customer": {"$nin": list(left)}})}
    assert states == {"c001": "QUEUED", "c003": "FAILED", "c005": "FAILED"}
    ComplaintDocument._get_collection().update_one({"_id": "t1"}, {"$set": {"open": False}})
    sends.deliver([made], afternoon + timedelta(days=1))
    assert sorted(sink.taken) == ["c001", *sorted(left)]
    # Nothing leaves once the phase is over.
    late = campaign(step("late"), id="late", rule='value_class == "A"')
    run_all(store, late, NOW)
    sends.deliver([late], NOW + timedelta(days=10))
    assert store.touches.distinct("state", {"campaign": "late"}) == ["FAILED"]


def test_whom_a_passing_cause_held_back_is_addressed_when_it_has_passed(store: CampaignStore) -> None:
    complaint = {"_id": "t1", "customer": "c001", "open": True, "version": 1}
    ComplaintDocument._get_collection().insert_one(complaint)
    made = campaign(step("first"), step("second", StepChannel.WEBHOOK), rule='value_class == "B"')
    run_all(store, made, NOW)

    def touched(at: datetime) -> list[str]:
        while runner(store).next_steps(made, at):
            pass
        return sorted(raw["step"] for raw in store.touches.find({"customer": "c001"}))

    assert touched(NOW + timedelta(hours=25)) == []
    ComplaintDocument._get_collection().delete_many({})
    assert touched(NOW + timedelta(hours=30)) == []
    assert touched(NOW + timedelta(hours=50)) == ["first"]
    assert touched(NOW + timedelta(hours=51)) == ["first"]
    delivery(store, (StepChannel.SMS, Sink())).deliver([made], NOW + timedelta(hours=53))
    assert touched(NOW + timedelta(days=5)) == ["first", "second"]
    assert store.run("spring", "invite")[2]["OPEN_COMPLAINT"] == 1


def test_what_does_not_leave_holds_nobody_back_and_keeps_the_caps_when_it_does(store: CampaignStore) -> None:
    once = Courtesy(caps=(Cap(touches_max=1, days=3),), quiet=())
    paused, other, sink = campaign(step(), id="paused"), campaign(step(), id="other"), Sink()
    sends = delivery(store, (StepChannel.SMS, sink), courtesy=once)

    def take_in(made: Campaign, now: datetime) -> int:
        everybody = Runner(store=store, courtesy=once)
        while everybody.take_in(made, made.phases[0], now):
            pass
        return len(touched(store, made.id))

    assert take_in(paused, NOW) == 45
    # It may still leave any moment; two days later it was not even tried.
    assert take_in(campaign(step(), id="early"), NOW + timedelta(hours=20)) == 0
    assert take_in(other, NOW + timedelta(days=2)) == 45
    sends.deliver([other], NOW + timedelta(days=2))
    assert len(sink.taken) == 45
    for days, left in ((3, 45), (4, 45), (5, 45), (6, 90)):
        sends.deliver([paused], NOW + timedelta(days=days))
        assert len(sink.taken) == left, days
    assert take_in(campaign(step(), id="late"), NOW + timedelta(days=8)) == 0, "they left two days ago"


def test_a_campaign_makes_its_offer_to_those_who_may_take_it(store: CampaignStore) -> None:
    fibre = offer(id="fibre", product="fibre", audience=Audience(value_classes=frozenset({"B"})))
    ProfileDocument._get_collection().update_one({"_id": "c001"}, {"$set": {"products": ["fibre"]}})
    made = replace(campaign(step()), offer="offers/fibre", promoted=fibre)
    run_all(store, made, NOW)
    assert store.run("spring", "invite")[2]["NOT_ELIGIBLE"] == 1 + PEOPLE // 2 - PEOPLE // 10
    sink = Sink()
    sends = delivery(store, (StepChannel.SMS, sink))
    over = replace(made, promoted=replace(fibre, valid_until=NOW))
    sends.deliver([over], NOW)
    assert not sink.tries and store.touches.distinct("state") == ["FAILED"]


def test_merged_customers_are_one_person_of_a_campaign(store: CampaignStore) -> None:
    made, sink = (
        campaign(step("first"), step("second", StepChannel.WEBHOOK), rule='value_class == "B"'),
        Sink(),
    )
    run_all(store, made, NOW)
    people = MongoStore()
    people.merge("c003", "c001", moment(5))  # both are in it
    people.merge("c005", "c000", moment(5))  # only the merged one is
    ProfileDocument._get_collection().update_one({"_id": "c000"}, {"$set": {"refused_channels": []}})
    run_all(store, made, NOW)
    sends = delivery(store, (StepChannel.SMS, sink), (StepChannel.WEBHOOK, sink))
    sends.deliver([made], NOW)
    whole = {"c000", "c001", *(f"c{number:03}" for number in range(7, PEOPLE, 2))}
    assert sorted(sink.taken) == sorted(whole)
    assert store.touches.distinct("customer", {"state": "FAILED"}) == ["c003"]
    # Nobody is taken in again under the other name, and the next step is the survivor's, once.
    again = replace(made, phases=(replace(made.phases[0], id="again"), *made.phases), rule="")
    survivor = people.survivors(["c005"])["c005"]
    assert survivor.customer == "c000" and set(store.standing_people("spring", [survivor])) == {"c000"}
    for _ in range(2):
        runner(store).next_steps(made, NOW + timedelta(days=3))
    assert set(store.touches.distinct("customer", {"step": "second"})) == whole
    assert set(store.touched_people([survivor], NOW, NOW)) >= {"c000", "c005"}
    # An answer given by the survivor's name is the person's, a refusal ends the steps.
    assert store.answer("spring", "c000", "", "DECLINED") is not None
    store.mark_answered("spring", "invite", "c000", "DECLINED")
    assert store.answers("spring", "c000") == store.answers("spring", "c005") == {"invite": "DECLINED"}
    assert store.touches.distinct("customer", {"answered": "DECLINED"}) == ["c000", "c005"]
    sink.taken.clear()
    sends.deliver([again], NOW + timedelta(days=3))
    assert sorted(sink.taken) == sorted(whole - {"c000"})
    store.opt_out("c003", NOW)  # said by a name that is merged: the survivor's word
    assert people.survivors(["c003"])["c003"].opted_out
    people.unmerge("c005", "c000", moment(6))
    alone = [profile for profile in (people.profile("c000"), people.profile("c005")) if profile]
    assert set(store.standing_people("spring", alone)) == {"c005"}


def test_an_erasure_leaves_numbers_and_no_name(store: CampaignStore) -> None:
    """Nothing in any collection says who it was; what was counted still is."""
    made = campaign(step(), step("call", StepChannel.WEBHOOK), rule='value_class == "B"')
    run_all(store, made, NOW)
    sink = Sink()
    delivery(store, (StepChannel.SMS, sink)).deliver([made], NOW)
    runner(store).next_steps(made, NOW + timedelta(days=3))
    shop, shelves = MongoStore(), MongoShelves()
    shop.insert_offer(offer(id="fibre", product="fibre"), (), request_key=None, fingerprint=None)
    sales.sell(shop, store, shop.offer("fibre"), "spring/c001", "agents/7", NOW)
    store.mark_answered("spring", "invite", "c001", "BOUGHT")
    store.answer("spring", "c001", "invite", "BOUGHT")
    store.join("leaving", "c001", NOW)
    whose, somebody = {"customer": "customers/c001"}, {"customer": "customers/c002"}
    theirs = contact_id("winter", "+8613800000001")
    for kind, id, content, keys in (
        (LEADS, "open", {**whose, "contact_name": "Person 1"}, {**whose, "open": True}),
        (LEADS, "won", {**whose, "note": "Person 1 rang", "product": "tv"}, {**whose, "open": False}),
        (CONTACTS, "named", {**whose, "number": "+8613800000099"}, whose),
        (CONTACTS, contact_id("autumn", "+8613800000001"), {"number": "+8613800000001"}, {"list": "autumn"}),
        (CONTACTS, theirs, somebody, somebody),
        (CONTACT_LISTS, "autumn", {}, {}),
        (CONTACT_LISTS, "winter", {}, {}),
        (RESPONSES, "r1", {**whose, "call_id": "k1", "satisfaction": 0.5}, whose),
        (USAGE, "c001:2025-05", {}, {"customer": "c001"}),
    ):
        shelves.insert(kind, Row(id=id, content={"resource": content}, keys=keys), NOW)
    before = store.funnel("spring", "invite"), store.arms("spring", "invite", "sms", ("BOUGHT",))
    stub = crm.CustomerSnapshot(
        customer="customers/c001", version=9, state=customers_pb2.CUSTOMER_STATE_ERASED
    )
    event = Event.of(
        crm.CustomerErased(customer=stub), source="crm", subject="customers/c001", time=NOW, id="e1"
    )
    for _ in range(2):
        MarketingConsumers().on_customer(event)
    database = ProfileDocument._get_db()
    left = {
        (name, str(raw["_id"]))
        for name in database.list_collection_names()
        for raw in database[name].find({})
        if any(word in str(raw) for word in ("c001", "Person 1'", "Person 1 ", "+8613800000001", "p001@"))
    }
    assert left == {("profiles", "c001")}, "only the stub that says it was erased"
    assert not database["profiles"].find_one({"_id": "c001"})["alive"]
    # Who has one of the numbers meanwhile stays on the list.
    assert [row.id for row in shelves.find(CONTACTS, {}, 9)] == [theirs]
    assert not USAGE.document.objects.count()
    assert [row.id for row in shelves.find(LEADS, {}, 9)] == ["won"]
    assert shelves.get(RESPONSES, "r1").content["resource"] == {"satisfaction": 0.5}
    assert (store.funnel("spring", "invite"), store.arms("spring", "invite", "sms", ("BOUGHT",))) == before
    assert len(shop.sales(NOW, NOW + timedelta(days=1), 9)) == 1
    assert store.touches.count_documents({"step": "call"}) == 19, "of a batch of 20, one waits no more"
    # A contact list of an earlier release has no such key; the migration gives it one, once.
    shelves.insert(CONTACTS, Row(id="old", content={"resource": whose}), NOW)
    assert [_name_customers(database, apply) for apply in (False, True, True)] == [1, 1, 0]
    assert shelves.get(CONTACTS, "old").keys == whose


def test_touches_are_kept_for_as_long_as_anything_asks_for_them(
    store: CampaignStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the business clock, and for as long as a cap may count; of a campaign that runs none goes."""
    days = MarketingSettings().touches_days
    assert days >= CAP_DAYS_MAX and courtesy_of(default_policy()).days_max <= CAP_DAYS_MAX
    monkeypatch.setattr(touch_retention, "AT_ONCE", 7)
    shelves, ended = MongoShelves(), NOW + timedelta(days=9)
    for id, state in (("spring", C.CAMPAIGN_STATE_COMPLETED), ("long", C.CAMPAIGN_STATE_RUNNING)):
        run_all(store, campaign(step(), id=id, rule='value_class == "B"'), NOW)
        phase = {"phase_id": "invite", "period": {"end_time": f"{ended:%Y-%m-%dT%H:%M:%SZ}"}}
        row = Row(id=id, content={"resource": {"phases": [phase]}}, keys={"state": state})
        shelves.insert(CAMPAIGNS, row, ended)
    store.note("call/1", "c002", "OUTBOUND_CALL", NOW)
    store.note("call/2", "c002", "OUTBOUND_CALL", ended)
    last = timedelta(days=CAP_DAYS_MAX)
    year = Courtesy(caps=(Cap(touches_max=1, days=CAP_DAYS_MAX),))

    def left(now: datetime) -> dict[str, int]:
        touch_retention.remove_old(shelves, store, now, days)
        return Counter(raw["campaign"] for raw in store.touches.find({}))

    whole = {"spring": 25, "long": 25, "": 2}
    assert left(NOW + last) == whole
    met = [(at, over) for at, over, _ in store.touched(["c001"], NOW, NOW)["c001"]]
    assert len(met) == 2 and capped(year, met[:1], StepChannel.SMS, NOW + last)
    # The day comes for each by itself.
    assert left(NOW + timedelta(days=days, seconds=1)) == {**whole, "": 1}
    assert left(ended + timedelta(days=days)) == {**whole, "": 1}
    assert left(ended + timedelta(days=days, seconds=1)) == {"long": 25}
    assert set(store.touched(["c001"], NOW, NOW)["c001"][0]) >= {"long/invite/sms/c001"}
    assert store.funnel("spring", "invite")[0]["entered"], "where people stood stays"


def test_a_slow_sender_holds_up_nobody_and_one_that_is_down_rests(store: CampaignStore) -> None:
    slow, down, quick = Sink(seconds=60), Sink(down=True), Sink()
    made = [
        campaign(step("s", StepChannel.SMS), id="slow", rule='value_class == "B"'),
        campaign(step("d", StepChannel.EMAIL), id="down", rule='value_class == "B"'),
        campaign(step("q", StepChannel.WEBHOOK), id="quick", rule='value_class == "B"'),
    ]
    for one in made:
        run_all(store, one, NOW)
    channels = (StepChannel.SMS, slow), (StepChannel.EMAIL, down), (StepChannel.WEBHOOK, quick)
    sends = delivery(store, *channels, turn_seconds=30, wait_seconds=0.5)
    sends.deliver(made, NOW)
    wait_until(lambda: len(quick.taken) == 25 and down.tries == 1, 30, what="the others had their turn")
    assert slow.tries == 1 and not slow.taken
    sends.deliver(made, NOW + timedelta(seconds=20))
    assert (slow.tries, down.tries) == (1, 1)  # the one still at it, the other resting

    def tried_again() -> bool:
        # A lane whose turn has not quite ended is left alone, and looked at with the next.
        sends.deliver(made, NOW + timedelta(seconds=31))
        return down.tries == 2

    wait_until(tried_again, 30, what="it is tried again")
    slow.hold.set()
    wait_until(lambda: len(slow.taken) == 25, 30, what="the slow one is done")
    # What was claimed for the one that is down waits on, untouched but for the two that were tried.
    waiting = {"channel": "EMAIL", "state": "QUEUED", "token": {"$exists": False}}
    wait_until(lambda: store.touches.count_documents(waiting) == 25, 30, what="they are given back")
    assert store.touches.count_documents({**waiting, "attempts": 1}) == 2


def test_a_sender_that_asks_for_a_pause_is_left_alone_for_so_long(store: CampaignStore) -> None:
    made, sink = campaign(step(), rule='value_class == "B"'), Sink(down=True)
    sink.pause_seconds = 600.0
    run_all(store, made, NOW)
    sends = delivery(store, (StepChannel.SMS, sink))
    for seconds in (0, 31, 599):
        sends.deliver([made], NOW + timedelta(seconds=seconds))
    assert sink.tries == 1, "no message but the first was spent on finding out"
    assert store.touches.distinct("due_at", {"attempts": 1}) == [NOW + timedelta(seconds=600)]
    sink.down = False
    sends.deliver([made], NOW + timedelta(seconds=601))
    assert len(sink.taken) == 25


def test_a_lane_ends_its_turn_in_time(store: CampaignStore) -> None:
    made, sink = campaign(step(), rule='value_class == "B"'), Sink()
    run_all(store, made, NOW)
    sends = delivery(store, (StepChannel.SMS, sink), turn_seconds=0.0)
    assert sends.deliver([made], NOW) == 25
    assert not sink.tries and store.touches.distinct("state") == ["QUEUED"]
