"""ReportService: backlog, performance, cost and process map, over the service's own tickets or an imported
log.
Message stubs only; `servicer` puts the calls into the gRPC service."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, ClassVar, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.duration_pb2 import Duration
from mongoengine import Document, IntField, ListField, StringField
from pymongo.write_concern import WriteConcern

from callmesh.common.v1 import common_pb2
from callmesh.tickets.v1 import report_pb2
from chassis.clock import Clock
from chassis.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, within
from chassis.ids import check_id, new_id
from tickets import convert, filters, pictures, reports
from tickets.filters import Condition, Term, boolean_field, text_field
from tickets.imports import Log, decoded, read_log
from tickets.model import OPEN_PHASES, TRANSFER, ClockState, Kind, Phase, SlaClock, Ticket
from tickets.reports import Case
from tickets.store import Query

#: Most tickets that one report looks at.
TICKETS_MAX = 200_000
#: Most dimensions of a report.
DIMENSIONS_MAX = 3
#: Tickets read at once.
PAGE = 1_000

_NAMES = {
    report_pb2.DIMENSION_KIND: "kind",
    report_pb2.DIMENSION_PRIORITY: "priority",
    report_pb2.DIMENSION_CATEGORY: "category",
    report_pb2.DIMENSION_CUSTOMER_TIER: "customer_tier",
    report_pb2.DIMENSION_TEAM: "team",
    report_pb2.DIMENSION_ASSIGNEE: "assignee",
    report_pb2.DIMENSION_STATE: "state",
    report_pb2.DIMENSION_CHANNEL: "channel",
    report_pb2.DIMENSION_PRODUCT: "product",
    report_pb2.DIMENSION_DAY: "day",
    report_pb2.DIMENSION_FLOW: "flow",
    report_pb2.DIMENSION_SLA_POLICY: "sla_policy",
    report_pb2.DIMENSION_LANGUAGE: "language",
    report_pb2.DIMENSION_TAG: "tag",
    report_pb2.DIMENSION_CUSTOMER: "customer",
    report_pb2.DIMENSION_PROBLEM: "problem",
    report_pb2.DIMENSION_MONTH: "month",
}
#: What imported tickets are filtered by.
_CASE_FIELDS = {
    **{name: text_field() for name in _NAMES.values() if name not in reports.SPANS},
    "open": boolean_field(),
}
_AMOUNT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,6})?")


class ReportTooLarge(FailedPrecondition):
    """{subject}: {why}."""

    reason = "REPORT_TOO_LARGE"


class ImportedCaseDocument(Document):
    """A ticket of an imported log. `_id` is the copy of the log and the ticket's own id, `import_id` that
    copy: the log's name, `@`, and an id of its own. Under the log's bare name lies which copy counts."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "imported_cases",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [{"fields": ["import_id", "opened_ms"], "name": "import_opened"}],
    }

    id = StringField(primary_key=True)
    import_id = StringField(required=True)
    opened_ms = IntField(required=True)
    case = StringField(required=True)
    #: Of what lies under the log's bare name: the copy that counts, and those that were begun since.
    copy = StringField()
    begun = ListField(StringField())


class Imports(Protocol):
    """Keeps imported logs."""

    def put(self, import_id: str, cases: Iterable[Case]) -> None:
        """Stores a log's tickets in the place of an earlier one of this name, all at once. Unavailable when
        another of this name came in between."""

    def read(self, import_id: str, since_ms: int, until_ms: int) -> list[Case]:
        """The tickets of a log opened in a span; NotFound when there is no such log."""


