"""Use cases of the propensity model and of policies: learning, serving, going back, comparing afterwards.

Learning runs in a process of its own (`python -m marketing.learn`, started by the worker), because its
libraries are large and block; what it leaves is a model version in the database, which servers read within a
second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from chassis.clock import Clock, from_ms
from chassis.errors import AlreadyExists, EtagMismatch, FailedPrecondition, NotFound
from chassis.mongo import retry_conflicts
from marketing import convert
from marketing.decision_store import DecisionFilter
from marketing.effects import churn_from_content, churn_traits, uplift_from_content
from marketing.engine import LOST_TAG, ModelNotFound
from marketing.handlers import ModelNotReady, NoEarlierModel
from marketing.judged import UPLIFT_DAYS, decisions_within, taken_after
from marketing.kinds import (
    BROKEN,
    CHURN,
    CHURN_MODELS,
    CHURN_SERVING,
    DEFAULT_POLICY,
    POLICIES,
    PROPENSITY,
    PROPENSITY_MODELS,
    PROPENSITY_SERVING,
    UPLIFT,
    UPLIFT_MODELS,
    UPLIFT_SERVING,
    policy_content,
    policy_from_content,
    propensity_from_content,
)
from marketing.model import Considered, Decision, ModelInfo, ModelState, Result
from marketing.offline import Comparison, Estimate, Logged, Treated, compare, qini, spread_of, uplift
from marketing.policy import Policy, first_chances
from marketing.propensity import Propensity, corrected
from marketing.shelf import Kind, Row, Shelves
from marketing.store import Store

#: Newest decisions that a model learns from.
DECISIONS_MAX = 50_000
DECISIONS_PAGE = 1_000
#: Newest decisions of a span that a policy is judged by.
JUDGED_MAX = 100_000
#: Fewest decisions to judge a policy by.
JUDGED_MIN = 50
#: Versions remembered for a rollback.
EARLIER_MAX = 10
#: Customers that a churn model learns from.
CUSTOMERS_SAMPLED_MAX = 50_000
#: Fewest closed decisions, or customers, before uplift and churn are learned unasked, and how often they are.
DUE_MIN = 1_000
RELEARN = timedelta(days=1)


class TooFewDecisions(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TOO_FEW_DECISIONS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a policy would have done, and what offering is worth."""

    comparison: Comparison
    uplift: Estimate
    qini: float
    count: int
    #: Decisions of the span that were looked at; whether there were more.
    examined: int
    truncated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class UpliftExample:
    """A decision that tells what offering something changes."""

    #: What was known of the customer.
    traits: tuple[str, ...]
    #: Whether something was offered, and with which probability; None where that was not logged.
    offered: bool
    chance: float | None
    #: Whether the customer took what was looked at within `UPLIFT_DAYS`.
    took: bool
    customer: str


def _offered_chance(decision: Decision) -> float | None:
    """Probability with which something was offered to this customer; None where it was not logged."""
    return None if decision.held_chance is None else (1 - decision.held_chance) * decision.leave


def put_to_customer(decision: Decision) -> list[tuple[Considered, bool]]:
    """The offers of a closed decision that the customer heard of, with whether they took them."""
    outcome = decision.outcome
    if outcome is None:
        return []
    by_id = {considered.offer: considered for considered in decision.considered}
    heard = [(offer, False) for offer in outcome.declined]
    if outcome.offer and outcome.result is not Result.IGNORED:
        heard.append((outcome.offer, outcome.result is Result.ACCEPTED))
    return [(by_id[offer], taken) for offer, taken in heard if offer in by_id]


def _content(row: Row) -> Mapping[str, Any]:
    """What lies in a version's document; of whatever else is in its place that the version failed."""
    content = row.content
    if isinstance(content, dict) and content.get("state") in [state.value for state in ModelState]:
        return content
    return {"state": ModelState.FAILED.value, "failure": "it cannot be read"}


