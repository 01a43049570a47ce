"""What operators do to a running platform: configuration by files, the canary, live calls and why they go
where they go, the kill switch, the audit log, the doctor. Each command is the product's own, called as the
shell would.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from click.testing import Result
from tests.e2e.platform_parties import CLOCK_SPEED, WAIT_SECONDS, Caller, Wire, eventually
from typer.testing import CliRunner

from callmesh.common.v1 import audit_pb2, audit_pb2_grpc
from callmesh.marketing.v1 import offers_pb2, offers_pb2_grpc
from callmesh.routing.v1 import directory_pb2, directory_pb2_grpc, routing_pb2
from callmesh.tickets.v1 import team_pb2, team_pb2_grpc
from chassis.release import RELEASE
from cli import doctor
from cli.calls import calls
from cli.canary import NAME, canary
from cli.configuration import config
from cli.directory import Refused
from cli.doctor import Level
from cli.lifecycle import acts
from cli.outbound import outbound
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

single = typer.Typer()
for command in (canary, acts):
    single.command()(command)


def run(app: typer.Typer, *words: str) -> Result:
    """What a command said; its refusals are errors."""
    done = CliRunner().invoke(app, words)
    if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


class Services:
    """What is there, asked over the wire."""

    def __init__(self, stack: Stack) -> None:
        self.options = [
            *("--routing", stack.address("routing", "beijing")),
            *("--tickets", stack.address("tickets"), "--marketing", stack.address("marketing")),
        ]
        self._stack = stack

    def ask(self, service: str, stub: Any, what: Callable[[Any], Any]) -> Any:
        region = "beijing" if service == "routing" else None
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self._stack.address(service, region), options=options) as channel:
            return what(stub(channel))

    def offer(self) -> Any:
        request = offers_pb2.GetOfferRequest(name="offers/day-two")
        return self.ask("marketing", offers_pb2_grpc.OfferServiceStub, lambda stub: stub.GetOffer(request))

    def retire(self) -> None:
        """Nobody else's customers are made this offer."""
        request = offers_pb2.RetireOfferRequest(name="offers/day-two", etag=self.offer().etag)
        self.ask("marketing", offers_pb2_grpc.OfferServiceStub, lambda stub: stub.RetireOffer(request))

    def team(self) -> Any:
        request = team_pb2.GetTeamRequest(name="teams/day-two")
        return self.ask("tickets", team_pb2_grpc.TeamServiceStub, lambda stub: stub.GetTeam(request))

    def queue(self) -> Any:
        request = directory_pb2.GetQueueRequest(name="queues/day-two")
        stub = directory_pb2_grpc.DirectoryServiceStub
        return self.ask("routing", stub, lambda stub: stub.GetQueue(request))

    def seen(self) -> tuple[str, str, str]:
        """(team's name, offer's price, queue's name)."""
        return self.team().display_name, self.offer().price.amount, self.queue().display_name


@pytest.fixture
def services(platform_stack: Stack) -> Services:
    return Services(platform_stack)


def files(folder: Path, name: str, price: int, more: str = "") -> Path:
    """A directory of configuration; `more` is a further entry of tickets.yaml."""
    (folder / "directory.yaml").write_text(
        "skills: [{name: skills/day-two}]\n"
        f"queues: [{{name: queues/day-two, display_name: {name},"
        " skills: [{skill: day-two, level_min: 1}]}]\n"
    )
    (folder / "tickets.yaml").write_text(f"teams: [{{name: teams/day-two, display_name: {name}}}]\n{more}")
    (folder / "offers.yaml").write_text(
        "offers: [{name: offers/day-two, titles: [{language: en, text: Two}], product: day-two,"
        f" price: {{currency_code: CNY, amount: '{price}'}}, price_period: PRICE_PERIOD_MONTHLY,"
        " scripts: [{language: en, text: Take two}]}]\n"
    )
    return folder


def test_configuration_goes_in_and_back(services: Services, tmp_path: Path) -> None:
    """Three services from one directory: planned, applied, changed, rolled back; and undone as a whole where
    one of them refuses what could not be planned.
    """
    folder = files(tmp_path, "First", 10)
    at = [str(folder), *services.options]
    planned = run(config, "plan", *at)
    assert planned.exit_code == 1
    assert {"+ teams/day-two", "+ offers/day-two"} <= set(planned.output.splitlines())
    assert "queues/day-two" in planned.output
    with pytest.raises(grpc.RpcError):
        services.offer()

    assert "applied as revision 1" in run(config, "apply", *at).output
    assert services.seen() == ("First", "10", "First")
    assert services.offer().state == offers_pb2.OFFER_STATE_PUBLISHED
    assert run(config, "plan", *at).exit_code == 0

    files(folder, "Second", 20)
    assert "applied as revision 2" in run(config, "apply", *at, "--note", "dearer").output
    assert services.seen() == ("Second", "20", "Second")

    # Tickets takes the team and refuses the flow: the team is put back, nothing else was touched.
    files(
        folder,
        "Third",
        30,
        "flows: [{name: flows/day-two, kind: TICKET_KIND_INQUIRY, initial_state: none}]\n",
    )
    with pytest.raises(Refused, match=r"flows/day-two: .*what was changed before was put back"):
        run(config, "apply", *at)
    assert services.seen() == ("Second", "20", "Second")

    assert "applied as revision 3" in run(config, "rollback", str(folder), "1", *services.options).output
    assert services.seen() == ("First", "10", "First")
    assert run(config, "plan", *at).exit_code == 0
    services.retire()
    listed = run(config, "history", str(folder)).output.splitlines()
    assert ["rollback to 1" in listed[0], "dearer" in listed[1], len(listed)] == [True, True, 3]


