"""Between protobuf messages and the model. Used by the gRPC side and by the consumers, so it loads no grpc.

What comes in is judged here as far as its form goes, each bad field by its path; what it means is judged by
the engine.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.marketing.v1 import events_pb2, offers_pb2, recommendations_pb2, types_pb2
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name, resource_name
from chassis.mongo import etag
from marketing.engine import Problem, offer_problems
from marketing.model import (
    EVERYBODY,
    Audience,
    BadMoney,
    Channel,
    Complaint,
    Contact,
    Decision,
    ModelInfo,
    ModelState,
    Money,
    NoOffer,
    Offer,
    OfferKind,
    OfferState,
    Outcome,
    PricePeriod,
    Profile,
    Purchase,
    QuietWindow,
    Result,
    Script,
    Text,
    primary_language,
)
from marketing.offline import Estimate
from marketing.policy import (
    EXPLORATION_MAX,
    FATIGUE_DAYS_MAX,
    FATIGUE_OFFERS_MAX,
    HOLDOUT_MAX,
    HOLDOUT_MIN,
    Policy,
)

SOURCE = "marketing"
#: Purchases in one request.
PURCHASES_MAX = 1_000
#: E-mail addresses kept of one customer.
EMAILS_MAX = 20
#: Largest quantity of one purchase.
QUANTITY_MAX = 1_000_000
#: Most products asked about in one contact.
PRODUCTS_ASKED_MAX = 16
#: Parts of answers and events that are kept encoded, of each kind.
KEPT_MAX = 4_000
#: Longest note on an outcome.
NOTE_CHARACTERS_MAX = 1_000

#: What UpdateOffer may change.
OFFER_CHANGEABLE = frozenset(
    {
        "titles",
        "product",
        "kind",
        "tags",
        "price",
        "price_period",
        "value",
        "validity",
        "audience",
        "eligibility_rule",
        "prerequisite_products",
        "excluded_products",
        "repeatable",
        "stock",
        "budget",
        "unit_cost",
        "scripts",
    }
)
#: What it may not, and may repeat.
OFFER_FIXED = frozenset({"name"})

Enum = TypeVar("Enum", bound=enum.StrEnum)


# --- small values -------------------------------------------------------------------------------------


def enum_number(wrapper: Any, prefix: str, member: enum.StrEnum | None) -> Any:
    """A model's value as the proto's number; None and UNSPECIFIED are 0."""
    return 0 if member is None else _number(wrapper, prefix, member.value)


@functools.lru_cache(maxsize=1_000)
def _number(wrapper: Any, prefix: str, value: str) -> Any:
    return 0 if value == "UNSPECIFIED" else wrapper.Value(f"{prefix}_{value}")


def enum_member(wrapper: Any, prefix: str, number: int, kind: type[Enum]) -> Enum | None:
    """A proto's number as the model's value; None for 0 and for numbers that this version does not know."""
    found: Enum | None = _member(wrapper, prefix, number, kind)
    return found


@functools.lru_cache(maxsize=1_000)
def _member(wrapper: Any, prefix: str, number: int, kind: Any) -> Any:
    if number == 0 or number not in wrapper.values():
        return None
    name = wrapper.Name(number).removeprefix(f"{prefix}_")
    return kind(name) if name in {member.value for member in kind} else None


def timestamp(moment: datetime | None) -> Timestamp | None:
    """None stays None, which leaves a message field unset."""
    if moment is None:
        return None
    past = moment - EPOCH
    return Timestamp(seconds=past.days * 86_400 + past.seconds, nanos=past.microseconds * 1_000)


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(stamp: Timestamp) -> datetime:
    """To the millisecond; ValueError for an instant outside the years 1 to 9999."""
    try:
        exact = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError("is not a valid time") from None
    return exact.replace(microsecond=exact.microsecond // 1000 * 1000)


def money_to_proto(money: Money | None) -> common_pb2.Money | None:
    """None stays None."""
    return None if money is None else common_pb2.Money(currency_code=money.currency, amount=money.text())


def texts_to_proto(texts: Iterable[Text]) -> list[types_pb2.LocalizedText]:
    """Texts by language."""
    return [types_pb2.LocalizedText(language=text.language, text=text.text) for text in texts]


def _money(field: str, message: Any, problems: list[Problem]) -> Money | None:
    try:
        return Money.parse(message.currency_code, message.amount)
    except BadMoney as error:
        problems.append((f"{field}.{error.part}", error.why))
        return None


def _time(field: str, message: Any, problems: list[Problem]) -> datetime | None:
    try:
        return moment(message)
    except ValueError as error:
        problems.append((field, str(error)))
        return None


def checked_id(field: str, value: str, problems: list[Problem]) -> str:
    """The id; "" for a bad one, which is added to the problems."""
    try:
        return check_id(field, value)
    except InvalidArgument as error:
        problems.append((field, error.values["why"]))
        return ""


def _name_id(field: str, collection: str, name: str, problems: list[Problem]) -> str:
    """The id in an optional resource name; "" for none."""
    if not name:
        return ""
    try:
        return parse_name(field, collection, name)
    except InvalidArgument as error:
        problems.append((field, error.values["why"]))
        return ""


def _known(
    field: str, wrapper: Any, prefix: str, number: int, kind: type[Enum], problems: list[Problem]
) -> Enum | None:
    member = enum_member(wrapper, prefix, number, kind)
    if number and member is None:
        problems.append((field, "is not a value that this server knows"))
    return member


def optional_name(collection: str, id: str) -> str:
    """The resource name; "" for no id."""
    return resource_name(collection, id) if id else ""


# --- offers -------------------------------------------------------------------------------------------


def offer_from_proto(message: Any, offer_id: str, currency: str, base: Offer | None = None) -> Offer:
    """The content of a proto `Offer`; state, use of the supply and times come from `base`.

    InvalidArgument that names every bad field under "offer.".
    """
    problems: list[Problem] = []
    content = _offer_content(message, offer_id, problems)
    if not problems:
        kept = {} if base is None else _kept(base)
        offer = Offer(**content, **kept)
        problems = offer_problems(offer, currency, base)
        if not problems:
            return offer
    raise InvalidArgument.many([(f"offer.{field}", why) for field, why in problems])


def _kept(base: Offer) -> dict[str, Any]:
    names = ("units_used", "budget_used", "state", "version", "created_at", "updated_at", "published_at")
    return {name: getattr(base, name) for name in names}


def _offer_content(message: Any, offer_id: str, problems: list[Problem]) -> dict[str, Any]:
    kind = _known("kind", offers_pb2.OfferKind, "OFFER_KIND", message.kind, OfferKind, problems)
    period = _known(
        "price_period", offers_pb2.PricePeriod, "PRICE_PERIOD", message.price_period, PricePeriod, problems
    )
    price = _money("price", message.price, problems)
    return {
        "id": offer_id,
        "titles": tuple(Text(language=t.language, text=t.text) for t in message.titles),
        "product": checked_id("product", message.product, problems),
        "kind": kind or OfferKind.CROSS_SELL,
        "tags": tuple(sorted(set(message.tags))),
        "price": price or Money.parse("XXX", "0"),
        "price_period": period or PricePeriod.ONE_OFF,
        "value": _optional_money(message, "value", problems),
        "valid_from": _end(message, "start_time", problems),
        "valid_until": _end(message, "end_time", problems),
        "audience": audience_from_proto("audience", message.audience, problems),
        "rule": message.eligibility_rule.strip(),
        "prerequisites": _products("prerequisite_products", message.prerequisite_products, problems),
        "exclusions": _products("excluded_products", message.excluded_products, problems),
        "repeatable": message.repeatable,
        "stock": message.stock if message.HasField("stock") else None,
        "budget": _optional_money(message, "budget", problems),
        "unit_cost": _optional_money(message, "unit_cost", problems),
        "scripts": tuple(
            Script(audience=s.audience, language=s.language, text=s.text) for s in message.scripts
        ),
    }


def _optional_money(message: Any, field: str, problems: list[Problem]) -> Money | None:
    return _money(field, getattr(message, field), problems) if message.HasField(field) else None


def _end(message: Any, end: str, problems: list[Problem]) -> datetime | None:
    if not (message.HasField("validity") and message.validity.HasField(end)):
        return None
    return _time(f"validity.{end}", getattr(message.validity, end), problems)


def _products(field: str, values: Sequence[str], problems: list[Problem]) -> frozenset[str]:
    return frozenset(checked_id(f"{field}[{index}]", value, problems) for index, value in enumerate(values))


def audience_from_proto(field: str, message: Any, problems: list[Problem]) -> Audience:
    """Whom something is meant for; `field` is where it stands."""
    channels = [
        _known(f"{field}.channels", common_pb2.Channel, "CHANNEL", number, Channel, problems)
        for number in message.channels
    ]
    for index, region in enumerate(message.regions):
        _name_id(f"{field}.regions[{index}]", "regions", region, problems)
    found = Audience(
        tiers=frozenset(message.tiers),
        value_classes=frozenset(message.value_classes),
        languages=frozenset(primary_language(tag) for tag in message.languages),
        any_tags=frozenset(message.any_tags),
        no_tags=frozenset(message.no_tags),
        regions=frozenset(message.regions),
        channels=frozenset(channel for channel in channels if channel),
    )
    return EVERYBODY if found == EVERYBODY else found


def _interval(offer: Offer) -> common_pb2.Interval | None:
    if offer.valid_from is None and offer.valid_until is None:
        return None
    return common_pb2.Interval(start_time=timestamp(offer.valid_from), end_time=timestamp(offer.valid_until))


def offer_to_proto(offer: Offer) -> offers_pb2.Offer:
    """The whole resource."""
    audience = offer.audience
    message = offers_pb2.Offer(
        name=resource_name("offers", offer.id),
        titles=texts_to_proto(offer.titles),
        product=offer.product,
        kind=enum_number(offers_pb2.OfferKind, "OFFER_KIND", offer.kind),
        tags=offer.tags,
        price=money_to_proto(offer.price),
        price_period=enum_number(offers_pb2.PricePeriod, "PRICE_PERIOD", offer.price_period),
        value=money_to_proto(offer.value),
        validity=_interval(offer),
        eligibility_rule=offer.rule,
        prerequisite_products=sorted(offer.prerequisites),
        excluded_products=sorted(offer.exclusions),
        repeatable=offer.repeatable,
        stock=offer.stock,
        units_used=offer.units_used,
        budget=money_to_proto(offer.budget),
        unit_cost=money_to_proto(offer.unit_cost),
        scripts=[
            types_pb2.Script(audience=s.audience, language=s.language, text=s.text) for s in offer.scripts
        ],
        state=enum_number(offers_pb2.OfferState, "OFFER_STATE", offer.state),
        revision=offer.version,
        etag=etag(offer.version),
        create_time=timestamp(offer.created_at),
        update_time=timestamp(offer.updated_at),
        publish_time=timestamp(offer.published_at),
    )
    if audience != Audience():
        message.audience.CopyFrom(_audience_to_proto(audience))
    if offer.budget is not None:
        used = Money(currency=offer.budget.currency, amount=offer.budget_used)
        message.budget_used.CopyFrom(common_pb2.Money(currency_code=used.currency, amount=used.text()))
    return message


def _audience_to_proto(audience: Audience) -> types_pb2.Audience:
    return types_pb2.Audience(
        tiers=sorted(audience.tiers),
        value_classes=sorted(audience.value_classes),
        languages=sorted(audience.languages),
        any_tags=sorted(audience.any_tags),
        no_tags=sorted(audience.no_tags),
        regions=sorted(audience.regions),
        channels=sorted(enum_number(common_pb2.Channel, "CHANNEL", c) for c in audience.channels),
    )


# --- recommendations ----------------------------------------------------------------------------------


def recommend_request(message: Any) -> tuple[str, str, Contact, int]:
    """(customer id, number, contact, limit) of a RecommendRequest; InvalidArgument names every bad field."""
    problems: list[Problem] = []
    customer = _name_id("customer", "customers", message.customer, problems)
    number = message.caller_number
    if number and not is_e164(number):
        problems.append(("caller_number", "must be an E.164 number such as +8613800138000"))
    if not 0 <= message.max_offers <= 10:
        problems.append(("max_offers", "must be 0 to 10"))
    contact = _contact_from_proto(message.context, problems)
    if problems:
        raise InvalidArgument.many(problems)
    return customer, number, contact, message.max_offers or 3


def is_e164(number: str) -> bool:
    """Whether a text has the form of an international number: "+", a digit above 0, 6 to 14 more."""
    digits = number[1:]
    return (
        number.startswith("+")
        and digits.isascii()
        and digits.isdigit()
        and 7 <= len(digits) <= 15
        and digits[0] != "0"
    )


#: The same queues, regions and agents come again and again. What is refused is not kept.
_kept_name = functools.lru_cache(maxsize=KEPT_MAX)(parse_name)


def _contact_from_proto(message: Any, problems: list[Problem]) -> Contact:
    queue, region, agent = message.queue, message.region, message.agent
    for field, collection, name in (
        ("context.queue", "queues", queue),
        ("context.region", "regions", region),
        ("context.agent", "agents", agent),
    ):
        try:
            if name:
                _kept_name(field, collection, name)
        except InvalidArgument as error:
            problems.append((field, error.values["why"]))
    if message.call_id:
        checked_id("context.call_id", message.call_id, problems)
    if len(message.contact_reason) > 64:
        problems.append(("context.contact_reason", "must be at most 64 characters"))
    if len(message.language) > 35:
        problems.append(("context.language", "must be a language tag"))
    if len(message.products_asked) > PRODUCTS_ASKED_MAX:
        problems.append(("context.products_asked", f"at most {PRODUCTS_ASKED_MAX} are allowed"))
    channel = _known("context.channel", common_pb2.Channel, "CHANNEL", message.channel, Channel, problems)
    asked: Iterable[str] = ()
    if message.products_asked:
        asked = _products("context.products_asked", message.products_asked[:PRODUCTS_ASKED_MAX], problems)
    return Contact(
        call_id=message.call_id,
        channel=channel or Channel.UNSPECIFIED,
        queue=queue,
        region=region,
        agent=agent,
        reason=message.contact_reason,
        language=primary_language(message.language) if message.language else "",
        products_asked=tuple(sorted(asked)),
        unresolved=message.unresolved,
        wants_to_leave=message.wants_to_leave,
    )


def no_offer_number(why: NoOffer | None) -> Any:
    """The proto's number."""
    return enum_number(types_pb2.NoOfferReason, "NO_OFFER_REASON", why)


