"""A past day from the journal: who called, what came of it, and who was at work.

1. The journal is read by majority reads, shard by shard, from `LOOK_BACK_MS` before the span (who was
   logged in by then) to `LOOK_AHEAD_MS` after it (how the last conversations ended). Idle blocks are left
   out by the database. Old blocks may have been pruned: what the journal does not say (an agent's skills, a
   queue's rules) is taken from the directory as it is today, and the notes say so.
2. A `Chronicle` folds one shard's events. It needs no state before them: a call's entry begins with
   CallQueued, an agent's time at work is the time between an AVAILABLE and the next word on its presence.
3. A call may have stood in several shards, with rising (attempt, move): the entry that was connected
   counts, else the highest. A conversation that was transferred or broke off and was queued again is two
   contacts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from chassis.errors import InvalidArgument
from routing import codec
from routing.directory import AGENTS, QUEUES, agent_config, queue_config
from routing.journal import COLLECTION, READ_BATCH_BLOCKS, Block, JournalGap, block_key, from_document
from routing.model import (
    AgentConfig,
    AgentConfigured,
    AgentRemoved,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallEnded,
    CallOutcome,
    CallQueued,
    CallTransferred,
    CallWrappedUp,
    Event,
    Presence,
    PresenceSet,
    QueueConfig,
    QueueConfigured,
    Requirement,
    SessionClosed,
    SessionOpened,
)
from routing.virtual import Contact, Duty, Fate, Roster
from routing.whatif import CONTACTS_MAX, DAY_MS, Past, Seen

if TYPE_CHECKING:
    from pymongo.database import Database

#: Read before and after the span asked for, business milliseconds.
LOOK_BACK_MS = DAY_MS
LOOK_AHEAD_MS = 6 * 3_600_000
#: Shards read at most.
SHARDS_MAX = 1_000
#: Level that an agent of unknown skills is given in everything that was asked for.
LEVEL_MAX = 5


@dataclass(slots=True)
class Entry:
    """A call's entry in one shard, as its events tell it."""

    call_id: str
    shard: str
    queued: CallQueued | CallTransferred
    version: tuple[int, int]
    connected_ms: int = 0
    agent: str = ""
    ended_ms: int = 0
    outcome: CallOutcome | None = None
    wrapped_ms: int = 0
    #: Not waited though queued: until the time for which a call-back was asked for.
    deferred_ms: int = 0
    #: When that was asked for; 0 when it was not.
    asked_ms: int = 0
    #: How many conversations the call had here before.
    part: int = 1