class Versions:
    """Versions of one kind of learned model: made, listed, served, gone back to."""

    #: Its name, which begins the ids; where versions lie, and which one serves.
    name: str
    models: Kind
    serving: Kind
    #: How a server reads a version: (its id, its content). Raises one of `BROKEN`.
    reads: Callable[[str, Mapping[str, Any]], object]

    def __init__(self, shelves: Shelves, store: Store, clock: Clock, kept: int) -> None:
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._kept = kept

    def owns(self, model_id: str) -> bool:
        """Whether an id is one of this kind's."""
        return model_id.startswith(f"{self.name}-")

    def _serving(self) -> Row:
        try:
            return self._shelves.get(self.serving, self.name)
        except NotFound:
            return Row(id=self.name, content={})

    def _info(self, row: Row, serving: Mapping[str, Any]) -> ModelInfo:
        content = _content(row)
        active = serving.get("model") == row.id
        return ModelInfo(
            id=row.id,
            version=row.keys["number"],
            state=ModelState.ACTIVE if active else ModelState(content["state"]),
            failure=content.get("failure", ""),
            example_count=content.get("examples", 0),
            metrics=content.get("metrics") or {},
            created_at=row.created_at or self._clock.now(),
            activated_at=serving.get("since") if active else None,
        )

    def get(self, model_id: str) -> ModelInfo:
        """ModelNotFound."""
        return self._info(self._shelves.get(self.models, model_id), self._serving().content)

    def list(self, limit: int, below: int | None) -> Sequence[ModelInfo]:
        """Newest first."""
        condition = {"number": {"$lt": below}} if below is not None else {}
        rows = self._shelves.find(self.models, condition, limit, order="-number")
        serving = self._serving().content
        return [self._info(row, serving) for row in rows]

    def train(self) -> ModelInfo:
        """Asks the worker for a new version; answers the one that is being made, if any."""
        return retry_conflicts(lambda: self._info(self._next(), self._serving().content))

    def _next(self) -> Row:
        newest = next(iter(self._shelves.find(self.models, {}, 1, order="-number")), None)
        if newest is not None and _content(newest)["state"] == ModelState.TRAINING:
            return newest
        number = newest.keys["number"] + 1 if newest else 1
        row = Row(
            id=f"{self.name}-{number:06}",
            content={"state": ModelState.TRAINING.value},
            keys={"number": number},
        )
        try:
            return self._shelves.insert(self.models, row, self._clock.now())[0]
        except AlreadyExists:
            raise EtagMismatch(resource=f"models/{row.id}") from None

    def asked_for(self) -> bool:
        """Whether somebody asked for a version that is not there."""
        newest = self.newest()
        return newest is not None and _content(newest)["state"] == ModelState.TRAINING

    def newest(self) -> Row | None:
        """The newest version."""
        return next(iter(self._shelves.find(self.models, {}, 1, order="-number")), None)

    def keep(self, content: Mapping[str, Any], metrics: Mapping[str, float], failure: str) -> ModelInfo:
        """Stores what was learned, and lets it serve unless it failed validation or an operator chose another
        version.
        """
        row = retry_conflicts(self._next)
        state = ModelState.FAILED if failure else ModelState.READY
        whole = {**content, "state": state.value, "failure": failure, "metrics": dict(metrics)}
        row = self._shelves.update(self.models, replace(row, content=whole), self._clock.now())
        if state is ModelState.READY and not self._serving().content.get("pinned"):
            self._serve(row.id, pinned=False)
        self._drop()
        return self.get(row.id)

    def _drop(self) -> None:
        serving = self._serving().content
        wanted = {serving.get("model"), *serving.get("earlier", ())[-self._kept :]}
        for row in self._shelves.find(self.models, {}, 200, order="-number")[self._kept :]:
            if row.id not in wanted:
                self._shelves.delete(self.models, row)

    def _serve(self, model_id: str, *, pinned: bool, back: bool = False) -> None:
        def attempt() -> None:
            row, now = self._serving(), self._clock.now()
            before = row.content.get("model", "")
            earlier = list(row.content.get("earlier", ()))
            if back:
                earlier = earlier[:-1]
            elif before and before != model_id:
                earlier = [*earlier, before][-EARLIER_MAX:]
            content = {"model": model_id, "earlier": earlier, "since": now, "pinned": pinned}
            events = () if before == model_id else (convert.model_event(model_id, before, back, now),)
            if row.version:
                self._shelves.update(self.serving, replace(row, content=content), now, events)
            else:
                self._shelves.insert(self.serving, replace(row, content=content), now, events)

        retry_conflicts(attempt)

    def _check(self, row: Row) -> None:
        """ModelNotReady for a version that no server could read: what serves would go on, and nobody know."""
        try:
            self.reads(row.id, row.content)
        except BROKEN as error:
            raise ModelNotReady(subject=f"models/{row.id}", why=str(error)) from None

    def activate(self, model_id: str) -> ModelInfo:
        """Lets a version serve; any but the newest stays until another is activated. ModelNotFound,
        ModelNotReady.
        """
        row = self._shelves.get(self.models, model_id)
        if (state := _content(row)["state"]) != ModelState.READY:
            raise ModelNotReady(subject=f"models/{model_id}", why=f"it is {state}")
        self._check(row)
        newest = self._shelves.find(self.models, {}, 1, order="-number")[0]
        self._serve(model_id, pinned=newest.id != model_id)
        return self.get(model_id)

    def rollback(self) -> ModelInfo:
        """Back to the version that served before; it stays until another is activated. NoEarlierModel,
        ModelNotReady.
        """
        earlier = self._serving().content.get("earlier", ())
        if not earlier:
            raise NoEarlierModel(subject="models", why="no version served before the present one")
        self._check(self._shelves.get(self.models, earlier[-1]))
        self._serve(earlier[-1], pinned=True, back=True)
        return self.get(earlier[-1])


