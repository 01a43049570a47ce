"""What marketing keeps, of which class and for how long; which of its RPCs are administrative acts."""

from __future__ import annotations

from chassis.lifecycle import DataClass, Held, Lifecycle, Rule, of_documents, technical
from marketing.kinds import ALL_DOCUMENTS

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


def _held() -> tuple[Held, ...]:
    documents = {each._meta["collection"]: each for each in ALL_DOCUMENTS}
    return tuple(
        held
        for (kind, rule), names in _CLASSES.items()
        for held in of_documents([documents[name] for name in names], kind, rule)
    )


HELD: tuple[Held, ...] = (*_held(), *technical())
LIFECYCLE = Lifecycle(
    service="marketing",
    held=HELD,
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
