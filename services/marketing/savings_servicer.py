"""SavingsService: tariffs, what customers use, and the cheapest combination for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from google.protobuf.empty_pb2 import Empty

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import savings_pb2, savings_pb2_grpc, types_pb2
from chassis.clock import Clock
from chassis.errors import AlreadyExists, EtagMismatch, FailedPrecondition, InvalidArgument, NotFound
from chassis.ids import parse_name
from chassis.mongo import retry_conflicts
from marketing import convert
from marketing.engine import Problem, audience_fits, audience_problems
from marketing.kinds import TARIFFS, USAGE, TariffNotFound
from marketing.model import Contact, Profile
from marketing.resources import Desk, Resource, money_problems, name_problems, texts_problems
from marketing.savings_engine import (
    MeterPrice,
    Quote,
    Tariff,
    Tier,
    TooManyCombinations,
    Usage,
    cheapest,
    quote,
)
from marketing.shelf import Row, Shelves
from marketing.store import Store

#: Bounds.
RECORDS_MAX = 1_000
MONTHS_MAX = 24
METERS_MAX = 32
TARIFFS_MAX = 2_000
REFERENCES_MAX = 500
METER_PRICES_MAX = 32
TIERS_MAX = 20
RESULTS_MAX = 10
DEFAULT_MONTHS = 6
#: Largest quantity.
QUANTITY_MAX = Decimal(10) ** 15

_METER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_QUANTITY = re.compile(r"[0-9]{1,18}(\.[0-9]{1,6})?")
_CENT = Decimal("0.01")


class TariffReferenced(FailedPrecondition):
    """{subject} is referred to: {why}."""

    reason = "TARIFF_REFERENCED"


class NoUsage(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NO_USAGE"


def _decimal(field: str, text: str, problems: list[Problem]) -> Decimal:
    if not text:
        return Decimal(0)
    if not _QUANTITY.fullmatch(text) or Decimal(text) > QUANTITY_MAX:
        problems.append((field, "must be a decimal number, not negative"))
        return Decimal(0)
    return Decimal(text)


def _meter_problems(at: str, price: Any, currency: str) -> list[Problem]:
    found: list[Problem] = []
    if not _METER.fullmatch(price.meter):
        found.append((f"{at}.meter", "must be a lower-case name with digits and _"))
    _decimal(f"{at}.included_quantity", price.included_quantity, found)
    _decimal(f"{at}.charging_step", price.charging_step, found)
    if len(price.tiers) > TIERS_MAX:
        found.append((f"{at}.tiers", f"at most {TIERS_MAX} are allowed"))
    below = Decimal(0)
    for number, tier in enumerate(price.tiers[:TIERS_MAX]):
        where = f"{at}.tiers[{number}]"
        top = _decimal(f"{where}.up_to_quantity", tier.up_to_quantity, found)
        last = number == len(price.tiers) - 1
        if last is bool(tier.up_to_quantity):
            found.append((f"{where}.up_to_quantity", "must be empty in the last tier, and only there"))
        elif not last and top <= below:
            found.append((f"{where}.up_to_quantity", "must rise from tier to tier"))
        below = top
        if not tier.HasField("unit_price"):
            found.append((f"{where}.unit_price", "must be set"))
        found += money_problems(f"{where}.", tier, "unit_price", currency)
    return found


def tariff_problems(message: Any, currency: str) -> list[Problem]:
    """Everything wrong with a tariff."""
    found = texts_problems("titles", message.titles, characters_max=200)
    if message.kind not in (savings_pb2.TARIFF_KIND_PLAN, savings_pb2.TARIFF_KIND_ADD_ON):
        found.append(("kind", "must be PLAN or ADD_ON"))
    if not message.HasField("monthly_fee"):
        found.append(("monthly_fee", "must be set"))
    found += money_problems("", message, "monthly_fee", currency)
    if len(message.meter_prices) > METER_PRICES_MAX:
        found.append(("meter_prices", f"at most {METER_PRICES_MAX} are allowed"))
    meters = [price.meter for price in message.meter_prices]
    if len(set(meters)) < len(meters):
        found.append(("meter_prices", "a meter occurs twice"))
    for number, price in enumerate(message.meter_prices[:METER_PRICES_MAX]):
        found += _meter_problems(f"meter_prices[{number}]", price, currency)
    for field in ("plans", "excluded_tariffs"):
        names = getattr(message, field)
        if len(names) > REFERENCES_MAX:
            found.append((field, f"at most {REFERENCES_MAX} are allowed"))
        for number, name in enumerate(names[:REFERENCES_MAX]):
            found += name_problems(f"{field}[{number}]", "tariffs", name)
    if message.kind == savings_pb2.TARIFF_KIND_PLAN and (message.plans or message.quantity_max):
        found.append(("plans", "a plan has neither plans nor a quantity"))
    if not 0 <= message.quantity_max <= 20:
        found.append(("quantity_max", "must be 0 to 20"))
    if not 0 <= message.contract_months <= 120:
        found.append(("contract_months", "must be 0 to 120"))
    if message.product:
        convert.checked_id("product", message.product, found)
    found += audience_problems(convert.audience_from_proto("audience", message.audience, found))
    start, end = _validity(message)
    if start is not None and end is not None and end <= start:
        found.append(("validity.end_time", "must be after start_time"))
    return found


def _validity(message: Any) -> tuple[datetime | None, datetime | None]:
    """When a tariff may be taken, None for an open end."""
    start, end = (
        convert.moment(getattr(message.validity, name)) if message.validity.HasField(name) else None
        for name in ("start_time", "end_time")
    )
    return start, end


def tariff_of(message: Any) -> Tariff:
    """A sound message as the engine's value."""
    return Tariff(
        id=message.name.removeprefix("tariffs/"),
        is_plan=message.kind == savings_pb2.TARIFF_KIND_PLAN,
        fee=Decimal(message.monthly_fee.amount),
        meters={price.meter: _price_of(price) for price in message.meter_prices},
        plans=frozenset(name.removeprefix("tariffs/") for name in message.plans),
        excluded=frozenset(name.removeprefix("tariffs/") for name in message.excluded_tariffs),
        quantity_max=message.quantity_max or 1,
    )


