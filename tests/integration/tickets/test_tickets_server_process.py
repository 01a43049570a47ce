"""The gRPC process as a partner meets it."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from callmesh.tickets.v1 import (
    flow_pb2,
    flow_pb2_grpc,
    knowledge_pb2,
    knowledge_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
    sla_pb2,
    sla_pb2_grpc,
    ticket_pb2,
    ticket_service_pb2,
    ticket_service_pb2_grpc,
)
from chassis.testing.waiting import wait_until

pytestmark = pytest.mark.integration

pb, rpc = ticket_pb2, ticket_service_pb2
NUMBER = "+8613800138000"


@pytest.fixture(scope="module")
def channel(shared_server: tuple[Any, int]) -> Iterator[grpc.Channel]:
    _, port = shared_server
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, list[str]]:
    """Status, ErrorInfo and bad fields of a call that must fail."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(error.value).details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return error.value.code(), info, [violation.field for violation in bad.field_violations]


def test_a_ticket_from_opening_to_its_end(channel: grpc.Channel) -> None:
    stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
    request = rpc.CreateTicketRequest(
        ticket=pb.Ticket(
            kind=pb.TICKET_KIND_COMPLAINT,
            subject="没有信号 👩‍🔧",
            description="x" * 60_000,
            priority=pb.PRIORITY_HIGH,
            caller_number=NUMBER,
            attributes={"contract.end": "2027"},
        ),
        request_id=str(uuid.uuid4()),
    )
    ticket = stub.CreateTicket(request, timeout=30)
    assert stub.CreateTicket(request, timeout=30) == ticket
    assert (ticket.state, ticket.phase, ticket.creator) == ("new", pb.TICKET_PHASE_NEW, "local")
    assert ticket.due_time.ToMilliseconds() - ticket.create_time.ToMilliseconds() == 24 * 3_600_000
    assert "priority high: 50 %" in ticket.sla.explanation
    assert list(ticket.allowed_transitions) == ["start", "escalate", "cancel"]
    assert stub.GetTicket(rpc.GetTicketRequest(name=ticket.name), timeout=30) == ticket

    patch = pb.Ticket(
        name=ticket.name, etag=ticket.etag, priority=pb.PRIORITY_URGENT, subject="not in the mask"
    )
    update = rpc.UpdateTicketRequest(ticket=patch, update_mask=FieldMask(paths=["priority"]))
    urgent = stub.UpdateTicket(update, timeout=30)
    assert urgent.subject == ticket.subject and urgent.sla.rule == "complaint/urgent/unknown"
    assert failure(lambda: stub.UpdateTicket(update, timeout=30))[:1] == (grpc.StatusCode.ABORTED,)

    for verb in ("start", "resolve"):
        step = rpc.TransitionTicketRequest(name=ticket.name, transition=verb, resolution="new aerial")
        ticket = stub.TransitionTicket(step, timeout=30)
    assert ticket.phase == pb.TICKET_PHASE_RESOLVED and ticket.resolution == "new aerial"
    assert ticket.follow_up.ticket == f"{ticket.name}.visit-1" and not ticket.HasField("due_time")
    before = ticket
    code, info, _ = failure(
        lambda: stub.TransitionTicket(
            rpc.TransitionTicketRequest(name=ticket.name, transition="start"), timeout=10
        )
    )
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
    assert info.domain == "callmesh.tickets" and info.metadata["allowed"] == "reopen,close"
    assert stub.GetTicket(rpc.GetTicketRequest(name=ticket.name), timeout=30) == before
    history = rpc.ListTransitionsRequest(parent=ticket.name, page_size=2)
    page = stub.ListTransitions(history, timeout=30)
    history.page_token = page.next_page_token
    rest = stub.ListTransitions(history, timeout=30)
    assert [step.transition for step in (*page.transitions, *rest.transitions)] == [
        "open",
        "start",
        "resolve",
    ]
    assert not rest.next_page_token


