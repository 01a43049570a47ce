"""What a caller's history is worth when the call comes: points for the customer's tier and for calling
again. Pure.

1. A tier gives its points (`PRIORITY_BY_TIER`).
2. Whoever calls again because the matter is not settled gets the queue's `repeat_points` for each call of
   the same number that ended within the window, newest first, up to the last one that an agent said was
   resolved. A call of which nobody said so counts: calling again says that it was not. At most
   `REPEAT_CALLS_COUNTED_MAX` count.
3. The call itself, under whatever attempt, is no earlier call.
4. A customer belongs to the region that crm's record names. It is usually served by the region whose agents
   talked with it most often lately: `USUAL_CALLS_MIN` of the last `USUAL_CALLS_LOOKED_AT`. Once a region is
   the usual one it stays so until another one is: of older calls the newest that show one count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: Priority points by tier; a point is worth the queue's priority credit of waiting.
PRIORITY_BY_TIER = {"vip": 4, "platinum": 3, "gold": 2, "silver": 1}
#: Calls of a number that are remembered, and those of them that give points.
RECENT_CALLS_MAX, REPEAT_CALLS_COUNTED_MAX = 10, 5
#: A call that ended longer ago is none of these, business milliseconds.
REPEAT_WINDOW_MS = 86_400_000
#: Where points come from, as explanations name it.
TIER, REPEAT_CALLER = "TIER", "REPEAT_CALLER"
#: Fields of a stored profile that `known_of` reads.
FIELDS = {"priority": 1, "calls": 1, "region": 1}

#: Of so many answered calls in a row, so many show where a customer is usually served: more than half, so
#: that there is one such region at most.
USUAL_CALLS_LOOKED_AT, USUAL_CALLS_MIN = 5, 3

Points = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentCall:
    """An earlier call of a number."""

    #: The edge's id.
    call_id: str
    #: When it ended, business milliseconds since 1970; 0 when only the agent's word was heard of so far.
    ended_ms: int = 0
    #: When an agent last said that it was resolved; 0 if nobody did.
    resolved_ms: int = 0
    #: Region whose agent talked with the caller; empty if none did.
    region: str = ""

    @property
    def at_ms(self) -> int:
        """The last that was heard of it."""
        return max(self.ended_ms, self.resolved_ms)

    @property
    def resolved(self) -> bool:
        """Settled: whoever handed the call on before it ended has no say in that."""
        return bool(self.resolved_ms) and self.resolved_ms >= self.ended_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCaller:
    """What routing knows of a number."""

    #: Points of its customer's tier.
    tier_points: int = 0
    #: Newest first, at most `RECENT_CALLS_MAX`.
    calls: tuple[RecentCall, ...] = ()
    #: Region that the customer belongs to; empty if crm names none.
    region: str = ""


#: A number that nobody knows.
STRANGER = KnownCaller()


class Profiles(Protocol):
    """What routing knows of customers."""

    async def caller(self, number: str) -> KnownCaller:
        """What is known of an E.164 number, STRANGER for nothing. Never raises and never waits long: routing
        waits for nobody.
        """


def known_of(row: Mapping[str, Any]) -> KnownCaller:
    """A stored profile, of which `FIELDS` are read."""
    return KnownCaller(
        tier_points=int(row.get("priority") or 0), calls=calls_of(row), region=row.get("region") or ""
    )


def calls_of(row: Mapping[str, Any]) -> tuple[RecentCall, ...]:
    """Recent calls of a stored profile, newest first."""
    calls = (
        RecentCall(
            call_id=each["id"],
            ended_ms=each.get("ended_ms", 0),
            resolved_ms=each.get("resolved_ms", 0),
            region=each.get("region", ""),
        )
        for each in row.get("calls") or ()
    )
    return tuple(sorted(calls, key=lambda call: call.at_ms, reverse=True))


def unsettled(known: KnownCaller, call_id: str, since_ms: int) -> int:
    """Earlier calls that ended since `since_ms` and after the last resolved one, besides `call_id` itself."""
    count = 0
    for call in known.calls:
        if call.resolved or call.at_ms < since_ms or count == REPEAT_CALLS_COUNTED_MAX:
            break
        count += call.call_id != call_id
    return count


def points(known: KnownCaller, call_id: str, since_ms: int, repeat_points: int) -> Points:
    """What to add to a call's own priority, by where it comes from; nothing that is 0. `since_ms` is where
    the window of recent calls begins, `repeat_points` what the queue gives for each.
    """
    if known is STRANGER:
        return ()
    repeat = repeat_points * unsettled(known, call_id, since_ms) if repeat_points else 0
    return tuple(
        (name, value) for name, value in ((REPEAT_CALLER, repeat), (TIER, known.tier_points)) if value
    )


def usual_region(known: KnownCaller) -> str:
    """The region that usually serves the caller; empty if none does."""
    served = [call.region for call in known.calls if call.region]
    for newest in range(len(served) - USUAL_CALLS_MIN + 1):
        looked_at = served[newest : newest + USUAL_CALLS_LOOKED_AT]
        region = max(looked_at, key=looked_at.count)
        if looked_at.count(region) >= USUAL_CALLS_MIN:
            return region
    return ""
