"""The gRPC face: read the request, call a use case, answer. What later releases serve is left to the chassis
(UNIMPLEMENTED)."""

from __future__ import annotations

from collections.abc import Mapping
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
    ticket_pb2,
    ticket_service_pb2,
    ticket_service_pb2_grpc,
)
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument, NotFound
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id, parse_name
from chassis.mongo import parse_etag
from chassis.pagination import Page, request_fingerprint
from tickets import convert, filters
from tickets.engine import Act
from tickets.flows import FLOWS
from tickets.handlers import Create, Handlers
from tickets.model import Draft, Flow, Ticket
from tickets.store import Query, TicketReader, sort_key

READ, WRITE, ADMIN = "tickets.read", "tickets.write", "tickets.admin"
KNOWLEDGE, REPORTS, SELF_SERVICE = "tickets.knowledge", "tickets.reports", "tickets.selfservice"

_TICKETS = {
    READ: "GetTicket ListTickets ListTransitions ListComments WatchChanges",
    WRITE: "CreateTicket UpdateTicket TransitionTicket ClaimTicket ClaimNextTicket AssignTicket "
    "TransferTicket ReleaseTicket CreateComment AttachFile DetachFile WatchTicket UnwatchTicket LinkTickets "
    "UnlinkTickets MergeTickets SplitTicket",
    ADMIN: "BulkUpdateTickets",
}
_FLOWS = {READ: "GetFlow ListFlows ValidateFlow", ADMIN: "CreateFlow UpdateFlow DeleteFlow"}
_SLA = {
    READ: "GetSlaPolicy ListSlaPolicies GetCalendar ListCalendars ExplainSla",
    ADMIN: "CreateSlaPolicy UpdateSlaPolicy DeleteSlaPolicy CreateCalendar UpdateCalendar DeleteCalendar",
}
_KNOWLEDGE = {
    SELF_SERVICE: "GetArticle SearchArticles RateArticle",
    READ: "ListArticles ListArticleVersions SuggestArticles",
    KNOWLEDGE: "CreateArticle UpdateArticle SubmitArticle ReviewArticle WithdrawArticle ListKnowledgeGaps",
}
_EXPERTS = {
    READ: "GetQuestion ListQuestions",
    WRITE: "CreateQuestion AnswerQuestion AcceptAnswer",
    KNOWLEDGE: "ConvertQuestion",
}
_QUALITY = {
    READ: "GetProblem ListProblems GetReview ListReviews GetAsset ListAssets",
    WRITE: "CreateProblem UpdateProblem TransitionProblem LinkProblemTickets CreateReview UpdateReview "
    "CompleteReview CreateAsset UpdateAsset",
}
_REPORTS = {REPORTS: "GetBacklog GetPerformance GetCost GetProcessMap", ADMIN: "ImportTicketLog"}


def _scopes(service: str, table: Mapping[str, str]) -> dict[str, str]:
    return {
        f"/callmesh.tickets.v1.{service}/{method}": scope
        for scope, names in table.items()
        for method in names.split()
    }


#: What a caller of each RPC needs.
SCOPES: Mapping[str, str] = {
    **_scopes("TicketService", _TICKETS),
    **_scopes("FlowService", _FLOWS),
    **_scopes("SlaService", _SLA),
    **_scopes("KnowledgeService", _KNOWLEDGE),
    **_scopes("ExpertService", _EXPERTS),
    **_scopes("QualityService", _QUALITY),
    **_scopes("ReportService", _REPORTS),
}

#: What UpdateTicket may change; fields of later releases are named so that they are refused by their name.
UPDATABLE = frozenset(
    {
        "subject",
        "description",
        "priority",
        "category",
        "customer",
        "caller_number",
        "language",
        "channel",
        "required_skills",
        "tags",
        "attributes",
        "assets",
        "products",
        *convert.UNSERVED_FIELDS,
    }
)
IMMUTABLE = frozenset({"kind", "flow"})


