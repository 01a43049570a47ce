"""What marketing keeps, of which class and for how long; which of its RPCs are administrative acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callmesh.marketing.v1.leads_pb2 import LEAD_STATE_WON
from chassis.lifecycle import (
    DAY_SECONDS,
    DataClass,
    Held,
    Lifecycle,
    Migration,
    Rule,
    of_documents,
    technical,
)
from marketing.config import TOUCHES_DAYS
from marketing.kinds import ALL_DOCUMENTS

if TYPE_CHECKING:
    from pymongo.database import Database

#: Class and rule of each collection.
_CLASSES: dict[tuple[DataClass, Rule], tuple[str, ...]] = {
    (DataClass.PERSONAL, Rule.ERASED): (
        "attempts",
        "campaign_contacts",
        "complaints",
        "contacts",
        "decisions",
        "leads",
        "profiles",
        "purchases",
        "segment_members",
        "survey_responses",
        "touches",
        "usage",
    ),
    # Who must never be called has to be known for as long as anybody is called.
    (DataClass.PERSONAL, Rule.DELETED): ("forbidden_numbers",),
    (DataClass.CONFIGURATION, Rule.DELETED): (
        "campaigns",
        "contact_lists",
        "contact_policy",
        "offer_revisions",
        "offers",
        "partners",
        "policies",
        "segments",
        "surveys",
        "tariffs",
    ),
    (DataClass.BUSINESS, Rule.DELETED): ("campaign_runs", "costs"),
    (DataClass.STATISTICS, Rule.PRUNED): (
        "churn_models",
        "churn_serving",
        "history_state",
        "model_rows",
        "models",
        "propensity_models",
        "propensity_serving",
        "serving",
        "uplift_models",
        "uplift_serving",
    ),
}


#: What age ends as well: touches grow old by the business clock (touch_retention.py).
_SECONDS = {"touches": round(TOUCHES_DAYS * DAY_SECONDS)}


def _held() -> tuple[Held, ...]:
    documents = {each._meta["collection"]: each for each in ALL_DOCUMENTS}
    return tuple(
        held
        for (kind, rule), names in _CLASSES.items()
        for name in names
        for held in of_documents([documents[name]], kind, rule, _SECONDS.get(name))
    )


def _name_customers(database: Database[dict[str, Any]], apply: bool) -> int:
    """Contacts and survey responses get the key by which an erasure finds them."""
    count = 0
    for name in ("contacts", "survey_responses"):
        wanted = {"keys.customer": {"$exists": False}, "content.resource.customer": {"$gt": ""}}
        if not apply:
            count += database[name].count_documents(wanted)
            continue
        change = [{"$set": {"keys.customer": "$content.resource.customer"}}]
        count += database[name].update_many(wanted, change).modified_count
    return count


def _mark_strangers(database: Database[dict[str, Any]], apply: bool) -> int:
    """Decisions for callers who are no customers get the mark by which their numbers are found; complaints
    that are over lose the number.
    """
    count = 0
    numbered: dict[str, Any] = {"number": {"$gt": ""}}
    unknown = {**numbered, "customer": {"$in": ["", None]}, "stranger": {"$exists": False}}
    for name, wanted, change in (
        ("decisions", unknown, {"stranger": True}),
        ("complaints", {**numbered, "open": False}, {"number": ""}),
    ):
        if not apply:
            count += database[name].count_documents(wanted)
            continue
        count += database[name].update_many(wanted, {"$set": change}).modified_count
    return count


def _date_won_leads(database: Database[dict[str, Any]], apply: bool) -> int:
    """Won leads get the key by which a report finds those of its span."""
    wanted = {"keys.state": LEAD_STATE_WON, "keys.won_at": {"$exists": False}}
    if not apply:
        return database["leads"].count_documents(wanted)
    # Of those won before it was noted the last change is the best that is known.
    change = [{"$set": {"keys.won_at": {"$ifNull": ["$content.won_at", "$updated_at"]}}}]
    return database["leads"].update_many(wanted, change).modified_count


HELD: tuple[Held, ...] = (*_held(), *technical())
LIFECYCLE = Lifecycle(
    service="marketing",
    held=HELD,
    migrations=(
        Migration(
            id="2026-11-22-marketing-customers-by-key",
            what="contacts and survey responses are found by their customer, for an erasure",
            run=_name_customers,
        ),
        Migration(
            id="2026-11-23-marketing-strangers",
            what="numbers of callers who are no customers can grow old; ended complaints lose theirs",
            run=_mark_strangers,
        ),
        Migration(
            id="2026-11-24-marketing-won-leads",
            what="won leads are found by when they were won, for reports",
            run=_date_won_leads,
        ),
    ),
    acts=frozenset(
        {
            "marketing.campaigns.run",
            "marketing.campaigns.write",
            "marketing.models.write",
            "marketing.offers.write",
            "marketing.outbound.write",
            "marketing.surveys.write",
        }
    ),
    daily=frozenset(
        {
            "marketing.history.write",
            "marketing.leads.write",
            "marketing.outbound.dial",
            "marketing.recommend",
            "marketing.reports.write",
            "marketing.savings.write",
            "marketing.surveys.respond",
        }
    ),
)