def _case_text(case: Case) -> str:
    raw = asdict(case)
    # the release before reads none with a field that it does not know
    told = {
        name: raw[name] for name in raw if name not in ("breached_ms", "turns") or raw[name] not in (None, ())
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def _case_of(text: str) -> Case:
    raw = json.loads(text)
    steps = tuple((state, moment, worked) for state, moment, worked in raw["steps"])
    values = {name: tuple(found) for name, found in raw["values"].items()}
    turns = tuple((moment, is_open) for moment, is_open in raw.get("turns", ()))
    return Case(**{**raw, "steps": steps, "values": values, "turns": turns})


class MongoImports:
    """Imported logs on MongoDB. Needs `chassis.mongo.connect` first."""

    def put(self, import_id: str, cases: Iterable[Case]) -> None:
        """As the port says. A copy counts once it is whole; of those that are made at once the first. What is
        left of others, also of a process that died, goes with the next."""
        collection, copy = _cases(), f"{import_id}@{new_id()}"
        empty = {"import_id": "", "opened_ms": 0, "case": ""}
        begun = {"$setOnInsert": empty, "$addToSet": {"begun": copy}}
        collection.update_one({"_id": import_id}, begun, upsert=True)
        batch: list[dict[str, Any]] = []
        for case in cases:
            raw = {"_id": f"{copy}/{case.id}", "import_id": copy, "opened_ms": case.opened_ms}
            batch.append({**raw, "case": _case_text(case)})
            if len(batch) == PAGE:
                collection.insert_many(batch, ordered=False)
                batch = []
        if batch:
            collection.insert_many(batch, ordered=False)
        counts = {"$set": {"copy": copy, "begun": []}}
        before = collection.find_one_and_update({"_id": import_id, "begun": copy}, counts)
        # a log that lies under its bare name is of an earlier release
        others = [import_id, before.get("copy"), *before["begun"]] if before is not None else []
        gone = [name for name in others if name and name != copy] if others else [copy]
        collection.delete_many({"import_id": {"$in": gone}})
        if before is None:
            raise Unavailable(why="another log of this name was imported in between", retry_seconds=1.0)

    def read(self, import_id: str, since_ms: int, until_ms: int) -> list[Case]:
        """As the port says."""
        head = _cases().find_one({"_id": import_id}) or {}
        copy = head.get("copy") or import_id
        if _cases().find_one({"import_id": copy}, {"_id": 1}) is None and not head.get("copy"):
            raise NotFound(resource=f"imports/{import_id}")
        query = {"import_id": copy, "opened_ms": {"$gte": since_ms, "$lt": until_ms}}
        return [_case_of(raw["case"]) for raw in _cases().find(query).sort("opened_ms", 1)]


def _cases() -> Any:
    return ImportedCaseDocument._get_collection().with_options(write_concern=WriteConcern(w="majority"))


class MemoryImports:
    """Imported logs in memory."""

    def __init__(self) -> None:
        self._logs: dict[str, list[Case]] = {}

    def put(self, import_id: str, cases: Iterable[Case]) -> None:
        """As the port says."""
        self._logs[import_id] = [_case_of(_case_text(case)) for case in cases]

    def read(self, import_id: str, since_ms: int, until_ms: int) -> list[Case]:
        """As the port says."""
        if import_id not in self._logs:
            raise NotFound(resource=f"imports/{import_id}")
        return [case for case in self._logs[import_id] if since_ms <= case.opened_ms < until_ms]


def case_of(ticket: Ticket) -> Case:
    """A ticket of ours as a case. Its history as far as it lies in the ticket: the latest steps."""
    levels, draft = ticket.sla, ticket.draft
    first, resolution = levels.first_response, levels.resolution
    decided = ticket.resolved_ms is not None or resolution.breached_ms is not None
    answered = first.stopped_ms is not None or first.breached_ms is not None
    return Case(
        id=ticket.id,
        opened_ms=ticket.created_ms,
        steps=tuple(
            (step.target, step.time_ms, step.phase is Phase.ACTIVE)
            for step in ticket.history
            if (step.verb, step.target) != (TRANSFER, step.source)
        ),
        open=ticket.phase in OPEN_PHASES,
        resolved_ms=ticket.resolved_ms,
        closed_ms=ticket.closed_ms,
        due_ms=resolution.due_ms,
        breached_ms=resolution.breached_ms,
        turns=tuple((step.time_ms, step.phase in OPEN_PHASES) for step in ticket.history),
        sla_met=resolution.breached_ms is None if decided and _is_held(resolution) else None,
        first_met=first.breached_ms is None if answered and _is_held(first) else None,
        reassigned=ticket.reassign_count,
        reopened=ticket.reopen_count,
        first_contact=ticket.first_contact_resolved if any(c.opened for c in ticket.calls) else None,
        # a visit's answer is its parent's figure: one answer counts once
        satisfaction=0 if ticket.parent_id and ticket.kind is Kind.RETURN_VISIT else ticket.satisfaction,
        values={
            "kind": (ticket.kind.value,),
            "priority": (draft.priority.value,),
            "category": (draft.category,),
            "customer_tier": (ticket.tier,),
            "team": (ticket.team,),
            "assignee": (ticket.assignee,),
            "state": (ticket.state,),
            "channel": (draft.channel.value,),
            "product": draft.products or ("",),
            "flow": (ticket.flow,),
            "sla_policy": (levels.policy,),
            "language": (draft.language,),
            "tag": draft.tags or ("",),
            "customer": (draft.customer_id,),
            "problem": (ticket.problem,),
        },
    )


def _is_held(clock: SlaClock) -> bool:
    """Whether there is a target to be met."""
    return clock.state is not ClockState.ABSENT


def _duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def _span(interval: common_pb2.Interval, field: str) -> tuple[int, int]:
    since = convert.read_stamp(interval.start_time) if interval.HasField("start_time") else 0
    until = convert.read_stamp(interval.end_time) if interval.HasField("end_time") else 2**62
    if until <= since:
        raise InvalidArgument(field=field, why="must end after it starts")
    return since, until


def _money(field: str, money: common_pb2.Money) -> Decimal:
    if not re.fullmatch(r"[A-Z]{3}", money.currency_code):
        raise InvalidArgument(field=f"{field}.currency_code", why="must be an ISO 4217 code, for example CNY")
    if money.amount.startswith("-"):
        raise InvalidArgument(field=f"{field}.amount", why="must not be negative")
    if not _AMOUNT.fullmatch(money.amount):
        raise InvalidArgument(field=f"{field}.amount", why="must be a decimal number")
    return Decimal(money.amount)


#: Reads tickets that match, whole, the newest first, at most so many.
ReadTickets = Callable[[Query, int], Iterator[Ticket]]


class ReportCalls:
    """ReportService."""

    def __init__(self, tickets: ReadTickets, imports: Imports, clock: Clock) -> None:
        self._tickets = tickets
        self._imports = imports
        self._clock = clock

    # ---- which tickets

    def _cases(self, scope: Any, span: common_pb2.Interval | None = None) -> list[Case]:
        since, until = _span(scope.span if span is None else span, "scope.span")
        with within("scope"):
            terms = filters.parse(scope.filter, _CASE_FIELDS if scope.import_id else filters.TICKET_FIELDS)
        if scope.import_id:
            found = self._imports.read(check_id("scope.import_id", scope.import_id), since, until)
            return [case for case in found if _matches(case, terms)]
        conditions: list[Term] = list(terms)
        conditions.append(Condition(field="create_time", op=">=", value=since))
        conditions.append(Condition(field="create_time", op="<", value=until))
        query = Query(conditions=tuple(conditions))
        found = [case_of(ticket) for ticket in self._tickets(query, TICKETS_MAX + 1)]
        if len(found) > TICKETS_MAX:
            raise ReportTooLarge(subject="scope", why=f"more than {TICKETS_MAX} tickets match; narrow it")
        return found

    def _cells(self, scope: Any, cases: Sequence[Case]) -> dict[tuple[str, ...], list[Case]]:
        if len(scope.dimensions) > DIMENSIONS_MAX:
            raise InvalidArgument(field="scope.dimensions", why=f"at most {DIMENSIONS_MAX} are allowed")
        if any(number not in _NAMES for number in scope.dimensions):
            raise InvalidArgument(field="scope.dimensions", why="must be of Dimension, and not unspecified")
        try:
            zone = ZoneInfo(scope.time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidArgument(field="scope.time_zone", why="is not an IANA zone") from None
        if not scope.dimensions:
            return {}
        found = reports.by_cell(cases, [_NAMES[number] for number in scope.dimensions], zone)
        if len(found) > reports.ROWS_MAX:
            raise ReportTooLarge(subject="scope", why=f"has more than {reports.ROWS_MAX} rows; narrow it")
        return found

    # ---- reports

    def GetBacklog(self, request: Any, context: Any) -> report_pb2.GetBacklogResponse:
        """How many tickets are open."""
        at = convert.read_stamp(request.at_time) if request.HasField("at_time") else self._clock.now_ms()
        cases = self._cases(request.scope)

        def row(keys: Sequence[str], some: Sequence[Case]) -> Any:
            found = reports.backlog(some, at)
            return report_pb2.GetBacklogResponse.Row(
                keys=keys,
                open_count=found.open,
                overdue_count=found.overdue,
                oldest_age=_duration(found.oldest_ms),
            )

        cells = self._cells(request.scope, cases)
        rows = [row(keys, some) for keys, some in cells.items()]
        return report_pb2.GetBacklogResponse(rows=rows, total=row((), cases))

    def GetPerformance(self, request: Any, context: Any) -> report_pb2.GetPerformanceResponse:
        """Service levels, times, reassignments, reopenings, first-call resolution and satisfaction."""
        cases = self._cases(request.scope)
        cells = self._cells(request.scope, cases)
        rows = [performance_row(keys, some) for keys, some in cells.items()]
        return report_pb2.GetPerformanceResponse(rows=rows, total=performance_row((), cases))

    def GetCost(self, request: Any, context: Any) -> report_pb2.GetCostResponse:
        """What tickets cost, and what an improvement saved."""
        hourly = _money("hourly_cost", request.hourly_cost)
        currency = request.hourly_cost.currency_code
        investment = Decimal(0)
        if request.HasField("investment"):
            investment = _money("investment", request.investment)
            if request.investment.currency_code != currency:
                raise InvalidArgument(
                    field="investment.currency_code", why=f"must be {currency} as hourly_cost is"
                )
        baseline: list[Case] = []
        if request.HasField("baseline_span"):
            baseline = self._cases(request.scope, request.baseline_span)
        found = reports.cost(self._cases(request.scope), baseline, hourly, investment)

        def money(amount: Decimal) -> common_pb2.Money:
            return common_pb2.Money(currency_code=currency, amount=f"{amount:f}")

        answer = report_pb2.GetCostResponse(
            cost_per_ticket=money(found.per_ticket),
            return_on_investment=found.return_on_investment,
            explanation=found.explanation,
        )
        if baseline:
            answer.baseline_cost_per_ticket.CopyFrom(money(found.baseline_per_ticket))
            answer.saving.CopyFrom(money(found.saving))
        return answer

    def GetProcessMap(self, request: Any, context: Any) -> report_pb2.ProcessMap:
        """What really happened."""
        if not 0 <= request.minimum_share <= 1:
            raise InvalidArgument(field="minimum_share", why="must be 0 to 1")
        if request.picture not in report_pb2.GetProcessMapRequest.Picture.values():
            raise InvalidArgument(field="picture", why="must be one of Picture")
        found = reports.process_map(self._cases(request.scope), request.minimum_share)
        answer = report_pb2.ProcessMap(ticket_count=found.cases)
        for activity in found.activities:
            answer.activities.add(
                activity=activity.name, count=activity.count, mean_time=_duration(activity.mean_ms)
            )
        for edge in found.edges:
            answer.steps.add(
                from_activity=edge.source,
                to_activity=edge.target,
                count=edge.count,
                mean_time=_duration(edge.mean_ms),
            )
        if request.picture == report_pb2.GetProcessMapRequest.PICTURE_DOT:
            answer.picture = pictures.dot(found)
        elif request.picture == report_pb2.GetProcessMapRequest.PICTURE_SVG:
            answer.picture = pictures.svg(found)
        return answer

    def ImportTicketLog(self, requests: Iterable[Any], context: Any) -> report_pb2.ImportTicketLogResponse:
        """Imports a log; one of the same name is replaced once the new one is whole."""
        source = iter(requests)
        first = next(source, None)
        if first is None:
            raise InvalidArgument(field="import_id", why="must not be empty")
        import_id = check_id("import_id", first.import_id)

        def chunks() -> Iterator[bytes]:
            yield first.chunk
            for request in source:
                yield request.chunk

        log: Log = read_log(decoded(chunks()))
        self._imports.put(import_id, log.cases())
        return report_pb2.ImportTicketLogResponse(
            ticket_count=len(log.lives),
            row_count=log.rows,
            bad_rows=[
                report_pb2.ImportTicketLogResponse.BadRow(line=line, problem=problem)
                for line, problem in log.bad
            ],
        )


def _matches(case: Case, terms: Sequence[Term]) -> bool:
    def value_of(name: str) -> Any:
        if name == "open":
            return case.open
        values: Mapping[str, Sequence[str]] = case.values
        return next(iter(values.get(name, ())), None) or None

    return all(filters.holds(term, value_of) for term in terms)


def performance_row(keys: Sequence[str], cases: Sequence[Case]) -> Any:
    """The figures of a cell as clients see them."""
    found = reports.performance(cases)
    row = report_pb2.GetPerformanceResponse.Row(
        keys=keys,
        ticket_count=found.count,
        sla_met_ratio=found.sla_met,
        first_response_met_ratio=found.first_met,
        resolution_time_median=_duration(found.resolution_median_ms),
        resolution_time_p90=_duration(found.resolution_p90_ms),
        reassignments_mean=found.reassigned_mean,
        reopened_ratio=found.reopened,
        first_contact_resolution_ratio=found.first_contact,
        satisfaction_mean=found.satisfaction,
        satisfaction_count=found.satisfaction_count,
    )
    for state, mean in found.in_state:
        row.time_in_states.add(state=state, mean=_duration(mean))
    return row
