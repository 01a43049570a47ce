"""What a lost broker held comes back from the event logs: to the handlers that never took it, and to no
other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pytest
import typer
from typer.testing import CliRunner

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.inbox import Inbox
from chassis.bus.topology import Subscription, declare
from chassis.eventlog import COLLECTION, Entry, EventLog
from cli import redeliver as command
from cli.dead import letters
from cli.redeliver import AT_ONCE, Wanted, redeliver, wanted

pytestmark = pytest.mark.integration

TYPE, OTHER = (each.DESCRIPTOR.full_name for each in (events_pb2.CallWrappedUp, events_pb2.CallQueued))
#: Handlers of two services that want the same events.
SUBSCRIPTIONS = [
    Subscription(service=service, handler="on_lost", source="routing", types=(TYPE,))
    for service in ("crm", "tickets")
]
WANTED = [
    Wanted(
        service=each.service,
        handler=each.handler,
        queue=each.queue,
        source=each.source,
        types=frozenset({TYPE}),
    )
    for each in SUBSCRIPTIONS
]
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
app = typer.Typer()
app.command()(redeliver)


def entry(id: str, type: str = TYPE, **more: Any) -> Entry:
    message = events_pb2.CallWrappedUp(call={"agent": "agents/one"})
    event = Event.of(
        message, source="routing", subject="calls/c", time=datetime.now(UTC), id=id, traceparent=TRACE
    )
    body = json.loads(event.to_json()) | {"type": type} | more
    return Entry(id=id, type=type, body=json.dumps(body).encode())


@pytest.fixture
def databases(mongo_uri: str, mongo_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Database by service, under names of the test's own."""
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    with pymongo.MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        names = {
            service: f"{mongo_database}_{service}" for service in ("routing", "crm", "tickets", "marketing")
        }
        for service, name in names.items():
            monkeypatch.setenv(f"{service.upper()}_MONGO_DATABASE", name)
        yield {service: client[name] for service, name in names.items()}
        for name in names.values():
            client.drop_database(name)


@pytest.fixture
def channel(amqp_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AMQP_URI", amqp_uri)
    monkeypatch.setattr(command, "wanted", lambda: WANTED)
    connection = open_connection(amqp_uri)
    channel = connection.channel()
    declare(channel, SUBSCRIPTIONS)
    yield channel
    for each in SUBSCRIPTIONS:
        channel.queue_delete(each.queue)
        channel.queue_delete(each.dead_queue)
    close_quietly(connection)


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_each_handler_gets_what_it_never_took(databases: Any, channel: Any) -> None:
    log = EventLog(databases["routing"], service="routing")
    log.ensure()
    many = [f"many-{n:04}" for n in range(AT_ONCE + 20)]
    log.append([entry("old"), entry("other", OTHER), entry("forgotten", redacted=True), *map(entry, many)])
    databases["routing"][COLLECTION].update_one(
        {"event": "old"}, {"$set": {"at": datetime.now(UTC) - timedelta(hours=5)}}
    )
    Inbox(databases["tickets"]).mark_all("on_lost", many[:-2])

    counted = run("--hours", "4")
    assert counted.exit_code == 1
    assert counted.output.splitlines() == [
        f"crm.on_lost: {len(many)} never taken",
        "tickets.on_lost: 2 never taken",
    ]
    assert list(letters(channel, "crm.on_lost")) == [], "it was only counted"

    done = run("--apply")
    assert done.exit_code == 0 and "tickets.on_lost: 3 brought" in done.output
    crm, tickets = (list(letters(channel, each.queue)) for each in SUBSCRIPTIONS)
    assert [letter.id for letter in crm] == ["old", *many], "in the log's order"
    assert [letter.id for letter in tickets] == ["old", *many[-2:]]
    assert tickets[0].type == TYPE and tickets[0].headers["traceparent"] == TRACE
    for service in ("crm", "tickets"):
        (act,) = databases[service].acts.find()
        assert (act["method"], act["outcome"]) == ("callmesh redeliver", "OK")

    for service in ("crm", "tickets"):
        Inbox(databases[service]).mark_all("on_lost", ["old", *many])
    assert run().output == "nothing is missing\n"


def test_a_worker_says_itself_what_it_wants() -> None:
    from chassis.bus.entrypoint import subscriptions_of
    from tickets.consumers import TicketsConsumers

    found = {(each.queue, each.handler, each.source, each.types) for each in wanted(["tickets"])}
    assert found == {
        (each.queue, each.handler, each.source, frozenset(each.types))
        for each in subscriptions_of(TicketsConsumers)
    }