def test_lists_are_filtered_and_paged(channel: grpc.Channel) -> None:
    stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
    names = []
    for n in range(7):
        kind = pb.TICKET_KIND_CARE if n % 2 else pb.TICKET_KIND_INQUIRY
        draft = pb.Ticket(kind=kind, subject=f"{n}", description="long", customer="customers/42")
        names.append(stub.CreateTicket(rpc.CreateTicketRequest(ticket=draft), timeout=30).name)
    request = rpc.ListTicketsRequest(filter='kind = INQUIRY AND customer = "customers/42"', page_size=3)
    first = stub.ListTickets(request, timeout=30)
    request.page_token = first.next_page_token
    second = stub.ListTickets(request, timeout=30)
    assert [ticket.subject for ticket in (*first.tickets, *second.tickets)] == ["6", "4", "2", "0"]
    assert not second.next_page_token and not first.tickets[0].description
    request.filter = "open = true"
    assert failure(lambda: stub.ListTickets(request, timeout=30))[2] == ["page_token"]
    mine = rpc.ListTicketsRequest(order_by="due_time", page_size=1, filter="customer = customers/42")
    assert stub.ListTickets(mine, timeout=30).tickets[0].name == names[0]


@pytest.mark.parametrize(("request_", "field"), [
    (rpc.CreateTicketRequest(ticket=pb.Ticket(subject="x")), "ticket.kind"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=99, subject="x")), "ticket.kind"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1)), "ticket.subject"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", description="y" * 65_537)),
     "ticket.description"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", description="y" * 5_000_000)),
     "ticket.description"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", customer="42")), "ticket.customer"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", caller_number="911")),
     "ticket.caller_number"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", priority=9)), "ticket.priority"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", flow="flows/none")), "ticket.flow"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x", fee=pb.FeeOrder())), "ticket.fee"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x"), ticket_id="a b"), "ticket_id"),
    (rpc.CreateTicketRequest(ticket=pb.Ticket(kind=1, subject="x"), request_id="7"), "request_id"),
    (rpc.GetTicketRequest(name="42"), "name"),
    (rpc.GetTicketRequest(name="tickets/" + "x" * 4_000), "name"),
    (rpc.ListTicketsRequest(page_size=-1), "page_size"),
    (rpc.ListTicketsRequest(page_token="xx"), "page_token"),
    (rpc.ListTicketsRequest(order_by="subject"), "order_by"),
    (rpc.ListTicketsRequest(filter="$where = 1"), "filter"),
    (rpc.ListTransitionsRequest(parent="tickets/a/b"), "parent"),
    (rpc.TransitionTicketRequest(name="tickets/t"), "transition"),
    (rpc.TransitionTicketRequest(name="tickets/t", transition="x", etag="7"), "etag"),
])  # fmt: skip
def test_bad_input_is_named(channel: grpc.Channel, request_: Any, field: str) -> None:
    name = type(request_).__name__.removesuffix("Request")
    method = getattr(ticket_service_pb2_grpc.TicketServiceStub(channel), name)
    code, info, fields = failure(lambda: method(request_, timeout=30))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field]) and info.reason


