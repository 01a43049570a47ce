"""The calls that change what tickets go by: flows, policies, calendars, teams; and how a deadline came about.
Message stubs only; `servicer` puts them into the gRPC services."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import ParseDict, ParseError

from callmesh.tickets.v1 import flow_pb2, sla_pb2, team_pb2
from chassis.clock import Clock
from chassis.errors import (
    AlreadyExists,
    ErrorDetails,
    EtagMismatch,
    FailedPrecondition,
    InvalidArgument,
    PreconditionViolation,
    Unavailable,
)
from chassis.mongo import parse_etag
from chassis.pagination import Page
from tickets import calendars, convert, convert_config, flows, records
from tickets import sla as clocks
from tickets.convert import stamp
from tickets.filters import Condition
from tickets.governing import GONE_MARK, RECORDS_MAX, VERSION_MARK, Governor
from tickets.handlers import Handlers
from tickets.model import Kind, Phase, Rules, SlaClock, Step, Ticket
from tickets.records import Record, Records
from tickets.resources import Crud, Resource

#: Numbers of versions that are tried for one that is free.
VERSIONS_TRIED_MAX = 1_000
#: An imagined ticket is opened before the year 3000, epoch ms: calendars look years ahead.
OPENED_MS_MAX = 32_503_680_000_000
#: Most stretches that an explanation has.
STRETCHES_MAX = 1_000
#: Problems of a flow that an error names one by one.
PROBLEMS_SHOWN_MAX = 64
#: Steps of a ticket's history that an explanation looks at.
STEPS_MAX = 1_000


class FlowUnsound(FailedPrecondition):
    """{subject}: {why}."""

    reason = "FLOW_UNSOUND"

    def __init__(self, subject: str, problems: Sequence[flow_pb2.FlowProblem]) -> None:
        """`problems` are told one by one."""
        self._problems = problems
        super().__init__(subject=subject, why="; ".join(problem.message for problem in problems)[:2_000])

    def _details(self) -> ErrorDetails:
        subject = self.values["subject"]
        violations = tuple(
            PreconditionViolation(type=one.problem, subject=one.subject or subject, description=one.message)
            for one in self._problems[:PROBLEMS_SHOWN_MAX]
        )
        return replace(super()._details(), precondition_violations=violations)


class InUse(FailedPrecondition):
    """{subject}: {why}."""

    reason = "IN_USE"


_LATEST = Condition(field="latest", op="=", value=True)
_NOT_RETIRED = Condition(field="retired", op="!=", value=True)

_FLOW = Resource(
    kind="flows",
    field="flow",
    message=flow_pb2.Flow,
    updatable=frozenset(
        [
            "display_name",
            "default_flow",
            "initial_state",
            "states",
            "transitions",
            "follow_up",
            "silent_assignee_limit",
            "initial_team",
        ]
    ),
    immutable=frozenset({"kind"}),
    search=lambda message: {"latest": True},
    always=(_LATEST, _NOT_RETIRED),
    by_id=True,
    most=RECORDS_MAX,
)
_CALENDAR = Resource(
    kind="calendars",
    field="calendar",
    message=sla_pb2.Calendar,
    updatable=frozenset(["display_name", "time_zone", "windows", "holiday_country", "special_days"]),
    problems=convert_config.calendar_problems,
    always=(_LATEST,),
    by_id=True,
    most=RECORDS_MAX,
)
_POLICY = Resource(
    kind="slaPolicies",
    field="sla_policy",
    message=sla_pb2.SlaPolicy,
    updatable=frozenset(
        [
            "display_name",
            "order",
            "kinds",
            "priorities",
            "customer_tiers",
            "categories",
            "calendar",
            "first_response_target",
            "next_response_target",
            "resolution_target",
            "pausing_states",
            "escalations",
        ]
    ),
    problems=convert_config.policy_problems,
    by_id=True,
    most=RECORDS_MAX,
)
_TEAM = Resource(
    kind="teams",
    field="team",
    message=team_pb2.Team,
    updatable=frozenset({"display_name", "members"}),
    problems=convert_config.team_problems,
    always=(_NOT_RETIRED,),
    by_id=True,
    most=RECORDS_MAX,
)


class Versioned(Crud):
    """A resource whose versions all stay, under `{id}@{version}`, for the tickets that go by them.

    A stored version is never written over. It is written before the record that names it as the latest: what
    a crash or a refused change leaves is named by nothing, and its number is passed over, as are those of a
    deleted resource of the same id. A new resource is written before its first version (only then is the id
    known to be its own), and counts as that version until it is there (`governing`).
    """

    def number_of(self, record: Record) -> int:
        """Which version is the latest."""
        return int(record.search.get("version") or 1)

    def _put(self, message: Any, id: str, number: int) -> bool:
        version = replace(
            super().as_record(self._bare(message), f"{id}{VERSION_MARK}{number}"), search={"of": id}
        )
        try:
            self._store.insert(version)
        except AlreadyExists:
            return False
        return True

    def put_version(self, message: Any, id: str, least: int) -> int:
        """Stores one version under the first free number from `least` on; which. Unavailable when too many
        are taken, ResourceExhausted when there are as many as may be."""
        self.check_room()
        for number in range(least, least + VERSIONS_TRIED_MAX):
            if self._put(message, id, number):
                return number
        raise Unavailable(why=f"{id} has too many versions that nothing names")

    def _bare(self, message: Any) -> Any:
        bare = type(message)()
        bare.CopyFrom(message)
        for name in ("version", "shipped"):
            if name in bare.DESCRIPTOR.fields_by_name:
                bare.ClearField(name)
        return bare

    def as_record(self, message: Any, id: str, record: Record | None = None, *, number: int = 0) -> Record:
        """As for all, with which version it is: `number`, or the next."""
        made = super().as_record(self._bare(message), id, record)
        if not number:
            number = self._unused(id) if record is None else self.number_of(record) + 1
        return replace(made, search={"latest": True, "version": number})

    def _unused(self, id: str) -> int:
        """The first number that no version of a deleted resource of this id has."""
        found = (n for n in range(1, VERSIONS_TRIED_MAX) if self._version(id, n) is None)
        return next(found, VERSIONS_TRIED_MAX)

    def _version(self, id: str, number: int) -> Record | None:
        return self._store.find(self.resource.kind, f"{id}{VERSION_MARK}{number}")

    def create(self, request: Any, method: str, prepare: Callable[[Any], None] | None = None) -> Any:
        """As for all, with its first version."""
        made = super().create(request, method, prepare)
        record = self.record(made.name)
        self._put(self.read(record), record.id, self.number_of(record))
        return made

    def changed(self, message: Any, record: Record) -> Record:
        """As for all, with its next version stored."""
        number = self.put_version(message, record.id, self.number_of(record) + 1)
        return self.as_record(message, record.id, record, number=number)

    def new(self, message: Any, id: str) -> Record:
        """A record to be stored, with its first version stored."""
        return self.as_record(message, id, number=self.put_version(message, id, 1))


class Naming(Crud):
    """A resource that names others: flows name teams, policies teams and a calendar."""

    def check_names(self, message: Any, record: Record | None, known: Collection[str] = ()) -> None:
        """As for all. What is deleted later is dealt with where it is used."""
        found = [
            (f"{self.resource.field}.{field}", why) for field, why in self.unknown(message, record, known)
        ]
        if found:
            raise InvalidArgument.many(found)

    def unknown(
        self, message: Any, record: Record | None, known: Collection[str] = ()
    ) -> list[tuple[str, str]]:
        """(field, what is wrong) of names of what there is not."""
        before = self.read(record) if record is not None else None
        old = {name for _, name in self._named(before)} if before is not None else set[str]()
        return [
            (field, f"{name[:96]} does not exist")
            for field, name in self._named(message)
            if name not in known and name not in old and not self._exists(name)
        ]

    def _named(self, message: Any) -> list[tuple[str, str]]:
        calendar = getattr(message, "calendar", "")
        return ([("calendar", calendar)] if calendar else []) + convert_config.teams_named(message)

    def _exists(self, name: str) -> bool:
        kind, _, id = name.partition("/")
        return kind in ("teams", "calendars") and "@" not in id and self._store.find(kind, id) is not None


class Flows(Naming, Versioned):
    """Flows, shipped ones included."""

    def check(self, message: Any) -> None:
        """FlowUnsound naming each problem, InvalidArgument for what cannot be read."""
        if problem := convert_config.line_problem(message.display_name, 200):
            raise InvalidArgument(field="flow.display_name", why=problem)
        problems = convert_config.flow_problems(message)
        if problems:
            raise FlowUnsound(message.name or "the flow", problems)

    def read(self, record: Record) -> Any:
        """The flow, with its version."""
        message = super().read(record)
        message.version = self.number_of(record)
        return message


class Configuring:
    """What the calls of the three services share."""

    def __init__(self, store: Records, governor: Governor, handlers: Handlers, clock: Clock) -> None:
        self.store = store
        self.governor = governor
        self.handlers = handlers
        self.clock = clock
        self.flows = Flows(_FLOW, store, clock)
        self.calendars = Versioned(_CALENDAR, store, clock)
        self.policies = Naming(_POLICY, store, clock)
        self.teams = Crud(_TEAM, store, clock)


class FlowCalls:
    """FlowService."""

    def __init__(self, parts: Configuring) -> None:
        self._parts = parts

    def GetFlow(self, request: Any, context: Any) -> flow_pb2.Flow:
        """One flow."""
        id = self._parts.flows.id_of(request.name)
        if id in flows.FLOWS:
            return convert_config.flow_to_proto(flows.FLOWS[id])
        return self._parts.flows.get(request)

    def ListFlows(self, request: Any, context: Any) -> flow_pb2.ListFlowsResponse:
        """A page of flows, by name; all are few, so the page is cut from all."""
        page = Page.of(request)
        after = page.value(str) or ""
        kinds = {convert.read_kind(request.kind, "kind")} if request.kind else set(convert.KINDS)
        numbers = {convert.KINDS[kind] for kind in kinds}
        shipped = [convert_config.flow_to_proto(flow) for flow in flows.FLOWS.values()]
        own = [
            self._parts.flows.read(record)
            for record in records.all_of(self._parts.store, "flows")
            if record.search.get("latest") and not record.search.get("retired")
        ]
        found = sorted(
            (flow for flow in shipped + own if flow.name > after and flow.kind in numbers),
            key=lambda flow: flow.name,
        )
        shown, token = page.cut(found, attrgetter("name"))
        return flow_pb2.ListFlowsResponse(flows=shown, next_page_token=token)

    def CreateFlow(self, request: Any, context: Any) -> flow_pb2.Flow:
        """Adds an operator's flow."""
        if request.flow_id in flows.FLOWS:
            raise AlreadyExists(resource=f"flows/{request.flow_id}")
        made = self._parts.flows.create(request, "CreateFlow")
        self._parts.governor.changed()
        return made

    def UpdateFlow(self, request: Any, context: Any) -> flow_pb2.Flow:
        """Makes a new version of an operator's flow."""
        self._refuse_shipped(request.flow.name, "flow.name")
        made = self._parts.flows.update(request)
        self._parts.governor.changed()
        return made

    def DeleteFlow(self, request: Any, context: Any) -> Empty:
        """Retires an operator's flow."""
        self._refuse_shipped(request.name, "name")
        version = parse_etag("etag", request.etag)
        record = self._parts.flows.record(request.name)
        if version is not None and version != record.version:
            raise EtagMismatch(resource=request.name)
        self._parts.store.update(replace(record, search={**record.search, "retired": True}))
        self._parts.governor.changed()
        return Empty()

    def ValidateFlow(self, request: Any, context: Any) -> flow_pb2.ValidateFlowResponse:
        """Checks a flow without storing it."""
        problems = convert_config.flow_problems(request.flow)
        problems += [
            flow_pb2.FlowProblem(
                subject=field, problem="UNKNOWN_TEAM", message=f"UNKNOWN_TEAM: {field}: {why}"
            )
            for field, why in self._parts.flows.unknown(request.flow, None)
        ]
        return flow_pb2.ValidateFlowResponse(problems=problems)

    def _refuse_shipped(self, name: str, field: str) -> None:
        if self._parts.flows.id_of(name, field) in flows.FLOWS:
            raise InvalidArgument(field=field, why="is a shipped flow, which cannot be changed")


