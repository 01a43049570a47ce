"""The worker process, as it is run."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import directory_pb2, events_pb2
from chassis.bus import Event, topology
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Publisher
from chassis.localstack import free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from chassis.testing.waiting import wait_until
from routing import model
from routing.journal import COLLECTION, to_document
from routing.relay import CURSORS
from routing.testing import block_of

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
READY_SECONDS_MAX = 60.0
T0 = 1_772_000_000_000
NUMBER = "+8613800138000"
MANDATORY = (
    events_pb2.CallQueued,
    events_pb2.CallConnected,
    events_pb2.CallEnded,
    events_pb2.CallWrappedUp,
    events_pb2.RegionStateChanged,
)


class Listener:
    """A queue bound to what routing publishes."""

    def __init__(self, amqp_uri: str) -> None:
        self.service = f"probe{secrets.token_hex(4)}"
        self.connection = open_connection(amqp_uri)
        self.channel = self.connection.channel()
        names = tuple(kind.DESCRIPTOR.full_name for kind in MANDATORY)
        subscription = topology.Subscription(service=self.service, handler="h", source="routing", types=names)
        topology.declare(self.channel, [subscription], delays_seconds=())
        self.heard: list[Event] = []

    def hear(self) -> list[str]:
        """Ids heard so far, of all that was ever published."""
        while (message := self.channel.basic_get(f"{self.service}.h", no_ack=True)) is not None:
            self.heard.append(Event.from_json(message.body))
        return [event.id for event in self.heard]

    def close(self) -> None:
        for queue in (f"{self.service}.h", f"{self.service}.h.dead"):
            self.channel.queue_delete(queue)
        close_quietly(self.connection)


@pytest.fixture
def listener(amqp_uri: str) -> Iterator[Listener]:
    made = Listener(amqp_uri)
    yield made
    made.close()


StartWorker = Callable[[str], tuple[ManagedProcess, int]]


@pytest.fixture
def start_worker(tmp_path: Path, mongo_uri: str, mongo_database: str, amqp_uri: str) -> Iterator[StartWorker]:
    """`start_worker(name)` runs a worker until it is ready: (process, HTTP port)."""
    running: list[ManagedProcess] = []

    def start(name: str) -> tuple[ManagedProcess, int]:
        port = free_ports(1)[0]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "services"),
            "MONGO_URI": mongo_uri,
            "AMQP_URI": amqp_uri,
            "ROUTING_MONGO_DATABASE": mongo_database,
            "ROUTING_HTTP_PORT": str(port),
            "ROUTING_INSTANCE": name,
        }
        process = ManagedProcess(tmp_path, name)
        running.append(process)
        process.start([sys.executable, "-m", "routing.worker"], env=environment)
        ready = HttpReady(url=f"http://127.0.0.1:{port}/readyz")
        wait_until(lambda: ready() or not process.alive(), READY_SECONDS_MAX, what=f"{name} is ready")
        assert process.alive(), process.log_tail()
        return process, port

    yield start
    for process in running:
        process.stop()


class Journal:
    """Writes what a leader would."""

    def __init__(self, database: Any) -> None:
        self._blocks = database[COLLECTION]
        self._sequence = 0
        self.write(
            model.ShardOpened(router="r", leaderless_span_ms=0),
            model.QueueConfigured(queue=model.QueueConfig(id="q")),
        )

    def write(self, *events: model.Event) -> None:
        self._sequence += 1
        at = T0 + self._sequence
        block = block_of([(at, event) for event in events], self._sequence, at)
        self._blocks.insert_one(to_document(block))

    def call(self, call_id: str) -> str:
        """One block with one call; the id of its event."""
        facts = model.CallFacts(call_id=call_id, queue="q", caller_number=NUMBER)
        self.write(
            model.CallQueued(
                facts=facts,
                attempt=1,
                move=1,
                front="f",
                queued_ms=T0,
                effective_ms=T0,
                waited_span_ms=0,
            )
        )
        return f"beijing:{self._sequence}:0"


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def value(text: str, metric: str) -> float | None:
    """A sample's value; `metric` with its labels as exposed."""
    found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


def test_a_worker_publishes_the_journal_and_says_how_far(
    start_worker: StartWorker, listener: Listener, mongo_client: Any, mongo_database: str
) -> None:
    journal = Journal(mongo_client[mongo_database])
    ids = [journal.call(f"c{n}") for n in range(5)]
    process, port = start_worker("worker")
    wait_until(lambda: listener.hear() == ids, 60, what="all is heard")
    ids.append(journal.call("late"))
    wait_until(lambda: listener.hear() == ids, 60, what="what came later is heard")
    lag = 'callmesh_relay_lag_blocks{shard="beijing"}'
    wait_until(lambda: value(scrape(port), lag) == 0.0, 60, what="nothing is left behind")
    text = scrape(port)
    assert value(text, "callmesh_relay_active") == 1
    kind = "callmesh.routing.v1.CallQueued"
    assert value(text, f'callmesh_bus_published_total{{service="routing",type="{kind}"}}') == 6
    assert process.send(signal.SIGTERM)
    wait_until(lambda: not process.alive(), 60, what="it has ended")
    assert process.exit_code() == 0, process.log_tail()


def heard(listener: Listener, count: int) -> bool:
    return len(set(listener.hear())) >= count


def gone(process: ManagedProcess) -> bool:
    return not process.alive()


