"""The rules of marketing, free of clock, randomness and I/O.

1. An offer moves by verbs only, along `OFFER_TRANSITIONS`; it can be published when its validity is not over
   and it has words to say. A published offer cannot be deleted.
2. Nothing is offered to a customer who has an unresolved complaint, whose matter of this contact is unsolved,
   or who refused marketing on this channel: in this order, because the first is the one to tell the agent.
3. An offer is eligible when it is published, inside its validity, in stock and budget, meant for this
   audience, its rule (rules.py) holds, its prerequisites are all there and none of its exclusions, and its
   product is not owned already (unless it may be repeated). Retention offers wait for a customer who wants to
   leave, win-back offers for one tagged as lost.
4. A decision is closed once. The same words again are the same closing; other words are refused. An
   acceptance needs a unit of stock, taken before the closing under a token that the closing names (see
   store.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from msgspec import structs

from chassis.errors import FailedPrecondition, NotFound, ResourceExhausted
from marketing.model import (
    EVERYBODY,
    OFFER_TRANSITIONS,
    Audience,
    Channel,
    Contact,
    Decision,
    NoOffer,
    Offer,
    OfferKind,
    OfferState,
    OfferVerb,
    Outcome,
    Profile,
    Result,
    Text,
    primary_language,
)
from marketing.rules import CustomerFacts, Key, compiled, rule_problems

#: The tag by which crm marks a customer who has left.
LOST_TAG = "lost"
#: Most characters of a title.
TITLE_CHARACTERS_MAX = 200
#: Most characters of a script.
SCRIPT_CHARACTERS_MAX = 2_000
#: Most titles of an offer.
TITLES_MAX = 8
#: Most scripts, tags, prerequisites, exclusions, and values in one list of an audience.
ITEMS_MAX = 32
#: Most regions of an audience.
REGIONS_MAX = 64
#: Most characters of a tag, tier or audience name.
LABEL_CHARACTERS_MAX = 64
#: Most units of stock.
STOCK_MAX = 10**12
#: Largest amount of money in an offer.
AMOUNT_MAX = 10**12

#: One thing wrong with an input: (field path, why).
Problem = tuple[str, str]


class OfferNotFound(NotFound):
    """There is no offer {resource}."""

    reason = "OFFER_NOT_FOUND"


class OfferPublished(FailedPrecondition):
    """{subject} is published: {why}."""

    reason = "OFFER_PUBLISHED"


class OfferNotPublished(FailedPrecondition):
    """{subject} is not published: {why}."""

    reason = "OFFER_NOT_PUBLISHED"


class OfferNotPublishable(FailedPrecondition):
    """{subject} cannot be published: {why}."""

    reason = "OFFER_NOT_PUBLISHABLE"


class SupplyBelowUsed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "SUPPLY_BELOW_USED"


class OfferSoldOut(FailedPrecondition):
    """{subject} is sold out: {why}."""

    reason = "OFFER_SOLD_OUT"


class ClaimsPending(ResourceExhausted):
    """Too many acceptances of {subject} are being recorded at once; try again."""

    reason = "CLAIMS_PENDING"


class DecisionNotFound(NotFound):
    """There is no decision {resource}."""

    reason = "DECISION_NOT_FOUND"


class DecisionClosed(FailedPrecondition):
    """{subject} is closed already: {why}."""

    reason = "DECISION_CLOSED"


class OfferNotInDecision(FailedPrecondition):
    """{subject}: {why}."""

    reason = "OFFER_NOT_IN_DECISION"


class ProfileNotFound(NotFound):
    """Nothing is known of {resource}."""

    reason = "PROFILE_NOT_FOUND"


class ModelNotFound(NotFound):
    """There is no model version {resource}."""

    reason = "MODEL_NOT_FOUND"


# --- offers -------------------------------------------------------------------------------------------


def offer_problems(offer: Offer, currency: str, stored: Offer | None = None) -> list[Problem]:
    """Everything wrong with an offer's content, by field of the proto `Offer`; empty when it can be kept.

    `currency` is the one that this service ranks in: scores in several currencies could not be compared.
    `stored` is the offer before the change.
    """
    return [
        *_text_problems("titles", offer.titles),
        *_money_problems(offer, currency),
        *_span_problems(offer),
        *_label_problems(offer),
        *script_problems(offer.scripts),
        *_supply_problems(offer),
        *_rule_problems(offer, () if stored is None else (stored.rule,)),
    ]


def _text_problems(field: str, texts: tuple[Text, ...]) -> list[Problem]:
    found: list[Problem] = []
    if not 1 <= len(texts) <= TITLES_MAX:
        found.append((field, f"needs 1 to {TITLES_MAX} texts"))
    seen: set[str] = set()
    for index, text in enumerate(texts):
        if not is_language(text.language):
            found.append((f"{field}[{index}].language", "must be two or three lower-case letters"))
        elif text.language in seen:
            found.append((f"{field}[{index}].language", f"occurs twice: {text.language}"))
        seen.add(text.language)
        if not 1 <= len(text.text.strip()) <= len(text.text) <= TITLE_CHARACTERS_MAX:
            found.append((f"{field}[{index}].text", f"must be 1 to {TITLE_CHARACTERS_MAX} characters"))
    return found


def is_language(tag: str) -> bool:
    """Whether a text is a primary language subtag."""
    return 2 <= len(tag) <= 3 and tag.isascii() and tag.isalpha() and tag.islower()


def _money_problems(offer: Offer, currency: str) -> list[Problem]:
    found: list[Problem] = []
    amounts = {
        "price": offer.price,
        "value": offer.value,
        "budget": offer.budget,
        "unit_cost": offer.unit_cost,
    }
    for field, money in amounts.items():
        if money is None:
            continue
        if money.currency != currency:
            found.append((f"{field}.currency_code", f"must be {currency}, in which offers are compared here"))
        if not 0 <= money.amount <= AMOUNT_MAX:
            found.append((f"{field}.amount", f"must be 0 to {AMOUNT_MAX}"))
    if offer.budget is not None and (offer.unit_cost is None or offer.unit_cost.amount <= 0):
        found.append(("unit_cost", "must be set and above 0 where there is a budget"))
    return found


def _span_problems(offer: Offer) -> list[Problem]:
    if offer.valid_from and offer.valid_until and offer.valid_until <= offer.valid_from:
        return [("validity.end_time", "must be after start_time")]
    return []


def _value_problems(field: str, values: Collection[str]) -> list[Problem]:
    found: list[Problem] = []
    if len(values) > ITEMS_MAX:
        found.append((field, f"holds {len(values)} values, at most {ITEMS_MAX} are allowed"))
    if any(not 1 <= len(value) <= 2 * LABEL_CHARACTERS_MAX for value in values):
        found.append((field, f"a value must be 1 to {LABEL_CHARACTERS_MAX} characters"))
    return found


def audience_problems(audience: Audience) -> list[Problem]:
    """Everything wrong with whom something is meant for: an offer, a segment, a tariff."""
    found: list[Problem] = []
    for name in ("tiers", "languages", "any_tags", "no_tags"):
        found += _value_problems(f"audience.{name}", getattr(audience, name))
    if len(audience.regions) > REGIONS_MAX:
        found.append(("audience.regions", f"at most {REGIONS_MAX} are allowed"))
    if not audience.value_classes <= set("ABCDEF"):
        found.append(("audience.value_classes", 'must be "A" to "F"'))
    if both := audience.any_tags & audience.no_tags:
        found.append(("audience.no_tags", f"contradicts any_tags: {min(both)}"))
    return found


def _label_problems(offer: Offer) -> list[Problem]:
    found: list[Problem] = []
    audience = offer.audience
    found += _value_problems("tags", offer.tags)
    found += _value_problems("prerequisite_products", offer.prerequisites)
    found += _value_problems("excluded_products", offer.exclusions)
    found += audience_problems(audience)
    if both := offer.prerequisites & offer.exclusions:
        found.append(("excluded_products", f"can never match: {min(both)} is a prerequisite as well"))
    if offer.product in offer.prerequisites and not offer.repeatable:
        found.append(("prerequisite_products", "can never match: holds the offer's own product"))
    if offer.kind is OfferKind.WIN_BACK and LOST_TAG in audience.no_tags:
        found.append(
            ("audience.no_tags", f"can never match: a win-back offer is for those tagged {LOST_TAG}")
        )
    return found


def script_problems(scripts: Sequence[Any]) -> list[Problem]:
    """Everything wrong with words for the agent, an offer's or a call list's."""
    found: list[Problem] = []
    if len(scripts) > ITEMS_MAX:
        found.append(("scripts", f"at most {ITEMS_MAX} are allowed"))
    seen: set[tuple[str, str]] = set()
    for index, script in enumerate(scripts[:ITEMS_MAX]):
        at = f"scripts[{index}]"
        if not is_language(script.language):
            found.append((f"{at}.language", "must be two or three lower-case letters"))
        if len(script.audience) > LABEL_CHARACTERS_MAX:
            found.append((f"{at}.audience", f"must be at most {LABEL_CHARACTERS_MAX} characters"))
        if not 1 <= len(script.text.strip()) <= len(script.text) <= SCRIPT_CHARACTERS_MAX:
            found.append((f"{at}.text", f"must be 1 to {SCRIPT_CHARACTERS_MAX} characters"))
        if (script.audience, script.language) in seen:
            found.append((at, "there is another script for this audience and language"))
        seen.add((script.audience, script.language))
    return found


def _supply_problems(offer: Offer) -> list[Problem]:
    if offer.stock is not None and not 0 <= offer.stock <= STOCK_MAX:
        return [("stock", f"must be 0 to {STOCK_MAX}")]
    return []


def _rule_problems(offer: Offer, stored: Collection[str]) -> list[Problem]:
    """A rule is judged beside the offer's other conditions: what can never hold together is refused."""
    if not offer.rule:
        return []
    given: dict[Key, Sequence[object]] = {("owns", product): [True] for product in offer.prerequisites}
    given |= {("owns", product): [False] for product in offer.exclusions}
    if not offer.repeatable:
        given["owns", offer.product] = [False]
    if offer.kind is OfferKind.WIN_BACK:
        given["tagged", LOST_TAG] = [True]
    given |= audience_given(offer.audience)
    return [
        ("eligibility_rule", problem.told)
        for problem in rule_problems(offer.rule, given=given, stored=stored)
        if not problem.harmless
    ]


