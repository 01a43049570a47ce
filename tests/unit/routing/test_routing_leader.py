"""The leader: group commit, unknown outcomes, openings, poison, timers, and what leaves before a commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from chassis.testing import FakeClock
from chassis.testing.waiting import eventually
from routing import codec, positions, timers
from routing import leader as leader_module
from routing.committed import LeaderGone, NotLeading, PoisonCommand, ShardBusy, StoreOutage
from routing.engine import step as real_step
from routing.journal import Block, JournalGap
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import (
    BLOCK_BYTES_MAX,
    EVENTS_PER_BLOCK_MAX,
    AcceptOffer,
    AgentConfig,
    AskCall,
    CallEnded,
    CallFacts,
    CallOutcome,
    CallQueued,
    CallResumed,
    CallState,
    ConfigureAgent,
    ConfigureQueue,
    DeadlinesMoved,
    DetachFront,
    Fact,
    HangUp,
    OpenSession,
    PlaceCall,
    PositionChanged,
    QueueConfig,
    ShardOpened,
    Timing,
)
from routing.state import next_deadline
from routing.testing import MemoryBlocks, MemoryJournal

DEADLINE_SECONDS = 10
T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, DEADLINE_SECONDS)


class Router:
    """A leader over a shared memory journal, with everything it tells the front `f`."""

    def __init__(self, blocks: MemoryBlocks, clock: FakeClock, name: str = "r1", **options: Any) -> None:
        self.clock = clock
        self.journal = MemoryJournal(blocks, now_ms=clock.now_ms)
        self.leader = Leader(
            shard="beijing",
            router=name,
            store=self.journal,
            clock=clock,
            options=LeaderOptions(
                **{"heartbeat_seconds": 0.05, "takeover_seconds": 0.01, "timing": Timing(), **options}
            ),
        )
        self.told: list[tuple[int, Fact]] = []
        self.drops = 0
        self.leader.add_outlet("f", self._outlet)
        self.leader.on_drop.append(self._dropped)

    def _outlet(self, facts: Sequence[Fact], epoch: int, sequence: int, now_ms: int) -> None:
        self.told += [(sequence, fact) for fact in facts]

    def _dropped(self) -> None:
        self.drops += 1

    def events(self, kind: type) -> list[Any]:
        return [fact.event for _, fact in self.told if isinstance(fact.event, kind)]

    async def furnish(self, agents: int = 0, **queue: Any) -> None:
        await soon(self.leader.submit(ConfigureQueue(queue=QueueConfig(id="service", **queue))))
        for n in range(agents):
            self.leader.carry_out(ConfigureAgent(agent=AgentConfig(id=f"a{n}")))
            self.leader.carry_out(OpenSession(agent=f"a{n}", session=1, command=1, front="f"))

    def place(self, call_id: str, attempt: int = 1, **facts: Any) -> Any:
        return self.leader.submit(placing(call_id, attempt, **facts))


def placing(call_id: str, attempt: int = 1, **facts: Any) -> PlaceCall:
    return PlaceCall(
        facts=CallFacts(call_id=call_id, queue="service", **facts), attempt=attempt, move=1, front="f"
    )


@asynccontextmanager
async def running(router: Router) -> AsyncIterator[Router]:
    """Runs the leader until it leads, and ends it afterwards."""
    task = asyncio.create_task(router.leader.run())
    try:
        await soon(router.leader.wait_until_leading())
        yield router
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert router.journal.closed


@pytest.fixture
def clock() -> FakeClock:
    # The database's clock and the machine's must agree for the shard's time to be the fake clock's.
    return FakeClock()


@pytest.fixture(autouse=True)
def one_time(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """The leader compares the database's clock with the machine's: here both are the fake clock."""

    class Time:
        @staticmethod
        def time_ns() -> int:
            return clock.now_ms() * 1_000_000

    monkeypatch.setattr(leader_module, "time", Time)


@pytest.fixture
def blocks() -> MemoryBlocks:
    return MemoryBlocks()


def events_of(blocks: MemoryBlocks) -> list[Any]:
    return [
        event for block in blocks.of("beijing") for _, event in codec.decode_events(block.body, block.now_ms)
    ]


def check_chain(blocks: MemoryBlocks) -> None:
    """The journal has no gap and every block names the one before."""
    before: Block | None = None
    for block in blocks.of("beijing"):
        if before is None:
            assert block.sequence == 1 and block.opening
        else:
            assert (block.sequence, block.prev) == (before.sequence + 1, before.nonce)
            assert block.epoch in (before.epoch, block.sequence)
        before = block


# --- group commit


async def test_an_answer_waits_for_its_block(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        sent = router.journal.inserts
        future = router.place("c1")
        await eventually(lambda: router.journal.inserts > sent)
        assert not future.done() and not router.told, "nothing may leave before the commit"
        router.journal.gate.set()
        committed = await soon(future)
        assert committed.answer.call is not None and committed.answer.call.state is CallState.WAITING
        block = blocks.at("beijing", committed.sequence)
        assert block is not None and block.epoch == committed.epoch
    check_chain(blocks)


async def test_an_answer_from_memory_waits_for_a_commit_begun_after_the_question(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    async with running(Router(blocks, clock, heartbeat_seconds=60)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        sent = router.journal.inserts
        first = router.place("c1")
        await eventually(lambda: router.journal.inserts > sent)
        question = router.leader.submit(AskCall(call_id="c1"))
        repeat = router.place("c1")
        router.journal.gate.set()
        begun = (await soon(first)).sequence
        for future in (question, repeat):
            assert (await soon(future)).sequence > begun


async def test_what_is_decided_while_a_block_is_in_flight_forms_the_next(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        sent = router.journal.inserts
        first = router.place("c0")
        await eventually(lambda: router.journal.inserts > sent)
        later = [router.place(f"c{n}") for n in range(1, 40)]
        router.journal.gate.set()
        sequence = (await soon(first)).sequence
        assert {(await soon(future)).sequence for future in later} == {sequence + 1}
        assert [e.facts.call_id for e in router.events(CallQueued)] == [f"c{n}" for n in range(40)]


@pytest.mark.parametrize(
    ("calls", "facts"),
    [
        (EVENTS_PER_BLOCK_MAX * 2 + 10, {}),
        (250, {"attributes": (("context", "x" * 15_000),)}),
    ],
    ids=["events", "bytes"],
)
async def test_a_block_is_bounded(
    blocks: MemoryBlocks, clock: FakeClock, calls: int, facts: dict[str, Any]
) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        futures = [router.place(f"c{n}", **facts) for n in range(calls)]
        for future in futures:
            await soon(future)
    for block in blocks.of("beijing"):
        assert block.count <= EVENTS_PER_BLOCK_MAX and len(block.body) <= BLOCK_BYTES_MAX
    queued = [e.facts.call_id for e in events_of(blocks) if isinstance(e, CallQueued)]
    assert queued == [f"c{n}" for n in range(calls)]
    check_chain(blocks)


async def test_an_idle_leader_commits_a_block_every_heartbeat(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock, heartbeat_seconds=0.005)) as router:
        before = router.leader.sequence
        await eventually(lambda: router.leader.sequence >= before + 3)
        assert blocks.of("beijing", before)[1].count == 0


# --- unknown outcomes


@pytest.mark.parametrize("trouble", ["refuse", "lose_answers"])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_unknown_outcome_is_settled_with_the_same_bytes(
    blocks: MemoryBlocks, clock: FakeClock, trouble: str, times: int
) -> None:
    async with running(Router(blocks, clock, heartbeat_seconds=60)) as router:
        await router.furnish()
        before = router.leader.sequence
        getattr(router.journal, trouble)(times)
        committed = await soon(router.place("c1"))
        assert committed.sequence == before + 1 and router.leader.leading
        assert [e.facts.call_id for e in events_of(blocks) if isinstance(e, CallQueued)] == ["c1"]
    check_chain(blocks)


class Stubborn(MemoryJournal):
    """Remembers what was sent; the next inserts fail before or after they are applied."""

    sent: list[Block]

    async def insert(self, block: Block) -> None:
        self.__dict__.setdefault("sent", []).append(block)
        await super().insert(block)


async def test_bytes_never_change_once_sent(blocks: MemoryBlocks, clock: FakeClock) -> None:
    router = Router(blocks, clock, heartbeat_seconds=60)
    journal = Stubborn(blocks, now_ms=clock.now_ms)
    router.journal = router.leader._store = journal
    async with running(router):
        await router.furnish()
        journal.refuse(3)
        sent = len(journal.sent)
        first = router.place("c1")
        await eventually(lambda: len(journal.sent) > sent)
        second = router.place("c2")
        clock.advance(0.5)
        one, two = await soon(first), await soon(second)
        assert two.sequence == one.sequence + 1
        tries = [block for block in journal.sent if block.sequence == one.sequence]
        assert len(tries) == 4 and len(set(tries)) == 1


async def test_another_leaders_block_deposes(blocks: MemoryBlocks, clock: FakeClock) -> None:
    """It drops its memory, tells those who wait that the result is unknown, and follows the journal."""
    router = Router(blocks, clock, heartbeat_seconds=60)
    async with running(router):
        await router.furnish()
        epoch = router.leader.epoch
        newest = blocks.at("beijing", router.leader.sequence)
        assert newest is not None
        rival = Block(
            shard="beijing",
            sequence=newest.sequence + 1,
            epoch=newest.sequence + 1,
            nonce="rival",
            prev=newest.nonce,
            now_ms=clock.now_ms(),
            format=codec.FORMAT,
            count=1,
            body=codec.encode_events(
                [(clock.now_ms(), ShardOpened(router="r2", leaderless_span_ms=0))], clock.now_ms()
            ),
        )
        blocks.put(rival)
        with pytest.raises(LeaderGone):
            await soon(router.place("c1"))
        assert router.drops == 1 and not router.events(CallQueued)
        await soon(router.leader.wait_until_leading())
        assert router.leader.epoch > rival.epoch > epoch and "c1" not in router.leader.state.calls
    check_chain(blocks)


async def test_a_database_set_back_is_not_led(blocks: MemoryBlocks, clock: FakeClock) -> None:
    """The block before ours is gone: sending ours again would fork history."""
    async with running(Router(blocks, clock, heartbeat_seconds=60)) as router:
        await router.furnish()
        router.journal.refuse(1)
        blocks.remove("beijing", router.leader.sequence)
        with pytest.raises(LeaderGone):
            await soon(router.place("c1"))
        assert router.drops == 1
        assert not [e for e in events_of(blocks) if isinstance(e, CallQueued)]


class RestoredMeanwhile(MemoryJournal):
    """Once `armed`, a leader sleeps between sending a block and reading the answer, and the database is set
    back to before it.
    """

    clock: FakeClock
    armed = False

    async def insert(self, block: Block) -> None:
        await super().insert(block)
        if self.armed:
            self.armed = False
            self.shared.remove(block.shard, block.sequence)
            self.clock.advance(300)


async def test_who_slept_before_reading_an_answer_looks_before_the_next_block(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    router = Router(blocks, clock, heartbeat_seconds=60)
    journal = router.journal = router.leader._store = RestoredMeanwhile(blocks, now_ms=clock.now_ms)
    journal.clock = clock
    async with running(router):
        await router.furnish()
        journal.armed = True
        await soon(router.place("c1"))
        with pytest.raises(LeaderGone):
            await soon(router.place("c2"))
        assert router.drops == 1
    assert not [event for event in events_of(blocks) if isinstance(event, CallQueued)]
    check_chain(blocks)


@pytest.mark.parametrize("known", [0, 1], ids=["nobody led meanwhile", "another led, and is gone"])
async def test_a_leader_that_slept_asks_the_others_before_it_writes(
    blocks: MemoryBlocks, clock: FakeClock, known: int
) -> None:
    """Its own block ends the journal: whether more stood there before a restore, only the others know."""
    asked: list[int] = []

    async def others(lead_list: Sequence[str]) -> int:
        asked.append(blocks.newest("beijing"))
        return blocks.newest("beijing") + known

    async with running(Router(blocks, clock, heartbeat_seconds=1.0, takeover_seconds=5.0)) as router:
        router.leader.ask_others = others
        await router.furnish()
        clock.advance(4)
        await soon(router.place("c1"))
        assert not asked, "nobody opens so soon"
        clock.advance(6)
        call = router.place("c2")
        if known:
            with pytest.raises(LeaderGone):
                await soon(call)
            assert router.drops == 1
        else:
            await soon(call)
        assert len(asked) == 1
    assert [event.facts.call_id for event in events_of(blocks) if isinstance(event, CallQueued)] == (
        ["c1"] if known else ["c1", "c2"]
    )
    check_chain(blocks)


async def test_a_leader_that_is_deposed_while_it_looks_writes_nothing(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    async with running(Router(blocks, clock, heartbeat_seconds=1.0, takeover_seconds=5.0)) as router:

        async def others(lead_list: Sequence[str]) -> int:
            router.leader.hear_epoch(router.leader.epoch + 1)
            return 0

        router.leader.ask_others = others
        await router.furnish()
        newest = blocks.newest("beijing")
        clock.advance(6)
        with pytest.raises(LeaderGone):
            await soon(router.place("c1"))
        assert blocks.newest("beijing") == newest


async def test_what_was_acknowledged_outlives_the_leader(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock)) as first:
        await first.furnish()
        await soon(first.place("c1"))
        first.journal.gate = asyncio.Event()
        unknown = first.place("c2")
    with pytest.raises(LeaderGone):
        await unknown
    async with running(Router(blocks, clock, "r2")) as second:
        assert sorted(second.leader.state.calls) == ["c1"]
        answer = await soon(second.place("c1"))
        assert answer.answer.call is not None and not answer.answer.call.detached
    check_chain(blocks)


async def test_an_answer_in_flight_at_the_stop_is_unknown_not_hanging(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        sent = router.journal.inserts
        future = router.place("c1")
        await eventually(lambda: router.journal.inserts > sent)
    with pytest.raises(LeaderGone):
        await soon(future)


# --- opening


async def test_two_candidates_one_leader(blocks: MemoryBlocks, clock: FakeClock) -> None:
    routers = [Router(blocks, clock, name, heartbeat_seconds=0.002) for name in ("r1", "r2", "r3")]
    tasks = [asyncio.create_task(router.leader.run()) for router in routers]
    try:
        await eventually(lambda: sum(router.leader.leading for router in routers) == 1)
        leader = next(router.leader for router in routers if router.leader.leading)
        before = leader.sequence
        await eventually(lambda: leader.sequence > before + 5)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    check_chain(blocks)


class Napping(MemoryJournal):
    """While the candidate's opening is under way, others write above it."""

    above_it = True

    async def above(self, shard: str, sequence: int) -> bool:
        found, self.above_it = self.above_it, False
        return found or await super().above(shard, sequence)


