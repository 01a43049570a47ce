"""ReportService: what marketing earns and costs, by campaign, agent, region, reason, offer, day and month;
also as a chart.

Revenue is the worth of accepted offers, at the time they were accepted, of what people bought by campaigns,
and of won leads. Who accepted an offer in a call and is noted as a buyer of a campaign for the same offer
bought once: the acceptance counts, and is the campaign's. Costs are what was recorded, the unit costs of
accepted offers and of what campaigns sold, the fixed costs of campaigns when they start, and the unit costs
of their touches that left. A row that has no value for a dimension shows "". Touches are kept for a time
(touch_retention.py): a report that would need older ones says since when.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.json_format import MessageToDict, ParseDict

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import leads_pb2, reports_pb2, reports_pb2_grpc
from chassis.clock import Clock
from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, within
from chassis.ids import check_id
from chassis.pagination import Page
from marketing import convert
from marketing.decision_figures import COUNTING_MS_MAX, KEYS, TIME, Acceptance, TooLong, quarter
from marketing.engine import OfferNotFound
from marketing.kinds import CAMPAIGNS, COSTS, LEADS
from marketing.resources import money_problems, name_problems, text_problems
from marketing.sale_store import Sale
from marketing.shelf import Kind, Row, Shelves
from marketing.store import Store
from marketing.touch_retention import campaigns_of, forgotten, kept_since, over_since

R = reports_pb2
DAYS_MAX = 400
DIMENSIONS_MAX = 3
#: Decisions of the span, and sales, that are counted; beyond it the report is refused, not cut.
DECISIONS_MAX = 2_000_000
SALES_MAX = 200_000
PAGE = 1_000
PIXELS = (200, 4_000)
BARS_MAX = 20


class NothingToDraw(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NOTHING_TO_DRAW"


class TooMuchToReport(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TOO_MUCH_TO_REPORT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """Something that was earned, spent or offered."""

    at: datetime
    #: Values by dimension name.
    values: Mapping[str, str] = field(default_factory=dict)
    offered: int = 0
    accepted: int = 0
    revenue: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)


#: What campaigns sold and no decision tells of, by customer and offer.
Sales = dict[tuple[str, str], list[Sale]]


@dataclass(kw_only=True, slots=True)
class Sums:
    """Figures of one row."""

    keys: tuple[str, ...] = ()
    offered: int = 0
    accepted: int = 0
    revenue: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)

    def add(self, fact: Fact) -> None:
        """Counts a fact in."""
        self.offered += fact.offered
        self.accepted += fact.accepted
        self.revenue += fact.revenue
        self.cost += fact.cost


def summed(facts: Iterator[Fact], dimensions: Sequence[str], zone: tzinfo) -> tuple[list[Sums], Sums]:
    """(rows, the largest profit first, equal ones by their keys; the total)."""
    rows: dict[tuple[str, ...], Sums] = {}
    total = Sums()
    for fact in facts:
        local = fact.at.astimezone(zone)
        days = {"DAY": f"{local:%Y-%m-%d}", "MONTH": f"{local:%Y-%m}"}
        keys = tuple(days.get(name) or fact.values.get(name, "") for name in dimensions)
        rows.setdefault(keys, Sums(keys=keys)).add(fact)
        total.add(fact)
    ordered = sorted(rows.values(), key=lambda row: (row.cost - row.revenue, row.keys))
    return ordered, total


class ReportServicer(reports_pb2_grpc.ReportServiceServicer):
    """ReportService."""

    def __init__(
        self, shelves: Shelves, store: Store, clock: Clock, currency: str, touches_days: float
    ) -> None:
        """`touches_days` says for how long touches are kept."""
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._currency = currency
        self._touches_days = touches_days

    def GetProfitReport(self, request: R.GetProfitReportRequest, context: Any) -> R.ProfitReport:
        """Revenue, cost and profit by the dimensions asked for."""
        page = Page.of(request)
        seen: Counter[str] = Counter()
        rows, total = self._report(request, seen)
        shown, token = page.part(rows)
        return R.ProfitReport(
            rows=[self._row(row) for row in shown],
            total=self._row(total),
            next_page_token=token,
            read_time=convert.timestamp(self._clock.now()),
            touches_kept_since=convert.timestamp(self._incomplete(request)),
            examined_count=seen.total(),
        )

    def _incomplete(self, request: Any) -> datetime | None:
        """Since when touches are kept, where the report would need older ones; else None."""
        start, _ = convert.interval_ends("interval", request.interval)
        since = kept_since(self._clock.now(), self._touches_days)
        if start is None or start >= since:
            return None
        # One that was over before the span began has nothing in it.
        needed = (
            row
            for row in campaigns_of(self._shelves)
            if forgotten(row, since) and (over_since(row) or start) >= start and _pays_touches(row)
        )
        return since if next(needed, None) is not None else None

    def _report(self, request: Any, seen: Counter[str]) -> tuple[list[Sums], Sums]:
        """(rows, total); `seen` counts what was looked at, by kind."""
        start, end = convert.interval_ends("interval", request.interval)
        if start is None or end is None or end - start > timedelta(days=DAYS_MAX):
            raise InvalidArgument(field="interval", why=f"needs both ends, at most {DAYS_MAX} days apart")
        known = {number for number in R.ReportDimension.values() if number}
        if len(request.dimensions) > DIMENSIONS_MAX or not known.issuperset(request.dimensions):
            raise InvalidArgument(
                field="dimensions", why=f"at most {DIMENSIONS_MAX}, none unspecified or unknown"
            )
        try:
            zone = ZoneInfo(request.time_zone or "UTC")
        except (KeyError, ValueError, OSError):
            raise InvalidArgument(field="time_zone", why="is not an IANA time zone") from None
        names = [
            R.ReportDimension.Name(number).removeprefix("REPORT_DIMENSION_") for number in request.dimensions
        ]
        try:
            return summed(self._facts(start, end, names, seen), names, zone)
        except TooLong:
            raise TooMuchToReport(
                subject="report", why=f"counting took more than {COUNTING_MS_MAX // 1_000} s"
            ) from None

    def _facts(
        self, start: datetime, end: datetime, names: Sequence[str], seen: Counter[str]
    ) -> Iterator[Fact]:
        sales = self._sales(start, end, seen)
        yield from self._decisions(start, end, names, sales, seen)
        for (_, offer), left in sales.items():
            for sale in left:
                campaign = {"CAMPAIGN": f"campaigns/{sale.campaign}", "OFFER": offer}
                values = {**campaign, "REGION": sale.region, "AGENT": sale.agent}
                yield Fact(at=sale.at, values=values, accepted=1, revenue=sale.worth, cost=sale.cost)
        for row in self._dated(LEADS, "won_at", start, end, {"state": leads_pb2.LEAD_STATE_WON}):
            seen["leads"] += 1
            lead = row.content["resource"]
            values = {name.upper(): lead.get(name, "") for name in ("campaign", "agent", "region")}
            worth = Decimal(lead["won_value"]["amount"])
            yield Fact(at=row.keys["won_at"], values=values, revenue=worth)
        for row in self._dated(COSTS, "at", start, end, {}):
            seen["costs"] += 1
            cost = row.content["resource"]
            values = {name.upper(): cost.get(name, "") for name in ("campaign", "agent", "region")}
            yield Fact(at=row.keys["at"], values=values, cost=Decimal(cost["amount"]["amount"]))
        for row in self._paged(CAMPAIGNS, {}):
            yield from self._campaign_costs(row, start, end)

    def _campaign_costs(self, row: Row, start: datetime, end: datetime) -> Iterator[Fact]:
        resource = row.content["resource"]
        values = {"CAMPAIGN": f"campaigns/{row.id}"}
        began = resource.get("start_time")
        fixed = resource.get("fixed_cost")
        if began and fixed:
            at = datetime.fromisoformat(began)
            if start <= at < end:
                yield Fact(at=at, values=values, cost=Decimal(fixed["amount"]))
        for phase in resource.get("phases", ()):
            for step in phase.get("steps", ()):
                if price := step.get("unit_cost"):
                    prefix = f"{row.id}/{phase['phase_id']}/{step['step_id']}"
                    for at, region, count in self._store.touch_days(prefix, start, end):
                        there = {**values, "REGION": region}
                        yield Fact(at=at, values=there, cost=Decimal(price["amount"]) * count)

    def _paged(self, kind: Kind, condition: Mapping[str, Any]) -> Iterator[Row]:
        after = None
        while True:
            rows = self._shelves.find(kind, condition, PAGE, after=after)
            yield from rows
            if len(rows) < PAGE:
                return
            after = rows[-1].id

    def _dated(
        self, kind: Kind, key: str, start: datetime, end: datetime, also: Mapping[str, Any]
    ) -> Iterator[Row]:
        """Rows that a key dates from `start` on and before `end`, by the index over it."""
        after = None
        while True:
            span = {"$gte": start if after is None else after[0], "$lt": end}
            rows = self._shelves.find(kind, {key: span, **also}, PAGE, after=after, order=key)
            yield from rows
            if len(rows) < PAGE:
                return
            after = (rows[-1].keys[key], rows[-1].id)

    def _sales(self, start: datetime, end: datetime, seen: Counter[str]) -> Sales:
        """What campaigns sold, by customer and offer ("offers/…")."""
        found = self._store.sales(start, end, SALES_MAX + 1)
        if len(found) > SALES_MAX:
            raise TooMuchToReport(subject="report", why=f"more than {SALES_MAX} sales of campaigns")
        seen["sales"] += len(found)
        offers = {
            row.id: row.content["resource"].get("offer", "") for row in self._paged(CAMPAIGNS, {}) if found
        }
        sales: Sales = {}
        for sale in found:
            sales.setdefault((sale.customer, offers.get(sale.campaign, "")), []).append(sale)
        return sales

    def _decisions(
        self, start: datetime, end: datetime, names: Sequence[str], sales: Sales, seen: Counter[str]
    ) -> Iterator[Fact]:
        """That something was offered, and that it was accepted: each on its own day. Those that a campaign
        brought about leave `sales`.
        """
        made = self._store.made_count(start, end, DECISIONS_MAX + 1)
        if made > DECISIONS_MAX:
            raise TooMuchToReport(subject="report", why=f"more than {DECISIONS_MAX} decisions")
        seen["decisions"] += made
        by = [key for key in KEYS if key in names or (key == TIME and not {"DAY", "MONTH"}.isdisjoint(names))]
        #: Offers made that are a campaign's, as `by` tells them apart: they do not count as nobody's again.
        moved: Counter[tuple[datetime | None, tuple[str, ...]]] = Counter()
        costs: dict[tuple[str, int], Decimal] = {}
        for taken in self._accepted(start, end, seen):
            key = (taken.offer, taken.revision)
            if key not in costs:
                costs[key] = self._unit_cost(*key)
            values = dict(taken.values)
            if same := sales.get((taken.customer, f"offers/{taken.offer}")):
                values["CAMPAIGN"] = f"campaigns/{same.pop().campaign}"
                if start <= taken.made_at < end:
                    yield Fact(at=taken.made_at, values=values, offered=1)
                    at = quarter(taken.made_at) if TIME in by else None
                    moved[at, tuple(values[name] for name in by if name != TIME)] += 1
            yield Fact(at=taken.at, values=values, accepted=1, revenue=taken.worth, cost=costs[key])
        for group in self._store.offered(start, end, by):
            count = group.count - moved[group.at, tuple(group.values[name] for name in by if name != TIME)]
            if count:
                yield Fact(at=group.at or start, values=group.values, offered=count)

    def _accepted(self, start: datetime, end: datetime, seen: Counter[str]) -> Iterator[Acceptance]:
        after = None
        while True:
            page = self._store.accepted(start, end, PAGE, after)
            seen["acceptances"] += len(page)
            if seen["acceptances"] > DECISIONS_MAX:
                raise TooMuchToReport(subject="report", why=f"more than {DECISIONS_MAX} decisions")
            yield from page
            if len(page) < PAGE:
                return
            after = (page[-1].at, page[-1].decision)

    def _unit_cost(self, offer: str, revision: int) -> Decimal:
        """What an acceptance of an offer cost at a revision; 0 for an offer that is gone."""
        try:
            found = self._store.revisions(offer, 1, revision + 1)
        except OfferNotFound:
            return Decimal(0)
        return found[0].unit_cost.amount if found and found[0].unit_cost is not None else Decimal(0)

    def _row(self, row: Sums) -> R.ProfitRow:
        return R.ProfitRow(
            keys=row.keys,
            offered_count=row.offered,
            accepted_count=row.accepted,
            revenue=self._money(row.revenue),
            cost=self._money(row.cost),
            profit=self._money(row.revenue - row.cost),
        )

    def _money(self, amount: Decimal) -> common_pb2.Money:
        return common_pb2.Money(currency_code=self._currency, amount=f"{amount:f}")

    def RenderProfitChart(
        self, request: R.RenderProfitChartRequest, context: Any
    ) -> R.RenderProfitChartResponse:
        """The same as a picture."""
        width, height = request.width_pixels or 1_200, request.height_pixels or 700
        if not (PIXELS[0] <= width <= PIXELS[1] and PIXELS[0] <= height <= PIXELS[1]):
            wrong = "height_pixels" if PIXELS[0] <= width <= PIXELS[1] else "width_pixels"
            raise InvalidArgument(field=wrong, why=f"must be {PIXELS[0]} to {PIXELS[1]}")
        if request.language not in ("", "en", "zh"):
            raise InvalidArgument(field="language", why='must be "zh" or "en"')
        with within("report"):
            rows, _ = self._report(request.report, Counter())
        if not rows:
            raise NothingToDraw(subject="report", why="there is nothing in this span")
        content = draw(rows[:BARS_MAX], width, height, request.language or "en", self._currency)
        return R.RenderProfitChartResponse(
            content=content,
            content_type="image/png",
            touches_kept_since=convert.timestamp(self._incomplete(request.report)),
        )

    def RecordCost(self, request: R.RecordCostRequest, context: Any) -> R.Cost:
        """Records a cost; a repeat with the same id changes nothing."""
        cost = request.cost
        problems = money_problems("", cost, "amount", self._currency)
        if not cost.HasField("amount"):
            problems.append(("amount", "must be set"))
        for name, collection in (("campaign", "campaigns"), ("region", "regions"), ("agent", "agents")):
            problems += name_problems(name, collection, getattr(cost, name))
        problems += text_problems("description", cost.description, 200)
        if problems:
            raise InvalidArgument.many([(f"cost.{at}", why) for at, why in problems])
        id = check_id("cost.cost_id", cost.cost_id)
        now = self._clock.now()
        at = convert.moment(cost.cost_time) if cost.HasField("cost_time") else now
        kept = R.Cost()
        kept.CopyFrom(cost)
        kept.cost_time.FromDatetime(at)
        content = {"resource": MessageToDict(kept, preserving_proto_field_name=True)}
        try:
            row, _ = self._shelves.insert(COSTS, Row(id=id, content=content, keys={"at": at}), now)
        except AlreadyExists:
            row = self._shelves.get(COSTS, id)
        found = R.Cost()
        ParseDict(row.content["resource"], found)
        return found


def _pays_touches(row: Row) -> bool:
    """Whether a campaign's touches cost something."""
    phases = row.content["resource"].get("phases", ())
    return any(step.get("unit_cost") for phase in phases for step in phase.get("steps", ()))


