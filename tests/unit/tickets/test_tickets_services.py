"""The services around tickets, in memory: tasks, words, links, rules, knowledge, quality, reports."""

from __future__ import annotations

import base64
import gzip
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.tickets.v1 import (
    events_pb2,
    flow_pb2,
    knowledge_pb2,
    quality_pb2,
    report_pb2,
    sla_pb2,
    team_pb2,
    ticket_pb2,
)
from callmesh.tickets.v1 import ticket_service_pb2 as rpc
from chassis import callcontext
from chassis.callcontext import CallContext, Identity
from chassis.clock import to_ms
from chassis.errors import (
    AlreadyExists,
    CallmeshError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from chassis.grpc_status import rich_status
from chassis.pagination import Page, request_fingerprint
from chassis.testing import FakeClock
from tickets import (
    around,
    calendars,
    configuring,
    convert,
    convert_config,
    desk,
    documents,
    engine,
    flows,
    handlers,
    hotstore,
    records,
    reports,
    workdays,
)
from tickets import sla as clocks
from tickets.around import Around, draft_edit
from tickets.config import TicketsSettings
from tickets.configuring import Configuring, FlowCalls, SlaCalls, TeamCalls
from tickets.feedback import MemoryFeedback
from tickets.governing import Governor, MemoryState
from tickets.handlers import Handlers
from tickets.hotstore import AsyncMemoryStore
from tickets.knowledge import ExpertCalls, KnowledgeCalls, Library
from tickets.model import (
    GUESTS_MAX,
    INTENTS_MAX,
    CallFacts,
    Channel,
    FollowUp,
    Intent,
    IntentKind,
    Profile,
    Rules,
    Ticket,
    TicketRequest,
)
from tickets.opening import Create, Opening
from tickets.quality import QualityCalls
from tickets.records import MemoryRecords
from tickets.reporting import MemoryImports, ReportCalls
from tickets.reports import Case
from tickets.store import MemoryStore
from tickets.teams import Teams

pb = ticket_pb2
HOUR = 3_600_000
INCIDENTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "incident_events.csv.gz"


class Service(Around):
    """Everything in one memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store, self.records, state = MemoryStore(), MemoryRecords(), MemoryState()
        base = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=HOUR)
        self.governor = Governor(base, self.records, state, self.clock)
        self.governor.refresh()
        self.use = self._handlers = Handlers(self.store, self.clock, self.governor.rules, convert.event_of)
        self._teams = Teams(self.governor.rules, self.store, state)
        self.opening = Opening(
            AsyncMemoryStore(self.store), self.clock, self.governor.rules, convert.event_of
        )
        self.parts = Configuring(self.records, self.governor, self.use, self.clock)
        self.flows, self.sla, self.teams = FlowCalls(self.parts), SlaCalls(self.parts), TeamCalls(self.parts)
        self.library = Library(self.records, self.clock, MemoryFeedback())
        self.knowledge = KnowledgeCalls(self.library, self.use)
        self.experts = ExpertCalls(self.library, self.use)
        self.quality = QualityCalls(self.records, self.use, self.clock)
        self.reports = ReportCalls(self.store.whole, MemoryImports(), self.clock)

    def open(self, **ticket: Any) -> Ticket:
        message = pb.Ticket(subject="No signal", **{"kind": pb.TICKET_KIND_INQUIRY, **ticket})
        kind, draft = convert.read_kind(message.kind), convert.read_draft(message)
        flow = message.flow.removeprefix("flows/")
        return self.use.create(Create(kind=kind, draft=draft, actor="ann", flow=flow))

    def told(self, message: Any) -> list[Any]:
        name = message.DESCRIPTOR.full_name
        return [event.message(message) for event in self.store.events if event.type == name]


def become(subject: str, *scopes: str) -> None:
    callcontext.set_current(
        CallContext("test", Identity(subject=subject, scopes=frozenset(scopes)), None, None)
    )


@pytest.fixture
def service() -> Iterator[Service]:
    become("ann", "tickets.read", "tickets.knowledge", "tickets.selfservice")
    yield Service()
    callcontext.set_current(None)


def refused(call: Any, error: type[CallmeshError] = InvalidArgument) -> Any:
    with pytest.raises(error) as caught:
        call()
    fields = [violation.field for violation in caught.value.details.field_violations]
    return fields if error is InvalidArgument else caught.value.details.reason


# ---- tasks


def with_team(service: Service) -> None:
    members = [
        team_pb2.TeamMember(agent="agents/a", skills=["fibre"], open_tickets_max=2),
        team_pb2.TeamMember(agent="agents/b"),
        team_pb2.TeamMember(agent="agents/c", skills=["fibre"]),
    ]
    team = team_pb2.Team(display_name="Field", members=members)
    service.teams.CreateTeam(team_pb2.CreateTeamRequest(team=team, team_id="field"), None)


def with_teams(service: Service, *ids: str) -> None:
    for id in ids:
        service.teams.CreateTeam(team_pb2.CreateTeamRequest(team=team_pb2.Team(), team_id=id), None)


def test_a_pile_is_claimed_by_urgency_and_skill_once(service: Service) -> None:
    with_team(service)
    names = []
    for priority, skills in ((2, []), (4, ["fibre"]), (3, [])):
        ticket = service.open(priority=priority, required_skills=skills)
        names.append(f"tickets/{ticket.id}")
        service.TransferTicket(
            rpc.TransferTicketRequest(name=names[-1], team="teams/field", reason="theirs"), None
        )
    first = rpc.ClaimNextTicketRequest(team="teams/field", agent="agents/b", request_id=str(uuid.uuid4()))
    claimed = service.ClaimNextTicket(first, None)
    assert (claimed.name, claimed.assignee) == (names[2], "agents/b"), "the most urgent one needs a skill"
    assert service.ClaimNextTicket(first, None).name == names[2], "a repeat gives the same"
    take = rpc.ClaimTicketRequest(name=names[1], agent="agents/b")
    assert refused(lambda: service.ClaimTicket(take, None), CallmeshError) == "SKILLS_MISSING"
    service.ClaimTicket(rpc.ClaimTicketRequest(name=names[1], agent="agents/a"), None)
    take = rpc.ClaimTicketRequest(name=names[1], agent="agents/c")
    assert refused(lambda: service.ClaimTicket(take, None), CallmeshError) == "ALREADY_CLAIMED"
    moved = service.TransferTicket(
        rpc.TransferTicketRequest(name=names[1], agent="agents/c", reason="her area"), None
    )
    assert (moved.assignee, moved.team, moved.reassignment_count) == ("agents/c", "teams/field", 1)
    back = service.ReleaseTicket(rpc.ReleaseTicketRequest(name=names[1]), None)
    assert not back.assignee and [e.reason for e in service.told(events_pb2.TicketAssigned)][-1] == "released"


def test_why_and_by_whom_a_ticket_was_handed_over_stays_in_its_history(service: Service) -> None:
    with_team(service)
    name = f"tickets/{service.open().id}"
    request = rpc.TransferTicketRequest(name=name, team="teams/field", reason="a cable", etag="")
    for _ in range(2):
        service.TransferTicket(request, None)
    steps = service.use.steps(name[8:], 0, 10)
    assert [(s.verb, s.target, s.actor, s.reason) for s in steps[1:]] == [
        ("transfer", "new", "ann", "a cable")
    ]
    service.use.transition(name[8:], None, configuring_act("start"))
    found = service.reports.GetProcessMap(report_pb2.GetProcessMapRequest(), None)
    assert {(s.from_activity, s.to_activity) for s in found.steps} == {
        ("", "new"),
        ("new", "in_progress"),
        ("in_progress", ""),
    }


def test_no_ticket_goes_to_a_team_that_there_is_not(service: Service) -> None:
    """A name with a slip of the pen in it was taken, and nobody saw the ticket again."""
    with_team(service)
    ticket = service.open()
    name = f"tickets/{ticket.id}"
    give = rpc.AssignTicketRequest(name=name, agent="agents/a", team="teams/feild")
    hand = rpc.TransferTicketRequest(name=name, team="teams/feild", reason="theirs")
    for ask in (lambda: service.AssignTicket(give, None), lambda: service.TransferTicket(hand, None)):
        assert refused(ask, NotFound) == "NOT_FOUND"
    assert service.store.get(ticket.id) == ticket
    hand.team = "teams/field"
    service.TransferTicket(hand, None)
    service.teams.DeleteTeam(team_pb2.DeleteTeamRequest(name="teams/field"), None)
    hand.agent = "agents/b"
    assert service.TransferTicket(hand, None).assignee == "agents/b", "where it lies already it may stay"


def test_nobody_waits_behind_what_needs_other_skills(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "PILE_MAX", 1)
    with_team(service)
    for skills in (["fibre"], []):
        name = f"tickets/{service.open(required_skills=skills).id}"
        service.TransferTicket(
            rpc.TransferTicketRequest(name=name, team="teams/field", reason="theirs"), None
        )
    claim = rpc.ClaimNextTicketRequest(team="teams/field", agent="agents/b")
    assert service.ClaimNextTicket(claim, None).name == name


def test_the_service_chooses_in_turn_or_by_load_among_those_who_can(service: Service) -> None:
    with_team(service)
    strategy = rpc.AssignTicketRequest

    def assign(how: Any, **ticket: Any) -> str:
        name = f"tickets/{service.open(**ticket).id}"
        request = strategy(name=name, team="teams/field", strategy=how)
        return str(service.AssignTicket(request, None).assignee)

    in_turn = [assign(strategy.STRATEGY_ROUND_ROBIN) for _ in range(4)]
    assert in_turn == ["agents/a", "agents/b", "agents/c", "agents/a"]
    skilled = [assign(strategy.STRATEGY_LEAST_LOADED, required_skills=["fibre"]) for _ in range(2)]
    assert skilled == ["agents/c", "agents/c"], "a has as many as a may have"
    assert refused(lambda: assign(1, required_skills=["welding"]), CallmeshError) == "NOBODY_FREE"


def test_a_silent_assignee_loses_the_ticket(service: Service) -> None:
    with_teams(service, "field")
    add_flow(service, silent_assignee_limit=Duration(seconds=600), initial_team="teams/field")
    ticket = service.open(flow="flows/own")
    assert ticket.team == "field" and ticket.flow_version == 1
    service.ClaimTicket(rpc.ClaimTicketRequest(name=f"tickets/{ticket.id}", agent="agents/a"), None)
    service.clock.advance(500)
    comment = pb.Comment(body="on it")
    service.CreateComment(rpc.CreateCommentRequest(parent=f"tickets/{ticket.id}", comment=comment), None)
    service.clock.advance(500)
    assert service.use.fire_due(10)[0] == 0
    service.clock.advance(101)
    for id in service.use.fire_due(10)[1]:
        service.use.fire(id)
    assert service.store.get(ticket.id).assignee == "" and service.store.get(ticket.id).team == "field"


@pytest.mark.parametrize("over", ["done", "resolved"])
def test_a_ticket_that_is_over_stays_with_its_assignee_however_silent(service: Service, over: str) -> None:
    with_team(service)
    flow = own_flow(silent_assignee_limit=Duration(seconds=600), initial_team="teams/field")
    flow.states.add(state="resolved", phase=pb.TICKET_PHASE_RESOLVED)
    flow.transitions.add(transition="resolve", from_states=["new"], to_state="resolved")
    flow.transitions.add(transition="end", from_states=["new", "resolved"], to_state="done")
    service.flows.CreateFlow(flow_pb2.CreateFlowRequest(flow=flow, flow_id=f"is-{over}"), None)
    name = f"tickets/{service.open(flow=f'flows/is-{over}').id}"
    service.ClaimTicket(rpc.ClaimTicketRequest(name=name, agent="agents/a"), None)
    service.use.transition(name[8:], None, configuring_act("end" if over == "done" else "resolve"))
    if over == "resolved":
        service.AssignTicket(rpc.AssignTicketRequest(name=name, agent="agents/c"), None)
    service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=pb.Comment(body="a note")), None)
    service.clock.advance(601)
    assert not service.use.due(10)
    assert service.store.get(name[8:]).assignee == ("a" if over == "done" else "c")


def test_a_silent_assignees_ticket_goes_to_who_has_fewest_and_can(service: Service) -> None:
    with_team(service)
    add_flow(service, silent_assignee_limit=Duration(seconds=600), initial_team="teams/field")
    busy, one, two = (service.open(flow="flows/own", required_skills=["fibre"]) for _ in range(3))
    for ticket, agent in ((busy, "c"), (one, "a"), (two, "a")):
        claim = rpc.ClaimTicketRequest(name=f"tickets/{ticket.id}", agent=f"agents/{agent}")
        service.ClaimTicket(claim, None)
    service.clock.advance(300)
    said = rpc.CreateCommentRequest(parent=f"tickets/{busy.id}", comment=pb.Comment(body="on it"))
    service.CreateComment(said, None)
    service.clock.advance(301)
    for id in service.use.fire_due(10)[1]:
        service.use.fire(id)
    moved = [service.store.get(ticket.id) for ticket in (one, two)]
    assert [(t.assignee, t.team, t.reassign_count) for t in moved] == [("c", "field", 1)] * 2
    last = service.told(events_pb2.TicketAssigned)[-1]
    assert (last.ticket.assignee, last.previous_assignee) == ("agents/c", "agents/a")
    assert not service.use.due(10) and service.store.get(busy.id).assignee == "c"


def test_a_state_is_the_task_of_its_team(service: Service) -> None:
    with_teams(service, "front", "lawyers")
    flow = own_flow(initial_team="teams/front")
    flow.states[1].team = "teams/lawyers"
    service.flows.CreateFlow(flow_pb2.CreateFlowRequest(flow=flow, flow_id="legal"), None)
    name = f"tickets/{service.open(flow='flows/legal').id}"
    service.ClaimTicket(rpc.ClaimTicketRequest(name=name, agent="agents/a"), None)
    asked = service.use.transition(name[8:], None, configuring_act("ask"))
    assert (asked.team, asked.assignee, asked.state) == ("lawyers", "", "legal")
    last = service.told(events_pb2.TicketAssigned)[-1]
    assert (last.previous_team, last.previous_assignee) == ("teams/front", "agents/a")
    flow.states[1].team = "lawyers"
    bad = flow_pb2.CreateFlowRequest(flow=flow, flow_id="legal-2")
    fields = refused(lambda: service.flows.CreateFlow(bad, None))
    assert fields == ["flow.states[1].team"]


def without_team(service: Service, id: str) -> None:
    """A team is deleted, and what is open is taken over."""
    service.teams.DeleteTeam(team_pb2.DeleteTeamRequest(name=f"teams/{id}"), None)
    assert service.governor._state.read().wanted > service.governor._state.read().done
    last = ""
    while last := service.use.retime(last, 10):
        pass


def test_the_tickets_of_a_deleted_team_go_to_their_flows_or_to_the_default(service: Service) -> None:
    """They lay in a pile that nobody looked at any more."""
    with_teams(service, "front", "field", "spare")
    flow = own_flow(initial_team="teams/front")
    flow.states[1].team = "teams/field"
    service.flows.CreateFlow(flow_pb2.CreateFlowRequest(flow=flow, flow_id="homed"), None)
    legal, plain = (service.open(**of).id for of in ({"flow": "flows/homed"}, {}))
    service.use.transition(legal, None, configuring_act("ask"))
    move = rpc.TransferTicketRequest(name=f"tickets/{plain}", team="teams/field", reason="a cable")
    service.TransferTicket(move, None)
    service.ClaimTicket(rpc.ClaimTicketRequest(name=f"tickets/{plain}", agent="agents/a"), None)
    service.governor._base = replace(service.governor._base, default_team="spare")
    without_team(service, "field")
    found = [service.store.get(id) for id in (legal, plain)]
    assert [(one.team, one.assignee) for one in found] == [("front", ""), ("spare", "a")]
    for one in found:
        last = one.history[-1]
        assert (last.verb, last.actor, last.reason) == ("transfer", "system", "teams/field was deleted")
    told = service.told(events_pb2.TicketAssigned)[-2:]
    assert {(e.previous_team, e.reason) for e in told} == {("teams/field", "teams/field was deleted")}
    versions = service.store.versions()
    assert service.use.retime("", 10) and service.store.versions() == versions, "once"
    again = service.open(flow="flows/homed").id
    assert service.use.transition(again, None, configuring_act("ask")).team == "front"
    without_team(service, "spare")
    assert service.store.get(plain).team == "", "with no team at all, where lists show it"
    with_teams(service, "field")
    later = service.open(flow="flows/homed").id
    assert service.use.transition(later, None, configuring_act("ask")).team == "field", "there again"


def test_an_escalation_to_a_deleted_team_leaves_the_ticket_where_it_is(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    with_teams(service, "lead", "field")
    level = sla_pb2.EscalationLevel(level=1, offset=Duration(seconds=-60), team="teams/lead", notify=["boss"])
    service.sla.CreateSlaPolicy(policy_request(4, escalations=[level], kinds=[1]), None)
    id = service.open().id
    move = rpc.TransferTicketRequest(name=f"tickets/{id}", team="teams/field", reason="a cable")
    service.TransferTicket(move, None)
    without_team(service, "lead")
    service.clock.advance(
        (clocks.due_ms(service.store.get(id).sla.resolution) - service.clock.now_ms()) / 1000
    )
    service.use.fire_due(10)
    escalated = service.store.get(id)
    assert (escalated.team, escalated.sla.level, escalated.watchers) == ("field", 1, ("boss",))
    patch = sla_pb2.SlaPolicy(name="slaPolicies/gold", display_name="Gold")
    service.sla.UpdateSlaPolicy(sla_pb2.UpdateSlaPolicyRequest(sla_policy=patch), None)
    assert [team.name for team in service.teams.ListTeams(team_pb2.ListTeamsRequest(), None).teams] == [
        "teams/field"
    ]
    dead = team_pb2.GetTeamRequest(name="teams/lead")
    assert refused(lambda: service.teams.GetTeam(dead, None), CallmeshError) == "NOT_FOUND"


def test_rules_that_name_what_there_is_not_are_refused_by_field(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    with_teams(service, "lead")
    levels = [sla_pb2.EscalationLevel(level=n, offset=Duration(seconds=n), team="teams/lead") for n in (1, 2)]
    levels[1].team = "teams/laed"
    bad = policy_request(4, escalations=levels)
    assert refused(lambda: service.sla.CreateSlaPolicy(bad, None)) == ["sla_policy.escalations[1].team"]
    levels[1].team = "teams/lead"
    service.sla.CreateSlaPolicy(policy_request(4, escalations=levels), None)
    patch = sla_pb2.UpdateSlaPolicyRequest(sla_policy={"name": "slaPolicies/gold", "escalations": levels})
    patch.sla_policy.escalations[0].team = "teams/none"
    patch.sla_policy.calendar = "calendars/none"
    patch.update_mask.paths.append("escalations")
    ask = lambda: service.sla.UpdateSlaPolicy(patch, None)  # noqa: E731
    assert refused(ask) == ["sla_policy.escalations[0].team"], "and nothing outside the mask"
    flow = own_flow(initial_team="teams/front")
    flow.states[1].team = "teams/lawyers"
    made = flow_pb2.CreateFlowRequest(flow=flow, flow_id="named")
    fields = ["flow.initial_team", "flow.states[1].team"]
    assert refused(lambda: service.flows.CreateFlow(made, None)) == fields
    checked = service.flows.ValidateFlow(flow_pb2.ValidateFlowRequest(flow=flow), None).problems
    assert [(one.problem, one.subject) for one in checked] == [
        ("UNKNOWN_TEAM", "initial_team"),
        ("UNKNOWN_TEAM", "states[1].team"),
    ]
    content: dict[str, Any] = {"slaPolicies": [{"name": "slaPolicies/p", "calendar": "calendars/office",
                "resolutionTarget": "60s", "escalations": [{"level": 1, "team": "teams/new"}]}]}  # fmt: skip
    assert refused(lambda: configuring.apply_file(service.parts, content)) == [
        "slaPolicies[0].escalations[0].team"
    ]
    content["teams"] = [{"name": "teams/new"}]
    assert configuring.apply_file(service.parts, content) == ["teams/new", "slaPolicies/p"]
    without_team(service, "new")
    del content["teams"]
    assert configuring.apply_file(service.parts, content) == [], "a server starts with what it went by"


# ---- words, files, links


def test_comments_are_kept_in_order_however_many_and_repeated_once(service: Service) -> None:
    name = f"tickets/{service.open().id}"
    request = rpc.CreateCommentRequest(
        parent=name, comment=pb.Comment(body="你好"), request_id=str(uuid.uuid4())
    )
    assert service.CreateComment(request, None) == service.CreateComment(request, None)
    for number in range(20):
        said = pb.Comment(body=f"{number}", visibility=2 if number % 2 else 1)
        service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=said), None)
    assert len(service.store.get(name[8:]).comments) <= 8
    page = service.ListComments(rpc.ListCommentsRequest(parent=name, page_size=15), None)
    token = page.next_page_token
    rest = service.ListComments(rpc.ListCommentsRequest(parent=name, page_size=15, page_token=token), None)
    assert [c.body for c in (*page.comments, *rest.comments)] == ["你好", *map(str, range(20))]
    public = service.ListComments(rpc.ListCommentsRequest(parent=name, public_only=True), None)
    assert len(public.comments) == 10
    assert service.store.get(name[8:]).sla.first_response.stopped_ms is not None
    assert refused(
        lambda: service.CreateComment(
            rpc.CreateCommentRequest(parent=name, comment=pb.Comment(body="x" * 5_000_000)), None
        )
    ) == ["comment.body"]


def test_a_repeated_comment_is_answered_however_many_came_after_it(service: Service) -> None:
    target, name = (f"tickets/{service.open().id}" for _ in range(2))

    def write(body: str, request_id: str = "") -> Any:
        comment = pb.Comment(body=body)
        return service.CreateComment(
            rpc.CreateCommentRequest(parent=name, comment=comment, request_id=request_id), None
        )

    early, late = str(uuid.uuid4()), str(uuid.uuid4())
    first = write("first", early)
    for number in range(10):
        write(f"{number}")
    assert write("first", early) == first
    write("late", late)
    service.MergeTickets(rpc.MergeTicketsRequest(name=target, source=name), None)
    assert refused(lambda: write("late", late), NotFound) == "NOT_FOUND"


def test_a_customers_word_on_a_closed_ticket_promises_no_answer(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    service.sla.CreateSlaPolicy(policy_request(8, next_response_target=Duration(seconds=60)), None)
    name = f"tickets/{service.open().id}"
    for verb in ("resolve", "close"):
        service.use.transition(name[8:], None, configuring_act(verb))
    said = pb.Comment(body="thank you", from_customer=True)
    service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=said), None)
    assert service.store.get(name[8:]).sla.next_response is None and not service.use.due(10)


def test_files_and_watchers(service: Service) -> None:
    name = f"tickets/{service.open().id}"
    file = pb.Attachment(uri="https://files/1", file_name="photo.png", size_bytes=9)
    attached = service.AttachFile(rpc.AttachFileRequest(name=name, attachment=file), None)
    (kept,) = attached.attachments
    assert kept.creator == "ann" and kept.attachment_id
    bad = pb.Attachment(uri="../etc/passwd", file_name="", size_bytes=-1, sha256="x")
    fields = refused(lambda: service.AttachFile(rpc.AttachFileRequest(name=name, attachment=bad), None))
    assert fields == [f"attachment.{f}" for f in ("uri", "file_name", "size_bytes", "sha256")]
    gone = service.DetachFile(rpc.DetachFileRequest(name=name, attachment_id=kept.attachment_id), None)
    assert not gone.attachments
    assert list(service.WatchTicket(rpc.WatchTicketRequest(name=name, watcher="bob"), None).watchers) == [
        "bob"
    ]
    assert not service.UnwatchTicket(rpc.UnwatchTicketRequest(name=name, watcher="bob"), None).watchers


def test_links_lie_on_both_sides(service: Service) -> None:
    one, two = (f"tickets/{service.open().id}" for _ in range(2))
    blocked = pb.TicketLink.RELATION_BLOCKED_BY
    service.LinkTickets(rpc.LinkTicketsRequest(name=one, other=two, relation=blocked), None)
    assert service.store.get(two[8:]).links[0].relation.value == "blocks"
    assert not service.store.get(one[8:]).intents
    service.UnlinkTickets(rpc.UnlinkTicketsRequest(name=one, other=two, relation=blocked), None)
    assert not service.store.get(one[8:]).links and not service.store.get(two[8:]).links
    assert refused(
        lambda: service.LinkTickets(rpc.LinkTicketsRequest(name=one, other=one, relation=1), None)
    ) == ["other"]


def test_a_merge_moves_everything_once_and_a_split_gives_it_back(service: Service) -> None:
    target, source = (f"tickets/{service.open().id}" for _ in range(2))
    for number in range(12):
        said = pb.Comment(body=f"{number}")
        service.CreateComment(rpc.CreateCommentRequest(parent=source, comment=said), None)
    service.WatchTicket(rpc.WatchTicketRequest(name=source, watcher="bob"), None)
    dry = service.MergeTickets(rpc.MergeTicketsRequest(name=target, source=source, validate_only=True), None)
    assert dry.links and not service.store.get(target[8:]).links
    for _ in range(2):
        merged = service.MergeTickets(rpc.MergeTicketsRequest(name=target, source=source), None)
    ended = service.store.get(source[8:])
    assert ended.merged_into == target[8:] and not ended.is_open and not ended.intents
    said = service.use.comments(target[8:], 0, 100)
    assert [c.body for c in said] == [str(n) for n in range(12)] and list(merged.watchers) == ["bob"]
    assert len(service.told(events_pb2.TicketsMerged)) == 1
    again = rpc.MergeTicketsRequest(name=source, source=target)
    assert refused(lambda: service.MergeTickets(again, None), CallmeshError) == "TICKET_FINAL"
    part = pb.Ticket(kind=pb.TICKET_KIND_COMPLAINT, subject="Late", description="too late")
    names = [f"{target}/comments/2"]
    split = rpc.SplitTicketRequest(name=target, ticket=part, comments=names, request_id=str(uuid.uuid4()))
    made = service.SplitTicket(split, None)
    assert service.SplitTicket(split, None).created.name == made.created.name
    assert made.created.parent == target and made.original.links[-1].relation == pb.TicketLink.RELATION_CHILD
    assert [c.body for c in service.use.comments(made.created.name[8:], 0, 9)] == ["1"]


def with_words(service: Service, *, files: int = 0) -> str:
    """A ticket with two comments, a watcher and files."""
    name = f"tickets/{service.open().id}"
    for number in range(2):
        said = pb.Comment(body=f"{number} of {name}")
        service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=said), None)
    for number in range(files):
        file = pb.Attachment(uri=f"https://files/{name}/{number}", file_name="photo.png")
        service.AttachFile(rpc.AttachFileRequest(name=name, attachment=file), None)
    return name


def words_of(service: Service, name: str) -> set[str]:
    return {said.body for said in service.use.comments(name[8:], 0, 100)}


def test_a_ticket_called_a_duplicate_first_keeps_its_words_in_the_merge(service: Service) -> None:
    target, source = with_words(service, files=1), with_words(service, files=1)
    said = words_of(service, target) | words_of(service, source)
    same = pb.TicketLink.RELATION_DUPLICATE
    service.LinkTickets(rpc.LinkTicketsRequest(name=target, other=source, relation=same), None)
    merged = service.MergeTickets(rpc.MergeTicketsRequest(name=target, source=source), None)
    assert words_of(service, target) == said and len(merged.attachments) == 2
    assert [(link.ticket, link.relation) for link in merged.links] == [(source, same)]


def test_what_does_not_fit_is_not_merged(service: Service) -> None:
    target, source = with_words(service, files=60), with_words(service, files=5)
    before = service.store.get(source[8:])
    merge = rpc.MergeTicketsRequest(name=target, source=source)
    assert refused(lambda: service.MergeTickets(merge, None), CallmeshError) == "TICKET_FULL"
    assert service.store.get(source[8:]) == before


def test_the_words_of_so_many_others_fit_into_a_ticket(service: Service) -> None:
    """Whose words it holds grew with every merge."""
    target, mine, other = (service.open(customer=f"customers/{who}").id for who in ("1", "1", "2"))
    held = service.store.get(target)
    guests = tuple(f"g{n}" for n in range(GUESTS_MAX))
    service.store.update(replace(held, guests=guests), ())

    def merge(source: str) -> Any:
        ask = rpc.MergeTicketsRequest(name=f"tickets/{target}", source=f"tickets/{source}")
        return service.MergeTickets(ask, None)

    merge(mine)
    with pytest.raises(desk.TicketFull, match="no room for 1 more customers' words"):
        merge(other)
    service.store.update(replace(service.store.get(target), guests=(*guests[1:], "2")), ())
    merge(other)
    assert len(service.store.get(target).guests) == GUESTS_MAX


def test_what_is_owed_to_another_ticket_is_not_dropped_for_what_comes_later(service: Service) -> None:
    """The oldest was: a link stayed with one side."""
    source, target = service.open(), service.open()
    owed = tuple(
        Intent(kind=IntentKind.LINK, ticket_id=f"t{n}", number=0, reason="related", time_ms=1)
        for n in range(INTENTS_MAX)
    )
    service.store.update(replace(source, intents=owed), ())
    merge = rpc.MergeTicketsRequest(name=f"tickets/{target.id}", source=f"tickets/{source.id}")
    with pytest.raises(desk.TicketFull, match="too much still to be done"):
        service.MergeTickets(merge, None)
    assert service.store.get(source.id).intents == owed


def test_what_finds_no_room_any_more_stays_where_it_was(service: Service) -> None:
    full, source = (service.store.get(with_words(service, files=n)[8:]) for n in (64, 5))
    absorbed = desk.absorb(full, source, source.comments, 1).ticket
    left = desk.emptied(source, absorbed)
    assert set(left.attachments) | set(absorbed.attachments) == {*full.attachments, *source.attachments}
    assert not left.comments and absorbed.comment_count == 4


@pytest.mark.parametrize("act", [
    lambda service, name: service.CreateComment(
        rpc.CreateCommentRequest(parent=name, comment=pb.Comment(body="and?", from_customer=True)), None
    ),
    lambda service, name: service.AttachFile(
        rpc.AttachFileRequest(name=name, attachment=pb.Attachment(uri="https://files/1", file_name="a")), None
    ),
])  # fmt: skip
def test_nobody_writes_to_a_ticket_that_was_merged(service: Service, act: Any) -> None:
    target, source = with_words(service), with_words(service)
    service.MergeTickets(rpc.MergeTicketsRequest(name=target, source=source), None)
    with pytest.raises(CallmeshError, match=target) as caught:
        act(service, source)
    assert caught.value.details.reason == "TICKET_FINAL"
    act(service, target)


def test_a_split_is_safe_to_repeat_when_its_calls_have_gone(service: Service) -> None:
    wish = TicketRequest(kind="inquiry", priority="", category="", subject="Bill", description="")
    now = service.clock.now_ms()
    service.use.call_wrapped_up(CallFacts(call_id="c1", ticket_id="call-1", time_ms=now, request=wish))
    part = pb.Ticket(kind=pb.TICKET_KIND_COMPLAINT, subject="Late")
    request = rpc.SplitTicketRequest(name="tickets/call-1", ticket=part, calls=["calls/c1"])
    request.request_id = str(uuid.uuid4())
    made = [service.SplitTicket(request, None) for _ in range(2)]
    assert made[0].created.name == made[1].created.name and not made[1].original.calls
    assert [call.call for call in made[1].created.calls] == ["calls/c1"]
    assert service.store.get("call-1").call_count == 0


def test_a_split_takes_along_the_files_that_its_comments_name(service: Service) -> None:
    name = with_words(service, files=2)
    wanted, other = service.store.get(name[8:]).attachments
    said = pb.Comment(body="see the photo", attachment_ids=[wanted.id])
    written = service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=said), None)
    part = pb.Ticket(kind=pb.TICKET_KIND_COMPLAINT, subject="Late")
    made = service.SplitTicket(split(name, part, comments=[written.name]), None)
    assert [file.attachment_id for file in made.created.attachments] == [wanted.id]
    assert [file.attachment_id for file in made.original.attachments] == [wanted.id, other.id]


def test_a_split_does_not_outgrow_a_ticket(service: Service) -> None:
    name = f"tickets/{service.open().id}"
    for _ in range(65):
        said = pb.Comment(body="x" * 65_536)
        service.CreateComment(rpc.CreateCommentRequest(parent=name, comment=said), None)
    part = pb.Ticket(kind=pb.TICKET_KIND_COMPLAINT, subject="Late")
    request = rpc.SplitTicketRequest(name=name, ticket=part)
    request.comments.extend(f"{name}/comments/{number}" for number in range(1, 66))
    assert refused(lambda: service.SplitTicket(request, None)) == ["comments"]


class Spoken:
    """The context of a call whose caller reads a language."""

    def __init__(self, language: str) -> None:
        self._language = language

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """What a call came with."""
        return [("accept-language", self._language)]


def test_bulk_edits_say_what_would_happen_and_do_it(service: Service) -> None:
    names = [f"tickets/{service.open(tags=['x']).id}" for _ in range(3)]
    service.MergeTickets(rpc.MergeTicketsRequest(name=names[1], source=names[0]), None)
    request = rpc.BulkUpdateTicketsRequest(filter="tags:x", transition="start", validate_only=True)
    dry = service.BulkUpdateTickets(request, Spoken("en"))
    assert (dry.changed_count, dry.failed_count) == (2, 1)
    assert {o.reason for o in dry.outcomes} == {"", "ILLEGAL_TRANSITION"}
    assert service.store.get(names[1][8:]).state == "new"
    request.validate_only = False
    request.ticket.priority = pb.PRIORITY_URGENT
    assert service.BulkUpdateTickets(request, Spoken("en")).changed_count >= 2
    assert service.store.get(names[2][8:]).state == "in_progress"
    assert refused(lambda: service.BulkUpdateTickets(rpc.BulkUpdateTicketsRequest(), None)) == ["names"]


def test_a_bulk_edit_says_in_the_callers_language_what_went_wrong(service: Service) -> None:
    names = [f"tickets/{service.open().id}", "tickets/none"]
    request = rpc.BulkUpdateTicketsRequest(names=names, transition="reopen")
    first, second = service.BulkUpdateTickets(request, Spoken("zh-CN")).outcomes
    assert "不能这样转换状态" in first.message and "未找到" in second.message
    assert "is not possible" in service.BulkUpdateTickets(request, None).outcomes[0].message


def test_a_bulk_edit_changes_a_ticket_and_takes_it_on_or_leaves_it_alone(service: Service) -> None:
    name = f"tickets/{service.open(kind=pb.TICKET_KIND_REPAIR).id}"
    before = service.store.get(name[8:])
    refused_ = rpc.BulkUpdateTicketsRequest(names=[name], ticket={"subject": "new"}, transition="arrive")
    (outcome,) = service.BulkUpdateTickets(refused_, Spoken("zh-CN")).outcomes
    assert (outcome.changed, outcome.reason) == (False, "ILLEGAL_TRANSITION")
    assert f"{name} 不能这样转换状态" in outcome.message
    (outcome,) = service.BulkUpdateTickets(refused_, Spoken("fr")).outcomes
    assert outcome.message.isascii()
    assert service.store.get(name[8:]) == before
    order = pb.DispatchOrder(site_address="1 Main St", engineer="agents/7")
    request = rpc.BulkUpdateTicketsRequest(
        names=[name], ticket={"dispatch": order}, transition="dispatch", request_id=str(uuid.uuid4())
    )
    request.validate_only = True
    assert service.BulkUpdateTickets(request, None).changed_count == 1, "as it would be with the order"
    assert service.store.get(name[8:]) == before
    request.validate_only = False
    for _ in range(2):
        assert service.BulkUpdateTickets(request, None).changed_count == 1
    after = service.store.get(name[8:])
    assert (after.state, after.version) == ("dispatched", before.version + 1)


def test_of_many_names_the_bad_one_is_told(service: Service) -> None:
    name = with_words(service)
    part = pb.Ticket(kind=pb.TICKET_KIND_COMPLAINT, subject="Late")
    asks: list[tuple[Any, str]] = [
        (lambda: service.BulkUpdateTickets(bulk(names=[name, "x"]), None), "names[1]"),
        (lambda: service.SplitTicket(split(name, part, calls=["calls/a", "x"]), None), "calls[1]"),
        (
            lambda: service.SplitTicket(split(name, part, comments=[f"{name}/comments/0"]), None),
            "comments[0]",
        ),
        (lambda: service.SplitTicket(split(name, part, comments=[name] * 1_001), None), "comments"),
    ]
    assert [refused(ask) for ask, _ in asks] == [[field] for _, field in asks]


def bulk(**fields: Any) -> rpc.BulkUpdateTicketsRequest:
    return rpc.BulkUpdateTicketsRequest(transition="start", request_id=str(uuid.uuid4()), **fields)


def split(name: str, part: pb.Ticket, **fields: Any) -> rpc.SplitTicketRequest:
    return rpc.SplitTicketRequest(name=name, ticket=part, **fields)


def test_a_bulk_edit_of_blanks_and_a_detached_nothing_are_refused(service: Service) -> None:
    name = f"tickets/{service.open().id}"
    blank = rpc.BulkUpdateTicketsRequest(filter="  ", ticket={"subject": "all of them"})
    assert refused(lambda: service.BulkUpdateTickets(blank, None)) == ["filter"]
    assert refused(lambda: service.DetachFile(rpc.DetachFileRequest(name=name), None)) == ["attachment_id"]
    other = draft_edit(ticket_pb2.Ticket(kind=ticket_pb2.TICKET_KIND_REPAIR), None)
    assert refused(lambda: other(service.store.get(name[8:]))) == ["ticket.kind"]


def test_a_bulk_edits_digest_is_made_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    made, digest = [], around.content_fingerprint
    monkeypatch.setattr(around, "content_fingerprint", lambda *a, **k: made.append(1) or digest(*a, **k))
    names = [f"tickets/{service.open().id}" for _ in range(3)]
    assert service.BulkUpdateTickets(bulk(names=names), None).changed_count == 3 and len(made) == 1


def test_money_is_exact_and_of_one_currency(service: Service) -> None:
    def line(amount: str, currency: str = "CNY", quantity: int = 3) -> pb.FeeLine:
        money = common_pb2.Money(currency_code=currency, amount=amount)
        return pb.FeeLine(description="visit", quantity=quantity, unit_amount=money)

    fee = pb.TICKET_KIND_FEE_ORDER
    ticket = service.open(kind=fee, fee=pb.FeeOrder(lines=[line("0.10"), line("19.90", quantity=1)]))
    assert convert.to_proto(ticket).fee.total.amount == "20.20"
    most = pb.FeeOrder(lines=[line(f"{'9' * 18}.{'9' * 6}", quantity=1_000_000), line("0.000001")])
    assert (
        convert.to_proto(service.open(kind=fee, fee=most)).fee.total.amount
        == "999999999999999999999999.000003"
    )
    bad = pb.FeeOrder(lines=[line("-1"), line("1", "USD"), line("1e3"), line("1", quantity=0)])
    assert refused(lambda: service.open(kind=fee, fee=bad)) == [
        "ticket.fee.lines[0].unit_amount.amount",
        "ticket.fee.lines[2].unit_amount.amount",
        "ticket.fee.lines[3].quantity",
        "ticket.fee.lines",
    ]
    assert refused(lambda: service.open(parts=[pb.PartLine(part_number="1", quantity=1)])) == ["ticket.parts"]


def test_approved_fees_stay_as_they_were_approved(service: Service) -> None:
    def fee(amount: str) -> pb.FeeOrder:
        money = common_pb2.Money(currency_code="CNY", amount=amount)
        return pb.FeeOrder(lines=[pb.FeeLine(description="visit", quantity=1, unit_amount=money)])

    ticket = service.open(kind=pb.TICKET_KIND_FEE_ORDER, fee=fee("10"))

    def change(amount: str, **more: Any) -> Ticket:
        patch = pb.Ticket(fee=fee(amount), **more)
        return service.use.update(ticket.id, None, around.draft_edit(patch, None), actor="ann")

    why = {"reason": "too much", "actor": "boss"}
    for back, verbs in (("reject", ("submit", "approve")), ("refund", ("submit", "approve", "pay"))):
        change("10")
        for verb in verbs:
            service.use.transition(ticket.id, None, replace(configuring_act(verb), **why))
        assert refused(lambda: change("99"), CallmeshError) == "FEES_APPROVED"
        assert change("10", subject=f"before the {back}").fee_approver == "boss"
        service.use.transition(ticket.id, None, replace(configuring_act(back), **why))
        assert (change("9").fee_approver, service.store.get(ticket.id).draft.fee[0].amount) == ("", "9")


# ---- what tickets go by


def own_flow(**changes: Any) -> flow_pb2.Flow:
    step = flow_pb2.FlowTransition
    flow = flow_pb2.Flow(
        kind=pb.TICKET_KIND_INQUIRY,
        initial_state="new",
        states=[
            flow_pb2.FlowState(state="new", phase=pb.TICKET_PHASE_NEW),
            flow_pb2.FlowState(state="legal", phase=pb.TICKET_PHASE_ACTIVE),
            flow_pb2.FlowState(state="done", phase=pb.TICKET_PHASE_CLOSED),
        ],
        transitions=[
            step(transition="ask", from_states=["new"], to_state="legal"),
            step(transition="end", from_states=["legal"], to_state="done", roles=["lawyer"]),
        ],
    )
    flow.MergeFrom(flow_pb2.Flow(**changes))
    return flow


def add_flow(service: Service, **changes: Any) -> flow_pb2.Flow:
    flows._BOOK.flows.pop(("own", 1), None)  # the book outlives a test
    request = flow_pb2.CreateFlowRequest(flow=own_flow(**changes), flow_id="own")
    made: flow_pb2.Flow = service.flows.CreateFlow(request, None)
    return made


def test_tickets_go_on_in_the_version_they_began_with(service: Service) -> None:
    made = add_flow(service)
    assert made.version == 1 and not made.shipped
    ticket = service.open(flow="flows/own")
    patch = flow_pb2.Flow(name="flows/own", transitions=own_flow().transitions)
    patch.transitions[0].transition = "consult"
    flows._BOOK.flows.pop(("own", 2), None)
    changed = service.flows.UpdateFlow(flow_pb2.UpdateFlowRequest(flow=patch), None)
    assert changed.version == 2
    newer = service.open(flow="flows/own")
    service.use.transition(ticket.id, None, configuring_act("ask"))
    clerk = replace(configuring_act("end"), roles=frozenset({"tickets.write"}))
    read = service.store.get(ticket.id)
    denied = refused(lambda: service.use.transition(ticket.id, None, clerk), PermissionDenied)
    assert denied == "PERMISSION_DENIED" and service.store.get(ticket.id) == read
    lawyer = replace(clerk, roles=frozenset({"lawyer"}))
    assert service.use.transition(ticket.id, None, lawyer, validate_only=True).state == "done"
    shown = [list(convert.to_proto(t).allowed_transitions) for t in (ticket, newer)]
    assert shown == [["ask"], ["consult"]]
    service.flows.DeleteFlow(flow_pb2.DeleteFlowRequest(name="flows/own"), None)
    assert refused(lambda: service.open(flow="flows/own")) == ["ticket.flow"]
    listed = service.flows.ListFlows(flow_pb2.ListFlowsRequest(page_size=100), None).flows
    assert "flows/own" not in [flow.name for flow in listed] and len(listed) == 10
    flows.set_retired(())


def test_unsound_flows_name_each_problem(service: Service) -> None:
    flow = own_flow(states=[flow_pb2.FlowState(state="trap", phase=pb.TICKET_PHASE_ACTIVE)])
    flow.transitions.append(flow_pb2.FlowTransition(transition="fall", from_states=["new"], to_state="trap"))
    flow.states.append(flow_pb2.FlowState(state="island", phase=pb.TICKET_PHASE_CLOSED))
    found = service.flows.ValidateFlow(flow_pb2.ValidateFlowRequest(flow=flow), None).problems
    assert {(p.problem, p.subject) for p in found} == {
        ("UNREACHABLE_STATE", "island"),
        ("TRAPPING_STATE", "trap"),
    }
    hasty = own_flow(silent_assignee_limit=Duration())
    found = service.flows.ValidateFlow(flow_pb2.ValidateFlowRequest(flow=hasty), None).problems
    assert [problem.problem for problem in found] == ["BAD_DURATION"]
    demanding = own_flow(follow_up={"share": 1.0})
    demanding.states.add(state="resolved", phase=pb.TICKET_PHASE_RESOLVED)
    for verb, source, target, fields in (
        ("resolve", "legal", "resolved", ["resolution"]),
        ("reopen", "resolved", "legal", ["reason"]),
        ("close", "resolved", "done", ["reason", "customer"]),
    ):
        step = flow_pb2.FlowTransition(transition=verb, from_states=[source], to_state=target)
        step.required_fields.extend(fields)
        demanding.transitions.append(step)
    visits = convert_config.flow_to_proto(flows.FLOWS["return_visit"])
    visits.follow_up.share = 1.0
    found = [
        (problem.problem, problem.subject)
        for asked in (demanding, visits)
        for problem in service.flows.ValidateFlow(flow_pb2.ValidateFlowRequest(flow=asked), None).problems
    ]
    assert found == [("MISSING_TRANSITION", "close"), ("BAD_FOLLOW_UP", "follow_up")]
    create = flow_pb2.CreateFlowRequest(flow=flow, flow_id="bad")
    assert refused(lambda: service.flows.CreateFlow(create, None), CallmeshError) == "FLOW_UNSOUND"
    create.flow.transitions[0].to_state = "x" * 300_000
    with pytest.raises(CallmeshError, match="UNKNOWN_STATE") as caught:
        service.flows.CreateFlow(create, None)
    # What does not fit into a trailer, the client never sees: it would be told that the stream was removed.
    assert rich_status(caught.value, "callmesh.tickets").ByteSize() < 6_000
    create = flow_pb2.CreateFlowRequest(flow=own_flow(), flow_id="complaint")
    assert refused(lambda: service.flows.CreateFlow(create, None), AlreadyExists) == "ALREADY_EXISTS"
    with pytest.raises(CallmeshError, match="flows/bad: UNKNOWN_STATE"):
        configuring.apply_file(service.parts, {"flows": [{"name": "flows/bad", "kind": 1, "states": []}]})


def calendar_request(**changes: Any) -> sla_pb2.CreateCalendarRequest:
    windows = [sla_pb2.WorkWindow(weekday=day, start_minute=540, end_minute=1080) for day in range(1, 6)]
    calendar = sla_pb2.Calendar(time_zone="Asia/Shanghai", windows=windows, holiday_country="CN")
    calendar.MergeFrom(sla_pb2.Calendar(**changes))
    return sla_pb2.CreateCalendarRequest(calendar=calendar, calendar_id="office")


def policy_request(hours: int, **changes: Any) -> sla_pb2.CreateSlaPolicyRequest:
    policy = sla_pb2.SlaPolicy(calendar="calendars/office", resolution_target=Duration(seconds=hours * 3600))
    policy.MergeFrom(sla_pb2.SlaPolicy(**changes))
    return sla_pb2.CreateSlaPolicyRequest(sla_policy=policy, sla_policy_id="gold")


def test_bad_calendars_and_policies_are_refused_by_name(service: Service) -> None:
    assert workdays.is_known("CN") and not workdays.is_known("ZZ")
    overlap = sla_pb2.WorkWindow(weekday=1, start_minute=600, end_minute=700)
    for changes, field in (
        ({"windows": [overlap]}, "calendar.windows"),
        ({"time_zone": "Mars/Olympus"}, "calendar.time_zone"),
        ({"holiday_country": "ZZ"}, "calendar.holiday_country"),
        ({"special_days": [sla_pb2.SpecialDay(date="2026-02-30")]}, "calendar.special_days"),
    ):
        assert refused(lambda c=changes: service.sla.CreateCalendar(calendar_request(**c), None)) == [field]
    assert refused(lambda: service.sla.CreateSlaPolicy(policy_request(8), None)) == ["sla_policy.calendar"]
    nowhere = policy_request(8)
    nowhere.sla_policy.calendar = ""
    assert refused(lambda: service.sla.CreateSlaPolicy(nowhere, None)) == ["sla_policy.calendar"]
    service.sla.CreateCalendar(calendar_request(), None)
    level = sla_pb2.EscalationLevel(level=2)
    bad = policy_request(8, escalations=[level], priorities=[99])
    assert refused(lambda: service.sla.CreateSlaPolicy(bad, None)) == [
        "sla_policy.priorities",
        "sla_policy.escalations",
    ]


def test_a_version_once_stored_is_never_another(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def zones() -> dict[str, str]:
        return {id: calendar.zone for id, calendar in service.governor.rules().calendars.items()}

    def change(zone: str, etag: str) -> Any:
        calendar = sla_pb2.Calendar(name="calendars/office", time_zone=zone, etag=etag)
        return service.sla.UpdateCalendar(sla_pb2.UpdateCalendarRequest(calendar=calendar), None)

    service.sla.CreateCalendar(calendar_request(), None)
    service.sla.DeleteCalendar(sla_pb2.DeleteCalendarRequest(name="calendars/office"), None)
    made = service.sla.CreateCalendar(calendar_request(time_zone="UTC"), None)
    assert zones() == {"office@1": "Asia/Shanghai", "office@2": "UTC"}
    insert = service.records.insert

    def somebody_is_faster(record: Any, *more: Any, **words: Any) -> Any:
        monkeypatch.setattr(service.records, "insert", insert)
        change("Europe/Berlin", made.etag)
        return insert(record, *more, **words)

    monkeypatch.setattr(service.records, "insert", somebody_is_faster)
    assert refused(lambda: change("Asia/Tokyo", made.etag), CallmeshError) == "ETAG_MISMATCH"
    service.sla.CreateSlaPolicy(policy_request(8), None)
    assert zones()[service.open().sla.calendar] == "Europe/Berlin", "what was refused is not in force"


def test_a_calendar_or_flow_counts_before_its_first_version_is_written(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = service.records.insert

    def dies(record: Any, *more: Any, **words: Any) -> Any:
        if "@" in record.id:
            raise Unavailable(why="killed")
        return insert(record, *more, **words)

    monkeypatch.setattr(service.records, "insert", dies)
    flow = flow_pb2.CreateFlowRequest(flow=own_flow(), flow_id="cut-short")
    for call in (
        lambda: service.sla.CreateCalendar(calendar_request(), None),
        lambda: service.flows.CreateFlow(flow, None),
    ):
        refused(call, Unavailable)
    service.sla.CreateSlaPolicy(policy_request(8), None)
    ticket = service.open(flow="flows/cut-short")
    assert clocks.calendar_of(ticket.sla, service.governor.rules()) is not None
    assert service.use.transition(ticket.id, None, configuring_act("ask")).state == "legal"


def test_an_explanation_names_its_own_fields(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    service.sla.CreateSlaPolicy(policy_request(8), None)
    request = sla_pb2.ExplainSlaRequest
    for changes, field in (
        ({"kind": 0}, "kind"),
        ({"priority": 99}, "priority"),
        ({"open_time": {"seconds": -62_135_596_800}}, "open_time"),
        ({"open_time": {"seconds": 253_402_300_799}}, "open_time"),
    ):
        asked = request(**{"kind": 1, **changes})
        assert refused(lambda a=asked: service.sla.ExplainSla(a, None)) == [field]
    last = request(kind=1, open_time={"seconds": 32_503_679_999})
    assert service.sla.ExplainSla(last, None).stretches


def test_policies_apply_by_order_and_open_tickets_follow_changes_with_their_credit(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    with_teams(service, "lead")
    level = sla_pb2.EscalationLevel(
        level=1, offset=Duration(seconds=-1800), team="teams/lead", priority=4, notify=["boss"]
    )
    service.sla.CreateSlaPolicy(policy_request(4, escalations=[level], kinds=[1]), None)
    ticket = service.open()
    assert ticket.sla.policy == "gold" and ticket.sla.calendar == "office@1"
    explained = service.sla.ExplainSla(sla_pb2.ExplainSlaRequest(ticket=f"tickets/{ticket.id}"), None)
    counted = sum(
        s.end_time.ToMilliseconds() - s.start_time.ToMilliseconds() for s in explained.stretches if s.counted
    )
    assert counted == 4 * HOUR and "calendar office@1" in explained.sla.explanation[2]
    assert clocks.due_ms(ticket.sla.resolution) == explained.stretches[-1].end_time.ToMilliseconds()
    in_use = sla_pb2.DeleteCalendarRequest(name="calendars/office")
    assert refused(lambda: service.sla.DeleteCalendar(in_use, None), CallmeshError) == "IN_USE"
    start = explained.stretches[0 if explained.stretches[0].counted else 1].start_time.ToMilliseconds()
    service.clock.advance((start - service.clock.now_ms()) / 1000 + 3600)
    patch = sla_pb2.SlaPolicy(name="slaPolicies/gold", resolution_target=Duration(seconds=7200))
    service.sla.UpdateSlaPolicy(sla_pb2.UpdateSlaPolicyRequest(sla_policy=patch), None)
    assert service.use.retime("", 10) and not service.use.retime(ticket.id, 10)
    retimed = service.store.get(ticket.id)
    due = calendars.add_ms(service.governor.rules().calendars["office@1"], start, 2 * HOUR)
    assert clocks.due_ms(retimed.sla.resolution) == due, "the hour that was used still counts"
    service.clock.advance((due - service.clock.now_ms()) / 1000 - 1799)
    service.use.fire_due(10)
    escalated = service.store.get(ticket.id)
    assert (escalated.team, escalated.draft.priority.value, escalated.watchers) == (
        "lead",
        "urgent",
        ("boss",),
    )
    assert clocks.due_ms(escalated.sla.resolution) == due, "what was promised stays"
    assert [e.level for e in service.told(events_pb2.TicketEscalated)] == [1]
    dead = sla_pb2.DeleteSlaPolicyRequest(name="slaPolicies/gold")
    service.sla.DeleteSlaPolicy(dead, None)
    assert service.open().sla.policy == "default"


def test_no_rule_is_passed_over_for_being_one_too_many(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ALL_PAGE", 2)
    for name in "abcde":
        member = team_pb2.TeamMember(agent="agents/a")
        made = team_pb2.CreateTeamRequest(team=team_pb2.Team(members=[member]), team_id=name)
        service.teams.CreateTeam(made, None)
    assert sorted(service.governor.rules().teams) == list("abcde")
    calendars_ = service.parts.calendars
    monkeypatch.setattr(calendars_, "resource", replace(calendars_.resource, most=3))
    service.sla.CreateCalendar(calendar_request(), None)
    update = sla_pb2.UpdateCalendarRequest(calendar=service.sla.ListCalendars(
        sla_pb2.ListCalendarsRequest(), None).calendars[0])  # fmt: skip
    update.calendar.display_name, update.calendar.etag = "other", ""
    service.sla.UpdateCalendar(update, None)
    update.calendar.display_name = "one more"
    ask = lambda: service.sla.UpdateCalendar(update, None)  # noqa: E731
    assert refused(ask, CallmeshError) == "RESOURCE_EXHAUSTED"


def test_what_a_worker_opens_first_goes_by_the_operators_rules(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    made = service.sla.CreateSlaPolicy(policy_request(8), None)
    base = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=HOUR)
    governor = Governor(base, service.records, MemoryState(), service.clock)
    wish = TicketRequest(kind="inquiry", priority="", category="", subject="Bill", description="")
    facts = CallFacts(call_id="c1", ticket_id="call-1", time_ms=service.clock.now_ms(), request=wish)
    opened = Handlers(service.store, service.clock, governor.known, convert.event_of).call_wrapped_up(facts)
    assert opened is not None and f"slaPolicies/{opened.sla.policy}" == made.name


def test_a_setup_file_names_where_it_is_wrong_and_may_bring_its_own_visits(service: Service) -> None:
    office = {"name": "calendars/office", "timeZone": "UTC"}
    for content, field in (
        ({"calendars": [office]}, "calendars[0].windows"),
        ({"slaPolicies": [{"name": "slaPolicies/a", "calendar": "calendars/b", "resolutionTarget": "60s"}]},
         "slaPolicies[0].calendar"),
        ({"flows": [{"name": "flows/a"}]}, "flows[0].kind"),
    ):  # fmt: skip
        assert refused(lambda c=content: configuring.apply_file(service.parts, c)) == [field]
    flow = own_flow(follow_up={"flow": "flows/ask-again"})
    flow.states.add(state="resolved", phase=pb.TICKET_PHASE_RESOLVED)
    for verb, source, target in (
        ("resolve", "legal", "resolved"),
        ("reopen", "resolved", "legal"),
        ("close", "resolved", "done"),
    ):
        flow.transitions.add(transition=verb, from_states=[source], to_state=target)
    visit = convert_config.flow_to_proto(flows.FLOWS["return_visit"])
    for message, name in ((flow, "flows/asking"), (visit, "flows/ask-again")):
        message.name = name
        message.default_flow = message.shipped = False
    content = {"flows": [MessageToDict(flow), MessageToDict(visit)]}
    assert configuring.apply_file(service.parts, content) == ["flows/ask-again", "flows/asking"]
    assert configuring.apply_file(service.parts, content) == []


def test_two_servers_start_with_a_new_setup_file_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"teams": [{"name": "teams/t1", "members": [{"agent": "agents/a"}]}]}
    assert configuring.apply_file(service.parts, content) == ["teams/t1"]
    find = service.records.find

    def before_the_other_wrote(kind: str, id: str) -> Any:
        monkeypatch.setattr(service.records, "find", find)

    monkeypatch.setattr(service.records, "find", before_the_other_wrote)
    assert configuring.apply_file(service.parts, content) == []


def test_a_setup_file_is_applied_once(service: Service) -> None:
    days = [{"weekday": 1, "startMinute": 540, "endMinute": 600}]
    content = {
        "teams": [{"name": "teams/t1", "members": [{"agent": "agents/a"}]}],
        "calendars": [{"name": "calendars/c1", "timeZone": "UTC", "windows": days}],
        "slaPolicies": [{"name": "slaPolicies/p1", "calendar": "calendars/c1", "resolutionTarget": "3600s"}],
    }
    assert configuring.apply_file(service.parts, content) == ["teams/t1", "calendars/c1", "slaPolicies/p1"]
    assert configuring.apply_file(service.parts, content) == []
    days[0]["endMinute"] = 660
    assert configuring.apply_file(service.parts, content) == ["calendars/c1"]
    assert service.open().sla.calendar == "c1@2"
    before = service.store.versions(), [r.id for r in records.all_of(service.records, "teams")]
    nowhere = {"name": "slaPolicies/p2", "calendar": "calendars/none", "resolutionTarget": "60s"}
    half = {"teams": [{"name": "teams/t2"}], "slaPolicies": [nowhere]}
    assert refused(lambda: configuring.apply_file(service.parts, half)) == ["slaPolicies[0].calendar"]
    after = service.store.versions(), [r.id for r in records.all_of(service.records, "teams")]
    assert after == before, "a file with one bad part changes nothing"
    for bad in ([], {"x": []}, {"teams": 7}, {"teams": [{"name": "t1"}]}, {"teams": [{"nam": "teams/t1"}]}):
        with pytest.raises(InvalidArgument):
            configuring.apply_file(service.parts, bad)


# ---- return visits


def test_visits_wait_for_quiet_time_to_end_and_take_a_channel_the_customer_accepts(service: Service) -> None:
    quiet = (((), 0, 1_439),)
    profile = Profile(
        customer_id="7",
        version=1,
        quiet=quiet,
        zone="UTC",
        refused=frozenset({Channel.VOICE, Channel.UNKNOWN}),
    )
    service.store.save_profile(profile)
    ticket = service.open(customer="customers/7", channel=common_pb2.CHANNEL_VOICE)
    service.use.transition(ticket.id, None, configuring_act("resolve"))
    service.clock.advance(3_601)
    for id in service.use.fire_due(10)[1]:
        service.use.fire(id)
    moved = service.store.get(ticket.id).follow_up
    assert moved is not None and not moved.created and moved.schedule_ms % 86_400_000 == 1_439 * 60_000
    service.clock.advance((moved.schedule_ms - service.clock.now_ms()) / 1000)
    for id in service.use.fire_due(10)[1]:
        service.use.fire(id)
    visit = service.store.get(f"{ticket.id}.visit-1")
    assert visit.visit is not None and visit.visit.channel is Channel.SMS


def test_quiet_windows_go_by_the_enterprises_clock_where_the_customer_has_none(service: Service) -> None:
    snapshot = crm_events.CustomerSnapshot(customer="customers/7", version=1, state=1)
    snapshot.quiet_windows.add(start_minute=22 * 60, end_minute=8 * 60)
    profile = convert.profile_of(snapshot)
    assert profile is not None
    at = datetime(2026, 3, 2, 23, tzinfo=ZoneInfo("Asia/Shanghai"))
    ticket = service.open(customer="customers/7")
    plan = FollowUp(schedule_ms=0, ticket_id="v", number=1)
    rules = TicketsSettings().rules()
    moved = engine.visit_moved(replace(ticket, follow_up=plan), profile, rules, to_ms(at))
    assert moved is not None and moved.ticket.follow_up is not None
    assert moved.ticket.follow_up.schedule_ms == to_ms(at + timedelta(hours=9))
    with pytest.raises(ValidationError, match="IANA"):
        TicketsSettings(time_zone="Mars/Olympus")


def test_a_visit_is_made_by_the_channel_that_the_customer_asked_for(service: Service) -> None:
    snapshot = crm_events.CustomerSnapshot(customer="customers/7", version=1, state=1)
    for channel, granted, second in ((1, True, 5), (4, True, 9), (3, False, 7)):
        consent = snapshot.consents.add(
            channel=channel, purpose=customers_pb2.PURPOSE_SURVEY, granted=granted
        )
        consent.decide_time.seconds = second
    snapshot.consents.add(channel=2, purpose=customers_pb2.PURPOSE_MARKETING, granted=True)
    profile = convert.profile_of(snapshot)
    assert profile is not None and len(profile.preferred) == 2 and len(profile.refused) == 1
    assert documents.profile_from_raw(documents.profile_fields(profile) | {"_id": "7"}) == profile
    service.store.save_profile(profile)
    ticket = service.open(customer="customers/7", channel=common_pb2.CHANNEL_VOICE)
    service.use.transition(ticket.id, None, configuring_act("resolve"))
    service.clock.advance(3_601)
    for id in service.use.fire_due(10)[1]:
        service.use.fire(id)
    visit = service.store.get(f"{ticket.id}.visit-1")
    assert convert.to_proto(visit).visit.preferred_channel == 4, "the latest that was said"


def configuring_act(verb: str) -> Any:
    from tickets.engine import Act

    return Act(verb=verb, actor="ann", resolution="done")


# ---- knowledge


def article(service: Service, title: str, body: str, audience: int, language: str = "zh-CN") -> str:
    message = knowledge_pb2.Article(title=title, body=body, language=language, audience=audience)
    made = service.knowledge.CreateArticle(knowledge_pb2.CreateArticleRequest(article=message), None)
    service.knowledge.SubmitArticle(knowledge_pb2.SubmitArticleRequest(name=made.name), None)
    become("bob", "tickets.read", "tickets.knowledge")
    review = knowledge_pb2.ReviewArticleRequest(name=made.name, approve=True)
    published = service.knowledge.ReviewArticle(review, None)
    become("ann", "tickets.read", "tickets.knowledge")
    assert (published.version, published.reviewer) == (1, "bob")
    return str(made.name)


def search(service: Service, query: str, **more: Any) -> knowledge_pb2.SearchArticlesResponse:
    request = knowledge_pb2.SearchArticlesRequest(query=query, **more)
    found: knowledge_pb2.SearchArticlesResponse = service.knowledge.SearchArticles(request, None)
    return found


def test_articles_are_reviewed_versioned_searched_and_withdrawn(service: Service) -> None:
    name = article(service, "如何重置路由器密码", "长按重置键十秒。", knowledge_pb2.AUDIENCE_CUSTOMERS)
    agents = article(service, "Resetting the router", "Ask for the password first.", 1, "en")
    assert [hit.article.name for hit in search(service, "重置密码").hits] == [name]
    assert [hit.article.name for hit in search(service, "reset router passwords").hits] == [agents]
    ticket = service.open(description="路由器的密码忘了")
    suggest = knowledge_pb2.SuggestArticlesRequest(ticket=f"tickets/{ticket.id}")
    assert service.knowledge.SuggestArticles(suggest, None).hits[0].article.name == name
    become("customer", "tickets.selfservice")
    assert not search(service, "router password").hits
    get = knowledge_pb2.GetArticleRequest(name=agents)
    assert refused(lambda: service.knowledge.GetArticle(get, None), NotFound) == "NOT_FOUND"
    become("ann", "tickets.knowledge", "tickets.read")
    patch = knowledge_pb2.Article(name=name, body="新的正文")
    foreign = knowledge_pb2.UpdateArticleRequest(article=knowledge_pb2.Article(name=name, etag="no etag"))
    assert refused(lambda: service.knowledge.UpdateArticle(foreign, None)) == ["article.etag"]
    edited = service.knowledge.UpdateArticle(knowledge_pb2.UpdateArticleRequest(article=patch), None)
    assert edited.state == knowledge_pb2.Article.STATE_DRAFT
    shown = service.knowledge.GetArticle(knowledge_pb2.GetArticleRequest(name=name), None)
    assert shown.body == "长按重置键十秒。" and shown.state == knowledge_pb2.Article.STATE_PUBLISHED
    service.knowledge.SubmitArticle(knowledge_pb2.SubmitArticleRequest(name=name), None)
    own = knowledge_pb2.ReviewArticleRequest(name=name, approve=True)
    assert refused(lambda: service.knowledge.ReviewArticle(own, None), CallmeshError) == "OWN_REVIEW"
    become("bob", "tickets.knowledge", "tickets.read")
    back = knowledge_pb2.ReviewArticleRequest(name=name, reason="十秒还是五秒？")
    service.knowledge.ReviewArticle(back, None)
    drafted = service.knowledge.GetArticle(knowledge_pb2.GetArticleRequest(name=name, draft=True), None)
    assert drafted.review_reason == back.reason, "whoever wrote it learns why"
    service.knowledge.UpdateArticle(knowledge_pb2.UpdateArticleRequest(article=patch), None)
    service.knowledge.SubmitArticle(knowledge_pb2.SubmitArticleRequest(name=name), None)
    assert refused(lambda: service.knowledge.ReviewArticle(own, None), CallmeshError) == "OWN_REVIEW"
    become("eve", "tickets.knowledge", "tickets.read")
    own.reason = "好"
    assert service.knowledge.ReviewArticle(own, None).version == 2
    shown = service.knowledge.GetArticle(knowledge_pb2.GetArticleRequest(name=name), None)
    assert not shown.review_reason, "readers do not see what was said among authors"
    assert search(service, "正文").hits and not search(service, "十秒").hits
    versions = knowledge_pb2.ListArticleVersionsRequest(parent=name)
    assert [v.version for v in service.knowledge.ListArticleVersions(versions, None).versions] == [2, 1]
    service.knowledge.WithdrawArticle(knowledge_pb2.WithdrawArticleRequest(name=name), None)
    assert not search(service, "正文").hits
    drafts = knowledge_pb2.ListArticlesRequest(filter="state = WITHDRAWN")
    assert [a.name for a in service.knowledge.ListArticles(drafts, None).articles] == [name]


def test_an_earlier_version_is_for_nobody_whom_the_article_is_not_for_by_now(service: Service) -> None:
    name = article(service, "Outage", "In confidence", knowledge_pb2.AUDIENCE_CUSTOMERS)
    patch = knowledge_pb2.Article(name=name, audience=knowledge_pb2.AUDIENCE_AGENTS)
    service.knowledge.UpdateArticle(knowledge_pb2.UpdateArticleRequest(article=patch), None)
    service.knowledge.SubmitArticle(knowledge_pb2.SubmitArticleRequest(name=name), None)
    become("bob", "tickets.read", "tickets.knowledge")
    service.knowledge.ReviewArticle(knowledge_pb2.ReviewArticleRequest(name=name, approve=True), None)
    first = knowledge_pb2.GetArticleRequest(name=name, version=1)
    assert service.knowledge.GetArticle(first, None).body == "In confidence"
    become("shop", "tickets.selfservice")
    assert refused(lambda: service.knowledge.GetArticle(first, None), NotFound) == "NOT_FOUND"


def test_every_replica_finds_what_another_published_and_withdrew(service: Service) -> None:
    other = Library(service.records, service.clock, MemoryFeedback())
    assert other.refresh() == 0
    name = article(service, "Roaming in Norway", "Costs nothing.", knowledge_pb2.AUDIENCE_CUSTOMERS, "en")
    assert not other.search(["norway"], "", 5) and other.refresh() == 1
    assert [hit.id for hit in other.search(["norway"], "", 5)] == [name.removeprefix("articles/")]
    assert other.refresh() == 0, "nothing is read twice"
    service.knowledge.WithdrawArticle(knowledge_pb2.WithdrawArticleRequest(name=name), None)
    assert other.refresh() == 1 and not other.search(["norway"], "", 5)


def test_searches_without_a_good_answer_are_gaps_and_ratings_count(service: Service) -> None:
    name = article(service, "Roaming in Norway", "Costs nothing.", 3, "en")
    for _ in range(3):
        search(service, "eSIM 激活")
    found = search(service, "roaming")
    for helpful in (True, False):
        rating = knowledge_pb2.RateArticleRequest(name=name, helpful=helpful, search_id=found.search_id)
        service.knowledge.RateArticle(rating, None)
    gaps = service.knowledge.ListKnowledgeGaps(knowledge_pb2.ListKnowledgeGapsRequest(), None).gaps
    assert [(g.query, g.search_count, g.empty_count, g.unhelpful_count) for g in gaps] == [
        ("eSIM 激活", 3, 3, 0),
        ("roaming", 1, 0, 1),
    ]
    rated = service.knowledge.GetArticle(knowledge_pb2.GetArticleRequest(name=name), None)
    assert (rated.helpful_count, rated.unhelpful_count) == (1, 1)


def test_the_expert_line_ends_in_an_article(service: Service) -> None:
    question = knowledge_pb2.Question(title="光猫红灯怎么办", body="客户等着")
    asked = service.experts.CreateQuestion(knowledge_pb2.CreateQuestionRequest(question=question), None)
    answer = knowledge_pb2.AnswerQuestionRequest(
        name=asked.name, body="检查光纤。", request_id=str(uuid.uuid4())
    )
    service.experts.AnswerQuestion(answer, None)
    answered = service.experts.AnswerQuestion(answer, None)
    assert len(answered.answers) == 1 and answered.state == knowledge_pb2.Question.STATE_ANSWERED
    convert_ = knowledge_pb2.ConvertQuestionRequest(name=asked.name)
    assert (
        refused(lambda: service.experts.ConvertQuestion(convert_, None), CallmeshError)
        == "ILLEGAL_TRANSITION"
    )
    accept = knowledge_pb2.AcceptAnswerRequest(name=asked.name, answer_id=answered.answers[0].answer_id)
    service.experts.AcceptAnswer(accept, None)
    made = service.experts.ConvertQuestion(convert_, None)
    assert service.experts.ConvertQuestion(convert_, None).name == made.name
    assert made.language == "zh-CN" and "检查光纤" in made.body
    assert (
        service.experts.GetQuestion(knowledge_pb2.GetQuestionRequest(name=asked.name), None).article
        == made.name
    )


# ---- quality


def test_problems_have_their_own_table_and_cases(service: Service) -> None:
    problem = quality_pb2.Problem(title="Modem resets itself", products=["modem-7"])
    made = service.quality.CreateProblem(quality_pb2.CreateProblemRequest(problem=problem), None)
    names = [f"tickets/{service.open().id}" for _ in range(2)]
    link = quality_pb2.LinkProblemTicketsRequest(name=made.name, add_tickets=names)
    assert service.quality.LinkProblemTickets(link, None).ticket_count == 2
    step = quality_pb2.TransitionProblemRequest(name=made.name, transition="close")
    assert (
        refused(lambda: service.quality.TransitionProblem(step, None), CallmeshError) == "ILLEGAL_TRANSITION"
    )
    step.transition = "identify"
    assert refused(lambda: service.quality.TransitionProblem(step, None)) == ["problem.root_cause"]
    patch = quality_pb2.Problem(name=made.name, root_cause="firmware 1.2")
    service.quality.UpdateProblem(quality_pb2.UpdateProblemRequest(problem=patch), None)
    step.reason = "seen in the lab"
    assert service.quality.TransitionProblem(step, None).state_reason == step.reason
    known = quality_pb2.ListProblemsRequest(filter="state = KNOWN_ERROR AND products:modem-7")
    assert len(service.quality.ListProblems(known, None).problems) == 1


def test_cases_of_a_problem_are_all_named_well_or_none_is_changed(service: Service) -> None:
    made = quality_pb2.CreateProblemRequest(problem={"title": "Cable"}, problem_id="p")
    service.quality.CreateProblem(made, None)
    ticket = service.open()
    request = quality_pb2.LinkProblemTicketsRequest(
        name="problems/p", add_tickets=[f"tickets/{ticket.id}"], remove_tickets=["tickets/none"]
    )
    assert refused(lambda: service.quality.LinkProblemTickets(request, None)) == ["remove_tickets"]
    assert service.store.get(ticket.id) == ticket


def test_a_product_is_scored_by_its_criteria_or_its_tickets(service: Service) -> None:
    for kind in (1, 1, 2, 1):
        service.open(kind=kind, products=["5G-gold"])
    review = quality_pb2.Review(product="5G-gold", stage=quality_pb2.Review.STAGE_IN_MARKET)
    made = service.quality.CreateReview(quality_pb2.CreateReviewRequest(review=review), None)
    assert (made.ticket_count, made.complaint_count, made.score) == (4, 1, 75.0)
    criterion = quality_pb2.Review.Criterion
    criteria = [
        criterion(criterion_id="a", weight=3, score=80),
        criterion(criterion_id="b", weight=1, score=40),
    ]
    patch = quality_pb2.Review(name=made.name, criteria=criteria)
    scored = service.quality.UpdateReview(quality_pb2.UpdateReviewRequest(review=patch), None)
    assert scored.score == 70.0
    end = quality_pb2.CompleteReviewRequest(name=made.name, verdict=quality_pb2.Review.VERDICT_CONDITIONAL)
    assert service.quality.CompleteReview(end, None).HasField("complete_time")
    update = quality_pb2.UpdateReviewRequest(review=patch)
    assert refused(lambda: service.quality.UpdateReview(update, None), CallmeshError) == "REVIEW_OVER"


def test_a_review_that_ends_while_it_is_changed_stays_as_it_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = quality_pb2.Review(product="5G", stage=quality_pb2.Review.STAGE_IN_MARKET)
    made = service.quality.CreateReview(quality_pb2.CreateReviewRequest(review=review), None)
    update, ends = service.records.update, quality_pb2.Review.VERDICT_REJECTED

    def meanwhile(record: records.Record, events: Any = ()) -> records.Record:
        monkeypatch.setattr(service.records, "update", update)
        service.quality.CompleteReview(
            quality_pb2.CompleteReviewRequest(name=made.name, verdict=ends, reason="bad"), None
        )
        return update(record, events)

    monkeypatch.setattr(service.records, "update", meanwhile)
    patch = quality_pb2.Review(name=made.name, criteria=[{"criterion_id": "late", "score": 100}])
    asked = quality_pb2.UpdateReviewRequest(review=patch)
    assert refused(lambda: service.quality.UpdateReview(asked, None), CallmeshError) == "REVIEW_OVER"
    kept = service.quality.GetReview(quality_pb2.GetReviewRequest(name=made.name), None)
    assert kept.verdict == ends and not kept.criteria


def test_a_product_is_reviewed_before_and_improved_after_its_launch(service: Service) -> None:
    stages = quality_pb2.Review
    before = quality_pb2.Review(product="5G-gold", stage=stages.STAGE_PRE_LAUNCH)
    before.criteria.add(criterion_id="tariff", question="Is the tariff clear?", score=-1)
    made = service.quality.CreateReview(quality_pb2.CreateReviewRequest(review=before), None)
    assert (made.ticket_count, made.score) == (0, 0.0), "nothing is in the market, nothing is scored"
    end = quality_pb2.CompleteReviewRequest(name=made.name, verdict=stages.VERDICT_CONDITIONAL)
    end.reason = "clear once the leaflet is"
    ended = service.quality.CompleteReview(end, None)
    assert (ended.verdict, ended.verdict_reason) == (stages.VERDICT_CONDITIONAL, end.reason)
    last = max(stages.Stage.values())
    improve = service.open(kind=2, products=["5G-gold"])
    after = quality_pb2.Review(product="5G-gold", stage=last, improvement_tickets=[f"tickets/{improve.id}"])
    made = service.quality.CreateReview(quality_pb2.CreateReviewRequest(review=after), None)
    assert (made.complaint_count, list(made.improvement_tickets)) == (1, [f"tickets/{improve.id}"])
    listed = quality_pb2.ListReviewsRequest(filter="product = 5G-gold AND verdict = CONDITIONAL")
    assert len(service.quality.ListReviews(listed, None).reviews) == 1


@pytest.mark.parametrize("said", ["[" * 2_000, '{"_data": "\\ud800"}', '{"_data": {}}', "{}", "no"])
def test_a_resume_token_that_is_none_is_refused(said: str) -> None:
    text = base64.urlsafe_b64encode(said.encode()).decode()
    assert refused(lambda: hotstore._token_of(text)) == ["resume_token"]


def test_a_page_token_of_another_shape_is_refused(service: Service) -> None:
    name = f"tickets/{service.open().id}"
    for call, request in (
        (service.quality.ListAssets, quality_pb2.ListAssetsRequest()),
        (service.knowledge.ListKnowledgeGaps, knowledge_pb2.ListKnowledgeGapsRequest()),
        (service.ListComments, rpc.ListCommentsRequest(parent=name)),
        (service.flows.ListFlows, flow_pb2.ListFlowsRequest()),
        (service.sla.ListSlaPolicies, sla_pb2.ListSlaPoliciesRequest()),
        (service.knowledge.SearchArticles, knowledge_pb2.SearchArticlesRequest(query="a")),
    ):
        page = Page(limit=1, fingerprint=request_fingerprint(request))
        for key in (["x", 7], [7, "x", 7], 1_001.5):
            request.page_token = page.next_token(key)
            assert refused(lambda c=call, r=request: c(r, None)) == ["page_token"]


def test_a_serial_number_is_taken_once_for_a_product(service: Service) -> None:
    asset = quality_pb2.Asset(customer="customers/7", product="modem-7", serial_number="SN1", model="M7")
    request = quality_pb2.CreateAssetRequest(asset=asset)
    made = service.quality.CreateAsset(request, None)
    assert refused(lambda: service.quality.CreateAsset(request, None), AlreadyExists) == "ALREADY_EXISTS"
    listed = quality_pb2.ListAssetsRequest(filter="customer = customers/7")
    assert [a.name for a in service.quality.ListAssets(listed, None).assets] == [made.name]
    bad = quality_pb2.Asset(customer="7", serial_number="x" * 200)
    fields = refused(lambda: service.quality.CreateAsset(quality_pb2.CreateAssetRequest(asset=bad), None))
    assert fields == ["asset.customer", "asset.serial_number"]


# ---- reports


def test_reports_count_what_happened(service: Service) -> None:
    tickets = [service.open(category="a" if n % 2 else "b") for n in range(4)]
    for ticket in tickets[:3]:
        service.use.transition(ticket.id, None, configuring_act("start"))
        service.clock.advance(7200)
        service.use.transition(ticket.id, None, configuring_act("resolve"))
    scope = report_pb2.ReportScope(dimensions=[report_pb2.DIMENSION_CATEGORY])
    backlog = service.reports.GetBacklog(report_pb2.GetBacklogRequest(scope=scope), None)
    assert backlog.total.open_count == 1 and {tuple(r.keys): r.open_count for r in backlog.rows} == {
        ("a",): 1, ("b",): 0,
    }  # fmt: skip
    figures = service.reports.GetPerformance(report_pb2.GetPerformanceRequest(scope=scope), None).total
    assert figures.ticket_count == 4 and figures.sla_met_ratio == 1.0
    assert {row.state: row.mean.seconds for row in figures.time_in_states} == {
        "in_progress": 7200,
        "new": 7200,
    }
    money = common_pb2.Money(currency_code="CNY", amount="60.00")
    cost = service.reports.GetCost(report_pb2.GetCostRequest(scope=scope, hourly_cost=money), None)
    assert cost.cost_per_ticket.amount == "90.00" and "6.00 hours" in cost.explanation[0]
    bad = report_pb2.GetCostRequest(hourly_cost=common_pb2.Money(currency_code="CNY", amount="-1"))
    assert refused(lambda: service.reports.GetCost(bad, None)) == ["hourly_cost.amount"]
    nonsense = report_pb2.GetBacklogRequest(scope=report_pb2.ReportScope(filter="(("))
    assert refused(lambda: service.reports.GetBacklog(nonsense, None)) == ["scope.filter"]
    chart = service.reports.GetProcessMap(report_pb2.GetProcessMapRequest(picture=1), None)
    assert chart.activities[0].activity == "new" and '"new" -> "in_progress" [label="3"' in chart.picture


def test_a_backlog_of_the_past_is_what_was_open_and_overdue_then(service: Service) -> None:
    """Counted by hand: opened, resolved after 1 h, reopened after 3 h, resolved after 100 h."""
    ticket, opened = service.open(), service.clock.now_ms()
    for hours, verb in ((1, "resolve"), (2, "reopen"), (97, "resolve")):
        service.clock.advance(hours * 3_600)
        act = engine.Act(verb=verb, actor="ann", reason="because")
        service.use.transition(ticket.id, None, act)
    passed = service.store.get(ticket.id).sla.resolution.breached_ms
    assert passed is not None

    def at(moment: int) -> tuple[int, int]:
        request = report_pb2.GetBacklogRequest(at_time=convert.stamp(moment))
        total = service.reports.GetBacklog(request, None).total
        return total.open_count, total.overdue_count

    hours = [at(opened + hour * HOUR) for hour in (0, 2, 4, 101)]
    assert hours == [(1, 0), (0, 0), (1, 0), (0, 0)]
    assert [at(passed - 1), at(passed)] == [(1, 0), (1, 1)]


def test_what_no_call_opened_no_call_resolved_at_once(service: Service) -> None:
    ticket = service.open(caller_number="+8613800138000", category="bill")
    asked = TicketRequest(kind="inquiry", priority="", category="bill", subject="Bill", description="")
    now = service.clock.now_ms()
    facts = CallFacts(call_id="c", ticket_id="call-c", time_ms=now, number="+8613800138000", request=asked)
    joined = service.use.call_wrapped_up(facts)
    assert joined is not None and joined.id == ticket.id
    service.use.call_wrapped_up(replace(facts, call_id="d", ticket_id="call-d", resolved=True, number="",
                                        request=replace(asked, category="other")))  # fmt: skip
    request = report_pb2.GetPerformanceRequest()
    assert service.reports.GetPerformance(request, None).total.first_contact_resolution_ratio == 1


def test_only_what_had_a_target_is_kept_or_missed(service: Service) -> None:
    service.sla.CreateCalendar(calendar_request(), None)
    policy = policy_request(8, first_response_target=Duration(seconds=60), categories=["no-promise"])
    policy.sla_policy.ClearField("resolution_target")
    service.sla.CreateSlaPolicy(policy, None)
    for category in ("no-promise", "late"):
        ticket = service.open(category=category)
        service.clock.advance(0 if category == "no-promise" else 86_400 * 2)
        service.use.transition(ticket.id, None, configuring_act("resolve"))
    total = service.reports.GetPerformance(report_pb2.GetPerformanceRequest(), None).total
    assert (total.ticket_count, total.sla_met_ratio) == (2, 0.0)


def test_costs_are_exact_however_large() -> None:
    def case(hours: int) -> Case:
        steps = (("work", 0, True), ("done", 3_600_000 * hours, False))
        return Case(id="1", opened_ms=0, steps=steps, open=False)

    hourly = Decimal(f"{'9' * 18}.{'9' * 6}")
    found = reports.cost([case(0)] * 1_000, [case(10**7)], hourly, Decimal(1))
    assert (found.baseline_per_ticket, found.saving) == (hourly * 10**7, hourly * 10**10)


def test_one_answer_counts_once_and_any_dimension_breaks_down(service: Service) -> None:
    for number, verdict in enumerate(("satisfied", "dissatisfied")):
        ticket = service.open(tags=["a", "b"][: number + 1], language="zh-CN")
        service.use.transition(ticket.id, None, configuring_act("resolve"))
        service.clock.advance(3_601)
        for id in service.use.fire_due(10)[1]:
            service.use.fire(id)
        score = 5 if verdict == "satisfied" else 1
        act = replace(configuring_act(verdict), reason="late", score=score)
        service.use.transition(f"{ticket.id}.visit-1", None, act)

    def rows(dimension: Any) -> dict[str, Any]:
        scope = report_pb2.ReportScope(dimensions=[dimension])
        found = service.reports.GetPerformance(report_pb2.GetPerformanceRequest(scope=scope), None)
        assert (found.total.satisfaction_mean, found.total.satisfaction_count) == (3.0, 2)
        return {row.keys[0]: (row.ticket_count, row.satisfaction_mean) for row in found.rows}

    assert rows(report_pb2.DIMENSION_TAG) == {"": (2, 0.0), "a": (2, 3.0), "b": (1, 1.0)}
    assert set(rows(report_pb2.DIMENSION_FLOW)) == {"inquiry", "return_visit"}
    month = service.clock.now().strftime("%Y-%m")
    assert set(rows(report_pb2.DIMENSION_MONTH)) == {month}
    assert set(rows(report_pb2.DIMENSION_SLA_POLICY)) == {"default"}
    assert rows(report_pb2.DIMENSION_LANGUAGE) == {"zh-CN": (4, 3.0)}


def test_a_baseline_gives_a_saving_and_its_return(service: Service) -> None:
    spans = []
    for seconds in (7_200, 3_600):
        start = service.clock.now()
        ticket = service.open()
        service.use.transition(ticket.id, None, configuring_act("start"))
        service.clock.advance(seconds)
        service.use.transition(ticket.id, None, configuring_act("resolve"))
        service.clock.advance(10)
        span = common_pb2.Interval()
        span.start_time.FromDatetime(start)
        span.end_time.FromDatetime(service.clock.now())
        spans.append(span)

    def money(amount: str, currency: str = "CNY") -> common_pb2.Money:
        return common_pb2.Money(currency_code=currency, amount=amount)

    asked = report_pb2.GetCostRequest(
        scope=report_pb2.ReportScope(span=spans[1]),
        baseline_span=spans[0],
        hourly_cost=money("60"),
        investment=money("40"),
    )
    found = service.reports.GetCost(asked, None)
    assert (found.cost_per_ticket.amount, found.baseline_cost_per_ticket.amount) == ("60.00", "120.00")
    assert found.saving.amount == "60.00" and found.return_on_investment == pytest.approx(0.5)
    asked.investment.CopyFrom(money("40", "USD"))
    assert refused(lambda: service.reports.GetCost(asked, None)) == ["investment.currency_code"]


def requests_of(import_id: str, data: bytes, size: int) -> Iterator[Any]:
    for start in range(0, len(data), size):
        yield report_pb2.ImportTicketLogRequest(import_id=import_id, chunk=data[start : start + size])


def test_a_log_with_bad_rows_is_imported_as_far_as_it_can_be_read(service: Service) -> None:
    rows = "number,state,time,made_sla\n1,New,1/2/2026 10:00,true\n1,Closed,1/2/2026 11:00,false\n"
    rows += "2,New,soon,true\n,,\n"
    made = service.reports.ImportTicketLog(requests_of("log", rows.encode(), 7), None)
    assert (made.ticket_count, made.row_count) == (1, 4) and [row.line for row in made.bad_rows] == [4, 5]
    scope = report_pb2.ReportScope(import_id="log")
    total = service.reports.GetPerformance(report_pb2.GetPerformanceRequest(scope=scope), None).total
    assert (total.ticket_count, total.sla_met_ratio) == (1, 0.0)
    nothing = report_pb2.ReportScope(import_id="other")
    request = report_pb2.GetPerformanceRequest(scope=nothing)
    assert refused(lambda: service.reports.GetPerformance(request, None), NotFound) == "NOT_FOUND"
    for data in (b"a,b\n1,2\n", b"\xff\xfe\n", b"x" * 2_000_000):
        assert refused(lambda d=data: service.reports.ImportTicketLog(requests_of("l", d, 10**7), None)) == [
            "chunk"
        ]


def test_a_real_service_desks_log_is_reported_as_it_is(service: Service) -> None:
    if not INCIDENTS.exists():
        pytest.skip(f"{INCIDENTS.name} is not there: a plain clone has no real data")
    data = gzip.decompress(INCIDENTS.read_bytes())
    data = data[: data.index(b"\n", 1_500_000) + 1]
    made = service.reports.ImportTicketLog(requests_of("incidents", data, 1_000_000), None)
    lines = data.decode().splitlines()[1:]
    last = {line.split(",")[0]: line.split(",") for line in lines}
    assert (made.ticket_count, made.row_count, len(made.bad_rows)) == (len(last), len(lines), 0)
    scope = report_pb2.ReportScope(import_id="incidents")
    total = service.reports.GetPerformance(report_pb2.GetPerformanceRequest(scope=scope), None).total
    assert total.sla_met_ratio == pytest.approx(sum(row[5] == "true" for row in last.values()) / len(last))
    assert total.reopened_ratio == pytest.approx(sum(int(row[4]) > 0 for row in last.values()) / len(last))
    mean = sum(int(row[3]) for row in last.values()) / len(last)
    assert total.reassignments_mean == pytest.approx(mean)
    chart = service.reports.GetProcessMap(
        report_pb2.GetProcessMapRequest(scope=scope, picture=2, minimum_share=0.01), None
    )
    assert (
        chart.ticket_count == len(last) and chart.picture.startswith("<svg") and ">Resolved<" in chart.picture
    )
