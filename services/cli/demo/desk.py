"""What an agent does on the screen during a call: looks at the customer, offers, and writes down what came of
it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import screen_pop_pb2, screen_pop_pb2_grpc
from callmesh.marketing.v1 import recommendations_pb2, recommendations_pb2_grpc, types_pb2
from callmesh.routing.v1 import call_pb2
from cli.demo.rpc import DEADLINE_SECONDS, facts_of

#: Chance that a customer takes an offer put to them, by the type of service asked.
ACCEPT_CHANCE = 0.14
#: Chance that the agent does not put the offer at all.
SKIP_CHANCE = 0.25
#: By type of service: chance of a ticket, its kind, subject, and the contact reason.
TICKETS: Mapping[str, tuple[float, str, str, str]] = {
    "PS": (0.10, "inquiry", "账单金额有疑问", "billing/amount"),
    "PE": (0.10, "inquiry", "Question about the bill", "billing/amount"),
    "NW": (0.06, "inquiry", "开户咨询待回复", "account/opening"),
    "NE": (0.12, "complaint", "交易执行不符", "trading/execution"),
    "IN": (0.30, "repair", "网上服务无法登录", "internet/login"),
    "TT": (0.15, "inquiry", "请求回电", "callback"),
}
#: Share of calls without a ticket that were settled, and of customers who say they want to leave.
RESOLVED_CHANCE = 0.92
LEAVE_CHANCE = 0.01
#: Different errors kept.
ERRORS_KEPT_MAX = 50


@dataclass(kw_only=True, slots=True)
class DeskFigures:
    """What the desks did, counted on their side."""

    #: Screen pops shown, and with a known customer.
    pops: int = 0
    pops_known: int = 0
    #: Milliseconds each took, in order.
    pop_milliseconds: list[float] = field(default_factory=list)
    #: Calls that were not the customer's first today.
    repeat_callers: int = 0
    #: Offers put to customers, and accepted.
    offers_made: int = 0
    offers_accepted: int = 0
    #: Tickets that dispositions asked for.
    tickets_asked: int = 0
    #: Errors by service and reason.
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, what: str, reason: str) -> None:
        """Counts an error; a new kind only while there is room."""
        key = f"{what}: {reason}"
        if key in self.errors or len(self.errors) < ERRORS_KEPT_MAX:
            self.errors[key] = self.errors.get(key, 0) + 1


class Desk:
    """The agent's screen: crm and marketing over gRPC."""

    def __init__(
        self, *, crm: grpc.aio.Channel, marketing: grpc.aio.Channel, type_of: Mapping[str, str], seed: int
    ) -> None:
        """`type_of`: type of service by call id."""
        self._pops = screen_pop_pb2_grpc.ScreenPopServiceStub(crm)
        self._marketing = recommendations_pb2_grpc.RecommendationServiceStub(marketing)
        self._type_of = type_of
        self._seed = seed
        self.figures = DeskFigures()

    async def greet(self, call: call_pb2.Call, agent: str) -> None:
        """Screen pop, recommendation and its outcome. Errors are counted, never raised: the conversation goes
        on.
        """
        customer = await self._screen_pop(call)
        rng = self._rng(call.call_id, "offer")
        try:
            decision = await self._marketing.Recommend(
                self._question(call, agent, customer), timeout=DEADLINE_SECONDS
            )
            if decision.offers:
                await self._offer(decision, agent, rng)
        except grpc.RpcError as error:
            self.figures.failed("marketing", facts_of(error).reason)

    async def _screen_pop(self, call: call_pb2.Call) -> str:
        began = time.perf_counter()
        try:
            pop: Any = await self._pops.GetScreenPop(
                screen_pop_pb2.GetScreenPopRequest(phone_number=call.caller_number, call_id=call.call_id),
                timeout=DEADLINE_SECONDS,
            )
        except grpc.RpcError as error:
            self.figures.failed("crm", facts_of(error).reason)
            return ""
        figures = self.figures
        figures.pops += 1
        figures.pop_milliseconds.append((time.perf_counter() - began) * 1000.0)
        figures.pops_known += pop.HasField("customer")
        figures.repeat_callers += pop.earlier_calls_today > 0
        return str(pop.customer.name)

    def _question(
        self, call: call_pb2.Call, agent: str, customer: str
    ) -> recommendations_pb2.RecommendRequest:
        return recommendations_pb2.RecommendRequest(
            customer=customer,
            caller_number=call.caller_number,
            max_offers=1,
            context=recommendations_pb2.CallContext(
                call_id=call.call_id,
                channel=common_pb2.CHANNEL_VOICE,
                queue=call.queue,
                region=call.region,
                agent=f"agents/{agent}",
                language="zh",
            ),
        )

    async def _offer(self, decision: Any, agent: str, rng: random.Random) -> None:
        if rng.random() < SKIP_CHANCE:
            offer, result = "", types_pb2.OUTCOME_RESULT_IGNORED
        else:
            offer, accepted = decision.offers[0].offer, rng.random() < ACCEPT_CHANCE
            result = types_pb2.OUTCOME_RESULT_ACCEPTED if accepted else types_pb2.OUTCOME_RESULT_DECLINED
        await self._marketing.RecordOutcome(
            recommendations_pb2.RecordOutcomeRequest(
                decision=decision.name, offer=offer, result=result, agent=f"agents/{agent}"
            ),
            timeout=DEADLINE_SECONDS,
        )
        self.figures.offers_made += bool(offer)
        self.figures.offers_accepted += result == types_pb2.OUTCOME_RESULT_ACCEPTED

    def disposition(self, call: call_pb2.Call) -> call_pb2.Disposition:
        """What the agent writes down; the same for the same call in every run with one seed."""
        rng = self._rng(call.call_id, "disposition")
        kind = self._type_of.get(call.call_id, "PS")
        chance, ticket_kind, subject, reason = TICKETS.get(kind, TICKETS["PS"])
        disposition = call_pb2.Disposition(
            code=reason.replace("/", "-"), contact_reason=reason, wants_to_leave=rng.random() < LEAVE_CHANCE
        )
        if rng.random() < chance:
            disposition.ticket.CopyFrom(
                call_pb2.TicketRequest(
                    kind=ticket_kind,
                    priority="high" if ticket_kind == "complaint" else "normal",
                    category=reason,
                    subject=subject,
                )
            )
            self.figures.tickets_asked += 1
        else:
            disposition.resolved = rng.random() < RESOLVED_CHANCE
        return disposition

    def _rng(self, call_id: str, what: str) -> random.Random:
        return random.Random(f"{self._seed}:{what}:{call_id}")
