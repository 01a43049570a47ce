"""A campaign over a million customers: segmented, capped and enqueued; killed in the middle and gone on with.

The runner is a process of its own, as in production, on real MongoDB. Half a million customers were addressed
lately by another campaign, so that the caps have something to count. The first process is killed (SIGKILL)
when a third of the customers is done, a second goes on; then every customer's touches are counted one by one.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

#: The limits.
CONTACTS_PER_SECOND_MIN = 10_000
MEMORY_MB_MAX = 1_000
CUSTOMERS = 1_000_000
#: Every so manieth customer met the caps' limit before.
CAPPED_EVERY = 10
#: Every so manieth refused messages.
REFUSED_EVERY = 7
KILLED_AT_SHARE = 1 / 3


def _furnish() -> None:
    from marketing.campaign_store import TouchDocument
    from marketing.documents import ProfileDocument

    now = datetime.now(UTC)
    profiles, touches = ProfileDocument._get_collection(), TouchDocument._get_collection()
    for start in range(0, CUSTOMERS, 20_000):
        numbers = range(start, min(CUSTOMERS, start + 20_000))
        profiles.insert_many([_profile(number, now) for number in numbers], ordered=False)
        earlier = [
            {
                "_id": f"earlier/p/s{turn}/c{number:07}",
                "version": 1,
                "customer": f"c{number:07}",
                "campaign": "earlier",
                "phase": "p",
                "step": f"s{turn}",
                "channel": "SMS",
                "state": "SENT",
                "at": now - timedelta(days=1 + turn),
            }
            for number in numbers
            if number % CAPPED_EVERY == 0
            for turn in range(2)
        ]
        touches.insert_many(earlier, ordered=False)


def _profile(number: int, now: datetime) -> dict[str, Any]:
    return {
        "_id": f"c{number:07}",
        "numbers": [f"+86139{number:08d}"],
        "tier": ("standard", "silver", "gold")[number % 3],
        "value_class": "ABCDEF"[number % 6],
        "language": "zh",
        "tags": [],
        "home_region": "regions/beijing",
        "products": ["phone"],
        "refused_channels": ["SMS"] if number % REFUSED_EVERY == 0 else [],
        "consents": {"SMS": None},
        "alive": True,
        "crm_version": 1,
        "updated_at": now,
    }


def expected(number: int) -> bool:
    """Whether a customer of the segment is to be addressed."""
    return number % CAPPED_EVERY != 0 and number % REFUSED_EVERY != 0


def _campaign() -> Any:
    from marketing.campaign_engine import CampaignState, StepChannel
    from marketing.campaign_model import Campaign, Phase, Step, Variant
    from marketing.model import Audience, Text

    words = (("", Text(language="zh", text="{{display_name}}您好")),)
    now = datetime.now(UTC)
    variants = (Variant(id="a", weight=1, bodies=words), Variant(id="b", weight=1, bodies=words))
    step = Step(id="sms", channel=StepChannel.SMS, wait=timedelta(days=2), variants=variants)
    phase = Phase(id="invite", start=now - timedelta(days=1), end=now + timedelta(days=9), steps=(step,))
    return Campaign(
        id="million",
        state=CampaignState.RUNNING,
        audience=Audience(languages=frozenset({"zh"})),
        rule='tier in ["standard", "silver", "gold"] and owns("phone")',
        phases=(phase,),
    )


def _run(settings: Any, pipe: Connection) -> None:
    from chassis import mongo
    from marketing.campaign_engine import Courtesy
    from marketing.campaign_runner import Runner
    from marketing.campaign_store import CampaignStore

    mongo.connect(settings)
    runner, campaign = Runner(store=CampaignStore(), courtesy=Courtesy()), _campaign()
    now = datetime.now(UTC)
    while done := runner.take_in(campaign, campaign.phases[0], now):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        pipe.send((done, memory))
    pipe.send((0, 0.0))
    mongo.disconnect()


def _process(settings: Any, stop_at: int) -> tuple[int, float, float]:
    """(customers done, seconds, memory MB) of a runner that is killed after so many customers."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(settings, theirs))
    process.start()
    done, memory, started = 0, 0.0, 0.0
    try:
        while done < stop_at:
            count, held = ours.recv()
            started = started or time.perf_counter()
            memory = max(memory, held)
            done += count
            if not count:
                break
        elapsed = time.perf_counter() - started
    finally:
        process.kill()
        process.join(10)
    return done, elapsed, memory


def run(mongo_uri: str) -> tuple[dict[str, Any], bool]:
    """(figures, whether every limit holds)."""
    from chassis import mongo
    from chassis.testing.grpc import loopback_settings
    from marketing.campaign_store import CAMPAIGN_DOCUMENTS, CampaignStore
    from marketing.config import MarketingSettings
    from marketing.documents import DOCUMENTS

    settings = loopback_settings(MarketingSettings(mongo_uri=mongo_uri, mongo_database="bench_campaign"))
    mongo.connect(settings)
    mongo.ensure_indexes((*DOCUMENTS, *CAMPAIGN_DOCUMENTS))
    _furnish()
    first, first_seconds, first_memory = _process(settings, int(CUSTOMERS * KILLED_AT_SHARE))
    second, second_seconds, second_memory = _process(settings, CUSTOMERS)
    touches = CampaignStore().touches
    addressed = {raw["customer"] for raw in touches.find({"campaign": "million"}, {"customer": 1, "_id": 0})}
    total = touches.count_documents({"campaign": "million"})
    _, finished, counts = CampaignStore().run("million", "invite")
    mongo.disconnect()
    wanted = {f"c{number:07}" for number in range(CUSTOMERS) if expected(number)}
    rate = (first + second) / (first_seconds + second_seconds)
    memory = max(first_memory, second_memory)
    figures = {
        "campaign_customers": CUSTOMERS,
        "campaign_contacts_per_second": round(rate),
        "campaign_contacts_per_second_min": CONTACTS_PER_SECOND_MIN,
        "campaign_memory_mb": round(memory),
        "campaign_memory_mb_max": MEMORY_MB_MAX,
        "campaign_killed_after": first,
        "campaign_touches": total,
        "campaign_twice": total - len(addressed),
        "campaign_skipped": len(wanted - addressed),
        "campaign_wrongly": len(addressed - wanted),
        "campaign_counted_segment": counts.get("segment", 0),
    }
    ok = rate >= CONTACTS_PER_SECOND_MIN and memory <= MEMORY_MB_MAX and finished
    ok &= addressed == wanted and total == len(addressed) and counts.get("segment") == CUSTOMERS
    return figures, ok
