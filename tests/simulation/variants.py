"""The product, broken on purpose: one rule of the design each, as small as it can be broken.

Each variant names the mixture of faults that it is looked for in and within how many seeds it must be
caught. A simulation that lets one of them through no longer bites.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as replace_struct
from tests.simulation import endings, plan
from tests.simulation.agenda import Process
from tests.simulation.cluster import Key, SimJournal, Taken
from tests.simulation.endings import Ending
from tests.simulation.routers import Router
from tests.simulation.world import World, simulate

from chassis.bus.publisher import Outcome
from routing import codec, digests, engine, handlers, holds, leader, relay
from routing.committed import Committed, ShardBusy
from routing.deciders import calls, questions
from routing.front import Front
from routing.journal import Block, OutcomeUnknown
from routing.leader import Leader
from routing.links import ShardLink
from routing.model import (
    AcceptOffer,
    CallConnected,
    CallEnded,
    CallOffered,
    CallState,
    ConfirmCall,
    Decision,
    EndCall,
    OfferAccepted,
    OpenSession,
    ShardOpened,
)
from routing.outlived import Outlived, Verdict
from routing.settling import Settling
from routing.silence import Silence
from routing.state import ShardState, evolving, indexes

#: Mixtures of faults.
STORE = {"stall_replication": 6, "freeze_leader": 3, "crash_leader": 3, "slow_store": 2, "store_down": 1}
LEADERS = {"freeze_leader": 6, "crash_leader": 4, "break": 3, "cut_store": 2}
CLIENTS = {"break": 6, "cut_clients": 3, "take_session": 2, "freeze_leader": 2, "crash": 1}
BROKEN_STREAMS = {"break": 10, "freeze_leader": 4, "crash": 2}
SLEEPERS = {"sleep_sending": 5, "sleep_opening": 5, "crash_leader": 3, "freeze_leader": 1}
OUTAGES = {"cut_store": 4, "cut_routers": 3, "freeze_leader": 2, "crash_leader": 1}
BUSY = {"stall": 5, "overload": 4, "freeze": 3, "freeze_leader": 2, "crash_leader": 2}
APART = {"crash_leader": 5, "cut_routers": 4, "break": 6, "freeze_leader": 3}
CLOCKS = {"step_clock": 4, "crash_leader": 3, "freeze_leader": 1}
TROUBLED = {"refused": 0.03, "late": 0.08, "unanswered": 0.08, "lost": 0.06, "twice": 0.08, "half_open": 0.4}
#: Requests are repeated, or their answers lost, far too often.
REPEATED = {**TROUBLED, "twice": 0.5}
UNHEARD = {**TROUBLED, "unroutable": 0.1, "unpublished": 0.1, "unconfirmed": 0.1, "relay_dies": 0.1}
UNANSWERED = {**TROUBLED, "unanswered": 0.5, "half_open": 1.0}
#: Callers who talk long, at edges that open what breaks again meanwhile and do nothing wrong.
TALKERS = {
    "mode": "stream",
    "listens": True,
    "talk": 10.0,
    "hang_up_at": "",
    "attempts": "rising",
    "token": "use",
    "patience": 60.0,
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One broken rule."""

    name: str
    #: What violations of it say, one of these.
    says: tuple[str, ...]
    broken: Callable[[], AbstractContextManager[None]] = nullcontext
    journal: type[SimJournal] = SimJournal
    tweak: Callable[[World], None] | None = None
    kinds: dict[str, int] = field(default_factory=lambda: LEADERS)
    chances: dict[str, float] = field(default_factory=lambda: TROUBLED)
    #: How all its callers are, where it matters.
    callers: dict[str, Any] = field(default_factory=dict)
    #: What is rare, with its chance; and what ends leading at last.
    rare: dict[str, float] = field(default_factory=dict)
    ending: str = ""
    #: Leaders go on from memory: how a plan becomes one of outages.
    outages: Callable[[plan.Plan], plan.Plan] | None = None
    #: A seed that caught it when it was last looked for, tried first.
    seed: int = 1
    #: It must be caught by one of that many seeds.
    seeds_max: int = 60


def drawn(variant: Variant, seed: int) -> plan.Plan:
    """A seed's plan in the mixture of a variant."""
    found = plan.with_rare(plan.draw(seed, variant.kinds, variant.chances), variant.rare)
    found = replace(found, ending=variant.ending)
    if variant.outages is not None:
        found = variant.outages(found)
    return replace(found, calls=tuple(replace(call, **variant.callers) for call in found.calls))