@dataclass(slots=True)
class Chronicle:
    """What one shard's events tell of a span."""

    shard: str
    #: In the order they began.
    entries: list[Entry] = field(default_factory=list)
    #: Configuration as of the last word before the span, else the first word in it.
    queues: dict[str, QueueConfig] = field(default_factory=dict)
    agents: dict[str, AgentConfig] = field(default_factory=dict)
    #: [start, end) at work by agent, and since when for who is at work now.
    work: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    since_ms: dict[str, int] = field(default_factory=dict)
    newest_ms: int = 0
    _live: dict[str, Entry] = field(default_factory=dict)
    #: Parts that were handed on and whose agents are still in after-call work, by call and agent.
    _wrapping: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def apply(self, event: Event, at_ms: int, span_start_ms: int) -> None:
        """Takes in the next event, decided at `at_ms`."""
        self.newest_ms = max(self.newest_ms, at_ms)
        early = at_ms < span_start_ms
        if isinstance(event, QueueConfigured) and (early or event.queue.id not in self.queues):
            self.queues[event.queue.id] = event.queue
        elif isinstance(event, AgentConfigured) and (early or event.agent.id not in self.agents):
            self.agents[event.agent.id] = event.agent
        else:
            fold = _FOLD.get(type(event))
            if fold is not None:
                fold(self, event, at_ms)

    def close(self, at_ms: int) -> None:
        """The last event is past: whoever is at work is so until then."""
        for agent in list(self.since_ms):
            self._presence(agent, False, at_ms)

    # --- calls ---

    def _queued(self, event: CallQueued, at_ms: int) -> None:
        call_id = event.facts.call_id
        old = self._live.get(call_id)
        entry = Entry(call_id, self.shard, event, (event.attempt, event.move))
        if old is not None and old.connected_ms:
            entry.part = old.part + 1
        elif old is not None:
            # Another version of what waits here already.
            self.entries.remove(old)
            entry.part = old.part
        self._live[call_id] = entry
        self.entries.append(entry)

    def _connected(self, event: CallConnected, at_ms: int) -> None:
        entry = self._live.get(event.call_id)
        if entry is not None:
            entry.connected_ms, entry.agent = at_ms, event.agent

    def _transferred(self, event: CallTransferred, at_ms: int) -> None:
        old = self._live.get(event.facts.call_id)
        if old is None:
            return
        old.ended_ms, old.outcome = at_ms, CallOutcome.COMPLETED
        old.wrapped_ms = event.wrap_up_until_ms
        self._wrapping[old.call_id, old.agent] = old
        entry = Entry(old.call_id, self.shard, event, old.version, part=old.part + 1)
        self._live[old.call_id] = entry
        self.entries.append(entry)

    def _ended(self, event: CallEnded, at_ms: int) -> None:
        entry = self._live.get(event.call_id)
        if entry is not None and not entry.ended_ms:
            self._waits_again(entry, at_ms)
            entry.ended_ms, entry.outcome = at_ms, event.outcome
            entry.wrapped_ms = event.wrap_up_until_ms

    def _callback_requested(self, event: CallbackRequested, at_ms: int) -> None:
        entry = self._live.get(event.call_id)
        if entry is not None:
            self._waits_again(entry, at_ms)
            entry.asked_ms = at_ms if event.not_before_ms else 0

    def _callback_due(self, event: CallbackDue | CallAttached, at_ms: int) -> None:
        entry = self._live.get(event.call_id)
        if entry is not None:
            self._waits_again(entry, at_ms)

    def _waits_again(self, entry: Entry, at_ms: int) -> None:
        if entry.asked_ms:
            entry.deferred_ms += at_ms - entry.asked_ms
            entry.asked_ms = 0

    def _wrapped_up(self, event: CallWrappedUp, at_ms: int) -> None:
        entry = self._wrapping.pop((event.call_id, event.agent), None) or self._live.get(event.call_id)
        if entry is not None and entry.agent == event.agent and entry.ended_ms:
            entry.wrapped_ms = at_ms

    # --- agents ---

    def _opened(self, event: SessionOpened, at_ms: int) -> None:
        self._presence(event.agent, event.presence is Presence.AVAILABLE, at_ms)

    def _presence_set(self, event: PresenceSet, at_ms: int) -> None:
        self._presence(event.agent, event.presence is Presence.AVAILABLE, at_ms)

    def _gone(self, event: SessionClosed | AgentRemoved, at_ms: int) -> None:
        self._presence(event.agent, False, at_ms)

    def _presence(self, agent: str, at_work: bool, at_ms: int) -> None:
        since_ms = self.since_ms.pop(agent, None)
        if since_ms is not None and at_ms > since_ms:
            self.work[agent].append((since_ms, at_ms))
        if at_work:
            self.since_ms[agent] = at_ms


_FOLD: dict[type, Callable[[Chronicle, Any, int], None]] = {
    CallQueued: Chronicle._queued,
    CallConnected: Chronicle._connected,
    CallTransferred: Chronicle._transferred,
    CallbackRequested: Chronicle._callback_requested,
    CallbackDue: Chronicle._callback_due,
    CallAttached: Chronicle._callback_due,
    CallEnded: Chronicle._ended,
    CallWrappedUp: Chronicle._wrapped_up,
    SessionOpened: Chronicle._opened,
    PresenceSet: Chronicle._presence_set,
    SessionClosed: Chronicle._gone,
    AgentRemoved: Chronicle._gone,
}


# --- from chronicles to a day


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    """What is configured today, for what the journal does not say any more."""

    queues: Mapping[str, QueueConfig] = field(default_factory=dict)
    agents: Mapping[str, AgentConfig] = field(default_factory=dict)


def past_of(
    chronicles: Sequence[Chronicle], start_ms: int, end_ms: int, directory: Directory, title: str
) -> Past:
    """The span [start, end) as it happened. Raises InvalidArgument when nothing did, or too much."""
    seen = _seen(chronicles, start_ms, end_ms)
    if not seen:
        raise InvalidArgument(field="interval", why="the journal has no call in it")
    if len(seen) > CONTACTS_MAX:
        raise InvalidArgument(field="interval", why=f"has more than {CONTACTS_MAX} calls")
    duties, sites, guessed_work = _work(chronicles, start_ms, end_ms)
    queues, missing_queues = _queues(chronicles, seen, directory)
    agents, missing_agents = _agents(chronicles, sorted(sites), seen, queues, directory)
    roster = Roster(
        queues=tuple(queues[q] for q in sorted(queues)), agents=agents, duties=duties, sites=sites, share=True
    )
    notes = _notes(guessed_work, missing_queues, missing_agents)
    busy = _busy(chronicles, start_ms, end_ms)
    return Past(title=title, origin_ms=start_ms, seen=seen, roster=roster, busy_ms=busy, notes=notes)