def result_number(result: Result) -> Any:
    """The proto's number."""
    return enum_number(types_pb2.OutcomeResult, "OUTCOME_RESULT", result)


def outcome_to_proto(outcome: Outcome) -> recommendations_pb2.Outcome:
    return recommendations_pb2.Outcome(
        offer=optional_name("offers", outcome.offer),
        result=result_number(outcome.result),
        declined_offers=[resource_name("offers", offer) for offer in outcome.declined],
        agent=outcome.agent,
        note=outcome.note,
        outcome_time=timestamp(outcome.at),
    )


def outcome_request(message: Any, now: datetime) -> tuple[str, Outcome]:
    """(decision id, outcome) of a RecordOutcomeRequest; InvalidArgument names every bad field."""
    problems: list[Problem] = []
    decision = _name_id("decision", "decisions", message.decision, problems)
    if not message.decision:
        problems.append(("decision", "must not be empty"))
    result = _known("result", types_pb2.OutcomeResult, "OUTCOME_RESULT", message.result, Result, problems)
    if not message.result:
        problems.append(("result", "must be ACCEPTED, DECLINED or IGNORED"))
    offer = _name_id("offer", "offers", message.offer, problems)
    if not message.offer and result not in (None, Result.IGNORED):
        problems.append(("offer", "may be empty with IGNORED only"))
    if len(message.declined_offers) > 10:
        problems.append(("declined_offers", "at most 10 are allowed"))
    declined = {
        _name_id(f"declined_offers[{index}]", "offers", name, problems)
        for index, name in enumerate(message.declined_offers[:10])
    }
    if offer and offer in declined:
        problems.append(("declined_offers", "holds the offer of the outcome"))
    _name_id("agent", "agents", message.agent, problems)
    if len(message.note) > NOTE_CHARACTERS_MAX:
        problems.append(("note", f"must be at most {NOTE_CHARACTERS_MAX} characters"))
    if problems or result is None:
        raise InvalidArgument.many(problems)
    outcome = Outcome(
        offer=offer,
        result=result,
        declined=tuple(sorted(declined - {""})),
        agent=message.agent,
        note=message.note,
        at=now,
    )
    return decision, outcome


