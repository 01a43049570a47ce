"""An operator's `shard seize`: who leads after it, and what it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.routing.test_routing_standby import BEAT, TAKEOVER, Region, a_region, placing

from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.errors import CallmeshError
from chassis.testing.waiting import eventually
from routing import codec, seizure
from routing.committed import LeaderGone, NotLeading
from routing.model import ActRecorded, AskCall, ConfigureQueue, QueueConfig, SetLeadList
from routing.seizure import Seizer

FAR_SECONDS = 30.0


def seizer(candidate: Any) -> Seizer:
    return Seizer({"beijing": candidate.leader}, frozenset({"beijing", "shanghai"}), candidate.leader.router)


def asked(**fields: Any) -> pb.SeizeShardRequest:
    return pb.SeizeShardRequest(
        **{"region": "regions/beijing", "reason": "its own routers are gone", **fields}
    )


def acts(region: Region) -> list[ActRecorded]:
    blocks = region.blocks.of("beijing")
    events = [event for block in blocks for _, event in codec.decode_events(block.body, block.now_ms)]
    return [event for event in events if isinstance(event, ActRecorded)]


async def test_a_router_leads_at_once_though_another_lives_and_works() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1", takeover_seconds=FAR_SECONDS)
        await first.leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        await eventually(lambda: second.leader.ready)
        placed: list[str] = []

        async def keep_busy() -> None:
            while first.leader.leading:
                call_id = f"c{len(placed)}"
                await first.leader.submit(placing(call_id))
                placed.append(call_id)

        work = asyncio.create_task(keep_busy())
        await eventually(lambda: len(placed) > 3)
        answer = await seizer(second).seize(asked(), 10.0)
        assert second.leader.leading and (answer.router, answer.epoch) == ("two:1", second.leader.epoch)
        await eventually(lambda: not first.leader.leading)
        with pytest.raises((LeaderGone, NotLeading)):
            await work
        for call_id in placed:
            found = await second.leader.submit(AskCall(call_id=call_id))
            assert found.answer.call is not None, "what was acknowledged is there"
        assert [(act.act, act.subject, act.reason) for act in acts(region)] == [
            ("SEIZE_SHARD", "regions/beijing", "its own routers are gone")
        ]
        again = await seizer(second).seize(asked(), 10.0)
        assert again.epoch == answer.epoch and len(acts(region)) == 1, "it leads already"


async def test_a_lead_list_of_dead_routers_does_not_stand_in_the_way() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        await first.leader.submit(SetLeadList(routers=("one:1",)))
        other = region.standby("far:1", home=False, backup_seconds=TAKEOVER)
        await eventually(lambda: other.leader.ready)
        await first.stop()
        await seizer(other).seize(asked(), 10.0)
        before = other.leader.sequence
        await eventually(lambda: other.leader.sequence > before + 3)
        assert other.leader.leading


async def test_a_router_that_cannot_write_gives_up_and_waits_its_turn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seizure, "SEIZE_SECONDS_MAX", 10 * BEAT)
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1", takeover_seconds=FAR_SECONDS)
        await eventually(lambda: second.leader.ready)
        second.journal.read_only = True
        with pytest.raises(CallmeshError) as refused:
            await seizer(second).seize(asked(), 10.0)
        assert refused.value.reason == "SHARD_NOT_SEIZED"
        second.journal.read_only = False
        before = first.leader.sequence
        await eventually(lambda: first.leader.sequence > before + 5)
        assert first.leader.leading and not second.leader.leading and acts(region) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"region": "beijing"}, "INVALID_ARGUMENT"),
        ({"reason": " "}, "INVALID_ARGUMENT"),
        ({"reason": "x" * 501}, "INVALID_ARGUMENT"),
        ({"region": "regions/mars"}, "REGION_NOT_FOUND"),
        ({"region": "regions/shanghai"}, "SHARD_NOT_FOLLOWED"),
    ],
)
async def test_what_cannot_be_seized_is_refused(fields: dict[str, str], reason: str) -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        with pytest.raises(CallmeshError) as refused:
            await seizer(first).seize(asked(**fields), 10.0)
        assert refused.value.reason == reason