class TeamCalls:
    """TeamService."""

    def __init__(self, parts: Configuring) -> None:
        self._parts = parts

    def GetTeam(self, request: Any, context: Any) -> team_pb2.Team:
        """One team."""
        return self._parts.teams.get(request)

    def ListTeams(self, request: Any, context: Any) -> team_pb2.ListTeamsResponse:
        """A page of teams, by name."""
        found, token = self._parts.teams.list(request)
        return team_pb2.ListTeamsResponse(teams=found, next_page_token=token)

    def CreateTeam(self, request: Any, context: Any) -> team_pb2.Team:
        """Adds a team."""
        made = self._parts.teams.create(request, "CreateTeam")
        self._parts.governor.changed()
        return made

    def UpdateTeam(self, request: Any, context: Any) -> team_pb2.Team:
        """Changes a team."""
        made = self._parts.teams.update(request)
        self._parts.governor.changed()
        return made

    def DeleteTeam(self, request: Any, context: Any) -> Empty:
        """Removes a team; its open tickets go to their flow's, or to the default."""
        id = self._parts.teams.record(request.name).id
        gone = Record(kind="teams", id=f"{id}{GONE_MARK}", body="{}", search={"retired": True})
        with suppress(AlreadyExists):  # deleted before; told first, so that no crash leaves it untold
            self._parts.store.insert(gone)
        self._parts.teams.delete(request)
        self._parts.governor.changed(retime=True)
        return Empty()


