"""The voice of the customer: what the timeline as a whole says. Everything here blocks; the statistics
themselves stand in `crm.topics` and `crm.scan`.

A complaint is an interaction whose contact reason is one that counts as a complaint (itself or a node above
it), or a ticket of kind COMPLAINT. A place is the finest unit of the customer's first address: township, else
district, else city; its point is the mean of its customers' locations.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from mongoengine import BooleanField, DictField, Document, StringField

from chassis.clock import Clock
from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from chassis.ids import check_id, new_id
from chassis.mongo import Aggregate
from crm import documents as docs
from crm import engine, scan, timeline, topics
from crm.care_documents import ContractDocument
from crm.care_handlers import checked_money
from crm.model import InteractionKind
from crm.records import Raw, Records

#: Interactions that one insight reads; a wider interval is refused.
ROWS_MAX = 2_000_000
#: Subjects whose places one hot-spot question looks up.
SUBJECTS_MAX = 300_000
CHUNK = 1_000
INTERVAL_DAYS_MAX = 366
REASON_DEPTH_MAX = 8
REPEAT_DAYS_DEFAULT = 7
BEHIND_MAX = 5
#: Index of interactions by when they began: what insights look at is a span, not somebody's history.
BEGAN = "began_id"
INSIGHT_MS_MAX = 60_000
_DAY_MS = 86_400_000
_NODE = re.compile(r"[a-z0-9_-]{1,64}")


class HasChildren(FailedPrecondition):
    """{subject}: {why}."""

    reason = "HAS_CHILDREN"


class ReasonDocument(Aggregate):
    """A node in the tree of contact reasons."""

    resource_collection: ClassVar[str] = "contactReasons"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "contact_reasons",
        "indexes": [{"fields": ["path"], "name": "path", "unique": True}],
    }

    path = StringField(required=True)
    labels = DictField()
    complaint = BooleanField()
    retired = BooleanField()
    minute_cost = DictField()


VOICE_DOCUMENTS: tuple[type[Document], ...] = (ReasonDocument,)


def checked_path(field: str, path: str) -> str:
    """A path in the tree. InvalidArgument."""
    nodes = path.split("/")
    if len(nodes) > REASON_DEPTH_MAX or not all(_NODE.fullmatch(node) for node in nodes):
        raise InvalidArgument(
            field=field,
            why=f"must be 1 to {REASON_DEPTH_MAX} nodes of 1 to 64 of a-z, 0-9, _ and -, joined by /",
        )
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Which interactions an insight looks at."""

    #: First instant, business ms.
    from_ms: int
    #: First instant after.
    until_ms: int
    #: "regions/{id}"; "" all.
    region: str = ""
    #: Only below this path; "" all.
    reason_prefix: str = ""
    #: Only this product; "" all.
    product: str = ""
    #: Only complaints.
    complaints_only: bool = False

    @property
    def days(self) -> float:
        """Its length."""
        return (self.until_ms - self.from_ms) / _DAY_MS


@dataclass(kw_only=True, slots=True)
class ReasonFigures:
    """How calls for one reason go."""

    #: Path.
    reason: str
    #: In the interval.
    calls: int = 0
    #: Resolved, and not followed by another for the same reason in time.
    resolved_first: int = 0
    #: Following another for the same reason in time.
    repeats: int = 0
    #: Talk time in all, ms, and of how many.
    talk_ms: int = 0
    talked: int = 0
    #: Cost in all, by currency: what is below a node may cost in another than the node.
    costs: dict[str, Decimal] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class AgentFigures:
    """What customers said of one agent."""

    #: "agents/{id}".
    agent: str
    #: Interactions.
    interactions: int = 0
    praises: int = 0
    complaints: int = 0
    #: Sum of the ratings, and how many.
    rated: int = 0
    ratings: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HotTopic:
    """A rising reason and what stands behind it."""

    #: The statistics.
    topic: topics.Topic
    #: Most first.
    products: Sequence[str]
    partners: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class HotSpot:
    """A circle out of line and what stands behind it."""

    #: The statistics.
    spot: scan.Spot
    #: Its middle, degrees.
    latitude: float
    longitude: float
    #: Most interactions first.
    places: Sequence[str]
    reasons: Sequence[str]
    products: Sequence[str]
    partners: Sequence[str]


