"""The worker's ears: one queue for crm, one for tickets. What the events mean stands in inbound.py."""

from __future__ import annotations

import functools

from mongoengine import get_db

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import events_pb2 as own
from callmesh.routing.v1 import events_pb2 as routing
from chassis import eventlog
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from chassis.ids import parse_name
from marketing import inbound
from marketing.campaign_answers import take_result, take_survey
from marketing.campaign_store import CampaignStore
from marketing.campaigns import Campaigns
from marketing.config import MarketingSettings
from marketing.erasure import erase
from marketing.handlers import Facts
from marketing.segments import Segments
from marketing.shelf import MongoShelves
from marketing.store import MongoStore


def _segments() -> Segments:
    return Segments(MongoShelves(), MongoStore(), CampaignStore())


def _campaigns() -> Campaigns:
    settings = MarketingSettings()
    return Campaigns(MongoShelves(), MongoStore(), settings.clock(), settings.currency)


class MarketingConsumers:
    """The worker's service."""

    name = "marketing"

    facts = Facts(MongoStore())
    # Made with the first use: the database is connected by then.
    people = staticmethod(functools.cache(CampaignStore))
    segments = staticmethod(functools.cache(_segments))
    campaigns = staticmethod(functools.cache(_campaigns))

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """A customer was created, changed, merged, erased, may leave, or is to be cared for."""
        if event.type == inbound.ERASED:
            # Before the profile forgets the numbers.
            customer = parse_name(
                "customer", "customers", event.message(crm.CustomerErased).customer.customer
            )
            erase(customer, ())
            eventlog.forget(get_db(), event.subject)
        inbound.learn(self.facts, event)
        told = inbound.numbers_told(event)
        for customer in MongoStore().erased(sorted(told)) if told else ():
            # Older news of somebody who was erased since: what lies under these numbers goes as well.
            erase(customer, *told[customer])
        self.segments().heard(event)

    @subscribe("tickets", *inbound.TICKETS)
    def on_ticket(self, event: Event) -> None:
        """A ticket was made or moved on; complaints are kept."""
        inbound.learn(self.facts, event)
        self.segments().heard(event)

    @subscribe("routing", routing.CallWrappedUp)
    def on_call(self, event: Event) -> None:
        """A call was wrapped up: segments may follow it."""
        self.segments().heard(event)

    @subscribe(
        "marketing",
        own.OfferOutcomeRecorded,
        own.OutboundResultRecorded,
        own.SurveyCompleted,
        own.LeadTransitioned,
    )
    def on_own(self, event: Event) -> None:
        """Something marketing did itself: campaigns hear of their calls and surveys, segments follow."""
        if event.type == own.OutboundResultRecorded.DESCRIPTOR.full_name:
            take_result(self.campaigns(), self.people(), event.message(own.OutboundResultRecorded))
        elif event.type == own.SurveyCompleted.DESCRIPTOR.full_name:
            take_survey(self.campaigns(), self.people(), event.message(own.SurveyCompleted))
        self.segments().heard(event)
