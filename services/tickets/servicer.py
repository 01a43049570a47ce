"""The gRPC face: read the request, call a use case, answer. What later releases serve is left to the chassis
(UNIMPLEMENTED)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from callmesh.tickets.v1 import (
    flow_pb2,
    flow_pb2_grpc,
    knowledge_pb2,
    knowledge_pb2_grpc,
    quality_pb2,
    quality_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
    sla_pb2,
    sla_pb2_grpc,
    team_pb2,
    team_pb2_grpc,
    ticket_pb2,
    ticket_service_pb2,
    ticket_service_pb2_grpc,
)
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id
from chassis.mongo import parse_etag
from chassis.pagination import Page
from tickets import convert, filters
from tickets.around import Around, draft_edit, roles, subject, ticket_id
from tickets.configuring import FlowCalls, SlaCalls, TeamCalls
from tickets.engine import Act
from tickets.handlers import Handlers
from tickets.hotstore import AsyncStore
from tickets.knowledge import ExpertCalls, KnowledgeCalls
from tickets.opening import Create, Opening
from tickets.quality import QualityCalls
from tickets.reporting import ReportCalls
from tickets.store import Query
from tickets.teams import Teams


class TicketServicer(Around, ticket_service_pb2_grpc.TicketServiceServicer):
    """TicketService. Plain methods run in the server's thread pool."""

    def __init__(self, handlers: Handlers, opening: Opening, reader: AsyncStore, teams: Teams) -> None:
        self._handlers = handlers
        self._teams = teams
        self._opening = opening
        self._reader = reader

    async def GetTicket(
        self, request: ticket_service_pb2.GetTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """One ticket, by the event loop."""
        return convert.to_proto(await self._reader.get(ticket_id("name", request.name)))

    async def WatchChanges(
        self, request: ticket_service_pb2.WatchChangesRequest, context: Any
    ) -> AsyncIterator[ticket_service_pb2.WatchChangesResponse]:
        """Follows the changes of tickets that match."""
        terms = filters.parse(request.filter)
        async for change in self._reader.watch(terms, request.resume_token):
            yield ticket_service_pb2.WatchChangesResponse(
                ticket=convert.to_proto(change.ticket),
                time=convert.stamp(change.ticket.updated_ms),
                resume_token=change.resume_token,
            )

    async def CreateTicket(
        self, request: ticket_service_pb2.CreateTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """Opens a ticket."""
        asked = request.ticket
        if request.ticket_id:
            check_id("ticket_id", request.ticket_id)
        key = request_key(current_identity(), "CreateTicket", request.request_id)
        command = Create(
            kind=convert.read_kind(asked.kind),
            draft=convert.read_draft(asked),
            actor=subject(),
            ticket_id=request.ticket_id,
            flow=convert.read_optional_name("ticket.flow", "flows", asked.flow),
            parent_id=convert.read_optional_name("ticket.parent", "tickets", asked.parent),
            request_key=key,
            fingerprint=content_fingerprint(request) if key else None,
            validate_only=request.validate_only,
        )
        answer = convert.to_proto(await self._opening.create(command))
        if request.validate_only:
            answer.ClearField("name")
        return answer

    def ListTickets(
        self, request: ticket_service_pb2.ListTicketsRequest, context: Any
    ) -> ticket_service_pb2.ListTicketsResponse:
        """A page of tickets."""
        orders = {"": False, "create_time desc": False, "due_time": True}
        if request.order_by not in orders:
            raise InvalidArgument(field="order_by", why="must be create_time desc or due_time")
        page = Page.of(request)
        query = Query(conditions=filters.parse(request.filter), by_due=orders[request.order_by])
        found = self._handlers.sift(query, page.limit, page.key(int, str))
        return ticket_service_pb2.ListTicketsResponse(
            tickets=[convert.to_proto(ticket) for ticket in found.tickets],
            next_page_token=page.next_token(found.more),
        )

    def UpdateTicket(
        self, request: ticket_service_pb2.UpdateTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """Changes what people fill in."""
        patch = request.ticket
        changed = self._handlers.update(
            ticket_id("ticket.name", patch.name),
            parse_etag("ticket.etag", patch.etag),
            draft_edit(patch, request.update_mask),
            actor=subject(),
            validate_only=request.validate_only,
        )
        return convert.to_proto(changed)

    def TransitionTicket(
        self, request: ticket_service_pb2.TransitionTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """Takes a ticket through a transition."""
        if not request.transition:
            raise InvalidArgument(field="transition", why="must not be empty")
        key = request_key(current_identity(), "TransitionTicket", request.request_id)
        act = Act(
            verb=request.transition,
            actor=subject(),
            reason=request.reason,
            resolution=request.resolution,
            score=request.satisfaction_score,
            roles=roles(),
            request_key=key or "",
            fingerprint=content_fingerprint(request, ignoring=("request_id", "etag")) if key else "",
        )
        changed = self._handlers.transition(
            ticket_id("name", request.name),
            parse_etag("etag", request.etag),
            act,
            validate_only=request.validate_only,
        )
        return convert.to_proto(changed)

    def ListTransitions(
        self, request: ticket_service_pb2.ListTransitionsRequest, context: Any
    ) -> ticket_service_pb2.ListTransitionsResponse:
        """A page of a ticket's history."""
        id = ticket_id("parent", request.parent)
        page = Page.of(request)
        found = self._handlers.steps(id, page.value(int) or 0, page.limit + 1)
        shown, token = page.cut(found, attrgetter("sequence"))
        return ticket_service_pb2.ListTransitionsResponse(
            transitions=[convert.step_to_proto(step) for step in shown], next_page_token=token
        )


class FlowServicer(FlowCalls, flow_pb2_grpc.FlowServiceServicer):
    """FlowService."""


class SlaServicer(SlaCalls, sla_pb2_grpc.SlaServiceServicer):
    """SlaService."""


class TeamServicer(TeamCalls, team_pb2_grpc.TeamServiceServicer):
    """TeamService."""


class KnowledgeServicer(KnowledgeCalls, knowledge_pb2_grpc.KnowledgeServiceServicer):
    """KnowledgeService."""


class ExpertServicer(ExpertCalls, knowledge_pb2_grpc.ExpertServiceServicer):
    """ExpertService."""


class QualityServicer(QualityCalls, quality_pb2_grpc.QualityServiceServicer):
    """QualityService."""


class ReportServicer(ReportCalls, report_pb2_grpc.ReportServiceServicer):
    """ReportService."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Servicers:
    """Every servicer of the process."""

    tickets: TicketServicer
    flows: FlowServicer
    sla: SlaServicer
    teams: TeamServicer
    knowledge: KnowledgeServicer
    experts: ExpertServicer
    quality: QualityServicer
    reports: ReportServicer


def bindings(parts: Servicers) -> list[tuple[Any, Any, Any]]:
    """(descriptor, add-to-server function, servicer) of every service; `server` makes the chassis' bindings
    of them."""
    tickets, flows, levels, teams = ticket_service_pb2_grpc, flow_pb2_grpc, sla_pb2_grpc, team_pb2_grpc
    library, quality, reports = knowledge_pb2_grpc, quality_pb2_grpc, report_pb2_grpc
    found = [
        (ticket_service_pb2, "TicketService", tickets.add_TicketServiceServicer_to_server, parts.tickets),
        (flow_pb2, "FlowService", flows.add_FlowServiceServicer_to_server, parts.flows),
        (sla_pb2, "SlaService", levels.add_SlaServiceServicer_to_server, parts.sla),
        (team_pb2, "TeamService", teams.add_TeamServiceServicer_to_server, parts.teams),
        (knowledge_pb2, "KnowledgeService", library.add_KnowledgeServiceServicer_to_server, parts.knowledge),
        (knowledge_pb2, "ExpertService", library.add_ExpertServiceServicer_to_server, parts.experts),
        (quality_pb2, "QualityService", quality.add_QualityServiceServicer_to_server, parts.quality),
        (report_pb2, "ReportService", reports.add_ReportServiceServicer_to_server, parts.reports),
    ]
    return [
        (module.DESCRIPTOR.services_by_name[name], add, servicer) for module, name, add, servicer in found
    ]