class Reasons:
    """The tree of contact reasons."""

    def __init__(self, clock: Clock) -> None:
        self.records = Records(ReasonDocument, clock)

    def create(self, id: str, fields: Mapping[str, Any]) -> Raw:
        """AlreadyExists for a taken id or path; InvalidArgument."""
        checked_path("contact_reason.path", fields["path"])
        values = self._clean(fields)
        try:
            return self.records.insert(check_id("contact_reason_id", id) if id else new_id(), values)
        except AlreadyExists as error:
            if error.values.get("conflict") == "path":
                raise AlreadyExists(resource=f"contactReasons with path {fields['path']}") from None
            raise

    def update(self, id: str, edit: Any, expected_version: int | None) -> Raw:
        """`edit` answers the wanted fields from the present ones."""
        return self.records.update(id, lambda raw: self._clean(edit(raw)), expected_version)

    def _clean(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        problems = engine.Problems()
        labels = {}
        for language, text in list(fields["labels"].items())[:20]:
            if not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}", language):
                problems.add("contact_reason.labels", "are keyed by language tags")
                continue
            labels[language] = problems.text(f"contact_reason.labels.{language}", text, most=200)
        problems.raise_if_any()
        money = fields.get("minute_cost")
        cost = checked_money("contact_reason.minute_cost", **money) if money else None
        return {**fields, "labels": labels, "minute_cost": cost}

    def retire(self, id: str, expected_version: int | None) -> Raw:
        """HasChildren while a live node lies below."""

        def edit(raw: Raw) -> Mapping[str, Any] | None:
            if self.records.find(live_below_query(raw["path"]), [("path", 1)], 1):
                raise HasChildren(subject=f"contactReasons/{id}", why="has children that are not retired")
            return None if raw.get("retired") else {"retired": True}

        return self.records.update(id, edit, expected_version)

    def page(self, prefix: str, after: str | None, limit: int) -> list[Raw]:
        """By path."""
        span: dict[str, str] = {"$gte": prefix, "$lt": prefix + "\U0010ffff"} if prefix else {"$gte": ""}
        if after is not None:
            span = {**span, "$gt": after}
        return self.records.find({"path": span}, [("path", 1)], limit)

    def tree(self) -> dict[str, Raw]:
        """Every node by path."""
        return {raw["path"]: raw for raw in self.page("", None, 10_000)}


def live_below_query(path: str) -> dict[str, Any]:
    """The filter document of the nodes below one that are not retired."""
    # "0" follows "/".
    return {"path": {"$gt": path + "/", "$lt": path + "0"}, "retired": {"$ne": True}}


def up(path: str) -> Iterator[str]:
    """A path and those above it, the deepest first."""
    while path:
        yield path
        path = path.rpartition("/")[0]


