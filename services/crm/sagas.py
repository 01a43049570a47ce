"""What spans more than one document: merging customers, undoing that, erasing one. Everything here blocks.

Each is a journaled intent and steps that may be repeated: whoever drives one, the call that asked for it or
the worker that finds it unfinished, may die after any step, and two may drive it at once. A step looks at
what is, and does what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from chassis import logs
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, NotFound, Unavailable
from chassis.ids import new_id
from chassis.mongo import retry_conflicts
from crm import convert, engine, identity, merging, timeline
from crm.model import Customer, Merge, MergeState, State
from crm.store import Store

#: Tries of a step that others' writes get in between of.
STEP_TRIES_MAX = 20
#: Merges of merges that are followed.
SURVIVORS_MAX = 20
#: Customers below one that are erased with it: merges of merges.
LINEAGE_MAX = 2_000
REASON_CHARACTERS_MAX = 500
_SOURCE = "crm"
_log = logs.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeWish:
    """One merge that is asked for."""

    #: Id of who stays.
    survivor: str
    #: Ids of who is taken over.
    absorbed: tuple[str, ...]
    #: Why.
    reason: str = ""
    #: See `chassis.idempotency`.
    request_key: str | None = None
    #: See `chassis.idempotency`.
    fingerprint: str | None = None
    #: Check, answer what would happen, change nothing.
    dry: bool = False


def event_of(message: Any, subject: str, time: datetime) -> Event:
    """An event of crm."""
    return Event.of(message, source=_SOURCE, subject=subject, time=time)


class _Overtaken(Exception):
    """Another driver has brought the merge to its end."""


def follow(store: Store, id: str) -> None:
    """Sends what is still shown with a customer who was merged to who took it over by now, and so on. For
    whoever wrote something on the strength of an earlier look: the move of everything may have been through
    in between. Idempotent.
    """
    moved = False
    for _ in range(STEP_TRIES_MAX):
        state, into = store.standing(id) or (State.ACTIVE, "")
        if state is State.ERASED and moved:
            store.scrub(id)
        if state is not State.MERGED:
            return
        store.move_subject(id, into)
        if store.standing(id) == (state, into):
            id, moved = into, False
        else:
            # Given back or erased while we moved: what we took goes back, and on from there.
            moved = True
            store.return_subjects(into, id, [id, *store.lineage([id], LINEAGE_MAX)])
    raise Unavailable(why="a customer is merged and given back too often", retry_seconds=1.0)


def settle(store: Store, customers: Iterable[str]) -> None:
    """Sends what was just written for customers after those who were merged meanwhile; of those who were
    erased nothing personal remains.
    """
    for id, (state, _) in store.standings(customers).items():
        if state is State.ERASED:
            store.scrub(id)
        elif state is State.MERGED:
            follow(store, id)


def shown_as(store: Store, id: str) -> str:
    """Under whose id what is a customer's lies: who was merged away means its survivor now. NotFound for a
    customer that does not exist; of one who was deleted or erased it is what is left.
    """
    current = id
    for _ in range(SURVIVORS_MAX):
        found = store.standing(current)
        if found is None:
            raise NotFound(resource=f"customers/{id}")
        if found[0] is not State.MERGED:
            break
        current = found[1]
    return current


class Merges:
    """Merging and its undoing."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def get(self, id: str) -> Merge:
        """NotFound when there is none."""
        found = self._store.merge(id)
        if found is None:
            raise NotFound(resource=f"merges/{id}")
        return found

    def page(self, customer: str, after: str | None, limit: int) -> list[Merge]:
        """Newest first; of one customer, or all. NotFound for a customer that does not exist."""
        if customer and self._store.standing(customer) is None:
            raise NotFound(resource=f"customers/{customer}")
        return self._store.merges(customer, after, limit)

    def request(self, wish: MergeWish, actor: str) -> Merge:
        """Merges, or answers what an earlier call with the same request key did. Errors: see the proto."""
        merging.check_parties(wish.survivor, wish.absorbed, wish.reason)
        earlier = self._store.merge_by_request(wish.request_key, wish.fingerprint)
        if earlier is not None:
            return self._repeated(earlier, wish)
        try:
            people = [self._customer(id) for id in (wish.survivor, *wish.absorbed)]
            merging.check_mergeable(people[0], people[1:])
        except CallmeshError:
            # The same call may be under way, and have merged them since we looked.
            earlier = self._store.merge_by_request(wish.request_key, wish.fingerprint)
            if earlier is None:
                raise
            return self._repeated(earlier, wish)
        now = self._clock.now()
        merge = Merge(
            id=new_id(),
            survivor=wish.survivor,
            absorbed=wish.absorbed,
            reason=wish.reason.strip(),
            requester=actor,
            create_time=now,
            update_time=now,
        )
        running = merging.MergeRunning(
            subject=f"customers/{wish.survivor}", why="or another of them takes part in a running merge"
        )
        if wish.dry:
            if any(self._store.merge_running(id) for id in merge.parties):
                raise running
            return replace(merge, id="")
        begun = replace(merge, state=MergeState.MERGING, version=1)
        try:
            stored = self._store.insert_merge(begun, wish.request_key, wish.fingerprint)
        except AlreadyExists:
            raise running from None
        return self.run(stored.id)

    def _repeated(self, earlier: Merge, wish: MergeWish) -> Merge:
        """What an earlier call with the same request key began; who only tries does not drive it on."""
        return earlier if wish.dry else self.run(earlier.id)

    def undo(self, id: str, reason: str, actor: str) -> Merge:
        """Gives everything back; repeating it answers the first. MergeNotLast, MergeRunning."""
        problems = engine.Problems()
        reason = problems.text("reason", reason, most=REASON_CHARACTERS_MAX)
        problems.raise_if_any()
        return retry_conflicts(lambda: self._undo(id, reason, actor))

    def _undo(self, id: str, reason: str, actor: str) -> Merge:
        merge = self.get(id)
        if merge.state in (MergeState.UNMERGED, MergeState.UNMERGING):
            return self.run(id)
        merging.check_undoable(merge, self._later(merge))
        survivor = self._customer(merge.survivor)
        if survivor.state is State.ERASED:
            raise engine.CustomerNotActive(subject=survivor.name, why="is ERASED")
        begun = replace(merge, state=MergeState.UNMERGING, undo_reason=reason, undoer=actor)
        try:
            self._save(begun)
        except AlreadyExists:
            raise merging.MergeRunning(
                subject=merge.name, why="one of its customers takes part in a running merge"
            ) from None
        return self.run(id)

    def _later(self, merge: Merge) -> list[Merge]:
        found = self._store.merges(merge.survivor, None, merging.ABSORBED_MAX * 10)
        return [other for other in found if other.id > merge.id]

    def resume(self, limit: int = 50) -> int:
        """Drives what was left unfinished; how many."""
        count = 0
        for merge in self._store.unfinished_merges(limit):
            try:
                self.run(merge.id)
                count += 1
            except CallmeshError as error:
                _log.warning("merge.not_resumed", merge=merge.id, error=error.reason)
        return count

    def run(self, id: str) -> Merge:
        """Drives a merge to its end, whichever way it goes."""
        for _ in range(STEP_TRIES_MAX):
            merge = self.get(id)
            try:
                if merge.state is MergeState.MERGING:
                    return self._merge(merge)
                if merge.state is MergeState.UNMERGING:
                    return self._unmerge(merge)
                return merge
            except (EtagMismatch, _Overtaken):
                continue
        raise Unavailable(why="a merge is driven by too many at once", retry_seconds=1.0)

    # --- there ---

    def _merge(self, merge: Merge) -> Merge:
        for id in merge.absorbed:
            merge = self._absorb(merge, id)
            follow(self._store, id)
        survivor = self._customer(merge.survivor)
        if survivor.state is State.ERASED:
            # Its erasure took along whom it found below it; the others are not to be lost with it.
            self._save(replace(merge, state=MergeState.UNMERGING, undoer=merge.requester))
            return self._unmerge(self.get(merge.id))
        gone = [one for one in map(self._customer, merge.absorbed) if one.merged_into == merge.survivor]
        ids = [one.id for one in gone]
        now = self._clock.now()
        moved = self._store.moved_count(merge.survivor, [*ids, *self._store.lineage(ids, LINEAGE_MAX)])
        done = replace(merge, state=MergeState.MERGED, moved=moved, update_time=now)
        message = convert.customers_merged(done, survivor, gone, now)
        # Whose history it is bears on who may leave.
        self._store.mark_churn(*merge.parties)
        return self._save(done, [event_of(message, survivor.name, now)])

    def _absorb(self, merge: Merge, id: str) -> Merge:
        """Takes one customer over: journal, release, take."""
        current, survivor = self._customer(id), self._customer(merge.survivor)
        if survivor.state is State.ERASED:
            return merge
        if current.state is State.ACTIVE:
            merge = self._save(merging.journaled(merge, merging.gain(survivor, current)))
            change = engine.merged_away(current, merge.survivor, merge.requester, self._clock.now())
            self._store_change(change)
        elif current.state is not State.MERGED:
            # Deleted or erased meanwhile: there is nothing to take over any more, nor was there to give.
            noted = merging.gain_of(merge, id) is not None
            return self._save(merging.unjournaled(merge, id)) if noted else merge
        got = merging.gain_of(merge, id)
        if got is not None:
            self._give(merge, lambda one: merging.with_gain(one, got), "MERGE", merge.requester)
        return merge

    # --- and back ---

    def _unmerge(self, merge: Merge) -> Merge:
        restored = []
        for id in reversed(merge.absorbed):
            self._return(merge, id)
            lineage = [id, *self._store.lineage([id], LINEAGE_MAX)]
            self._store.return_subjects(merge.survivor, id, lineage)
            follow(self._store, id)
            restored.append(self._customer(id))
        survivor = self._customer(merge.survivor)
        now = self._clock.now()
        done = replace(merge, state=MergeState.UNMERGED, gains=(), update_time=now)
        message = convert.customers_unmerged(done, survivor, restored[::-1], now)
        self._store.mark_churn(*merge.parties)
        return self._save(done, [event_of(message, survivor.name, now)])

    def _return(self, merge: Merge, id: str) -> None:
        got = merging.gain_of(merge, id)
        actor = merge.undoer
        if got is not None:
            self._give(merge, lambda one: merging.without_gain(one, got), "UNMERGE", actor)

        def once() -> None:
            current = self._customer(id)
            self._check_going_on(merge)
            if current.state is not State.MERGED or current.merged_into != merge.survivor:
                return
            taken = self._taken(replace(current, state=State.ACTIVE))
            desired = merging.without_claims(current, taken)
            self._store_change(engine.given_back(current, desired, actor, self._clock.now()))

        self._persist(once)

    # --- steps ---

    def _check_going_on(self, merge: Merge) -> None:
        """_Overtaken when the merge is through. Asked after a party was read and before it is written on that
        condition: it takes part in no later merge until then, so how it stands is of this one.
        """
        if self.get(merge.id).state is not merge.state:
            raise _Overtaken

    def _give(self, merge: Merge, edit: Callable[[Customer], Customer], action: str, actor: str) -> None:
        """Changes the survivor, unless it was erased meanwhile; claims that a third customer has taken in
        between stay with that one.
        """

        def once() -> None:
            current = self._customer(merge.survivor)
            self._check_going_on(merge)
            if current.state is State.ERASED:
                return
            desired = edit(current)
            taken = self._taken(desired)
            if taken:
                desired = merging.without_claims(desired, taken)
            change = engine.enriched(current, desired, action, actor, self._clock.now())
            if change is not None:
                self._store_change(change)

        self._persist(once)

    def _persist(self, once: Callable[[], None]) -> None:
        for _ in range(STEP_TRIES_MAX):
            try:
                once()
                return
            except (EtagMismatch, engine.ClaimTaken):
                continue
        raise Unavailable(why="a customer is changed by too many at once", retry_seconds=1.0)

    def _taken(self, customer: Customer) -> list[str]:
        owners = self._store.owners(engine.claims(customer))
        return [claim for claim, owner in owners.items() if owner != customer.id]

    def _store_change(self, change: engine.Change) -> None:
        event = event_of(convert.customer_updated(change), change.customer.name, change.audit.time)
        self._store.save(change, [event], wire=convert.customer_wire(change.customer))

    def _customer(self, id: str) -> Customer:
        found = self._store.customer(id)
        if found is None:
            raise NotFound(resource=f"customers/{id}")
        return found

    def _save(self, merge: Merge, events: Sequence[Event] = ()) -> Merge:
        if not events:
            merge = replace(merge, update_time=self._clock.now())
        return self._store.save_merge(merge, events)


