"""The use cases of marketing: load, decide, save with what is to be told.

`Recommender` runs on the event loop (the hot path); everything else blocks, in the server's thread pool or in
the worker.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from chassis.clock import Clock
from chassis.errors import AlreadyExists, EtagMismatch, FailedPrecondition
from chassis.ids import new_id
from chassis.logs import get_logger
from chassis.metrics import counter, gauge, histogram
from chassis.mongo import retry_conflicts
from marketing import convert, sales, wire
from marketing.association import Counts, RuleTable, Smoothing, table_problems
from marketing.decision_store import DecisionFilter
from marketing.engine import (
    DecisionNotFound,
    OfferSoldOut,
    ProfileNotFound,
    check_deletable,
    check_outcome,
    check_supply,
    close,
    gate,
    move,
)
from marketing.kinds import BROKEN
from marketing.model import (
    STRANGER,
    Complaint,
    Contact,
    Decision,
    ModelInfo,
    ModelState,
    NoOffer,
    Offer,
    OfferState,
    OfferVerb,
    Outcome,
    Profile,
    Purchase,
    RankedOffer,
    Result,
)
from marketing.model_store import Serving
from marketing.offer_store import Claim, OfferFilter
from marketing.policy import (
    CANDIDATES_MORE,
    arrange,
    explores,
    first_chances,
    held_out,
    holdout_chance,
    share_of,
    worthwhile,
)
from marketing.propensity import traits
from marketing.ranker_cache import RankerCache
from marketing.ranking import Candidate, Ranker
from marketing.reader import Reader, Standing
from marketing.store import Store

#: Open complaints shown in a profile.
COMPLAINTS_SHOWN_MAX = 100
#: Half-done things finished in one sweep.
SWEEP_MAX = 500
#: Numbers of unknown callers forgotten in one go.
STRANGERS_MAX = 100_000
#: Customers counted between two breaths of a model's building.
BREATH_CUSTOMERS = 500

_log = get_logger(__name__)


class ModelNotReady(FailedPrecondition):
    """{subject} cannot serve: {why}."""

    reason = "MODEL_NOT_READY"


class NoEarlierModel(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NO_EARLIER_MODEL"


class Offers:
    """The catalogue."""

    def __init__(self, store: Store, clock: Clock, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is told when something that is ranked may have changed; called from any thread."""
        self._store = store
        self._clock = clock
        self._changed = changed

    def create(
        self, offer: Offer, *, request_key: str | None, fingerprint: str | None, validate_only: bool = False
    ) -> Offer:
        """Adds a draft. AlreadyExists, RequestIdReused."""
        draft = replace(offer, state=OfferState.DRAFT, version=1, created_at=self._clock.now())
        if validate_only:
            return draft
        stored, _ = self._store.insert_offer(draft, (), request_key=request_key, fingerprint=fingerprint)
        return stored

    def get(self, offer_id: str) -> Offer:
        """OfferNotFound."""
        return self._store.offer(offer_id)

    def list(self, query: OfferFilter, limit: int, after: str | None) -> Sequence[Offer]:
        """By id."""
        return self._store.offers(query, limit, after)

    def now(self) -> datetime:
        """Business time."""
        return self._clock.now()

    def sample(self, limit: int) -> Sequence[Profile]:
        """Some living customers."""
        return self._store.sample(limit)

    def revisions(self, offer_id: str, limit: int, below: int | None) -> Sequence[Offer]:
        """Newest first; OfferNotFound."""
        return self._store.revisions(offer_id, limit, below)

    def update(
        self,
        offer_id: str,
        expected_version: int | None,
        change: Callable[[Offer], Offer],
        validate_only: bool = False,
    ) -> Offer:
        """Changes the content. OfferNotFound, EtagMismatch, SupplyBelowUsed, and what `change` raises."""

        def attempt() -> Offer:
            present = self._at(offer_id, expected_version)
            wanted = change(present)
            check_supply(wanted)
            if validate_only or wanted == present:
                return wanted
            return self._save(wanted, self._clock.now(), published=False)

        return retry_conflicts(attempt, 1 if expected_version is not None else 5)

    def move(self, offer_id: str, expected_version: int | None, verb: OfferVerb) -> Offer:
        """Publishes or retires. OfferNotFound, EtagMismatch, OfferNotPublishable, OfferNotPublished."""

        def attempt() -> Offer:
            present = self._at(offer_id, expected_version)
            now = self._clock.now()
            moved = move(present, verb, now)
            if moved is present:
                return present
            return self._save(moved, now, published=verb is OfferVerb.PUBLISH)

        return retry_conflicts(attempt, 1 if expected_version is not None else 5)

    def delete(self, offer_id: str, expected_version: int | None) -> None:
        """OfferNotFound, EtagMismatch, OfferPublished."""

        def attempt() -> None:
            present = self._at(offer_id, expected_version)
            check_deletable(present)
            self._store.delete_offer(present)

        retry_conflicts(attempt, 1 if expected_version is not None else 5)

    def _at(self, offer_id: str, expected_version: int | None) -> Offer:
        present = self._store.offer(offer_id)
        if expected_version is not None and present.version != expected_version:
            raise EtagMismatch(resource=f"offers/{offer_id}")
        return present

    def _save(self, offer: Offer, now: datetime, *, published: bool) -> Offer:
        told = replace(offer, version=offer.version + 1)
        events = () if offer.state is OfferState.DRAFT else (convert.offer_event(told, now, published),)
        stored = self._store.update_offer(offer, events, now)
        self._changed()
        return stored


