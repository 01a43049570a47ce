"""The gRPC face of the voice of the customer."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal
from operator import itemgetter
from typing import Any

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import insights_pb2, insights_pb2_grpc
from chassis.errors import InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.ids import parse_name
from chassis.mongo import etag, parse_etag
from chassis.pagination import Page
from crm import convert, scan, topics
from crm.app import App
from crm.records import Raw
from crm.voice import (
    INTERVAL_DAYS_MAX,
    REPEAT_DAYS_DEFAULT,
    AgentFigures,
    HotSpot,
    HotTopic,
    ReasonFigures,
    Span,
    checked_path,
)

RADIUS_KM_DEFAULT, RADIUS_KM_MAX = 50.0, 500.0
REPEAT_DAYS_MAX = 90
REPORT_TOPICS, REPORT_ROWS = 20, 50
_CENTS = Decimal("0.01")
_DAY_MS = 86_400_000


def _span(message: Any) -> Span:
    interval = message.interval
    if not (interval.HasField("start_time") and interval.HasField("end_time")):
        raise InvalidArgument(field="scope.interval", why="must have both ends")
    from_ms = int(interval.start_time.ToMilliseconds())
    until_ms = int(interval.end_time.ToMilliseconds())
    if until_ms <= from_ms:
        raise InvalidArgument(field="scope.interval", why="must end after it starts")
    if until_ms - from_ms > INTERVAL_DAYS_MAX * _DAY_MS:
        raise InvalidArgument(field="scope.interval", why=f"must be at most {INTERVAL_DAYS_MAX} days")
    if message.reason_prefix:
        checked_path("scope.reason_prefix", message.reason_prefix)
    for name in ("region", "product"):
        if len(getattr(message, name)) > 200:
            raise InvalidArgument(field=f"scope.{name}", why="is too long")
    return Span(
        from_ms=from_ms,
        until_ms=until_ms,
        region=message.region,
        reason_prefix=message.reason_prefix,
        product=message.product,
        complaints_only=message.complaints_only,
    )


def _p_value(value: float, default: float = topics.P_VALUE_MAX) -> float:
    if not 0.0 <= value <= 1.0 or math.isnan(value):
        raise InvalidArgument(field="p_value_max", why="must be 0 to 1")
    return value or default


def reason_in(message: Any) -> dict[str, Any]:
    """A node's fields as a caller wrote them, not checked yet."""
    money = message.minute_cost
    given = message.HasField("minute_cost")
    return {
        "path": message.path,
        "labels": dict(message.labels),
        "complaint": message.complaint,
        "minute_cost": {"currency": money.currency_code, "amount": money.amount} if given else None,
    }


def reason_out(raw: Raw) -> insights_pb2.ContactReason:
    """A node as callers see it."""
    money = raw.get("minute_cost")
    return insights_pb2.ContactReason(
        name=f"contactReasons/{raw['_id']}",
        path=raw["path"],
        labels=raw.get("labels") or {},
        complaint=bool(raw.get("complaint")),
        retired=bool(raw.get("retired")),
        minute_cost=common_pb2.Money(currency_code=money["currency"], amount=money["amount"])
        if money
        else None,
        etag=etag(raw["version"]),
    )


def topic_out(found: HotTopic) -> insights_pb2.HotTopic:
    """A rising reason as callers see it."""
    topic = found.topic
    return insights_pb2.HotTopic(
        contact_reason=topic.reason,
        observed=topic.observed,
        expected=topic.expected,
        p_value=topic.p_value,
        products=found.products,
        partners=found.partners,
    )


def spot_out(found: HotSpot) -> insights_pb2.HotSpot:
    """A hot spot as callers see it."""
    spot = found.spot
    return insights_pb2.HotSpot(
        centre=common_pb2.GeoPoint(latitude=found.latitude, longitude=found.longitude),
        radius_km=spot.radius_km,
        places=found.places,
        observed=spot.observed,
        expected=spot.expected,
        relative_risk=spot.relative_risk,
        p_value=spot.p_value,
        contact_reasons=found.reasons,
        products=found.products,
        partners=found.partners,
    )