def _seen(chronicles: Sequence[Chronicle], start_ms: int, end_ms: int) -> tuple[Seen, ...]:
    entries: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for chronicle in chronicles:
        for entry in chronicle.entries:
            entries[entry.call_id, entry.part].append(entry)
    newest_ms = max((c.newest_ms for c in chronicles), default=start_ms)
    shards = {chronicle.shard for chronicle in chronicles}
    found = [_one(group, newest_ms, shards) for group in entries.values()]
    inside = [seen for seen in found if start_ms <= seen.contact.arrival_ms < end_ms]
    return tuple(sorted(inside, key=lambda s: (s.contact.arrival_ms, s.contact.id)))


def _one(group: Sequence[Entry], newest_ms: int, shards: set[str]) -> Seen:
    """One contact of its entries in all shards."""
    first = min(group, key=lambda e: e.version)
    last = max(group, key=lambda e: (e.connected_ms > 0, e.version))
    queued = last.queued
    arrival_ms = min(entry.queued.queued_ms + entry.deferred_ms for entry in group)
    facts = queued.facts
    ended_ms = last.ended_ms or newest_ms
    connected_ms = last.connected_ms
    contact = Contact(
        id=last.call_id if last.part == 1 else f"{last.call_id}.{last.part}",
        queue=facts.queue,
        arrival_ms=arrival_ms,
        talk_ms=max(0, ended_ms - connected_ms) if connected_ms else 0,
        wrap_up_ms=max(0, last.wrapped_ms - ended_ms) if connected_ms and last.wrapped_ms else 0,
        priority=facts.priority,
        channel=facts.channel,
        skills=facts.skills,
        home=facts.home_region if facts.home_region in shards else first.shard,
    )
    fate = Fate.ANSWERED if connected_ms else _FATES.get(last.outcome, Fate.UNSERVED)
    wait_ms = max(0, (connected_ms or ended_ms) - arrival_ms)
    return Seen(contact=contact, fate=fate, wait_ms=wait_ms, agent=last.agent)


_FATES: dict[CallOutcome | None, Fate] = {
    CallOutcome.ABANDONED: Fate.ABANDONED,
    CallOutcome.REFUSED: Fate.REFUSED,
}


def _work(
    chronicles: Sequence[Chronicle], start_ms: int, end_ms: int
) -> tuple[tuple[Duty, ...], dict[str, str], int]:
    """Duties within the span, each agent's shard, and how many agents' work had to be guessed."""
    duties: list[Duty] = []
    sites: dict[str, str] = {}
    guessed = 0
    for chronicle in chronicles:
        working = {entry.agent for entry in chronicle.entries if entry.agent}
        for agent in sorted(working | chronicle.work.keys()):
            spans = [(max(a, start_ms), min(b, end_ms)) for a, b in chronicle.work.get(agent, [])]
            spans = [(a, b) for a, b in spans if b > a]
            if not spans and any(
                start_ms <= e.connected_ms < end_ms for e in chronicle.entries if e.agent == agent
            ):
                guessed += 1
                spans = [(start_ms, end_ms)]
            if spans:
                sites[agent] = chronicle.shard
                duties += [Duty(agent=agent, start_ms=a, end_ms=b) for a, b in spans]
    return tuple(duties), sites, guessed


def _queues(
    chronicles: Sequence[Chronicle], seen: Iterable[Seen], directory: Directory
) -> tuple[dict[str, QueueConfig], list[str]]:
    known = dict(directory.queues)
    for chronicle in chronicles:
        known |= chronicle.queues
    wanted = {each.contact.queue for each in seen}
    missing = sorted(wanted - known.keys())
    return known | {queue: QueueConfig(id=queue) for queue in missing}, missing


