"""The kinds of resource that lie on shelves (shelf.py), and how those of the hot path are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from chassis.errors import NotFound
from marketing.campaign_store import CAMPAIGN_DOCUMENTS, TouchDocument
from marketing.documents import DOCUMENTS, OUTBOX_DOCUMENTS
from marketing.engine import ModelNotFound
from marketing.model import Money
from marketing.policy import Policy
from marketing.propensity import Propensity
from marketing.shelf import Kind


class PolicyNotFound(NotFound):
    """There is no policy {resource}."""

    reason = "POLICY_NOT_FOUND"


class TariffNotFound(NotFound):
    """There is no tariff {resource}."""

    reason = "TARIFF_NOT_FOUND"


class LeadNotFound(NotFound):
    """There is no lead {resource}."""

    reason = "LEAD_NOT_FOUND"


class PartnerNotFound(NotFound):
    """There is no partner {resource}."""

    reason = "PARTNER_NOT_FOUND"


class SurveyNotFound(NotFound):
    """There is no survey {resource}."""

    reason = "SURVEY_NOT_FOUND"


class ResponseNotFound(NotFound):
    """There is no response {resource}."""

    reason = "RESPONSE_NOT_FOUND"


class ContactListNotFound(NotFound):
    """There is no contact list {resource}."""

    reason = "CONTACT_LIST_NOT_FOUND"


class ContactNotFound(NotFound):
    """There is no contact {resource}."""

    reason = "CONTACT_NOT_FOUND"


class NumberNotForbidden(NotFound):
    """There is no forbidden number {resource}."""

    reason = "NUMBER_NOT_FORBIDDEN"


class CampaignNotFound(NotFound):
    """There is no campaign {resource}."""

    reason = "CAMPAIGN_NOT_FOUND"


class SegmentNotFound(NotFound):
    """There is no segment {resource}."""

    reason = "SEGMENT_NOT_FOUND"


class CostNotFound(NotFound):
    """There is no cost {resource}."""

    reason = "COST_NOT_FOUND"


#: The one policy there is.
DEFAULT_POLICY = "default"
#: The one document that says which propensity model serves.
PROPENSITY = "propensity"

POLICIES = Kind("policies", PolicyNotFound)
#: Versions of the propensity model: {"state", "failure", "weights": [[feature, weight]], "metrics", ...}.
PROPENSITY_MODELS = Kind("propensity_models", ModelNotFound, ["-number"], resource="models")
#: {"model", "earlier": [...], "since", "pinned", "learned_until"}.
PROPENSITY_SERVING = Kind("propensity_serving", ModelNotFound, resource="models")


#: The same for the models of effects.py: {"state", "offered" and "held", or "weights" and "threshold", ...}.
UPLIFT = "uplift"
UPLIFT_MODELS = Kind("uplift_models", ModelNotFound, ["-number"], resource="models")
UPLIFT_SERVING = Kind("uplift_serving", ModelNotFound, resource="models")
CHURN = "churn"
CHURN_MODELS = Kind("churn_models", ModelNotFound, ["-number"], resource="models")
CHURN_SERVING = Kind("churn_serving", ModelNotFound, resource="models")
#: Where versions of a model lie, and which one serves, by the model's name.
EFFECTS: Mapping[str, tuple[Kind, Kind]] = {
    UPLIFT: (UPLIFT_MODELS, UPLIFT_SERVING),
    CHURN: (CHURN_MODELS, CHURN_SERVING),
}

TARIFFS = Kind("tariffs", TariffNotFound, ["kind", "_id"], ["refers"])
#: {"meters": {meter: quantity}} of a customer and month.
USAGE = Kind("usage", TariffNotFound, ["customer", "-month"])
LEADS = Kind(
    "leads",
    LeadNotFound,
    ["-score", "-_id"],
    ["state", "-score"],
    ["partner", "open"],
    ["customer"],
    ["product", "state"],
    ["won_at", "_id"],
)
PARTNERS = Kind("partners", PartnerNotFound)
SURVEYS = Kind("surveys", SurveyNotFound)
RESPONSES = Kind(
    "survey_responses", ResponseNotFound, ["survey", "-_id"], ["survey", "completed_at"], ["customer"]
)
CONTACT_LISTS = Kind("contact_lists", ContactListNotFound, ["state"], resource="contactLists")
#: People to call. keys: list, number, customer, state, rank, due, token.
CONTACTS = Kind(
    "contacts",
    ContactNotFound,
    ["list", "_id"],
    ["list", "number"],
    ["number"],
    ["state", "list", "-rank", "due"],
    ["holder", "state"],
    ["token"],
    ["customer"],
)
ATTEMPTS = Kind("attempts", ContactNotFound, ["list", "at"])
FORBIDDEN = Kind("forbidden_numbers", NumberNotForbidden)
CAMPAIGNS = Kind("campaigns", CampaignNotFound, ["state"])
SEGMENTS = Kind("segments", SegmentNotFound, ["triggers"])
CONTACT_POLICY = Kind("contact_policy", PolicyNotFound, resource="contactPolicy")
COSTS = Kind("costs", CostNotFound, ["at", "_id"])

#: Every kind; a new one is added here.
KINDS = (
    POLICIES,
    PROPENSITY_MODELS,
    PROPENSITY_SERVING,
    UPLIFT_MODELS,
    UPLIFT_SERVING,
    CHURN_MODELS,
    CHURN_SERVING,
    TARIFFS,
    USAGE,
    LEADS,
    PARTNERS,
    SURVEYS,
    RESPONSES,
    CONTACT_LISTS,
    CONTACTS,
    ATTEMPTS,
    FORBIDDEN,
    CAMPAIGNS,
    SEGMENTS,
    CONTACT_POLICY,
    COSTS,
)
#: Everything whose indexes a process ensures at its start.
ALL_DOCUMENTS = (*DOCUMENTS, *CAMPAIGN_DOCUMENTS, *(kind.document for kind in KINDS))
#: What the outbox relay looks through.
ALL_OUTBOX_DOCUMENTS = (*OUTBOX_DOCUMENTS, TouchDocument, *(kind.document for kind in KINDS))


def policy_content(policy: Policy) -> dict[str, Any]:
    """A policy as stored."""
    least = policy.expected_value_min
    return {
        "holdout_ratio": policy.holdout_ratio,
        "exploration_ratio": policy.exploration_ratio,
        "fatigue_offers_max": policy.fatigue_offers_max,
        "fatigue_days": policy.fatigue_days,
        "expected_value_min": None if least is None else {"currency": least.currency, "amount": least.text()},
        "updated_at": policy.updated_at,
    }


def policy_from_content(content: Mapping[str, Any], version: int) -> Policy:
    """A policy as read."""
    least = content.get("expected_value_min")
    return Policy(
        id=DEFAULT_POLICY,
        holdout_ratio=content["holdout_ratio"],
        exploration_ratio=content["exploration_ratio"],
        fatigue_offers_max=content["fatigue_offers_max"],
        fatigue_days=content["fatigue_days"],
        expected_value_min=(
            Money(currency=least["currency"], amount=Decimal(least["amount"])) if least else None
        ),
        version=version,
        updated_at=content.get("updated_at"),
    )


#: What reading a model raises that is broken, of whatever shape it is instead.
BROKEN = (AttributeError, KeyError, TypeError, ValueError)


def propensity_from_content(model: str, content: Mapping[str, Any]) -> Propensity:
    """A model as read; ValueError for one that cannot serve. No id is no model."""
    if not model:
        return Propensity()
    pairs = content.get("weights")
    if not isinstance(pairs, list) or not pairs:
        raise ValueError(f"models/{model} has no weights")
    weights = {str(feature): float(weight) for feature, weight in pairs}
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"models/{model} has weights that are no numbers")
    return Propensity(model=model, weights=weights)