async def test_a_candidate_that_slept_discards_everything(blocks: MemoryBlocks, clock: FakeClock) -> None:
    router = Router(blocks, clock)
    router.journal = router.leader._store = Napping(blocks, now_ms=clock.now_ms)
    async with running(router):
        openings = [block.sequence for block in blocks.of("beijing") if block.opening]
        assert openings == [1, 2], "the first opening was given up, the second leads"
        assert router.leader.epoch == 2


@pytest.mark.parametrize("trouble", ["refuse", "lose_answers"])
async def test_an_opening_of_unknown_outcome_is_settled(
    blocks: MemoryBlocks, clock: FakeClock, trouble: str
) -> None:
    router = Router(blocks, clock)
    getattr(router.journal, trouble)(2)
    async with running(router):
        assert router.leader.epoch == 1
    check_chain(blocks)


def _foreign(block: Block, **change: Any) -> Block:
    fields = {name: getattr(block, name) for name in Block.__slots__}
    return Block(**{**fields, **change})


UNREADABLE = {
    "a newer format": {"format": codec.FORMAT + 1},
    "garbage": {"body": b"\xc1garbage"},
    "an event that does not fit": {"body": codec.encode_events([(0, CallResumed(call_id="nobody's"))], 0)},
    "another chain": {"prev": "somebody"},
    "a gap": {"sequence": 9},
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_journal_that_cannot_be_read_or_applied_is_not_led(
    blocks: MemoryBlocks, clock: FakeClock, change: dict[str, Any]
) -> None:
    async with running(Router(blocks, clock)) as first:
        await first.furnish()
        last = blocks.at("beijing", first.leader.sequence)
    assert last is not None
    last = blocks.of("beijing")[-1]
    sequence = change.get("sequence", 1) + last.sequence
    blocks.put(
        _foreign(last, **{"prev": last.nonce, "nonce": "n", "now_ms": 0, **change, "sequence": sequence})
    )
    before = len(blocks.of("beijing"))
    router = Router(blocks, clock, "r2")
    task = asyncio.create_task(router.leader.run())
    try:
        with pytest.raises(JournalGap):
            await router.leader._read_tail()
        assert not router.leader.leading and len(blocks.of("beijing")) == before
        assert not task.done(), "the process goes on: it is a front as well"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_deadlines_move_by_the_leaderless_time(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock)) as first:
        await first.furnish(agents=1)
        await soon(first.place("c1"))
        view = (await soon(first.leader.submit(AskCall(call_id="c1")))).answer.call
        assert view is not None and view.state is CallState.OFFERED
    clock.advance(3_600)
    async with running(Router(blocks, clock, "r2")) as second:
        entry = second.leader.state.calls["c1"]
        assert entry.offer_until_ms - second.leader.now_ms() > 14_000, "the ringing goes on"
        assert not entry.attached and entry.detached_until_ms > second.leader.now_ms()