def caught(variant: Variant, seed: int) -> str:
    """What a seed says of a variant; "" when it lets it through."""
    with variant.broken():
        world = simulate(drawn(variant, seed), variant.journal, variant.tweak)
    return world.failure if any(words in world.failure for words in variant.says) else ""


def search(variant: Variant) -> tuple[int, str]:
    """The first seed that catches a variant, the recorded one tried first; (0, "") when none does."""
    for seed in dict.fromkeys((variant.seed, *range(1, variant.seeds_max + 1))):
        failure = caught(variant, seed)
        if failure:
            return seed, failure
    return 0, ""


def record(variant: Variant, seed: int) -> None:
    """Writes the seed that catches a variant into this file, in place of the one that is there."""
    file = Path(__file__)
    before, name, after = file.read_text(encoding="utf-8").partition(f'name="{variant.name}",')
    assert name, variant.name
    entry, end, rest = after.partition("Variant(")
    entry = re.sub(r"\s*\bseed=\d+,", "", entry)
    gap = entry[: len(entry) - len(entry.lstrip())]
    file.write_text(f"{before}{name}{gap}seed={seed},{entry}{end}{rest}", encoding="utf-8")


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name`, or `owner[name]` of a table, is another for a while."""
    if isinstance(owner, dict):
        before, owner[name] = owner[name], value
        try:
            yield
        finally:
            owner[name] = before
        return
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _settle_blindly(feed: relay.Feed, outcomes: Sequence[Outcome]) -> None:
    """What was sent is published, whatever the broker says."""
    _SETTLE(feed, [Outcome.PUBLISHED for _ in outcomes])


_SETTLE = relay.Feed.settle


def _count_lateness(silence: Silence, now: float, due_seconds: float) -> None:
    """All time that has passed was silent, whoever slept."""
    silence.seconds += now - silence._looked
    silence._looked = now


# --- journal


class LocalReads(SimJournal):
    """Reads below the majority: applies blocks that are rolled back later."""

    def _readable(self) -> dict[Key, Block]:
        return self.cluster.primary


class TrustsDuplicateKey(SimJournal):
    """Takes DuplicateKey on its own block for committed."""

    async def insert(self, block: Block) -> None:
        try:
            await super().insert(block)
        except Taken as taken:
            if taken.block.nonce != block.nonce:
                raise


async def _send_rebatched(self: Settling, block: Block, *, unsure: bool, leads: bool) -> bool:
    """Adds what was decided meanwhile to a block that it must send again."""
    leader = self._leader
    held = leader.__dict__.setdefault("rebatched", [])
    while True:
        try:
            await leader.store.insert(block)
            return True
        except OutcomeUnknown:
            await asyncio.sleep(0.05)
        found = await _find(leader, block.sequence)
        if found is not None:
            return found.nonce == block.nonce
        events = [
            (at_ms, codec.pack(event)) for at_ms, event in codec.decode_events(block.body, block.now_ms)
        ]
        while leader._pending:
            pending = leader._pending.popleft()
            held.append(pending)
            events += [(pending.now_ms, event) for event in pending.events]
        body = codec.join_events(events, block.now_ms)
        block = replace(block, body=body, count=len(events))


async def _find(self: Leader, sequence: int) -> Block | None:
    while True:
        try:
            return await self._store.find(self.shard, sequence)
        except OutcomeUnknown:
            await asyncio.sleep(0.05)


def _release_rebatched(self: Leader, batch: Any, block: Block) -> None:
    more, self.__dict__["rebatched"] = self.__dict__.get("rebatched", []), []
    _RELEASE(self, [*batch, *more], block)


_RELEASE = Leader._release


@contextmanager
def rebatching() -> Iterator[None]:
    with (
        patched(Settling, "send_until_known", _send_rebatched),
        patched(Leader, "_release", _release_rebatched),
    ):
        yield


async def _commit_two(self: Leader) -> None:
    """Sends the next block before the last one is known to be there."""
    if len(self._pending) < 2:
        await _COMMIT(self)
        return
    first, events = [self._pending.popleft()], []
    events = [(first[0].now_ms, event) for event in first[0].events]
    one = self._block(events, events[0][0] if events else self.now_ms())
    second, more = self._take_batch()
    two = replace(self._block(more, more[0][0] if more else self.now_ms()), sequence=one.sequence + 1)
    two = replace(two, prev=one.nonce)
    settled = await asyncio.gather(self.settling.settle(one), _insert_blindly(self, two))
    if not all(settled):
        self._pending.extendleft(reversed([*first, *second]))
        self._depose("lost one of two")
        return
    for batch, block in ((first, one), (second, two)):
        self._chain.accept(block)
        self._release(batch, block)


async def _settle_unseen(self: Settling, blocks: Sequence[Block]) -> bool:
    """Takes for written what was sent together, whatever was answered."""
    with suppress(OutcomeUnknown):
        await self._leader.store.insert_all(blocks)
    return True


async def _insert_blindly(self: Leader, block: Block) -> bool:
    while True:
        try:
            await self._store.insert(block)
            return True
        except OutcomeUnknown:
            found = await _find(self, block.sequence)
            if found is not None:
                return found.nonce == block.nonce


_COMMIT = Leader._commit_next


def _keep_half(self: Leader, why: str) -> None:
    """The memory that a failed decision has half changed is led on with."""
    if "own decision" not in why:
        _DEPOSE(self, why)


_DEPOSE = Leader._depose


def _one_limit(self: Leader, command: Any) -> None:
    """When it is full, everything is refused alike."""
    if self.leading and len(self._pending) >= leader.PENDING_MAX:
        raise ShardBusy(shard=self.shard, retry_seconds=1.0)
    _CHECK(self, command)


_CHECK = Leader._check


def _conversations_alone(state: Any, command: Any) -> tuple[Any, ...]:
    return tuple(view for view in _VIEWS(state, command) if view.state is not CallState.OFFERED)


_VIEWS = questions._views


async def _writes_on(self: Settling, block: Block) -> None:
    """In place of asking the others, and of hearing that it was deposed."""


def _a_leader(self: Ending) -> Router | None:
    """In place of any router: the first shard's leader."""
    return next((r for r in self.world.routers.values() if r.leads(self.world.plan.shards[0])), None)


@contextmanager
def waking_unasked() -> Iterator[None]:
    with (
        patched(Settling, "_ask_others", _writes_on),
        patched(Ending, "_sleeper", _a_leader),
        patched(vars(endings), "SUCCEEDED_CHANCE", 1.0),
    ):
        yield


# --- release


def _submit_early(self: Leader, command: Any) -> asyncio.Future[Committed]:
    """Answers before the commit."""
    future = _SUBMIT(self, command)
    return _answered(self, self._pending[-1].answer, future, self.sequence + 1)


def _submit_from_memory(self: Leader, command: Any) -> asyncio.Future[Committed]:
    """Answers what needs no event from memory, at once."""
    future = _SUBMIT(self, command)
    pending = self._pending[-1]
    return future if pending.events else _answered(self, pending.answer, future, self.sequence)


def _answered(self: Leader, answer: Any, future: asyncio.Future[Committed], sequence: int) -> Any:
    future.set_result(
        Committed(answer=answer, shard=self.shard, epoch=self.epoch, sequence=sequence, now_ms=self.now_ms())
    )
    return future


_SUBMIT = Leader.submit


@contextmanager
def deaf_to_epochs() -> Iterator[None]:
    """Fronts listen to any epoch."""
    ShardLink._epoch = property(lambda self: 0, lambda self, value: None)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del ShardLink._epoch


# --- outage


def _all_but_one(answers: holds.Round) -> holds.Verdict:
    """One router's hold is not waited for."""
    others = dict(list(answers.answers.items())[1:])
    return _VERDICT(replace(answers, answers=others))


def _born_free(promise: holds.Promise, born: holds.Moment, hold_seconds: float) -> None:
    """A router that has just started may open at once."""
    _PROMISED(promise, tuple(at - hold_seconds for at in born), hold_seconds)


_VERDICT, _PROMISED = holds.Round.verdict, holds.Promise.__init__


# --- consent


def _accept_connects(s: Any, command: AcceptOffer, now_ms: int) -> Decision:
    """The agent's accept connects, and nobody asks the edge."""
    decision = _ACCEPT(s, command, now_ms)
    for event in list(decision.events):
        if isinstance(event, OfferAccepted):
            connected = CallConnected(call_id=event.call_id, offer_id=event.offer_id, agent=event.agent)
            decision.events.append(connected)
    return decision


def _open_for_any(s: ShardState, c: OpenSession, now_ms: int) -> Decision:
    """Of one session's streams the last to be attached wins, however old it is."""
    known = s.agents.get(c.agent)
    command = max(c.command, known.command) if known is not None else c.command
    return _OPEN(s, replace_struct(c, command=command), now_ms)


def _confirm_any(s: Any, command: ConfirmCall, now_ms: int) -> Decision:
    """A confirmation connects whatever offer there is."""
    entry = s.calls.get(command.call_id)
    if entry is not None and entry.state is CallState.ACCEPTED:
        connected = CallConnected(call_id=command.call_id, offer_id=entry.offer_id, agent=entry.agent)
        return Decision(events=[connected])
    return _CONFIRM(s, command, now_ms)


def _queue_anew(s: Any, c: Any, entry: Any, now_ms: int) -> Decision:
    """A conversation that broke off is queued anew, unsaid."""
    return _REPLACE(s, replace_struct(c, talks=False), entry, now_ms)


_REPLACE = calls._replace_ended
_OPEN, _ACCEPT, _CONFIRM = (engine._DECIDE[kind] for kind in (OpenSession, AcceptOffer, ConfirmCall))


def _consent_for_all(self: Front, caller: Any, view: Any) -> None:
    """The front consents for every edge, half open or not."""
    asked, caller.auto_confirm = caller.auto_confirm, True
    try:
        _CONSENT(self, caller, view)
    finally:
        caller.auto_confirm = asked


_CONSENT = Front._consent


def prune_openings(world: World) -> None:
    """Keepers prune openings like other blocks."""
    world.prunes_openings = True


async def _send_blindly(self: Settling, block: Block) -> bool:
    """Nobody looks whether the block before is there."""
    return True


class ReadsAnyFormat(SimJournal):
    """A format that is not known is read as if it were."""

    async def read(self, shard: str, after: int) -> AsyncIterator[Block]:
        async for block in super().read(shard, after):
            yield replace(block, format=codec.FORMAT)


class OpensUnverified(SimJournal):
    """Nobody looks above an opening that was committed."""

    async def above(self, shard: str, sequence: int) -> bool:
        return False


def edges_give_up(world: World) -> None:
    """Edges take themselves for free when no answer comes."""
    world.edges_give_up = True


# --- core


def _conclude_at_once(s: Any, event: ShardOpened) -> None:
    """Who is not there at an opening is gone."""
    _OPENED(s, event)
    s.conclude_ms = s.now_ms
    for call_id, call in s.calls.items():
        if call.detached_until_ms:
            call.detached_until_ms = s.now_ms + 500
            s.set_deadline(call.detached_until_ms, "detached", call_id)
    for agent_id, agent in s.agents.items():
        if agent.lost_ms:
            agent.lost_ms = s.now_ms + 500
            s.set_deadline(agent.lost_ms, "lost", agent_id)


def _lose_expiry(s: Any, event: CallOffered) -> None:
    """An offer's deadline is not kept."""
    _OFFERED(s, event)
    kept = [d for d in s.deadlines if (d[1], d[2]) != ("offer", event.call_id)]
    s.deadlines.clear()
    for deadline in kept:
        s.deadlines.add(deadline)


def _wrap_up_here(s: Any, event: CallEnded) -> None:
    """After-call work lasts as long as this router's own configuration says."""
    here = Process.current.name if Process.current is not None else ""
    if event.wrap_up_until_ms and here.endswith("-1"):
        event = CallEnded(
            call_id=event.call_id,
            outcome=event.outcome,
            reason=event.reason,
            wrap_up_until_ms=event.wrap_up_until_ms + 700,
            recording_uri=event.recording_uri,
        )
    _ENDED(s, event)


_OPENED, _OFFERED, _ENDED = (evolving._EVOLVE[kind] for kind in (ShardOpened, CallOffered, CallEnded))


def _end_again(s: Any, command: EndCall, now_ms: int) -> Decision:
    """A call that has ended is ended again by the same word."""
    entry = s.calls.get(command.call_id)
    if entry is not None and entry.state is CallState.ENDED and entry.agent:
        return Decision(events=[CallEnded(call_id=command.call_id, outcome=entry.outcome)])
    return _END(s, command, now_ms)


def _count_down(s: Any, event: CallEnded) -> None:
    """An agent's load is counted down, whatever it was made of."""
    entry = s.calls[event.call_id]
    agent = s.agents.get(entry.agent)
    freed = entry.state is CallState.ENDED and agent is not None
    _ENDED(s, event)
    if freed and agent.calls:
        agent.calls.pop() if isinstance(agent.calls, set) else agent.calls.popitem()
        indexes.refresh(s, agent)


_END = engine._DECIDE[EndCall]


@contextmanager
def counting() -> Iterator[None]:
    with patched(engine._DECIDE, EndCall, _end_again), patched(evolving._EVOLVE, CallEnded, _count_down):
        yield


def _wall_clock(self: Leader) -> int:
    return int(leader.time.time_ns() // 1_000_000)


def _evolves(event: type, how: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: patched(evolving._EVOLVE, event, how)


def _decides(command: type, how: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: patched(engine._DECIDE, command, how)


_JOURNAL_SAYS = (
    "not in the journal",
    "does not follow",
    "does not apply",
    "deposed",
    "was said to be",
    "gap",
    "lost or stuck",
    "holds",
    "not in",
)
#: All of them, in the order of the design's list.
VARIANTS = (
    Variant(name="local reads at takeover", seed=4, journal=LocalReads, kinds=STORE, says=_JOURNAL_SAYS),
    Variant(
        name="own DuplicateKey is committed",
        seed=4,
        journal=TrustsDuplicateKey,
        kinds=STORE,
        says=_JOURNAL_SAYS,
    ),
    Variant(name="re-batching", seed=4, broken=rebatching, kinds=STORE, says=_JOURNAL_SAYS),
    Variant(
        name="two in flight",
        seed=3,
        broken=lambda: patched(Leader, "_commit_next", _commit_two),
        kinds=STORE,
        says=_JOURNAL_SAYS,
    ),
    Variant(
        name="opening pruned",
        seed=5,
        tweak=prune_openings,
        kinds=SLEEPERS,
        says=_JOURNAL_SAYS,
    ),
    Variant(
        name="opening not verified",
        seed=31,
        journal=OpensUnverified,
        kinds=SLEEPERS,
        says=_JOURNAL_SAYS,
    ),
    Variant(
        name="send before commit",
        seed=2,
        broken=lambda: patched(Leader, "submit", _submit_early),
        says=("not in the journal", "was said to be", "was told"),
    ),
    Variant(
        name="answer from memory",
        seed=2,
        broken=lambda: patched(Leader, "submit", _submit_from_memory),
        says=("to what was asked after", "was said to be", "not in the journal"),
    ),
    Variant(name="epoch not checked", seed=8, broken=deaf_to_epochs, says=("listens to epoch",)),
    Variant(
        name="accept connects",
        seed=3,
        broken=_decides(AcceptOffer, _accept_connects),
        says=("has not consented", "connected twice"),
    ),
    Variant(
        name="front consents",
        seed=17,
        broken=lambda: patched(Front, "_consent", _consent_for_all),
        kinds=CLIENTS,
        says=("has not consented", "connected twice", "without consent"),
    ),
    Variant(
        name="confirm without offer id",
        seed=1,
        broken=_decides(ConfirmCall, _confirm_any),
        kinds=CLIENTS,
        chances=REPEATED,
        callers={"mode": "stream", "slow": True, "hang_up_at": ""},
        says=("has not consented", "connected twice"),
    ),
    Variant(
        name="an older stream takes the session",
        seed=13,
        broken=_decides(OpenSession, _open_for_any),
        kinds=CLIENTS,
        says=("lost to an older stream",),
    ),
    Variant(
        name="edge frees itself",
        seed=18,
        tweak=edges_give_up,
        kinds=BROKEN_STREAMS,
        chances=UNANSWERED,
        callers={"mode": "stream", "token": "forget", "hang_up_at": ""},
        says=("connected twice", "bridged to"),
    ),
    Variant(
        name="who talks is placed anywhere",
        broken=lambda: patched(handlers, "_talks", lambda request, place: False),
        kinds=APART,
        callers=TALKERS,
        says=("while it talks",),
    ),
    Variant(
        name="what broke off is queued unsaid",
        seed=4,
        broken=lambda: patched(calls, "_replace_ended", _queue_anew),
        kinds={**CLIENTS, "restart_desk": 6},
        callers={**TALKERS, "breaks_off": 0.0},
        says=("while it talks",),
    ),
    Variant(
        name="conclusions before re-attach",
        seed=2,
        broken=_evolves(ShardOpened, _conclude_at_once),
        says=("concluded from absence",),
    ),
    Variant(
        name="a counter for the set",
        seed=1,
        broken=counting,
        kinds=CLIENTS,
        chances=REPEATED,
        says=("holds", "booked twice", "not with"),
    ),
    Variant(
        name="lost offer expiry",
        seed=47,
        broken=_evolves(CallOffered, _lose_expiry),
        says=("outlives its time",),
    ),
    Variant(
        name="wall clock as now",
        seed=1,
        broken=lambda: patched(Leader, "now_ms", _wall_clock),
        kinds=CLOCKS,
        says=("time is off", "time runs backwards", "outlives"),
    ),
    Variant(
        name="cursor before the broker's word",
        broken=lambda: patched(relay.Feed, "settle", _settle_blindly),
        chances=UNHEARD,
        says=("was never published",),
    ),
    Variant(
        name="lateness counted as silence",
        broken=lambda: patched(Silence, "look", _count_lateness),
        kinds=BUSY,
        says=("of silence that it was awake for",),
    ),
    Variant(
        name="configuration in evolve",
        seed=3,
        broken=_evolves(CallEnded, _wrap_up_here),
        says=("was said to be", "does not apply", "not in the journal"),
    ),
    Variant(
        name="set back unnoticed",
        broken=lambda: patched(Settling, "_may_send_again", _send_blindly),
        ending="set_back",
        says=("over a restored database",),
    ),
    Variant(
        name="what others have known is not heard",
        seed=6,
        broken=lambda: patched(Leader, "hear_committed", lambda leader, sequence: None),
        ending="set_back",
        says=("over a restored database",),
    ),
    Variant(
        name="a leader that wakes writes on",
        seed=2,
        broken=waking_unasked,
        ending="set_back",
        says=("over a restored database",),
    ),
    Variant(
        name="what rings is not told again",
        seed=20,
        broken=lambda: patched(questions, "_views", _conversations_alone),
        kinds=CLIENTS,
        says=("in vain",),
    ),
    Variant(
        name="any format is read",
        journal=ReadsAnyFormat,
        ending="newer_format",
        says=("cannot go on",),
    ),
    Variant(
        name="digests not compared",
        broken=lambda: patched(digests, "agrees", lambda state, block: True),
        ending="wrong_digest",
        says=("cannot go on",),
    ),
    Variant(
        name="half a decision is kept",
        broken=lambda: patched(Leader, "_depose", _keep_half),
        callers={"poison": "evolve"},
        says=("does not apply", "was another", "not in the journal"),
    ),
    Variant(
        name="poison is never refused",
        seed=32,
        broken=lambda: patched(Outlived, "verdict", lambda outlived, command, shard: Verdict.CLEAR),
        callers={"poison": "kill", "patience": 60.0},
        says=("to a third leader",),
    ),
    Variant(
        name="accepts shed with new calls",
        broken=lambda: patched(Leader, "_check", _one_limit),
        rare={"full_house": 1.0},
        says=("as new calls",),
    ),
    Variant(
        name="skipped without a word",
        seed=2,
        broken=lambda: patched(relay.Feed, "_say_skipped", lambda feed, cursor: False),
        rare={"broker_away": 1.0, "tight": 1.0},
        says=("was never published",),
    ),
    Variant(
        name="continue with one hold missing",
        broken=lambda: patched(holds.Round, "verdict", _all_but_one),
        outages=lambda found: plan.betrayed(found, plan.LONE),
        says=("goes on from memory",),
    ),
    Variant(
        name="restart without waiting out the hold",
        broken=lambda: patched(holds.Promise, "__init__", _born_free),
        outages=plan.betrayed,
        says=("goes on from memory",),
    ),
    Variant(
        name="a promise is not kept",
        broken=lambda: patched(holds.Promise, "may_open", lambda promise, now: True),
        outages=lambda found: plan.betrayed(found, plan.NONE),
        says=("goes on from memory",),
    ),
    Variant(
        name="the rest of a backlog is not looked at",
        seed=5,
        broken=lambda: patched(Settling, "settle_all", _settle_unseen),
        outages=plan.through_outages,
        kinds=OUTAGES,
        says=_JOURNAL_SAYS,
    ),
    Variant(
        name="a hold that never ends",
        broken=lambda: patched(holds.Holds, "left", lambda held, now: 1.0 if held._until else 0.0),
        outages=plan.through_outages,
        kinds=OUTAGES,
        says=("goes on from memory",),
        seed=15,
    ),
)
