"""Blended outbound as it runs: the dialler's process beside the real routing and marketing, an agent's
desktop, inbound callers, and a gateway with telephone lines.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.platform_parties import (
    AGENTS,
    RECOVERY_SECONDS,
    Caller,
    Desktop,
    Wire,
    _queue,
    eventually,
)

from callmesh.dialler.v1 import lines_pb2, lines_pb2_grpc
from callmesh.marketing.v1 import campaigns_pb2, campaigns_pb2_grpc, outbound_pb2, outbound_pb2_grpc
from callmesh.routing.v1 import directory_pb2
from chassis.localstack import free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

#: How long an offer may be on its way: lists that were empty are asked again some time later.
OFFER_SECONDS = 120.0
#: The queue of the inbound calls and its skill; that of the lists, which asks for a skill that nobody has.
INBOUND, OUTBOUND = "dialled", "dialled-out"
BLENDED, OTHER = "dialled-1", "dialled-2"


class Lists:
    """Marketing's side."""

    def __init__(self, wire: Wire) -> None:
        self.stub = outbound_pb2_grpc.OutboundServiceStub(wire.channel("marketing"))
        self.policy = campaigns_pb2_grpc.CampaignServiceStub(wire.channel("marketing"))

    async def make(self, mode: int, numbers: list[str]) -> str:
        """A list of these numbers that may be called."""
        made = await self.stub.CreateContactList(
            outbound_pb2.CreateContactListRequest(
                contact_list=outbound_pb2.ContactList(
                    display_name="A list", queue=f"queues/{OUTBOUND}", pacing_mode=mode
                )
            )
        )
        contacts = [{"number": number, "time_zone": afternoon(made.create_time)} for number in numbers]

        async def batches() -> AsyncIterator[Any]:
            yield outbound_pb2.ImportContactsRequest(parent=made.name, contacts=contacts)

        assert (await self.stub.ImportContacts(batches())).added_count == len(numbers)
        await self.stub.StartContactList(outbound_pb2.StartContactListRequest(name=made.name))
        return made.name

    async def pause(self, name: str) -> None:
        await self.stub.PauseContactList(outbound_pb2.PauseContactListRequest(name=name))

    async def halt(self, halted: bool) -> None:
        """`callmesh outbound stop` and `resume`."""
        policy = campaigns_pb2.ContactPolicy(name="contactPolicy", halted=halted, halted_reason="a test")
        mask = {"paths": ["halted", "halted_reason"]}
        await self.policy.UpdateContactPolicy(
            campaigns_pb2.UpdateContactPolicyRequest(contact_policy=policy, update_mask=mask)
        )

    async def spoken(self, call: Any, result: int) -> None:
        """What a desktop says of a conversation, by the call's context."""
        known = call.attributes
        await self.stub.RecordResult(
            outbound_pb2.RecordResultRequest(
                contact=known["contact"],
                holder=known["holder"],
                attempt=int(known["attempt"]),
                result=result,
                call_id=call.call_id,
            )
        )

    async def statistics(self, name: str) -> Any:
        return await self.stub.GetDialStatistics(outbound_pb2.GetDialStatisticsRequest(contact_list=name))


class Gateway:
    """Telephone lines, as a partner serves them."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stream: Any = None

    async def open(self) -> None:
        self._stream = lines_pb2_grpc.LineServiceStub(self._channel).ServeLines()
        await self._stream.write(lines_pb2.ServeLinesRequest(open={"gateway": "sbc-1", "lines_max": 8}))

    async def told(self, kind: str) -> Any:
        async with asyncio.timeout(OFFER_SECONDS):
            order = await self._stream.read()
        assert order.WhichOneof("order") == kind, order
        return getattr(order, kind)

    async def says(self, **report: Any) -> None:
        await self._stream.write(lines_pb2.ServeLinesRequest(**report))

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        await self._channel.close()


async def furnish(wire: Wire) -> None:
    directory = wire.directory
    for skill in (INBOUND, OUTBOUND):
        await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=skill))
        await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=skill, queue=_queue(skill)))
    for agent in (BLENDED, OTHER):
        seat = directory_pb2.Agent(
            region="regions/beijing",
            skills={INBOUND: 3},
            address=f"sip:{agent}@beijing",
            blended=agent == BLENDED,
        )
        await directory.CreateAgent(directory_pb2.CreateAgentRequest(agent_id=agent, agent=seat))


def afternoon(now: Any) -> str:
    """A zone where it is three in the afternoon: quiet hours are far away, however fast the day goes."""
    ahead = (15 - now.ToDatetime().hour + 11) % 24 - 11
    return f"Etc/GMT{-ahead:+d}"


@asynccontextmanager
async def dialling(stack: Stack, run_dir: Path) -> AsyncIterator[tuple[ManagedProcess, str]]:
    """The dialler's process: it, and where gateways go."""
    grpc_port, http_port = free_ports(2)
    process = ManagedProcess(run_dir, "dialler")
    options = ["--region", "beijing", "--inbound", INBOUND, "--outbound", OUTBOUND, "--share", "0.8"]
    options += ["--routing", stack.address("routing", "beijing"), "--marketing", stack.address("marketing")]
    # The platform's day goes on quickly while tests run, and the machine may be busy.
    options += ["--from-hour", "0", "--until-hour", "24", "--answered-wait-seconds", "30"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": "services",
        "DIALLER_GRPC_PORT": str(grpc_port),
        "DIALLER_HTTP_PORT": str(http_port),
        **{name: value for name, value in stack.config.env.items() if name.startswith("CLOCK_")},
    }
    process.start([sys.executable, "-m", "routing.planning.dialler_main", *options], env=environment)
    try:
        ready = HttpReady(url=f"http://127.0.0.1:{http_port}/readyz")

        async def look() -> bool:
            assert process.alive(), process.log_path.read_text()[-3000:]
            return await asyncio.to_thread(ready)

        await eventually(look, "the dialler sees the floor and the lists", RECOVERY_SECONDS)
        yield process, f"127.0.0.1:{grpc_port}"
    finally:
        process.stop()