def _price_of(price: Any) -> MeterPrice:
    return MeterPrice(
        included=Decimal(price.included_quantity or 0),
        tiers=tuple(
            Tier(
                up_to=Decimal(tier.up_to_quantity) if tier.up_to_quantity else None,
                unit_price=Decimal(tier.unit_price.amount),
            )
            for tier in price.tiers
        ),
        step=Decimal(price.charging_step or 0),
    )


def _keys(message: Any) -> dict[str, Any]:
    return {
        "kind": message.kind,
        "refers": sorted(
            {name.removeprefix("tariffs/") for name in (*message.plans, *message.excluded_tariffs)}
        ),
    }


class SavingsServicer(savings_pb2_grpc.SavingsServiceServicer):
    """SavingsService."""

    def __init__(self, shelves: Shelves, store: Store, clock: Clock, currency: str) -> None:
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._currency = currency
        self._tariffs = Desk(
            Resource(
                service="SavingsService",
                field="tariff",
                kind=TARIFFS,
                message=savings_pb2.Tariff,
                problems=lambda message, _: tariff_problems(message, currency),
                keys=_keys,
            ),
            shelves,
            clock,
        )

    def CreateTariff(self, request: savings_pb2.CreateTariffRequest, context: Any) -> savings_pb2.Tariff:
        """Adds one."""
        return self._tariffs.create(request)

    def GetTariff(self, request: savings_pb2.GetTariffRequest, context: Any) -> savings_pb2.Tariff:
        """Reads one."""
        return self._tariffs.get(request)

    def ListTariffs(
        self, request: savings_pb2.ListTariffsRequest, context: Any
    ) -> savings_pb2.ListTariffsResponse:
        """A page by id."""
        rows, token = self._tariffs.list(request, {"kind": request.kind} if request.kind else {})
        return savings_pb2.ListTariffsResponse(tariffs=rows, next_page_token=token)

    def UpdateTariff(self, request: savings_pb2.UpdateTariffRequest, context: Any) -> savings_pb2.Tariff:
        """Changes one."""
        return self._tariffs.update(request)

    def DeleteTariff(self, request: savings_pb2.DeleteTariffRequest, context: Any) -> Empty:
        """Removes one that no other refers to."""

        def allowed(message: Any) -> None:
            id = message.name.removeprefix("tariffs/")
            if users := self._shelves.find(TARIFFS, {"refers": id}, 1):
                raise TariffReferenced(subject=message.name, why=f"by tariffs/{users[0].id}")

        self._tariffs.delete(request, allowed)
        return Empty()

    def RecordUsage(
        self, request: savings_pb2.RecordUsageRequest, context: Any
    ) -> savings_pb2.RecordUsageResponse:
        """All or none is checked; then month by month."""
        if not 1 <= len(request.records) <= RECORDS_MAX:
            raise InvalidArgument(field="records", why=f"must hold 1 to {RECORDS_MAX} records")
        months = _by_month("records", request.records, customer_required=True)
        for (customer, month), meters in months.items():
            retry_conflicts(lambda c=customer, m=month, q=meters: self._keep(c, m, q))  # type: ignore[misc]
        return savings_pb2.RecordUsageResponse(recorded_count=len(request.records))

    def _keep(self, customer: str, month: str, meters: Mapping[str, Decimal]) -> None:
        id, now = f"{customer}:{month}", self._clock.now()
        texts = {meter: f"{quantity:f}" for meter, quantity in meters.items()}
        try:
            row = self._shelves.get(USAGE, id)
        except NotFound:
            row = Row(id=id, content={"meters": texts}, keys={"customer": customer, "month": month})
            try:
                self._shelves.insert(USAGE, row, now)
            except AlreadyExists:
                raise EtagMismatch(resource=f"usage/{id}") from None
            return
        self._shelves.update(USAGE, replace(row, content={"meters": {**row.content["meters"], **texts}}), now)

    def FindCheapestPlan(
        self, request: savings_pb2.FindCheapestPlanRequest, context: Any
    ) -> savings_pb2.FindCheapestPlanResponse:
        """The cheapest combinations, exactly."""
        customer = parse_name("customer", "customers", request.customer) if request.customer else ""
        if not 0 <= request.max_results <= RESULTS_MAX:
            raise InvalidArgument(field="max_results", why=f"must be 0 to {RESULTS_MAX}")
        months = self._months(request, customer)
        rows = self._shelves.find(TARIFFS, {}, TARIFFS_MAX + 1)
        if len(rows) > TARIFFS_MAX:
            raise TooManyCombinations(subject="tariffs", why=f"at most {TARIFFS_MAX} tariffs are compared")
        messages = {row.id: self._tariffs.shown(row) for row in rows}
        profile = (self._store.profile(customer) if customer else None) or Profile(customer=customer)
        offered = [tariff_of(message) for message in messages.values() if self._offered(message, profile)]
        found, compared = cheapest(offered, months, request.max_results or 3)
        present = self._present(request.present_tariffs, messages, months)
        titles = {id: {t.language: t.text for t in message.titles} for id, message in messages.items()}
        response = savings_pb2.FindCheapestPlanResponse(
            quotes=[self._quote(one, present, titles) for one in found], combination_count=compared
        )
        if present is not None:
            response.present.CopyFrom(self._quote(present, None, titles))
        return response

    def _months(self, request: Any, customer: str) -> list[Usage]:
        if request.usage:
            if len(request.usage) > MONTHS_MAX * METERS_MAX:
                raise InvalidArgument(field="usage", why=f"at most {MONTHS_MAX * METERS_MAX} records")
            by_month = _by_month("usage", request.usage, customer_required=False)
            months = {month for _, month in by_month}
            meters = {meter for usage in by_month.values() for meter in usage}
            if len(months) > MONTHS_MAX or len(meters) > METERS_MAX:
                raise InvalidArgument(
                    field="usage", why=f"at most {MONTHS_MAX} months of {METERS_MAX} meters"
                )
            return [
                _sum(usage for (_, at), usage in by_month.items() if at == month) for month in sorted(months)
            ]
        if not 0 <= request.months <= MONTHS_MAX:
            raise InvalidArgument(field="months", why=f"must be 0 to {MONTHS_MAX}")
        rows = []
        if customer:
            rows = self._recorded(customer, request.months or DEFAULT_MONTHS)
        if not rows:
            raise NoUsage(subject=request.customer or "customer", why="no usage is given or recorded")
        return rows

    def _recorded(self, customer: str, months: int) -> list[Usage]:
        """The latest months of usage, with that of whoever was merged into the customer."""
        profile = self._store.profile(customer)
        people = [customer, *(profile.absorbed if profile is not None else ())]
        by_month: dict[str, list[Usage]] = {}
        for one in people:
            for row in self._shelves.find(USAGE, {"customer": one}, months, order="-month"):
                meters = {meter: Decimal(text) for meter, text in row.content["meters"].items()}
                by_month.setdefault(row.keys["month"], []).append(meters)
        return [_sum(by_month[month]) for month in sorted(by_month, reverse=True)[:months]]

    def _offered(self, message: Any, profile: Profile) -> bool:
        """Whether a tariff may be taken now by this customer."""
        start, end = _validity(message)
        now = self._clock.now()
        if (start is not None and now < start) or (end is not None and now >= end):
            return False
        return audience_fits(
            convert.audience_from_proto("audience", message.audience, []), profile, Contact()
        )

    def _present(
        self, names: Sequence[str], messages: Mapping[str, Any], months: Sequence[Usage]
    ) -> Quote | None:
        if not names:
            return None
        tariffs = []
        for number, name in enumerate(names):
            id = parse_name(f"present_tariffs[{number}]", "tariffs", name)
            if id not in messages:
                raise TariffNotFound(resource=name)
            tariffs.append(tariff_of(messages[id]))
        plans = [tariff for tariff in tariffs if tariff.is_plan]
        if len(plans) != 1:
            raise InvalidArgument(field="present_tariffs", why="must hold exactly one plan")
        return quote(plans[0], [tariff for tariff in tariffs if not tariff.is_plan], months)

    def _quote(self, made: Quote, present: Quote | None, titles: Mapping[str, Mapping[str, str]]) -> Any:
        message = savings_pb2.PlanQuote(
            plan=f"tariffs/{made.plan}",
            add_ons=[f"tariffs/{id}" for id in made.add_ons],
            monthly_cost=self._money(made.cost),
            lines=[
                savings_pb2.BillLine(
                    tariff=f"tariffs/{line.tariff}",
                    meter=line.meter,
                    quantity=f"{line.quantity.quantize(_CENT):f}",
                    amount=self._money(line.amount),
                )
                for line in made.lines
            ],
        )
        saving = None if present is None else present.cost - made.cost
        if saving is not None:
            message.monthly_saving.CopyFrom(self._money(saving))
        message.texts.extend(_words(made, saving, titles, self._currency))
        return message

    def _money(self, amount: Decimal) -> common_pb2.Money:
        rounded = amount.quantize(_CENT, ROUND_HALF_EVEN)
        return common_pb2.Money(currency_code=self._currency, amount=f"{rounded:f}")