def figures_out(found: ReasonFigures) -> insights_pb2.ReasonStats:
    """A reason's figures as callers see them."""
    message = insights_pb2.ReasonStats(
        contact_reason=found.reason,
        calls=found.calls,
        first_call_resolution_ratio=max(found.resolved_first, 0) / found.calls,
        repeat_call_ratio=found.repeats / found.calls,
        handle_seconds_mean=found.talk_ms / found.talked / 1000 if found.talked else 0.0,
    )
    if len(found.costs) == 1:
        # Amounts of several currencies have no sum.
        ((currency, cost),) = found.costs.items()
        message.cost.CopyFrom(_money(currency, cost))
        message.cost_per_call.CopyFrom(_money(currency, cost / max(found.talked, 1)))
    return message


def _money(currency: str, amount: Decimal) -> common_pb2.Money:
    rounded = amount.quantize(_CENTS, rounding=ROUND_HALF_EVEN)
    return common_pb2.Money(currency_code=currency, amount=str(rounded))


def feedback_out(found: AgentFigures) -> insights_pb2.AgentFeedback:
    """An agent's figures as callers see them."""
    return insights_pb2.AgentFeedback(
        agent=found.agent,
        interactions=found.interactions,
        praises=found.praises,
        complaints=found.complaints,
        satisfaction_mean=found.ratings / found.rated if found.rated else 0.0,
    )