class Recommender:
    """The next best offer in a live contact."""

    def __init__(
        self,
        reader: Reader,
        cache: RankerCache,
        clock: Clock,
        decision_minutes: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives numbers evenly spread over [0, 1): the chance in exploration."""
        self._reader = reader
        self._cache = cache
        self._clock = clock
        self._lifetime = timedelta(minutes=decision_minutes)
        self._draw = draw
        self._decisions = counter(
            "marketing_decisions_total", "Recommendations, by what came out.", ("outcome",)
        )
        self._counted = functools.cache(
            lambda refusal: self._decisions.labels(refusal.value if refusal else "OFFERED")
        )

    async def recommend(
        self,
        customer: str,
        number: str,
        contact: Contact,
        limit: int,
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> Decision:
        """Ranks, logs, answers the logged decision. Unavailable, RequestIdReused."""
        if request_key is not None:
            earlier = await self._reader.read_repeat(request_key, fingerprint or "")
            if earlier is not None:
                return earlier
        ranker = await self._cache.ranker()
        now = self._clock.now()
        profile, standing = await self._look_up(customer, number, now)
        refusal = gate(profile, contact, int(standing.complaining))
        if refusal is None and self._tired(standing, contact):
            refusal = NoOffer.FATIGUE
        decision = self._decide(ranker, profile, number, contact, refusal, limit, now)
        self._counted(decision.no_offer).inc()
        return await self._reader.log_decision(
            decision,
            (wire.recommendation_told(decision),),
            request_key=request_key,
            fingerprint=fingerprint,
        )

    def _tired(self, standing: Standing, contact: Contact) -> bool:
        most = self._cache.policy.fatigue_offers_max
        return bool(most) and standing.contacts(contact.call_id) >= most

    def _decide(
        self,
        ranker: Ranker,
        profile: Profile,
        number: str,
        contact: Contact,
        refusal: NoOffer | None,
        limit: int,
        now: datetime,
    ) -> Decision:
        policy, propensity = self._cache.policy, self._cache.propensity
        found: Sequence[Candidate] = ()
        chances: tuple[float, ...] = ()
        offers: tuple[RankedOffer, ...] = ()
        chance, holdout, held, leave = 1.0, False, None, 1.0
        if refusal is None:
            at_risk = self._cache.churn.at_risk(profile, now)
            every = ranker.candidates(profile, contact, now, limit + CANDIDATES_MORE, propensity, at_risk)
            known = ranker.table.customers
            if every and explores(policy, known):
                # At the end of the list: only exploration puts them first.
                every = [*every, *ranker.newcomers(profile, contact, now, every, propensity)]
            if policy.expected_value_min is None:
                found = every
            else:
                found = [candidate for candidate in every if worthwhile(policy, candidate.score)]
            chances = first_chances(policy, len(found), known)
            held = holdout_chance(policy, profile.customer, known)
            holdout = held_out(policy, profile.customer, known)
            leave = self._leave(profile, contact) if found else 1.0
            if holdout:
                refusal = NoOffer.HOLDOUT
            elif leave < 1 and share_of("uplift", profile.customer) >= leave:
                refusal = NoOffer.NOT_WORTHWHILE
            elif not found:
                refusal = NoOffer.NOT_WORTHWHILE if every else NoOffer.NOTHING_ELIGIBLE
            else:
                offers, chance = self._arranged(ranker, found, chances, profile, limit)
        looked = bool(found) or refusal in _AFTER_LOOKING
        return Decision(
            id=new_id(),
            customer=profile.customer,
            number=number,
            contact=contact,
            offers=offers,
            no_offer=refusal,
            policy=policy.id,
            model=propensity.model or ranker.table.model,
            holdout=holdout,
            propensity=chance,
            held_chance=held,
            leave=leave,
            considered=tuple(
                [candidate.considered(chance) for candidate, chance in zip(found, chances, strict=True)]
            ),
            traits=traits(profile, contact) if looked else (),
            created_at=now,
            expires_at=now + self._lifetime,
        )

    def _leave(self, profile: Profile, contact: Contact) -> float:
        """Which share of such customers may be offered something: of those whom that makes less likely to buy
        by the uplift model, a share is asked all the same, so that a change would be seen.
        """
        uplift = self._cache.uplift
        if not uplift.model or uplift.gain(traits(profile, contact)) >= 0:
            return 1.0
        return self._cache.policy.exploration_ratio

    def _arranged(
        self,
        ranker: Ranker,
        found: Sequence[Candidate],
        chances: tuple[float, ...],
        profile: Profile,
        limit: int,
    ) -> tuple[tuple[RankedOffer, ...], float]:
        """(the list to show, the propensity of the list as a whole)."""
        places, chance = arrange(chances, limit, self._draw())
        offers = [
            ranker.entry(found[place.candidate], profile, at + 1, place.propensity, place.explored)
            for at, place in enumerate(places)
        ]
        return tuple(offers), chance

    async def _look_up(self, customer: str, number: str, now: datetime) -> tuple[Profile, Standing]:
        """Who it is, and what stands in the way of offering them something."""
        if not customer and number:
            owner = await self._reader.read_profile_of_number(number)
            customer = owner.customer if owner is not None else ""
        policy = self._cache.policy
        since = now - timedelta(days=policy.fatigue_days) if policy.fatigue_offers_max else None
        standing = await self._reader.read_standing(customer, number, since)
        profile = standing.profile or (Profile(customer=customer) if customer else STRANGER)
        if profile.customer != customer:
            survivor = await self._reader.read_standing(profile.customer, number, since)
            standing = replace(survivor, complaining=survivor.complaining or standing.complaining)
        return (profile if profile.alive else STRANGER), standing


#: Causes that are found only after the offers were looked at.
_AFTER_LOOKING = frozenset({NoOffer.HOLDOUT, NoOffer.NOT_WORTHWHILE, NoOffer.NOTHING_ELIGIBLE})


class Decisions:
    """What became of recommendations."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._outcomes = counter("marketing_outcomes_total", "Decisions closed, by result.", ("result",))

    def get(self, decision_id: str) -> Decision:
        """DecisionNotFound."""
        return self._store.decision(decision_id)

    def list(self, query: DecisionFilter, limit: int, below: str | None) -> Sequence[Decision]:
        """Newest first."""
        return self._store.decisions(query, limit, below)

    def record(self, decision_id: str, outcome: Outcome) -> Decision:
        """Closes a decision; the same content again answers it as it is.

        DecisionNotFound, DecisionClosed, OfferNotInDecision, OfferSoldOut, OfferNotFound (deleted since).
        """
        return retry_conflicts(lambda: self._record(decision_id, outcome))

    def _record(self, decision_id: str, outcome: Outcome) -> Decision:
        decision = self._store.decision(decision_id)
        outcome = replace(outcome, agent=outcome.agent or decision.contact.agent)
        if check_outcome(decision, outcome):
            return decision
        token = ""
        if outcome.result is Result.ACCEPTED:
            token = new_id()
            try:
                self._claim(decision_id, outcome.offer, token)
            except OfferSoldOut:
                # The last unit may be held by a closing of this very decision that finished meanwhile.
                if check_outcome(decision := self._store.decision(decision_id), outcome):
                    return decision
                raise
        return self._close(close(decision, outcome, token))

    def _claim(self, decision_id: str, offer_id: str, token: str) -> None:
        claim = Claim(offer=offer_id, token=token, decision=decision_id)
        self._store.claim_unit(claim, datetime.now(UTC))

    def _close(self, closed: Decision) -> Decision:
        outcome = closed.outcome
        if outcome is None:
            raise ValueError("only a closed decision is stored")
        try:
            stored = self._store.close_decision(closed, (convert.outcome_event(closed),))
        except (EtagMismatch, DecisionNotFound):
            # Nothing was written, so the unit goes back. After any other failure nobody knows: the worker
            # looks.
            if closed.claim:
                self._store.release_claim(outcome.offer, closed.claim)
            raise
        self._outcomes.labels(outcome.result.value).inc()
        if stored.unsettled:
            self._settle_now(stored)
        return stored

    def _settle_now(self, decision: Decision) -> None:
        try:
            settle(self._store, decision, self._clock.now())
        except Exception as error:  # the decision is closed, which is what was asked; the worker finishes it
            _log.warning("decision.settled_later", decision=decision.id, error=type(error).__name__)


def settle(store: Store, decision: Decision, now: datetime) -> None:
    """Applies what an acceptance causes: the product joins the history, the unit of stock is sold.
    Repeatable.
    """
    outcome = decision.outcome
    entry = decision.find(outcome.offer) if outcome else None
    if outcome is not None and entry is not None:
        if decision.customer:
            purchase = Purchase(
                id=f"decision:{decision.id}",
                customer=decision.customer,
                product=entry.product,
                at=outcome.at,
                amount=entry.price,
                channel=decision.contact.channel,
            )
            store.add_purchases((purchase,), now)
        if decision.claim:
            store.settle_claim(outcome.offer, decision.claim)
    store.mark_settled(decision.id)


class History:
    """What customers have, and what is known of them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def record(self, purchases: Sequence[Purchase]) -> int:
        """How many were new."""
        return self._store.add_purchases(purchases, self._clock.now()) if purchases else 0

    def list(self, customer: str, limit: int, after: tuple[datetime, str] | None) -> Sequence[Purchase]:
        """Newest first."""
        return self._store.purchases(customer, limit, after)

    def now(self) -> datetime:
        """Business time."""
        return self._clock.now()

    def profile(self, customer: str) -> tuple[Profile, Sequence[Complaint]]:
        """(profile, open complaints); ProfileNotFound when nothing at all is known."""
        profile = self._store.profile(customer)
        if profile is None:
            raise ProfileNotFound(resource=f"customers/{customer}/profile")
        return profile, self._store.open_complaints(customer, COMPLAINTS_SHOWN_MAX)


class Models:
    """Versions of the association table: building, serving, going back."""

    def __init__(self, store: Store, clock: Clock, smoothing: Smoothing, kept: int) -> None:
        self._store = store
        self._clock = clock
        self._smoothing = smoothing
        self._kept = kept
        self._seconds = histogram("marketing_model_build_seconds", "Time spent on building a model.")
        self._rules = gauge("marketing_model_rules", "Rules of the newest model.")

    def get(self, model_id: str) -> ModelInfo:
        """ModelNotFound."""
        return self._store.model(model_id)

    def list(self, limit: int, below: int | None) -> Sequence[ModelInfo]:
        """Newest first."""
        return self._store.models(limit, below)

    def train(self) -> ModelInfo:
        """Asks the worker for a new version; answers the one that is being made, if any."""
        return retry_conflicts(self._next)

    def _next(self) -> ModelInfo:
        """The version in the making: a begun one (also one that a crash left), or a new one."""
        newest = next(iter(self._store.models(1, None)), None)
        if newest is not None and newest.state is ModelState.TRAINING:
            return newest
        number = newest.version + 1 if newest else 1
        info = ModelInfo(
            id=f"association-{number:06}",
            version=number,
            state=ModelState.TRAINING,
            created_at=self._clock.now(),
        )
        try:
            self._store.save_model(info, self._smoothing)
        except AlreadyExists:
            raise EtagMismatch(resource=f"models/{info.id}") from None
        return info

    def due(self) -> bool:
        """Whether the history changed since the newest version, or somebody asked for one."""
        newest = next(iter(self._store.models(1, None)), None)
        if newest is not None and newest.state is ModelState.TRAINING:
            return True
        return self._store.history_changes() != (self._store.serving().history or 0)

    def build(self, breathe: Callable[[], None] = lambda: None) -> ModelInfo:
        """Counts the history as it is, checks the result, and lets it serve unless an operator chose another
        version.

        `breathe` is called now and then while counting, for a process that has other things to do.

        Only one builder runs at a time (the worker holds a lease); two would merely waste their work.
        """
        started = time.monotonic()
        changes = self._store.history_changes()
        info = retry_conflicts(self._next)
        table = self._count(info.id, breathe)
        if problems := table_problems(table):
            failed = replace(info, state=ModelState.FAILED, failure=problems[0])
            self._store.save_model(failed, self._smoothing)
            return failed
        info = replace(
            info,
            state=ModelState.READY,
            customer_count=table.customers,
            example_count=table.facts,
            rule_count=table.rules,
        )
        self._store.save_table(table)
        self._store.save_model(info, self._smoothing)
        self._adopt(info.id, changes)
        self._store.drop_models(self._kept)
        self._seconds.observe(time.monotonic() - started)
        self._rules.set(table.rules)
        return self._store.model(info.id)

    def _count(self, model_id: str, breathe: Callable[[], None]) -> RuleTable:
        counts = Counts()
        for index, basket in enumerate(self._store.baskets()):
            counts.add(basket)
            if index % BREATH_CUSTOMERS == 0:
                breathe()
        return counts.table(model=model_id, smoothing=self._smoothing)

    def _adopt(self, model_id: str, changes: int) -> None:
        def attempt() -> None:
            serving = self._store.serving()
            if serving.pinned:
                self._store.serve_model(replace(serving, history=changes), (), self._clock.now())
            else:
                self._serve(replace(serving, history=changes), model_id, rollback=False)

        retry_conflicts(attempt)

    def _serve(self, serving: Serving, model_id: str, *, rollback: bool) -> None:
        now = self._clock.now()
        earlier = serving.earlier
        if serving.model and not rollback:
            earlier = (*earlier, serving.model)
        event = convert.model_event(model_id, serving.model, rollback, now)
        self._store.serve_model(replace(serving, model=model_id, earlier=earlier, since=now), (event,), now)

    def activate(self, model_id: str) -> ModelInfo:
        """Lets a version serve; any but the newest stays until another is activated. ModelNotFound,
        ModelNotReady.
        """

        def attempt() -> ModelInfo:
            info = self._store.model(model_id)
            if info.state not in (ModelState.READY, ModelState.ACTIVE):
                raise ModelNotReady(subject=f"models/{model_id}", why=f"it is {info.state}")
            self._check(model_id)
            newest = next(iter(self._store.models(1, None)))
            serving = replace(self._store.serving(), pinned=newest.id != model_id)
            if serving.model == model_id:
                self._store.serve_model(serving, (), self._clock.now())
            else:
                self._serve(serving, model_id, rollback=False)
            return self._store.model(model_id)

        return retry_conflicts(attempt)

    def rollback(self) -> ModelInfo:
        """Back to the version that served before; it stays until another is activated. NoEarlierModel,
        ModelNotFound, ModelNotReady.
        """

        def attempt() -> ModelInfo:
            serving = self._store.serving()
            if not serving.earlier:
                raise NoEarlierModel(subject="models", why="no version served before the present one")
            target = serving.earlier[-1]
            self._check(target)
            kept = replace(serving, earlier=serving.earlier[:-1], pinned=True)
            self._serve(kept, target, rollback=True)
            return self._store.model(target)

        return retry_conflicts(attempt)

    def _check(self, model_id: str) -> None:
        """ModelNotFound, or ModelNotReady, for a version whose table no server could read."""
        try:
            self._store.table(model_id)
        except BROKEN as error:
            raise ModelNotReady(subject=f"models/{model_id}", why=str(error)) from None


class Upkeep:
    """Finishes what a crash left half done. Run by the worker under a lease."""

    def __init__(self, store: Store, clock: Clock, claim_seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._claim_age = timedelta(seconds=claim_seconds)
        self._released = counter("marketing_claims_released_total", "Units of stock given back by the sweep.")
        self._forgotten = counter(
            "marketing_strangers_forgotten_total", "Decisions whose unknown caller's number grew too old."
        )

    def sweep(self, real_now: datetime) -> int:
        """Settles closed decisions and gives back stock of closings that never came; how many things were
        done.
        """
        unsettled = self._store.unsettled(SWEEP_MAX)
        for decision in unsettled:
            settle(self._store, decision, self._clock.now())
        claims = self._store.stale_claims(real_now - self._claim_age, SWEEP_MAX)
        for claim in claims:
            if not sales.is_sale(claim):
                self._resolve(claim)
            elif sales.resolve(self._store, claim):
                self._released.inc()
        return len(unsettled) + len(claims)

    def forget_strangers(self, days: float) -> int:
        """Takes numbers of callers who are no customers out of decisions so many business days old; how many.
        The rest waits for the next time.
        """
        before, gone = self._clock.now() - timedelta(days=days), 0
        while gone < STRANGERS_MAX and (count := self._store.forget_strangers(before, SWEEP_MAX)):
            gone += count
        self._forgotten.inc(gone)
        return gone

    def _resolve(self, claim: Claim) -> None:
        try:
            decision = self._store.decision(claim.decision)
            if decision.claim == claim.token:
                self._store.settle_claim(claim.offer, claim.token)
                return
            if decision.outcome is None:
                # From here on a closing that still holds this token can only fail.
                self._store.touch_decision(decision)
        except EtagMismatch:
            return  # somebody is at it: the next sweep sees what came of it
        except DecisionNotFound:
            pass
        self._store.release_claim(claim.offer, claim.token)
        self._released.inc()


class Facts:
    """What other services tell, kept as read models. Every method may be called again with the same facts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def customer(self, profile: Profile) -> None:
        """A customer as crm tells it."""
        self._store.save_profile(profile)

    def erased(self, profile: Profile) -> None:
        """A customer whose personal data must go."""
        self._store.save_profile(profile)
        self._store.erase(profile.customer)

    def merged(self, survivor: Profile, absorbed: Sequence[str], at: datetime) -> None:
        """Customers who are one since a moment."""
        self._store.save_profile(survivor)
        for customer in absorbed:
            self._store.merge(customer, survivor.customer, at)

    def unmerged(self, survivor: Profile, restored: Sequence[Profile], at: datetime) -> None:
        """Customers who are several again since a moment."""
        self._store.save_profile(survivor)
        for profile in restored:
            self._store.unmerge(profile.customer, survivor.customer, at)
            self._store.save_profile(profile)

    def leave_intent(self, customer: str, wants_to_leave: bool, at: datetime) -> None:
        """A customer's word on leaving."""
        self._store.save_leave_intent(customer, wants_to_leave, at)

    def churn_risk(self, customer: str, score: float, at: datetime) -> None:
        """How likely a customer is to leave, as crm sees it."""
        self._store.save_churn_risk(customer, score, at)

    def care(self, customer: str, task: str, kind: str) -> None:
        """An occasion to care for a customer; `kind` "" when it is over."""
        self._store.save_care(customer, task, kind)

    def complaint(self, complaint: Complaint) -> None:
        """A complaint as tickets tells it."""
        self._store.save_complaint(complaint)

    def complaint_merged(self, ticket: str) -> None:
        """A ticket that went on in another."""
        self._store.close_complaint(ticket)