# --- history ------------------------------------------------------------------------------------------


def purchases_from_proto(
    messages: Sequence[Any], now: datetime
) -> tuple[list[Purchase], list[tuple[int, Problem]]]:
    """(good ones, bad ones as (index, (field, why)), the first fault of each)."""
    good: list[Purchase] = []
    bad: list[tuple[int, Problem]] = []
    for index, message in enumerate(messages):
        problems: list[Problem] = []
        purchase = _purchase(message, now, problems)
        if problems:
            bad.append((index, problems[0]))
        else:
            good.append(purchase)
    return good, bad


def _purchase(message: Any, now: datetime, problems: list[Problem]) -> Purchase:
    at = _time("purchase_time", message.purchase_time, problems) if message.HasField("purchase_time") else now
    if at is not None and at > now:
        problems.append(("purchase_time", "must not be in the future"))
    if not 0 <= message.quantity <= QUANTITY_MAX:
        problems.append(("quantity", f"must be 0 to {QUANTITY_MAX}"))
    if not message.customer:
        problems.append(("customer", "must not be empty"))
    channel = _known("channel", common_pb2.Channel, "CHANNEL", message.channel, Channel, problems)
    return Purchase(
        id=checked_id("purchase_id", message.purchase_id, problems),
        customer=_name_id("customer", "customers", message.customer, problems),
        product=checked_id("product", message.product, problems),
        at=at or now,
        quantity=message.quantity or 1,
        amount=_optional_money(message, "amount", problems),
        channel=channel or Channel.UNSPECIFIED,
    )


