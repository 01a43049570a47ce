"""What the dialler knows of the world around it, and asks of it. Every method may raise CallmeshError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from routing.planning.pacing import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody to call, reserved for this dialler."""

    #: `contactLists/{contact_list}/contacts/{contact}`.
    contact: str
    #: E.164.
    number: str
    attempt: int
    #: IANA; empty for that of the number.
    zone: str = ""
    #: Skills that the agent needs.
    skills: frozenset[str] = frozenset()
    #: When the reservation ends, business time; 0 for unknown.
    lease_ms: int = 0

    @property
    def contact_list(self) -> str:
        """`contactLists/{contact_list}`."""
        return self.contact.partition("/contacts/")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved:
    """Somebody whom another dialler of this region has reserved, and may have left behind."""

    person: Person
    holder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ListNow:
    """A list that may be called."""

    #: `contactLists/{contact_list}`.
    name: str
    mode: Mode = Mode.PREVIEW
    #: Share of answered calls that may find nobody, over this span.
    abandon_ratio_max: float = 0.03
    abandon_window_ms: int = 86_400_000
    #: Shortest time of an agent in outbound; 0 leaves it to the dialler.
    stint_min_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What came of a list's attempts, over its abandon window."""

    attempts: int = 0
    #: By a person; those abandoned included.
    answered: int = 0
    abandoned: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentNow:
    """An agent who is logged in and not paused."""

    agent: str
    free: bool
    #: Calls held, those in after-call work with them; and whether they are rung.
    calls: frozenset[str] = frozenset()
    rung: bool = False
    since_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorNow:
    """A region at one moment."""

    now_ms: int
    agents: Sequence[AgentNow]
    #: Inbound callers who wait.
    waiting: int
    #: Inbound calls since a moment that does not change within a day.
    offered: int


class LineResult(StrEnum):
    """What came of ringing; the values are those of a contact's results where there is one."""

    ANSWERED = "ANSWERED"
    NO_ANSWER = "NO_ANSWER"
    BUSY = "BUSY"
    MACHINE = "MACHINE"
    WRONG_NUMBER = "WRONG_NUMBER"
    NETWORK_FAILURE = "NETWORK_FAILURE"
    #: Answered, and nobody was there.
    ABANDONED = "ABANDONED"
    #: Nobody knows: the gateway has gone, or does not answer.
    LOST = "LOST"


class Floor(Protocol):
    """Routing, looked at."""

    async def look(self, *, agents: bool = True) -> FloorNow:
        """The region now; without its agents where nobody is to be called."""

    async def blended(self) -> Mapping[str, frozenset[str]]:
        """Who may make outbound calls, with their skills."""


class Lists(Protocol):
    """Marketing's call lists."""

    async def running(self) -> Sequence[ListNow]:
        """Those that may be called; none while outbound is stopped as a whole."""

    async def next(self, count: int, skills: frozenset[str]) -> Sequence[Person]:
        """Reserves contacts that need no skill beyond these, those to be called next first; for so long as
        nobody has begun them.
        """

    async def renew(self, contacts: Sequence[str], *, calling: bool, talk: bool = True) -> Mapping[str, int]:
        """Reserves for the time of a `talk`, or for as long as before, what is reserved already; contact to
        the new end. Those are left out that are not reserved for this dialler any more or, when they are
        about to be called, may not be.
        """

    async def give_back(self, contacts: Sequence[str], holder: str = "", not_before_ms: int = 0) -> None:
        """Contacts that were not called; `holder` is another dialler that had them. Nobody is to have them
        before `not_before_ms`, business time.
        """

    async def reserved(self, name: str) -> Sequence[Reserved]:
        """Who of a list is reserved for other diallers of this region, those that have gone among them."""

    async def record(self, person: Person, result: LineResult, note: str = "") -> None:
        """What came of a contact to whom no agent has spoken, and why where the result does not say."""

    async def results(self, name: str) -> Results:
        """How a list has done lately."""


class Call(Protocol):
    """An outbound call on its way to an agent."""

    #: Routing's id.
    call_id: str
    #: How to reach the agent's seat, once answered.
    address: str

    async def wait_answered(self) -> bool:
        """True when the agent has accepted, False when the call ended before."""

    async def wait_ended(self) -> None:
        """When the conversation is over for routing."""

    async def withdraw(self) -> None:
        """Ends a call that nobody has accepted; one that has been stays."""


class Calls(Protocol):
    """Routing's calls."""

    async def unanswered(self, person: Person) -> bool:
        """Whether the offer that was made of this reservation has ended and nobody has accepted it."""

    async def begin(self, person: Person, agent: str, line: str = "") -> Call:
        """Places a call that waits for this agent; with the `line` on which the person is already."""

    async def end(self, call: Call) -> None:
        """The conversation is over: the person has hung up."""


class Line(Protocol):
    """A telephone line that rings somebody. Its methods raise nothing."""

    line_id: str

    async def wait_result(self) -> LineResult:
        """Once known; in bounded time."""

    def bridge(self, call: Call, agent: str) -> None:
        """Connects whoever answered to the agent's seat."""

    def drop(self, *, abandoned: bool = False) -> None:
        """Hangs up. What has rung until then still ends with a result."""

    async def wait_ended(self) -> None:
        """When the person has hung up."""


class Lines(Protocol):
    """Gateways, if there are any."""

    def capacity(self) -> int:
        """Lines that there are, in use or not."""

    def room(self) -> int:
        """Lines that could ring now."""

    def dial(self, person: Person) -> Line:
        """Rings somebody. Raises Unavailable when there is no room."""


class NoLines:
    """Where no gateway can come."""

    def capacity(self) -> int:
        return 0

    def room(self) -> int:
        return 0

    def dial(self, person: Person) -> Line:
        raise AssertionError("there is no line")
