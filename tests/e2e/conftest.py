"""The platform as eleven processes, once for all tests that drive it over the wire."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.platform_parties import CLOCK_SPEED, FOLLOW_UP_SECONDS, EventTap, Wire, furnish
from tests.e2e.platform_traces import Spans, agent, collecting

from chassis.localstack import PortInUse, find_mongod, find_rabbitmq_server, free_ports
from cli import plan
from cli.plan import StackConfig
from cli.stack import Stack, StackError

#: Starts tried when another process takes a chosen port first.
START_TRIES_MAX = 3
#: A return visit soon, and no answer cut short because the machine is busy.
SETTINGS = {
    "TICKETS_FOLLOW_UP_DELAY_SECONDS": str(FOLLOW_UP_SECONDS),
    "CRM_SCREEN_POP_MS": "5000",
    "ROUTING_CONFIRM_SECONDS": "30",
}


def _clock() -> dict[str, str]:
    """Ten in the morning of today in China, so that no test's "today" ends at midnight under its hands."""
    morning = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0)
    return {
        "CLOCK_SPEED": str(CLOCK_SPEED),
        "CLOCK_ORIGIN_MONOTONIC_MS": str(int(time.monotonic() * 1000)),
        "CLOCK_ORIGIN_BUSINESS_MS": str(int(morning.timestamp() * 1000)),
    }


def _started(run_dir: Path, telemetry: Mapping[str, str]) -> Stack:
    """A healthy stack on free ports, whose processes get the settings `telemetry` too."""
    for attempt in range(1, START_TRIES_MAX + 1):
        base = free_ports(plan.PORT_OFFSET_MAX + 1)[0]
        env = SETTINGS | _clock() | telemetry
        stack = Stack(StackConfig(run_dir=run_dir / str(base), port_base=base, env=env))
        try:
            stack.start()
            return stack
        except (PortInUse, StackError):
            if attempt == START_TRIES_MAX:
                raise
    raise AssertionError("unreachable")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a collector of traces saw, and the settings of who sends to it."""

    #: None where there is no collector: then nothing is sent, and nothing can be asserted.
    spans: Spans | None
    settings: Mapping[str, str]


@pytest.fixture(scope="package")
def collected() -> Iterator[Collected]:
    """A collector for the platform's traces, where its package is installed."""
    program = agent()
    if program is None:
        yield Collected(spans=None, settings={})
        return
    run_dir = Path(tempfile.mkdtemp(prefix="callmesh-collector-"))
    try:
        with collecting(program, run_dir) as (spans, settings):
            yield Collected(spans=spans, settings=settings)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


@pytest.fixture(scope="package")
def spans(collected: Collected) -> Spans:
    """What came out of the collector."""
    if collected.spans is None:
        pytest.skip("needs a collector: pip install rotel")
    return collected.spans


@pytest.fixture(scope="package")
def platform_stack(collected: Collected) -> Iterator[Stack]:
    """The platform with its directory furnished; gone afterwards, whatever happens."""
    if find_mongod() is None or find_rabbitmq_server() is None:
        pytest.skip("needs mongod and rabbitmq-server")
    run_dir = Path(tempfile.mkdtemp(prefix="callmesh-e2e-"))
    try:
        stack = _started(run_dir, collected.settings)
        try:
            asyncio.run(_furnish(stack))
            yield stack
        finally:
            stack.stop(discard=True)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


async def _furnish(stack: Stack) -> None:
    async with Wire(stack) as wire:
        await furnish(wire)


@pytest.fixture(scope="package")
def event_tap(platform_stack: Stack) -> Iterator[EventTap]:
    """Hears every event from its first use on."""
    with EventTap(platform_stack.amqp_uri) as tap:
        yield tap


@pytest_asyncio.fixture
async def wire(platform_stack: Stack) -> AsyncIterator[Wire]:
    """Clients of every server."""
    async with Wire(platform_stack) as wire:
        yield wire
