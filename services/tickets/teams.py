"""Whom of a team the service gives a ticket to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chassis.errors import NotFound
from tickets import desk
from tickets.model import Member, Rules, Ticket
from tickets.store import TicketStore


class Counters(Protocol):
    """Numbers that rise by one for whoever asks."""

    def next(self, name: str) -> int:
        """1 for the first who asks, +1 for each after."""


class Teams:
    """The choice. Safe for threads."""

    def __init__(self, rules: Callable[[], Rules], store: TicketStore, counters: Counters) -> None:
        self._rules = rules
        self._store = store
        self._counters = counters

    def member(self, agent: str) -> Member | None:
        """What is known of an agent, from any of the agent's teams; None for one who is in none."""
        found = [one for team in self._rules().teams.values() for one in team.members if one.agent == agent]
        if not found:
            return None
        skills = frozenset().union(*(one.skills for one in found))
        return Member(agent=agent, skills=skills, open_max=max(one.open_max for one in found))

    def check(self, team_id: str, ticket: Ticket) -> None:
        """NotFound unless there is such a team, or the ticket lies with it already."""
        if team_id and team_id != ticket.team and team_id not in self._rules().teams:
            raise NotFound(resource=f"teams/{team_id}")

    def choose(self, team_id: str, ticket: Ticket, *, in_turn: bool) -> str:
        """The member whose turn it is, or who has the fewest open tickets, of those with the skills and room
        for it. NotFound, NobodyFree."""
        team = self._rules().teams.get(team_id)
        if team is None:
            raise NotFound(resource=f"teams/{team_id}")
        load = self._store.loads([member.agent for member in team.members])
        able = desk.able(team.members, ticket, load)
        if not in_turn:
            return desk.least_loaded(able, load).agent
        turn = self._counters.next(f"turn/{team_id}") - 1
        return desk.next_in_turn(team.members, able, turn).agent
