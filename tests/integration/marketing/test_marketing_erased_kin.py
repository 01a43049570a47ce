"""Customers who were one by a merge, and of whom one is erased, on real MongoDB: in whatever order the events
come, and however often, nothing of the erased is left, and who stays loses nothing.

Each story is what crm does; its events (and tickets') come in its order, backwards or shuffled, and again.
What is made in between under the survivor's name and the merged one's number is the merged one's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.marketing.marketing_examples import offer

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm
from callmesh.tickets.v1 import events_pb2 as tickets
from callmesh.tickets.v1 import ticket_pb2
from chassis import mongo
from chassis.bus import Event
from marketing import wire
from marketing.association import Counts
from marketing.call_lists import contact_id
from marketing.campaign_store import CampaignStore
from marketing.config import MarketingSettings
from marketing.consumers import MarketingConsumers
from marketing.documents import DecisionDocument, ProfileDocument
from marketing.engine import close
from marketing.kinds import CONTACT_LISTS, CONTACTS, LEADS, RESPONSES, USAGE
from marketing.model import Contact, Decision, Outcome, Profile, Purchase, Result
from marketing.ranking import Ranker
from marketing.reader import _new_decision
from marketing.shelf import MongoShelves, Row
from marketing.store import MongoStore

pytestmark = pytest.mark.integration

NOW = datetime(2025, 6, 2, 2, 0, tzinfo=UTC)
#: What says whose it is, by customer.
NUMBERS = {who: f"+861390000{n}{n}{n}{n}" for n, who in enumerate(("anna", "bela", "carl"), 1)}
#: What an erasure may leave of a profile.
STUB = {"_id", "erased", "alive", "crm_version", "moved_at", "updated_at"}
#: Fields of a survivor's profile that every order must end in alike.
KEPT = ("numbers", "display_name", "alive", "merged_into", "products", "bought", "care", "opted_out_at")
KEPT += ("wants_to_leave", "churn_risk", "brought", "consents", "email_addresses")


class Crm:
    """What crm and tickets tell of three customers: snapshots with versions, and tickets' complaints."""

    def __init__(self, people: Sequence[str]) -> None:
        self.told: list[Event] = []
        self._versions = dict.fromkeys(people, 0)
        self._into: dict[str, str] = {}
        self._erased: set[str] = set()
        self._tickets = 0
        for who in people:
            self._tell(crm.CustomerCreated(customer=self._changed(who)), who)
            self._tell(crm.LeaveIntentFlagged(customer=f"customers/{who}", wants_to_leave=True), who)
            self._tell(crm.ChurnRiskChanged(customer=f"customers/{who}", score=0.7), who)
            care = crm.CareTaskRaised(care_task=f"careTasks/{NUMBERS[who][-3:]}", kind="BIRTHDAY")
            care.customer.CopyFrom(self._snapshot(who))
            self._tell(care, who)
        self._complaints()

    def _below(self, who: str) -> list[str]:
        direct = [one for one, into in self._into.items() if into == who]
        return [who, *(far for one in direct for far in self._below(one))]

    def _snapshot(self, who: str) -> Any:
        found = crm.CustomerSnapshot(customer=f"customers/{who}", version=self._versions[who])
        found.merged_into = f"customers/{self._into[who]}" if who in self._into else ""
        if who in self._erased:
            found.state = customers_pb2.CUSTOMER_STATE_ERASED
            return found
        found.display_name, merged = f"Name-{who}", who in self._into
        found.state = customers_pb2.CUSTOMER_STATE_MERGED if merged else customers_pb2.CUSTOMER_STATE_ACTIVE
        if not merged:
            found.numbers.extend(NUMBERS[one] for one in self._below(who))
            found.email_addresses.extend(f"{one}@post.example" for one in self._below(who))
            found.consents.add(channel="CHANNEL_EMAIL", purpose=customers_pb2.PURPOSE_MARKETING, granted=True)
        return found

    def _changed(self, who: str) -> Any:
        self._versions[who] += 1
        return self._snapshot(who)

    def _tell(self, message: Any, who: str) -> None:
        number = len(self.told)
        at = NOW + timedelta(minutes=number)
        event = Event.of(message, source="crm", subject=f"customers/{who}", time=at, id=f"e{number}")
        self.told.append(event)

    def _complaints(self) -> None:
        """Whose complaint each customer's is now."""
        self._tickets += 1
        for who in self._versions:
            owner, number = who, NUMBERS[who]
            while owner in self._into:
                owner = self._into[owner]
            ticket = tickets.TicketSnapshot(ticket=f"tickets/{number[-3:]}", version=self._tickets)
            ticket.kind, ticket.phase = ticket_pb2.TICKET_KIND_COMPLAINT, ticket_pb2.TICKET_PHASE_ACTIVE
            if who not in self._erased:
                ticket.customer, ticket.caller_number = f"customers/{owner}", number
            self._tell(tickets.TicketUpdated(ticket=ticket), owner)

    def merge(self, who: str, into: str) -> None:
        self._into[who] = into
        self._tell(crm.CustomerUpdated(customer=self._changed(who)), who)
        survivor = self._changed(into)
        self._tell(crm.CustomerUpdated(customer=survivor), into)
        self._tell(crm.CustomersMerged(survivor=survivor, absorbed=[f"customers/{who}"]), into)
        self._complaints()

    def unmerge(self, who: str) -> None:
        into = self._into.pop(who)
        survivor, restored = self._changed(into), self._changed(who)
        self._tell(crm.CustomerUpdated(customer=survivor), into)
        self._tell(crm.CustomerUpdated(customer=restored), who)
        self._tell(crm.CustomersUnmerged(survivor=survivor, restored=[restored]), into)
        self._complaints()

    def erase(self, who: str) -> None:
        """Also those who are merged into them."""
        for one in self._below(who):
            self._erased.add(one)
            self._tell(crm.CustomerErased(customer=self._changed(one)), one)
        self._complaints()

    @property
    def erased(self) -> set[str]:
        return self._erased


