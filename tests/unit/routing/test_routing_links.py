"""Links over real streams on loopback: finding the leader, following it, and what comes back over one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from chassis.clock import SystemClock
from chassis.errors import Internal
from chassis.server import ServiceBinding
from chassis.testing.waiting import eventually
from routing import codec, engine, shard_servicer
from routing import leader as leader_module
from routing.committed import StoreOutage
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.links import (
    ADDRESSES_MAX,
    BATCH_MAX,
    LinkDown,
    LinkLost,
    Routers,
    ShardLink,
    _Question,
    _sequence_of,
)
from routing.model import (
    CONTEXT_BYTES_MAX,
    CONTEXT_KEYS_MAX,
    EVENTS_PER_BLOCK_MAX,
    Answer,
    AskCall,
    AttachCalls,
    CallAttached,
    CallFacts,
    CallQueued,
    CallsForgotten,
    Command,
    ConfigureQueue,
    DetachCalls,
    EndCall,
    Fact,
    HangUp,
    PlaceCall,
    QueueConfig,
    SetLeadList,
)
from routing.outlived import OUTLIVED_MAX, Verdict
from routing.shard_servicer import ShardServicer, _Link
from routing.state import ShardState
from routing.testing import MemoryBlocks, MemoryJournal
from routing.views import view_call
from routing.witnesses import Witnesses

DEADLINE_SECONDS = 30
#: Longest wait for an answer.
ASK_SECONDS = 30
TAKEOVER = 0.15


class Node:
    """A router's leader (or standby) with its server."""

    def __init__(self, blocks: MemoryBlocks, name: str) -> None:
        self.journal = MemoryJournal(blocks, now_ms=SystemClock().now_ms)
        self.leader = Leader(
            shard="beijing",
            router=name,
            store=self.journal,
            clock=SystemClock(),
            options=LeaderOptions(
                heartbeat_seconds=0.02, takeover_seconds=TAKEOVER, tail_seconds=0.02, outage_seconds=0.1
            ),
        )
        self.servicer = ShardServicer({"beijing": self.leader}, name, lambda shard: self.leader.opened_by)
        self.task: asyncio.Task[None] | None = None
        self.address = ""

    def start(self) -> None:
        self.task = asyncio.create_task(self.leader.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


class Region:
    """Two routers' servers and a front's link to their shard."""

    def __init__(self) -> None:
        self.blocks = MemoryBlocks()
        self.nodes: list[Node] = []
        self.facts: list[tuple[int, Fact]] = []
        self.changes: list[bool] = []
        self.link: ShardLink
        self.routers: Routers

    def hear(self, shard: str, epoch: int, sequence: int, facts: Sequence[Fact]) -> None:
        self.facts += [(epoch, fact) for fact in facts]


@asynccontextmanager
async def a_region(grpc_server: Any, local: bool = False) -> AsyncIterator[Region]:
    """With `local`, the front is in the first node's process."""
    region = Region()
    for name in ("one", "two"):
        node = Node(region.blocks, name)
        parts = (
            shard_pb2.DESCRIPTOR.services_by_name["ShardService"],
            shard_pb2_grpc.add_ShardServiceServicer_to_server,
            node.servicer,
        )
        node.address = node.leader.router = (await grpc_server([ServiceBinding(*parts)])).address
        region.nodes.append(node)
    own = region.nodes[0].address if local else ""
    region.routers = Routers(own, {"beijing": [node.address for node in region.nodes]})
    region.link = ShardLink("beijing", "f", region.routers, silent_seconds=1.0)
    region.link.listen(region.hear, lambda shard, up: region.changes.append(up), lambda call_id: True)
    if local:
        region.link.use_local(region.nodes[0].leader)
    task = asyncio.create_task(region.link.run())
    try:
        yield region
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for node in region.nodes:
            await node.stop()
        await region.routers.close()


def placing(call_id: str) -> PlaceCall:
    return PlaceCall(facts=CallFacts(call_id=call_id, queue="q"), attempt=1, move=1, front="f")


async def test_a_link_finds_the_leader_and_follows_it(grpc_server: Any) -> None:
    async with a_region(grpc_server) as region:
        first, second = region.nodes
        second.start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        committed = await region.link.ask(placing("c1"), ASK_SECONDS)
        assert committed.epoch == second.leader.epoch and committed.answer.call is not None
        await eventually(lambda: any(isinstance(f.event, CallQueued) for _, f in region.facts))
        first.start()
        await eventually(lambda: first.leader.ready)
        await second.stop()
        await eventually(lambda: first.leader.leading and region.link.up)
        found = await region.link.ask(AskCall(call_id="c1"), ASK_SECONDS)
        assert found.epoch == first.leader.epoch > committed.epoch
        assert region.changes == [True, False, True]


async def test_a_router_that_does_not_lead_says_who_does(grpc_server: Any) -> None:
    """The link knows only the standby; its hint leads to the other."""
    async with a_region(grpc_server) as region:
        first, second = region.nodes
        second.start()
        await eventually(lambda: second.leader.leading)
        first.start()
        await eventually(lambda: first.leader.ready)
        routers = Routers("", {"beijing": [first.address], "shanghai": [second.address]})
        link = ShardLink("beijing", "g", routers, silent_seconds=1.0)
        task = asyncio.create_task(link.run())
        await eventually(lambda: link.up)
        assert (await link.ask(AskCall(call_id="c1"), ASK_SECONDS)).epoch == second.leader.epoch
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await routers.close()


async def test_others_say_which_block_they_know(grpc_server: Any) -> None:
    """The newest that one of them has read or written; who is away, or follows another, says nothing."""
    async with a_region(grpc_server) as region:
        first, second = region.nodes
        second.start()
        await eventually(lambda: second.leader.leading)
        await second.leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        gone = socket.create_server(("127.0.0.1", 0))
        away = f"127.0.0.1:{gone.getsockname()[1]}"
        gone.close()
        routers = Routers("", {"beijing": [first.address, second.address], "shanghai": [away]})
        witnesses = Witnesses(routers)
        known = second.leader.newest_committed
        # It beats meanwhile.
        assert 2 <= known <= await witnesses.newest("beijing") <= second.leader.newest_committed
        assert await witnesses.newest("chengdu") == 0
        await routers.close()


async def test_of_many_routers_those_are_asked_that_follow_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region's own and its backups: of some hundred others none knows anything of it."""
    homes = {f"r{n}": (f"r{n}a:1", f"r{n}b:1") for n in range(ADDRESSES_MAX)}
    routers = Routers("r30a:1", homes)
    asked: list[str] = []

    async def ask(self: Witnesses, address: str, shard: str) -> int:
        asked.append(address)
        return 7 if address == "r31b:1" else 0

    monkeypatch.setattr(Witnesses, "_ask", ask)
    assert await Witnesses(routers).newest("r30", ("r30a:1", "r31b:1")) == 7
    assert asked[:2] == ["r30b:1", "r31b:1"] and len(asked) == ADDRESSES_MAX
    assert routers.own not in asked


async def test_nobody_opens_below_what_another_router_has_known(grpc_server: Any) -> None:
    """A standby that slept while the database was restored knows of no block that is gone; who led does."""
    async with a_region(grpc_server) as region:
        first, second = region.nodes
        second.start()
        await eventually(lambda: second.leader.leading)
        await second.leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        await second.stop()
        known = region.blocks.newest("beijing")
        region.blocks.remove("beijing", known)
        region.link.use_local(first.leader)
        await eventually(lambda: first.leader._known.heard == known == second.leader.newest_committed)
        first.start()
        # It had its turn, more than once.
        await eventually(lambda: first.journal.probes >= 2)
        assert not first.leader.leading and region.blocks.newest("beijing") == known - 1
        assert first.leader.newest_committed < known, "what it was told it does not pass on"


@pytest.mark.parametrize(
    ("says", "heard"),
    [
        pytest.param({}, 7, id="a beat"),
        pytest.param({"reply": b"?", "durable": True}, 7, id="an answer"),
        pytest.param({"reply": b"?", "durable": False}, 0, id="an answer from memory"),
        pytest.param({"facts": codec.encode_facts([]), "durable": True}, 0, id="what may be a position"),
    ],
)
def test_what_a_leader_says_of_the_journal_is_heard(says: dict[str, Any], heard: int) -> None:
    standby = Node(MemoryBlocks(), "one").leader
    link = ShardLink("beijing", "f", Routers("", {}), silent_seconds=1.0)
    link.use_local(standby)
    link._take(shard_pb2.ShardMessage(shard="beijing", epoch=1, sequence=7, **says))
    assert standby._known.heard == heard


@pytest.mark.parametrize(
    ("text", "sequence"), [("143", 143), ("", 0), ("-1", 0), ("1_0", 0), ("\u0663", 0), ("9" * 19, 0)]
)
def test_a_blocks_number_is_read_from_digits_alone(text: str, sequence: int) -> None:
    assert _sequence_of(text) == sequence


async def test_a_front_moves_between_the_leader_here_and_one_elsewhere(grpc_server: Any) -> None:
    async with a_region(grpc_server, local=True) as region:
        first, second = region.nodes
        first.start()
        await eventually(lambda: region.link.up)
        assert (await region.link.ask(AskCall(call_id="c1"), ASK_SECONDS)).epoch == first.leader.epoch
        second.start()
        await eventually(lambda: second.leader.ready)
        # The local one hangs; the standby of the other router takes over, and its epoch is heard of.
        first.journal.gate = asyncio.Event()
        hanging = asyncio.create_task(region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS))
        await eventually(lambda: second.leader.leading)
        region.link.notice(second.leader.epoch, second.address)
        await eventually(lambda: region.link.up)
        assert not first.leader.leading, "it was told that a newer epoch leads"
        assert (await region.link.ask(AskCall(call_id="c1"), ASK_SECONDS)).epoch == second.leader.epoch
        first.journal.gate.set()
        with pytest.raises(Exception, match="before it had an answer"):
            await hanging
        assert region.changes == [True, False, True]


