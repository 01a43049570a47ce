"""A router that has just started: what it cannot know yet it does not deny."""

from __future__ import annotations

from typing import Any

import pytest

from callmesh.routing.v1 import call_pb2
from chassis.testing import FakeClock
from routing.errors import DirectoryUnread, QueueNotFound
from routing.handlers import Handlers
from routing.peers import PeerTable
from routing.regions import Regions


async def test_an_unread_directory_lacks_no_queue() -> None:
    """The caller is asked to come again, here or elsewhere, until the directory was read; then the answer is
    final.
    """
    clock, unused = FakeClock(), None
    regions = Regions(PeerTable(clock, 3.0), clock)
    rest: Any = unused
    handlers = Handlers(
        front=rest,
        regions=regions,
        tokens=rest,
        profiles=rest,
        agents=rest,
        queues={},
        shards=frozenset(),
        clock=clock,
    )
    request = call_pb2.CallRequest(
        call_id="c1", attempt=1, queue="queues/service", caller_number="+861012345678"
    )
    with pytest.raises(DirectoryUnread) as early:
        await anext(handlers.route_call(request))
    assert early.value.details.retry_seconds
    regions.configure((), {})
    with pytest.raises(QueueNotFound):
        await anext(handlers.route_call(request))