#: What crm does.
STORIES: Mapping[str, Sequence[tuple[str, ...]]] = {
    "alone": [("erase", "anna")],
    "survivor and all": [("merge", "anna", "bela"), ("erase", "bela")],
    "given back, then the merged one": [("merge", "anna", "bela"), ("unmerge", "anna"), ("erase", "anna")],
    "given back, then the survivor": [("merge", "anna", "bela"), ("unmerge", "anna"), ("erase", "bela")],
    "merged again, with a newer customer": [
        ("merge", "anna", "bela"), ("unmerge", "anna"), ("merge", "anna", "carl"), ("erase", "carl"),
    ],
    "a chain, given back above": [
        ("merge", "anna", "bela"), ("merge", "bela", "carl"), ("unmerge", "bela"), ("erase", "bela"),
    ],
    "a chain, given back below": [
        ("merge", "anna", "bela"), ("merge", "bela", "carl"), ("unmerge", "bela"), ("unmerge", "anna"),
        ("erase", "anna"),
    ],
}  # fmt: skip


class World:
    """Marketing, as it hears of a story in some order."""

    def __init__(self, people: Sequence[str]) -> None:
        self.store, self.people, self.shelves = MongoStore(), CampaignStore(), MongoShelves()
        self.consumers = MarketingConsumers()
        self._made: set[tuple[str, str]] = set()
        for name in ("autumn", "winter"):
            self._put(CONTACT_LISTS, name, {}, {})
        self.people.advance("spring", "invite", "", {}, True)
        for who in people:
            self._seed(who)

    def _put(self, kind: Any, id: str, content: dict[str, Any], keys: dict[str, Any]) -> None:
        self.shelves.insert(kind, Row(id=id, content={"resource": content}, keys=keys), NOW)

    def _seed(self, who: str) -> None:
        """What there is under their own name and number."""
        self._under(who, who)
        number, whose = NUMBERS[who], {"customer": f"customers/{who}"}
        days = {"anna": 3, "bela": 2, "carl": 1}[who]
        for product in (f"product-{who}", "phone"):
            at = NOW - timedelta(days=days)
            bought = Purchase(id=f"{product}/{days}", customer=who, product=product, at=at)
            self.store.add_purchases([bought], NOW)
        reached = {"contact_number": number, "contact_name": f"Name-{who}"}
        self._put(LEADS, f"{days}-won", {**whose, **reached, "product": "tv"}, {**whose, "open": False})
        for state in (True, False):
            self._put(LEADS, f"{days}-nobodys-{state}", reached, {"customer": "", "open": state})
        self._put(CONTACTS, contact_id("winter", number), {"number": number}, {"customer": ""})
        # A call in which nobody knew them.
        self._decide(f"stranger-{days}", "", number, number)
        self._put(RESPONSES, f"r{days}", {**whose, "satisfaction": 0.5}, whose)
        self._put(USAGE, f"{who}:2025-05", {}, {"customer": who})
        self.people.join("leaving", who, NOW)
        place = {"campaign": "spring", "customer": who}
        step = {**place, "phase": "invite", "channel": "SMS", "at": NOW, "version": 1, "region": "r"}
        people = [{**place, "_id": f"spring/{who}", "answers": {"invite": "BOUGHT"}, "bought_at": NOW}]
        touches = [
            {**step, "_id": f"spring/invite/{name}/{who}", "step": name, "state": state}
            for name, state in (("sms", "SENT"), ("again", "QUEUED"))
        ]
        self.people.take_in(people, touches)
        self.people.opt_out(who, NOW)

    def _under(self, who: str, whose: str) -> None:
        """What is made in somebody's name with the number of who they are by then."""
        if (who, whose) in self._made:
            return
        self._made.add((who, whose))
        number, place, name = NUMBERS[whose], f"{len(self._made)}", {"customer": f"customers/{who}"}
        self._decide(f"d{place}", who, number, f"Name-{whose}")
        contact = {**name, "number": number, "note": f"Name-{whose}"}
        called = "autumn" if who == whose else f"list-{place}"
        self._put(CONTACTS, contact_id(called, number), contact, name)
        if who != whose:
            self._put(CONTACT_LISTS, called, {}, {})
        reached = {**name, "contact_number": number, "contact_name": f"Name-{whose}"}
        self._put(LEADS, f"l{place}", reached, {**name, "open": True})

    def _decide(self, id: str, who: str, number: str, word: str) -> None:
        ranked = Ranker([offer()], Counts().table(model="")).rank(Profile(customer=""), Contact(), NOW, 1)
        made = Decision(
            id=id, customer=who, number=number, offers=ranked, created_at=NOW, expires_at=NOW,
            contact=Contact(call_id=f"call-{id}"),
        )  # fmt: skip
        told = (wire.recommendation_told(made),)
        DecisionDocument._get_collection().insert_one(_new_decision(made, told, None, None))
        said = Outcome(offer=ranked[0].offer, result=Result.DECLINED, note=f"note of {word}", at=NOW)
        self.store.close_decision(close(self.store.decision(made.id), said, ""), ())

    def hear(self, event: Event) -> None:
        if "tickets" in event.type:
            self.consumers.on_ticket(event)
        else:
            self.consumers.on_customer(event)
        if event.type.endswith(("CustomerCreated", "CustomerUpdated", "sMerged")):
            self._go_on()

    def _go_on(self) -> None:
        """Whoever has a number is met by it."""
        for raw in ProfileDocument._get_collection().find({"alive": True}):
            for whose, number in NUMBERS.items():
                if number in raw.get("numbers", ()):
                    self._under(raw["_id"], whose)

    def left_of(self, who: str) -> list[str]:
        """What tells of somebody, in whatever collection."""

        def tells(raw: Mapping[str, Any]) -> bool:
            # What waits to be published names whom it is about by id, as what was published before does.
            said = {field: value for field, value in raw.items() if field != "outbox"}
            return who in str(said) or any(word in str(raw) for word in (NUMBERS[who], f"Name-{who}"))

        database = ProfileDocument._get_db()
        return [
            f"{name}: {raw}"
            for name in database.list_collection_names()
            for raw in database[name].find({})
            if tells(raw)
            and not (name == "profiles" and raw["_id"] == who and raw.keys() <= STUB and not raw["alive"])
        ]

    def whole(self, who: str) -> dict[str, Any]:
        """What somebody has who stays."""
        raw = ProfileDocument._get_collection().find_one({"_id": who}) or {}
        kept = {field: raw.get(field) or None for field in KEPT}
        kept["products"] = sorted(kept["products"] or ())
        named = {"customer": f"customers/{who}"}
        return {
            **kept,
            "history": sorted(purchase.id for purchase in self.store.purchases(who, 99, None)),
            "own decision": self.store.decision(f"d{list(NUMBERS).index(who) + 1}").customer,
            "own leads": len(self.shelves.find(LEADS, {**named, "open": False}, 99)),
            "own contact": CONTACTS.document._get_collection().count_documents(
                {"_id": contact_id("autumn", NUMBERS[who]), "keys.customer": f"customers/{who}"}
            ),
            "met": sorted(id for _, _, id in self.people.touched([who], NOW, NOW).get(who, ())),
            "answers": self.people.answers("spring", who),
            "segments": self.people.segments_of([who]),
            "answered": len(self.shelves.find(RESPONSES, named, 99)),
            "usage": len(self.shelves.find(USAGE, {"customer": who}, 99)),
        }


