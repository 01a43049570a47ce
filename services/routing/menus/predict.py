"""What one caller will want: the personal first level; what to tell while waiting; when to call back. Pure.

1. A leaf's weight for a caller falls by half every `HALF_LIFE_MS` since each use. A leaf used within
   `REPEAT_MS` counts `REPEAT_FACTOR` times: who calls again soon calls about the same. An open ticket gives
   the leaves about open tickets the weight `TICKET_WEIGHT`. What is not known weighs `PRIOR_WEIGHT`: so
   much history is needed before it is believed.
2. A personal level is told only when it is expected to spare the caller time: keys pressed and prompts
   listened to, those that others pass by included. Whether it stands before the root, and how long it is,
   is what costs least.
3. Among equals the order is that of the ids, so the same history gives the same level: regular callers find
   what they know.
4. A promotion is told only when it ends before the wait is expected to end, so that it never lengthens the
   way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from routing.announcements import announcement
from routing.menus.check import choice_seconds
from routing.menus.engine import OTHERS_KEY, PERSONAL_MAX, Personal
from routing.menus.model import Act, Index, Menu, Promotion, primary, seconds_of

DAY_MS = 86_400_000
HALF_LIFE_MS = 30 * DAY_MS
REPEAT_MS, REPEAT_FACTOR = DAY_MS, 3.0
TICKET_WEIGHT = 2.0
PRIOR_WEIGHT = 1.0
#: Uses of one caller that are looked at.
HISTORY_MAX = 50
#: What finding and pressing a key takes, seconds.
PRESS_SECONDS = 1.0
#: A wait must be longer than a promotion by this, seconds.
MARGIN_SECONDS = 3.0
#: Call-backs are offered on the hour, from the first to before the last, local time.
FIRST_HOUR, LAST_HOUR = 9, 20
#: Times offered, the first being as soon as possible; earliest of the others from now.
TIMES_MAX = 4
TIMES_AFTER = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A leaf that the caller reached once."""

    leaf: str
    at_ms: int


def wants(index: Index, uses: Iterable[Use], has_open_ticket: bool, now_ms: int) -> dict[str, float]:
    """Probability of each leaf for this caller; what is missing to 1 is for all others together (rule 1)."""
    weights: dict[str, float] = {}
    for use in list(uses)[-HISTORY_MAX:]:
        node = index.nodes.get(use.leaf)
        # Leaves only: a node that became a level since says less than its level itself does.
        if node is None or not node.leaf or node.act is Act.LINK:
            continue
        age = max(0, now_ms - use.at_ms)
        weight = 0.5 ** (age / HALF_LIFE_MS) * (REPEAT_FACTOR if age < REPEAT_MS else 1.0)
        weights[use.leaf] = weights.get(use.leaf, 0.0) + weight
    about = index.about_tickets if has_open_ticket else ()
    for id in about:
        weights[id] = weights.get(id, 0.0) + TICKET_WEIGHT / len(about)
    total = sum(weights.values()) + PRIOR_WEIGHT
    return {id: weight / total for id, weight in weights.items()}


def personal_level(
    index: Index, probabilities: Mapping[str, float], language: str, own: Collection[str] = ()
) -> Personal | None:
    """The personal level that spares most; None when none spares anything (rules 2 and 3). It leaves the keys
    of `own` short cuts alone: their caller knows them by heart.
    """
    deeper = [id for id in probabilities if index.levels(id) > 1]
    likely = sorted(deeper, key=lambda id: (-probabilities[id], id))
    root = {child.digit for child in index.menu.root.children}
    kept = set(own) - root
    free = [key for key in "123456789" if key not in root | kept]
    # Before the root one key has to be free for everything else.
    ahead = [key for key in "12345678" if key not in kept] if OTHERS_KEY not in kept else []
    best: tuple[float, Personal] | None = None
    for count in range(1, min(PERSONAL_MAX, len(likely)) + 1):
        chosen = likely[:count]
        for before in (False, True):
            keys = (ahead if before else free)[:count]
            if len(keys) < count:
                continue
            level = Personal(choices=tuple(zip(keys, chosen, strict=True)), before=before)
            gain = _gain(index, level, probabilities, language)
            if gain > 0 and (best is None or gain > best[0] + 1e-9):
                best = (gain, level)
    return best[1] if best is not None else None


