"""What is known of other regions, and for how long it is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from callmesh.routing.v1 import directory_pb2, shard_pb2
from chassis.testing import FakeClock
from routing.engine import step
from routing.leader import Leader, Phase
from routing.leader_options import LeaderOptions
from routing.model import CallFacts, ConfigureQueue, PlaceCall, QueueConfig, SetDraining
from routing.peers import (
    COALESCE_SECONDS,
    FIGURES_SECONDS,
    HEARTBEAT_SECONDS,
    PeerTable,
    Voice,
    coalesce_seconds,
    state_of,
)
from routing.testing import MemoryJournal

DEADLINE_SECONDS = 10


def heard(region: str = "beijing", epoch: int = 1, waiting: int = 0) -> shard_pb2.PeerState:
    load = shard_pb2.PeerState.QueueLoad(queue="service", waiting=waiting, agents_free=2)
    return shard_pb2.PeerState(region=region, shard=region, epoch=epoch, queues=[load])


def test_a_region_is_alive_until_it_has_been_silent_for_too_long() -> None:
    clock = FakeClock()
    table = PeerTable(clock, 3.0)
    assert not table.alive("beijing") and table.age_seconds("beijing") is None
    table.hear(heard())
    clock.advance(3.0)
    assert table.alive("beijing") and table.age_seconds("beijing") == 3.0
    clock.advance(0.1)
    assert not table.alive("beijing")
    assert table.load("beijing", "service") is None, "what is old is not acted on"
    assert table.state("beijing") is not None, "but kept, for a reason to be told"
    table.hear(heard())
    assert table.alive("beijing")


def test_a_region_that_was_never_heard_is_shown_as_silent_where_it_is_expected() -> None:
    """All its routers may have begun anew: nobody would say that nobody leads."""

    def shown(region: str) -> float | None:
        return REGISTRY.get_sample_value("callmesh_peer_up", {"region": region})

    table = PeerTable(FakeClock(), 3.0)
    table.expect("lhasa")
    assert (shown("lhasa"), shown("urumqi")) == (0, None)
    table.hear(heard("lhasa"))
    assert shown("lhasa") == 1


def test_a_deposed_leaders_word_is_dropped() -> None:
    table = PeerTable(FakeClock(), 3.0)
    table.hear(heard(epoch=7, waiting=1))
    table.hear(heard(epoch=6, waiting=99))
    load = table.load("beijing", "service")
    assert load is not None and load.waiting == 1
    table.hear(heard(epoch=8, waiting=2))
    load = table.load("beijing", "service")
    assert load is not None and load.waiting == 2


def test_who_leads_is_the_newest_epochs_router() -> None:
    table, told = PeerTable(FakeClock(), 3.0), []
    table.on_leader.append(lambda *word: told.append(word))
    assert table.leader_of("beijing") == (0, "")
    table.hear(heard(epoch=7), "one:1")
    table.hear(heard(epoch=6), "two:1")
    assert table.leader_of("beijing") == (7, "one:1") and told == [("beijing", 7, "one:1")]
    table.hear(heard(epoch=9), "two:1")
    assert table.leader_of("beijing") == (9, "two:1")


def test_loads_are_by_region_and_queue() -> None:
    table = PeerTable(FakeClock(), 3.0)
    changed: list[int] = []
    table.on_change.append(lambda: changed.append(1))
    table.hear(heard())
    assert table.load("beijing", "other") is None and table.load("shanghai", "service") is None
    assert len(changed) == 1


def leader() -> Leader:
    led = Leader(
        shard="beijing",
        router="r",
        store=MemoryJournal(),
        clock=FakeClock(),
        options=LeaderOptions(),
    )
    step(led.state, ConfigureQueue(queue=QueueConfig(id="service")), 1_000)
    return led


def test_a_leaders_own_state() -> None:
    led = leader()
    state = state_of(led, "r")
    assert (state.region, state.shard, state.router) == ("beijing", "beijing", "r")
    assert state.state == directory_pb2.REGION_STATE_UP
    assert state.queues[0].queue == "service" and state.queues[0].expected_wait_ms == -1
    step(led.state, SetDraining(draining=True), 1_000)
    assert state_of(led, "r").state == directory_pb2.REGION_STATE_DRAINING


def place(led: Leader, call_id: str) -> None:
    step(
        led.state,
        PlaceCall(facts=CallFacts(call_id=call_id, queue="service"), attempt=1, move=1, front="f"),
        1,
    )


async def until(told: AsyncIterator[shard_pb2.PeerState], waiting: int) -> shard_pb2.PeerState:
    while True:
        state = await asyncio.wait_for(anext(told), DEADLINE_SECONDS)
        if state.queues[0].waiting == waiting:
            return state


@pytest.mark.parametrize("own", [True, False])
async def test_changes_are_told_while_it_leads_and_not_otherwise(own: bool) -> None:
    led = leader()
    told = Voice(lambda: [led], "r").listen(own=own)
    first = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    assert not first.done()
    led.phase = Phase.LEADING
    assert (await asyncio.wait_for(first, DEADLINE_SECONDS)).queues[0].waiting == 0
    for number in range(3):
        place(led, f"c{number}")
        await until(told, number + 1)
    again = await asyncio.wait_for(anext(told), DEADLINE_SECONDS)
    assert again.queues[0].waiting == 3, "unchanged it is repeated"
    led.phase = Phase.CANDIDATE
    silence = asyncio.ensure_future(anext(told))
    done, _ = await asyncio.wait({silence}, timeout=1.2 * HEARTBEAT_SECONDS)
    assert not done
    led.phase = Phase.LEADING
    assert (await asyncio.wait_for(silence, DEADLINE_SECONDS)).queues[0].waiting == 3
    await told.aclose()


async def test_other_routers_hear_at_once_what_decides_and_the_rest_less_often() -> None:
    led = leader()
    led.phase = Phase.LEADING
    voice = Voice(lambda: [led], "r")
    own, others = voice.listen(own=True), [voice.listen(), voice.listen()]
    for told in (own, *others):
        await anext(told)
    hears: dict[bool, int] = {True: 0, False: 0}

    async def count(told: AsyncIterator[shard_pb2.PeerState], key: bool) -> None:
        async for _ in told:
            hears[key] += 1

    tasks = [asyncio.ensure_future(count(told, told is own)) for told in (own, *others)]
    loop = asyncio.get_running_loop()
    began, placed = loop.time(), 0
    while hears[True] < 25:
        assert loop.time() - began < DEADLINE_SECONDS
        placed += 1
        place(led, f"c{placed}")
        await asyncio.sleep(COALESCE_SECONDS)
    # The first that waits, and then every quarter of a second.
    each = hears[False] / len(others)
    assert 1 <= each <= 2 + (loop.time() - began) / FIGURES_SECONDS < hears[True] + 25
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("own", [True, False])
async def test_who_listens_hears_that_looking_failed(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    led = leader()
    led.phase = Phase.LEADING
    voice = Voice(lambda: [led], "r")
    told = voice.listen(own=own)
    await anext(told)
    with monkeypatch.context() as patched:
        patched.setattr("routing.peers.queue_loads", lambda state: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(anext(told), DEADLINE_SECONDS)
        with pytest.raises(ZeroDivisionError):
            await anext(voice.listen(own=own))
    again = voice.listen(own=own)
    assert (await asyncio.wait_for(anext(again), DEADLINE_SECONDS)).region == "beijing"
    await again.aclose()


@pytest.mark.parametrize(("watchers", "seconds"), [(0, 0.02), (1, 0.02), (7, 0.07), (30, 0.3), (1200, 0.5)])
def test_the_more_are_told_the_more_is_told_at_once(watchers: int, seconds: float) -> None:
    assert coalesce_seconds(watchers) == pytest.approx(seconds)


def test_a_silent_region_shows_even_if_nobody_calls() -> None:
    clock = FakeClock()
    table = PeerTable(clock, 3.0)
    table.hear(heard())
    for seconds, up in ((3.0, 1.0), (0.1, 0.0)):
        clock.advance(seconds)
        assert REGISTRY.get_sample_value("callmesh_peer_up", {"region": "beijing"}) == up