async def test_the_canary_comes_through(platform_stack: Stack, wire: Wire) -> None:
    # At this speed the ringing of a queue that it made itself would be over in a quarter of a second: its
    # queue is there already, and patient.
    await wire.directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=NAME))
    patient = {"seconds": int(WAIT_SECONDS) * CLOCK_SPEED}
    queue = directory_pb2.Queue(
        skills=[{"skill": NAME, "level_min": 1}], ring_timeout=patient, wrap_up_timeout=patient
    )
    await wire.directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=NAME, queue=queue))
    at = platform_stack.address("routing", "beijing")
    words = ("canary", "--once", "--furnish", "beijing", "--address", at)
    done = await asyncio.to_thread(run, single, *words)
    assert done.exit_code == 0 and done.output.startswith("connected after "), done.output


async def test_calls_are_listed_shown_and_explained(platform_stack: Stack, wire: Wire) -> None:
    """One that waits, from another region's router; as if one came; and the past one, from the journal."""
    at = ("--address", platform_stack.address("routing", "shanghai"))
    caller = Caller(wire, f"asked-{secrets.token_hex(4)}", "+861064001007", "standby")

    async def said(*words: str) -> str:
        done = await asyncio.to_thread(run, calls, *words, *at)
        assert done.exit_code == 0, done.output
        return done.stdout

    caller.open()
    queued = await caller.until("queued")
    listed = await said("list", "--queue", "standby", "--state", "waiting")
    (row,) = (line for line in listed.splitlines() if line.startswith(f"{caller.call_id} "))
    assert "WAITING" in row and "standby" in row and row.endswith("+*********007")
    region = queued.queued.region.removeprefix("regions/")
    shown = json.loads(await said("show", caller.call_id, "--json", "--numbers"))
    assert (shown["caller_number"], shown["region"]) == ("+861064001007", f"regions/{region}")

    live = json.loads(await said("explain", caller.call_id, "--json"))
    assert live["region"] == f"regions/{region}" and "replayed" not in live
    assert live["agents"] and all(each["skipped_reason"] for each in live["agents"]), "somebody was free"
    maybe = await said("explain", "--queue", "standby", "--number", "+861064001007")
    assert "Caller's place: CN/北京/北京" in maybe and "home region: beijing." in maybe

    stub = wire.routing()
    await stub.HangUp(routing_pb2.HangUpRequest(call_id=caller.call_id), timeout=WAIT_SECONDS)
    await caller.close()

    async def past() -> str:
        told = await said("explain", caller.call_id, "--region", region)
        return told if "replayed from the journal" in told.lower() else ""

    assert (await eventually(past, "the call is past")).startswith("Was never offered. ")
    assert caller.call_id not in await said("list", "--region", region)
    with pytest.raises(Refused, match=r"NOT_FOUND: .*never.* `callmesh calls explain` looks in the journal"):
        await said("show", "unheard-of")


def test_the_kill_switch_and_what_the_audit_log_says_of_it(
    services: Services, platform_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--address", platform_stack.address("marketing"))
    assert run(outbound, "status", *at).output == "outbound runs\n"
    run(outbound, "stop", "--reason", "a drill", *at)
    stopped = run(outbound, "status", *at)
    assert (stopped.exit_code, stopped.output) == (1, "stopped: a drill\n")
    run(outbound, "resume", *at)
    assert run(outbound, "status", *at).exit_code == 0

    method = "/callmesh.marketing.v1.CampaignService/UpdateContactPolicy"
    request = audit_pb2.ListRecordedActsRequest(resource="contactPolicy", page_size=2)
    stub = audit_pb2_grpc.AuditServiceStub
    told = services.ask("marketing", stub, lambda stub: stub.ListRecordedActs(request, timeout=WAIT_SECONDS))
    assert [(act.method, act.outcome) for act in told.acts] == [(method, "OK")] * 2
    # By id: the clock of a machine may be set back meanwhile.
    stopped_at, resumed_at = sorted(told.acts, key=lambda act: act.id)
    assert resumed_at.before_digest == stopped_at.after_digest != resumed_at.after_digest
    monkeypatch.setenv("RUN_DIR", str(platform_stack.config.run_dir))
    shown = json.loads(run(single, "acts", "--resource", "contactPolicy", "--json").output)
    assert [row["_id"] for row in shown][:2] == [act.id for act in told.acts]


def test_the_doctor_finds_nothing_broken(platform_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its checks but the schemas', which start a process of each service: they have a test of their
    own.
    """
    monkeypatch.delenv("TLS_CERT_FILE", raising=False)
    run_dir = platform_stack.config.run_dir
    checks = [(name, check) for name, check in doctor._store_checks(run_dir) if "schema" not in name]
    for address in doctor._addresses(run_dir, ()):
        checks.append((address, lambda address=address: doctor.server(address, secure=False)))
    found = doctor.run(checks)
    assert [each for each in found if each.level is Level.BROKEN] == []
    said = {each.check: each.what for each in found}
    assert said["releases"] == f"crm, marketing, routing, tickets: {RELEASE}"
    servers = [name for name in said if name.startswith("server ")]
    assert len(servers) == 7 and all(said[name] == "SERVING" for name in servers)