def purchase_to_proto(purchase: Purchase) -> recommendations_pb2.Purchase:
    """The whole message."""
    return recommendations_pb2.Purchase(
        purchase_id=purchase.id,
        customer=resource_name("customers", purchase.customer),
        product=purchase.product,
        purchase_time=timestamp(purchase.at),
        quantity=purchase.quantity,
        amount=money_to_proto(purchase.amount),
        channel=enum_number(common_pb2.Channel, "CHANNEL", purchase.channel),
    )


def profile_to_proto(
    profile: Profile, complaints: Iterable[str], now: datetime
) -> recommendations_pb2.Profile:
    """The whole resource; `complaints` are ticket ids."""
    consented = {channel for channel in Channel if profile.consented(channel, now)} - {Channel.UNSPECIFIED}
    return recommendations_pb2.Profile(
        name=f"customers/{profile.customer}/profile",
        numbers=profile.numbers,
        tier=profile.tier,
        value_class=profile.value_class,
        language=profile.language,
        tags=sorted(profile.tags),
        products=sorted(profile.products),
        open_complaints=sorted(resource_name("tickets", ticket) for ticket in complaints),
        refused_channels=sorted(
            enum_number(common_pb2.Channel, "CHANNEL", c) for c in profile.refused_channels
        ),
        update_time=timestamp(profile.updated_at),
        wants_to_leave=profile.wants_to_leave,
        churn_risk=profile.churn_risk,
        care_occasions=[
            recommendations_pb2.CareOccasion(care_task=resource_name("careTasks", task), kind=kind)
            for task, kind in profile.care.items()
            if kind
        ],
        consented_channels=sorted(enum_number(common_pb2.Channel, "CHANNEL", c) for c in consented),
        merged_customers=[resource_name("customers", customer) for customer in profile.absorbed],
        merged_into=resource_name("customers", profile.merged_into) if profile.merged_into else "",
    )


