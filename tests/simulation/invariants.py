"""What must hold, looked at after every commit, every answer and every message to a client.

The auditor keeps a replica of each shard, made of committed blocks alone, and believes nobody: what a
leader says must be in the journal, what the journal says must be possible, and what edges and agents have
in their own ledgers must agree with it at the end.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.simulation.plan import LEAD_LISTS

from routing import codec, digests
from routing.committed import Committed
from routing.journal import Block
from routing.leader_options import LeaderOptions
from routing.model import (
    BLOCK_BYTES_MAX,
    EVENTS_PER_BLOCK_MAX,
    CallConnected,
    CallEnded,
    CallOffered,
    CallOutcome,
    CallQueued,
    CallState,
    CallView,
    Fact,
    OfferEnded,
    OfferOutcome,
    PositionChanged,
    SessionClosed,
    SessionDetached,
    SessionOpened,
    ShardOpened,
)
from routing.silence import STALL_SECONDS
from routing.state import ShardState, best_idle, evolve, head_of

if TYPE_CHECKING:
    from tests.simulation.agenda import Process
    from tests.simulation.world import World

#: An attached call with a free, fitting agent waits for at most so many commits.
COMMITS_TO_OFFER = 2
#: An offer may be past its time for so many commits and virtual seconds before it must have ended.
OVERDUE_COMMITS, OVERDUE_SECONDS = 4, 0.7
#: So much of each nap may count: a look at the tail may be that long after the one before.
NAP_SECONDS = LeaderOptions().tail_seconds + STALL_SECONDS
#: A desktop whose session was opened so long ago, with all faults over, has heard what rings there.
HEARD_SECONDS = 2.0
#: Sums of floating-point numbers may differ by so much.
ROUNDING_SECONDS = 1e-6
#: A shard's clock may run ahead of the truth, and lie behind it, by so much (milliseconds).
AHEAD_MS, BEHIND_MS = 1_500, 60_000
#: A call may be taken to have waited so much longer than it has (milliseconds): routers share their time
#: through the journal, which stands still while nobody leads. An hour's step of a clock must not count.
CREDIT_MS = 15_000


class Auditor:
    """Holds the world to the invariants."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.replicas = {shard: ShardState(shard) for shard in world.plan.shards}
        #: (epoch, events) of each committed block.
        self.archive: dict[tuple[str, int], tuple[int, list[Any]]] = {}
        self._last: dict[str, Block] = {}
        #: What each call's entry ever was, by shard and call: standing -> first sequence.
        self._standings: dict[tuple[str, str], dict[tuple[Any, ...], int]] = defaultdict(dict)
        #: Connections by call: (shard, offer).
        self.connected: dict[str, list[tuple[str, str]]] = defaultdict(list)
        #: How each connection ended; None while it lasts.
        self._ends: dict[tuple[str, str], CallOutcome | None] = {}
        #: Every offer ever made, and how it ended.
        self._offers: dict[str, str] = {}
        self._open_offers: dict[tuple[str, str], str] = {}
        #: Offers that a desktop was told.
        self.rung: set[str] = set()
        #: Since when each agent's desktop is attached, by shard and agent.
        self._seated: dict[tuple[str, str], float] = {}
        #: Offers that an edge has consented to: (call, offer).
        self.consents: set[tuple[str, str]] = set()
        #: Conversations that broke off, as their edges say: (call, offer).
        self.broke_off: set[tuple[str, str]] = set()
        #: When each caller rang.
        self.rang_ms: dict[str, int] = {}
        #: Calls whose router may consent (`auto_confirm`).
        self.consent_given: set[str] = set()
        #: Agents whose desktop has said that it logs out.
        self.logging_out: set[str] = set()
        self._opened_ms: dict[str, int] = {}
        self._unpaired: dict[tuple[str, str], int] = {}
        #: Blocks told from memory, by shard, epoch and sequence: (nonce, events).
        self.memory: dict[tuple[str, int, int], tuple[str, list[Any]]] = {}
        #: Whose they are.
        self._tellers: dict[tuple[str, int, int], Process] = {}
        #: Connections that were told from memory: (shard, call, offer).
        self.memory_connected: set[tuple[str, str, str]] = set()
        #: Blocks told from memory that each call is in.
        self._memory_of: dict[str, set[tuple[str, int, str]]] = defaultdict(set)
        #: Epochs by shard that a router which is not on the lead list has opened: an operator has said so.
        self._by_word: dict[str, set[int]] = defaultdict(set)
        #: Nonces of the committed blocks.
        self._nonces: dict[tuple[str, int], str] = {}
        #: Since when, and for how many commits, an open offer is past its time.
        self._overdue: dict[str, tuple[float, int]] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def _violate(self, what: str) -> None:
        self.world.violate(what)

    # --- what is committed

    def committed(self, block: Block) -> None:
        """A block has reached its majority."""
        if block.sequence < self.world.cluster.newest(block.shard):
            # An insert of long ago that found its place pruned. Nobody reads it, and nothing may follow
            # from it.
            self.counts["strays"] += 1
            return
        if self.world.ending is not None:
            self.world.ending.committed(block)
        self._check_block(block)
        self._last[block.shard] = block
        self._nonces[block.shard, block.sequence] = block.nonce
        replica = self.replicas[block.shard]
        decoded = codec.decode_events(block.body, block.now_ms)
        self.archive[block.shard, block.sequence] = (block.epoch, [event for _, event in decoded])
        self.counts["blocks"] += 1
        if block.opening:
            replica.epoch = block.epoch
            self._opened_ms[block.shard] = block.now_ms
            self.counts["openings"] += 1
        self.world.note(block.shard, f"block {block.sequence} of {block.epoch}", decoded)
        for at_ms, event in decoded:
            try:
                self._before(block, replica, event)
                evolve(replica, event, at_ms)
            except Exception as error:
                self._violate(f"{block.shard} block {block.sequence} does not apply: {event} {error!r}")
                return
            self._after(block, replica, event)
        self.world.broker.committed(block)
        replica.now_ms = max(replica.now_ms, block.now_ms)
        replica.hot_calls.clear()
        replica.hot_agents.clear()
        spoilt = self.world.ending is not None and self.world.ending.spoilt == block.key
        if not spoilt and not digests.agrees(replica, block):
            self._violate(f"{block.shard} block {block.sequence}: its leader's memory was another")
        self._check_agents(replica)
        self._check_waiting(replica)
        self._check_overdue(block, replica)

    def from_memory(self, process: Process, block: Block) -> None:
        """A leader tells what follows from a block that only its memory has: nobody else may have opened."""
        newest = self._last.get(block.shard)
        # Who is on no lead list and opens at an operator's word was not asked to hold.
        led = newest is not None and newest.epoch > block.epoch
        if newest is not None and led and newest.epoch not in self._by_word[block.shard]:
            self._violate(
                f"{process.name} goes on from memory as epoch {block.epoch} of {block.shard}, "
                f"which {newest.epoch} leads"
            )
        if newest is not None and newest.nonce == block.prev and newest.sequence != block.sequence - 1:
            self._violate(f"gap: {block.key} told from memory")
        place = (block.shard, block.epoch, block.sequence)
        if self.memory.get(place, (block.nonce, []))[0] != block.nonce:
            self._violate(f"{block.key} is told from memory as two blocks")
        events = [event for _, event in codec.decode_events(block.body, block.now_ms)]
        self.memory[place], self._tellers[place] = (block.nonce, events), process
        self.counts["told from memory"] += 1
        self.world.note(process.name, f"tells block {block.sequence} of {block.epoch} from memory", ())
        for event in events:
            facts = getattr(event, "facts", None)
            call_id = facts.call_id if facts is not None else getattr(event, "call_id", "")
            self._memory_of[call_id].add((block.shard, block.sequence, block.nonce))
            if isinstance(event, CallConnected):
                self.memory_connected.add((block.shard, event.call_id, event.offer_id))
                self.counts["connected from memory"] += 1

    def excused(self, call_id: str) -> bool:
        """Whether something was told of a call, as not durable, that was never written down."""
        return any(self._nonces.get((s, n)) != nonce for s, n, nonce in self._memory_of.get(call_id, ()))

    def _check_block(self, block: Block) -> None:
        name = f"{block.shard} block {block.sequence}"
        before = self._last.get(block.shard)
        if before is None:
            if block.sequence != 1:
                self._violate(f"gap: {name} is the first")
        elif block.sequence != before.sequence + 1 or block.prev != before.nonce:
            self._violate(f"gap: {name} does not follow block {before.sequence}")
        elif not block.opening and block.epoch != before.epoch:
            self._violate(f"{name} is by a deposed leader")
        elif block.now_ms < before.now_ms:
            self._violate(f"{name}: time runs backwards")
        if block.count > EVENTS_PER_BLOCK_MAX or len(block.body) > 2 * BLOCK_BYTES_MAX:
            self._violate(f"{name} is too large")
        truth_ms = self.world.cluster.now_ms()
        fast = max(0.0, *(rate - 1.0 for rate in self.world.plan.rates.values()), 0.0)
        ahead_ms = AHEAD_MS + fast * self.world.agenda.now * 1000
        if block.now_ms > truth_ms + ahead_ms or block.now_ms < truth_ms - BEHIND_MS:
            self._violate(f"{name}: its time is off by {block.now_ms - truth_ms} ms")

    def _before(self, block: Block, replica: ShardState, event: Any) -> None:
        """What an event must not find."""
        if isinstance(event, CallQueued | CallEnded):
            call_id = event.facts.call_id if isinstance(event, CallQueued) else event.call_id
            offer = self._open_offers.get((block.shard, call_id))
            if offer is not None:
                self._violate(f"{call_id} goes while offer {offer} is open")
        if isinstance(event, ShardOpened):
            homes = [router for router in LEAD_LISTS[block.shard] if router.startswith(block.shard)]
            if event.router not in (replica.lead_list or homes):
                self._by_word[block.shard].add(block.epoch)
        if isinstance(event, CallEnded):
            self._check_absence(block, event.call_id, event.reason == "STREAM_LOST")
        elif isinstance(event, SessionClosed):
            self._check_absence(block, event.agent, event.agent not in self.logging_out)

    def _check_absence(self, block: Block, who: str, concluded: bool) -> None:
        since_ms = block.now_ms - self._opened_ms.get(block.shard, 0)
        if concluded and since_ms < self.world.plan.timing.reattach_span_ms:
            self._violate(f"{who}: concluded from absence {since_ms} ms after an opening")

    def _after(self, block: Block, replica: ShardState, event: Any) -> None:
        match event:
            case CallOffered():
                if event.offer_id in self._offers:
                    self._violate(f"offer {event.offer_id} is made twice")
                self._offers[event.offer_id] = ""
                self._open_offers[block.shard, event.call_id] = event.offer_id
                self._check_unbridged(block.shard, replica, event)
            case OfferEnded():
                self._end_offer(block.shard, event.call_id, event.offer_id, str(event.outcome))
                self._check_rung(block.shard, event)
            case SessionOpened():
                self._seated[block.shard, event.agent] = self.world.agenda.now
            case SessionDetached() | SessionClosed():
                self._seated.pop((block.shard, event.agent), None)
            case ShardOpened():
                self._seated = {s: at for s, at in self._seated.items() if s[0] != block.shard}
            case CallConnected():
                self._end_offer(block.shard, event.call_id, event.offer_id, "connected")
                self._connect(block.shard, replica, event)
            case CallQueued():
                early_ms = self.rang_ms.get(event.facts.call_id, 0) - event.queued_ms
                if early_ms > CREDIT_MS:
                    self._violate(
                        f"{event.facts.call_id} is said to have waited {early_ms} ms before it came"
                    )
            case CallEnded():
                self.counts[str(event.outcome)] += 1
                here = [each for each in self.connected.get(event.call_id, ()) if each[0] == block.shard]
                if here and self._ends[here[-1]] is None:
                    self._ends[here[-1]] = event.outcome
        self._remember(block, replica, event)

    def _end_offer(self, shard: str, call_id: str, offer_id: str, outcome: str) -> None:
        if self._open_offers.pop((shard, call_id), None) != offer_id or self._offers.get(offer_id) != "":
            self._violate(f"offer {offer_id} ends as {outcome} after {self._offers.get(offer_id)!r}")
        self._offers[offer_id] = outcome

    def _check_rung(self, shard: str, event: OfferEnded) -> None:
        """Nobody is rung who does not hear it: not with the faults over, every router awake, and the desktop
        there.
        """
        if event.outcome is not OfferOutcome.EXPIRED or event.offer_id in self.rung:
            return
        since = self._seated.get((shard, event.agent))
        if since is not None and self.world.agenda.now - max(since, self._at_rest()) >= HEARD_SECONDS:
            self._violate(f"{event.agent} was rung by {event.offer_id} in vain: its desktop never heard")

    def _at_rest(self) -> float:
        """Since when there has been nothing amiss; a router's nap may outlast the faults."""
        routers = [router.process for router in self.world.routers.values()]
        woken = [at + seconds for process in routers for at, seconds in process.naps]
        return max(self.world.calm_since, *(process.born for process in routers), *woken)

    def _talks(self, call_id: str, attempt: int) -> bool:
        """Whether the call's edge opened this attempt in a conversation that it takes to go on."""
        line = self.world.lines.get(call_id)
        return line is not None and line.talks_before(attempt) and not line.excused

    def _check_unbridged(self, shard: str, replica: ShardState, event: CallOffered) -> None:
        """Nobody is rung for a caller who talks, and whose edge has said so."""
        if self._talks(event.call_id, replica.calls[event.call_id].attempt):
            self._violate(f"{event.call_id} rings in {shard} while it talks: {self.connected[event.call_id]}")

    def _connect(self, shard: str, replica: ShardState, event: CallConnected) -> None:
        call_id = event.call_id
        self.counts["connected"] += 1
        before = self.connected[call_id]
        over = not before or self._ends[before[-1]] is CallOutcome.INTERRUPTED
        over = over or (call_id, before[-1][1]) in self.broke_off
        unknown = call_id in self.consent_given and not self._talks(call_id, replica.calls[call_id].attempt)
        if not over and not unknown:
            # Only a conversation that broke off may begin again, because its edge reopened the call. (Where
            # the router consents, an edge that never heard of it reopens a conversation that goes on: the
            # weakness of `auto_confirm`.)
            self._violate(f"{call_id} connected twice: {before[-1]} and {(shard, event.offer_id)}")
        before.append((shard, event.offer_id))
        self._ends[before[-1]] = None
        if (call_id, event.offer_id) not in self.consents and call_id not in self.consent_given:
            self._violate(f"{call_id} connected by {event.offer_id}, which its edge has not consented to")

    def _remember(self, block: Block, replica: ShardState, event: Any) -> None:
        facts = getattr(event, "facts", None)
        call_id = facts.call_id if facts is not None else getattr(event, "call_id", None)
        entry = replica.calls.get(call_id) if call_id is not None else None
        if entry is not None:
            self._standings[block.shard, call_id].setdefault(_standing(entry), block.sequence)
        elif call_id is None:
            # An opening and the like change many.
            for each, entry in replica.calls.items():
                self._standings[block.shard, each].setdefault(_standing(entry), block.sequence)

    def _check_agents(self, replica: ShardState) -> None:
        for agent_id, agent in replica.agents.items():
            held = list(agent.holds())
            if len(held) > sum(n for _, n in agent.config.capacity):
                self._violate(f"{agent_id} is booked twice: {sorted(held)}")
            for call_id in (*agent.offers, *agent.calls):
                entry = replica.calls.get(call_id)
                if entry is None or entry.agent != agent_id or entry.state is CallState.ENDED:
                    self._violate(f"{agent_id} holds {call_id}, which is not with it")

    def _check_waiting(self, replica: ShardState) -> None:
        for key, line in replica.lines.items():
            place = (replica.shard, str(key))
            head = head_of(line.waiting, replica.calls) if line.waiting_count else None
            if head is None or best_idle(line, replica.agents) is None:
                self._unpaired.pop(place, None)
                continue
            self._unpaired[place] = self._unpaired.get(place, 0) + 1
            if self._unpaired[place] > COMMITS_TO_OFFER:
                self._violate(f"{head[2]} waits in {place} beside a free agent")

    def _check_overdue(self, block: Block, replica: ShardState) -> None:
        now = self.world.agenda.now
        for (shard, call_id), offer in self._open_offers.items():
            if shard != block.shard:
                continue
            if self.world.poison_of(call_id) == "timer":
                continue
            if block.opening or block.now_ms <= replica.calls[call_id].offer_until_ms + 200:
                self._overdue.pop(offer, None)
                continue
            since, commits = self._overdue.get(offer, (now, 0))
            self._overdue[offer] = (since, commits + 1)
            if now - since > OVERDUE_SECONDS and commits >= OVERDUE_COMMITS:
                self._violate(f"offer {offer} of {call_id} outlives its time")

    # --- what is said

    def newest(self, shard: str) -> int:
        """Sequence of the newest block ever committed."""
        return self._last[shard].sequence if shard in self._last else 0

    def answered(self, committed: Committed, newest_when_asked: int) -> None:
        """A leader's answer reaches a front."""
        place = (committed.shard, committed.epoch, committed.sequence)
        self.check_place(*place, "an answer", durable=committed.durable)
        if committed.sequence <= newest_when_asked:
            self._violate(
                f"{committed.shard}: an answer of block {committed.sequence} to what was asked "
                f"after block {newest_when_asked}"
            )
        if committed.answer.call is not None:
            self._check_view(*place, committed.answer.call)

    def told(self, shard: str, epoch: int, sequence: int, fact: Fact, *, durable: bool) -> None:
        """A fact reaches a front."""
        if isinstance(fact.event, PositionChanged):
            return
        self.check_place(shard, epoch, sequence, f"{fact.event}", durable=durable)
        committed = self.archive.get((shard, sequence), (0, []))[1]
        remembered = self.memory.get((shard, epoch, sequence), ("", []))[1]
        if fact.event not in committed and fact.event not in remembered:
            self._violate(f"told and not in {shard} block {sequence}: {fact.event}")
        if fact.call is not None:
            self._check_view(shard, epoch, sequence, fact.call)

    def check_place(self, shard: str, epoch: int, sequence: int, what: str, *, durable: bool = True) -> None:
        """What left a leader is in the journal; what it says is not durable at least in its memory."""
        if not durable and (shard, epoch, sequence) in self.memory:
            return
        if self.archive.get((shard, sequence), (None, []))[0] != epoch:
            self._violate(f"{shard} {epoch}:{sequence} was told and is not in the journal: {what}")

    def _check_view(self, shard: str, epoch: int, sequence: int, view: CallView) -> None:
        told = (shard, epoch, sequence) in self.memory
        if told and self._nonces.get((shard, sequence)) != self.memory[shard, epoch, sequence][0]:
            # From memory: the journal says it later, or never.
            return
        known = self._standings[shard, view.facts.call_id]
        standing = _standing(view)
        if known.get(standing, sequence + 1) > sequence:
            self._violate(f"{shard}: {view.facts.call_id} was said to be {standing}, the journal has {known}")

    def seized(self, shard: str, router: str, epoch: int, sequence: int) -> None:
        """An operator was told that a router leads a shard: it opened it, and the record is committed."""
        self.check_place(shard, epoch, epoch, "a seizure")
        self.check_place(shard, epoch, sequence, "a seizure's record")
        opened = [
            e.router for e in self.archive.get((shard, epoch), (0, []))[1] if isinstance(e, ShardOpened)
        ]
        if opened != [router]:
            self._violate(f"{router} says that it seized {shard} at {epoch}, opened by {opened}")

    def opens(self, process: Process, shard: str, heard: float, patience: float) -> None:
        """A candidate is about to open a shard that it last heard of then. It must have been awake for the
        silence: whoever had no turn does not know whether anybody spoke, and often the leader had none.
        """
        silent = process.wakeful(heard, NAP_SECONDS / process.rate) * process.rate
        if silent < patience - ROUNDING_SECONDS:
            self._violate(
                f"{process.name} opens {shard} after {silent:.2f} s of silence that it was awake for"
            )

    # --- the end

    def final(self) -> None:
        """With the faults over and everybody at rest."""
        self._check_memory()
        for shard, replica in self.replicas.items():
            for call_id, entry in replica.calls.items():
                # Whose timers the engine fails on may wait for ever.
                if entry.state is not CallState.ENDED and self.world.poison_of(call_id) != "timer":
                    self._violate(f"{call_id} goes on in {shard} for nobody: {entry.state} at {entry.front}")
            for agent_id, agent in replica.agents.items():
                if [call_id for call_id in agent.holds() if self.world.poison_of(call_id) != "timer"]:
                    self._violate(f"{agent_id} is held by {sorted(agent.holds())}")
        for (shard, call_id), offer in self._open_offers.items():
            if self.world.poison_of(call_id) == "timer":
                continue
            self._violate(f"offer {offer} of {call_id} in {shard} never ended")

    def _check_memory(self) -> None:
        """What was told from memory is written down, put aside, or has died with who told it."""
        orphans = {block.nonce for block in self.world.cluster.kept.orphans.values()}
        for place, (nonce, _) in self.memory.items():
            shard, _, sequence = place
            known = self._nonces.get((shard, sequence)) == nonce or nonce in orphans
            if not known and self._tellers[place].alive:
                self._violate(f"{place} was told from memory and is nowhere")
            self.counts["written down later" if known and nonce not in orphans else "orphaned"] += 1

    def outcomes(self, call_id: str) -> set[CallOutcome | None]:
        """How a call's entries ended, over all shards that remember it."""
        entries = [r.calls.get(call_id) for r in self.replicas.values()]
        return {entry.outcome for entry in entries if entry is not None}


def _standing(entry: Any) -> tuple[Any, ...]:
    """What an entry (or a view of one) is, as far as clients rely on it."""
    return (
        entry.attempt,
        entry.move,
        str(entry.state),
        entry.offer_id,
        entry.agent,
        str(entry.outcome),
        entry.queued_ms,
        entry.offer_until_ms,
        entry.wrap_up_until_ms,
    )
