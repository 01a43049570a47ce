"""A whole worker process against the real broker and the real database (`bus_worker.py` beside this file)."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import amqp
import pymongo
import pytest
from google.protobuf.type_pb2 import EnumValue, Type
from google.protobuf.type_pb2 import Field as ProtoField

from chassis.bus import Event, verdict
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Outgoing, Publisher
from chassis.localstack import HttpReady, MongoNode, ProcessGroup, RabbitNode, ServiceSpec, free_ports
from chassis.testing.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("bus_worker.py")
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"


class Probe:
    """The worker under test and everything around it."""

    def __init__(self, run_dir: Path, amqp_uri: str, mongo_uri: str, database: str, **env: str) -> None:
        self.service = f"probe{secrets.token_hex(4)}"
        self.source = f"maker{secrets.token_hex(4)}"
        self.queue = f"{self.service}.on_thing"
        self.http = f"http://127.0.0.1:{free_ports(1)[0]}"
        self.client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_uri, tz_aware=True)
        self.database = self.client[database]
        self.connection = open_connection(amqp_uri)
        self.channel = self.connection.channel()
        self.publisher = Publisher(amqp_uri, service="maker")
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "MONGO_URI": mongo_uri,
            "AMQP_URI": amqp_uri,
            "PROBE_MONGO_DATABASE": database,
            "PROBE_SERVICE": self.service,
            "PROBE_SOURCE": self.source,
            "PROBE_HTTP_PORT": self.http.rpartition(":")[2],
            "LOG_FORMAT": "json",
            **env,
        }
        spec = ServiceSpec(
            name="worker",
            command=[sys.executable, str(WORKER)],
            ready=HttpReady(url=f"{self.http}/readyz"),
            start_seconds_max=40,
        )
        self.group = ProcessGroup(run_dir, [spec], env=self.env)

    def close(self) -> None:
        try:
            self.group.stop_all()
        finally:
            self.publisher.close()
            close_quietly(self.connection)
            self.client.close()

    def event(self, name: str, **values: Any) -> Event:
        message = ProtoField(name=name)
        return Event.of(message, source=self.source, subject="", time=datetime.now(UTC), **values)

    def publish(self, *events: Event) -> None:
        assert self.publisher.publish_events(events) == [Outcome.PUBLISHED] * len(events)

    def runs(self, event: Event, handler: str = "on_thing") -> int:
        return self.database["effects"].count_documents({"event": event.id, "handler": handler})

    def marked(self, event: Event, handler: str = "on_thing") -> bool:
        return self.database["inbox"].find_one({"_id": f"{handler}:{event.id}"}) is not None

    def await_marked(self, *events: Event, seconds: float = 40) -> None:
        wait_until(lambda: all(self.marked(event) for event in events), seconds, what="all events handled")

    def dead(self, seconds: float = 40) -> amqp.Message:
        message: amqp.Message = wait_until(
            lambda: self.channel.basic_get(f"{self.queue}.dead", no_ack=True), seconds, what="a dead letter"
        )
        return message

    def depth(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        # Without the last one, which is empty, or not written to its end yet.
        lines = self.group.process("worker").log_path.read_text().split("\n")[:-1]
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line.get("event") == event]


def headers(message: amqp.Message) -> dict[str, Any]:
    return dict(message.properties["application_headers"])


@pytest.fixture
def idle_probe(tmp_path: Path, amqp_uri: str, mongo_uri: str, mongo_database: str) -> Iterator[Probe]:
    made = Probe(tmp_path, amqp_uri, mongo_uri, mongo_database)
    yield made
    made.close()


@pytest.fixture
def probe(idle_probe: Probe) -> Probe:
    idle_probe.group.start_all()
    return idle_probe


def test_an_event_is_handled_once_under_its_trace(probe: Probe) -> None:
    event = probe.event("ok", traceparent=TRACE)
    other = Event.of(EnumValue(name="v"), source=probe.source, subject="", time=datetime.now(UTC))
    probe.publish(event, other)
    probe.await_marked(event)
    wait_until(lambda: probe.marked(other, "values"))
    assert (probe.runs(event), probe.runs(event, "values"), probe.runs(other, "values")) == (1, 0, 1)
    effect = probe.database["effects"].find_one({"event": event.id})
    assert effect is not None and effect["trace"] == TRACE
    wait_until(lambda: probe.metric("callmesh_bus_consumed_total", handler="on_thing") == 1.0)
    index = probe.database["inbox"].index_information()["at"]
    assert index["expireAfterSeconds"] > 7 * 24 * 3600


def test_the_process_holds_no_grpc_and_mends_its_background_loop(probe: Probe) -> None:
    pid = probe.group.process("worker").pid()
    assert "cygrpc" not in Path(f"/proc/{pid}/maps").read_text()
    rows = probe.database["effects"]
    wait_until(lambda: rows.count_documents({"handler": "background"}) > 5)
    crashes = probe.metric("callmesh_background_crashes_total", loop="step", service=probe.service)
    assert crashes == 2.0
    with urllib.request.urlopen(f"{probe.http}/metrics", timeout=30) as answer:
        counted = re.findall(r'crashes_total\{loop="(\w+)"', answer.read().decode())
    assert {"step", "outbox", "ping"} <= set(counted), "a first time is an increase only where there was a 0"
    assert len(probe.log_lines("worker.loop_broke")) == 2


def test_a_repetition_is_acknowledged_and_counted(probe: Probe) -> None:
    event = probe.event("ok")
    probe.publish(event)
    probe.await_marked(event)
    probe.publish(event, event)
    wait_until(lambda: probe.metric("callmesh_bus_duplicate_total", handler="on_thing") == 2.0)
    assert probe.runs(event) == 1
    wait_until(lambda: probe.depth(probe.queue) == 0)


def test_a_handler_that_fails_twice_succeeds_at_the_third_attempt(probe: Probe) -> None:
    event = probe.event("fail:2")
    probe.publish(event)
    probe.await_marked(event)
    assert probe.runs(event) == 3
    assert probe.metric("callmesh_bus_retried_total", handler="on_thing") == 2.0
    delays = [line["delay_seconds"] for line in probe.log_lines("bus.handler_failed")]
    assert delays == [0.1, 0.2]


def test_after_its_attempts_an_event_is_a_dead_letter_with_its_reason(probe: Probe) -> None:
    event = probe.event("fail:99")
    probe.publish(event)
    message = probe.dead()
    assert Event.from_json(message.body) == event
    found = headers(message)
    assert found[verdict.REASON_HEADER] == verdict.REASON_ATTEMPTS
    assert found[verdict.ATTEMPT_HEADER] == 5
    assert found[verdict.ERROR_HEADER] == "RuntimeError: failure 5"
    assert probe.runs(event) == 5
    assert not probe.marked(event)
    probe.publish(event)
    wait_until(lambda: probe.runs(event) == 6, what="a dead letter can be played again")


def test_poison_is_a_dead_letter_at_once(probe: Probe) -> None:
    event = probe.event("poison")
    probe.publish(event)
    message = probe.dead()
    assert headers(message)[verdict.REASON_HEADER] == verdict.REASON_PERMANENT
    assert probe.runs(event) == 1
    wait_until(lambda: probe.metric("callmesh_bus_dead_total", handler="on_thing") == 1.0)


def test_what_is_no_event_is_a_dead_letter_unchanged(probe: Probe) -> None:
    exchange = f"{probe.source}.events"
    kind = "google.protobuf.Field"
    hostile = {verdict.ATTEMPT_HEADER: "many", verdict.FAILED_AT_HEADER: -5}
    for body in (b"", b"{", b"\xff\x00", b'{"id": "x"}', b"[" * 5000):
        probe.publisher.publish([Outgoing(exchange=exchange, routing_key=kind, body=body, headers=hostile)])
        message = probe.dead()
        raw = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        assert raw == body
        assert headers(message)[verdict.REASON_HEADER] == verdict.REASON_MALFORMED
        after = probe.event("ok")
        probe.publish(after)
        probe.await_marked(after)


def test_events_taken_together_are_each_handled_once_and_a_bad_one_costs_only_itself(probe: Probe) -> None:
    def named(name: str) -> Event:
        return Event.of(Type(name=name), source=probe.source, subject="", time=datetime.now(UTC))

    first, again, last = named("wait:gate"), named("a"), named("die:1")
    others = [again, named("b"), named("poison"), named("c"), named("fail:1"), again]
    probe.publish(first)
    wait_until(lambda: probe.runs(first, "on_list") == 1)
    probe.publish(*others)
    wait_until(lambda: probe.depth(f"{probe.service}.on_list") == 0, what="all gathered")
    probe.database["gates"].insert_one({"_id": "gate"})
    good = [event for event in others if event.data["name"] != "poison"]
    for event in (first, *good):
        wait_until(lambda event=event: probe.marked(event, "on_list"))
    lists = [row["names"] for row in probe.database["lists"].find().sort("_id", 1)]
    assert lists[:2] == [["wait:gate"], ["a", "b", "poison", "c"]], "what gathered, at most four"
    assert ["a"] in lists and ["poison"] in lists, "one by one when the list fails"
    wait_until(lambda: probe.metric("callmesh_bus_dead_total", handler="on_list") == 1.0)
    wait_until(lambda: probe.metric("callmesh_bus_duplicate_total", handler="on_list") == 1.0)
    assert probe.channel.basic_get(f"{probe.service}.on_list.dead", no_ack=True) is not None
    probe.publish(last)
    wait_until(lambda: not probe.group.process("worker").alive())
    probe.group.start("worker")
    wait_until(lambda: probe.marked(last, "on_list"))
    assert probe.runs(last, "on_list") == 2


def test_waiting_for_another_service_uses_up_no_attempts(probe: Probe) -> None:
    event = probe.event("away:8")
    probe.publish(event)
    probe.await_marked(event)
    assert probe.runs(event) == 9
    assert probe.channel.basic_get(f"{probe.queue}.dead") is None


def test_kill_9_in_a_handler_brings_the_event_again(probe: Probe) -> None:
    event, after = probe.event("die:1"), probe.event("ok")
    probe.publish(event, after)
    wait_until(lambda: not probe.group.process("worker").alive())
    probe.group.start("worker")
    probe.await_marked(event, after)
    assert probe.runs(event) == 2


def test_an_event_that_kills_every_worker_is_dead_lettered_by_the_broker(
    tmp_path: Path, amqp_uri: str, mongo_uri: str, mongo_database: str
) -> None:
    probe = Probe(tmp_path, amqp_uri, mongo_uri, mongo_database, PROBE_DELIVERIES="2")
    try:
        probe.group.start_all()
        event = probe.event("die:99")
        probe.publish(event)
        for _ in range(3):
            wait_until(lambda: not probe.group.process("worker").alive(), 60)
            probe.group.start("worker", wait=False)
        assert Event.from_json(probe.dead().body) == event
        probe.group.wait_ready("worker")
        assert probe.runs(event) == 3
        assert probe.group.process("worker").alive()
    finally:
        probe.close()


def test_sigterm_finishes_what_is_in_hand(probe: Probe) -> None:
    event = probe.event("wait:gate")
    probe.publish(event)
    wait_until(lambda: probe.runs(event) == 1)
    process = probe.group.process("worker")
    process.send(signal.SIGTERM)
    wait_until(lambda: not HttpReady(url=f"{probe.http}/readyz")())
    assert wait_until(lambda: probe.log_lines("bus.draining"))[0]["in_hand"] == 1
    probe.publish(probe.event("ok"))
    probe.database["gates"].insert_one({"_id": "gate"})
    wait_until(lambda: not process.alive(), 60)
    assert process.exit_code() == 0
    assert probe.runs(event, "waited") == 1 and probe.marked(event)
    wait_until(lambda: probe.depth(probe.queue) == 1, what="the next event waits for the next worker")


def test_a_handler_that_does_not_end_is_given_up_and_its_event_comes_again(idle_probe: Probe) -> None:
    idle_probe.group.env["PROBE_DRAIN_SECONDS"] = "1"
    idle_probe.group.start_all()
    event = idle_probe.event("wait:never")
    idle_probe.publish(event)
    wait_until(lambda: idle_probe.runs(event) == 1)
    process = idle_probe.group.process("worker")
    process.send(signal.SIGTERM)
    wait_until(lambda: not process.alive(), 60)
    assert process.exit_code() == 1
    assert not idle_probe.log_lines("bus.handler_failed"), "it has its database to the end"
    queues = (idle_probe.queue, f"{idle_probe.queue}.dead", f"{idle_probe.service}.retry.100")
    wait_until(lambda: [idle_probe.depth(queue) for queue in queues] == [1, 0, 0], what="it waits, once")


def test_what_an_aggregate_carries_is_relayed(probe: Probe) -> None:
    events = [probe.event("ok") for _ in range(5)]
    probe.database["things"].insert_one(
        {
            "_id": "t1",
            "version": 1,
            "outbox": [{"id": event.id, "event": event.to_json()} for event in events],
            "outbox_since": datetime.now(UTC),
        }
    )
    probe.await_marked(*events)
    found = wait_until(lambda: probe.database["things"].find_one({"_id": "t1", "outbox_since": None}))
    assert found["outbox"] == []
    assert probe.metric("callmesh_bus_published_total", service=probe.service) == 5.0


def test_a_relay_that_died_before_the_pull_makes_a_duplicate_and_nothing_else(probe: Probe) -> None:
    event = probe.event("ok")
    probe.publish(event)
    probe.await_marked(event)
    # As a relay leaves it that was killed after the broker's confirm.
    entry = {"id": event.id, "event": event.to_json()}
    probe.database["things"].insert_one(
        {"_id": "t1", "version": 1, "outbox": [entry], "outbox_since": datetime.now(UTC)}
    )
    wait_until(lambda: probe.metric("callmesh_bus_duplicate_total", handler="on_thing") == 1.0)
    wait_until(lambda: probe.database["things"].count_documents({"outbox": []}) == 1)
    assert probe.runs(event) == 1


def test_the_worker_survives_a_restart_of_the_broker(
    tmp_path: Path, rabbit_node: RabbitNode, mongo_uri: str, mongo_database: str
) -> None:
    probe = Probe(tmp_path, rabbit_node.uri, mongo_uri, mongo_database)
    try:
        probe.group.start_all()
        first = [probe.event("ok") for _ in range(50)]
        probe.publish(*first)
        rabbit_node.settle()
        waiting = probe.event("wait:gate")
        probe.publish(waiting)
        wait_until(lambda: probe.runs(waiting) == 1)
        pending = [probe.event("ok") for _ in range(20)]
        rabbit_node.kill()
        wait_until(lambda: not HttpReady(url=f"{probe.http}/readyz")())
        probe.database["things"].insert_one(
            {
                "_id": "t1",
                "version": 1,
                "outbox": [{"id": event.id, "event": event.to_json()} for event in pending],
                "outbox_since": datetime.now(UTC),
            }
        )
        rabbit_node.start()
        probe.database["gates"].insert_one({"_id": "gate"})
        probe.await_marked(*first, *pending, waiting, seconds=60)
        assert probe.runs(waiting, "waited") == 1, "its second delivery waited for the first to end"
        wait_until(HttpReady(url=f"{probe.http}/readyz"), 60)
        assert probe.group.process("worker").alive()
    finally:
        probe.close()


def test_no_event_is_lost_while_the_database_is_away(tmp_path: Path, amqp_uri: str) -> None:
    with MongoNode(tmp_path / "mongo", free_ports(3)[0]) as node:
        probe = Probe(tmp_path, amqp_uri, node.uri, "probe_away", PROBE_MONGO_OPERATION_SECONDS="0.5")
        try:
            probe.group.start_all()
            node.kill()
            wait_until(lambda: not HttpReady(url=f"{probe.http}/readyz")(), 60)
            events = [probe.event("ok") for _ in range(3)]
            probe.publish(*events)
            wait_until(
                lambda: len(probe.log_lines("bus.handler_failed")) > 12,
                60,
                what="more failures than attempts",
            )
            node.start()
            probe.await_marked(*events, seconds=60)
            assert probe.channel.basic_get(f"{probe.queue}.dead") is None
        finally:
            probe.close()


def run_to_end(probe: Probe, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        env={**probe.env, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_declare_makes_the_queues_and_ends(idle_probe: Probe) -> None:
    done = run_to_end(idle_probe, "--declare", MONGO_URI="mongodb://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (0, f"callmesh-{idle_probe.service}: queues declared\n")
    event = idle_probe.event("ok")
    idle_probe.publish(event)
    assert idle_probe.depth(idle_probe.queue) == 1
    idle_probe.group.start_all()
    idle_probe.await_marked(event)


def test_what_a_start_needs_and_lacks_is_said_in_one_line(idle_probe: Probe) -> None:
    nowhere = free_ports(1)[0]
    away = run_to_end(idle_probe, AMQP_URI=f"amqp://127.0.0.1:{nowhere}//")
    assert away.returncode == 2
    assert "RabbitMQ did not answer within 2 s" in away.stderr
    database = run_to_end(
        idle_probe,
        MONGO_URI=f"mongodb://127.0.0.1:{nowhere}",
        PROBE_MONGO_CONNECT_SECONDS="1",
        PROBE_MONGO_OPERATION_SECONDS="0.5",
    )
    assert database.returncode == 2
    assert "MongoDB did not answer within 1 s" in database.stderr
    taken = run_to_end(idle_probe, PROBE_HTTP_PORT=re.findall(r":(\d+)", idle_probe.env["MONGO_URI"])[0])
    assert taken.returncode == 2
    assert "HTTP cannot listen" in taken.stderr
    idle_probe.channel.queue_declare(idle_probe.queue, durable=True, auto_delete=False)
    other = run_to_end(idle_probe)
    assert other.returncode == 2
    assert "queue with other settings" in other.stderr