def model_to_proto(info: ModelInfo, kind: Any) -> recommendations_pb2.Model:
    """The whole resource; `kind` is the proto's number."""
    return recommendations_pb2.Model(
        name=resource_name("models", info.id),
        kind=kind,
        version=info.version,
        state=enum_number(recommendations_pb2.ModelState, "MODEL_STATE", info.state),
        failure=info.failure if info.state is ModelState.FAILED else "",
        customer_count=info.customer_count,
        example_count=info.example_count,
        rule_count=info.rule_count,
        metrics=info.metrics,
        create_time=timestamp(info.created_at),
        activate_time=timestamp(info.activated_at),
    )


#: What UpdatePolicy may change.
POLICY_CHANGEABLE = frozenset(
    {"holdout_ratio", "exploration_ratio", "fatigue_offers_max", "fatigue_days", "expected_value_min"}
)


def policy_to_proto(policy: Policy) -> recommendations_pb2.Policy:
    """The whole resource."""
    return recommendations_pb2.Policy(
        name=resource_name("policies", policy.id),
        holdout_ratio=policy.holdout_ratio,
        exploration_ratio=policy.exploration_ratio,
        fatigue_offers_max=policy.fatigue_offers_max,
        fatigue_days=policy.fatigue_days,
        expected_value_min=money_to_proto(policy.expected_value_min),
        etag=etag(policy.version) if policy.version else "",
        update_time=timestamp(policy.updated_at),
    )


