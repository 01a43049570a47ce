"""Dead letters on a real broker: seen without personal data, replayed once, dropped with a reason, each act
told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event, verdict
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Outgoing, Publisher
from chassis.bus.topology import Subscription, declare
from cli.dead import dead, letters
from cli.directory import Refused
from cli.queues import HANDLERS, handler_queues

pytestmark = pytest.mark.integration

QUEUE = "marketing.on_call"
WRAPPED, ACT = events_pb2.CallWrappedUp, events_pb2.AdministrativeAct
SUBSCRIPTIONS = [
    Subscription(
        service="marketing", handler="on_call", source="routing", types=(WRAPPED.DESCRIPTOR.full_name,)
    ),
    Subscription(service="routing", handler="on_act", source="routing", types=(ACT.DESCRIPTOR.full_name,)),
]
HEADERS = {
    verdict.REASON_HEADER: "attempts",
    verdict.ERROR_HEADER: "ValueError: +8613800138000 is odd",
    verdict.ATTEMPT_HEADER: 5,
    verdict.FAILED_AT_HEADER: 1_700_000_000_000,
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}


def letter(id: str) -> Outgoing:
    message = WRAPPED(call={"caller_number": "+8613800138000", "agent": "agents/one"})
    event = Event.of(message, source="routing", subject="calls/c", time=datetime.now(UTC), id=id)
    return Outgoing(
        exchange="",
        routing_key=f"{QUEUE}.dead",
        body=event.to_json().encode(),
        headers=HEADERS,
        message_id=id,
    )


@pytest.fixture
def bus(amqp_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AMQP_URI", amqp_uri)
    connection = open_connection(amqp_uri)
    channel = connection.channel()
    declare(channel, SUBSCRIPTIONS)
    queues = [queue for each in SUBSCRIPTIONS for queue in (each.queue, each.dead_queue)]
    for queue in queues:
        channel.queue_purge(queue)
    publisher = Publisher(amqp_uri, service="test")
    sent = [letter(id) for id in ("one", "two", "three")]
    broken = Outgoing(exchange="", routing_key=f"{QUEUE}.dead", body=b"no event", headers=HEADERS)
    assert publisher.publish([*sent, broken]) == [Outcome.PUBLISHED] * 4
    publisher.close()
    yield channel
    for queue in queues:
        channel.queue_delete(queue)
    close_quietly(connection)


def run(*words: str) -> Any:
    return CliRunner().invoke(dead, words)


def acts(channel: Any) -> list[Any]:
    return [Event.from_json(each.body).message(ACT) for each in letters(channel, "routing.on_act")]


def test_letters_are_seen_replayed_and_dropped(bus: Any) -> None:
    listed = run("list", "--json")
    assert listed.exit_code == 1 and json.loads(listed.output)[QUEUE] == 4

    seen = run("show", QUEUE).output
    assert "13800138000" not in seen
    first, *_, last = json.loads(seen)
    assert (first["id"], first["reason"], first["attempts"]) == ("one", "attempts", 5)
    assert first["failed_at"].startswith("2023-11-14") and "callerNumber" not in first["data"]["call"]
    assert first["data"]["call"]["agent"] == "agents/one" and last["data"].startswith("not shown")

    done = run("replay", QUEUE, "--id", "two", "--reason", "mended in 1.2")
    assert done.output == "1 replayed\n"
    (back,) = letters(bus, QUEUE)
    # Its attempts count from the first again; its trace goes on.
    assert back.id == "two" and set(back.headers) & set(HEADERS) == {"traceparent"}
    assert run("drop", QUEUE, "--all", "--reason", "of no use").output == "3 dropped\n"
    assert run("list").exit_code == 0
    told = [(act.method, act.resource, act.reason, dict(act.details).get("event")) for act in acts(bus)]
    where = f"dead-letters/{QUEUE}"
    assert told == [
        ("callmesh dead replay", where, "mended in 1.2", "two"),
        *(("callmesh dead drop", where, "of no use", id) for id in ("one", "three", "")),
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("replay", "crm.nobody", "--all", "--reason", "x"), "there is no queue 'crm.nobody'"),
        (("replay", QUEUE, "--reason", "x"), "say which"),
        (("drop", QUEUE, "--all", "--id", "one", "--reason", "x"), "say which"),
        (("drop", QUEUE, "--all", "--reason", " "), "--reason must have"),
        (("drop", QUEUE, "--id", "nobody", "--reason", "x"), "not in marketing.on_call.dead: nobody; 0 done"),
    ],
)
def test_what_is_not_said_in_full_changes_nothing(bus: Any, words: tuple[str, ...], why: str) -> None:
    refused = run(*words)
    assert isinstance(refused.exception, Refused) and why in str(refused.exception)
    assert json.loads(run("list", "--json").output)[QUEUE] == 4


def test_the_queues_are_those_of_the_workers() -> None:
    from chassis.bus.entrypoint import subscriptions_of
    from crm.consumers import CrmConsumers
    from marketing.consumers import MarketingConsumers
    from routing.consumers import RoutingConsumers
    from tickets.consumers import TicketsConsumers

    workers = (CrmConsumers, MarketingConsumers, RoutingConsumers, TicketsConsumers)
    assert {each.queue for worker in workers for each in subscriptions_of(worker)} == set(handler_queues())
    assert set(HANDLERS) == {worker.name for worker in workers}
