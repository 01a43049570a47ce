"""Menus of a router with a real database, over gRPC and from the command line; what is counted there and in
memory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToJson
from mongoengine import get_db
from tests.unit.routing.routing_menus import hotline, index, survey
from typer.testing import CliRunner

from callmesh.routing.v1 import directory_pb2, directory_pb2_grpc, menu_events_pb2, menus_pb2_grpc
from callmesh.routing.v1 import menus_pb2 as pb
from chassis.bus import Event
from chassis.mongo import async_database, connect, disconnect
from chassis.server import Server
from chassis.testing.grpc import loopback_settings
from cli import directory as cli_directory
from cli.main import app
from routing.config import RoutingSettings
from routing.menus import engine
from routing.menus.documents import SurveyDocument
from routing.menus.engine import Input, Outcome, State
from routing.menus.inbound import MongoCallers
from routing.menus.records import Query, Record
from routing.menus.store import MemoryMenus, MongoMenus
from routing.menus.tokens import body_of
from routing.scopes import SCOPES
from routing.server import Router

pytestmark = pytest.mark.integration
ANN = "+8613800138000"


class Platform:
    """A router that can be restarted, and its clients."""

    def __init__(self, settings: RoutingSettings) -> None:
        self.settings = settings

    async def start(self) -> None:
        self.router = Router(self.settings)
        self.server = Server(self.settings, self.router.services(), scopes=SCOPES)
        await self.server.start(self.router.start)
        self.channel = grpc.aio.insecure_channel(self.server.address)
        self.menus = menus_pb2_grpc.MenuServiceStub(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(None)
        await self.router.stop()

    async def furnish(self) -> None:
        directory = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        for queue in ("sales", "service"):
            await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=queue))

    async def load(self, id: str, menu: pb.Menu) -> None:
        made = await self.menus.CreateMenu(pb.CreateMenuRequest(menu_id=id, menu=menu))
        await self.menus.PublishMenu(pb.PublishMenuRequest(name=f"menus/{id}", version=made.version))

    async def call(self, *keys: str, **fields: Any) -> Any:
        base = {"menu": "menus/hotline", "caller_number": ANN, "language": "zh"}
        answer = await self.menus.StepMenu(pb.StepMenuRequest(**{**base, **fields}))
        for key in keys:
            answer = await self.menus.StepMenu(pb.StepMenuRequest(session=answer.session, digit=key))
        return answer

    async def cli(self, *arguments: str) -> str:
        """What a command says; its failure as the line that it would print."""
        words = [*arguments, "--address", self.server.address]
        done = await asyncio.to_thread(CliRunner().invoke, app, ["menus", *words])
        if isinstance(done.exception, cli_directory.Refused):
            return f"refused: {done.exception}"
        assert done.exit_code == 0, done.output
        return done.output


@pytest_asyncio.fixture
async def platform(mongo_uri: str, mongo_database: str, tmp_path: Path) -> AsyncIterator[Platform]:
    key = tmp_path / "key"
    key.write_text("k" * 40)
    made = RoutingSettings(
        region="beijing",
        mongo_uri=mongo_uri,
        mongo_database=mongo_database,
        place_token_key_file=str(key),
        menu_poll_seconds=0.05,
    )
    settings = loopback_settings(made)
    assert isinstance(settings, RoutingSettings)
    connect(settings)
    platform = Platform(settings)
    await platform.start()
    await platform.furnish()
    yield platform
    await platform.stop()
    disconnect()


async def test_a_session_survives_its_router(platform: Platform, tmp_path: Path) -> None:
    await platform.load("hotline", hotline())
    await platform.load("after", survey())
    there = await platform.call("2", call_id="pbx:1")
    lost = await platform.call("1", call_id="pbx:2")
    await platform.stop()
    await platform.start()
    leaf = await platform.menus.StepMenu(pb.StepMenuRequest(session=there.session, digit="2"))
    assert leaf.done and leaf.node.queue == "queues/sales" and leaf.farewell == "再见"
    resumed = await platform.call(call_id="pbx:2")
    assert resumed.resumed and resumed.node.id == "bills" and resumed.step == lost.step
    for _ in range(2):
        asked = await platform.call("1", "2", menu="menus/after", call_id="pbx:1")
    assert asked.done
    stored = SurveyDocument.objects.order_by("created_at")
    told = [
        Event.from_json(e["event"]).message(menu_events_pb2.SurveyAnswered) for s in stored for e in s.outbox
    ]
    assert [(t.satisfaction, t.call_id) for t in told] == [(1.0, "pbx:1")] * 2 and told[0].session != told[
        1
    ].session
    await check_tickets(platform)
    await check_commands(platform, tmp_path)


async def check_tickets(platform: Platform) -> None:
    """An open ticket offers the way to it; whatever order its events come in."""
    ben, tickets = "+8613900139000", MongoCallers()

    def keep(*versions: tuple[int, bool]) -> None:
        for version, is_open in versions:
            tickets.keep("t1", ben, version, open=is_open)

    deep = hotline()
    request = deep.root.children.pop(3)
    request.digit = "3"
    deep.root.children[0].children.append(request)
    await platform.load("deep", deep)
    await asyncio.to_thread(keep, (2, True), (1, False), (2, True))
    first = await platform.call(menu="menus/deep", caller_number=ben)
    assert [c.node for c in first.choices if c.personal] == ["request"]
    await asyncio.to_thread(keep, (3, False), (2, True))
    assert not any(c.personal for c in (await platform.call(menu="menus/deep", caller_number=ben)).choices)
    await check_erasure(platform)


async def check_erasure(platform: Platform) -> None:
    """An erased customer is in none of the records; where it went is still counted."""
    await platform.call("1", "1", call_id="pbx:9", customer="customers/li")
    await platform.router.menus.recorder.write()
    database = get_db()
    assert database["menu_callers"].count_documents({"number": ANN}) > 0
    before = database["menu_sessions"].count_documents({})
    database["profile_customers"].insert_one({"_id": "li", "numbers": [ANN], "version": 1})
    for _ in range(2):
        await asyncio.to_thread(MongoCallers().forget, "li")
    assert database["menu_callers"].count_documents({"number": ANN}) == 0
    left = list(database["menu_sessions"].find({}))
    assert len(left) == before and not [row for row in left if row["number"] == ANN or row["customer"]]
    assert (await platform.call(call_id="pbx:9")).step == 1


async def check_commands(platform: Platform, tmp_path: Path) -> None:
    """Load, look, count, rebuild, publish, compare from files."""
    good, bad, counts = tmp_path / "menu.json", tmp_path / "bad.yaml", tmp_path / "counts.csv"
    body = MessageToJson(hotline(), preserving_proto_field_name=True)
    good.write_text(body.replace("{", '{"id": "hotline",', 1), encoding="utf-8")
    bad.write_text("id: hotline\nroot: {id: r, prompts: {zh: 您好}, children: [{id: a, digit: '1'}]}\n")
    counts.write_text("pay,90\nbalance,10\n")
    assert "menus/hotline@2: in service" in await platform.cli("apply", str(good))
    assert (
        "menu.root.children[0]" in (refusal := await platform.cli("apply", str(bad)))
        and "dead end" in refusal
    )
    shown = await platform.cli("show", "hotline")
    assert "menus/hotline@2 (in service)" in shown and "余额 (balance) -> answer" in shown
    await platform.router.menus.recorder.write()
    assert "3 sessions: 2 reached something" in await platform.cli("stats", "hotline")
    rebuilt = await platform.cli("rebuild", "hotline", "--free", "--changes", "1", "--accesses", str(counts))
    assert "2.000 keys before, 1.100 after" in rebuilt and "pay: 1-2 -> 5" in rebuilt
    assert "hotline@3, a draft" in rebuilt
    assert "40% of the callers try version 3" in await platform.cli(
        "publish", "hotline", "3", "--share", "0.4"
    )
    compared = await platform.cli("compare", "hotline", "2", "3")
    assert "gave up" in compared and "+0.000" in compared and "yes" not in compared
    counts.write_text("pay\n")
    assert "row 1" in await platform.cli("rebuild", "hotline", "--accesses", str(counts))
    assert "there is no menu" in (await platform.cli("show", "nothing")).lower()


def wanderings(number: int) -> list[State]:
    """Sessions of a few callers who press what comes to mind; the same every time."""
    draw, found = random.Random(11), []
    for n in range(number):
        began = 1_772_431_200_000 + n * 60_000
        state = State(
            id=f"s{n}",
            menu="hotline",
            version=draw.choice([1, 2]),
            began_ms=began,
            last_ms=began,
            number=draw.choice(["", ANN, "+8613900139000", f"+86138{n:08d}"]),
            customer=draw.choice(["", "customers/7"]),
        )
        state = engine.begin(index(), state)
        for _ in range(draw.randrange(8)):
            if state.outcome is Outcome.OPEN:
                did = draw.choice([Input.KEY] * 8 + [Input.TIMEOUT, Input.HANG_UP])
                now_ms = state.last_ms + draw.randrange(9_000)
                state = engine.step(index(), state, did, draw.choice("1234*#09"), now_ms, (0,)).state
                found.append(state)
    return found


async def test_the_database_counts_as_the_memory_does(mongo_uri: str, mongo_database: str) -> None:
    settings = RoutingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database)
    connect(settings)
    database = async_database(settings)
    stores = [MemoryMenus(), MongoMenus(database)]
    rows = [(Record.of(state), body_of(state)) for state in wanderings(150)]
    later = datetime.now(UTC) + timedelta(days=1)
    first, last = rows[0][0].began_ms, rows[-1][0].began_ms
    vanished = first + (last - first) // 2
    base: dict[str, Any] = {"menu": "hotline", "from_ms": first, "to_ms": last, "vanished_ms": vanished}
    queries = [
        Query(**base, **more)
        for more in ({}, {"version": 2}, {"number": ANN}, {"customer": "customers/7"}, {"links": ("slow",)})
    ]
    for store in stores:
        # In any order, and again.
        await store.record(rows[::2], later)
        await store.record(rows, later)
        await store.record(rows[:50], later)
    memory, mongo = stores
    for query in queries:
        mine, theirs = await memory.counts(query), await mongo.counts(query)
        assert (mine.totals.sessions > 0, sorted(mine.paths)) == (True, sorted(theirs.paths))
        theirs.paths = mine.paths
        assert theirs == mine
        assert await mongo.totals(query, [1, 2]) == await memory.totals(query, [1, 2])
        assert await mongo.accesses(query) == await memory.accesses(query)
    assert await mongo.session("s3") == await memory.session("s3")
    facts = [await store.caller("hotline", ANN, tickets=True) for store in stores]
    assert sorted(facts[0].uses, key=str) == sorted(facts[1].uses, key=str) and facts[0].uses
    assert get_db()["menu_sessions"].count_documents({}) == len(memory.rows)
    await database.client.close()
    disconnect()