_LABELS: Mapping[str, tuple[str, str, str, str]] = {
    "en": ("Revenue", "Cost", "Profit", "Profit centre"),
    "zh": ("收入", "成本", "利润", "利润中心"),
}


def draw(rows: Sequence[Sums], width: int, height: int, language: str, currency: str) -> bytes:
    """A PNG with revenue, cost and profit of each row as bars. Where no font for Chinese is installed, the
    labels are English.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    families = {entry.name for entry in font_manager.fontManager.ttflist}
    chinese = [
        name
        for name in sorted(families)
        if any(tag in name for tag in ("CJK", "WenQuanYi", "SimHei", "Song"))
    ]
    labels = _LABELS[language if language != "zh" or chinese else "en"]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="tight")
    axes = figure.add_subplot()
    places = range(len(rows))
    for offset, label, color, value in (
        (-0.27, labels[0], "#2a78b5", lambda row: row.revenue),
        (0.0, labels[1], "#c44e52", lambda row: row.cost),
        (0.27, labels[2], "#55a868", lambda row: row.revenue - row.cost),
    ):
        heights = [float(value(row)) for row in rows]
        axes.bar([place + offset for place in places], heights, 0.25, label=label, color=color)
    axes.set_xticks(list(places), [" / ".join(row.keys) or "-" for row in rows], rotation=30, ha="right")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(currency)
    axes.set_title(labels[3])
    legend = axes.legend()
    if chinese and language == "zh":
        for text in (*axes.get_xticklabels(), axes.title, *legend.get_texts()):
            text.set_fontfamily(chinese[0])
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
