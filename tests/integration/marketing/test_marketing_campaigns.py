"""Campaigns on real MongoDB: taken in once whatever is cut off, capped, courteous, delivered, compared."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from aiosmtpd.controller import Controller

from chassis import mongo
from chassis.localstack import free_ports
from marketing.campaign_delivery import Delivery
from marketing.campaign_engine import CampaignState, Courtesy, StepChannel
from marketing.campaign_model import Campaign, Phase, Step, Variant
from marketing.campaign_runner import Runner
from marketing.campaign_store import CAMPAIGN_DOCUMENTS, CampaignStore
from marketing.config import MarketingSettings
from marketing.documents import ComplaintDocument, ProfileDocument
from marketing.model import Text
from marketing.senders import SenderConfig, Senders

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
            "refused_channels": ["SMS"] if number % 10 == 0 else [],
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
    runner(store).next_steps(made, later)
    runner(store).next_steps(made, later)
    second = {raw["customer"] for raw in store.touches.find({"step": "mail"})}
    assert second == {f"c{number:03}" for number in range(1, PEOPLE, 2)} - {"c001"}
    rows = store.funnel("spring", "invite")
    assert [(row["entered"], row["declined"]) for row in rows] == [(25, 1)]
    arms = store.arms("spring", "invite", "sms", ("BOUGHT",))
    assert sum(people for people, _ in arms.values()) == 25


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
        address="{customer}@example.net",
    )
    made = campaign(step("mail", StepChannel.EMAIL), rule='value_class == "A"')
    run_all(store, made, NOW)
    Delivery(store=store, senders=Senders([config]), values=lambda *_: {}).deliver([made], NOW)
    relay.stop()
    assert len(box.mails) == 25
    assert all(b"Message-ID: <spring.invite.mail.c" in mail.content for mail in box.mails)