def policy_from_proto(message: Any, currency: str) -> Policy:
    """A policy; InvalidArgument names every bad field under "policy."."""
    problems: list[Problem] = []
    for field, least, most in (
        ("holdout_ratio", HOLDOUT_MIN, HOLDOUT_MAX),
        ("exploration_ratio", 0, EXPLORATION_MAX),
        ("fatigue_offers_max", 0, FATIGUE_OFFERS_MAX),
        ("fatigue_days", 1, FATIGUE_DAYS_MAX),
    ):
        if not least <= getattr(message, field) <= most:
            problems.append((field, f"must be {least} to {most}"))
    worth = _optional_money(message, "expected_value_min", problems)
    if worth is not None and (worth.currency != currency or worth.amount < 0):
        problems.append(("expected_value_min", f"must be an amount of {currency}, not negative"))
    if problems:
        raise InvalidArgument.many([(f"policy.{field}", why) for field, why in problems])
    return Policy(
        holdout_ratio=message.holdout_ratio,
        exploration_ratio=message.exploration_ratio,
        fatigue_offers_max=message.fatigue_offers_max,
        fatigue_days=message.fatigue_days,
        expected_value_min=worth,
    )


def interval_ends(field: str, message: Any) -> tuple[datetime | None, datetime | None]:
    """(start, end) of an interval, None for an open end. InvalidArgument."""
    problems: list[Problem] = []
    start, end = (
        _time(f"{field}.{name}", getattr(message, name), problems) if message.HasField(name) else None
        for name in ("start_time", "end_time")
    )
    if start and end and end <= start:
        problems.append((f"{field}.end_time", "must be after start_time"))
    if problems:
        raise InvalidArgument.many(problems)
    return start, end


