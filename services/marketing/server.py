"""The gRPC process: its one composition root."""

from __future__ import annotations

import functools
import sys

from callmesh.marketing.v1 import (
    campaigns_pb2,
    campaigns_pb2_grpc,
    leads_pb2,
    leads_pb2_grpc,
    offers_pb2,
    offers_pb2_grpc,
    outbound_pb2,
    outbound_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    savings_pb2,
    savings_pb2_grpc,
    surveys_pb2,
    surveys_pb2_grpc,
)
from chassis import eventservice, mongo
from chassis.acts import Acts
from chassis.clock import Clock
from chassis.server import ServiceBinding, main, serve
from marketing.association import Smoothing
from marketing.call_lists import CallListSender
from marketing.campaign_engine import StepChannel
from marketing.campaign_servicer import CampaignServicer
from marketing.campaign_store import CampaignStore, TouchLog
from marketing.campaigns import Campaigns
from marketing.config import MarketingSettings
from marketing.handlers import Decisions, History, Models, Offers, Recommender
from marketing.holiday import holidays_of
from marketing.kinds import ALL_DOCUMENTS
from marketing.leads_servicer import LeadServicer
from marketing.learned import Churns, Policies, Propensities, Uplifts
from marketing.lifecycle import LIFECYCLE
from marketing.outbound_servicer import OutboundServicer
from marketing.policy import Policy
from marketing.ranker_cache import RankerCache
from marketing.reader import MongoReader, Reader
from marketing.reports_servicer import ReportServicer
from marketing.savings_servicer import SavingsServicer
from marketing.scopes import SCOPES
from marketing.senders import Senders, read_configs
from marketing.servicer import OfferServicer, RecommendationServicer
from marketing.shelf import MongoShelves, Shelves
from marketing.store import MongoStore, Store
from marketing.surveys_servicer import SurveyServicer


def bindings(
    settings: MarketingSettings,
    store: Store,
    reader: Reader,
    clock: Clock,
    shelves: Shelves | None = None,
    touches: TouchLog | None = None,
) -> list[ServiceBinding]:
    """Every service of marketing on a store. Campaigns keep their people in MongoDB, connected by the time
    they are first asked for; `touches` may count addresses elsewhere.
    """
    shelves = shelves or MongoShelves()
    people = functools.cache(CampaignStore)
    policy = Policy(
        holdout_ratio=settings.holdout_ratio,
        exploration_ratio=settings.exploration_ratio,
        fatigue_offers_max=settings.fatigue_offers_max,
    )
    cache = RankerCache(
        reader,
        clock,
        fresh_seconds=settings.catalogue_seconds,
        stale_seconds=settings.catalogue_stale_seconds,
        policy=policy,
    )
    offers = OfferServicer(Offers(store, clock, cache.expire), settings.currency)
    recommendations = _recommendations(settings, store, reader, clock, shelves, cache, policy)
    campaigns = Campaigns(shelves, store, clock, settings.currency)
    calls = {StepChannel.OUTBOUND_CALL: CallListSender(shelves, clock, settings.calls_queue)}
    senders = Senders(read_configs(settings.senders), calls)
    return [
        _binding(offers_pb2, offers_pb2_grpc, "OfferService", offers),
        _binding(recommendations_pb2, recommendations_pb2_grpc, "RecommendationService", recommendations),
        _binding(
            savings_pb2,
            savings_pb2_grpc,
            "SavingsService",
            SavingsServicer(shelves, store, clock, settings.currency),
        ),
        _binding(
            leads_pb2, leads_pb2_grpc, "LeadService", LeadServicer(shelves, store, clock, settings.currency)
        ),
        _binding(
            campaigns_pb2,
            campaigns_pb2_grpc,
            "CampaignService",
            CampaignServicer(campaigns, senders, people, settings.touches_days),
        ),
        _binding(
            outbound_pb2,
            outbound_pb2_grpc,
            "OutboundService",
            OutboundServicer(
                shelves,
                store,
                clock,
                campaigns.courtesy,
                (lambda: touches) if touches is not None else people,
                holidays_of(settings.holiday_country),
            ),
        ),
        _binding(surveys_pb2, surveys_pb2_grpc, "SurveyService", SurveyServicer(shelves, store, clock)),
        _binding(
            reports_pb2,
            reports_pb2_grpc,
            "ReportService",
            ReportServicer(shelves, store, clock, settings.currency, settings.touches_days),
        ),
    ]


def _recommendations(
    settings: MarketingSettings,
    store: Store,
    reader: Reader,
    clock: Clock,
    shelves: Shelves,
    cache: RankerCache,
    policy: Policy,
) -> RecommendationServicer:
    kept = settings.models_kept
    propensities = Propensities(shelves, store, clock, kept)
    smoothing = Smoothing(strength=settings.smoothing_strength, rate=settings.smoothing_rate)
    return RecommendationServicer(
        Recommender(reader, cache, clock, settings.decision_minutes),
        Decisions(store, clock),
        History(store, clock),
        Models(store, clock, smoothing, kept),
        clock,
        propensities,
        Policies(shelves, store, clock, propensities, policy),
        settings.currency,
        {
            recommendations_pb2.MODEL_KIND_UPLIFT: Uplifts(shelves, store, clock, kept),
            recommendations_pb2.MODEL_KIND_CHURN: Churns(shelves, store, clock, kept),
        },
    )


def _binding(messages: object, stubs: object, name: str, servicer: object) -> ServiceBinding:
    descriptor = messages.DESCRIPTOR.services_by_name[name]  # type: ignore[attr-defined]
    return ServiceBinding(descriptor, getattr(stubs, f"add_{name}Servicer_to_server"), servicer)


async def run(settings: MarketingSettings) -> None:
    """Serves until told to stop. StartError when MongoDB or a port cannot be used."""
    mongo.connect(settings)
    mongo.ensure_indexes(ALL_DOCUMENTS)
    database = mongo.async_database(settings)
    services = bindings(settings, MongoStore(), MongoReader(database), settings.clock())
    events = eventservice.EventSource("marketing", lambda: database)
    await serve(
        settings,
        [*services, events.binding()],
        scopes={**SCOPES, **eventservice.scopes("marketing")},
        acts=Acts("marketing", lambda: database, LIFECYCLE.acts),
        on_drain=events.drain,
        on_stop=[database.client.close, mongo.disconnect],
    )


def start() -> int:
    """The whole life of the process; its exit status."""
    return main(MarketingSettings, run)


if __name__ == "__main__":
    sys.exit(start())
