"""PlanningService over real reports, a plan in its own process."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import menus_pb2, planning_pb2
from chassis.testing import FakeClock
from routing.errors import QueueNotFound
from routing.planning.process import Elsewhere, answer_here

pytestmark = pytest.mark.integration
#: A Monday's midnight in Shanghai, and noon of the day after two weeks.
START = dt.datetime(2026, 9, 6, 16, tzinfo=dt.UTC)
NOW = START + dt.timedelta(days=15, hours=12)
SLOT = dt.timedelta(minutes=30)


def ms(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1000)


def stamp(moment: dt.datetime) -> Timestamp:
    return Timestamp(seconds=ms(moment) // 1000)


@pytest.fixture
def database(mongo_uri: str, mongo_database: str) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        found = client[mongo_database]
        found["regions"].insert_one(
            {
                "_id": "hq",
                "latitude": 0.0,
                "longitude": 0.0,
                "head_office": True,
                "time_zone": "Asia/Shanghai",
            }
        )
        found["queues"].insert_one({"_id": "service"})
        rows = []
        for day in range(15):
            for slot in range(18, 36):
                at = START + dt.timedelta(days=day) + slot * SLOT
                for shard, calls in (("north", 12), ("south", 8)):
                    figures = {"offered": calls, "handled": calls, "talk_ms": calls * 180_000, "abandoned": 1}
                    figures |= {"wait_ms": calls * 9_000, "moved": 2 if shard == "south" else 0}
                    rows.append({"kind": "queue", "subject": "service", "shard": shard, "start": ms(at)})
                    rows[-1]["figures"] = figures
        there = {"time_available_ms": 1_000_000, "time_on_call_ms": 800_000}
        rows.append(
            {"kind": "agent", "subject": "ann", "shard": "north", "start": ms(START), "figures": there}
        )
        found["interval_reports"].insert_many(rows)
        yield found


def here(database: Any, method: str, request: Any) -> bytes:
    """In this process: what needs no statistics is quick."""
    return answer_here(method, request.SerializeToString(), database, "north", ms(NOW))


# The other process has a low priority, and this machine may have much to do.
@pytest.mark.timeout(300)
async def test_a_plan_and_a_roster(mongo_uri: str, database: Any) -> None:
    planner = Elsewhere(mongo_uri, database.name, "north", FakeClock(NOW))
    tomorrow = START + dt.timedelta(days=16)
    span = common_pb2.Interval(start_time=stamp(tomorrow), end_time=stamp(tomorrow + dt.timedelta(days=1)))
    request = menus_pb2.PlanStaffingRequest(queue="queues/service", interval=span)
    try:
        plan = await planner.answer("PlanStaffing", request, menus_pb2.PlanStaffingResponse())
    finally:
        await planner.close()
    busy = [row for row in plan.requirements if row.arrivals > 1]
    # Who was passed on to the other region counts once.
    assert len(busy) == 18
    assert all(row.arrivals == pytest.approx(18, abs=1.5) and row.service_level >= 0.8 for row in busy)
    assert plan.shifts
    assert not any(row.missing for row in plan.requirements)

    entry = planning_pb2.RosterEntry(
        agent="agents/ann",
        interval=common_pb2.Interval(start_time=stamp(START), end_time=stamp(START + SLOT)),
    )
    asked = planning_pb2.GetAdherenceRequest(roster=[entry])
    kept = planning_pb2.GetAdherenceResponse.FromString(here(database, "GetAdherence", asked))
    assert kept.agents[0].adherence == 1.0
    unknown = menus_pb2.ForecastArrivalsRequest(queue="queues/none", interval=span)
    with pytest.raises(QueueNotFound):
        here(database, "ForecastArrivals", unknown)