async def test_an_older_epoch_is_not_listened_to(grpc_server: Any) -> None:
    async with a_region(grpc_server) as region:
        first, _ = region.nodes
        first.start()
        await eventually(lambda: region.link.up)
        epoch = first.leader.epoch
        region.link.notice(epoch + 100, region.nodes[1].address)
        await eventually(lambda: not region.link.up)
        # Its next Hello tells the leader, which steps down (and, alone as it is, opens anew by and by).
        await eventually(lambda: first.leader.epoch > epoch)
        assert not region.link.up


async def test_a_silent_link_is_left(grpc_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routing.shard_servicer.BEAT_SECONDS", 60.0)
    async with a_region(grpc_server) as region:
        region.link._silent_seconds = 0.2
        region.nodes[0].start()
        await eventually(lambda: region.changes[:2] == [True, False])


async def test_a_router_that_sleeps_is_asked_last_and_briefly(grpc_server: Any) -> None:
    """A stopped process takes connections and says nothing. Who leads by then is asked before it."""
    async with a_region(grpc_server) as region:
        sleeper = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{sleeper.getsockname()[1]}"
        standby = region.nodes[0]
        routers = Routers("", {"beijing": [address, standby.address]})
        link = ShardLink("beijing", "g", routers, silent_seconds=0.8)
        assert link._addresses() == [address, standby.address]
        task = asyncio.create_task(link.run())
        await eventually(lambda: link._mute == address)
        assert link._addresses() == [standby.address, address]
        standby.start()
        await eventually(lambda: link.up)
        assert link._believed == standby.address
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await routers.close()
        sleeper.close()


async def test_a_silent_front_is_gone_and_one_that_only_has_nothing_to_say_is_not(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.links.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("routing.shard_servicer.FRONT_SILENT_SECONDS", 0.2)
    async with a_region(grpc_server) as region:
        leader = region.nodes[0].leader
        region.nodes[0].start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        await region.link.ask(placing("c1"), ASK_SECONDS)
        await asyncio.sleep(0.5)
        assert region.changes == [True] and leader.state.calls["c1"].attached
        # Nothing comes from it any more, as from a router whose network is gone.
        monkeypatch.setattr("routing.links.BEAT_SECONDS", 60.0)
        await eventually(lambda: not leader.state.calls["c1"].attached)


async def test_a_region_leads_its_own_shard_again_when_it_can(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.links.HOMECOMING_SECONDS", 0.05)
    async with a_region(grpc_server, local=True) as region:
        home, backup = region.nodes
        backup.start()
        await eventually(lambda: region.link.up)
        await region.link.ask(SetLeadList(routers=(home.address, backup.address)), ASK_SECONDS)
        region.routers._homes["beijing"] = (home.address,)
        region.link.use_list((home.address, backup.address))
        # A stream to a router of another region, as it is from now on.
        region.link._cut()
        began, epoch = asyncio.get_running_loop().time(), backup.leader.epoch
        home.start()
        await eventually(lambda: home.leader.leading)
        assert home.leader.epoch > epoch and not backup.leader.leading
        await eventually(lambda: region.link.up)
        assert asyncio.get_running_loop().time() - began < DEADLINE_SECONDS
        await eventually(lambda: backup.leader.epoch == home.leader.epoch)


@pytest.mark.parametrize("listed", [("two", "one"), ("two",), ()])
async def test_a_leader_goes_on_when_who_asks_does_not_stand_before_it(listed: tuple[str, ...]) -> None:
    first = Node(MemoryBlocks(), "two")
    first.start()
    await eventually(lambda: first.leader.leading)
    await first.leader.submit(SetLeadList(routers=listed))
    assert not first.leader.yield_to("one") and first.leader.leading
    await first.leader.submit(SetLeadList(routers=("one", "two")))
    assert first.leader.yield_to("one") and not first.leader.leading
    await first.stop()


async def test_what_a_leader_did_not_take_comes_back_as_it_is(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        monkeypatch.setitem(engine._DECIDE, HangUp, lambda *_: 1 // 0)
        with pytest.raises(Internal):
            await region.link.ask(HangUp(call_id="c1", attempt=1), ASK_SECONDS)
        node.journal.away = True
        await eventually(lambda: node.leader.outage)
        with pytest.raises(StoreOutage) as caught:
            await region.link.ask(placing("c2"), ASK_SECONDS)
        assert caught.value.details.retry_seconds == pytest.approx(0.1)
        node.journal.away = False
        assert (await region.link.ask(AskCall(call_id="c2"), ASK_SECONDS)).answer.call is None


async def test_without_a_leader_the_answer_is_unknown(grpc_server: Any) -> None:
    async with a_region(grpc_server) as region:
        with pytest.raises(LinkLost):
            await region.link.ask(AskCall(call_id="c1"), ASK_SECONDS)
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        node.journal.gate = asyncio.Event()
        hanging = asyncio.create_task(region.link.ask(AskCall(call_id="c1"), ASK_SECONDS))
        await eventually(lambda: node.leader._pending or node.leader.settling.sent_seconds)
        node.servicer.drain()
        with pytest.raises(LinkLost):
            await hanging
        node.journal.gate.set()


async def test_a_command_that_outlived_two_leaders_is_refused(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks its leader's stream each time; everybody else goes on."""
    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        real, killed = _Link._read, []

        async def read(link: _Link, messages: Any) -> None:
            async def poisoned() -> AsyncIterator[Any]:
                async for message in messages:
                    if codec.decode_command(message.command) == HangUp(call_id="bad", attempt=1):
                        killed.append(link)
                        if message.outlived:
                            await link._say_received(message.request)
                        link._out.put_nowait("not a message")  # type: ignore[arg-type]
                    else:
                        yield message

            await real(link, poisoned())

        monkeypatch.setattr(_Link, "_read", read)
        # On a busy machine the stream breaks later than the product would hold against the command.
        monkeypatch.setattr("routing.links.JUST_SENT_SECONDS", DEADLINE_SECONDS)
        region.link._cut()
        for _ in range(OUTLIVED_MAX):
            await eventually(lambda: region.link.up)
            with pytest.raises(LinkLost):
                await region.link.ask(HangUp(call_id="bad", attempt=1), ASK_SECONDS)
            # The leader died of it: another one leads.
            epoch = node.leader.epoch
            node.leader._depose("killed by a command")
            await eventually(lambda epoch=epoch: node.leader.leading and node.leader.epoch > epoch)
        await eventually(lambda: region.link.up)
        with pytest.raises(Internal):
            await region.link.ask(HangUp(call_id="bad", attempt=1), ASK_SECONDS)
        assert len(killed) == OUTLIVED_MAX
        assert (await region.link.ask(placing("c1"), ASK_SECONDS)).answer.call is not None


def is_poison(link: ShardLink, command: str) -> bool:
    return link._outlived.verdict(command, link.shard) is Verdict.POISON


async def test_a_command_is_not_poison_because_streams_break(grpc_server: Any) -> None:
    """The same leader lives on: what was asked when its stream broke may be asked again and again."""
    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        for _ in range(2 * OUTLIVED_MAX):
            region.link._suspects = (node.leader.epoch, {"EndCall c1": False})
            region.link._cut()
            await eventually(lambda: region.link.up)
        assert not is_poison(region.link, "EndCall c1")


async def test_a_command_that_was_asked_twice_has_outlived_one_leader(grpc_server: Any) -> None:
    """An edge asks again while its first question is open: that is no second death."""
    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        link = region.link
        now = asyncio.get_running_loop().time()
        for number in (901, 902):
            link._open[number] = _Question("EndCall c1", now, asyncio.get_running_loop().create_future())
        link._lose(link._attached, broken=True)
        link._judge(link._epoch + 1)
        assert not is_poison(link, "EndCall c1")


async def test_a_leader_that_speaks_after_a_command_does_not_die_of_it(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is long on its way when two leaders in a row are killed: the command is innocent, one that
    nobody has decided may not be.
    """
    monkeypatch.setattr(shard_servicer, "BEAT_SECONDS", 0.02)
    async with a_region(grpc_server) as region:
        node, link = region.nodes[0], region.link
        node.start()
        for _ in range(OUTLIVED_MAX):
            await eventually(lambda: link.up)
            node.journal.gate = asyncio.Event()
            asked = asyncio.create_task(link.ask(EndCall(call_id="c1"), ASK_SECONDS))
            await eventually(lambda: link._open and max(link._open) <= link._decided)
            now, unread = asyncio.get_running_loop().time(), asyncio.get_running_loop().create_future()
            link._open[next(link._requests)] = _Question(EndCall(call_id="c2"), now, unread)
            link._lose(link._attached, broken=True)
            link._judge(link._epoch + 1)
            link._cut()
            for failed in (asked, unread):
                with pytest.raises(LinkLost):
                    await failed
            node.journal.gate.set()
        assert link._outlived.verdict("EndCall c1", "beijing") is Verdict.CLEAR
        assert is_poison(link, "EndCall c2")


async def test_a_command_that_may_have_killed_two_leaders_waits_until_that_is_known(grpc_server: Any) -> None:
    """One in each of two shards: a third is asked once one of them turns out to live, never if both died."""
    async with a_region(grpc_server) as region:
        node, link = region.nodes[0], region.link
        node.start()
        elsewhere = [
            ShardLink(shard, "f", region.routers, silent_seconds=1.0) for shard in ("shanghai", "chengdu")
        ]
        for lives in (True, False):
            for other in elsewhere:
                other._open[1] = _Question(
                    HangUp(call_id="c1", attempt=1),
                    asyncio.get_running_loop().time(),
                    asyncio.get_running_loop().create_future(),
                    alone=other is elsewhere[1],
                )
                other._attached, other._epoch = "one", 5
                other._lose("one", broken=True)
            await eventually(lambda: link.up)
            with pytest.raises(LinkDown):
                await link.ask(HangUp(call_id="c1", attempt=1), ASK_SECONDS)
            elsewhere[0]._judge(6)
            elsewhere[1]._judge(5 if lives else 6)
            if lives:
                assert (
                    await link.ask(HangUp(call_id="c1", attempt=1), ASK_SECONDS)
                ).answer.refusal is not None
                elsewhere[0]._judge(0)
        with pytest.raises(Internal):
            await link.ask(HangUp(call_id="c1", attempt=1), ASK_SECONDS)


async def test_links_end_in_the_order_in_which_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """What their fronts held is detached in that order: a run is the same each time."""
    began, ended = [], []

    class Link(_Link):
        async def run(self, messages: Any) -> AsyncGenerator[shard_pb2.ShardMessage, None]:
            began.append(self)
            yield shard_pb2.ShardMessage()

        def cut(self) -> None:
            ended.append(self)

    monkeypatch.setattr(shard_servicer, "_Link", Link)
    node = Node(MemoryBlocks(), "one")
    node.start()
    try:
        await eventually(lambda: node.leader.leading)
        streams = []
        for number in range(20):
            hello = shard_pb2.FrontMessage.Hello(router=f"f{number}", shard="beijing")
            streams.append(node.servicer.Attach(_only(shard_pb2.FrontMessage(hello=hello)), None))
            await anext(streams[-1])
        node.servicer.drain()
        assert ended == began and len(began) == len(streams)
        for stream in streams:
            await stream.aclose()
        node.servicer.drain()
        assert len(ended) == len(streams)
    finally:
        await node.stop()


async def test_what_a_crowd_is_told_by_one_block_is_never_too_much_for_a_message(grpc_server: Any) -> None:
    """Calls with all the context that they may have, attached together: three blocks full of them."""
    said = tuple(
        (f"k{n}", "x" * (CONTEXT_BYTES_MAX // CONTEXT_KEYS_MAX - 3)) for n in range(CONTEXT_KEYS_MAX)
    )
    state = ShardState("beijing")
    engine.step(state, ConfigureQueue(queue=QueueConfig(id="q")), 1)
    engine.step(
        state,
        msgspec.structs.replace(placing("c1"), facts=CallFacts(call_id="c1", queue="q", attributes=said)),
        1,
    )
    attached = CallAttached(call_id="c1", attempt=1, move=1, front="f")
    block = [Fact(event=attached, now_ms=1, call=view_call(state, "c1"))] * EVENTS_PER_BLOCK_MAX
    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: region.link.up)
        for _ in range(3):
            node.leader.outlets["f"](block, node.leader.epoch, node.leader.sequence, 1)
        await eventually(lambda: len(region.facts) == 3 * len(block) or region.changes != [True])
        assert region.changes == [True]


async def _only(message: shard_pb2.FrontMessage) -> AsyncIterator[shard_pb2.FrontMessage]:
    yield message


async def test_what_outlived_a_leader_is_said_to_be_decided_at_once(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is long on its way, and no beat is due: the leader that dies now did not die of it."""
    monkeypatch.setattr(shard_servicer, "BEAT_SECONDS", 10 * ASK_SECONDS)
    async with a_region(grpc_server) as region:
        node, link = region.nodes[0], region.link
        # Nothing else is said, and that is no reason to leave.
        link._silent_seconds = 10 * ASK_SECONDS
        node.start()
        await eventually(lambda: link.up)
        link._outlived.add("EndCall c1", "beijing")
        node.journal.gate = asyncio.Event()
        asked = [
            asyncio.create_task(link.ask(EndCall(call_id=name), ASK_SECONDS)) for name in ("c0", "c1", "c2")
        ]
        await eventually(lambda: len(link._open) == len(asked) and link._decided)
        number = next(n for n, each in link._open.items() if each.command == EndCall(call_id="c1"))
        await eventually(lambda: number <= link._decided)
        link._lose(link._attached, broken=True)
        link._judge(link._epoch + 1)
        assert not is_poison(link, "EndCall c1")
        node.journal.gate.set()
        await asyncio.gather(*asked, return_exceptions=True)


def _fails_halfway(monkeypatch: pytest.MonkeyPatch, poison: Command) -> list[Command]:
    """The engine applies the first event of one command, then fails; what it was given of it."""
    real, given = leader_module.step, []

    def step(state: ShardState, command: Command, now_ms: int) -> Any:
        if command == poison:
            given.append(command)
            state.ordinal += 1
            raise ZeroDivisionError("half-way")
        return real(state, command, now_ms)

    monkeypatch.setattr(leader_module, "step", step)
    return given


@pytest.mark.parametrize("local", [False, True], ids=["another router's leader", "the leader here"])
async def test_a_command_that_made_two_leaders_step_down_is_refused(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    bad = HangUp(call_id="bad", attempt=1)
    given = _fails_halfway(monkeypatch, bad)
    async with a_region(grpc_server, local=local) as region:
        leader = region.nodes[0].leader
        region.nodes[0].start()
        for _ in range(OUTLIVED_MAX + 2):
            await eventually(lambda: leader.leading and region.link.up and region.link._epoch == leader.epoch)
            with pytest.raises(Internal):
                await region.link.ask(bad, ASK_SECONDS)
        assert len(given) == OUTLIVED_MAX
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        assert (await region.link.ask(placing("c1"), ASK_SECONDS)).answer.call is not None


def _takes_in(*, says_so: bool) -> Any:
    """A leader's side that reads commands, and never decides one."""

    async def read(link: _Link, messages: Any) -> None:
        async for message in messages:
            link._heard_seconds = asyncio.get_running_loop().time()
            if message.outlived and says_so:
                await link._say_received(message.request)

    return read


async def test_an_accident_that_breaks_several_links_convicts_nobody(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that has slept, or is cut off, asks one region after the other, and their links break then;
    that others lead there by now says nothing of the call.
    """
    monkeypatch.setattr(_Link, "_read", _takes_in(says_so=False))
    async with a_region(grpc_server) as region:
        node, link = region.nodes[0], region.link
        node.start()
        await eventually(lambda: link.up)
        outlived = region.routers.outlived
        outlived.suspect("PlaceCall c1", "shanghai", alone=False)
        asked = asyncio.create_task(link.ask(placing("c1"), ASK_SECONDS))
        await eventually(lambda: link._open)
        link._lose(link._attached, broken=True)
        with pytest.raises(LinkLost):
            await asked
        link._judge(link._epoch + 1)
        outlived.judge("PlaceCall c1", "shanghai", died=True)
        assert outlived.verdict("PlaceCall c1", "beijing") is Verdict.ALONE


async def test_who_outlived_a_leader_is_asked_alone(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many were on their way when a leader died: the next death over one of them convicts that one alone."""
    monkeypatch.setattr(_Link, "_read", _takes_in(says_so=True))
    async with a_region(grpc_server) as region:
        node, link = region.nodes[0], region.link
        node.start()
        await eventually(lambda: link.up)
        names = [f"c{n}" for n in range(5)]
        for name in names:
            link._outlived.add(f"HangUp {name}", "beijing")
        asked = [
            asyncio.create_task(link.ask(HangUp(call_id=name, attempt=1), ASK_SECONDS)) for name in names
        ]
        await eventually(lambda: len(link._open) == 1 and link._received == max(link._open))
        link._lose(link._attached, broken=True)
        link._judge(link._epoch + 1)
        assert [is_poison(link, f"HangUp {name}") for name in names].count(True) == 1
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_on_a_busy_link_what_was_received_is_said_and_no_more_waited_for(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always more to say: a leader that waited for the end of it would read nothing meanwhile."""
    monkeypatch.setattr(shard_servicer, "BEAT_SECONDS", DEADLINE_SECONDS)

    async def nothing() -> AsyncIterator[shard_pb2.FrontMessage]:
        await asyncio.Event().wait()
        yield shard_pb2.FrontMessage()

    async with a_region(grpc_server) as region:
        node = region.nodes[0]
        node.start()
        await eventually(lambda: node.leader.leading)
        link = _Link(node.leader, "busy")
        said = asyncio.create_task(link._say_received(7))
        received, messages = [], link.run(nothing())
        async for message in messages:
            received.append(message.received)
            link._put(link._message())
            link._put(link._message())
            # Writing takes a turn of the loop.
            await asyncio.sleep(0)
            if said.done():
                break
            assert len(received) < 10, "it waits for the last word"
        await messages.aclose()
        assert 7 in received and not link._out.empty()


@pytest.mark.parametrize("together", [True, False], ids=["batches", "an older router"])
async def test_what_is_ready_at_once_goes_in_one_message(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    sizes: list[int] = []
    real = ShardLink._take

    def read(link: _Link, message: shard_pb2.FrontMessage) -> None:
        sizes.append(1)
        carry_out(link, message)

    carry_out = _Link._carry_out
    monkeypatch.setattr(_Link, "_carry_out", read)
    messages: list[int] = []

    async def count(link: _Link, incoming: AsyncIterator[shard_pb2.FrontMessage]) -> None:
        async def counted() -> AsyncIterator[shard_pb2.FrontMessage]:
            async for message in incoming:
                messages.append(1 + len(message.more))
                yield message

        await read_all(link, counted())

    read_all = _Link._read
    monkeypatch.setattr(_Link, "_read", count)
    answers: list[shard_pb2.ShardMessage] = []
    monkeypatch.setattr(
        ShardLink, "_take", lambda link, message: (answers.append(message), real(link, message))[1]
    )
    if not together:
        monkeypatch.setattr(_Link, "_greeting", _Link._message)
    async with a_region(grpc_server) as region:
        region.nodes[0].start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        messages.clear()
        sizes.clear()
        placed = await asyncio.gather(*(region.link.ask(placing(f"c{n}"), ASK_SECONDS) for n in range(150)))
        assert all(each.answer.call is not None for each in placed)
        assert sum(messages) == len(sizes) == 150
        assert max(messages) <= BATCH_MAX
        assert (len(messages) < 20) if together else (len(messages) == 150)
        told = [fact.event.facts.call_id for _, fact in region.facts if isinstance(fact.event, CallQueued)]
        assert told == [f"c{n}" for n in range(150)], "in order, none lost"


async def test_an_older_leader_is_told_of_each_stream_that_ended(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling upgrade: the front knows a command that the leader does not."""
    monkeypatch.setattr(_Link, "_greeting", _Link._message)
    monkeypatch.delitem(codec._COMMANDS, "DetachCalls")
    async with a_region(grpc_server) as region:
        region.nodes[0].start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        calls = ("c1", "c2")
        for call in calls:
            await region.link.ask(placing(call), ASK_SECONDS)
        gone = DetachCalls(front="f", calls=tuple((call, 1, 1) for call in calls))
        await region.link.ask(gone, ASK_SECONDS)
        entries = region.nodes[0].leader.state.calls
        assert not any(entries[call].attached for call in calls)


@pytest.mark.parametrize("known", [True, False], ids=["same release", "older leader"])
async def test_waiting_calls_attach_together_where_the_leader_knows_how(
    grpc_server: Any, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(_Link, "_greeting", _Link._message)
        monkeypatch.delitem(codec._COMMANDS, "AttachCalls")
    async with a_region(grpc_server) as region:
        region.nodes[0].start()
        await eventually(lambda: region.link.up)
        await region.link.ask(ConfigureQueue(queue=QueueConfig(id="q")), ASK_SECONDS)
        await region.link.ask(placing("c1"), ASK_SECONDS)
        here = AttachCalls(front="f", calls=(("c1", 1, 1), ("c2", 1, 1)))
        if known:
            assert (await region.link.ask(here, ASK_SECONDS)).answer.apart == ("c2",)
        else:
            with pytest.raises(LinkDown):
                await region.link.ask(here, ASK_SECONDS)


async def test_who_has_an_answer_acts_on_it_before_what_happened_after_it_is_told() -> None:
    """Answers and news of several blocks come in one message. An agent who attaches again is told that she
    talks, and then that it is over: the other way round she would talk to nobody from then on.
    """
    messages: asyncio.Queue[shard_pb2.ShardMessage] = asyncio.Queue()
    told: list[str] = []

    async def stream() -> AsyncIterator[shard_pb2.ShardMessage]:
        while True:
            yield await messages.get()

    async def ask(number: int) -> None:
        await link.ask(AskCall(call_id=f"c{number}"), ASK_SECONDS)
        told.append(f"answer {number}")

    def hear(shard: str, epoch: int, sequence: int, facts: Sequence[Fact]) -> None:
        told.append(f"news {sequence}")

    def said(sequence: int, **more: Any) -> shard_pb2.ShardMessage:
        return shard_pb2.ShardMessage(epoch=1, sequence=sequence, **more)

    link = ShardLink("beijing", "f", Routers("", {}), silent_seconds=1.0)
    link.listen(hear, lambda shard, up: None, lambda call_id: True)
    reading = asyncio.create_task(link._read(stream(), "a", asyncio.Queue()))
    messages.put_nowait(said(1))
    await eventually(lambda: link.up)
    asking = [asyncio.create_task(ask(number)) for number in (1, 2, 3)]
    await eventually(lambda: len(link._open) == 3)
    answers = [said(n, request=n, reply=codec.encode_answer(Answer())) for n in (1, 2, 3)]
    news = codec.encode_facts([Fact(event=CallsForgotten(call_ids=("c0",)), now_ms=0)])
    facts = [said(n, facts=news) for n in range(5)]
    together = [facts[1], answers[0], facts[2], answers[1], answers[2], facts[3], facts[4]]
    facts[0].more.extend(together)
    messages.put_nowait(facts[0])
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*asking)
    await eventually(lambda: len(told) == 8)
    reading.cancel()
    assert " ".join(told) == "news 0 news 1 answer 1 news 2 answer 2 answer 3 news 3 news 4"