class Erasures:
    """Legal erasure: the record at once, what is scattered after it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def erase(self, id: str, reason: str, actor: str, expected_version: int | None = None) -> Customer:
        """Erases a customer and whoever was merged into it. NotFound, EtagMismatch, CustomerNotActive,
        MergeRunning; InvalidArgument(reason).
        """
        problems = engine.Problems()
        reason = problems.text("reason", reason, least=1, most=REASON_CHARACTERS_MAX)
        problems.raise_if_any()
        if self._store.merge_running(id):
            raise merging.MergeRunning(subject=f"customers/{id}", why="takes part in a running merge")

        def once() -> Customer:
            current = self._store.customer(id)
            if current is None:
                raise NotFound(resource=f"customers/{id}")
            if expected_version is not None and current.version != expected_version:
                raise EtagMismatch(resource=current.name)
            change = engine.erase(current, reason, actor, self._clock.now())
            if change is None:
                return current
            self._gather(current)
            return self._save(change)

        erased = once() if expected_version is not None else retry_conflicts(once)
        self.finish(id, reason, actor)
        return erased

    def _save(self, change: engine.Change) -> Customer:
        event = event_of(convert.customer_erased(change), change.customer.name, change.audit.time)
        wire = convert.customer_wire(change.customer)
        self._store.save(change, [event], wire=wire, erase_pending=True)
        return change.customer

    def _gather(self, current: Customer) -> None:
        """Makes what still lies with the customer's numbers its own, or removes it: afterwards nothing would
        tell whose they were. A deleted customer owns none: those of its record that are nobody else's by now.
        """
        numbers = engine.recorded_numbers(current)
        owners = self._store.owners(identity.claim_of_number(number) for number in numbers)
        for number in numbers:
            if owners.get(identity.claim_of_number(number), current.id) != current.id:
                continue
            self._store.attach(number, current.id)
            subject = timeline.subject_of_number(number)
            self._store.forget_ranking(subject)
            self._store.forget_churn(subject)
        # A merge may have been through since the customer was read: then there is nothing to erase here.
        settle(self._store, [current.id])

    def finish(self, id: str, reason: str, actor: str) -> None:
        """Removes what else tells of the person; may be repeated."""
        for below in self._store.lineage([id], LINEAGE_MAX):
            retry_conflicts(lambda below=below: self._erase_below(below, reason, actor))  # type: ignore[misc]
            self._store.scrub(below)
            self._store.erased(below)
        self._store.scrub(id)
        self._store.erased(id)

    def _erase_below(self, id: str, reason: str, actor: str) -> None:
        current = self._store.customer(id)
        if current is not None and current.state is not State.ERASED:
            self._save(engine.erase_stub(current, reason, actor, self._clock.now()))

    def _reason(self, id: str) -> str:
        """Why a customer was erased, as its audit trail has it."""
        changes = [change for entry in self._store.audit(id, None, 1) for change in entry.changes]
        return next((str(json.loads(c.new)) for c in changes if c.field == "reason" and c.new), "")

    def resume(self, limit: int = 50) -> int:
        """Finishes what was left; how many."""
        count = 0
        for customer in self._store.erase_pending(limit):
            try:
                self.finish(customer.id, self._reason(customer.id), customer.updater)
                count += 1
            except CallmeshError as error:
                _log.warning("erasure.not_resumed", customer=customer.id, error=error.reason)
        return count