class Propensities(Versions):
    """Versions of the propensity model."""

    name = PROPENSITY
    models = PROPENSITY_MODELS
    serving = PROPENSITY_SERVING
    reads = staticmethod(propensity_from_content)

    def due(self) -> bool:
        """Whether somebody asked for a version, or outcomes came since the newest one."""
        newest = self.newest()
        if self.asked_for():
            return True
        closed = self._store.decisions(DecisionFilter(open=False), 1, None)
        if not closed:
            return False
        return newest is None or self._closed_count() != _content(newest).get("closed")

    def _closed_count(self) -> int:
        return self._store.closed_count()

    def closed(self) -> Sequence[Decision]:
        """The newest closed decisions, oldest first."""
        return self._newest(DecisionFilter(open=False))[::-1]

    def _newest(self, query: DecisionFilter) -> Sequence[Decision]:
        found: deque[Decision] = deque()
        while len(found) < DECISIONS_MAX:
            page = self._store.decisions(query, DECISIONS_PAGE, found[-1].id if found else None)
            found += page
            if len(page) < DECISIONS_PAGE:
                break
        return tuple(found)[:DECISIONS_MAX]

    def keep_learned(self, learned: Any, examples: int, closed: int) -> ModelInfo:
        """Stores what was learned (`learning.offers.Learned`)."""
        weights = [[name, weight] for name, weight in learned.weights.items()]
        content = {"weights": weights, "examples": examples, "closed": closed}
        return self.keep(content, learned.metrics, learned.failure)

    def propensity(self, model_id: str) -> Propensity:
        """A version, or with "" the one that serves, as it would be asked. ModelNotFound, ModelNotReady."""
        wanted = model_id or self._serving().content.get("model", "")
        content = self._shelves.get(self.models, wanted).content if wanted else {}
        try:
            return propensity_from_content(wanted, content)
        except BROKEN as error:
            raise ModelNotReady(subject=f"models/{wanted}", why=str(error)) from None


class Uplifts(Versions):
    """Versions of the uplift model."""

    name = UPLIFT
    models = UPLIFT_MODELS
    serving = UPLIFT_SERVING
    reads = staticmethod(uplift_from_content)

    def due(self) -> bool:
        """Whether somebody asked for a version, or the newest is old and there is enough to learn from."""
        return self.asked_for() or (
            _old(self.newest(), self._clock) and self._store.closed_count() >= DUE_MIN
        )

    def examples(self) -> Sequence[UpliftExample]:
        """Of decisions that are `UPLIFT_DAYS` old, oldest first."""
        until = self._clock.now() - timedelta(days=UPLIFT_DAYS)
        found: list[UpliftExample] = []
        for page in decisions_within(self._store, from_ms(0), until, DECISIONS_MAX):
            for decision, taken in zip(page, taken_after(self._store, page), strict=True):
                # Whom the model left alone is compared with those it let through, if it is known how many.
                known = decision.held_chance is not None or decision.holdout or bool(decision.offers)
                if decision.considered and decision.customer and known:
                    found.append(
                        UpliftExample(
                            traits=decision.traits,
                            offered=bool(decision.offers),
                            chance=_offered_chance(decision),
                            took=bool(taken),
                            customer=decision.customer,
                        )
                    )
        return found[::-1]


class Churns(Versions):
    """Versions of the churn model."""

    name = CHURN
    models = CHURN_MODELS
    serving = CHURN_SERVING
    reads = staticmethod(churn_from_content)

    def due(self) -> bool:
        """Whether somebody asked for a version, or the newest is old and there is enough to learn from."""
        return self.asked_for() or (
            _old(self.newest(), self._clock) and self._store.customer_count() >= DUE_MIN
        )

    def examples(self) -> Sequence[tuple[tuple[str, ...], bool]]:
        """(traits, whether they are leaving) of a sample of the customers."""
        now = self._clock.now()
        return [
            (churn_traits(profile, now), profile.wants_to_leave or LOST_TAG in profile.tags)
            for profile in self._store.sample(CUSTOMERS_SAMPLED_MAX)
        ]


def _old(newest: Row | None, clock: Clock) -> bool:
    return newest is None or newest.created_at is None or clock.now() - newest.created_at >= RELEARN