def test_what_is_missing_says_so(channel: grpc.Channel) -> None:
    stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
    code, info, _ = failure(lambda: stub.GetTicket(rpc.GetTicketRequest(name="tickets/none"), timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    merge = rpc.MergeTicketsRequest(name="tickets/none", source="tickets/none")
    _, _, fields = failure(lambda: stub.MergeTickets(merge, timeout=30))
    assert fields == ["source"]


def test_changes_are_followed_from_where_a_stream_broke(channel: grpc.Channel) -> None:
    stub = ticket_service_pb2_grpc.TicketServiceStub(channel)

    def make(subject: str) -> Any:
        draft = pb.Ticket(kind=pb.TICKET_KIND_CARE, subject=subject, tags=["watched"])
        return stub.CreateTicket(rpc.CreateTicketRequest(ticket=draft), timeout=30)

    changes = stub.WatchChanges(rpc.WatchChangesRequest(filter="tags:watched"), timeout=30)
    seen: list[Any] = []
    reading = threading.Thread(target=lambda: seen.append(next(changes)))
    reading.start()
    wait_until(lambda: make("one") is not None and bool(seen), 20, what="the first change arrives")
    reading.join()
    changes.cancel()
    last = make("last")
    token = seen[0].resume_token
    again = stub.WatchChanges(rpc.WatchChangesRequest(filter="tags:watched", resume_token=token), timeout=30)
    for change in again:
        if change.ticket.name == last.name:
            break
    again.cancel()
    bad = rpc.WatchChangesRequest(resume_token="e30=")
    assert failure(lambda: next(stub.WatchChanges(bad, timeout=30)))[2] == ["resume_token"]


def test_everything_around_tickets_is_served(channel: grpc.Channel) -> None:
    office = sla_pb2.Calendar(
        time_zone="Asia/Shanghai",
        holiday_country="CN",
        windows=[sla_pb2.WorkWindow(weekday=day, start_minute=540, end_minute=1080) for day in range(1, 6)],
    )
    levels = sla_pb2_grpc.SlaServiceStub(channel)
    levels.CreateCalendar(sla_pb2.CreateCalendarRequest(calendar=office, calendar_id="office"), timeout=30)
    policy = sla_pb2.SlaPolicy(
        calendar="calendars/office",
        kinds=[pb.TICKET_KIND_MARKET_SURVEY],
        resolution_target=Duration(seconds=28_800),
    )
    request = sla_pb2.CreateSlaPolicyRequest(sla_policy=policy, sla_policy_id="survey")
    levels.CreateSlaPolicy(request, timeout=30)
    stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
    draft = pb.Ticket(kind=pb.TICKET_KIND_MARKET_SURVEY, subject="How was it?")
    ticket = stub.CreateTicket(rpc.CreateTicketRequest(ticket=draft), timeout=30)
    assert ticket.sla.policy == "slaPolicies/survey"
    explained = levels.ExplainSla(sla_pb2.ExplainSlaRequest(ticket=ticket.name), timeout=30)
    counted = [s.end_time.seconds - s.start_time.seconds for s in explained.stretches if s.counted]
    assert sum(counted) in (28_799, 28_800, 28_801), "to the second"
    stub.CreateComment(
        rpc.CreateCommentRequest(parent=ticket.name, comment=pb.Comment(body="你好")), timeout=10
    )
    assert len(stub.ListComments(rpc.ListCommentsRequest(parent=ticket.name), timeout=30).comments) == 1
    library = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
    article = knowledge_pb2.Article(title="光猫红灯", body="检查光纤", language="zh-CN")
    made = library.CreateArticle(knowledge_pb2.CreateArticleRequest(article=article), timeout=30)
    library.SubmitArticle(knowledge_pb2.SubmitArticleRequest(name=made.name), timeout=30)
    library.ReviewArticle(knowledge_pb2.ReviewArticleRequest(name=made.name, approve=True), timeout=30)
    search = knowledge_pb2.SearchArticlesRequest(query="红灯")
    hits = library.SearchArticles(search, timeout=30).hits
    assert [hit.article.name for hit in hits] == [made.name]
    reports = report_pb2_grpc.ReportServiceStub(channel)
    rows = b"number,state,time\n1,New,1/2/2026 10:00\n1,Closed,1/2/2026 11:00\n"
    log = report_pb2.ImportTicketLogRequest(import_id="log", chunk=rows)
    assert reports.ImportTicketLog(iter([log]), timeout=30).ticket_count == 1
    scope = report_pb2.ReportScope(import_id="log")
    chart = reports.GetProcessMap(report_pb2.GetProcessMapRequest(scope=scope, picture=2), timeout=30)
    assert chart.ticket_count == 1 and chart.picture.startswith("<svg")
    performance = report_pb2.GetPerformanceRequest(scope=report_pb2.ReportScope(filter="open = true"))
    assert reports.GetPerformance(performance, timeout=30).total.ticket_count >= 1


def test_flows_say_what_transitions_need(channel: grpc.Channel) -> None:
    stub = flow_pb2_grpc.FlowServiceStub(channel)
    flows = stub.ListFlows(flow_pb2.ListFlowsRequest(page_size=3), timeout=30)
    assert len(flows.flows) == 3 and flows.next_page_token
    complaint = stub.GetFlow(flow_pb2.GetFlowRequest(name="flows/complaint"), timeout=30)
    assert {row.transition: list(row.required_fields) for row in complaint.transitions}["resolve"] == [
        "resolution"
    ]


def test_the_process_ends_in_order(start_process: Callable[..., Any]) -> None:
    process, _ = start_process("tickets", "server")
    process.send(signal.SIGTERM)
    wait_until(lambda: process.exit_code() is not None, 20, what="the server has ended")
    assert process.exit_code() == 0