def span_of(
    field: str, message: Any, now: datetime, usual: timedelta, longest: timedelta
) -> tuple[datetime, datetime]:
    """(start, end) of an interval that is read as a whole: an unset end is now, what happens at this moment
    included, an unset start is so long before the end as usual. InvalidArgument for one that is too long.
    """
    start, end = interval_ends(field, message)
    end = end or now + timedelta(milliseconds=1)
    start = start or end - usual
    if start >= end:
        raise InvalidArgument(field=f"{field}.start_time", why="must be before now where end_time is unset")
    if end - start > longest:
        raise InvalidArgument(field=field, why=f"must span at most {longest.days} days")
    return start, end


def evaluation_to_proto(found: Any, start: datetime, end: datetime) -> recommendations_pb2.PolicyEvaluation:
    """A `learned.Evaluation` of a span as the proto's."""

    def estimate(value: Estimate) -> recommendations_pb2.Estimate:
        return recommendations_pb2.Estimate(value=value.value, lower=value.lower, upper=value.upper)

    compared = found.comparison
    return recommendations_pb2.PolicyEvaluation(
        inverse_propensity=estimate(compared.inverse_propensity),
        self_normalised=estimate(compared.self_normalised),
        doubly_robust=estimate(compared.doubly_robust),
        logged=estimate(compared.logged),
        uplift=estimate(found.uplift),
        qini=found.qini,
        decision_count=found.count,
        effective_count=compared.effective_count,
        examined_count=found.examined,
        truncated=found.truncated,
        interval=common_pb2.Interval(start_time=timestamp(start), end_time=timestamp(end)),
    )


# --- events -------------------------------------------------------------------------------------------


def _snapshot(offer: Offer) -> events_pb2.OfferSnapshot:
    return events_pb2.OfferSnapshot(
        offer=resource_name("offers", offer.id),
        revision=offer.version,
        product=offer.product,
        titles=texts_to_proto(offer.titles),
        price=money_to_proto(offer.price),
        validity=_interval(offer),
        tags=offer.tags,
    )


def offer_event(offer: Offer, now: datetime, published: bool) -> Event:
    """What became of an offer that is or was published; `published` says that it was published just now."""
    message: Any
    if offer.state is OfferState.RETIRED:
        message = events_pb2.OfferRetired(offer=_snapshot(offer), retire_time=timestamp(now))
    elif published:
        message = events_pb2.OfferPublished(offer=_snapshot(offer), publish_time=timestamp(now))
    else:
        message = events_pb2.OfferUpdated(offer=_snapshot(offer), update_time=timestamp(now))
    return Event.of(message, source=SOURCE, subject=resource_name("offers", offer.id), time=now)


def _subject(decision: Decision) -> str:
    return optional_name("customers", decision.customer) or resource_name("decisions", decision.id)


def outcome_event(decision: Decision) -> Event:
    """What became of a recommendation; for a closed decision."""
    outcome = decision.outcome
    if outcome is None:
        raise ValueError("an open decision has no outcome to tell of")
    entry = decision.find(outcome.offer)
    accepted = entry if outcome.result is Result.ACCEPTED else None
    message = events_pb2.OfferOutcomeRecorded(
        decision=resource_name("decisions", decision.id),
        customer=optional_name("customers", decision.customer),
        caller_number=decision.number,
        call_id=decision.contact.call_id,
        offer=optional_name("offers", outcome.offer),
        product=entry.product if entry else "",
        titles=texts_to_proto(entry.titles) if entry else [],
        result=result_number(outcome.result),
        agent=outcome.agent,
        region=decision.contact.region,
        price=money_to_proto(accepted.price) if accepted else None,
        value=money_to_proto(accepted.worth) if accepted else None,
        declined_offers=[resource_name("offers", offer) for offer in outcome.declined],
        outcome_time=timestamp(outcome.at),
    )
    # Its id follows from the decision: the event of a closing that is tried again is the same event.
    return Event.of(
        message, source=SOURCE, subject=_subject(decision), time=outcome.at, id=f"outcome:{decision.id}"
    )


