"""Gateways over a real connection: what they are told, what is heard of them, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio

from callmesh.dialler.v1 import lines_pb2 as pb
from callmesh.dialler.v1 import lines_pb2_grpc
from chassis.errors import Unavailable
from chassis.grpc_status import error_info
from chassis.server import ServiceBinding
from chassis.testing.waiting import eventually
from routing.planning import lines
from routing.planning.dialler_ports import Call, LineResult, Person
from routing.planning.lines import Gateways
from routing.planning.lines_servicer import lines_binding

PERSON = Person(contact="contactLists/l/contacts/c", number="+8613800138000", attempt=1)
CALL = cast("Call", SimpleNamespace(call_id="out-1", address="sip:a0@beijing"))


class Partner:
    """A gateway's side of its stream."""

    def __init__(self, channel: grpc.aio.Channel, gateway: str = "g1", lines_max: int = 2) -> None:
        self.stream = lines_pb2_grpc.LineServiceStub(channel).ServeLines()
        self.opening = pb.ServeLinesRequest(open={"gateway": gateway, "lines_max": lines_max})

    async def open(self) -> Partner:
        await self.stream.write(self.opening)
        return self

    async def told(self) -> Any:
        """The next order."""
        async with asyncio.timeout(30):
            order = await self.stream.read()
        assert order is not grpc.aio.EOF, "the stream ended"
        return getattr(order, order.WhichOneof("order"))

    async def says(self, **report: Any) -> None:
        await self.stream.write(pb.ServeLinesRequest(**report))

    async def refused(self) -> tuple[str, str, str]:
        """(code, reason, field) with which the stream ends."""
        async with asyncio.timeout(30):
            try:
                while await self.stream.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                info = error_info(error)
                assert info is not None and info.domain == "callmesh.dialler"
                return error.code().name, info.reason, error.details() or ""
            return (await self.stream.code()).name, "", ""


@pytest.fixture
def gateways() -> Gateways:
    return Gateways()


@pytest_asyncio.fixture
async def channel(gateways: Gateways, grpc_server: Any) -> AsyncIterator[grpc.aio.Channel]:
    from chassis.testing.grpc import loopback_settings
    from routing.planning.dialler_config import DiallerSettings

    binding = ServiceBinding(*lines_binding(gateways))
    server = await grpc_server([binding], settings=loopback_settings(DiallerSettings()))
    async with grpc.aio.insecure_channel(server.address) as made:
        yield made


async def there(gateways: Gateways, room: int) -> None:
    await eventually(lambda: gateways.room() == room)


async def test_a_line_from_its_ringing_to_its_end(gateways: Gateways, channel: grpc.aio.Channel) -> None:
    assert gateways.capacity() == 0
    with pytest.raises(Unavailable):
        gateways.dial(PERSON)
    partner = await Partner(channel).open()
    await there(gateways, 2)
    line = gateways.dial(PERSON)
    dial = await partner.told()
    assert (dial.line, dial.number, dial.contact) == (line.line_id, PERSON.number, PERSON.contact)
    assert dial.ring_timeout.seconds == lines.RING_SECONDS and gateways.room() == 1
    await partner.says(answered={"line": line.line_id, "answerer": pb.ANSWERER_PERSON})
    assert await line.wait_result() is LineResult.ANSWERED
    line.bridge(CALL, "a0")
    bridge = await partner.told()
    assert (bridge.line, bridge.call_id) == (line.line_id, "out-1")
    assert (bridge.agent, bridge.agent_address) == ("agents/a0", "sip:a0@beijing")
    await partner.says(ended={"line": line.line_id, "end": pb.LINE_END_HANG_UP})
    async with asyncio.timeout(30):
        await line.wait_ended()
    await there(gateways, 2)

    # Nobody there: the gateway says so. A machine is hung up on at once. Strange lines are nothing to us.
    line = gateways.dial(PERSON)
    await partner.told()
    line.drop(abandoned=True)
    line.drop()
    drop = await partner.told()
    assert (drop.line, drop.abandoned) == (line.line_id, True)
    await partner.says(answered={"line": "line-of-another"})
    await partner.says(ended={"line": line.line_id})
    await there(gateways, 2)
    line = gateways.dial(PERSON)
    await partner.told()
    await partner.says(answered={"line": line.line_id, "answerer": pb.ANSWERER_MACHINE})
    assert await line.wait_result() is LineResult.MACHINE
    assert not (await partner.told()).abandoned