def audience_given(audience: Audience) -> dict[Key, Sequence[object]]:
    """What an audience leaves a rule beside it to look at: the only values that can come."""
    given: dict[Key, Sequence[object]] = {("tagged", tag): [False] for tag in audience.no_tags}
    if len(audience.any_tags) == 1:
        given |= {("tagged", tag): [True] for tag in audience.any_tags}
    for name, values in (
        ("tier", audience.tiers),
        ("value_class", audience.value_classes),
        ("language", audience.languages),
        ("region", audience.regions),
        ("channel", {channel.value for channel in audience.channels}),
    ):
        if values:
            given[name, ""] = sorted(values)
    return given


def check_supply(offer: Offer) -> None:
    """SupplyBelowUsed when stock or budget would be less than what is used already."""
    name = f"offers/{offer.id}"
    if offer.stock is not None and offer.stock < offer.units_used:
        raise SupplyBelowUsed(subject=name, why=f"stock must be at least the {offer.units_used} units used")
    if offer.budget is not None and offer.budget.amount < offer.budget_used:
        raise SupplyBelowUsed(subject=name, why=f"budget must be at least the {offer.budget_used:f} used")


def move(offer: Offer, verb: OfferVerb, now: datetime) -> Offer:
    """The offer after a verb; the very same object when the verb changes nothing.

    OfferNotPublishable with every cause, OfferNotPublished for retiring a draft.
    """
    name = f"offers/{offer.id}"
    state = OFFER_TRANSITIONS.get((offer.state, verb))
    if state is None:
        raise OfferNotPublished(subject=name, why=f"it is {offer.state}, publish it first")
    if state == offer.state:
        return offer
    if verb is OfferVerb.PUBLISH:
        if causes := _unpublishable(offer, now):
            raise OfferNotPublishable(subject=name, why="; ".join(causes))
        return replace(offer, state=state, published_at=now)
    return replace(offer, state=state)