class SlaCalls:
    """SlaService."""

    def __init__(self, parts: Configuring) -> None:
        self._parts = parts

    def GetSlaPolicy(self, request: Any, context: Any) -> sla_pb2.SlaPolicy:
        """One policy."""
        return self._parts.policies.get(request)

    def ListSlaPolicies(self, request: Any, context: Any) -> sla_pb2.ListSlaPoliciesResponse:
        """A page of policies in the order they are tried; all are few, so the page is cut from all."""
        page = Page.of(request)
        stored = records.all_of(self._parts.store, "slaPolicies")
        place = attrgetter("order", "name")
        found = sorted((self._parts.policies.read(one) for one in stored), key=place)
        if after := page.key(int, str):
            found = [one for one in found if place(one) > after]
        shown, token = page.cut(found, place)
        return sla_pb2.ListSlaPoliciesResponse(sla_policies=shown, next_page_token=token)

    def CreateSlaPolicy(self, request: Any, context: Any) -> sla_pb2.SlaPolicy:
        """Adds a policy."""
        made = self._parts.policies.create(request, "CreateSlaPolicy")
        self._parts.governor.changed(retime=True)
        return made

    def UpdateSlaPolicy(self, request: Any, context: Any) -> sla_pb2.SlaPolicy:
        """Changes a policy; open tickets take the new targets."""
        made = self._parts.policies.update(request)
        self._parts.governor.changed(retime=True)
        return made

    def DeleteSlaPolicy(self, request: Any, context: Any) -> Empty:
        """Removes a policy; open tickets fall to the next that matches."""
        self._parts.policies.delete(request)
        self._parts.governor.changed(retime=True)
        return Empty()

    def GetCalendar(self, request: Any, context: Any) -> sla_pb2.Calendar:
        """One calendar."""
        return self._parts.calendars.get(request)

    def ListCalendars(self, request: Any, context: Any) -> sla_pb2.ListCalendarsResponse:
        """A page of calendars, by name."""
        found, token = self._parts.calendars.list(request)
        return sla_pb2.ListCalendarsResponse(calendars=found, next_page_token=token)

    def CreateCalendar(self, request: Any, context: Any) -> sla_pb2.Calendar:
        """Adds a calendar."""
        made = self._parts.calendars.create(request, "CreateCalendar")
        self._parts.governor.changed()
        return made

    def UpdateCalendar(self, request: Any, context: Any) -> sla_pb2.Calendar:
        """Changes a calendar; open tickets' deadlines follow."""
        made = self._parts.calendars.update(request)
        self._parts.governor.changed(retime=True)
        return made

    def DeleteCalendar(self, request: Any, context: Any) -> Empty:
        """Removes a calendar that no policy uses."""
        for record in records.all_of(self._parts.store, "slaPolicies"):
            if self._parts.policies.read(record).calendar == request.name:
                raise InUse(subject=request.name, why=f"slaPolicies/{record.id} uses it")
        self._parts.calendars.delete(request)
        self._parts.governor.changed()
        return Empty()

    def ExplainSla(self, request: Any, context: Any) -> sla_pb2.ExplainSlaResponse:
        """How a ticket's deadlines came about, or an imagined one's would."""
        rules = self._parts.governor.rules()
        if request.ticket:
            ticket = self._parts.handlers.get(convert.read_optional_name("ticket", "tickets", request.ticket))
            steps = self._parts.handlers.steps(ticket.id, 0, STEPS_MAX)
            parts = explain(ticket, steps, rules, self._parts.clock.now_ms())
            return sla_pb2.ExplainSlaResponse(sla=convert.to_proto(ticket).sla, stretches=parts)
        kind = convert.read_kind(request.kind, "kind")
        priority = convert.read_priority(request.priority, "priority")
        opened = self._parts.clock.now_ms()
        if request.HasField("open_time"):
            opened = convert.read_stamp(request.open_time)
            if not 0 <= opened < OPENED_MS_MAX:
                raise InvalidArgument(field="open_time", why="must be of the years 1970 to 2999")
        facts = (kind, priority, request.customer_tier.lower(), request.category)
        levels = clocks.start(rules, facts, opened)
        due = clocks.due_ms(levels.resolution) or clocks.due_ms(levels.first_response) or opened
        calendar = clocks.calendar_of(levels, rules)
        found = calendars.stretches(calendar, opened, due, STRETCHES_MAX)
        return sla_pb2.ExplainSlaResponse(
            sla=convert.sla_to_proto(levels), stretches=[_stretch(*stretch) for stretch in found]
        )