class Voice:
    """Insights."""

    def __init__(self, clock: Clock, reasons: Reasons) -> None:
        self._clock = clock
        self._reasons = reasons

    # --- hot topics ---

    def hot_topics(self, span: Span, history_days: int, p_value_max: float) -> list[HotTopic]:
        """Reasons that rise against the days before the interval, strongest first."""
        before = Span(
            from_ms=span.from_ms - history_days * _DAY_MS,
            until_ms=span.from_ms,
            region=span.region,
            reason_prefix=span.reason_prefix,
            product=span.product,
            complaints_only=span.complaints_only,
        )
        rising = topics.rising(
            self._daily(span),
            self._daily(before, origin_ms=span.from_ms),
            history_days=history_days,
            days=span.days,
            p_value_max=p_value_max,
        )
        behind = self._behind(span, [topic.reason for topic in rising])
        return [
            HotTopic(
                topic=topic,
                products=_most(behind[topic.reason]["product"]),
                partners=_most(behind[topic.reason]["partner"]),
            )
            for topic in rising
        ]

    def _daily(self, span: Span, origin_ms: int | None = None) -> topics.Daily:
        """Each reason's daily counts, its ancestors counted too; days count from the span's own beginning or
        another.
        """
        start_ms = span.from_ms if origin_ms is None else origin_ms
        day = {"$floor": {"$divide": [{"$subtract": ["$began_ms", start_ms]}, _DAY_MS]}}
        found = self._aggregate(
            [
                {"$match": self._match(span, with_reason=True)},
                {"$group": {"_id": {"r": "$voice.reason", "d": day}, "n": {"$sum": 1}}},
            ]
        )
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        for raw in found:
            for path in up(raw["_id"]["r"]):
                counts[path][int(raw["_id"]["d"])] += raw["n"]
        return counts

    def _behind(self, span: Span, wanted: Sequence[str]) -> dict[str, dict[str, Counter[str]]]:
        """Reason -> products and partners of its interactions; those that an interaction itself does not name
        are those of the customer's contracts.
        """
        found: dict[str, dict[str, Counter[str]]] = {
            reason: {"product": Counter(), "partner": Counter()} for reason in wanted
        }
        if not wanted:
            return found
        unnamed: dict[str, list[str]] = defaultdict(list)
        fields = {"voice.reason": 1, "voice.product": 1, "voice.partner": 1, "subject": 1}
        for raw in self._find(self._match(span, with_reason=True), fields):
            said = raw["voice"]
            paths = [path for path in up(said["reason"]) if path in found]
            for path in paths:
                for name in ("product", "partner"):
                    if said.get(name):
                        found[path][name][said[name]] += 1
            owner = timeline.customer_of(raw.get("subject") or "")
            if paths and owner and not said.get("product"):
                unnamed[owner] += paths
        for owner, said in self._contracts(list(unnamed)):
            for path in unnamed[owner]:
                for name in ("product", "partner"):
                    if said.get(name):
                        found[path][name][said[name]] += 1
        return found

    def _contracts(self, customers: Sequence[str]) -> Iterator[tuple[str, Raw]]:
        collection = ContractDocument._get_collection()
        for start in range(0, len(customers), CHUNK):
            chunk = customers[start : start + CHUNK]
            for raw in collection.find(contracts_query(chunk)):
                yield raw["customer"], raw

    # --- hot spots ---

    def hot_spots(self, span: Span, radius_max_km: float, p_value_max: float) -> list[HotSpot]:
        """Places whose complaints are out of line with their neighbours'."""
        cases, contacts = self._subjects(span)
        where = self._where(list(contacts))
        gathered: dict[str, list[Any]] = {}
        for subject, number in contacts.items():
            place = where.get(subject)
            if place is None:
                continue
            row = gathered.setdefault(place[0], [0.0, 0.0, 0, 0, 0])
            row[0] += place[1]
            row[1] += place[2]
            row[2] += 1
            row[3] += cases.get(subject, 0)
            row[4] += number
        names = sorted(gathered)
        places = [_place(name, gathered[name]) for name in names]
        spots = scan.hot_spots(places, radius_max_km=radius_max_km)
        significant = [spot for spot in spots if spot.p_value <= p_value_max]
        return [self._spot(span, spot, places, where) for spot in significant]

    def _subjects(self, span: Span) -> tuple[Counter[str], Counter[str]]:
        """Subject -> (complaints in the interval, all contacts in the interval and the history before it)."""
        whole = Span(
            from_ms=span.from_ms - topics.HISTORY_DAYS_DEFAULT * _DAY_MS,
            until_ms=span.until_ms,
            region=span.region,
            product=span.product,
        )
        cases = self._per_subject(self._match(span, force_complaints=True))
        contacts = self._per_subject(self._match(whole))
        return cases, contacts | cases

    def _per_subject(self, match: Mapping[str, Any]) -> Counter[str]:
        found = self._aggregate(
            [
                {"$match": known_query(match)},
                {"$group": {"_id": "$subject", "n": {"$sum": 1}}},
                {"$limit": SUBJECTS_MAX},
            ]
        )
        return Counter({raw["_id"]: raw["n"] for raw in found})

    def _where(self, subjects: Sequence[str]) -> dict[str, tuple[str, float, float]]:
        """Subject -> (place's name, latitude, longitude), of those whose address has a point."""
        found = {}
        collection = docs.CustomerDocument._get_collection()
        for start in range(0, len(subjects), CHUNK):
            ids = [timeline.customer_of(subject) for subject in subjects[start : start + CHUNK]]
            for raw in collection.find({"_id": {"$in": ids}}, {"addresses": {"$slice": 1}}):
                for address in raw.get("addresses") or ():
                    parts = [address.get(k) or "" for k in ("city", "district", "township")]
                    name = "".join(parts).strip()
                    if name and None not in (address.get("latitude"), address.get("longitude")):
                        subject = timeline.subject_of_customer(raw["_id"])
                        found[subject] = (name, address["latitude"], address["longitude"])
        return found

    def _spot(
        self,
        span: Span,
        spot: scan.Spot,
        places: Sequence[scan.Place],
        where: Mapping[str, tuple[str, float, float]],
    ) -> HotSpot:
        inside = {places[index].name for index in spot.places}
        reasons, products, partners = self._behind_spot(
            span, [subject for subject, place in where.items() if place[0] in inside]
        )
        middle = places[spot.centre]
        ordered = sorted(spot.places, key=lambda index: -places[index].cases)
        return HotSpot(
            spot=spot,
            latitude=middle.latitude,
            longitude=middle.longitude,
            places=[places[index].name for index in ordered],
            reasons=_most(reasons),
            products=_most(products),
            partners=_most(partners),
        )

    def _behind_spot(
        self, span: Span, subjects: Sequence[str]
    ) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Reasons, products and partners of what the subjects complained of; products and partners that a
        complaint itself does not name are those of the customer's contracts.
        """
        reasons, products, partners = Counter[str](), Counter[str](), Counter[str]()
        unnamed = Counter[str]()
        for start in range(0, len(subjects), CHUNK):
            match = spot_query(self._match(span, force_complaints=True), subjects[start : start + CHUNK])
            for raw in self._find(match, {"voice": 1, "subject": 1}, hint=None):
                said = raw.get("voice") or {}
                reasons[said.get("reason") or ""] += 1
                products[said.get("product") or ""] += 1
                partners[said.get("partner") or ""] += 1
                if not said.get("product"):
                    unnamed[timeline.customer_of(raw["subject"])] += 1
        for owner, contract in self._contracts(list(unnamed)):
            products[contract.get("product") or ""] += unnamed[owner]
            partners[contract.get("partner") or ""] += unnamed[owner]
        return reasons, products, partners

    # --- how calls go ---

    def reason_figures(self, span: Span, repeat_days: int, depth: int) -> list[ReasonFigures]:
        """First-call resolution, repeats and cost, most calls first."""
        repeat_ms = repeat_days * _DAY_MS
        wide = Span(
            from_ms=span.from_ms - repeat_ms,
            until_ms=span.until_ms + repeat_ms,
            region=span.region,
            reason_prefix=span.reason_prefix,
            product=span.product,
            complaints_only=span.complaints_only,
        )
        match = {**self._match(wide, with_reason=True), "kind": InteractionKind.CALL.value}
        figures: dict[str, ReasonFigures] = {}
        costs = self._costs()
        last: dict[tuple[str, str], tuple[int, ReasonFigures | None]] = {}
        for raw in self._find(match, {"subject": 1, "began_ms": 1, "voice": 1}, ordered=True):
            said, began_ms = raw["voice"], raw["began_ms"]
            path = "/".join(said["reason"].split("/")[: depth or REASON_DEPTH_MAX])
            key = (raw.get("subject") or raw["_id"], said["reason"])
            before = last.get(key)
            repeats = before is not None and began_ms - before[0] <= repeat_ms
            if repeats and before is not None and before[1] is not None:
                before[1].resolved_first -= 1
            inside = span.from_ms <= began_ms < span.until_ms
            counted = figures.setdefault(path, ReasonFigures(reason=path)) if inside else None
            if counted is not None:
                _count(counted, said, repeats, costs)
            resolved = counted is not None and bool(said.get("resolved"))
            last[key] = (began_ms, counted if resolved else None)
        return sorted(figures.values(), key=lambda f: (-f.calls, f.reason))

    def _costs(self) -> dict[str, tuple[str, Decimal]]:
        """Path -> (currency, cost of a minute), inherited from above at use."""
        found = {}
        for path, raw in self._reasons.tree().items():
            money = raw.get("minute_cost")
            if money:
                found[path] = (money["currency"], Decimal(money["amount"]))
        return found

    # --- agents ---

    def agent_figures(self, span: Span) -> list[AgentFigures]:
        """Praise and complaint, by agent."""
        figures: dict[str, AgentFigures] = {}
        asked: list[tuple[str, int, bool]] = []
        for raw in self._find(self._match(span), {"kind": 1, "voice": 1}):
            said = raw.get("voice") or {}
            rating = said.get("satisfaction") or 0
            complaint = said.get("ticket_kind") == "COMPLAINT"
            if (rating or complaint) and said.get("call_id"):
                # Said about a call: it is the agent of that call who is meant.
                asked.append((said["call_id"], rating, complaint))
            elif said.get("agent") and raw["kind"] != InteractionKind.TICKET.value:
                # Whoever works on a ticket is not who is complained of.
                figure = figures.setdefault(said["agent"], AgentFigures(agent=said["agent"]))
                _said(figure, rating, complaint)
                figure.interactions += raw["kind"] == InteractionKind.CALL.value
        agents = self._agents_of([call for call, _, _ in asked])
        for call, rating, complaint in asked:
            agent = agents.get(call)
            if agent:
                _said(figures.setdefault(agent, AgentFigures(agent=agent)), rating, complaint)
        return sorted(figures.values(), key=lambda f: f.agent)

    def _agents_of(self, calls: Sequence[str]) -> dict[str, str]:
        found = {}
        names = {timeline.entry_id(InteractionKind.CALL, "routing", call): call for call in calls}
        ids = list(names)
        collection = docs.InteractionDocument._get_collection()
        for start in range(0, len(ids), CHUNK):
            for raw in collection.find({"_id": {"$in": ids[start : start + CHUNK]}}, {"voice.agent": 1}):
                agent = (raw.get("voice") or {}).get("agent")
                if agent:
                    found[names[raw["_id"]]] = agent
        return found

    def interactions(self, span: Span) -> int:
        """How many there are."""
        query = self._match(span)
        return int(docs.InteractionDocument._get_collection().count_documents(query, hint=BEGAN))

    # --- queries ---

    def _match(
        self, span: Span, *, with_reason: bool = False, force_complaints: bool = False
    ) -> dict[str, Any]:
        match = span_query(span)
        if with_reason:
            match.setdefault("voice.reason", {"$gt": ""})
        if span.complaints_only or force_complaints:
            match["$or"] = self._complaints()
        return match

    def _complaints(self) -> list[dict[str, Any]]:
        marked = sorted(path for path, raw in self._reasons.tree().items() if raw.get("complaint"))
        either: list[dict[str, Any]] = [{"voice.ticket_kind": "COMPLAINT"}, {"voice.reason": {"$in": marked}}]
        return [
            *either,
            *({"voice.reason": {"$gte": path + "/", "$lt": path + "0"}} for path in marked),
        ]

    def _find(
        self,
        match: Mapping[str, Any],
        fields: Mapping[str, Any],
        *,
        ordered: bool = False,
        hint: str | None = BEGAN,
    ) -> Iterator[Raw]:
        collection = docs.InteractionDocument._get_collection()
        found = collection.find(match, fields, max_time_ms=INSIGHT_MS_MAX, batch_size=CHUNK, hint=hint)
        if ordered:
            found = found.sort([("began_ms", 1), ("_id", 1)])
        for number, raw in enumerate(found):
            if number >= ROWS_MAX:
                raise InvalidArgument(field="scope.interval", why=f"holds more than {ROWS_MAX} interactions")
            yield raw

    def _aggregate(self, pipeline: list[dict[str, Any]]) -> Any:
        collection = docs.InteractionDocument._get_collection()
        return collection.aggregate(pipeline, maxTimeMS=INSIGHT_MS_MAX, hint=BEGAN)


def span_query(span: Span) -> dict[str, Any]:
    """The filter document of a span; it goes along the index on when interactions began."""
    match: dict[str, Any] = {"began_ms": {"$gte": span.from_ms, "$lt": span.until_ms}}
    if span.region:
        match["voice.region"] = {"$eq": span.region}
    if span.product:
        match["voice.product"] = {"$eq": span.product}
    if span.reason_prefix:
        # "0" follows "/": everything below, and the node itself.
        prefix = span.reason_prefix
        match["$and"] = [
            {"$or": [{"voice.reason": prefix}, {"voice.reason": {"$gte": prefix + "/", "$lt": prefix + "0"}}]}
        ]
    return match


def known_query(match: Mapping[str, Any]) -> dict[str, Any]:
    """The same, of customers alone."""
    return {**match, "subject": {"$gte": "c:", "$lt": "c;"}}


def spot_query(match: Mapping[str, Any], subjects: Sequence[str]) -> dict[str, Any]:
    """The same, of some customers."""
    return {**match, "subject": {"$in": list(subjects)}}


def contracts_query(customers: Sequence[str]) -> dict[str, Any]:
    """The filter document of what customers have subscribed to."""
    return {"customer": {"$in": list(customers)}, "state": "ACTIVE"}


def _place(name: str, row: Sequence[Any]) -> scan.Place:
    return scan.Place(
        name=name, latitude=row[0] / row[2], longitude=row[1] / row[2], cases=row[3], contacts=row[4]
    )


def _most(counts: Counter[str]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [name for name, _ in ordered if name][:BEHIND_MAX]


def _count(figure: ReasonFigures, said: Raw, repeats: bool, costs: Mapping[str, tuple[str, Decimal]]) -> None:
    figure.calls += 1
    figure.repeats += repeats
    figure.resolved_first += bool(said.get("resolved"))
    talk_ms = said.get("talk_ms")
    if talk_ms is None:
        return
    figure.talk_ms += talk_ms
    figure.talked += 1
    for path in up(said["reason"]):
        if path in costs:
            currency, minute = costs[path]
            figure.costs[currency] = (
                figure.costs.get(currency, Decimal()) + minute * Decimal(talk_ms) / 60_000
            )
            return


def _said(figure: AgentFigures, rating: int, complaint: bool) -> None:
    figure.praises += rating >= 4
    figure.complaints += complaint or 0 < rating <= 2
    figure.rated += rating > 0
    figure.ratings += rating