def _unpublishable(offer: Offer, now: datetime) -> list[str]:
    causes = []
    if offer.valid_until is not None and offer.valid_until <= now:
        causes.append("its validity is over")
    if not offer.scripts:
        causes.append("it has no script")
    return causes


def check_deletable(offer: Offer) -> None:
    """OfferPublished unless the offer may be removed."""
    if offer.state is OfferState.PUBLISHED:
        raise OfferPublished(subject=f"offers/{offer.id}", why="retire it before it is deleted")


# --- eligibility --------------------------------------------------------------------------------------


def gate(profile: Profile, contact: Contact, open_complaints: int) -> NoOffer | None:
    """Why nothing at all may be offered in this contact; None when something may."""
    if open_complaints:
        return NoOffer.OPEN_COMPLAINT
    if contact.unresolved:
        return NoOffer.MATTER_UNRESOLVED
    channel = Channel.VOICE if contact.channel is Channel.UNSPECIFIED else contact.channel
    if channel in profile.refused_channels:
        return NoOffer.NO_CONSENT
    return None


def eligible(offer: Offer, profile: Profile, contact: Contact, now: datetime) -> bool:
    """Whether an offer may be made to this customer in this contact now."""
    if offer.state is not OfferState.PUBLISHED or offer.sold_out:
        return False
    if (offer.valid_from and now < offer.valid_from) or (offer.valid_until and now >= offer.valid_until):
        return False
    owned = profile.products
    if offer.product in owned and not offer.repeatable:
        return False
    if not offer.prerequisites <= owned or offer.exclusions & owned:
        return False
    if not (_kind_fits(offer.kind, profile, contact) and audience_fits(offer.audience, profile, contact)):
        return False
    return not offer.rule or bool(compiled(offer.rule).matches(CustomerFacts(profile, contact, now)))