def _sum(months: Any) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for usage in months:
        for meter, quantity in usage.items():
            total[meter] = total.get(meter, Decimal(0)) + quantity
    return total


def _by_month(
    field: str, records: Sequence[Any], *, customer_required: bool
) -> dict[tuple[str, str], dict[str, Decimal]]:
    """Quantities by customer, month and meter; InvalidArgument names every bad one."""
    problems: list[Problem] = []
    found: dict[tuple[str, str], dict[str, Decimal]] = {}
    for number, record in enumerate(records):
        at = f"{field}[{number}]"
        customer = convert._name_id(f"{at}.customer", "customers", record.customer, problems)
        if customer_required and not record.customer:
            problems.append((f"{at}.customer", "must not be empty"))
        if not _MONTH.fullmatch(record.month):
            problems.append((f"{at}.month", 'must be "YYYY-MM"'))
        if not _METER.fullmatch(record.meter):
            problems.append((f"{at}.meter", "must be a lower-case name with digits and _"))
        if not record.quantity:
            problems.append((f"{at}.quantity", "must not be empty"))
        quantity = _decimal(f"{at}.quantity", record.quantity, problems)
        found.setdefault((customer, record.month), {})[record.meter] = quantity
    if problems:
        raise InvalidArgument.many(problems)
    return found


def _words(
    made: Quote, saving: Decimal | None, titles: Mapping[str, Mapping[str, str]], currency: str
) -> list[types_pb2.LocalizedText]:
    """A sentence that can be said aloud, by language."""

    def title(id: str, language: str) -> str:
        names = titles.get(id, {})
        return names.get(language) or next(iter(names.values()), id)

    texts = []
    for language, plain, better, joint in (
        ("zh", "{plan}每月约{cost}元。", "改用{plan}每月约{cost}元，每月可省{saving}元。", "加"),
        ("en", "{plan} is about {cost} {currency} a month.",
         "With {plan} it is about {cost} {currency} a month, {saving} {currency} less.", " and "),
    ):  # fmt: skip
        plan = joint.join(title(id, language) for id in (made.plan, *made.add_ons))
        form = better if saving is not None and saving > 0 else plain
        words = form.format(
            plan=plan,
            cost=f"{made.cost.quantize(_CENT):f}",
            saving=f"{(saving or Decimal(0)).quantize(_CENT):f}",
            currency=currency,
        )
        texts.append(types_pb2.LocalizedText(language=language, text=words))
    return texts