def _agents(
    chronicles: Sequence[Chronicle],
    wanted: Sequence[str],
    seen: Iterable[Seen],
    queues: Mapping[str, QueueConfig],
    directory: Directory,
) -> tuple[tuple[AgentConfig, ...], list[str]]:
    known = dict(directory.agents)
    for chronicle in chronicles:
        known |= chronicle.agents
    asked: set[Requirement] = {skill for queue in queues.values() for skill in queue.skills}
    asked |= {skill for each in seen for skill in each.contact.skills}
    everything = tuple((skill, LEVEL_MAX) for skill in sorted({skill for skill, _ in asked}))
    missing = [agent for agent in wanted if agent not in known]
    found = tuple(known.get(agent) or AgentConfig(id=agent, skills=everything) for agent in wanted)
    return found, missing


def _busy(chronicles: Sequence[Chronicle], start_ms: int, end_ms: int) -> dict[str, int]:
    """Milliseconds of the span in which each agent had at least one contact or its after-call work."""
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for chronicle in chronicles:
        for e in chronicle.entries:
            if e.connected_ms:
                until = max(e.ended_ms or chronicle.newest_ms, e.wrapped_ms)
                spans[e.agent].append((max(e.connected_ms, start_ms), min(until, end_ms)))
    busy = {}
    for agent, rows in spans.items():
        free_ms = total_ms = 0
        for a, b in sorted(rows):
            total_ms += max(0, b - max(a, free_ms))
            free_ms = max(free_ms, b)
        busy[agent] = total_ms
    return busy


def _notes(guessed: int, queues: Sequence[str], agents: Sequence[str]) -> tuple[str, ...]:
    notes = [
        "Time at work is the time that agents were AVAILABLE; pauses are none.",
        "Regions help each other by the queues' overflow thresholds, as fronts do.",
    ]
    if guessed:
        notes.append(f"{guessed} agents logged in before the journal begins: at work for the whole span.")
    if queues:
        notes.append(f"Queues that nobody configured any more have default rules: {', '.join(queues)}.")
    if agents:
        notes.append(f"{len(agents)} agents' skills are not known any more: they have every skill asked for.")
    return tuple(notes)


# --- from MongoDB


def read_past(
    database: Database[dict[str, Any]],
    start_ms: int,
    end_ms: int,
    *,
    regions: Sequence[str] = (),
    title: str = "",
) -> Past:
    """The span [start, end) of business time from the journals of `regions`, of all when empty.

    Raises InvalidArgument for a span that is empty, too long or without calls and for a region without a
    journal, JournalGap and codec.CodecError for a block that this code cannot read, and pymongo's errors.
    """
    if not start_ms < end_ms <= start_ms + DAY_MS:
        raise InvalidArgument(field="interval", why="must end after it begins, at most a day later")
    blocks = database.get_collection(
        COLLECTION, read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
    )
    known = _shards(blocks)
    for region in regions:
        if region not in known:
            raise InvalidArgument(field="regions", why=f"there is no journal of {region!r}")
    chronicles = []
    for shard in regions or known:
        chronicle = Chronicle(shard)
        for block in _blocks(blocks, shard, start_ms - LOOK_BACK_MS, end_ms + LOOK_AHEAD_MS):
            for at_ms, event in codec.decode_events(block.body, block.now_ms):
                chronicle.apply(event, at_ms, start_ms)
        chronicle.close(max(chronicle.newest_ms, end_ms))
        chronicles.append(chronicle)
    directory = Directory(
        queues={document["_id"]: queue_config(document) for document in database[QUEUES].find()},
        agents={document["_id"]: agent_config(document) for document in database[AGENTS].find()},
    )
    return past_of(chronicles, start_ms, end_ms, directory, title or "the journal")


def _shards(blocks: Any) -> list[str]:
    """Every shard that has a block: from one to the next along the index."""
    found: list[str] = []
    after = ""
    while len(found) < SHARDS_MAX:
        document = blocks.find_one({"_id": {"$gt": after}}, {"_id": 1}, sort=[("_id", 1)])
        if document is None:
            break
        found.append(str(document["_id"]).rpartition(":")[0])
        after = f"{found[-1]};"
    return found


def _blocks(blocks: Any, shard: str, from_ms: int, until_ms: int) -> Iterator[Block]:
    """A shard's blocks with events in that time, in order."""
    wanted = {
        "_id": {"$gt": block_key(shard, 0), "$lt": f"{shard};"},
        "now": {"$gte": from_ms, "$lt": until_ms},
        "count": {"$gt": 0},
    }
    with blocks.find(wanted).sort("_id", 1).batch_size(READ_BATCH_BLOCKS) as documents:
        for document in documents:
            block = from_document(document)
            if block.format > codec.FORMAT:
                raise JournalGap(f"{block.key} has format {block.format}, this code reads {codec.FORMAT}")
            yield block