def _stretch(start: int, end: int, counted: bool, why: str) -> sla_pb2.SlaStretch:
    return sla_pb2.SlaStretch(start_time=stamp(start), end_time=stamp(end), counted=counted, why=why)


def _end_of(clock: SlaClock, now: int) -> int:
    return max(clock.due_ms or clock.stopped_ms or now, now if clock.stopped_ms is None else 0)


def explain(ticket: Ticket, steps: list[Step], rules: Rules, now: int) -> list[sla_pb2.SlaStretch]:
    """The stretches of a ticket's life that used up its resolution target, and those that didn't, up to
    its due
    time or end. A stretch before a change of calendar is shown by the present one."""
    calendar, found = clocks.calendar_of(ticket.sla, rules), list[sla_pb2.SlaStretch]()
    end = _end_of(ticket.sla.resolution, now)
    ends = [step.time_ms for step in steps[1:]] + [end]
    for step, until in zip(steps, ends, strict=True):
        if until <= step.time_ms or len(found) >= STRETCHES_MAX:
            continue
        if step.phase in (Phase.NEW, Phase.ACTIVE) and step.target not in ticket.sla.pausing:
            parts = calendars.stretches(calendar, step.time_ms, until, STRETCHES_MAX - len(found))
            found += [_stretch(*part) for part in parts]
        elif step.phase in (Phase.NEW, Phase.ACTIVE, Phase.WAITING):
            found.append(_stretch(step.time_ms, until, False, f"paused: {step.target}"))
        elif step is not steps[-1]:
            found.append(_stretch(step.time_ms, until, False, f"resolved: {step.target}"))
    return found