async def test_the_shards_time_never_goes_back(blocks: MemoryBlocks, clock: FakeClock) -> None:
    clock.advance(7_200)
    async with running(Router(blocks, clock)) as first:
        await first.furnish()
        last = first.leader.state.now_ms
    behind = FakeClock()
    router = Router(blocks, behind, "r2")
    async with running(router):
        assert router.leader.now_ms() >= last


# --- refusals


async def test_who_does_not_lead_takes_nothing(blocks: MemoryBlocks, clock: FakeClock) -> None:
    router = Router(blocks, clock)
    with pytest.raises(NotLeading) as caught:
        router.place("c1")
    assert caught.value.details.retry_seconds


async def test_an_outage_refuses_new_calls_and_nothing_else(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        await soon(router.place("c1"))
        router.journal.away = True
        hang_up = router.leader.submit(HangUp(call_id="c1", attempt=1))
        await eventually(lambda: router.leader.settling.sent_seconds is not None)
        clock.advance(1.0)
        with pytest.raises(StoreOutage) as caught:
            router.place("c2")
        assert caught.value.reason == "JOURNAL_UNAVAILABLE" and caught.value.details.retry_seconds
        repeat = router.place("c1")
        assert not hang_up.done() and not repeat.done()
        router.journal.away = False
        assert (await soon(hang_up)).answer.call is not None
        await soon(repeat)
        await soon(router.place("c2"))
    check_chain(blocks)


async def test_a_hung_insert_is_an_outage_too(blocks: MemoryBlocks, clock: FakeClock) -> None:
    """A database that does not even refuse: nobody raises, so only the time since the sending tells."""
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        first = router.place("c1")
        await eventually(lambda: router.leader.settling.sent_seconds is not None)
        clock.advance(1.0)
        with pytest.raises(StoreOutage):
            router.place("c2")
        router.journal.gate.set()
        await soon(first)
        await soon(router.place("c2"))


async def test_when_full_new_calls_are_refused_first(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "PENDING_MAX", 5)
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        router.journal.gate = asyncio.Event()
        sent = router.journal.inserts
        taken = [router.place("c0")]
        await eventually(lambda: router.journal.inserts > sent)
        taken += [router.place(f"c{n}") for n in range(1, 6)]
        with pytest.raises(ShardBusy):
            router.place("late")
        taken += [router.leader.submit(HangUp(call_id=f"c{n}", attempt=1)) for n in range(5)]
        with pytest.raises(ShardBusy):
            router.leader.submit(AskCall(call_id="c0"))
        # That the front of those who are left is gone is said once only.
        router.leader.carry_out(DetachFront(front="f"))
        assert not router.leader.state.calls["c5"].attached
        router.journal.gate.set()
        for future in taken:
            await soon(future)


# --- poison


async def test_a_command_that_decide_fails_on_changes_nothing(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(state: Any, command: Any, now_ms: int) -> Any:
        if isinstance(command, HangUp):
            raise ZeroDivisionError
        return real_step(state, command, now_ms)

    monkeypatch.setattr(leader_module, "step", step)
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        await soon(router.place("c1"))
        with pytest.raises(PoisonCommand):
            router.leader.submit(HangUp(call_id="c1", attempt=1))
        assert router.leader.leading and router.drops == 0
        await soon(router.place("c2"))


@pytest.mark.parametrize("broken", ["evolve", "encode", "tell"])
async def test_a_command_that_fails_once_applied_makes_the_leader_reload_without_it(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """What was applied and cannot be committed must not stay in the memory: it is no longer the journal's."""
    armed = [False]

    def step(state: Any, command: Any, now_ms: int) -> Any:
        done = real_step(state, command, now_ms)
        if broken == "evolve" and armed[0] and isinstance(command, HangUp):
            raise ZeroDivisionError
        return done

    def pack(event: Any) -> Any:
        if broken == "encode" and armed[0]:
            raise OverflowError
        return real_pack(event)

    real_pack = codec.pack
    monkeypatch.setattr(leader_module, "step", step)
    monkeypatch.setattr(codec, "pack", pack)
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        await soon(router.place("c1"))
        if broken == "tell":
            monkeypatch.setattr(router.leader._audience, "facts", lambda *_: 1 // 0)
        armed[0] = True
        with pytest.raises(PoisonCommand):
            router.leader.submit(HangUp(call_id="c1", attempt=1))
        armed[0] = False
        assert not router.leader.leading and router.drops == 1
        await soon(router.leader.wait_until_leading())
        call = (await soon(router.leader.submit(AskCall(call_id="c1")))).answer.call
        assert call is not None and call.state is CallState.WAITING
    check_chain(blocks)


async def test_a_raising_timer_is_parked_and_the_others_go_on(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(state: Any, command: Any, now_ms: int) -> Any:
        due = next_deadline(state)
        if type(command).__name__ == "Tick" and due is not None and due[2] == "bad" and due[0] <= now_ms:
            raise ZeroDivisionError
        return real_step(state, command, now_ms)

    monkeypatch.setattr(leader_module, "step", step)
    async with running(Router(blocks, clock)) as router:
        await router.furnish(wait_span_max_ms=10_000)
        for call_id in ("bad", *(f"c{n}" for n in range(9))):
            await soon(router.place(call_id))
            clock.advance(0.001)
        clock.advance(10.1)
        await soon(router.leader.submit(AskCall(call_id="bad")))
        state = router.leader.state
        await eventually(lambda: all(state.calls[f"c{n}"].state is CallState.ENDED for n in range(9)))
        assert state.calls["bad"].state is CallState.WAITING and router.leader.leading


async def test_a_leader_whose_timers_died_begins_again(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish(wait_span_max_ms=10_000)
        epoch = router.leader.epoch

        def fail(state: Any) -> Any:
            monkeypatch.undo()
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(timers, "next_deadline", fail)
            router.place("c1")
            await eventually(lambda: router.drops >= 1)
        await soon(router.leader.wait_until_leading())
        assert router.leader.epoch > epoch


# --- timers


async def test_a_deadline_is_kept(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock)) as router:
        await router.furnish(wait_span_max_ms=5_000)
        await soon(router.place("c1"))
        clock.advance(4.999)
        await soon(router.leader.submit(AskCall(call_id="c1")))
        assert router.leader.state.calls["c1"].state is CallState.WAITING
        clock.advance(0.001)
        await soon(router.leader.submit(AskCall(call_id="c1")))
        await eventually(lambda: router.leader.state.calls["c1"].state is CallState.ENDED)
        (ended,) = (event for event in events_of(blocks) if isinstance(event, CallEnded))
        assert ended.outcome is CallOutcome.REFUSED


async def test_a_leader_that_stalled_reads_its_inbox_before_its_timers(
    blocks: MemoryBlocks, clock: FakeClock
) -> None:
    """It slept through the ringing; the accept that came meanwhile is in its inbox and still counts."""
    async with running(Router(blocks, clock)) as router:
        await router.furnish(agents=1, ring_span_ms=15_000)
        await soon(router.place("c1"))
        offer = router.leader.state.calls["c1"].offer_id
        await asyncio.sleep(0)
        clock.advance(20.0)
        # The first word from outside wakes it; the accept is some turns of the loop behind.
        asked = router.leader.submit(AskCall(call_id="c1"))
        for _ in range(20):
            await asyncio.sleep(0)
        accepted = router.leader.submit(AcceptOffer(agent="a0", session=1, offer_id=offer))
        await soon(asked)
        assert (await soon(accepted)).answer.refusal is None
        assert router.leader.state.calls["c1"].state is CallState.ACCEPTED


async def test_deadlines_stand_still_in_an_outage(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock, outage_seconds=0.02)) as router:
        await router.furnish(wait_span_max_ms=5_000)
        await soon(router.place("c1"))
        router.journal.away = True
        await eventually(lambda: router.leader.settling.sent_seconds is not None)
        clock.advance(6.0)
        question = router.leader.submit(AskCall(call_id="c1"))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert router.leader.state.calls["c1"].state is CallState.WAITING
        router.journal.away = False
        await soon(question)
        await soon(router.leader.submit(AskCall(call_id="c1")))
        call = router.leader.state.calls["c1"]
        assert call.state is CallState.WAITING, "nobody is late for what could not be done"
        assert call.refuse_ms - router.leader.now_ms() == 5_000
        moved = [event for event in events_of(blocks) if isinstance(event, DeadlinesMoved)]
        assert [event.span_ms for event in moved] == [6_000]
        clock.advance(5.0)
        await soon(router.leader.submit(AskCall(call_id="c1")))
        await eventually(lambda: router.leader.state.calls["c1"].state is CallState.ENDED)


async def test_a_short_hitch_moves_no_deadline(blocks: MemoryBlocks, clock: FakeClock) -> None:
    async with running(Router(blocks, clock, outage_seconds=60.0)) as router:
        await router.furnish()
        router.journal.lose_answers(2)
        await soon(router.place("c1"))
    assert not [event for event in events_of(blocks) if isinstance(event, DeadlinesMoved)]


# --- positions

SOON, LATER = 1.0, positions.POSITIONS_FAR_SECONDS
NOTICED = [
    ((3, 9_000), (2, 9_000), SOON, True),
    ((6, 9_000), (5, 9_000), SOON, True),
    ((900, 60_000), (899, 59_940), LATER, False),
    ((900, 60_000), (810, 60_000), LATER, True),
    ((900, 60_000), (810, 60_000), SOON, False),
    ((900, 60_000), (900, 54_000), LATER, True),
    ((900, -1), (899, 60_000), LATER, True),
    ((900, -1), (899, 60_000), SOON, False),
    ((900, 60_000), (900, 60_000), LATER, False),
]


@pytest.mark.parametrize(("before", "after", "seconds", "told"), NOTICED)
def test_far_back_a_caller_hears_now_and_then_of_noticeable_changes_alone(
    before: tuple[int, int], after: tuple[int, int], seconds: float, told: bool
) -> None:
    assert positions.noticeable(before, after, seconds) is told


async def test_a_place_is_told_only_of_a_committed_call(
    blocks: MemoryBlocks, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client takes a place in the queue for an acknowledgement, so it waits for the commit like one."""
    monkeypatch.setattr(positions, "POSITIONS_SECONDS", 0.002)
    async with running(Router(blocks, clock)) as router:
        await router.furnish()
        await soon(router.place("c1"))
        router.journal.gate = asyncio.Event()
        future = router.place("c2")
        soonest = router.place("c0", priority=5)
        await eventually(lambda: any(e.position == 2 for e in router.events(PositionChanged)))
        assert {e.call_id for e in router.events(PositionChanged)} == {"c1"}
        router.journal.gate.set()
        await soon(future)
        await soon(soonest)
        await eventually(lambda: {e.call_id for e in router.events(PositionChanged)} == {"c0", "c1", "c2"})


async def test_an_outlet_gives_way_to_its_successor(blocks: MemoryBlocks, clock: FakeClock) -> None:
    """A front that attaches again before its old link is seen to be broken keeps what it holds."""
    async with running(Router(blocks, clock)) as router:
        heard: list[str] = []

        def old(*_: Any) -> None:
            heard.append("old")

        def new(*_: Any) -> None:
            heard.append("new")

        router.leader.add_outlet("g", old)
        router.leader.add_outlet("g", new)
        assert not router.leader.remove_outlet("g", old)
        await router.furnish()
        command = placing("c1")
        await soon(
            router.leader.submit(
                PlaceCall(facts=command.facts, attempt=command.attempt, move=command.move, front="g")
            )
        )
        assert heard == ["new"] and router.leader.remove_outlet("g", new)