def _kind_fits(kind: OfferKind, profile: Profile, contact: Contact) -> bool:
    if kind is OfferKind.RETENTION:
        return contact.wants_to_leave or profile.may_leave
    if kind is OfferKind.WIN_BACK:
        return LOST_TAG in profile.tags
    return True


def audience_fits(audience: Audience, profile: Profile, contact: Contact) -> bool:
    """Whether a customer in a contact belongs to an audience."""
    if audience is EVERYBODY:
        return True
    language = contact.language or profile.language
    region = contact.region or profile.home_region
    return (
        (not audience.tiers or profile.tier in audience.tiers)
        and (not audience.value_classes or profile.value_class in audience.value_classes)
        and (not audience.languages or primary_language(language) in audience.languages)
        and (not audience.regions or region in audience.regions)
        and (not audience.channels or contact.channel in audience.channels)
        and (not audience.any_tags or bool(audience.any_tags & profile.tags))
        and not (audience.no_tags & profile.tags)
    )


def scripts_for(offer: Offer, profile: Profile) -> tuple[Text, ...]:
    """The words for this customer, one text a language, in the order of the languages: a tag's script before
    the tier's before everybody's.
    """
    best: dict[str, tuple[int, str, str]] = {}
    for script in offer.scripts:
        if script.audience == "":
            nearness = 2
        elif script.audience == profile.tier:
            nearness = 1
        elif script.audience in profile.tags:
            nearness = 0
        else:
            continue
        candidate = (nearness, script.audience, script.text)
        best[script.language] = min(candidate, best.get(script.language, candidate))
    return tuple(Text(language=language, text=best[language][2]) for language in sorted(best))


# --- decisions ----------------------------------------------------------------------------------------


def check_outcome(decision: Decision, outcome: Outcome) -> bool:
    """True when the decision is closed with these very words already, False when it may be closed with them.

    DecisionClosed, OfferNotInDecision.
    """
    name = f"decisions/{decision.id}"
    if decision.outcome is not None:
        if decision.outcome.same_content(outcome):
            return True
        raise DecisionClosed(subject=name, why=f"its outcome is {decision.outcome.result}")
    for offer in (outcome.offer, *outcome.declined):
        if offer and decision.find(offer) is None:
            raise OfferNotInDecision(subject=name, why=f"it does not hold offers/{offer}")
    return False


def close(decision: Decision, outcome: Outcome, claim: str) -> Decision:
    """The decision closed with an outcome that `check_outcome` let pass; `claim` is the token of the unit of
    stock taken.
    """
    return structs.replace(
        decision, outcome=outcome, claim=claim, unsettled=outcome.result is Result.ACCEPTED
    )
