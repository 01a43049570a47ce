"""The relay over journals in memory, with a broker that answers as told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pymongo.errors import AutoReconnect

from chassis.bus import Event
from chassis.bus.publisher import Outcome, Outgoing
from chassis.testing.lease import ScriptedLease
from routing import codec, model, relay
from routing.journal import Block, JournalGap
from routing.relay import Cursor, Relay
from routing.testing import MemoryBlocks, MemoryCursors, MemoryTail, block_of

T0 = 1_772_000_000_000


class ScriptedBroker:
    """Confirms everything but what `answer` says otherwise."""

    def __init__(self) -> None:
        self.batches: list[list[Outgoing]] = []
        self.confirmed: list[str] = []
        self.answer: Callable[[str], Outcome] = lambda id: Outcome.PUBLISHED

    def publish(self, messages: Sequence[Outgoing], seconds_max: float = 0) -> list[Outcome]:
        self.batches.append(list(messages))
        outcomes = [self.answer(message.message_id) for message in messages]
        self.confirmed += [
            message.message_id
            for message, outcome in zip(messages, outcomes, strict=True)
            if outcome is Outcome.PUBLISHED
        ]
        return outcomes

    @property
    def tried(self) -> list[str]:
        return [message.message_id for batch in self.batches for message in batch]


class Stopwatch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Rig:
    """Journals, cursors, broker and watch of one platform; relays come and go."""

    def __init__(self) -> None:
        self.blocks = MemoryBlocks()
        self.cursors = MemoryCursors()
        self.broker = ScriptedBroker()
        self.watch = Stopwatch()
        self.lease = ScriptedLease()

    def relay(self, **parts: Any) -> Relay:
        lease: Any = parts.pop("lease", self.lease)
        values: dict[str, Any] = {
            "tail": MemoryTail(self.blocks),
            "cursors": self.cursors,
            "publisher": self.broker,
        }
        return Relay(**{**values, **parts}, lease=lease, monotonic=self.watch)

    def write(self, *events: model.Event, shard: str = "beijing", **changes: Any) -> Block:
        sequence = self.blocks.newest(shard) + 1
        before = self.blocks.at(shard, sequence - 1)
        at, prev = T0 + sequence, before.nonce if before else ""
        written = [(at, event) for event in events]
        block = replace(block_of(written, sequence, at, shard=shard, prev=prev), **changes)
        self.blocks.put(block)
        return block

    def open(self, shard: str = "beijing") -> None:
        """Two blocks, one word: who leads."""
        self.write(model.ShardOpened(router="r", leaderless_span_ms=0), shard=shard)
        self.write(model.QueueConfigured(queue=model.QueueConfig(id="q")), shard=shard)

    def call(self, call_id: str, shard: str = "beijing") -> None:
        """One block, one word."""
        facts = model.CallFacts(call_id=call_id, queue="q")
        self.write(
            model.CallQueued(
                facts=facts,
                attempt=1,
                move=1,
                front="f",
                queued_ms=T0,
                effective_ms=T0,
                waited_span_ms=0,
            ),
            shard=shard,
        )

    def cursor(self, shard: str = "beijing") -> int:
        return self.cursors.get(shard).sequence


@pytest.fixture
def rig() -> Rig:
    return Rig()


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_events_of_all_shards_go_out_in_one_batch_and_the_cursors_follow(rig: Rig) -> None:
    for shard in ("beijing", "chengdu"):
        rig.open(shard)
        rig.call("a", shard)
        rig.call("b", shard)
    assert rig.relay().step() == 6
    assert len(rig.broker.batches) == 1
    for shard in ("beijing", "chengdu"):
        mine = [id for id in rig.broker.tried if id.startswith(shard)]
        assert mine == [f"{shard}:1:0", f"{shard}:3:0", f"{shard}:4:0"]
        assert rig.cursors.get(shard) == Cursor(sequence=4, nonce="n4")


def test_types_with_subscribers_are_mandatory_and_the_others_are_not(rig: Rig) -> None:
    rig.open()
    rig.call("a")
    rig.relay().step()
    assert [(m.routing_key.rpartition(".")[2], m.mandatory) for m in rig.broker.batches[0]] == [
        ("LeaderChanged", False),
        ("CallQueued", True),
    ]
    assert {m.exchange for m in rig.broker.batches[0]} == {"routing.events"}


def test_nothing_new_publishes_nothing(rig: Rig) -> None:
    rig.open()
    one = rig.relay()
    assert one.step() == 1
    assert one.step() == 0
    rig.call("a")
    assert one.step() == 1
    assert rig.broker.tried == ["beijing:1:0", "beijing:3:0"]


def test_a_restart_goes_on_behind_the_cursor_with_what_it_knew(rig: Rig) -> None:
    rig.open()
    rig.call("a")
    rig.relay().step()
    rig.write(model.CallEnded(call_id="a", outcome=model.CallOutcome.ABANDONED))
    assert rig.relay().step() == 1
    event = Event.from_json(rig.broker.batches[-1][0].body)
    assert event.type.endswith("CallEnded")
    assert event.data["call"]["queue"] == "queues/q", "known only from the block before the cursor"


def test_a_crash_between_confirm_and_cursor_repeats_the_same_messages(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.open()
    rig.call("a")

    def crash(*_: Any) -> bool:
        raise AutoReconnect("gone")

    with monkeypatch.context() as patched:
        patched.setattr(rig.cursors, "move", crash)
        with pytest.raises(AutoReconnect):
            rig.relay().step()
    assert rig.cursor() == 0
    assert rig.relay().step() == 2
    first, second = rig.broker.batches
    assert first == second
    assert rig.cursor() == 3


@pytest.mark.parametrize("moved", [False, True], ids=["not moved", "moved, and nobody says so"])
def test_a_database_that_goes_away_at_the_cursor_loses_and_repeats_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    rig.open()
    rig.call("a")
    one = rig.relay()
    real = rig.cursors.move

    def fail(shard: str, old: Cursor, new: Cursor) -> bool:
        if moved:
            assert real(shard, old, new)
        raise AutoReconnect("gone")

    with monkeypatch.context() as patched:
        patched.setattr(rig.cursors, "move", fail)
        assert one._turn() == relay.STANDBY_SECONDS
    rig.call("b")
    one._turn()
    assert rig.broker.tried == ["beijing:1:0", "beijing:3:0", "beijing:4:0"]
    assert rig.cursor() == 4


@pytest.mark.parametrize("outcome", [Outcome.RETURNED, Outcome.REFUSED, Outcome.UNKNOWN])
def test_what_is_not_confirmed_holds_the_cursor_and_is_tried_again(rig: Rig, outcome: Outcome) -> None:
    rig.open()
    for call_id in ("a", "b", "c"):
        rig.call(call_id)
    rig.broker.answer = lambda id: outcome if id == "beijing:4:0" else Outcome.PUBLISHED
    one = rig.relay()
    assert one.step() == 3
    assert rig.cursor() == 3, "in front of the block that is not through"
    rig.call("d")
    assert one.step() == 0
    assert len(rig.broker.batches) == 1, "it pauses first"
    rig.watch.seconds += relay.RETRY_SECONDS_MIN
    assert one.step() == 0
    assert [m.message_id for m in rig.broker.batches[1]] == ["beijing:4:0"], "nothing else goes out"
    rig.broker.answer = lambda id: Outcome.PUBLISHED
    rig.watch.seconds += relay.RETRY_SECONDS_MAX
    assert one.step() == 1
    assert rig.cursor() == 5
    assert one.step() == 1
    assert rig.cursor() == 6
    assert sorted(set(rig.broker.tried)) == sorted(rig.broker.confirmed), "each is confirmed once"


def test_the_pause_grows_to_its_bound_and_is_forgotten(rig: Rig) -> None:
    rig.open()
    rig.broker.answer = lambda id: Outcome.RETURNED
    one = rig.relay()
    tries: list[float] = []
    for tick in range(4 * 60):
        rig.watch.seconds = tick / 4
        before = len(rig.broker.batches)
        one.step()
        if len(rig.broker.batches) > before:
            tries.append(rig.watch.seconds)
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]
    rig.broker.answer = lambda id: Outcome.PUBLISHED
    rig.watch.seconds += 100
    assert one.step() == 1
    rig.broker.answer = lambda id: Outcome.RETURNED
    rig.call("a")
    one.step()
    rig.watch.seconds += relay.RETRY_SECONDS_MIN
    before = len(rig.broker.batches)
    one.step()
    assert len(rig.broker.batches) == before + 1


def test_one_shard_that_does_not_get_through_holds_up_no_other(rig: Rig) -> None:
    rig.open("beijing")
    rig.open("chengdu")
    rig.broker.answer = lambda id: Outcome.RETURNED if id.startswith("beijing") else Outcome.PUBLISHED
    one = rig.relay()
    for call_id in ("a", "b", "c"):
        rig.call(call_id, "chengdu")
        assert one.step() >= 1
    assert (rig.cursor("beijing"), rig.cursor("chengdu")) == (0, 5)


def spoilt(rig: Rig) -> dict[str, Callable[[], None]]:
    def lost() -> None:
        rig.blocks.remove("beijing", 3)

    def forked() -> None:
        block = rig.blocks.at("beijing", 4)
        assert block is not None
        rig.blocks.put(replace(block, prev="another"))

    def newer() -> None:
        block = rig.blocks.at("beijing", 4)
        assert block is not None
        rig.blocks.put(replace(block, format=codec.FORMAT + 1))

    def damaged() -> None:
        block = rig.blocks.at("beijing", 4)
        assert block is not None
        rig.blocks.put(replace(block, body=b"no msgpack"))

    return {"lost": lost, "forked": forked, "newer": newer, "damaged": damaged}


@pytest.mark.parametrize("how", ["lost", "forked", "newer", "damaged"])
def test_a_journal_that_cannot_be_read_on_stops_alone_and_loudly(rig: Rig, how: str) -> None:
    rig.open("beijing")
    for call_id in ("a", "b", "c"):
        rig.call(call_id, "beijing")
    whole = {block.sequence: block for block in rig.blocks.of("beijing")}
    rig.open("chengdu")
    spoilt(rig)[how]()
    one = rig.relay()
    one.step()
    assert rig.broker.confirmed == ["chengdu:1:0"]
    assert metric("callmesh_relay_shard_stopped", shard="beijing") == 1
    assert metric("callmesh_relay_shard_stopped", shard="chengdu") == 0
    rig.call("d", "chengdu")
    assert one.step() == 1
    # Mended, it is begun again, and nothing is missing.
    for block in whole.values():
        rig.blocks.put(block)
    assert one.step() == 0
    rig.watch.seconds += relay.BROKEN_SECONDS_MIN
    assert one.step() == 4
    assert metric("callmesh_relay_shard_stopped", shard="beijing") == 0
    assert [id for id in rig.broker.confirmed if id.startswith("beijing")] == [
        "beijing:1:0",
        "beijing:3:0",
        "beijing:4:0",
        "beijing:5:0",
    ]


def test_a_journal_that_stays_broken_is_read_ever_less_often(rig: Rig) -> None:
    rig.open()
    rig.call("a")
    rig.blocks.remove("beijing", 2)
    tail = MemoryTail(rig.blocks)
    one = rig.relay(tail=tail)
    reads = []
    for second in range(700):
        rig.watch.seconds = float(second)
        before = tail.reads
        one.step()
        if tail.reads > before:
            reads.append(second)
    assert reads == [0, 5, 15, 35, 75, 155, 315, 615]


def test_blocks_that_are_no_blocks_stop_the_shard(rig: Rig) -> None:
    rig.open()

    class Broken(MemoryTail):
        def read(self, shard: str, after: int, limit: int) -> Iterator[Block]:
            raise JournalGap("no block")

    one = rig.relay(tail=Broken(rig.blocks))
    assert one.step() == 0
    assert metric("callmesh_relay_shard_stopped", shard="beijing") == 1


@pytest.mark.parametrize("running", [False, True], ids=["after a restart", "while it runs"])
def test_a_database_set_back_under_the_cursor_stops_the_shard(rig: Rig, running: bool) -> None:
    rig.open()
    rig.call("a")
    rig.call("b")
    one = rig.relay()
    one.step()
    # A restore lost block 4; a leader went on from 3.
    rig.blocks.remove("beijing", 4)
    if not running:
        one = rig.relay()
        one.step()
        assert metric("callmesh_relay_shard_stopped", shard="beijing") == 1
        rig.watch.seconds += relay.BROKEN_SECONDS_MIN
    rig.call("other")
    block = rig.blocks.at("beijing", 4)
    assert block is not None
    rig.blocks.put(replace(block, nonce="fork"))
    rig.call("c")
    confirmed = len(rig.broker.confirmed)
    one.step()
    assert len(rig.broker.confirmed) == confirmed
    assert metric("callmesh_relay_shard_stopped", shard="beijing") == 1


def test_a_cursor_set_back_by_an_operator_publishes_again(rig: Rig) -> None:
    rig.open()
    rig.call("a")
    one = rig.relay()
    assert one.step() == 2
    rig.cursors.stored["beijing"] = Cursor(sequence=2, nonce="n2")
    rig.lease.epoch += 1
    one._lead()
    rig.lease.renewal_due = True
    assert one._turn() == relay.BUSY_SECONDS
    assert rig.broker.tried == ["beijing:1:0", "beijing:3:0", "beijing:3:0"]


def test_a_relay_that_slept_does_not_set_the_cursor_back(rig: Rig) -> None:
    rig.open()
    rig.call("a")
    sleepy, awake = rig.relay(lease=ScriptedLease()), rig.relay(lease=ScriptedLease())
    sleeping = {"on": True}

    def sleep_then_confirm(id: str) -> Outcome:
        if sleeping.pop("on", False):
            rig.broker.answer = lambda id: Outcome.PUBLISHED
            assert awake.step() == 2
            rig.call("b")
            assert awake.step() == 1
        return Outcome.PUBLISHED

    rig.broker.answer = sleep_then_confirm
    assert sleepy.step() == 2, "the same two, twice at worst"
    assert rig.cursor() == 4
    assert sleepy.step() == 0
    rig.call("c")
    assert sleepy.step() == 1
    assert rig.cursor() == 5
    assert rig.broker.confirmed.count("beijing:5:0") == 1


def test_the_cursor_follows_silent_blocks_now_and_then(rig: Rig) -> None:
    rig.open()
    one = rig.relay()
    one.step()
    assert rig.cursor() == 2
    for _ in range(relay.CURSOR_BLOCKS_MAX - 1):
        rig.write()
    one.step()
    assert rig.cursor() == 2, "a write for every heartbeat would be a waste"
    rig.write()
    one.step()
    assert rig.cursor() == 2 + relay.CURSOR_BLOCKS_MAX


def test_rounds_are_bounded_and_nobody_starves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ROUND_EVENTS_MAX", 10)
    monkeypatch.setattr(relay, "READ_BLOCKS_MAX", 25)
    shards = ("beijing", "chengdu", "shanghai")
    for shard in shards:
        rig.open(shard)
        for n in range(40):
            rig.call(f"c{n}", shard)
    one = rig.relay()
    rounds = 0
    while one._turn() == 0.0:
        rounds += 1
        assert rounds < 50
        assert max(len(batch) for batch in rig.broker.batches) <= 10
    for shard in shards:
        assert rig.cursor(shard) == 42
    first_round = {
        id.partition(":")[0] for batch in rig.broker.batches[:3] for id in (m.message_id for m in batch)
    }
    assert first_round == set(shards)
    assert len(rig.broker.tried) == len(set(rig.broker.tried)) == 3 * 41


def test_a_long_journal_is_read_in_steps_that_keep_the_lease(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.open()
    for n in range(60):
        rig.call(f"c{n}")
    rig.relay().step()
    monkeypatch.setattr(relay, "READ_BLOCKS_MAX", 10)
    rig.call("new")
    one = rig.relay()
    turns = 0
    while one._turn() == 0.0:
        turns += 1
        rig.lease.renewal_due = True
        assert turns < 20
    assert turns == 6
    assert rig.broker.tried[-1] == "beijing:63:0"
    assert rig.broker.tried.count("beijing:62:0") == 1


def test_without_the_lease_nothing_is_read_or_published(rig: Rig) -> None:
    rig.open()
    rig.lease.granted = rig.lease.held = False
    tail = MemoryTail(rig.blocks)
    one = rig.relay(tail=tail)
    assert one._turn() == relay.STANDBY_SECONDS
    assert (tail.reads, rig.broker.tried) == (0, [])
    rig.lease.granted = True
    one._turn()
    assert rig.broker.tried == ["beijing:1:0"]
    assert metric("callmesh_relay_active") == 1


def test_a_lease_lost_on_the_way_publishes_nothing_and_speaks_for_no_shard(rig: Rig) -> None:
    rig.open()
    one = rig.relay()
    one._turn()
    assert metric("callmesh_relay_lag_blocks", shard="beijing") == 0
    rig.call("a")
    rig.lease.granted = False
    rig.lease.renewal_due, rig.lease.held = True, True

    def still_held() -> bool:
        return True

    rig.lease.acquire = still_held  # type: ignore[method-assign]
    assert one._turn() == relay.STANDBY_SECONDS
    assert rig.broker.tried == ["beijing:1:0"]
    assert metric("callmesh_relay_lag_blocks", shard="beijing") is None
    assert metric("callmesh_relay_active") == 0


def test_a_relay_cut_off_from_the_database_speaks_for_no_shard(rig: Rig) -> None:
    """Another one works by now; what this one said last would be alerted for ever."""
    rig.open()
    rig.lease.held = False
    one = rig.relay()
    one._turn()

    def gone() -> bool:
        raise AutoReconnect("gone")

    rig.lease.acquire = gone  # type: ignore[method-assign]
    rig.lease.renewal_due = True
    one._turn()
    assert metric("callmesh_relay_active") == 1, "its lease holds, and the database may be back at once"
    rig.lease.held = False
    one._turn()
    assert metric("callmesh_relay_lag_blocks", shard="beijing") is None
    assert metric("callmesh_relay_active") == 0


def test_what_another_relay_published_meanwhile_is_not_published_again(rig: Rig) -> None:
    rig.open()
    one = rig.relay()
    one._turn()
    rig.call("a")
    rig.relay(lease=ScriptedLease()).step()
    rig.call("b")
    rig.lease.epoch += 2
    rig.lease.renewal_due = True
    one._turn()
    assert rig.broker.tried == ["beijing:1:0", "beijing:3:0", "beijing:4:0"]


def test_run_ends_when_told_and_gives_the_lease_back(rig: Rig) -> None:
    rig.open()
    pauses: list[float] = []

    def stopping(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3

    rig.relay().run(stopping)
    assert pauses == [relay.BUSY_SECONDS, relay.IDLE_SECONDS, relay.IDLE_SECONDS]
    assert rig.lease.released == 1


def test_an_away_database_is_borne(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.open()
    one = rig.relay()

    def away(*_: Any) -> Any:
        raise AutoReconnect("gone")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryTail, "shards", away)
        assert one._turn() == relay.STANDBY_SECONDS
    one._turn()
    with monkeypatch.context() as patched:
        patched.setattr(MemoryTail, "read", away)
        assert one._turn() == relay.STANDBY_SECONDS
    rig.call("a")
    one._turn()
    assert rig.broker.tried == ["beijing:1:0", "beijing:3:0"]


def test_a_new_shard_is_found_while_running(rig: Rig) -> None:
    one = rig.relay()
    assert one.step() == 0
    rig.open("guangzhou")
    assert one.step() == 0
    rig.watch.seconds += relay.DISCOVER_SECONDS
    assert one.step() == 1


def test_the_lag_counts_blocks_that_are_not_through(rig: Rig) -> None:
    rig.open()
    rig.broker.answer = lambda id: Outcome.UNKNOWN
    one = rig.relay()
    one.step()
    for n in range(7):
        rig.call(f"c{n}")
    rig.watch.seconds += relay.LAG_SECONDS
    one.step()
    assert metric("callmesh_relay_lag_blocks", shard="beijing") == 9
    rig.broker.answer = lambda id: Outcome.PUBLISHED
    rig.watch.seconds += 100
    one.step()
    rig.watch.seconds += 100
    one.step()
    assert metric("callmesh_relay_lag_blocks", shard="beijing") == 0
    rig.write()
    rig.watch.seconds += 100
    one.step()
    assert metric("callmesh_relay_lag_blocks", shard="beijing") == 0, "a heartbeat is no lag"


def test_what_was_published_is_counted_by_type(rig: Rig) -> None:
    name, labels = (
        "callmesh_bus_published_total",
        {"service": "routing", "type": "callmesh.routing.v1.CallQueued"},
    )
    before = metric(name, **labels) or 0.0
    rig.open()
    rig.call("a")
    rig.call("b")
    rig.relay().step()
    assert (metric(name, **labels) or 0.0) - before == 2


# --- too much for a broker that is away


def away(rig: Rig) -> None:
    rig.broker.answer = lambda id: Outcome.UNKNOWN


def test_beyond_the_limit_the_oldest_become_one_word(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MARK_BLOCKS", 2)
    rig.open()
    run = rig.relay(retention_bytes_max=4_000)
    run.step()
    assert rig.broker.confirmed == ["beijing:1:0"]
    away(rig)
    for number in range(60):
        rig.call(f"c{number}")
        rig.watch.seconds += 2 * relay.LAG_SECONDS
        run.step()
    # The figure is of the look before the last skip: look again.
    rig.watch.seconds += 2 * relay.LAG_SECONDS
    run.step()
    cursor = rig.cursors.get("beijing")
    size = MemoryTail(rig.blocks).size("beijing", cursor.sequence, 10**6)
    assert 0 < size <= 4_000 < MemoryTail(rig.blocks).size("beijing", 2, 10**6)
    assert (cursor.skipped_from, cursor.skipped_to) == (3, cursor.sequence)
    assert metric("callmesh_relay_backlog_bytes", shard="beijing") <= 4_000  # type: ignore[operator]
    # Another relay, later, and the broker is back: one word for all that, then the rest.
    rig.broker.confirmed.clear()
    rig.broker.answer = lambda id: Outcome.PUBLISHED
    later = rig.relay(retention_bytes_max=4_000)
    later.step()
    rest = [f"beijing:{n}:0" for n in range(cursor.sequence + 1, rig.blocks.newest("beijing") + 1)]
    assert rig.broker.confirmed == [f"beijing:{cursor.sequence}:skipped", *rest]
    skipped = Event.from_json(rig.broker.batches[-1][0].body)
    assert (skipped.data["firstSequence"], skipped.data["lastSequence"]) == ("3", str(cursor.sequence))
    assert rig.cursors.get("beijing").skipped_to == 0
    rig.call("new")
    later.step()
    assert rig.broker.confirmed[-1] == f"beijing:{rig.blocks.newest('beijing')}:0"


def test_a_second_skip_before_the_word_is_out_is_the_same_word(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MARK_BLOCKS", 1)
    rig.open()
    run = rig.relay(retention_bytes_max=1_000)
    run.step()
    away(rig)
    seen = set()
    for number in range(40):
        rig.call(f"c{number}")
        rig.watch.seconds += 2 * relay.LAG_SECONDS
        run.step()
        seen.add(rig.cursors.get("beijing").skipped_to)
    assert len(seen) > 2 and rig.cursors.get("beijing").skipped_from == 3


def test_what_was_skipped_is_known_all_the_same(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was queued in a skipped block is told of in full when it ends."""
    monkeypatch.setattr(relay, "MARK_BLOCKS", 1)
    rig.open()
    run = rig.relay(retention_bytes_max=600)
    run.step()
    away(rig)
    for number in range(20):
        rig.call(f"c{number}")
        rig.watch.seconds += 2 * relay.LAG_SECONDS
        run.step()
    rig.broker.answer = lambda id: Outcome.PUBLISHED
    rig.watch.seconds += relay.RETRY_SECONDS_MAX
    run.step()
    rig.write(model.CallEnded(call_id="c0", outcome=model.CallOutcome.ABANDONED))
    run.step()
    told = Event.from_json(rig.broker.batches[-1][0].body)
    assert told.data["call"]["queue"] == "queues/q" and told.data["call"]["callId"] == "c0"