async def test_agents_call_between_calls_and_are_back_for_them(
    platform_stack: Stack, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent in (BLENDED, OTHER):
        monkeypatch.setitem(AGENTS, agent, (INBOUND, "beijing"))
    await furnish(wire)
    lists = Lists(wire)
    async with dialling(platform_stack, tmp_path) as (process, address):
        blended, other = Desktop(wire, BLENDED), Desktop(wire, OTHER)
        gateway = Gateway(address)
        try:
            await asyncio.gather(blended.open(), other.open())
            await previewed(wire, lists, blended, other)
            await gateway.open()
            await answered(lists, blended, gateway)
        finally:
            await gateway.close()
            await blended.close()
            await other.close()
        process.stop()
        assert "Traceback" not in process.log_path.read_text()


async def previewed(wire: Wire, lists: Lists, blended: Desktop, other: Desktop) -> None:
    """A contact on the agent's screen, taken back for a caller who waits, and called after that."""
    name = await lists.make(outbound_pb2.PACING_MODE_PREVIEW, ["+8613800138001"])
    offer = (await blended.until("offer", OFFER_SECONDS)).offer
    assert offer.call.attributes["dial"] == "+8613800138001"
    tag = secrets.token_hex(4)
    first, second = (Caller(wire, f"dialled-{tag}-{n}", f"+86106400100{n}", INBOUND) for n in range(2))
    try:
        first.open()
        await other.accept(first.call_id)
        second.open()
        # Nobody else is free: the contact is withdrawn, and the caller rings here.
        await blended.until("offer_gone")
        await blended.accept(second.call_id)
        for caller, desktop in ((first, other), (second, blended)):
            answer = await caller.confirm(await caller.until("accepted"))
            assert answer.confirmed
            await caller.end()
            await desktop.wrap_up(caller.call_id, code="done", resolved=True)
    finally:
        await first.close()
        await second.close()
    # Quiet again: the same person, their first attempt still.
    again = await blended.until("offer", OFFER_SECONDS)
    assert again.offer.call.attributes["contact"] == offer.call.attributes["contact"]
    assert again.offer.call.attributes["attempt"] == "1"
    await blended.take(again)
    call = (await blended.until("connected")).connected.call
    await lists.spoken(call, outbound_pb2.OUTBOUND_RESULT_SUCCESS)
    await blended.end(call.call_id)
    await blended.wrap_up(call.call_id, code="done")
    assert dict((await lists.statistics(name)).results) == {"SUCCESS": 1}
    await lists.pause(name)


async def answered(lists: Lists, blended: Desktop, gateway: Gateway) -> None:
    """Lines that ring ahead: a machine, somebody who speaks to the agent, somebody for whom nobody comes."""
    name = await lists.make(outbound_pb2.PACING_MODE_PREDICTIVE, [f"+861380013801{n}" for n in range(5)])
    dial = await gateway.told("dial")
    await gateway.says(answered={"line": dial.line, "answerer": lines_pb2.ANSWERER_MACHINE})
    assert (await gateway.told("drop")).line == dial.line
    await gateway.says(ended={"line": dial.line})

    dial = await gateway.told("dial")
    await gateway.says(answered={"line": dial.line, "answerer": lines_pb2.ANSWERER_PERSON})
    offer = await blended.until("offer", OFFER_SECONDS)
    assert offer.offer.call.attributes["line"] == dial.line
    await blended.take(offer)
    bridge = await gateway.told("bridge")
    assert (bridge.line, bridge.agent) == (dial.line, f"agents/{BLENDED}")
    assert bridge.agent_address == f"sip:{BLENDED}@beijing"
    call = (await blended.until("connected")).connected.call
    assert call.call_id == bridge.call_id and call.attributes["contact"] == dial.contact
    await gateway.says(ended={"line": dial.line, "end": lines_pb2.LINE_END_HANG_UP})
    await lists.spoken(call, outbound_pb2.OUTBOUND_RESULT_DECLINED)
    await blended.wrap_up(call.call_id, code="declined")

    dial = await gateway.told("dial")
    await gateway.says(answered={"line": dial.line})
    # The only agent there does not want it: the person is told that nobody is there.
    await blended.decline(await blended.until("offer", OFFER_SECONDS))
    drop = await gateway.told("drop")
    assert (drop.line, drop.abandoned) == (dial.line, True)
    await gateway.says(ended={"line": dial.line})

    # Outbound is stopped as a whole: what rings is dropped, and nobody is dialled any more.
    dial = await gateway.told("dial")
    await lists.halt(True)
    try:
        assert (await gateway.told("drop")).line == dial.line
        await gateway.says(ended={"line": dial.line})

        async def look() -> Any:
            seen = await lists.statistics(name)
            return seen if seen.contacts["WAITING"] == 2 and sum(seen.results.values()) == 3 else None

        seen = await eventually(look, "what was not called is back on its list")
    finally:
        await lists.halt(False)
        await lists.pause(name)
    assert dict(seen.results) == {"MACHINE": 1, "DECLINED": 1, "ABANDONED": 1}
    assert dict(seen.contacts) == {"WAITING": 2, "LEASED": 0, "DONE": 3, "BLOCKED": 0}