@pytest.mark.parametrize(
    ("end", "result"),
    [
        (pb.LINE_END_UNSPECIFIED, LineResult.NO_ANSWER),
        (pb.LINE_END_NO_ANSWER, LineResult.NO_ANSWER),
        (pb.LINE_END_BUSY, LineResult.BUSY),
        (pb.LINE_END_WRONG_NUMBER, LineResult.WRONG_NUMBER),
        (pb.LINE_END_FAILED, LineResult.NETWORK_FAILURE),
    ],
)
async def test_what_becomes_of_a_line(
    gateways: Gateways, channel: grpc.aio.Channel, end: int, result: LineResult
) -> None:
    partner = await Partner(channel).open()
    await there(gateways, 2)
    line = gateways.dial(PERSON)
    await partner.told()
    await partner.says(ended={"line": line.line_id, "end": end})
    assert await line.wait_result() is result


async def test_a_gateway_that_goes_or_comes_twice(gateways: Gateways, channel: grpc.aio.Channel) -> None:
    partner = await Partner(channel).open()
    await there(gateways, 2)
    ringing, talking = gateways.dial(PERSON), gateways.dial(PERSON)
    await partner.told()
    await partner.told()
    await partner.says(answered={"line": talking.line_id})
    assert await talking.wait_result() is LineResult.ANSWERED
    talking.bridge(CALL, "a0")
    again = await Partner(channel, lines_max=3).open()
    await there(gateways, 3)
    assert await ringing.wait_result() is LineResult.LOST
    # Who is in a conversation stays in it: the gateway keeps that.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await talking.wait_ended()
    assert (await partner.refused())[0] == "OK"
    again.stream.cancel()
    await eventually(lambda: not gateways.capacity())
    assert gateways.room() == 0


async def test_a_gateway_that_does_not_answer_is_not_waited_for(
    gateways: Gateways, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RING_SECONDS", 0)
    monkeypatch.setattr(lines, "RING_GRACE_SECONDS", 0.05)
    partner = await Partner(channel).open()
    await there(gateways, 2)
    line = gateways.dial(PERSON)
    await partner.told()
    assert await line.wait_result() is LineResult.LOST
    assert (await partner.told()).line == line.line_id


@pytest.mark.parametrize(
    ("reports", "field"),
    [
        ([{"answered": {"line": "x"}}], "open"),
        ([{}], "open"),
        ([{"open": {"gateway": "", "lines_max": 1}}], "open.gateway"),
        ([{"open": {"gateway": "g", "lines_max": 0}}], "open.lines_max"),
        ([{"open": {"gateway": "g", "lines_max": 10_001}}], "open.lines_max"),
        ([{"open": {"gateway": "g", "lines_max": 1}}] * 2, "open"),
        ([{"open": {"gateway": "g", "lines_max": 1}}, {}], "report"),
        ([{"open": {"gateway": "g", "lines_max": 1}}, {"answered": {"line": "a b"}}], "answered.line"),
        (
            [{"open": {"gateway": "g", "lines_max": 1}}, {"answered": {"line": "a", "answerer": 9}}],
            "answered.answerer",
        ),
        ([{"open": {"gateway": "g", "lines_max": 1}}, {"ended": {"line": "a", "end": 77}}], "ended.end"),
    ],
)
async def test_bad_reports_end_the_stream_and_name_the_field(
    gateways: Gateways, channel: grpc.aio.Channel, reports: list[dict[str, Any]], field: str
) -> None:
    partner = Partner(channel)
    for report in reports:
        await partner.says(**report)
    code, reason, said = await partner.refused()
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT") and said.startswith(f"{field}:")
    await there(gateways, 0)


async def test_bounds(gateways: Gateways, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "GATEWAYS_MAX", 1)
    partner = await Partner(channel).open()
    await there(gateways, 2)
    assert (await (await Partner(channel, "g2").open()).refused())[0] == "RESOURCE_EXHAUSTED"
    monkeypatch.setattr(lines, "ORDERS_MAX", 1)
    line = gateways.dial(PERSON)
    assert await line.wait_result() is LineResult.LOST
    assert (await partner.refused())[0] == "RESOURCE_EXHAUSTED"
    gateways.end()
    assert (await (await Partner(channel).open()).refused())[0] == "UNAVAILABLE"