def _ticket_id(field: str, name: str) -> str:
    return parse_name(field, "tickets", name)


def _subject() -> str:
    return current_identity().subject


class TicketServicer(ticket_service_pb2_grpc.TicketServiceServicer):
    """TicketService. Plain methods run in the server's thread pool."""

    def __init__(self, handlers: Handlers, reader: TicketReader) -> None:
        self._handlers = handlers
        self._reader = reader

    async def GetTicket(
        self, request: ticket_service_pb2.GetTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """One ticket, by the event loop."""
        return convert.to_proto(await self._reader.get(_ticket_id("name", request.name)))

    def CreateTicket(
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
            actor=_subject(),
            ticket_id=request.ticket_id,
            flow=convert.read_optional_name("ticket.flow", "flows", asked.flow),
            parent_id=convert.read_optional_name("ticket.parent", "tickets", asked.parent),
            request_key=key,
            fingerprint=content_fingerprint(request) if key else None,
            validate_only=request.validate_only,
        )
        answer = convert.to_proto(self._handlers.create(command))
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
        page = Page.parse(request.page_size, request.page_token, fingerprint=request_fingerprint(request))
        query = Query(conditions=filters.parse(request.filter), by_due=orders[request.order_by])
        found = self._handlers.page(query, page.limit + 1, _list_key(page.after))
        shown = found[: page.limit]
        last = sort_key(shown[-1], query) if len(found) > page.limit else None
        return ticket_service_pb2.ListTicketsResponse(
            tickets=[convert.to_proto(ticket) for ticket in shown], next_page_token=page.next_token(last)
        )

    def UpdateTicket(
        self, request: ticket_service_pb2.UpdateTicketRequest, context: Any
    ) -> ticket_pb2.Ticket:
        """Changes what people fill in."""
        patch = request.ticket

        def edit(ticket: Ticket) -> Draft:
            message = convert.to_proto(ticket)
            apply_mask(message, patch, request.update_mask, allowed=UPDATABLE, immutable=IMMUTABLE)
            return convert.read_draft(message)

        changed = self._handlers.update(
            _ticket_id("ticket.name", patch.name),
            parse_etag("ticket.etag", patch.etag),
            edit,
            actor=_subject(),
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
            actor=_subject(),
            reason=request.reason,
            resolution=request.resolution,
            score=request.satisfaction_score,
            request_key=key or "",
            fingerprint=content_fingerprint(request, ignoring=("request_id", "etag")) if key else "",
        )
        changed = self._handlers.transition(
            _ticket_id("name", request.name),
            parse_etag("etag", request.etag),
            act,
            validate_only=request.validate_only,
        )
        return convert.to_proto(changed)

    def ListTransitions(
        self, request: ticket_service_pb2.ListTransitionsRequest, context: Any
    ) -> ticket_service_pb2.ListTransitionsResponse:
        """A page of a ticket's history."""
        ticket_id = _ticket_id("parent", request.parent)
        page = Page.parse(request.page_size, request.page_token, fingerprint=request_fingerprint(request))
        after = page.after if isinstance(page.after, int) else 0
        found = self._handlers.steps(ticket_id, after, page.limit + 1)
        shown = found[: page.limit]
        last = shown[-1].sequence if len(found) > page.limit else None
        return ticket_service_pb2.ListTransitionsResponse(
            transitions=[convert.step_to_proto(step) for step in shown], next_page_token=page.next_token(last)
        )


def _list_key(after: Any) -> tuple[int, str] | None:
    """The sort key in a page token; tokens are checked, but what is in one of ours is checked too."""
    if after is None:
        return None
    match after:
        case [int(moment), str(ticket_id)]:
            return moment, ticket_id
    raise InvalidArgument(field="page_token", why="is not a token that this list gave out")


class FlowServicer(flow_pb2_grpc.FlowServiceServicer):
    """FlowService over the shipped flows."""

    async def GetFlow(self, request: flow_pb2.GetFlowRequest, context: Any) -> flow_pb2.Flow:
        """One flow."""
        flow = FLOWS.get(parse_name("name", "flows", request.name))
        if flow is None:
            raise NotFound(resource=request.name)
        return flow_to_proto(flow)

    async def ListFlows(self, request: flow_pb2.ListFlowsRequest, context: Any) -> flow_pb2.ListFlowsResponse:
        """A page of flows, by name."""
        page = Page.parse(request.page_size, request.page_token, fingerprint=request_fingerprint(request))
        after = page.after if isinstance(page.after, str) else ""
        kinds = {convert.read_kind(request.kind)} if request.kind else set(convert.KINDS)
        found = [flow for id, flow in sorted(FLOWS.items()) if id > after and flow.kind in kinds]
        shown = found[: page.limit]
        last = shown[-1].id if len(found) > page.limit else None
        return flow_pb2.ListFlowsResponse(
            flows=[flow_to_proto(flow) for flow in shown], next_page_token=page.next_token(last)
        )


def flow_to_proto(flow: Flow) -> flow_pb2.Flow:
    """A shipped flow as clients see it."""
    return flow_pb2.Flow(
        name=f"flows/{flow.id}",
        display_name=flow.id.replace("_", " ").capitalize(),
        kind=convert.KINDS[flow.kind],
        default_flow=True,
        shipped=True,
        initial_state=flow.initial,
        states=[
            flow_pb2.FlowState(state=state, display_name=state.replace("_", " "), phase=convert.PHASES[phase])
            for state, phase in flow.states.items()
        ],
        transitions=[
            flow_pb2.FlowTransition(
                transition=row.verb,
                from_states=sorted(row.sources),
                to_state=row.target,
                required_fields=sorted(row.requires),
                display_name=row.verb.replace("_", " "),
            )
            for row in flow.transitions
        ],
        follow_up=flow_pb2.FollowUpRule(flow="flows/return_visit", share=1.0) if flow.follow_up else None,
        version=1,
    )


def bindings(handlers: Handlers, reader: TicketReader) -> list[tuple[Any, Any, Any]]:
    """(descriptor, add-to-server function, servicer) of every service; `server` makes the chassis' bindings
    of them."""
    return [
        (
            ticket_service_pb2.DESCRIPTOR.services_by_name["TicketService"],
            ticket_service_pb2_grpc.add_TicketServiceServicer_to_server,
            TicketServicer(handlers, reader),
        ),
        (
            flow_pb2.DESCRIPTOR.services_by_name["FlowService"],
            flow_pb2_grpc.add_FlowServiceServicer_to_server,
            FlowServicer(),
        ),
        (
            sla_pb2.DESCRIPTOR.services_by_name["SlaService"],
            sla_pb2_grpc.add_SlaServiceServicer_to_server,
            sla_pb2_grpc.SlaServiceServicer(),
        ),
        (
            knowledge_pb2.DESCRIPTOR.services_by_name["KnowledgeService"],
            knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server,
            knowledge_pb2_grpc.KnowledgeServiceServicer(),
        ),
        (
            knowledge_pb2.DESCRIPTOR.services_by_name["ExpertService"],
            knowledge_pb2_grpc.add_ExpertServiceServicer_to_server,
            knowledge_pb2_grpc.ExpertServiceServicer(),
        ),
        (
            quality_pb2.DESCRIPTOR.services_by_name["QualityService"],
            quality_pb2_grpc.add_QualityServiceServicer_to_server,
            quality_pb2_grpc.QualityServiceServicer(),
        ),
        (
            report_pb2.DESCRIPTOR.services_by_name["ReportService"],
            report_pb2_grpc.add_ReportServiceServicer_to_server,
            report_pb2_grpc.ReportServiceServicer(),
        ),
    ]