@pytest.fixture
def database(mongo_uri: str, mongo_database: str) -> Iterator[Any]:
    mongo.connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    kept = (MarketingConsumers.people, MarketingConsumers.segments)
    for made in kept:
        made.cache_clear()
    yield ProfileDocument._get_db()
    for made in kept:
        made.cache_clear()
    mongo.disconnect()


def heard_in(told: Sequence[Event], seed: int) -> tuple[str, list[Event]]:
    """A way in which events come, those that matter most twice."""
    again = ("CustomersMerged", "CustomersUnmerged", "CustomerErased")
    name, order = (
        ("as told", list(told)),
        ("backwards", list(told)[::-1]),
        ("shuffled", random.Random(seed).sample(list(told), len(told))),
    )[seed % 3]
    return name, order + [event for event in order if event.type.endswith(again)]


def test_whatever_the_order_nothing_of_the_erased_is_left(database: Any) -> None:
    for seed, (story, acts) in enumerate(STORIES.items()):
        people = sorted({"anna", "bela", *(who for _, *whom in acts for who in whom)})
        source = Crm(people)
        for verb, *whom in acts:
            getattr(source, verb)(*whom)
        order, heard = heard_in(source.told, seed)
        for name in database.list_collection_names():
            database[name].delete_many({})
        world = World(people)
        before = {who: world.whole(who) for who in people}
        for event in heard:
            world.hear(event)
        for who in sorted(source.erased):
            assert world.left_of(who) == [], f"{story}: {who}, {order}"
            assert world.store.erased([who]) == {who}
        for who in sorted(set(people) - source.erased):
            found = world.whole(who)
            kept = ("history", "own leads", "own contact", "met", "answers", "answered", "usage")
            assert {f: found[f] for f in kept} == {f: before[who][f] for f in kept}, (
                f"{story}: {who}, {order}"
            )
            assert found["alive"] and found["numbers"] == [NUMBERS[who]]
            assert f"product-{who}" in found["products"] and found["own decision"] == who
