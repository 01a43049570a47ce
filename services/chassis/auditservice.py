"""Shows a service's audit log (acts.py): `callmesh.common.v1.AuditService`.

`chassis.server` serves it wherever acts are recorded; nobody has to remember it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from callmesh.common.v1 import audit_pb2 as pb
from callmesh.common.v1 import audit_pb2_grpc as stubs
from chassis.acts import ActQuery, Acts
from chassis.errors import InvalidArgument
from chassis.pagination import Page

SERVICE = "callmesh.common.v1.AuditService"
DESCRIPTOR = pb.DESCRIPTOR.services_by_name["AuditService"]
add_to_server = stubs.add_AuditServiceServicer_to_server


def scopes(source: str) -> dict[str, str]:
    """The scope table of a service's AuditService."""
    return {f"/{SERVICE}/ListRecordedActs": f"{source}.acts.read"}


class AuditServicer(stubs.AuditServiceServicer):
    """`AuditService` over one service's acts."""

    def __init__(self, acts: Acts) -> None:
        self._acts = acts

    async def ListRecordedActs(
        self, request: pb.ListRecordedActsRequest, context: Any
    ) -> pb.ListRecordedActsResponse:
        """One page."""
        page = Page.of(request)
        from_ms, to_ms = _bounds(request)
        query = ActQuery(
            from_ms=from_ms,
            to_ms=to_ms,
            actor=request.actor,
            resource=request.resource,
            after=page.key(int, str),
            limit=page.limit + 1,
        )
        shown, token = page.cut(await self._acts.page(query), lambda row: (row["at"], row["_id"]))
        return pb.ListRecordedActsResponse(acts=[_act(row) for row in shown], next_page_token=token)


def _bounds(request: pb.ListRecordedActsRequest) -> tuple[int | None, int | None]:
    """From (inclusive) and to (exclusive), milliseconds."""
    span = request.interval
    begin = span.start_time.ToMilliseconds() if span.HasField("start_time") else None
    end = span.end_time.ToMilliseconds() if span.HasField("end_time") else None
    if begin is not None and end is not None and end <= begin:
        raise InvalidArgument(field="interval.end_time", why="must be after start_time")
    return begin, end


def _act(row: Mapping[str, Any]) -> pb.RecordedAct:
    made = pb.RecordedAct(
        id=row["_id"],
        actor=row.get("actor", ""),
        method=row.get("method", ""),
        resource=row.get("resource", ""),
        outcome=row.get("outcome", ""),
        request_digest=row.get("request", ""),
        before_digest=row.get("before", ""),
        after_digest=row.get("after", ""),
    )
    made.time.FromMilliseconds(row["at"])
    return made