def test_killed_at_any_time_nothing_is_missing(
    start_worker: StartWorker, listener: Listener, mongo_client: Any, mongo_database: str
) -> None:
    database = mongo_client[mongo_database]
    journal = Journal(database)
    ids: list[str] = []
    for round in range(3):
        process, _ = start_worker(f"worker-{round}")
        ids += [journal.call(f"c{round}-{n}") for n in range(40)]
        # In the middle of its work, as far as a test can tell.
        wait_until(partial(heard, listener, len(ids) - 20), 60, what="it is at work")
        process.send(signal.SIGKILL)
        wait_until(partial(gone, process), 60, what="it is gone")
        # What a new worker would wait for otherwise.
        database["leases"].update_one({"_id": "journal"}, {"$set": {"expires_at": datetime(2000, 1, 1)}})
    start_worker("last")
    wait_until(lambda: set(listener.hear()) == set(ids), 60, what="all is heard")
    assert database[CURSORS].find_one({"_id": "beijing"})["sequence"] <= len(ids) + 1


def test_a_second_worker_takes_over(
    start_worker: StartWorker, listener: Listener, mongo_client: Any, mongo_database: str
) -> None:
    journal = Journal(mongo_client[mongo_database])
    first, _ = start_worker("first")
    _, second_port = start_worker("second")
    ids = [journal.call("a")]
    wait_until(lambda: listener.hear() == ids, 60, what="the first publishes")
    assert value(scrape(second_port), "callmesh_relay_active") == 0
    first.send(signal.SIGTERM)
    ids.append(journal.call("b"))
    wait_until(lambda: listener.hear() == ids, 60, what="the second publishes")


def test_crms_customers_become_profiles(
    start_worker: StartWorker, amqp_uri: str, mongo_client: Any, mongo_database: str
) -> None:
    start_worker("worker")
    snapshot = crm_events.CustomerSnapshot(
        customer="customers/ann",
        version=1,
        state=customers_pb2.CUSTOMER_STATE_ACTIVE,
        numbers=[NUMBER],
        tier=customers_pb2.TIER_GOLD,
    )
    gone = crm_events.CustomerSnapshot(
        customer="customers/ann", version=2, state=customers_pb2.CUSTOMER_STATE_DELETED
    )

    def event(message: Any, minute: int) -> Event:
        moment = datetime(2026, 3, 2, 9, minute, tzinfo=UTC)
        return Event.of(message, source="crm", subject="customers/ann", time=moment)

    profiles = mongo_client[mongo_database]["profiles"]
    publisher = Publisher(amqp_uri, service="test")
    created = event(crm_events.CustomerCreated(customer=snapshot), 0)
    assert publisher.publish_events([created]) == [Outcome.PUBLISHED]
    found = wait_until(lambda: profiles.find_one({"_id": NUMBER}), 60, what="the profile is there")
    assert (found["customer"], found["tier"], found["priority"]) == ("ann", "gold", 2)
    # The indexes are made by a loop that begins beside the consumers.
    wait_until(lambda: "customer_1" in profiles.index_information(), 60, what="the index of customers")
    known = mongo_client[mongo_database]["profile_customers"]
    wait_until(lambda: "numbers_1" in known.index_information(), 60, what="the index of numbers")
    ended = events_pb2.CallEnded(call={"call_id": "a", "caller_number": NUMBER})
    moment = datetime(2026, 3, 2, 9, 1, tzinfo=UTC)
    publisher.publish_events([Event.of(ended, source="routing", subject="calls/a", time=moment)])
    wait_until(lambda: (profiles.find_one({"_id": NUMBER}) or {}).get("calls"), 60, what="the call is kept")
    profiles.update_one({"_id": NUMBER}, {"$unset": {"calls": "", "called_ms": ""}})
    publisher.publish_events([event(crm_events.CustomerDeleted(customer=gone), 1), created])
    wait_until(lambda: profiles.find_one({"_id": NUMBER}) is None, 60, what="the profile is gone")
    publisher.close()


def test_a_regions_change_goes_out_through_the_directorys_outbox(
    start_worker: StartWorker, listener: Listener, mongo_client: Any, mongo_database: str
) -> None:
    message = events_pb2.RegionStateChanged(
        region="regions/beijing", state=directory_pb2.REGION_STATE_DRAINING
    )
    event = Event.of(
        message,
        source="routing",
        subject="regions/beijing",
        time=datetime(2026, 3, 2, tzinfo=UTC),
        id="drain",
    )
    act = Event.of(
        events_pb2.AdministrativeAct(actor="ann", resource="regions/beijing", details={"a.b": "c"}),
        source="routing",
        subject="regions/beijing",
        time=datetime(2026, 3, 2, tzinfo=UTC),
        id="act",
    )
    mongo_client[mongo_database]["regions"].insert_one(
        {
            "_id": "beijing",
            "version": 1,
            "latitude": 39.9,
            "longitude": 116.4,
            "outbox": [{"id": each.id, "event": each.to_json()} for each in (event, act)],
            "outbox_since": datetime(2026, 3, 2, tzinfo=UTC),
        }
    )
    start_worker("worker")
    wait_until(lambda: listener.hear() == ["drain"], 60, what="it is heard")
    audit = mongo_client[mongo_database]["audit"]
    kept = wait_until(lambda: audit.find_one({"_id": "act"}), 60, what="the act is kept")
    assert (kept["actor"], kept["resource"]) == ("ann", "regions/beijing")


def test_a_worker_never_loads_grpc() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import routing.worker; "
        "from chassis import worker; worker.patch(); "
        "import routing.config, routing.consumers, routing.relay, routing.publish, routing.store, "
        "routing.background; "
        "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'grpc_status', 'uvloop')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "services", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
