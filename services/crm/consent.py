"""Consent and the times without contact. Pure.

1. Of the decisions about one channel and purpose the latest by its own time counts; of two at one instant the
   refusal. So decisions may arrive in any order, any number of times.
2. Service is allowed until it is refused; everything else only while a consent for it stands.
3. A quiet window holds in the customer's own time zone, on the days it names; one that ends before it starts
   goes past midnight and belongs to the day on which it starts. It forbids whatever the purpose.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from crm.model import Channel, Consent, Customer, Purpose, QuietWindow, State

EVIDENCE_CHARACTERS_MAX = 300
#: How far ahead the next allowed instant is looked for: two weeks hold every weekly pattern.
LOOK_AHEAD_DAYS = 15
_DAY_MINUTES = 1440

MISSING, WITHDRAWN, EXPIRED = "CONSENT_MISSING", "CONSENT_WITHDRAWN", "CONSENT_EXPIRED"
QUIET, NOT_ACTIVE = "QUIET_WINDOW", "CUSTOMER_NOT_ACTIVE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """Whether a customer may be contacted."""

    #: Why not; () when it is allowed.
    reasons: tuple[str, ...]
    #: First later instant at which it would be allowed, when time alone stands in the way.
    next_allowed: datetime | None = None

    @property
    def allowed(self) -> bool:
        """Nothing stands in the way."""
        return not self.reasons


def with_decision(customer: Customer, decision: Consent) -> Customer:
    """The customer after a decision; the same object when a later one is known already (rule 1)."""
    key = (decision.channel, decision.purpose)
    known = next((c for c in customer.consents if (c.channel, c.purpose) == key), None)
    if known is not None and _order(known) >= _order(decision):
        return customer
    others = [c for c in customer.consents if (c.channel, c.purpose) != key]
    kept = sorted([*others, decision], key=lambda c: (c.channel.value, c.purpose.value))
    return replace(customer, consents=tuple(kept))


def _order(consent: Consent) -> tuple[int, bool, int, str, str]:
    # At one instant the refusal wins, then the earlier end; the rest only makes the order total.
    ends = consent.expires_ms if consent.expires_ms is not None else 1 << 62
    return consent.decided_ms, not consent.granted, -ends, consent.evidence, consent.recorder


def permission(
    customer: Customer, channel: Channel, purpose: Purpose, at: datetime, default_zone: str
) -> Permission:
    """May the customer be contacted by this channel for this purpose at this instant (rules 2 and 3)?"""
    reasons = []
    if customer.state is not State.ACTIVE:
        reasons.append(NOT_ACTIVE)
    lacking = _consent_problem(customer, channel, purpose, at)
    if lacking:
        reasons.append(lacking)
    zone = customer.time_zone or default_zone
    windows = [w for w in customer.quiet_windows if not w.channels or channel in w.channels]
    later = None
    if any(_holds(window, zone, at) for window in windows):
        if not reasons:
            later = _next_allowed(customer, channel, purpose, at, zone, windows)
        reasons.append(QUIET)
    return Permission(reasons=tuple(reasons), next_allowed=later)


def _consent_problem(customer: Customer, channel: Channel, purpose: Purpose, at: datetime) -> str:
    found = next((c for c in customer.consents if (c.channel, c.purpose) == (channel, purpose)), None)
    if found is None:
        return "" if purpose is Purpose.SERVICE else MISSING
    if not found.granted:
        return WITHDRAWN
    at_ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    ended = found.expires_ms is not None and found.expires_ms <= at_ms
    return EXPIRED if ended and purpose is not Purpose.SERVICE else ""


def _holds(window: QuietWindow, zone: str, at: datetime) -> bool:
    local = at.astimezone(zoneinfo.ZoneInfo(zone))
    minute = local.hour * 60 + local.minute
    today, yesterday = local.isoweekday(), (local - timedelta(days=1)).isoweekday()
    if window.end_minute > window.start_minute:
        return _on(window, today) and window.start_minute <= minute < window.end_minute
    begun = _on(window, today) and minute >= window.start_minute
    return begun or (_on(window, yesterday) and minute < window.end_minute)


def _on(window: QuietWindow, weekday: int) -> bool:
    return not window.weekdays or weekday in window.weekdays


def _next_allowed(
    customer: Customer,
    channel: Channel,
    purpose: Purpose,
    at: datetime,
    zone: str,
    windows: list[QuietWindow],
) -> datetime | None:
    """The earliest end of a window after `at` at which none holds and the consent still stands."""
    for moment in sorted(_ends(windows, zone, at)):
        if moment > at and not any(_holds(window, zone, moment) for window in windows):
            return None if _consent_problem(customer, channel, purpose, moment) else moment
    return None


def _ends(windows: list[QuietWindow], zone: str, at: datetime) -> Iterator[datetime]:
    place = zoneinfo.ZoneInfo(zone)
    midnight = datetime.combine(at.astimezone(place).date(), datetime.min.time())
    for day in range(LOOK_AHEAD_DAYS):
        for window in windows:
            # Wall time first, then its instant: a day is not always 24 hours long.
            wall = midnight + timedelta(days=day, minutes=window.end_minute % _DAY_MINUTES)
            if window.end_minute == _DAY_MINUTES:
                wall += timedelta(days=1)
            yield wall.replace(tzinfo=place).astimezone(UTC)
