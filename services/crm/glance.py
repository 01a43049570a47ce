"""The customer in one glance: offers to show, calls of today, words to say. Pure.

1. The newest ranking of offers counts. An offer that the customer has answered since is not shown again, nor
   is anything past its time. Rankings and answers may come in any order, any number of times.
2. "Today" is the day of the customer's time zone, by the business clock. The live call is not one of the
   earlier calls, but it has its ordinal: two earlier calls make it the third.
3. Texts are in the language that the customer reads, Chinese or English.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from crm.model import CachedOffer, CallState, Interaction, OfferRanking, RecentCalls

#: Most answers remembered beside an offer ranking; the newest stay.
ANSWERS_MAX = 50
#: Offers, and open tickets, that a screen pop shows.
POP_OFFERS_MAX = 5
POP_TICKETS_MAX = 20


def with_ranking(
    known: OfferRanking, stamp: tuple[int, str], offers: tuple[CachedOffer, ...], expires_ms: int | None
) -> OfferRanking:
    """The ranking after one more was made; the same object when it is not newer (rule 1)."""
    if stamp <= known.stamp:
        return known
    return replace(
        known,
        stamp=stamp,
        offers=offers,
        expires_ms=expires_ms,
        answers=_newest_answers(known.answers, stamp[0]),
    )


def with_answer(known: OfferRanking, offer: str, answered_ms: int) -> OfferRanking:
    """The ranking after the customer answered an offer; the same object when that tells nothing new."""
    told = dict(known.answers)
    told[offer] = max(answered_ms, told.get(offer, answered_ms))
    answers = _newest_answers(told, known.stamp[0])
    return known if answers == known.answers else replace(known, answers=answers)


def _newest_answers(answers: Mapping[str, int], since_ms: int) -> dict[str, int]:
    live = [(at_ms, offer) for offer, at_ms in answers.items() if at_ms >= since_ms]
    return {offer: at_ms for at_ms, offer in sorted(live, reverse=True)[:ANSWERS_MAX]}


def offers_to_show(rankings: Iterable[OfferRanking], now_ms: int) -> tuple[CachedOffer, ...]:
    """The best offers of the newest ranking that may still be shown; () when there is none."""
    made = [ranking for ranking in rankings if ranking.stamp[0]]
    if not made:
        return ()
    answered = {offer for ranking in made for offer in ranking.answers}
    newest = max(made, key=lambda ranking: ranking.stamp)
    if newest.expires_ms is not None and newest.expires_ms <= now_ms:
        return ()
    return tuple(offer for offer in newest.offers if offer.offer not in answered)[:POP_OFFERS_MAX]


_TICKET_PRIORITIES = {"URGENT": 0, "HIGH": 1, "NORMAL": 2, "LOW": 3}
_NEVER_MS = 1 << 62


def day_start_ms(now: datetime, zone: str) -> int:
    """The first instant of today in an IANA time zone, ms since 1970."""
    place = zoneinfo.ZoneInfo(zone)
    midnight = datetime.combine(now.astimezone(place).date(), datetime.min.time(), tzinfo=place)
    return (midnight.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def most_urgent(tickets: Iterable[Interaction]) -> tuple[Interaction, ...]:
    """Open tickets for a screen: by priority, then due time, then age; at most `POP_TICKETS_MAX`."""

    def urgency(ticket: Interaction) -> tuple[int, int, int, str]:
        rank = _TICKET_PRIORITIES.get(str(ticket.detail.get("priority", "")), 2)
        due_ms = ticket.detail.get("due_ms")
        return rank, due_ms if due_ms is not None else _NEVER_MS, ticket.began_ms, ticket.id

    return tuple(sorted(tickets, key=urgency)[:POP_TICKETS_MAX])


def pop_language(tag: str, default: str) -> str:
    """What the customer reads, "zh" or "en": English for other languages, `default` for an unknown one."""
    if not tag:
        return default
    return "zh" if tag.split("-")[0] == "zh" else "en"


def greeting(language: str, name: str, now: datetime, zone: str, *, again: bool) -> str:
    """One line to say first, by the hour where the customer is."""
    hour = now.astimezone(zoneinfo.ZoneInfo(zone)).hour
    if language == "zh":
        hello = "早上好" if 5 <= hour < 12 else "下午好" if 12 <= hour < 18 else "晚上好"
        thanks = "感谢您再次来电" if again else "感谢您的来电"
        return (
            f"{name}，{hello}，{thanks}，请问有什么可以帮您？"
            if name
            else f"您好，{hello}，{thanks}，请问有什么可以帮您？"
        )
    hello = "Good morning" if 5 <= hour < 12 else "Good afternoon" if 12 <= hour < 18 else "Good evening"
    thanks = "thank you for calling again" if again else "thank you for calling"
    return f"{hello}{', ' + name if name else ''}, {thanks}. How can I help you?"


def repeat_notice(language: str, calls: RecentCalls, zone: str) -> str:
    """Such as "third call today, last at 10:42, not resolved"; "" at the first call of the day."""
    if not calls.today or calls.last is None:
        return ""
    place = zoneinfo.ZoneInfo(zone)
    began = datetime.fromtimestamp(calls.last.began_ms / 1000, tz=UTC).astimezone(place).strftime("%H:%M")
    ordinal = calls.today + 1
    outcome = _outcome_words(language, calls.last)
    if language == "zh":
        return "，".join(part for part in (f"今天第{ordinal}次来电", f"上次 {began}", outcome) if part)
    return ", ".join(
        part for part in (f"{_ordinal(ordinal)} call today", f"last at {began}", outcome) if part
    )


def _outcome_words(language: str, call: Interaction) -> str:
    words = {
        "resolved": ("已解决", "resolved"),
        "unresolved": ("未解决", "not resolved"),
        CallState.ABANDONED.value: ("未接通", "not answered"),
        CallState.REFUSED.value: ("未接通", "not answered"),
        CallState.INTERRUPTED.value: ("通话中断", "cut off"),
    }
    resolved = call.detail.get("resolved")
    key = str(call.detail.get("state", "")) if resolved is None else "resolved" if resolved else "unresolved"
    zh, en = words.get(key, ("", ""))
    return zh if language == "zh" else en


_ORDINALS = (
    "",
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)


def _ordinal(number: int) -> str:
    if number < len(_ORDINALS):
        return _ORDINALS[number]
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
