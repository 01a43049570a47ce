"""A past day read from a real journal: by code, by `callmesh simulate`, and for the RPC, apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymongo
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.routing.routing_past_examples import HOUR_MS, QUEUES, START_MS, a_day, blocks_of, lived
from typer.testing import CliRunner

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2, supervision_pb2
from chassis.errors import InvalidArgument
from cli.main import app
from routing import codec, whatif_day
from routing.journal import JournalGap, to_document
from routing.past import read_past
from routing.virtual import DayResult
from routing.whatif import figures, happened, report

pytestmark = pytest.mark.integration
END_MS = START_MS + 4 * HOUR_MS


@pytest.fixture
def database(mongo_uri: str, mongo_database: str) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[mongo_database]


@pytest.fixture
def result(database: Any) -> DayResult:
    """The day's journal in the database; what came of the day."""
    result, events = lived(*a_day())
    for shard, rows in events.items():
        blocks = [replace(block, shard=shard) for block in blocks_of(shard, rows)]
        database["journal"].insert_many([to_document(block) for block in blocks])
    return result


def interval(start_ms: int = START_MS, end_ms: int = END_MS) -> common_pb2.Interval:
    return common_pb2.Interval(
        start_time=Timestamp(seconds=start_ms // 1000), end_time=Timestamp(seconds=end_ms // 1000)
    )


def test_what_happened_is_read(database: Any, result: DayResult) -> None:
    past = read_past(database, START_MS, END_MS)
    queues = {queue.id: queue for queue in QUEUES}
    assert report(happened(past), past.roster).total == figures(result.outcomes, queues)
    north = read_past(database, START_MS, END_MS, regions=["north"])
    assert {agent.id for agent in north.roster.agents} == {"ann", "bob"}


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "regions", "why"),
    [
        (START_MS, START_MS, [], "interval: must end after it begins, at most a day later"),
        (START_MS, START_MS + 25 * HOUR_MS, [], "interval: must end after it begins, at most a day later"),
        (START_MS - 9 * HOUR_MS, START_MS - 8 * HOUR_MS, [], "interval: the journal has no call in it"),
        (START_MS, END_MS, ["moon"], "regions: there is no journal of 'moon'"),
    ],
)
def test_spans_and_regions_that_are_not_there_are_named(
    database: Any, result: DayResult, start_ms: int, end_ms: int, regions: list[str], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        read_past(database, start_ms, end_ms, regions=regions)


def test_what_was_pruned_comes_from_the_directory(database: Any, result: DayResult) -> None:
    database["journal"].delete_one({"_id": "north:0000000000000001"})
    database["agents"].insert_one({"_id": "ann", "region": "north", "skills": {"english": 5}})
    past = read_past(database, START_MS, END_MS)
    known = {agent.id: agent.skills for agent in past.roster.agents}
    assert known["ann"] == (("english", 5),) and known["cay"] == (("english", 3),)


def test_a_newer_format_is_not_guessed_at(database: Any, result: DayResult) -> None:
    database["journal"].update_one({"_id": "south:0000000000000001"}, {"$set": {"format": codec.FORMAT + 1}})
    with pytest.raises(JournalGap, match="format"):
        read_past(database, START_MS, END_MS)


def test_the_command_reads_the_journal(
    database: Any, result: DayResult, mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    out = tmp_path / "report.json"
    arguments = [
        "simulate",
        "--day",
        "2026-02-25",
        "--zone",
        "UTC",
        "--database",
        database.name,
        "--agents",
        "9",
    ]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text())
    assert told["happened"]["offered"] == 200 and set(told["proposed"]["queues"]) == {"sales", "service"}
    assert told["proposed"]["asa_seconds"] < told["happened"]["asa_seconds"]
    monkeypatch.setenv("MONGO_URI", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1")
    monkeypatch.setattr("cli.simulate.ANSWER_MS_MAX", 100)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "the journal cannot be read" in done.output


async def test_simulate_day_answers_from_a_process_of_its_own(
    database: Any, result: DayResult, mongo_uri: str
) -> None:
    request = supervision_pb2.SimulateDayRequest(interval=interval(), seed=1)
    for name in ("ann", "bob", "cay", "new-1", "new-2", "new-3"):
        agent = directory_pb2.Agent(name=f"agents/{name}", region="regions/south", skills={"english": 3})
        request.agents.append(agent)
    response = await whatif_day.answer(request, mongo_uri, database.name)
    assert response == whatif_day.simulate_request(request, database)
    actual, proposed = ({row.queue: row for row in rows} for rows in (response.actual, response.proposed))
    assert sum(row.offered for row in actual.values()) == 200
    service = "queues/service"
    assert proposed[service].answered > actual[service].answered