class Policies:
    """The policy in force, and how others would have done."""

    def __init__(
        self, shelves: Shelves, store: Store, clock: Clock, propensities: Propensities, default: Policy
    ) -> None:
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._propensities = propensities
        self._default = default

    def get(self) -> Policy:
        """The policy; the settings' one until another is set."""
        try:
            row = self._shelves.get(POLICIES, DEFAULT_POLICY)
        except NotFound:
            return self._default
        return policy_from_content(row.content, row.version)

    def update(self, expected_version: int | None, change: Callable[[Policy], Policy]) -> Policy:
        """EtagMismatch, and what `change` raises."""

        def attempt() -> Policy:
            present, now = self.get(), self._clock.now()
            if expected_version is not None and expected_version != present.version:
                raise EtagMismatch(resource=f"policies/{present.id}")
            wanted = replace(change(present), updated_at=now)
            row = Row(id=DEFAULT_POLICY, content=policy_content(wanted), version=present.version)
            if present.version:
                stored = self._shelves.update(POLICIES, row, now)
            else:
                try:
                    stored, _ = self._shelves.insert(POLICIES, row, now)
                except AlreadyExists:
                    raise EtagMismatch(resource=f"policies/{present.id}") from None
            return policy_from_content(stored.content, stored.version)

        return retry_conflicts(attempt, 1 if expected_version is not None else 5)

    def evaluate(self, policy: Policy, model_id: str, start: datetime, end: datetime) -> Evaluation:
        """Judges a policy by the log of a span, or its newest `JUDGED_MAX` decisions. TooFewDecisions,
        ModelNotFound, ModelNotReady.
        """
        propensity = self._propensities.propensity(model_id)
        log: list[Logged] = []
        arms: list[Treated] = []
        examined = 0
        oldest: tuple[datetime, str] | None = None
        # Of a batch that much is kept: the decisions of a long span are gigabytes.
        for page in decisions_within(self._store, start, end, JUDGED_MAX):
            examined += len(page)
            oldest = (page[-1].created_at, page[-1].id)
            log += [
                logged(decision, policy, propensity)
                for decision in page
                if decision.outcome is not None and decision.considered and decision.offers
            ]
            arms += [
                _treated(decision, taken)
                for decision, taken in zip(page, taken_after(self._store, page), strict=True)
                if decision.considered and decision.customer
            ]
        if len(log) < JUDGED_MIN:
            raise TooFewDecisions(
                subject=f"policies/{policy.id}", why=f"needs {JUDGED_MIN} closed decisions, has {len(log)}"
            )
        return Evaluation(
            comparison=compare(log),
            uplift=uplift(arms),
            qini=qini(arms),
            count=len(log),
            examined=examined,
            truncated=examined >= JUDGED_MAX and bool(self._store.decisions_made(start, end, 1, oldest)),
        )


def _treated(decision: Decision, taken: Collection[str]) -> Treated:
    """What the customer took of what was looked at. All that was not held out is compared, those included
    whom the uplift model left alone: what the policy in force was worth.
    """
    worth = {considered.product: considered.worth for considered in decision.considered}
    return Treated(
        customer=decision.customer,
        offered=not decision.holdout,
        chance=None if decision.held_chance is None else 1 - decision.held_chance,
        value=sum(worth[product] for product in taken),
        predicted=decision.considered[0].probability * decision.considered[0].worth,
    )


def logged(decision: Decision, policy: Policy, propensity: Propensity) -> Logged:
    """A closed decision as another policy, maybe with another model, sees it. With the model that was asked
    then the candidates stand as they stood: new offers at the end, whatever is expected of them.
    """
    first = decision.offers[0].offer
    asked = decision.model if decision.model.startswith(f"{PROPENSITY}-") else ""

    def expected(considered: Considered) -> float:
        if asked == propensity.model:
            return considered.probability * considered.worth
        chance = corrected(propensity, considered.offer, decision.traits, considered.base)
        return chance * considered.worth

    order = list(decision.considered)
    if asked != propensity.model:
        order.sort(key=lambda considered: (-expected(considered), considered.offer))
    least = policy.expected_value_min
    order = [one for one in order if least is None or expected(one) >= float(least.amount)]
    chances = dict(zip([one.offer for one in order], first_chances(policy, len(order), 10**9), strict=True))
    shown = next((one for one in decision.considered if one.offer == first), None)
    heard = put_to_customer(decision)
    return Logged(
        chance=decision.propensity,
        target=chances.get(first, 0.0),
        reward=sum(one.worth for one, taken in heard if taken),
        expected=expected(shown) if shown else 0.0,
        expected_target=sum(chances[one.offer] * expected(one) for one in order),
        spread=spread_of(
            (one.chance, chances[one.offer], expected(one) / one.worth if one.worth else 0.0, one.worth)
            for one in order
        ),
    )


__all__ = ["Evaluation", "ModelNotFound", "Policies", "Propensities", "TooFewDecisions", "put_to_customer"]