def _gain(index: Index, level: Personal, probabilities: Mapping[str, float], language: str) -> float:
    """Seconds that a level is expected to spare a caller, against none."""
    told, gain, hit = 0.0, 0.0, 0.0
    for key, id in level.choices:
        told += choice_seconds(index.nodes[id], key, language)
        gain += probabilities[id] * (seconds_to(index, id, language) - told - PRESS_SECONDS)
        hit += probabilities[id]
    # Everybody else hears the level in vain, and presses a key to leave one that stands before the root.
    vain = told + (PRESS_SECONDS + seconds_of("For everything else, press 9.", "en") if level.before else 0.0)
    return gain - (1 - hit) * vain


def seconds_to(index: Index, id: str, language: str) -> float:
    """How long the way to a node takes: on each level the prompts up to one's own, and a key."""
    took = 0.0
    for parent, child in itertools.pairwise(index.way(id)):
        if index.nodes[parent].leaf:
            # A link takes nobody's time.
            continue
        for each in index.nodes[parent].children:
            took += choice_seconds(each, each.digit, language)
            if each.id == child:
                break
        took += PRESS_SECONDS
    return took


# --- while waiting ---


def promotion_seconds(promotion: Promotion, language: str) -> float:
    """How long a promotion takes to say in the words that this caller hears."""
    if promotion.span_ms:
        return promotion.span_ms / 1000
    words = announcement(promotion.prompts, language)
    spoken = next((tag for tag, text in promotion.prompts if text == words), language)
    return seconds_of(words, spoken)


def choose_promotion(
    menu: Menu, wait_seconds: float | None, language: str, heard: Collection[str], offers: Sequence[str]
) -> Promotion | None:
    """The first that suits and fits into the wait: of the offers named, in their order, else in the menu's
    order (rule 4).
    """
    if wait_seconds is None or not math.isfinite(wait_seconds):
        return None
    left = wait_seconds - MARGIN_SECONDS
    fitting = [p for p in menu.promotions if p.id not in heard and promotion_seconds(p, language) <= left]
    rank = {offer: place for place, offer in enumerate(offers)}
    order = {promotion.id: place for place, promotion in enumerate(menu.promotions)}
    return min(fitting, key=lambda p: (rank.get(p.offer, len(rank)), order[p.id]), default=None)


# --- call-backs ---


def callback_times(now: datetime) -> tuple[int, ...]:
    """Times that can be chosen, ms since 1970: 0 (as soon as possible) within hours, then full hours within
    them. `now` is in the caller's zone.
    """
    soon = (0,) if FIRST_HOUR <= now.hour < LAST_HOUR else ()
    at = (now + TIMES_AFTER).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    found: list[int] = []
    while len(found) < TIMES_MAX - len(soon):
        if FIRST_HOUR <= at.hour < LAST_HOUR:
            found.append(int(at.timestamp()) * 1000)
        at += timedelta(hours=1)
    return (*soon, *found)


def say_time(at_ms: int, now: datetime, language: str) -> str:
    """A time to choose, in words; `now` is in the zone that is meant."""
    chinese = primary(language) == "zh"
    if not at_ms:
        return "尽快回电" if chinese else "a call as soon as possible"
    at = datetime.fromtimestamp(at_ms / 1000, now.tzinfo)
    days = (at.date() - now.date()).days
    if chinese:
        day = {0: "今天", 1: "明天"}.get(days, f"{at.month}月{at.day}日")
        return f"{day}{at.hour}点"
    day = {0: "today", 1: "tomorrow"}.get(days, at.strftime("%-d %B"))
    return f"{day} at {at.hour}:00"
