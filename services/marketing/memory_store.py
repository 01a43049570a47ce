"""The store in memory: for tests and for trying things out. Both ports, in the order of the modules that say
them (store.py), under one lock.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from msgspec import structs

from chassis.bus.event import Event, Told
from chassis.errors import AlreadyExists, EtagMismatch
from chassis.idempotency import check_repeat
from marketing import kin
from marketing.association import RuleTable, Smoothing
from marketing.decision_figures import TIME, Acceptance, Offered, acceptance_of, quarter, values_of
from marketing.decision_store import DecisionFilter
from marketing.engine import (
    ClaimsPending,
    DecisionNotFound,
    ModelNotFound,
    OfferNotFound,
    OfferSoldOut,
    check_supply,
)
from marketing.history_store import PRODUCTS_OF_CUSTOMER_MAX
from marketing.kin import MERGE_HOPS_MAX
from marketing.kinds import (
    EFFECTS,
    POLICIES,
    PROPENSITY_MODELS,
    PROPENSITY_SERVING,
    RESPONSES,
    policy_from_content,
    propensity_from_content,
)
from marketing.model import (
    CARE_MAX,
    Complaint,
    Decision,
    ModelInfo,
    ModelState,
    Offer,
    OfferState,
    Profile,
    Purchase,
)
from marketing.model_store import EARLIER_MAX, Serving
from marketing.offer_store import CLAIMS_MAX, Claim, OfferFilter
from marketing.policy import Policy
from marketing.propensity import Propensity
from marketing.reader import PUBLISHED_MAX, Pending, Standing
from marketing.sale_store import Sale
from marketing.shelf import MemoryShelves
from marketing.survey_store import Span, SurveyCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    claim: Claim
    cost: Decimal
    at: datetime


def _placed(complaint: Complaint, owner: str) -> Complaint:
    """A complaint under whose it is now."""
    whose = complaint.whose
    return replace(complaint, customer=owner, made_for="" if whose == owner else whose)


class MemoryStore:
    """`events` holds what was stored to be published, in order."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        #: The shelves beside, with the policy and the propensity models.
        self.shelves = MemoryShelves()
        self._offers: dict[str, Offer] = {}
        self._revisions: dict[str, dict[int, Offer]] = {}
        self._claims: dict[str, dict[str, _Taken]] = {}
        self._decisions: dict[str, Decision] = {}
        self._requests: dict[str, tuple[str, str | None]] = {}
        self._profiles: dict[str, Profile] = {}
        self._moved_at: dict[str, datetime] = {}
        #: Into whom customers are merged.
        self._merged_into: dict[str, str] = {}
        self._erased: set[str] = set()
        self._leave_times: dict[str, datetime] = {}
        self._risk_times: dict[str, datetime] = {}
        self._complaints: dict[str, Complaint] = {}
        #: Sales of campaigns, which keep their people elsewhere.
        self.campaign_sales: list[Sale] = []
        #: When they were made, by place and token of the claim.
        self.campaign_claims: dict[tuple[str, str], datetime] = {}
        #: By purchase id: (who bought it, the purchase under whose it is now).
        self._purchases: dict[str, tuple[str, Purchase]] = {}
        self._models: dict[str, tuple[ModelInfo, Smoothing]] = {}
        self._tables: dict[str, RuleTable] = {}
        self._serving = Serving()
        self._changes = 0
        self.events: list[Event] = []

    # offers

    def insert_offer(
        self, offer: Offer, events: Sequence[Event], *, request_key: str | None, fingerprint: str | None
    ) -> tuple[Offer, bool]:
        """As the port says."""
        with self._lock:
            if request_key is not None and request_key in self._requests:
                offer_id, earlier = self._requests[request_key]
                check_repeat(earlier, fingerprint)
                return self.offer(offer_id), False
            if offer.id in self._offers:
                raise AlreadyExists(resource=f"offers/{offer.id}", conflict="_id")
            stored = replace(offer, version=1, updated_at=offer.created_at)
            self._offers[offer.id] = stored
            if request_key is not None:
                self._requests[request_key] = (offer.id, fingerprint)
            self.events.extend(events)
            return stored, True

    def offer(self, offer_id: str) -> Offer:
        """As the port says."""
        with self._lock:
            if offer_id not in self._offers:
                raise OfferNotFound(resource=f"offers/{offer_id}")
            return self._offers[offer_id]

    def offers(self, query: OfferFilter, limit: int, after: str | None) -> list[Offer]:
        """As the port says."""
        with self._lock:
            found = [self._offers[id] for id in sorted(self._offers) if after is None or id > after]
            return [offer for offer in found if query.holds(offer)][:limit]

    def update_offer(self, offer: Offer, events: Sequence[Event], now: datetime) -> Offer:
        """As the port says."""
        with self._lock:
            present = self.offer(offer.id)
            if present.version != offer.version:
                raise EtagMismatch(resource=f"offers/{offer.id}")
            stored = replace(
                offer,
                version=offer.version + 1,
                updated_at=now,
                units_used=present.units_used,
                budget_used=present.budget_used,
            )
            check_supply(stored)
            self._revisions.setdefault(offer.id, {})[present.version] = present
            self._offers[offer.id] = stored
            self.events.extend(events)
            return stored

    def delete_offer(self, offer: Offer) -> None:
        """As the port says."""
        with self._lock:
            if self.offer(offer.id).version != offer.version:
                raise EtagMismatch(resource=f"offers/{offer.id}")
            del self._offers[offer.id]
            self._revisions.pop(offer.id, None)
            self._claims.pop(offer.id, None)

    def revisions(self, offer_id: str, limit: int, below: int | None) -> list[Offer]:
        """As the port says."""
        with self._lock:
            present = self.offer(offer_id)
            every = {**self._revisions.get(offer_id, {}), present.version: present}
            return [every[v] for v in sorted(every, reverse=True) if below is None or v < below][:limit]

    # supply

    def claim_unit(self, claim: Claim, real_now: datetime) -> None:
        """As the port says."""
        with self._lock:
            offer = self.offer(claim.offer)
            claims = self._claims.setdefault(claim.offer, {})
            if offer.sold_out:
                raise OfferSoldOut(subject=f"offers/{claim.offer}", why="its stock or budget is used up")
            if len(claims) >= CLAIMS_MAX:
                raise ClaimsPending(subject=f"offers/{claim.offer}", retry_seconds=1.0)
            cost = offer.unit_cost.amount if offer.unit_cost else Decimal(0)
            claims[claim.token] = _Taken(claim=claim, cost=cost, at=real_now)
            self._use(offer, 1, cost)

    def _use(self, offer: Offer, units: int, cost: Decimal) -> None:
        self._offers[offer.id] = replace(
            offer, units_used=offer.units_used + units, budget_used=offer.budget_used + cost
        )

    def settle_claim(self, offer_id: str, token: str) -> None:
        """As the port says."""
        with self._lock:
            self._claims.get(offer_id, {}).pop(token, None)

    def release_claim(self, offer_id: str, token: str) -> None:
        """As the port says."""
        with self._lock:
            taken = self._claims.get(offer_id, {}).pop(token, None)
            if taken is not None:
                self._use(self._offers[offer_id], -1, -taken.cost)

    def stale_claims(self, before: datetime, limit: int) -> list[Claim]:
        """As the port says."""
        with self._lock:
            stale = [[t.claim for t in claims.values() if t.at < before] for claims in self._claims.values()]
            return [claim for claims in [c for c in stale if c][:limit] for claim in claims]

    # decisions

    def decision(self, decision_id: str) -> Decision:
        """As the port says."""
        with self._lock:
            if decision_id not in self._decisions:
                raise DecisionNotFound(resource=f"decisions/{decision_id}")
            return self._decisions[decision_id]

    def decisions(self, query: DecisionFilter, limit: int, below: str | None) -> list[Decision]:
        """As the port says."""
        with self._lock:
            ids = sorted((id for id in self._decisions if below is None or id < below), reverse=True)
            return [d for id in ids if query.holds(d := self._decisions[id])][:limit]

    def decisions_made(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Decision]:
        """As the port says."""
        with self._lock:
            made = [
                d
                for d in self._decisions.values()
                if start <= d.created_at < end and (after is None or (d.created_at, d.id) < after)
            ]
            return sorted(made, key=lambda d: (d.created_at, d.id), reverse=True)[:limit]

    def made_count(self, start: datetime, end: datetime, most: int) -> int:
        """As the port says."""
        with self._lock:
            return min(most, sum(start <= d.created_at < end for d in self._decisions.values()))

    def offered(self, start: datetime, end: datetime, by: Collection[str]) -> Iterator[Offered]:
        """As the port says."""
        counts: Counter[tuple[datetime | None, tuple[tuple[str, str], ...]]] = Counter()
        with self._lock:
            for made in self._decisions.values():
                if made.offers and start <= made.created_at < end:
                    at = quarter(made.created_at) if TIME in by else None
                    counts[at, tuple((k, v) for k, v in values_of(made).items() if k in by)] += 1
        return (Offered(at=at, values=dict(values), count=count) for (at, values), count in counts.items())

    def accepted(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Acceptance]:
        """As the port says."""
        with self._lock:
            every = [one for d in self._decisions.values() if (one := acceptance_of(d)) is not None]
        found = [a for a in every if start <= a.at < end and (after is None or (a.at, a.decision) < after)]
        return sorted(found, key=lambda a: (a.at, a.decision), reverse=True)[:limit]

    def closed_count(self) -> int:
        """As the port says."""
        with self._lock:
            return sum(d.outcome is not None for d in self._decisions.values())

    def close_decision(self, decision: Decision, events: Sequence[Event]) -> Decision:
        """As the port says."""
        with self._lock:
            stored = self._bump(decision)
            self.events.extend(events)
            return stored

    def _bump(self, decision: Decision) -> Decision:
        if self.decision(decision.id).version != decision.version:
            raise EtagMismatch(resource=f"decisions/{decision.id}")
        stored = structs.replace(decision, version=decision.version + 1)
        self._decisions[decision.id] = stored
        return stored

    def touch_decision(self, decision: Decision) -> None:
        """As the port says."""
        with self._lock:
            self._bump(decision)

    def mark_settled(self, decision_id: str) -> None:
        """As the port says."""
        with self._lock:
            found = self._decisions.get(decision_id)
            if found is not None:
                self._decisions[decision_id] = structs.replace(found, unsettled=False)

    def unsettled(self, limit: int) -> list[Decision]:
        """As the port says."""
        with self._lock:
            return [d for id in sorted(self._decisions) if (d := self._decisions[id]).unsettled][:limit]

    def forget_strangers(self, before: datetime, limit: int) -> int:
        """As the port says."""
        with self._lock:
            old = [
                decision
                for decision in self._decisions.values()
                if decision.number and not decision.customer and decision.created_at < before
            ][:limit]
            for decision in old:
                outcome = replace(decision.outcome, note="") if decision.outcome else None
                hidden = structs.replace(decision, number="", outcome=outcome, version=decision.version + 1)
                self._decisions[decision.id] = hidden
            return len(old)

    # history

    def add_purchases(self, purchases: Sequence[Purchase], now: datetime) -> int:
        """As the port says."""
        with self._lock:
            new = 0
            for purchase in purchases:
                if purchase.id in self._purchases:
                    continue
                if purchase.customer in self._erased:
                    continue
                owner = self._owner(purchase.customer)
                self._purchases[purchase.id] = (purchase.customer, replace(purchase, customer=owner))
                self._have(owner, {purchase.product: purchase.at}, now)
                new += 1
            self._changes += new
            return new

    def _have(self, customer: str, products: Mapping[str, datetime], now: datetime | None) -> None:
        profile = self._profiles.get(customer, Profile(customer=customer))
        if len(profile.products) < PRODUCTS_OF_CUSTOMER_MAX:
            bought = dict(profile.bought_at)
            for product, at in products.items():
                bought[product] = max(at, bought.get(product, at))
            profile = structs.replace(profile, products=profile.products | products.keys(), bought_at=bought)
            profile = structs.replace(profile, updated_at=now or profile.updated_at)
        self._profiles[customer] = profile

    def purchases(self, customer: str, limit: int, after: tuple[datetime, str] | None) -> list[Purchase]:
        """As the port says."""
        with self._lock:
            mine = [p for _, p in self._purchases.values() if p.customer == customer]
            mine.sort(key=lambda p: (p.at, p.id), reverse=True)
            return [p for p in mine if after is None or (p.at, p.id) < after][:limit]

    def purchases_within(
        self, customers: Sequence[str], start: datetime, end: datetime
    ) -> Iterator[tuple[str, str, datetime]]:
        """As the port says."""
        with self._lock:
            wanted = set(customers)
            found = [p for _, p in self._purchases.values() if p.customer in wanted and start <= p.at < end]
        return iter([(p.customer, p.product, p.at) for p in found])

    def history_changes(self) -> int:
        """As the port says."""
        with self._lock:
            return self._changes

    def baskets(self) -> Iterator[list[str]]:
        """As the port says."""
        with self._lock:
            found = [sorted(self._profiles[id].products) for id in sorted(self._profiles)]
        return iter([basket for basket in found if basket])

    def _bought(self, customer: str) -> dict[str, datetime]:
        found: dict[str, datetime] = {}
        for _, purchase in self._purchases.values():
            if purchase.customer == customer:
                found[purchase.product] = max(purchase.at, found.get(purchase.product, purchase.at))
        return found

    def _take(self, holder: str, products: Iterable[str]) -> None:
        """Leaves of these products what purchases of the holder's tell."""
        left = self._bought(holder)
        lost = set(products) - left.keys()
        if holder in self._profiles:
            kept = self._profiles[holder]
            bought = {product: at for product, at in kept.bought_at.items() if product not in lost}
            bought |= {product: left[product] for product in products if product in left}
            self._profiles[holder] = structs.replace(kept, products=kept.products - lost, bought_at=bought)

    # profiles

    def profile(self, customer: str) -> Profile | None:
        """As the port says."""
        with self._lock:
            found = self._profiles.get(customer)
            return found if found is None else self._whole(found)

    def survivors(self, customers: Sequence[str]) -> dict[str, Profile]:
        """As the port says."""
        with self._lock:
            found = {customer: self.profile(self._owner(customer)) for customer in customers}
            return {customer: profile for customer, profile in found.items() if profile is not None}

    def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        with self._lock:
            owners = [p for p in self._profiles.values() if number in p.numbers and p.alive]
            return max(owners, key=lambda p: p.updated_at.timestamp() if p.updated_at else 0.0, default=None)

    def owners(self, numbers: Sequence[str]) -> dict[str, Profile]:
        """As the port says."""
        found = {number: self.profile_of_number(number) for number in numbers}
        return {number: profile for number, profile in found.items() if profile is not None}

    def customer_count(self) -> int:
        """As the port says."""
        with self._lock:
            return len(self._profiles)

    def sample(self, limit: int) -> list[Profile]:
        """As the port says."""
        with self._lock:
            return [self._whole(profile) for profile in self._profiles.values() if profile.alive][:limit]

    def save_profile(self, profile: Profile) -> bool:
        """As the port says."""
        with self._lock:
            present = self._profiles.get(profile.customer)
            if present is not None and present.crm_version >= profile.crm_version:
                return False
            if profile.customer in self._erased:
                return False
            kept = present or Profile(customer=profile.customer)
            self._profiles[profile.customer] = structs.replace(
                profile,
                products=kept.products,
                bought_at=kept.bought_at,
                wants_to_leave=kept.wants_to_leave,
                churn_risk=kept.churn_risk,
                care=kept.care,
                opted_out_at=kept.opted_out_at,
                complaint_closed_at=kept.complaint_closed_at,
                merged_into=profile.merged_into or kept.merged_into,
            )
            return True

    def _whole(self, profile: Profile) -> Profile:
        """With what is said of those who were merged into them."""
        raw = self._words(profile.customer)
        if not raw["brought"]:
            return profile
        said = kin.joined(raw)
        return structs.replace(
            profile,
            absorbed=kin.absorbed(raw),
            wants_to_leave=said["wants_to_leave"],
            churn_risk=said["churn_risk"],
            care={item["task"]: item["kind"] for item in said["care"]},
            opted_out_at=said["opted_out_at"],
            complaint_closed_at=said["complaint_closed_at"],
        )

    def _words(self, customer: str) -> dict[str, Any]:
        """What is said of a customer, as kin.py wants it."""
        own = self._profiles.get(customer, Profile(customer=customer))
        below = {one: self._words(one) for one, into in self._merged_into.items() if into == customer}
        return {
            "wants_to_leave": own.wants_to_leave,
            "leave_at": self._leave_times.get(customer),
            "churn_risk": own.churn_risk,
            "risk_at": self._risk_times.get(customer),
            "care": [{"task": task, "kind": kind} for task, kind in own.care.items()],
            "opted_out_at": own.opted_out_at,
            "complaint_closed_at": own.complaint_closed_at,
            "brought": [
                {"from": one, "all": [one, *kin.absorbed(words)], **kin.joined(words)}
                for one, words in below.items()
            ],
        }

    # what is said of them

    def save_leave_intent(self, customer: str, wants_to_leave: bool, at: datetime) -> None:
        """As the port says."""
        with self._lock:
            if customer in self._erased or self._leave_times.get(customer, at) > at:
                return
            self._leave_times[customer] = at
            present = self._profiles.get(customer, Profile(customer=customer))
            self._profiles[customer] = structs.replace(present, wants_to_leave=wants_to_leave)

    def save_churn_risk(self, customer: str, score: float, at: datetime) -> None:
        """As the port says."""
        with self._lock:
            if customer in self._erased or self._risk_times.get(customer, at) > at:
                return
            self._risk_times[customer] = at
            present = self._profiles.get(customer, Profile(customer=customer))
            self._profiles[customer] = structs.replace(present, churn_risk=score)

    def save_care(self, customer: str, task: str, kind: str) -> None:
        """As the port says."""
        with self._lock:
            present = self._profiles.get(customer, Profile(customer=customer))
            if customer in self._erased or (kind and task in present.care):
                return
            others = [(id, said) for id, said in present.care.items() if id != task]
            newest = dict([*others, (task, kind)][-CARE_MAX:])
            self._profiles[customer] = structs.replace(present, care=newest)

    # merges

    def merge(self, absorbed: str, survivor: str, at: datetime) -> None:
        """As the port says."""
        with self._lock:
            if not self._move(absorbed, at, survivor):
                return
            gone = self._profiles.get(absorbed, Profile(customer=absorbed))
            self._profiles[absorbed] = structs.replace(
                gone, merged_into=survivor, alive=False, products=frozenset(), bought_at={}
            )
            self._profiles.setdefault(survivor, Profile(customer=survivor))
            owner = self._settle_owner(absorbed)
            if products := self._bought(owner):
                self._have(owner, products, None)

    def unmerge(self, restored: str, survivor: str, at: datetime) -> None:
        """As the port says."""
        with self._lock:
            if not self._move(restored, at, ""):
                return
            back = self._profiles.get(restored, Profile(customer=restored))
            self._profiles[restored] = structs.replace(back, merged_into="", alive=True)
            self._settle_owner(restored)
            own = self._bought(restored)
            self._have(restored, own, None)
            self._take(self._owner(survivor), own)

    def _move(self, customer: str, at: datetime, survivor: str) -> bool:
        if customer in self._erased or self._moved_at.get(customer, at) > at:
            return False
        self._moved_at[customer] = at
        self._merged_into.pop(customer, None)
        if survivor:
            self._merged_into[customer] = survivor
        return True

    def _owner(self, customer: str) -> str:
        for _ in range(MERGE_HOPS_MAX):
            profile = self._profiles.get(customer)
            if profile is None or not profile.merged_into:
                break
            customer = profile.merged_into
        return customer

    def _settle_owner(self, customer: str) -> str:
        """Puts purchases, decisions and complaints under whose they are now."""
        owner = self._owner(customer)
        self._settle(owner, {customer, *kin.absorbed(self._words(customer))})
        return owner

    def _settle(self, owner: str, below: set[str]) -> None:
        for id, (buyer, purchase) in self._purchases.items():
            if buyer in below:
                self._purchases[id] = (buyer, replace(purchase, customer=owner))
        for id, decision in self._decisions.items():
            whose = decision.made_for or decision.customer
            if whose in below and decision.customer != owner:
                made_for = "" if whose == owner else whose
                moved = structs.replace(
                    decision, customer=owner, made_for=made_for, version=decision.version + 1
                )
                self._decisions[id] = moved
        for ticket, complaint in self._complaints.items():
            if complaint.whose in below:
                self._complaints[ticket] = _placed(complaint, owner)

    # erasure

    def erase(self, customer: str) -> None:
        """As the port says."""
        with self._lock:
            self._erased.add(customer)
            holder = self._owner(customer)
            self._settle(customer, {customer, *kin.absorbed(self._words(customer))})
            if holder != customer:
                self._take(holder, self._bought(customer))
            self._purchases = {
                id: (buyer, p) for id, (buyer, p) in self._purchases.items() if buyer != customer
            }
            for decision in list(self._decisions.values()):
                if customer == (decision.made_for or decision.customer):
                    outcome = replace(decision.outcome, note="") if decision.outcome else None
                    nobodys = structs.replace(decision, customer="", number="", made_for="", outcome=outcome)
                    self._decisions[decision.id] = structs.replace(nobodys, version=decision.version + 1)
            for ticket, complaint in self._complaints.items():
                if complaint.whose == customer:
                    self._complaints[ticket] = replace(complaint, customer="", number="", made_for="")
            self._merged_into.pop(customer, None)
            self._leave_times.pop(customer, None)
            self._risk_times.pop(customer, None)
            if customer in self._profiles:
                kept = self._profiles[customer]
                self._profiles[customer] = Profile(
                    customer=customer,
                    alive=False,
                    crm_version=kept.crm_version,
                    updated_at=kept.updated_at,
                )

    def erased(self, customers: Sequence[str]) -> set[str]:
        """As the port says."""
        with self._lock:
            return self._erased & set(customers)

    # complaints

    def save_complaint(self, complaint: Complaint) -> bool:
        """As the port says."""
        with self._lock:
            present = self._complaints.get(complaint.ticket)
            if present is not None and present.version >= complaint.version:
                return False
            if present is not None and present.customer == complaint.customer:
                complaint = replace(complaint, made_for=present.made_for)
            if not complaint.open:
                complaint = replace(complaint, number="")
            if complaint.whose in self._erased:
                complaint = replace(complaint, customer="", number="", made_for="")
            self._complaints[complaint.ticket] = _placed(complaint, self._owner(complaint.whose))
            known = self._profiles.get(complaint.whose)
            if known is not None and not complaint.open and complaint.at is not None:
                closed = max(complaint.at, known.complaint_closed_at or complaint.at)
                self._profiles[known.customer] = structs.replace(known, complaint_closed_at=closed)
            return True

    def close_complaint(self, ticket: str) -> None:
        """As the port says."""
        with self._lock:
            if ticket in self._complaints:
                self._complaints[ticket] = replace(self._complaints[ticket], open=False, number="")

    def open_complaints(self, customer: str, limit: int, number: str = "") -> list[Complaint]:
        """As the port says."""
        with self._lock:
            known = [c for c in self._complaints.values() if c.open]
            return [c for c in known if customer == c.customer != "" or number == c.number != ""][:limit]

    # campaigns' sales

    def touch_days(self, prefix: str, start: datetime, end: datetime) -> list[tuple[datetime, str, int]]:
        """As the port says: campaigns keep no touches in memory."""
        return []

    def sales(self, start: datetime, end: datetime, limit: int) -> list[Sale]:
        """As the port says, of what was put into `campaign_sales`."""
        return [sale for sale in self.campaign_sales if start <= sale.at < end][:limit]

    def end_sale(self, place: str, token: str) -> datetime | None:
        """As the port says, of what was put into `campaign_claims`."""
        return self.campaign_claims.get((place, token))

    # surveys

    def survey_counts(self, survey: str, span: Span | None, most: int) -> SurveyCounts:
        """As the port says."""
        wanted: dict[str, Any] = {"survey": survey}
        if span is not None:
            wanted["completed_at"] = {"$gte": span[0], "$lt": span[1]}
        rows = self.shelves.find(RESPONSES, wanted, sys.maxsize, order="-_id")
        if span is not None:
            rows.sort(key=lambda row: row.keys["completed_at"], reverse=True)
        looked = [row.content["resource"] for row in rows[:most]]
        done = [response for response in looked if response.get("completed")]
        scores = [response["satisfaction"] for response in done if "satisfaction" in response]
        answers = [answer for response in done for answer in response.get("answers", ())]
        return SurveyCounts(
            started=len(looked),
            completed=len(done),
            truncated=len(rows) > most,
            satisfaction=sum(scores) / len(scores) if scores else None,
            choices=Counter((a["question_id"], id) for a in answers for id in a.get("choice_ids", ())),
            values=Counter((a["question_id"], a.get("value", 0)) for a in answers),
        )

    # models

    def model(self, model_id: str) -> ModelInfo:
        """As the port says."""
        with self._lock:
            if model_id not in self._models:
                raise ModelNotFound(resource=f"models/{model_id}")
            return self._shown(self._models[model_id][0])

    def _shown(self, info: ModelInfo) -> ModelInfo:
        if info.id != self._serving.model:
            return info
        return replace(info, state=ModelState.ACTIVE, activated_at=self._serving.since)

    def models(self, limit: int, below: int | None) -> list[ModelInfo]:
        """As the port says."""
        with self._lock:
            every = sorted((info for info, _ in self._models.values()), key=lambda info: -info.version)
            return [self._shown(info) for info in every if below is None or info.version < below][:limit]

    def save_model(self, info: ModelInfo, smoothing: Smoothing) -> None:
        """As the port says."""
        with self._lock:
            for other, _ in self._models.values():
                if other.version == info.version and other.id != info.id:
                    raise AlreadyExists(resource=f"models/{info.id}", conflict="number")
            state = ModelState.READY if info.state is ModelState.ACTIVE else info.state
            self._models[info.id] = (replace(info, state=state, activated_at=None), smoothing)

    def save_table(self, table: RuleTable) -> None:
        """As the port says."""
        with self._lock:
            self._tables[table.model] = table

    def table(self, model_id: str) -> RuleTable:
        """As the port says."""
        with self._lock:
            if model_id not in self._models or model_id not in self._tables:
                raise ModelNotFound(resource=f"models/{model_id}")
            info, _ = self._models[model_id]
            table = self._tables[model_id]
            if (table.facts, table.rules) != (info.example_count, info.rule_count):
                raise ModelNotFound(resource=f"models/{model_id}")
            return table

    def drop_models(self, keep: int) -> int:
        """As the port says."""
        with self._lock:
            wanted = {self._serving.model, *self._serving.earlier[-keep:]}
            newest = [info.id for info in self.models(len(self._models), None)]
            gone = [id for id in newest[keep : keep + 100] if id not in wanted]
            for id in gone:
                del self._models[id]
                self._tables.pop(id, None)
            return len(gone)

    def serving(self) -> Serving:
        """As the port says."""
        with self._lock:
            return self._serving

    def serve_model(self, serving: Serving, events: Sequence[Event], now: datetime) -> Serving:
        """As the port says."""
        with self._lock:
            if serving.version != self._serving.version:
                raise EtagMismatch(resource="serving/association")
            self._serving = replace(
                serving, version=serving.version + 1, earlier=serving.earlier[-EARLIER_MAX:]
            )
            self.events.extend(events)
            return self._serving

    # the reader's port

    async def read_profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        with self._lock:
            owners = [p for p in self._profiles.values() if number in p.numbers]
            found = max(owners, key=lambda p: p.updated_at.timestamp() if p.updated_at else 0.0, default=None)
            return None if found is None else self.profile(self._owner(found.customer))

    async def read_standing(self, customer: str, number: str, since: datetime | None) -> Standing:
        """As the port says."""
        with self._lock:
            complaining = any(
                c.open and ((customer and c.customer == customer) or (number and c.number == number))
                for c in self._complaints.values()
            )
            mine = [d for d in self._decisions.values() if customer and d.customer == customer and d.offers]
            return Standing(
                profile=self.profile(self._owner(customer)) if customer else None,
                complaining=complaining,
                made=[d.contact.call_id for d in mine if since is not None and d.created_at >= since],
            )

    async def read_published(self) -> list[Offer]:
        """As the port says."""
        return self.offers(OfferFilter(state=OfferState.PUBLISHED), PUBLISHED_MAX, None)

    async def read_serving(self) -> Serving:
        """As the port says."""
        return self.serving()

    async def read_table(self, model_id: str) -> RuleTable:
        """As the port says."""
        return self.table(model_id)

    async def read_policy(self) -> Policy | None:
        """As the port says."""
        rows = self.shelves.find(POLICIES, {}, 1)
        return policy_from_content(rows[0].content, rows[0].version) if rows else None

    async def read_propensity(self, known: str) -> Propensity | None:
        """As the port says."""
        serving = self.shelves.find(PROPENSITY_SERVING, {}, 1)
        model = serving[0].content.get("model", "") if serving else ""
        if model == known:
            return None
        rows = {row.id: row for row in self.shelves.find(PROPENSITY_MODELS, {}, 1_000)}
        return propensity_from_content(model, rows[model].content if model in rows else {})

    async def read_effect(self, name: str, known: str) -> tuple[str, dict[str, Any]] | None:
        """As the port says."""
        models, serving = EFFECTS[name]
        rows = self.shelves.find(serving, {}, 1)
        model = rows[0].content.get("model", "") if rows else ""
        if model == known:
            return None
        versions = {row.id: row for row in self.shelves.find(models, {}, 1_000)}
        return model, versions[model].content if model in versions else {}

    async def read_repeat(self, request_key: str, fingerprint: str) -> Decision | None:
        """As the port says."""
        with self._lock:
            if request_key not in self._requests:
                return None
            decision_id, earlier = self._requests[request_key]
            check_repeat(earlier, fingerprint)
            return self.decision(decision_id)

    async def log_decision(
        self,
        decision: Decision,
        events: Sequence[Pending],
        *,
        request_key: str | None,
        fingerprint: str | None,
    ) -> Decision:
        """As the port says."""
        with self._lock:
            if request_key is not None:
                earlier = await self.read_repeat(request_key, fingerprint or "")
                if earlier is not None:
                    return earlier
                self._requests[request_key] = (decision.id, fingerprint)
            if decision.id in self._decisions:
                raise AlreadyExists(resource=f"decisions/{decision.id}")
            self._decisions[decision.id] = structs.replace(decision, version=1)
            self.events.extend(Event.from_json(e.body) if isinstance(e, Told) else e for e in events)
            return self._decisions[decision.id]
