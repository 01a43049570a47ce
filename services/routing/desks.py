"""The sessions of agents whose desktops' streams this router holds: opened, opened again under a new leader,
closed; and what their desktops are told.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from chassis.errors import CallmeshError, Unavailable
from routing.committed import Committed, NothingTaken
from routing.errors import NewerSession, RouterDraining, error_of
from routing.model import (
    CONNECTED,
    OFFERED,
    AgentState,
    AgentView,
    AskAgent,
    AskCall,
    CloseSession,
    DetachSession,
    Fact,
    OpenSession,
    SessionClosed,
    SessionOpened,
)
from routing.shards import Shards, regions_of, update_of
from routing.streams import Desk, Update
from routing.turnstile import NoTurn, Urgency

if TYPE_CHECKING:
    from routing.links import ShardPort

#: A region that an agent is not of has so long to say that the agent is logged in there, real seconds.
SEAT_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Desks:
    """All agents' sessions of one router. Its methods belong to one event loop."""

    def __init__(
        self,
        router: str,
        ports: Mapping[str, ShardPort],
        shards: Shards,
        *,
        silent_seconds: float,
        leaderless_seconds: float,
    ) -> None:
        """A shard that is gone for `silent_seconds` need not hear that a session has ended; a session that
        finds no leader waits for one for `leaderless_seconds`. Both are real.
        """
        self._router = router
        self._ports = ports
        self._shards = shards
        self._silent_seconds, self._leaderless_seconds = silent_seconds, leaderless_seconds
        self._desks: dict[str, Desk] = {}
        self._draining = False

    def __len__(self) -> int:
        return len(self._desks)

    def __contains__(self, agent: str) -> bool:
        return agent in self._desks

    def get(self, agent: str) -> Desk | None:
        """The agent's session, if it is held here."""
        return self._desks.get(agent)

    def drain(self) -> None:
        """Ends all streams; none is opened any more."""
        self._draining = True
        for desk in self._desks.values():
            desk.push(RouterDraining())

    def open_all_again(self, region: str) -> None:
        """A new leader knows of no session."""
        # One that is being opened just now goes on with that.
        for desk in [d for d in self._desks.values() if d.region == region and d.opened]:
            self._shards.spawn(self._open_again(desk))

    async def open(self, desk: Desk) -> None:
        """Opens or re-attaches an agent's session. Raises AgentNotFound, NewerSession, Unavailable."""
        if self._draining:
            raise RouterDraining()
        older = self._desks.get(desk.agent)
        if older is not None and older.number > desk.number:
            raise NewerSession(subject=f"agents/{desk.agent}", why="its session or command number is higher")
        if older is not None:
            desk.before = older if older.opened else older.before
            older.push(NewerSession(subject=f"agents/{desk.agent}", why="the session was opened again"))
        self._desks[desk.agent] = desk
        try:
            await self._open_first(desk)
        except CallmeshError as error:
            if self._desks.get(desk.agent) is desk and isinstance(error, Unavailable):
                # It may have been opened all the same, and nobody sits there.
                self._shards.spawn(self._detach(desk))
            self._forget(desk)
            raise

    async def _open_first(self, desk: Desk) -> None:
        """Opens a session; one that finds no leader waits for one. Raises as `open`."""
        home = desk.region
        try:
            return await self._open_where_held(desk, home)
        except NothingTaken as error:
            failure = error
        if self._ports[desk.region].up:
            raise failure
        turnstile = self._shards.turnstiles[desk.region]
        try:
            async with turnstile.passage(Urgency.AGENT, self._leaderless_seconds):
                if self._desks.get(desk.agent) is desk:
                    await self._open_where_held(desk, home)
        except NoTurn:
            raise failure from None

    async def _open_where_held(self, desk: Desk, home: str) -> None:
        """Opens a session in the agent's region; in the one that the agent was moved from while its
        conversations are there, for the new one knows nothing of them and would ring who talks. Raises as
        `open`.
        """
        desk.region = await self._holder(desk, home) if desk.calls_held else home
        await self._open(desk)

    async def _holder(self, desk: Desk, home: str) -> str:
        """The region whose shard has the agent in what its desktop says it holds; `home` when none has.
        Raises Unavailable when that one does not answer: which other ones answer does not matter.
        """
        question, held = AskAgent(agent=desk.agent), set(desk.calls_held)
        known = (await self._shards.ask(home, question)).answer.agent
        if known is not None and not held.isdisjoint(known.calls):
            return home
        others = regions_of(*self._ports, besides=home)
        answers = await asyncio.gather(
            *(self._shards.ask(r, question) for r in others), return_exceptions=True
        )
        for region, answer in zip(others, answers, strict=True):
            view = answer.answer.agent if isinstance(answer, Committed) else None
            if view is not None and not held.isdisjoint(view.calls):
                return region
        return home

    async def _open(self, desk: Desk) -> None:
        command = OpenSession(
            agent=desk.agent,
            session=desk.session,
            command=desk.command,
            front=self._router,
            presence=desk.presence,
            pause_reason=desk.pause_reason,
            calls_held=desk.calls_held,
        )
        committed = await self._shards.ask(desk.region, command)
        if committed.answer.refusal is not None:
            raise error_of(committed.answer.refusal, agent=desk.agent)
        desk.opened, desk.before = True, None
        # What rings may be news: the link that was to tell it broke with the leader that had decided it.
        calls = committed.answer.calls
        present = [update_of(committed, call) for call in calls if call.state in (CONNECTED, OFFERED)]
        view = committed.answer.agent
        if not calls and view is not None:
            # A leader of an older release does not say it at once.
            present = await self._present_calls(desk, view.calls)
        elif any(map(desk.has_heard_after, present)):
            # Later blocks were told before the answer had its turn: what it says may be over.
            present = await self._present_calls(desk, [call.facts.call_id for call in calls])
        for update in present:
            if not desk.has_heard_after(update):
                self.tell(desk, update)

    async def _present_calls(self, desk: Desk, call_ids: Iterable[str]) -> list[Update]:
        """What an agent holds of these, asked one by one."""
        answers = [await self._shards.ask(desk.region, AskCall(call_id=call_id)) for call_id in call_ids]
        standing = [(each, each.answer.call) for each in answers if each.answer.call is not None]
        return [
            update_of(answer, call)
            for answer, call in standing
            if call.agent == desk.agent and call.state in (CONNECTED, OFFERED)
        ]

    async def _open_again(self, desk: Desk) -> None:
        async def attach() -> bool:
            try:
                if self._desks.get(desk.agent) is desk:
                    await self._open(desk)
            except Unavailable:
                return False
            except CallmeshError as error:
                desk.push(error)
            return True

        await self._shards.until_done(desk.region, Urgency.AGENT, attach)

    def _forget(self, desk: Desk) -> None:
        if self._desks.get(desk.agent) is desk:
            del self._desks[desk.agent]

    async def close(self, desk: Desk, *, log_out: bool) -> None:
        """The stream ended: a log-out said so, otherwise the session is kept for the grace period."""
        was_current = self._desks.get(desk.agent) is desk
        self._forget(desk)
        if was_current and log_out:
            closed = CloseSession(agent=desk.agent, session=desk.session)
            await self._shards.get_through(desk.region, lambda: closed, self._silent_seconds)
        elif was_current or self._sits_elsewhere(desk):
            await self._detach(desk)

    async def _detach(self, desk: Desk) -> None:
        """Nobody sits there, nor at the stream that this one was to take the place of."""
        for each in (desk, desk.before):
            if each is not None:
                deserted = functools.partial(self._deserted, each)
                await self._shards.get_through(each.region, deserted, self._silent_seconds)

    def _sits_elsewhere(self, desk: Desk) -> bool:
        """Whether the newer session is in a region that knows nothing of the old one: the agent was moved."""
        newer = self._desks.get(desk.agent)
        return newer is not None and newer.region != desk.region

    def _deserted(self, desk: Desk) -> DetachSession | None:
        """That nobody sits there, unless the same session was opened again meanwhile."""
        newer, seat = self._desks.get(desk.agent), (desk.session, desk.region)
        if newer is not None and newer is not desk and (newer.session, newer.region) == seat:
            return None
        return DetachSession(agent=desk.agent, session=desk.session, front=self._router)

    async def agent_status(self, region: str, agent: str) -> Committed:
        """An agent's present state. Raises AgentNotFound, Unavailable."""
        committed = await self._shards.ask(region, AskAgent(agent=agent))
        if committed.answer.refusal is not None:
            raise error_of(committed.answer.refusal, agent=agent)
        return committed

    async def seats_of(self, agent: str, home: str, *, elsewhere: bool = False) -> list[Committed]:
        """What each shard says in which the agent is logged in, that of its own region (`home`) first: who is
        moved to another region, or removed, in a conversation finishes it where it began. `elsewhere`: `home`
        has been asked. Raises Unavailable when no shard says so and one has not answered.
        """
        question = AskAgent(agent=agent)
        regions = [region for region in self._ports if not (elsewhere and region == home)]
        regions.sort(key=lambda region: (region != home, region))
        asked = (self._shards.ask(r, question, SEAT_SECONDS if r != home else None) for r in regions)
        results = await asyncio.gather(*asked, return_exceptions=True)
        found = [r for r in results if isinstance(r, Committed) and is_logged_in(r.answer.agent)]
        for result in results if not found else ():
            if isinstance(result, BaseException):
                raise result
        return found

    def hear(self, desk: Desk, fact: Fact, update: Update) -> None:
        event = fact.event
        if isinstance(event, SessionOpened) and (
            event.front != self._router or event.session != desk.session
        ):
            if (event.session, event.command) >= desk.number:
                desk.push(NewerSession(subject=f"agents/{desk.agent}", why="another desktop logged in"))
                # The session is the other router's now: closing this stream must not detach it.
                self._forget(desk)
            return
        if fact.call is None and update.shard != desk.region:
            # How the agent stands where the session is not: logged out, for one.
            return
        if type(event) is SessionClosed:
            # Logged out, by a supervisor for one: it stays so under the next leader, until opened again.
            desk.opened = False
        self.tell(desk, update)

    def tell(self, desk: Desk, update: Any) -> None:
        """An update for a desktop. Nobody sits at one that reads nothing, however long its stream is open."""
        if isinstance(update, Update):
            desk.heard = (update.shard, update.epoch, update.sequence)
        desk.push(update)
        if desk.updates.cut_off and self._desks.get(desk.agent) is desk:
            log.info("desk_let_go", agent=desk.agent)
            self._shards.spawn(self.close(desk, log_out=False))


def is_logged_in(view: AgentView | None) -> bool:
    """Whether a shard that says this has the agent's session."""
    return view is not None and view.state is not AgentState.OFFLINE
