"""Times and durations out of range are refused with their path, whatever the message."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, empty_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from callmesh.routing.v1 import directory_pb2, planning_pb2, routing_pb2
from callmesh.tickets.v1 import events_pb2
from chassis import wellknown
from chassis.errors import VIOLATIONS_MAX, InvalidArgument

SECONDS = st.integers(-(2**63), 2**63 - 1)
NANOS = st.integers(-(2**31), 2**31 - 1)


@given(seconds=SECONDS | st.integers(-(10**12), 10**12), nanos=NANOS | st.integers(-5, 10**9))
def test_what_passes_is_what_protobuf_itself_takes(seconds: int, nanos: int) -> None:
    for value in (Timestamp(seconds=seconds, nanos=nanos), Duration(seconds=seconds, nanos=nanos)):
        bad = wellknown._CHECKS[value.DESCRIPTOR.full_name](value)
        try:
            value.ToJsonString()
            takes = True
        except ValueError:
            takes = False
        assert takes is (not bad)


def test_every_field_is_named() -> None:
    call = routing_pb2.RouteCallRequest()
    call.call.preferred_agent_timeout.nanos = 1
    wellknown.check(call)
    event = events_pb2.TicketTransitioned()
    event.ticket.due_time.seconds = 2**60
    event.transition.time.nanos = -1
    with pytest.raises(InvalidArgument) as refused:
        wellknown.check(event)
    fields = [violation.field for violation in refused.value.details.field_violations]
    assert fields == ["ticket.due_time", "transition.time"]


def test_lists_are_looked_into_and_only_so_many_are_told() -> None:
    request = planning_pb2.GetAdherenceRequest()
    for _ in range(100):
        request.roster.add().breaks.add().start_time.seconds = 2**62
    with pytest.raises(InvalidArgument) as refused:
        wellknown.check(request)
    found = refused.value.details.field_violations
    assert found[0].field == "roster[0].breaks[0].start_time"
    assert len(found) == VIOLATIONS_MAX


def test_types_without_a_time_are_not_walked() -> None:
    assert not wellknown.has_times(empty_pb2.Empty.DESCRIPTOR)
    assert not wellknown.has_times(descriptor_pb2.DescriptorProto.DESCRIPTOR), "and a type within itself ends"
    assert wellknown.has_times(directory_pb2.Queue.DESCRIPTOR)
