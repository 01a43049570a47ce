"""Relays: the worker processes' publishing of the journals, and a broker that takes it or not.

What runs is the product's `Feed`, with the tail and the cursors of the simulated store. Two relays work at
once, as two do whose lease has run out unnoticed; one may die between the broker's word and the cursor, or
sleep for long, and the broker may take a message and not say so, or find no queue for it.

Every event that the journal has is taken in the end, none that it has not, and one id is one event.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pymongo.errors import PyMongoError
from tests.simulation.agenda import Process
from tests.simulation.keepers import ClusterTail

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.bus.publisher import Outcome, Outgoing
from routing import codec
from routing.journal import Block
from routing.publish import Projection
from routing.relay import RETENTION_BYTES_MAX, Cursor, Feed
from routing.snapshots import nearest_start
from routing.testing import MemoryCursors, MemorySnapshots

if TYPE_CHECKING:
    from tests.simulation.world import World

RELAYS = 2
#: Seconds between two turns of a relay, and how long one may sleep; messages of one turn.
TURN_SECONDS, SLEEP_SECONDS = (0.5, 1.5), (2.0, 8.0)
MESSAGES_MAX = 40
#: A relay looks at the cursor again this often: another one may have moved it.
RECHECK_CHANCE = 0.3
#: Bytes that may wait for the broker in a tight run.
TIGHT_BYTES = 4_000
SKIPPED = events_pb2.EventsSkipped.DESCRIPTOR.full_name
#: An event is published within so many seconds of its block, the faults being over.
PUBLISHED_SECONDS = 40.0


class Broker:
    """What was taken, held against the journal."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._projections = {shard: Projection(shard) for shard in world.plan.shards}
        #: Shards whose journal has a block of a newer format: nothing may be told from there on.
        self._unreadable: set[str] = set()
        #: Body and time of the block, by id of the event.
        self._expected: dict[str, tuple[bytes, float]] = {}
        self.taken: dict[str, int] = {}
        #: Nobody answers.
        self.away = False
        #: By shard: (first, last) block whose events were given up.
        self.skipped: dict[str, list[tuple[int, int]]] = {}

    def committed(self, block: Block) -> None:
        """A block has reached its majority: so much more is to be told, unless no relay can read it."""
        if block.format > codec.FORMAT:
            self._unreadable.add(block.shard)
        if block.shard in self._unreadable:
            return
        for event in self._projections[block.shard].apply(block):
            self._expected[event.id] = (Outgoing.event(event).body, self._world.agenda.now)

    def publish(self, messages: Sequence[Outgoing], who: str) -> list[Outcome]:
        """What a relay is told of each message."""
        return [self._take(message, who) for message in messages]

    def _take(self, message: Outgoing, who: str) -> Outcome:
        world = self._world
        if self.away:
            return Outcome.UNKNOWN
        if world.strike("unroutable", who):
            if message.mandatory:
                return Outcome.RETURNED
            # Nobody wants to hear of it, and nobody has to: it was said.
            self.taken.setdefault(message.message_id, 0)
            if message.routing_key == SKIPPED:
                self._take_skipped(message)
            return Outcome.PUBLISHED
        if world.strike("unpublished", who):
            return Outcome.REFUSED
        if message.routing_key == SKIPPED:
            self._take_skipped(message)
            return Outcome.UNKNOWN if world.strike("unconfirmed", who) else Outcome.PUBLISHED
        body, _ = self._expected.get(message.message_id, (b"", 0.0))
        if body != message.body:
            world.violate(
                f"event {message.message_id} is published, and the journal says something else of it"
            )
        self.taken[message.message_id] = self.taken.get(message.message_id, 0) + 1
        return Outcome.UNKNOWN if world.strike("unconfirmed", who) else Outcome.PUBLISHED

    def _take_skipped(self, message: Outgoing) -> None:
        """What stands in place of events that were given up: only where little may wait."""
        told = Event.from_json(message.body).message(events_pb2.EventsSkipped)
        if not self._world.plan.tight:
            self._world.violate(f"events of {told.shard} are given up, and there is room for them")
        if not 0 < told.first_sequence <= told.last_sequence <= self._world.cluster.newest(told.shard):
            self._world.violate(f"skipped in {told.shard}: {told.first_sequence} to {told.last_sequence}")
        self.skipped.setdefault(told.shard, []).append((told.first_sequence, told.last_sequence))
        self._world.counts["events skipped"] += 1

    def _given_up(self, event_id: str) -> bool:
        shard, sequence, _ = event_id.split(":")
        return any(first <= int(sequence) <= last for first, last in self.skipped.get(shard, ()))

    def check_end(self) -> None:
        """With the faults over: everything that is not of a moment ago, and was not said to be skipped."""
        for event_id, (_, at) in self._expected.items():
            old = self._world.agenda.now - at > PUBLISHED_SECONDS
            if old and event_id not in self.taken and not self._given_up(event_id):
                self._world.violate(f"event {event_id} was never published")
        self._world.counts["events published"] += len(self.taken)
        self._world.counts["events published again"] += sum(max(0, n - 1) for n in self.taken.values())


class ClusterCursors(MemoryCursors):
    """Cursors in the store, which may be away."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def get(self, shard: str) -> Cursor:
        self._reach()
        return super().get(shard)

    def move(self, shard: str, old: Cursor, new: Cursor) -> bool:
        self._reach()
        return super().move(shard, old, new)

    def set_back(self, shard: str, sequence: int) -> None:
        """The database is restored, the cursors with it."""
        if self.stored.get(shard, Cursor()).sequence > sequence:
            del self.stored[shard]

    def _reach(self) -> None:
        if self._world.cluster.down:
            raise PyMongoError("the store is away")


class Relay:
    """One worker's part in publishing."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = world.rng(name)
        self.process = Process(world.agenda, name)
        world.processes.append(self.process)
        self._begin()
        self._after(self.rng.uniform(*TURN_SECONDS))

    def _begin(self) -> None:
        """A new process knows nothing but the cursors."""
        world = self.world
        tail = ClusterTail(world, world.cluster.kept)
        start = partial(nearest_start, MemorySnapshots(world.cluster.kept))
        room = TIGHT_BYTES if world.plan.tight else RETENTION_BYTES_MAX
        self._feeds = [
            Feed(shard, tail, world.cursors, self.process.monotonic, start, room)
            for shard in world.plan.shards
        ]

    def _after(self, seconds: float) -> None:
        self.world.agenda.after(seconds, self.process, self.turn)

    def turn(self) -> None:
        if self.world.agenda.over:
            return
        asleep = self.world.strike("relay_sleeps", self.name)
        for feed in self._feeds if not asleep else ():
            try:
                if not self._publish(feed):
                    self._begin()
                    break
            except PyMongoError:
                feed.recheck()
        self._after(self.rng.uniform(*(SLEEP_SECONDS if asleep else TURN_SECONDS)))

    def _publish(self, feed: Feed) -> bool:
        """One shard's next messages; False when the relay died between the broker's word and the cursor."""
        if self.rng.random() < RECHECK_CHANCE:
            feed.recheck()
        messages = feed.gather(MESSAGES_MAX)
        if messages is None:
            return True
        outcomes = self.world.broker.publish(messages, self.name)
        if messages and self.world.strike("relay_dies", self.name):
            return False
        feed.settle(outcomes)
        feed.measure()
        return True
