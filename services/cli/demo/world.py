"""One demo from beginning to end on a stack that stands: furnish, replay, lose a region, get it back, count.

The replay's clock runs on the business clock of the stack (same origins, same speed). All simulated callers
and desktops
live in this process on one event loop; each is a task that mostly sleeps.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from callmesh.tickets.v1 import ticket_service_pb2, ticket_service_pb2_grpc
from cli.demo import furnish, ledger
from cli.demo.agent import AgentContext, Desktop
from cli.demo.desk import Desk
from cli.demo.edge import Edge, EdgeContext
from cli.demo.events import EventCounter, EventFigures
from cli.demo.figures import service_figures
from cli.demo.ledger import Fact, Ledger
from cli.demo.live import LiveView, Scoreboard, Snapshot
from cli.demo.media import Media
from cli.demo.model import REGIONS, Day
from cli.demo.report import Figure
from cli.demo.rpc import DEADLINE_SECONDS, Channels
from cli.demo.timing import ReplayClock

#: Real seconds between the end of furnishing and the first arrival, in which the first agents log in.
LEAD_SECONDS = 2.0
#: The region is lost, and its router started again, at these shares of the window.
KILL_AT = 0.5
RESTART_AT = 0.75
#: After the window: business seconds in which the last calls may end, and real seconds on top.
TAIL_BUSINESS_SECONDS = 3600.0
TAIL_REAL_SECONDS = 15.0
#: The last events may take this long to be consumed, real seconds.
SETTLE_SECONDS_MAX = 30.0
#: The live view is drawn so often, real seconds.
DRAW_SECONDS = 0.5
#: Pages of tickets read at most for the count.
TICKET_PAGES_MAX = 1000
#: Errors of simulated parties that are shown.
ERRORS_SHOWN_MAX = 5


class StackLike(Protocol):
    """What the demo needs of a stack; all of it may block."""

    def address(self, service: str, region: str | None = None) -> str: ...

    def http_address(self, name: str) -> str: ...

    def kill(self, name: str) -> None: ...

    def restart(self, name: str) -> None: ...

    @property
    def amqp_uri(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is to be shown."""

    #: The day.
    day: Day
    #: Decides jitter, offers, tickets.
    seed: int
    #: Region to lose, None for none.
    kill: str | None
    #: Business seconds in a real one.
    speed: float
    #: Names of the stack's processes that have /metrics.
    processes: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What the demo found."""

    #: For the report, without the verdict.
    figures: dict[str, Figure]
    #: The edges' book.
    ledger: Ledger
    #: Sentences worth reading.
    remarks: list[str]


@dataclass(kw_only=True, slots=True)
class _Incident:
    """The loss of a region, in real (monotonic) seconds."""

    region: str
    killed_at: float = math.nan
    back_at: float = math.nan


@dataclass(kw_only=True, slots=True)
class _State:
    """What the parts of a running demo share."""

    regions: dict[str, str] = field(default_factory=lambda: {plan.id: "up" for plan in REGIONS})
    headline: str = ""
    incident: _Incident | None = None
    errors: list[str] = field(default_factory=list)
    unfinished: int = 0


def preference(home: str) -> list[str]:
    """All regions as an edge in `home` prefers their routers: its own, then by distance."""
    places = {plan.id: (plan.latitude, plan.longitude) for plan in REGIONS}
    return sorted(places, key=lambda region: (region != home, math.dist(places[home], places[region])))


class World:
    """A demo on a running stack."""

    def __init__(self, setup: Setup, stack: StackLike, clock: Any, view: LiveView) -> None:
        """`clock`: the business clock with the stack's own origins and speed."""
        self._setup = setup
        self._stack = stack
        self._clock = clock
        self._view = view
        self._state = _State()
        self._media = Media(dict(setup.day.agent_regions))
        self._ledger = Ledger()
        self._prefix = f"demo-{int(time.time())}-"
        self._home_of = {f"{self._prefix}{call.id}": call.home_region for call in setup.day.calls}
        self._board = Scoreboard(home_of=self._home_of, window_seconds=float(setup.day.window_seconds))
        self._service_due: dict[str, float] = {}

    async def run(self) -> Outcome:
        """Everything. Cancelled at any moment, it leaves no task behind; the stack is the caller's."""
        addresses = {region.id: self._stack.address("routing", region.id) for region in REGIONS}
        others = {name: self._stack.address(name) for name in ("crm", "tickets", "marketing")}
        async with Channels({**addresses, **others}) as channels:
            self._say("loading directory, customers and offers")
            customers = await furnish.everything(
                routing=channels[REGIONS[0].id],
                crm=channels["crm"],
                marketing=channels["marketing"],
                plans=REGIONS,
                day=self._setup.day,
                seed=self._setup.seed,
            )
            events = EventCounter(
                {name: self._stack.http_address(name) for name in self._setup.processes}, self._stack.amqp_uri
            )
            desk, agents = await self._replay(channels, events)
            self._say("waiting until the last events are consumed")
            settled = await events.settle(SETTLE_SECONDS_MAX)
            tickets = await self._count_tickets(channels["tickets"])
            figures = self._figures(desk, agents, settled, tickets, customers)
        return Outcome(figures=figures, ledger=self._ledger, remarks=self._remarks(desk, agents))

    # --- replay
    # ----------------------------------------------------------------------------------------------------

    async def _replay(self, channels: Channels, events: EventCounter) -> tuple[Desk, AgentContext]:
        setup = self._setup
        start_ms = self._clock.now_ms() + int(LEAD_SECONDS * 1000 * setup.speed)
        clock = ReplayClock(self._clock, start_ms)
        type_of = {f"{self._prefix}{call.id}": call.type for call in setup.day.calls}
        desk = Desk(crm=channels["crm"], marketing=channels["marketing"], type_of=type_of, seed=setup.seed)
        agents = AgentContext(
            channels=channels,
            clock=clock,
            media=self._media,
            service_due=self._service_due,
            desk=desk,
            seed=setup.seed,
        )
        desktops = self._desktops(agents)
        edges = self._edges(channels, clock)
        self._state.headline = ""
        async with _Tasks(self._state.errors) as tasks:
            tasks.start(*(desktop.run() for desktop in desktops))
            callers = tasks.start(*(edge.run() for edge in edges))
            tasks.start(self._draw(clock, desktops))
            if setup.kill is not None:
                tasks.start(self._lose_and_restore(setup.kill, clock, events))
            await self._last_call(callers, clock)
        self._board.feed(self._ledger.entries)
        return desk, agents

    def _desktops(self, context: AgentContext) -> list[Desktop]:
        day = self._setup.day
        duties: dict[str, list[Any]] = {}
        for duty in day.duties:
            duties.setdefault(duty.agent, []).append(duty)
        return [
            Desktop(context, agent, day.agent_regions[agent], rows) for agent, rows in sorted(duties.items())
        ]

    def _edges(self, channels: Channels, clock: ReplayClock) -> list[Edge]:
        context = EdgeContext(
            channels=channels,
            preference={plan.id: preference(plan.id) for plan in REGIONS},
            clock=clock,
            ledger=self._ledger,
            media=self._media,
            queue_of=furnish.queue_of,
            prefix=self._prefix,
            seed=self._setup.seed,
            service_due=self._service_due,
        )
        return [Edge(context, call) for call in self._setup.day.calls]

    async def _last_call(self, callers: Sequence[asyncio.Task[None]], clock: ReplayClock) -> None:
        """Returns when every call is over, or the demo's time is; those not over then are counted."""
        if not callers:
            return
        end = self._setup.day.window_seconds + TAIL_BUSINESS_SECONDS
        _, late = await asyncio.wait(callers, timeout=clock.real_until(end) + TAIL_REAL_SECONDS)
        self._state.unfinished = len(late)

    async def _lose_and_restore(self, region: str, clock: ReplayClock, events: EventCounter) -> None:
        """Kills the region's router with its agents halfway, starts it again at three quarters."""
        window, name = self._setup.day.window_seconds, f"routing-{region}"
        await clock.sleep_until(window * KILL_AT)
        await events.remember(name)
        incident = self._state.incident = _Incident(region=region)
        incident.killed_at = clock.monotonic()
        await asyncio.to_thread(self._stack.kill, name)
        self._media.lose(region)
        self._state.regions[region] = "lost"
        self._say(f"{region} is lost: its router killed (SIGKILL), its agents gone, conversations broken off")
        await clock.sleep_until(window * RESTART_AT)
        self._state.regions[region] = "coming back"
        self._say(f"{region} is being started again")
        incident.back_at = clock.monotonic()
        await asyncio.to_thread(self._stack.restart, name)
        self._media.restore(region)
        self._state.regions[region] = "up"
        self._say(f"{region} is back")

    async def _draw(self, clock: ReplayClock, desktops: Sequence[Desktop]) -> None:
        day = self._setup.day
        while True:
            self._board.feed(self._ledger.entries)
            agents: dict[str, Counter[str]] = {}
            for desktop in desktops:
                agents.setdefault(desktop.region, Counter())[desktop.state] += 1
            now = max(0.0, clock.business())
            self._view.show(
                self._board,
                Snapshot(
                    day_seconds=day.window_start_seconds + now,
                    progress=min(1.0, now / day.window_seconds),
                    regions=self._state.regions,
                    agents=agents,
                    headline=self._state.headline,
                ),
                clock.monotonic(),
            )
            await asyncio.sleep(DRAW_SECONDS)

    def _say(self, text: str) -> None:
        self._state.headline = text
        self._view.say(text)

    # --- counting
    # --------------------------------------------------------------------------------------------------

    async def _count_tickets(self, channel: grpc.aio.Channel) -> int:
        """Tickets in the service, by its own list."""
        stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
        count, token = 0, ""
        for _ in range(TICKET_PAGES_MAX):
            page = await stub.ListTickets(
                ticket_service_pb2.ListTicketsRequest(page_size=1000, page_token=token),
                timeout=DEADLINE_SECONDS,
            )
            count, token = count + len(page.tickets), page.next_page_token
            if not token:
                break
        return count

    def _figures(
        self, desk: Desk, agents: AgentContext, events: EventFigures, tickets: int, customers: int
    ) -> dict[str, Figure]:
        tally = ledger.tally(self._ledger, self._home_of)
        service = service_figures(tally.answered_waits, tally.abandoned_waits)
        booked = ledger.double_booked(ledger.conversations(self._ledger)) | ledger.double_booked(agents.book)
        made = desk.figures
        figures: dict[str, Figure] = {
            "calls_offered": tally.offered,
            "calls_answered": service.answered,
            "calls_abandoned": service.abandoned,
            "calls_refused": sum(tally.refused.values()),
            "asa_seconds": service.asa_seconds,
            "service_level_ratio": service.service_level_ratio,
            "answered_at_home_ratio": tally.answered_at_home / service.answered if service.answered else 0.0,
            "calls_rerouted": tally.rerouted,
            "calls_reopened": tally.reopened,
            "calls_interrupted": tally.interrupted,
            "calls_lost": len(ledger.lost_calls(self._ledger)),
            "acknowledge_p50_ms": _median(tally.acknowledge_milliseconds),
            "calls_unacknowledged": tally.unacknowledged,
            "calls_untaken": len(ledger.untaken_calls(self._ledger)),
            "calls_unfinished": self._state.unfinished,
            "agents_double_booked": len(booked),
            "simulator_errors": len(self._state.errors),
            "tickets_opened": tickets,
            "tickets_asked": made.tickets_asked,
            "offers_made": made.offers_made,
            "offers_accepted": made.offers_accepted,
            "screen_pops": made.pops,
            "screen_pops_known": made.pops_known,
            "screen_pop_p50_ms": _median(made.pop_milliseconds),
            "repeat_callers": made.repeat_callers,
            "desk_errors": dict(made.errors),
            "agent_commands_refused": dict(agents.refusals),
            "refusals": dict(tally.refused),
            "reopened_why": dict(tally.reopened_why),
            "customers_loaded": customers,
            "agents": len(self._setup.day.agent_regions),
        }
        return figures | _event_figures(events) | self._recovery_figures()

    def _recovery_figures(self) -> dict[str, Figure]:
        incident = self._state.incident
        if incident is None or math.isnan(incident.killed_at):
            return {"region_killed": None}
        found = ledger.recovery(self._ledger, incident.region, incident.killed_at, self._home_of)
        back = next(
            (
                entry.at - incident.back_at
                for entry in self._ledger.entries
                if entry.fact is Fact.BRIDGED
                and entry.region == incident.region
                and entry.at > incident.back_at
            ),
            None,
        )
        return {
            "region_killed": incident.region,
            "calls_affected": found.affected,
            "recovery_real_seconds": found.worst_seconds,
            "first_new_call_real_seconds": found.first_new_call_seconds,
            "return_real_seconds": back,
            "region_callers_answered_by": found.answered_by,
        }

    def _remarks(self, desk: Desk, agents: AgentContext) -> list[str]:
        """What a reader should know besides the figures."""
        why = ledger.tally(self._ledger, self._home_of).reopened_why
        remarks = [f"error of a simulated party: {text}" for text in self._state.errors[:ERRORS_SHOWN_MAX]]
        remarks += [f"calls opened again: {n} x {text}" for text, n in list(why.items())[:ERRORS_SHOWN_MAX]]
        remarks += [f"call lost: {call}" for call in ledger.lost_calls(self._ledger)[:ERRORS_SHOWN_MAX]]
        remarks += [f"desk: {count} x {what}" for what, count in sorted(desk.figures.errors.items())]
        remarks += [f"desktop commands refused: {n} x {why}" for why, n in sorted(agents.refusals.items())]
        return remarks


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _event_figures(events: EventFigures) -> dict[str, Figure]:
    return {
        "events_published": sum(events.published.values()),
        "events_consumed": sum(events.consumed.values()),
        "events_dead_lettered": events.dead,
        "events_unconsumed": events.waiting + events.backlog,
        "events_duplicated": events.duplicates,
        "events_retried": events.retried,
        "events_unroutable": events.unroutable,
        "events_published_by": dict(events.published),
        "events_published_by_type": dict(events.published_types),
        "events_consumed_by": dict(events.consumed),
    }


class _Tasks:
    """Tasks that end with the block; an exception in one is noted, and does not take the others along."""

    def __init__(self, errors: list[str]) -> None:
        self._errors = errors
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *works: Awaitable[None]) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self._guard(work)) for work in works]
        self._tasks += tasks
        return tasks

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}"[:500])

    async def __aenter__(self) -> _Tasks:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