def model_event(model: str, previous: str, rollback: bool, now: datetime) -> Event:
    """Another model serves."""
    message = events_pb2.ModelActivated(
        model=resource_name("models", model),
        previous_model=optional_name("models", previous),
        rollback=rollback,
        activate_time=timestamp(now),
    )
    return Event.of(message, source=SOURCE, subject=resource_name("models", model), time=now)


# --- what other services say --------------------------------------------------------------------------


def profile_from_snapshot(snapshot: Any, at: datetime) -> Profile:
    """A customer as crm's `CustomerSnapshot` tells it. Languages are cut to their primary subtag, enums read
    by name.
    """
    decided = [c for c in snapshot.consents if c.purpose == customers_pb2.PURPOSE_MARKETING]
    refused = {
        enum_member(common_pb2.Channel, "CHANNEL", consent.channel, Channel)
        for consent in decided
        if not consent.granted
    }
    granted = {
        enum_member(common_pb2.Channel, "CHANNEL", consent.channel, Channel): (
            moment(consent.expire_time) if consent.HasField("expire_time") else None
        )
        for consent in decided
        if consent.granted
    }
    consented = [moment(c.decide_time) for c in decided if c.granted and c.HasField("decide_time")]
    alive = snapshot.state in (
        customers_pb2.CUSTOMER_STATE_ACTIVE,
        customers_pb2.CUSTOMER_STATE_UNSPECIFIED,
    )
    return Profile(
        customer=parse_name("customer", "customers", snapshot.customer),
        numbers=tuple(snapshot.numbers) if alive else (),
        tier=_enum_text(customers_pb2.Tier, "TIER_", snapshot.tier).lower(),
        value_class=_enum_text(customers_pb2.ValueClass, "VALUE_CLASS_", snapshot.value_class),
        language=primary_language(snapshot.language) if snapshot.language else "",
        tags=frozenset(snapshot.tags),
        home_region=snapshot.home_region,
        display_name=snapshot.display_name if alive else "",
        time_zone=snapshot.time_zone,
        # Kept for no longer than there is leave to use them.
        email_addresses=(
            tuple(snapshot.email_addresses[:EMAILS_MAX]) if alive and Channel.EMAIL in granted else ()
        ),
        refused_channels=frozenset(channel for channel in refused if channel),
        consents={channel: ends for channel, ends in granted.items() if channel} if alive else {},
        quiet_windows=tuple(map(_quiet_window, snapshot.quiet_windows)) if alive else (),
        consented_at=max(consented, default=None),
        alive=alive,
        merged_into=(
            parse_name("merged_into", "customers", snapshot.merged_into) if snapshot.merged_into else ""
        ),
        crm_version=snapshot.version,
        updated_at=at,
    )


def _quiet_window(window: Any) -> QuietWindow:
    channels = (enum_member(common_pb2.Channel, "CHANNEL", channel, Channel) for channel in window.channels)
    return QuietWindow(
        weekdays=frozenset(window.weekdays),
        start_minute=window.start_minute,
        end_minute=window.end_minute,
        channels=frozenset(channel for channel in channels if channel),
    )


def complaint_from_snapshot(snapshot: Any, at: datetime) -> Complaint:
    """A complaint as tickets' `TicketSnapshot` tells it; whether it is unresolved follows from the phase."""
    return Complaint(
        ticket=parse_name("ticket", "tickets", snapshot.ticket),
        customer=parse_name("customer", "customers", snapshot.customer) if snapshot.customer else "",
        number=snapshot.caller_number,
        open=snapshot.phase
        in (
            ticket_pb2.TICKET_PHASE_NEW,
            ticket_pb2.TICKET_PHASE_ACTIVE,
            ticket_pb2.TICKET_PHASE_WAITING,
        ),
        version=snapshot.version,
        at=at,
    )


def _enum_text(wrapper: Any, prefix: str, number: int) -> str:
    names: Mapping[int, str] = {value: name for name, value in wrapper.items()}
    text = names.get(number, "").removeprefix(prefix)
    return "" if text == "UNSPECIFIED" else text
