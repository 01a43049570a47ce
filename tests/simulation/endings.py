"""What ends leading, by design: nobody leads on, and an operator has to look.

An ending comes when the other faults are over and everybody is at rest, and nothing is mended after it. What
must hold from then on is that nobody writes what only a leader may write:

- the database is restored to an older state under running routers: no block is committed at all;
- a leader of a newer release writes a format that the others cannot read, or one whose memory is not what its
  journal says writes its digest, and then dies: nobody opens the shard.

Beside it the other shards are led on, and what relays publish is still only what the journals say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from routing.journal import Block

if TYPE_CHECKING:
    from tests.simulation.routers import Router
    from tests.simulation.world import World

#: Peace before an ending, and how long it is looked at, virtual seconds.
REST_SECONDS, AFTER_SECONDS = 10.0, 25.0
#: A restore takes so long, and goes back by at most so many blocks a shard.
RESTORE_SECONDS, BLOCKS_BACK_MAX = 3.0, 6
#: A router that sleeps through it fell asleep up to so much earlier, virtual seconds; a leader at times so
#: much earlier that another one leads meanwhile.
ASLEEP_SECONDS_MAX, SUCCEEDED_SECONDS = 4.0, 6.0
SUCCEEDED_CHANCE = 0.5
#: Blocks until one that has a digest comes by, with some to spare.
DIGEST_SECONDS = 8.0


class Ending:
    """One run's end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kind = world.plan.ending
        self.rng = world.rng("ending")
        #: Shards that nobody may open any more; whether nobody may write at all.
        self.closed: set[str] = set()
        self.restored = False
        #: Key of the block whose digest is not its leader's.
        self.spoilt = ""
        #: Whose next block is another than its leader meant.
        self._shard = ""

    def run(self) -> None:
        """Strikes, and watches what comes of it."""
        world = self.world
        rested = False
        while not rested:
            # Who has slept since before what is taken back does not know that it is gone. Runs with `reject`
            # are as they were before anybody slept for so long beside an outage.
            asleep = any(router.process.frozen for router in world.routers.values())
            rested = world.plan.on_outage == "reject" or not asleep
            world.agenda.run(world.agenda.now + REST_SECONDS, lambda: bool(world.failure))
        getattr(self, f"_{self.kind}")()
        world.struck[self.kind] += 1
        world.note("ENDING", self.kind)
        world.agenda.run(world.agenda.now + AFTER_SECONDS, lambda: bool(world.failure))

    def committed(self, block: Block) -> None:
        """A block has reached its majority."""
        if self.restored:
            self.world.violate(f"{block.key} is written over a restored database")
        if block.opening and block.shard in self.closed:
            self.world.violate(f"{block.key} opens a shard whose journal its router cannot go on")

    def altered(self, block: Block) -> Block:
        """What a leader inserts in place of what it meant."""
        if block.shard != self._shard or block.opening:
            return block
        if self.kind == "newer_format":
            self._close()
            return replace(block, format=block.format + 1)
        if self.kind == "wrong_digest" and block.digest:
            layout = block.digest.partition(":")[0]
            self._close()
            self.spoilt = block.key
            return replace(block, digest=f"{layout}:{'f' * 16}")
        return block

    def _close(self) -> None:
        self.closed.add(self._shard)
        self._shard = ""

    # --- the kinds

    def _sleeper(self) -> Router | None:
        """Who sleeps through a restore; nobody, perhaps."""
        return self.rng.choice((*self.world.routers.values(), None))

    def _set_back(self) -> None:
        world, cluster = self.world, self.world.cluster
        asleep = self._sleeper()
        #: Of the shards that it led: its newest block, if another one has led since.
        ends: dict[str, int] = {}
        if asleep is not None:
            # One router sees nothing of the restore, and a standby not even all of what is taken back. A
            # leader may wake over a journal that ends with its own last block, and only the others know that
            # more stood there.
            led = [shard for shard in world.plan.shards if asleep.leads(shard)]
            succeeded = bool(led) and world.rng("succeeded").random() < SUCCEEDED_CHANCE
            before = (
                SUCCEEDED_SECONDS if succeeded else 0.0 if led else self.rng.uniform(0.0, ASLEEP_SECONDS_MAX)
            )
            newest = {shard: cluster.newest(shard) for shard in led}
            asleep.process.freeze(before + RESTORE_SECONDS + 1.0)
            world.agenda.run(world.agenda.now + before, lambda: bool(world.failure))
            ends = {shard: end for shard, end in newest.items() if cluster.newest(shard) > end}
        cluster.down = True
        world.agenda.run(world.agenda.now + RESTORE_SECONDS, lambda: False)
        for shard in world.plan.shards:
            back = self.rng.randint(3, BLOCKS_BACK_MAX)
            cluster.set_back(shard, cluster.newest(shard) - ends[shard] if shard in ends else back)
        self.restored = True
        cluster.down = False

    def _newer_format(self) -> None:
        self._kill_after(2.0)

    def _wrong_digest(self) -> None:
        self._kill_after(DIGEST_SECONDS)

    def _kill_after(self, seconds: float) -> None:
        """The shard's next fitting block is altered, and its leader dies a while later for good."""
        world = self.world
        shard = self._shard = self.rng.choice(world.plan.shards)
        world.agenda.run(world.agenda.now + seconds, lambda: bool(world.failure))
        for router in world.routers.values():
            if router.leads(shard):
                world.crash(router.process, silent=False)