class InsightsServicer(insights_pb2_grpc.InsightsServiceServicer):
    """InsightsService."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._reasons = app.reasons
        self._voice = app.voice

    def CreateContactReason(
        self, request: insights_pb2.CreateContactReasonRequest, context: Any
    ) -> insights_pb2.ContactReason:
        """Creates a node."""
        return reason_out(self._reasons.create(request.contact_reason_id, reason_in(request.contact_reason)))

    def ListContactReasons(
        self, request: insights_pb2.ListContactReasonsRequest, context: Any
    ) -> insights_pb2.ListContactReasonsResponse:
        """A page of the tree."""
        page = Page.of(request)
        if request.path_prefix:
            checked_path("path_prefix", request.path_prefix.rstrip("/"))
        found = self._reasons.page(request.path_prefix, page.value(str), page.limit + 1)
        shown, token = page.cut(found, itemgetter("path"))
        return insights_pb2.ListContactReasonsResponse(
            contact_reasons=[reason_out(raw) for raw in shown], next_page_token=token
        )

    def UpdateContactReason(
        self, request: insights_pb2.UpdateContactReasonRequest, context: Any
    ) -> insights_pb2.ContactReason:
        """Changes a node."""

        def edit(raw: Raw) -> dict[str, Any]:
            message = reason_out(raw)
            apply_mask(
                message,
                request.contact_reason,
                request.update_mask,
                allowed={"labels", "complaint", "minute_cost"},
                immutable={"path"},
                at="contact_reason",
            )
            return reason_in(message)

        done = self._reasons.update(
            parse_name("contact_reason.name", "contactReasons", request.contact_reason.name),
            edit,
            parse_etag("contact_reason.etag", request.contact_reason.etag),
        )
        return reason_out(done)

    def DeleteContactReason(
        self, request: insights_pb2.DeleteContactReasonRequest, context: Any
    ) -> insights_pb2.ContactReason:
        """Retires a node."""
        id = parse_name("name", "contactReasons", request.name)
        return reason_out(self._reasons.retire(id, parse_etag("etag", request.etag)))

    def ListHotTopics(
        self, request: insights_pb2.ListHotTopicsRequest, context: Any
    ) -> insights_pb2.ListHotTopicsResponse:
        """A page of rising reasons."""
        if not 0 <= request.history_days <= topics.HISTORY_DAYS_MAX:
            raise InvalidArgument(field="history_days", why=f"must be 0 to {topics.HISTORY_DAYS_MAX}")
        days = request.history_days or topics.HISTORY_DAYS_DEFAULT
        found = self._voice.hot_topics(_span(request.scope), days, _p_value(request.p_value_max))
        shown, token = Page.of(request, default=20, maximum=200).part(found)
        return insights_pb2.ListHotTopicsResponse(
            hot_topics=[topic_out(each) for each in shown], next_page_token=token
        )

    def ListHotSpots(
        self, request: insights_pb2.ListHotSpotsRequest, context: Any
    ) -> insights_pb2.ListHotSpotsResponse:
        """A page of hot spots."""
        if not 0.0 <= request.radius_max_km <= RADIUS_KM_MAX:
            raise InvalidArgument(field="radius_max_km", why=f"must be 0 to {RADIUS_KM_MAX:g}")
        radius = request.radius_max_km or RADIUS_KM_DEFAULT
        p_value_max = _p_value(request.p_value_max, scan.P_VALUE_MAX)
        found = self._voice.hot_spots(_span(request.scope), radius, p_value_max)
        shown, token = Page.of(request, default=20, maximum=200).part(found)
        return insights_pb2.ListHotSpotsResponse(
            hot_spots=[spot_out(each) for each in shown], next_page_token=token
        )

    def ListReasonStats(
        self, request: insights_pb2.ListReasonStatsRequest, context: Any
    ) -> insights_pb2.ListReasonStatsResponse:
        """A page of reasons' figures."""
        if not 0 <= request.repeat_days <= REPEAT_DAYS_MAX:
            raise InvalidArgument(field="repeat_days", why=f"must be 0 to {REPEAT_DAYS_MAX}")
        if not 0 <= request.depth <= 8:
            raise InvalidArgument(field="depth", why="must be 0 to 8")
        days = request.repeat_days or REPEAT_DAYS_DEFAULT
        found = self._voice.reason_figures(_span(request.scope), days, request.depth)
        shown, token = Page.of(request).part(found)
        return insights_pb2.ListReasonStatsResponse(
            reason_stats=[figures_out(each) for each in shown], next_page_token=token
        )

    def ListAgentFeedback(
        self, request: insights_pb2.ListAgentFeedbackRequest, context: Any
    ) -> insights_pb2.ListAgentFeedbackResponse:
        """A page of agents' figures."""
        found = self._voice.agent_figures(_span(request.scope))
        shown, token = Page.of(request).part(found)
        return insights_pb2.ListAgentFeedbackResponse(
            agent_feedback=[feedback_out(each) for each in shown], next_page_token=token
        )

    def GetVoiceReport(
        self, request: insights_pb2.GetVoiceReportRequest, context: Any
    ) -> insights_pb2.VoiceReport:
        """The day in one answer."""
        span = _span(request.scope)
        voice = self._voice
        spots = voice.hot_spots(span, RADIUS_KM_DEFAULT, scan.P_VALUE_MAX)
        rising = voice.hot_topics(span, topics.HISTORY_DAYS_DEFAULT, topics.P_VALUE_MAX)
        return insights_pb2.VoiceReport(
            scope=request.scope,
            hot_topics=[topic_out(each) for each in rising[:REPORT_TOPICS]],
            hot_spots=[spot_out(each) for each in spots[:REPORT_TOPICS]],
            reason_stats=[
                figures_out(each) for each in voice.reason_figures(span, REPEAT_DAYS_DEFAULT, 0)[:REPORT_ROWS]
            ],
            agent_feedback=[feedback_out(each) for each in voice.agent_figures(span)[:REPORT_ROWS]],
            interactions=voice.interactions(span),
            create_time=convert.timestamp(self._app.clock.now()),
        )