# ---- a file of what an operator goes by

#: Parts of the file in the order in which they are put in: what is named comes before what names it.
_FILE_PARTS = ("teams", "flows", "calendars", "slaPolicies")


def apply_file(parts: Configuring, content: Any) -> list[str]:
    """Puts what a configuration file holds into the database where it differs from what is there; the
    names of
    what was changed. InvalidArgument or FlowUnsound naming what is wrong; then nothing is changed."""
    if not isinstance(content, dict) or set(content) - set(_FILE_PARTS):
        raise InvalidArgument(field="file", why=f"must be an object with some of {', '.join(_FILE_PARTS)}")
    # all of it is read and checked before any of it is stored
    items = list(_file_items(parts, content))
    changed = []
    for crud, message, where in items:
        if name := _apply_one(parts, crud, message, where):
            changed.append(name)
            if _is_visit(crud, message):
                parts.governor.changed()  # known before the flows that name it
    if changed:
        parts.governor.changed(
            retime=any(name.startswith(("calendars/", "slaPolicies/")) for name in changed)
        )
    return changed


def read_item(crud: Crud, item: Any, where: str) -> Any:
    """A message of a configuration file; InvalidArgument naming where it stands."""
    message = crud.resource.message()
    try:
        ParseDict(item, message)
    except (ParseError, TypeError, AttributeError, ValueError) as error:
        raise InvalidArgument(field=where, why=str(error)[:500]) from None
    return message


