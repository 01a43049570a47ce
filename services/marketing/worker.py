"""The worker process: consumers, outbox relay, model builder and sweep. Its top imports next to nothing,
because eventlet must patch the standard library first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chassis.lease import Lease
    from chassis.worker import Background, Stopping
    from marketing.config import MarketingSettings

#: Lease of the model builder and of the sweep, seconds.
LEASE_SECONDS = 30.0
#: Real seconds between two looks at comparisons, goals and ends of campaigns.
LOOK_AFTER_SECONDS = 10.0
#: Real seconds between two looks for touches and numbers that grew too old.
TOUCHES_LOOK_SECONDS = 300.0
#: How often the worker looks whether learning is done, seconds.
LEARN_LOOK_SECONDS = 1.0


def _builder(settings: MarketingSettings) -> Background:
    """Builds a model whenever the history changed, but never for more than its share of the time."""
    import time

    from chassis import mongo
    from chassis.worker import Background
    from marketing.association import Smoothing
    from marketing.handlers import Models
    from marketing.kinds import ALL_DOCUMENTS
    from marketing.store import MongoStore

    def run(stopping: Stopping) -> None:
        mongo.ensure_indexes(ALL_DOCUMENTS)
        smoothing = Smoothing(strength=settings.smoothing_strength, rate=settings.smoothing_rate)
        models = Models(MongoStore(), settings.clock(), smoothing, settings.models_kept)
        lease = _lease("models")
        pause = settings.build_seconds
        while not stopping(pause):
            pause = settings.build_seconds
            if lease.acquire() and models.due():
                started = time.monotonic()
                # Under eventlet this lets the consumers and their heartbeats go on.
                models.build(lambda: time.sleep(0))
                pause = max(pause, (time.monotonic() - started) / settings.build_share_max)
        lease.release()

    return Background(name="models", run=run)


def _sweep(settings: MarketingSettings) -> Background:
    """Finishes what a crash left half done, and removes what is kept for a time only."""
    import time
    from datetime import UTC, datetime

    from chassis.worker import Background
    from marketing.campaign_store import CampaignStore
    from marketing.handlers import Upkeep
    from marketing.shelf import MongoShelves
    from marketing.store import MongoStore
    from marketing.touch_retention import remove_old

    def run(stopping: Stopping) -> None:
        clock, shelves, people = settings.clock(), MongoShelves(), CampaignStore()
        upkeep = Upkeep(MongoStore(), clock, settings.claim_seconds)
        lease = _lease("sweep")
        looked_at = float("-inf")
        while not stopping(settings.sweep_seconds):
            if not lease.acquire():
                continue
            upkeep.sweep(datetime.now(UTC))
            if time.monotonic() - looked_at >= TOUCHES_LOOK_SECONDS:
                remove_old(shelves, people, clock.now(), settings.touches_days)
                upkeep.forget_strangers(settings.stranger_numbers_days)
                looked_at = time.monotonic()
        lease.release()

    return Background(name="sweep", run=run)


def _learner(settings: MarketingSettings) -> Background:
    """Has models learned anew when outcomes came or they are old, by a process of its own: the libraries are
    large and know nothing of green threads.
    """
    import subprocess

    from chassis.logs import get_logger
    from chassis.worker import Background
    from marketing.learned import Churns, Propensities, Uplifts
    from marketing.shelf import MongoShelves
    from marketing.store import MongoStore

    def run(stopping: Stopping) -> None:
        parts = (MongoShelves(), MongoStore(), settings.clock(), settings.models_kept)
        learned = (Propensities(*parts), Uplifts(*parts), Churns(*parts))
        lease = _lease("propensity")
        while not stopping(settings.learn_seconds):
            if not lease.acquire():
                continue
            if any(versions.due() for versions in learned):
                learn(lease, stopping)
            # Minutes pass before the next look: a lease that ran out looks as if the worker were gone.
            lease.release()

    def learn(lease: Lease, stopping: Stopping) -> None:
        process = subprocess.Popen([sys.executable, "-m", "marketing.learn"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            lease.acquire()
            if stopping(LEARN_LOOK_SECONDS):
                process.terminate()
                process.wait()
                break
        get_logger(__name__).info("propensity.learned", status=process.returncode)

    return Background(name="propensity", run=run)


def _campaigns(settings: MarketingSettings) -> Background:
    """Takes people through campaigns and sends what is due."""
    import time

    from chassis.worker import Background
    from marketing.call_lists import CallListSender, complete_lists
    from marketing.campaign_delivery import Delivery
    from marketing.campaign_engine import StepChannel
    from marketing.campaign_runner import Runner
    from marketing.campaign_store import CampaignStore
    from marketing.campaigns import Campaigns, note_halted, reachable
    from marketing.holiday import holidays_of
    from marketing.senders import Senders, read_configs
    from marketing.shelf import MongoShelves
    from marketing.store import MongoStore

    def run(stopping: Stopping) -> None:
        clock, shelves, store = settings.clock(), MongoShelves(), CampaignStore()
        calls = {StepChannel.OUTBOUND_CALL: CallListSender(shelves, clock, settings.calls_queue)}
        senders = Senders(read_configs(settings.senders), calls)
        campaigns = Campaigns(shelves, MongoStore(), clock, settings.currency)
        holiday = holidays_of(settings.holiday_country)
        delivery = Delivery(
            store=store,
            senders=senders,
            values=campaigns.values,
            may_address=campaigns.may_address,
            holiday=holiday,
        )
        lease = _lease("campaigns")
        busy, looked_at = 0, float("-inf")
        while not stopping(0.0 if busy else settings.campaign_seconds):
            busy = 0
            if not lease.acquire():
                continue
            now, courtesy = clock.now(), campaigns.courtesy()
            note_halted(courtesy.halted)
            if courtesy.halted:
                continue
            runner = Runner(
                store=store,
                courtesy=courtesy,
                reachable=lambda profile, channel, sender: reachable(senders, profile, channel, sender),
                holiday=holiday,
            )
            delivery.courtesy = courtesy
            running, paused = campaigns.begun()
            for campaign in running:
                busy += runner.work(campaign, now)
            busy += runner.newcomers(running, now, paused)
            if running:
                busy += delivery.deliver(running, now)
            # Also while a million messages leave; and not each second, for it counts everybody.
            if time.monotonic() - looked_at >= LOOK_AFTER_SECONDS:
                campaigns.look_after(store, now)
                complete_lists(shelves, now)
                looked_at = time.monotonic()
        lease.release()

    return Background(name="campaigns", run=run)


def _lease(name: str) -> Any:
    from chassis.ids import new_id
    from chassis.lease import Lease
    from marketing.documents import ModelDocument

    return Lease(ModelDocument._get_db()["leases"], name, new_id(), LEASE_SECONDS)


def main() -> int:
    """The whole life of the process; its exit status."""
    from chassis import worker

    worker.patch()
    from callmesh.marketing.v1 import events_pb2
    from chassis.config import load_settings
    from marketing.config import MarketingSettings
    from marketing.consumers import MarketingConsumers
    from marketing.kinds import ALL_OUTBOX_DOCUMENTS

    settings = load_settings(MarketingSettings)
    return worker.run_worker(
        settings,
        MarketingConsumers,
        documents=ALL_OUTBOX_DOCUMENTS,
        people="customers",
        background=[_builder(settings), _sweep(settings), _learner(settings), _campaigns(settings)],
        # For partners and dashboards: within the platform nobody has to listen.
        optional_events=[
            events_pb2.OfferPublished,
            events_pb2.OfferUpdated,
            events_pb2.OfferRetired,
            events_pb2.ModelActivated,
            events_pb2.LeadCreated,
            events_pb2.LeadTransitioned,
            events_pb2.CampaignTransitioned,
            events_pb2.CampaignGoalEndangered,
            events_pb2.CampaignContactTouched,
            events_pb2.OutboundResultRecorded,
            events_pb2.SurveyCompleted,
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