def _file_items(parts: Configuring, content: Any) -> Iterator[tuple[Crud, Any, str]]:
    """What a file holds and where it stands, each item checked."""
    kinds: dict[str, Crud] = {
        "teams": parts.teams,
        "flows": parts.flows,
        "calendars": parts.calendars,
        "slaPolicies": parts.policies,
    }
    names = set[str]()
    visits = set[str]()
    for part in _FILE_PARTS:
        crud, found = kinds[part], content.get(part, [])
        if not isinstance(found, list):
            raise InvalidArgument(field=part, why="must be a list")
        wheres = [f"{part}[{position}]" for position in range(len(found))]
        messages = [(read_item(crud, item, where), where) for item, where in zip(found, wheres, strict=True)]
        # return visits first: other flows name theirs
        for message, where in sorted(messages, key=lambda one: not _is_visit(crud, one[0])):
            id = crud.id_of(message.name, f"{where}.name")
            if crud is parts.flows and id in flows.FLOWS:
                raise InvalidArgument(field=f"{where}.name", why="is a shipped flow, which cannot be changed")
            try:
                crud.check(_without_known(message, visits))
                crud.check_names(message, parts.store.find(crud.resource.kind, id), names)
            except InvalidArgument as error:
                raise _standing(error, where) from None
            names.add(message.name)
            if _is_visit(crud, message):
                visits.add(message.name)
            yield crud, message, where


def _is_visit(crud: Crud, message: Any) -> bool:
    return isinstance(crud, Flows) and message.kind == convert.KINDS[Kind.RETURN_VISIT]


def _without_known(message: Any, visits: set[str]) -> Any:
    """A message to be checked: without the name of a return visit's flow that the file brings itself."""
    if not isinstance(message, flow_pb2.Flow) or message.follow_up.flow not in visits:
        return message
    bare = flow_pb2.Flow()
    bare.CopyFrom(message)
    bare.follow_up.flow = ""
    return bare


def _standing(error: InvalidArgument, where: str) -> InvalidArgument:
    """The error of an item, naming where in the file it stands."""
    return InvalidArgument.many(
        (f"{where}.{one.field.partition('.')[2]}".rstrip("."), one.description)
        for one in error.details.field_violations
    )


def _apply_one(parts: Configuring, crud: Crud, message: Any, where: str) -> str:
    id = crud.id_of(message.name, f"{where}.name")
    record = parts.store.find(crud.resource.kind, id)
    if record is None:
        made = crud.new(message, id) if isinstance(crud, Versioned) else crud.as_record(message, id)
        try:
            parts.store.insert(made)
            return str(message.name)
        except AlreadyExists:  # another server starts with the same file
            record = records.get(parts.store, crud.resource.kind, id)
    if crud.as_record(message, id, record).body == record.body and not record.search.get("retired"):
        return ""

    def put(stored: Any) -> None:
        stored.CopyFrom(message)

    crud.change(message.name, "", put)
    return str(message.name)
