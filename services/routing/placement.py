"""Which region takes a call: a pure, explainable ranking. No clock, no randomness, no I/O.

Rules, in this order:
1. **Home.** The region with the longest served prefix of the caller's number; else the one whose served area
   fits the place most finely (city before province before country; of equals the nearer); else the nearest,
   if the place is known finely enough to tell: when it is known to a country only and the two nearest regions
   differ in distance by less than the country's radius, nobody is home.
2. **Skipped** are regions that are down, drained, closed, at weight 0, or do not serve the queue. A home that
   is skipped leaves the call to the others by rule 5; it is reported as home all the same.
3. **Home stays first** while its expected wait is within the queue's threshold, or a fitting agent is free
   there, or nothing fresh is known of it: silence is no evidence of a queue, and a region that is gone is
   marked down by whoever watches it. A home that does not speak the caller's language while another region
   does is not preferred.
4. **Overflow.** Past the threshold, regions with a free fitting agent come first, then all by cost, home too:
   a call leaves a queue only for a better one. While nobody is free anywhere another region's queue must be
   `leave_seconds` better than home's: whoever waits at home moves as soon as somebody elsewhere is free, so
   little is won by waiting elsewhere, and home would lose a call that it can answer. Overflow once begun goes
   on until home's wait is `hysteresis_ratio` below the threshold, and a change of target has to gain
   `hysteresis_seconds`: `Previous` carries that from one call to the next, and is the only memory.
5. **Cost** is in seconds of waiting, so that its parts add up: expected wait; load; distance beyond the
   radius within which the place is known; language; trunk; less affinity. Ties go to the smaller id.
   **Affinity** is at most `affinity_seconds` for the region that the customer belongs to (`Ties.own`) and
   `usual_seconds` for the one that usually serves it (`Ties.usual`). The former may go before home, while an
   agent is free there and it costs less than home by `hysteresis_seconds`; the latter only helps to choose
   where home does not decide: otherwise a region that helped out a few times would draw the customer away.
6. **Old information** (older than `info_age_ms_max`) counts as unknown, never as a free agent. An agent that
   this router has filled since the information was made (`placed_since`) is not free either: otherwise all
   calls of a second would chase the same one.
7. **Planned shifts.** A region of weight w below 100 keeps w % of its home calls, chosen by the call's
   `draw`; the others go where rule 5 says. A weight also scales how much load costs there.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import NamedTuple

from routing.geo.model import Located, Precision, distance_km

#: A longer expected wait than this is all the same to the ranking, seconds.
WAIT_SECONDS_MAX = 3600.0
#: Load beyond this many calls an agent is all the same to the ranking.
LOAD_RATIO_MAX = 5.0
#: The weight of a region under no planned shift.
NORMAL_WEIGHT = 100


class RegionState(enum.StrEnum):
    """Whether a region takes new calls."""

    UP = "UP"
    #: By the operator: what it has goes on, new calls go elsewhere.
    DRAINING = "DRAINING"
    #: Silent, or said to be lost.
    DOWN = "DOWN"


class Skipped(enum.StrEnum):
    """Why a region was not a candidate."""

    DOWN = "DOWN"
    DRAINING = "DRAINING"
    CLOSED = "CLOSED"
    NO_QUEUE = "NO_QUEUE"
    SHIFTED_AWAY = "SHIFTED_AWAY"


class HomeBy(enum.StrEnum):
    """What made a region the caller's home."""

    PREFIX = "PREFIX"
    AREA = "AREA"
    DISTANCE = "DISTANCE"
    NONE = "NONE"


class Step(enum.StrEnum):
    """Which rule decided."""

    #: Home is first.
    HOME = "HOME"
    #: Home's wait is past the threshold.
    OVERFLOW = "OVERFLOW"
    #: Home takes no calls.
    HOME_SKIPPED = "HOME_SKIPPED"
    #: This call is of the share that a planned shift moves away from home.
    SHIFTED = "SHIFTED"
    #: Home does not speak the caller's language.
    LANGUAGE = "LANGUAGE"
    #: The customer belongs to another region, where an agent is free.
    AFFINITY = "AFFINITY"
    #: Nobody is home to this caller.
    NO_HOME = "NO_HOME"
    #: No region takes the call.
    NOWHERE = "NOWHERE"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueView:
    """What is known of one queue in one region. Raises ValueError on a negative or undefined figure."""

    #: Agents logged in who fit the queue.
    agents_logged_in: int
    #: Of them free.
    agents_free: int
    #: Calls waiting.
    waiting: int
    #: Expected wait of a call that came now, seconds; None when it cannot be estimated.
    ewt_seconds: float | None
    #: How old this is, milliseconds.
    age_ms: int = 0
    #: Calls that this router has placed there since.
    placed_since: int = 0

    def __post_init__(self) -> None:
        counts = (self.agents_logged_in, self.agents_free, self.waiting, self.age_ms, self.placed_since)
        if min(counts) < 0 or not (self.ewt_seconds is None or self.ewt_seconds >= 0):
            raise ValueError("a queue's figures cannot be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionView:
    """A region as placement sees it."""

    #: Region id: "beijing".
    id: str
    #: Whether it takes calls.
    state: RegionState
    #: Degrees north.
    latitude: float
    #: Degrees east.
    longitude: float
    #: "CN/北京", "US/California", "JP": whose callers are at home here.
    served_areas: tuple[str, ...] = ()
    #: E.164 prefixes whose callers are at home here whatever their place: "+8610".
    served_prefixes: tuple[str, ...] = ()
    #: BCP 47 languages spoken; empty: all.
    languages: tuple[str, ...] = ()
    #: By queue id. A queue that is missing is one of which nothing is known.
    queues: Mapping[str, QueueView] = field(default_factory=dict)
    #: Queue ids served; None: all.
    serves: frozenset[str] | None = None
    #: Share of load under planned shifts, 0 to 1000; 100 is normal.
    weight: int = NORMAL_WEIGHT
    #: Within business hours.
    is_open: bool = True
    #: What a call there costs in lines, as seconds of waiting.
    trunk_seconds: float = 0.0


class Ties(NamedTuple):
    """Regions that a customer has to do with; empty for none."""

    #: The one that it belongs to, by its record: where its account manager is.
    own: str = ""
    #: The one whose agents usually talk with it.
    usual: str = ""


NO_TIES = Ties()


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who calls, from where."""

    #: Number and place; None for a withheld number without a place.
    place: Located | None
    #: BCP 47; empty: any.
    language: str = ""
    #: Regions that this customer has to do with.
    ties: Ties = NO_TIES
    #: In [0, 1), a stable function of the call's id: decides which calls a planned shift moves.
    draw: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementRules:
    """How candidates are weighed. All seconds are seconds of waiting."""

    #: Expected wait at home beyond which other regions are considered (the queue's overflow threshold).
    overflow_seconds: float = 20.0
    #: Overflow ends when home's wait is this share below the threshold; 0 to 1.
    hysteresis_ratio: float = 0.25
    #: What another target must gain on the previous one, and another region on home.
    hysteresis_seconds: float = 3.0
    #: What another region's queue must gain on home's when nobody is free anywhere.
    leave_seconds: float = 60.0
    #: Information older than this is unknown, milliseconds.
    info_age_ms_max: int = 3000
    #: What a thousand kilometres cost.
    seconds_per_1000_km: float = 5.0
    #: What an agent without the caller's language costs.
    language_seconds: float = 120.0
    #: What one call an agent of load costs.
    load_seconds: float = 10.0
    #: Taken for the wait where it is not known.
    unknown_wait_seconds: float = 60.0
    #: What it is worth that a customer belongs to a region, and that it is usually served there.
    affinity_seconds: float = 15.0
    usual_seconds: float = 5.0


class Previous(NamedTuple):
    """What the last decision for this home and queue leaves to the next one."""

    #: Calls were overflowing.
    overflowing: bool = False
    #: Region that was first; empty at the start.
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A region looked at, and all that was weighed."""

    #: Region id.
    region: str
    #: 1 is the best; 0 when skipped.
    rank: int
    #: Why it is no candidate; None when it is.
    skipped: Skipped | None
    #: Sum of `cost_parts`, seconds.
    cost_seconds: float
    #: Parts of the cost by name, seconds.
    cost_parts: tuple[tuple[str, float], ...]
    #: From the caller, kilometres; None when the place is not known.
    distance_km: float | None
    #: It speaks the caller's language.
    speaks: bool
    #: Expected wait, seconds; None when unknown or old.
    ewt_seconds: float | None
    #: Free agents who fit, less those filled since; None when unknown or old.
    agents_free: int | None
    #: Agents logged in who fit; None when unknown or old.
    agents_logged_in: int | None
    #: State of the region.
    state: RegionState
    #: A sentence for a supervisor.
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The decision."""

    #: All regions: candidates by rank, then those skipped, by id.
    candidates: tuple[Candidate, ...]
    #: The caller's home, even if it takes no calls; empty if there is none.
    home: str
    #: What made it the home.
    home_by: HomeBy
    #: Which rule decided.
    step: Step
    #: To be kept for the next call of this home and queue.
    previous: Previous
    #: One sentence for a supervisor.
    summary: str

    @property
    def regions(self) -> tuple[str, ...]:
        """Ids to be tried, best first; empty when no region takes the call."""
        return tuple(c.region for c in self.candidates if c.skipped is None)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a region stands for one queue just now, whoever calls: what many calls in a row have in common."""

    #: Region id.
    region: str
    #: Why it is no candidate; None when it is.
    skipped: Skipped | None
    #: Free agents who fit, less those filled since; None when unknown or old.
    agents_free: int | None
    #: Agents logged in who fit; None when unknown or old.
    agents_logged_in: int | None
    #: Expected wait, seconds; None when unknown or old.
    ewt_seconds: float | None
    #: What wait, load and lines cost, seconds.
    seconds: float
    #: Share of load under planned shifts.
    weight: int


@dataclass(frozen=True, slots=True)
class Nearness:
    """How a region lies to one caller, whatever its load: what many calls of one place have in common."""

    #: The caller's language is spoken.
    speaks: bool
    #: What distance and language cost, seconds.
    seconds: float


class _Weighed:
    """A region for one caller: a standing and a nearness together. Plain: each call makes one a region."""

    __slots__ = ("cost_seconds", "region", "speaks", "standing")

    def __init__(self, standing: Standing, nearness: Nearness) -> None:
        self.standing = standing
        self.region = standing.region
        self.speaks = nearness.speaks
        self.cost_seconds = standing.seconds + nearness.seconds


def order(
    standings: Sequence[Standing],
    nearnesses: Sequence[Nearness],
    home: str,
    draw: float,
    rules: PlacementRules,
    before: Previous,
    ties: Ties = NO_TIES,
) -> tuple[Step, list[str]]:
    """The rule that decides and the regions to try, best first: `place` without its reasons. A standing and a
    nearness a region, in the same order; `draw` and `ties` as in `Caller`.
    """
    eligible = [
        _Weighed(standing, nearness)
        for standing, nearness in zip(standings, nearnesses, strict=True)
        if standing.skipped is None
    ]
    at_home = next((standing for standing in standings if standing.region == home), None)
    if ties is not NO_TIES:
        for each in eligible:
            each.cost_seconds -= _affinity_seconds(each.region, ties, rules)
    step = _step(at_home, draw, eligible, rules, before)
    if step is Step.HOME and _belongs_elsewhere(eligible, home, ties.own, rules):
        step = Step.AFFINITY
    if len(eligible) > 1:
        eligible = _sorted(eligible, home, step, rules, before, ties.own)
    return step, [each.region for each in eligible]


def follows(step: Step, target: str, before: Previous) -> Previous:
    """What a decision leaves to the next one of this home and queue."""
    if step is Step.AFFINITY:
        # It says something of this customer, and nothing of the others.
        return before
    overflowing = _still_overflows(step, before)
    if overflowing == before.overflowing and target == before.target:
        return before
    return Previous(overflowing=overflowing, target=target)


def place(
    caller: Caller,
    regions: Sequence[RegionView],
    queue: str,
    rules: PlacementRules,
    previous: Previous | None = None,
) -> Placement:
    """Ranks the regions for one call of `queue` (id), with the reasons. Raises ValueError on two regions of
    one id.
    """
    if len({region.id for region in regions}) != len(regions):
        raise ValueError("two regions have the same id")
    before = previous or Previous()
    standings = [standing_of(region, queue, rules) for region in regions]
    nearnesses = [nearness_of(caller, region, rules) for region in regions]
    home, home_by = find_home(caller, regions)
    step, ids = order(standings, nearnesses, home, caller.draw, rules, before, caller.ties)
    looked_at = {
        region.id: _look_at(caller, region, queue, rules, standing, nearness)
        for region, standing, nearness in zip(regions, standings, nearnesses, strict=True)
    }
    ranked = [replace(looked_at[id], rank=rank) for rank, id in enumerate(ids, 1)]
    skipped = sorted((c for c in looked_at.values() if c.skipped), key=lambda c: c.region)
    target = ids[0] if ids else ""
    return Placement(
        candidates=(*ranked, *skipped),
        home=home,
        home_by=home_by,
        step=step,
        previous=follows(step, target, before),
        summary=_summary(home, home_by, step, target),
    )


def standing_of(region: RegionView, queue: str, rules: PlacementRules) -> Standing:
    """A region's standing for a queue, from what is known of it now."""
    fresh = _fresh(region, queue, rules)
    return Standing(
        region=region.id,
        skipped=_skipped(region, queue),
        agents_free=max(0, fresh.agents_free - fresh.placed_since) if fresh else None,
        agents_logged_in=fresh.agents_logged_in if fresh else None,
        ewt_seconds=fresh.ewt_seconds if fresh else None,
        seconds=math.fsum(seconds for _, seconds in _standing_parts(region, fresh, rules)),
        weight=region.weight,
    )


def nearness_of(caller: Caller, region: RegionView, rules: PlacementRules) -> Nearness:
    """How a region lies to a caller."""
    speaks = is_spoken(caller.language, region.languages)
    parts = _nearness_parts(caller, _distance(caller.place, region), speaks, rules)
    return Nearness(speaks=speaks, seconds=math.fsum(seconds for _, seconds in parts))


def _fresh(region: RegionView, queue: str, rules: PlacementRules) -> QueueView | None:
    info = region.queues.get(queue)
    return info if info and info.age_ms <= rules.info_age_ms_max else None


def find_home(caller: Caller, regions: Sequence[RegionView]) -> tuple[str, HomeBy]:
    """The caller's home by prefix, area or distance, whatever its state; ("", NONE) if there is none. Cheap:
    for those who keep `Previous` by home.
    """
    by_prefix = home_by_prefix(caller.place.e164 if caller.place else "", regions)
    if by_prefix:
        return by_prefix, HomeBy.PREFIX
    near = sorted(
        ((_near(caller.place, region), region.id, region) for region in regions), key=itemgetter(0, 1)
    )
    by_area = [
        (-area.count("/"), km, id) for km, id, region in near if (area := _served_area(caller.place, region))
    ]
    if by_area:
        return min(by_area)[2], HomeBy.AREA
    if caller.place is None or not near or near[0][0] == math.inf:
        return "", HomeBy.NONE
    vague = caller.place.precision is Precision.COUNTRY
    if vague and len(near) > 1 and near[1][0] - near[0][0] < caller.place.radius_km:
        return "", HomeBy.NONE
    return near[0][1], HomeBy.DISTANCE


def home_by_prefix(number: str, regions: Sequence[RegionView]) -> str:
    """The region with the longest served prefix of an E.164 number; empty if there is none."""
    fitting = [
        (-len(prefix), region.id)
        for region in regions
        for prefix in region.served_prefixes
        if prefix and number.startswith(prefix)
    ]
    return min(fitting)[1] if fitting else ""


def _near(place: Located | None, region: RegionView) -> float:
    distance = _distance(place, region)
    return math.inf if distance is None else distance


def _look_at(
    caller: Caller,
    region: RegionView,
    queue: str,
    rules: PlacementRules,
    standing: Standing,
    nearness: Nearness,
) -> Candidate:
    """One region with all that was weighed, not yet ranked."""
    fresh = _fresh(region, queue, rules)
    distance = _distance(caller.place, region)
    affinity = _affinity_seconds(region.id, caller.ties, rules)
    return Candidate(
        region=region.id,
        rank=0,
        skipped=standing.skipped,
        cost_seconds=standing.seconds + nearness.seconds - affinity,
        cost_parts=(
            *_standing_parts(region, fresh, rules),
            *_nearness_parts(caller, distance, nearness.speaks, rules),
            ("affinity", -affinity),
        ),
        distance_km=distance,
        speaks=nearness.speaks,
        ewt_seconds=standing.ewt_seconds,
        agents_free=standing.agents_free,
        agents_logged_in=standing.agents_logged_in,
        state=region.state,
        why=_why(region, region.queues.get(queue), fresh, distance, nearness.speaks),
    )


def _skipped(region: RegionView, queue: str) -> Skipped | None:
    if region.state is RegionState.DOWN:
        return Skipped.DOWN
    if region.state is RegionState.DRAINING:
        return Skipped.DRAINING
    if not region.is_open:
        return Skipped.CLOSED
    if region.serves is not None and queue not in region.serves:
        return Skipped.NO_QUEUE
    return Skipped.SHIFTED_AWAY if region.weight <= 0 else None


def is_spoken(language: str, languages: Sequence[str]) -> bool:
    """Whether a region of some languages speaks one, by the primary subtag: "zh-CN" and "zh-Hant" are both
    Chinese to an agent. Of no languages it speaks all.
    """
    wanted = language.partition("-")[0].casefold()
    spoken = (known.partition("-")[0].casefold() for known in languages)
    return not wanted or not languages or wanted in spoken


def _distance(caller: Located | None, region: RegionView) -> float | None:
    if caller is None or caller.latitude is None or caller.longitude is None:
        return None
    return distance_km(caller.latitude, caller.longitude, region.latitude, region.longitude)


def _served_area(caller: Located | None, region: RegionView) -> str:
    """The finest served area that the caller's place lies in."""
    if caller is None or not caller.area:
        return ""
    area = caller.area + "/"
    fitting = [served for served in region.served_areas if served and area.startswith(served + "/")]
    return max(fitting, key=lambda served: (served.count("/"), served), default="")


def _standing_parts(
    region: RegionView, fresh: QueueView | None, rules: PlacementRules
) -> tuple[tuple[str, float], ...]:
    return (
        ("wait", _wait_seconds(fresh, rules)),
        ("load", _load_ratio(fresh) * rules.load_seconds * NORMAL_WEIGHT / max(1, region.weight)),
        ("trunk", region.trunk_seconds),
    )


def _nearness_parts(
    caller: Caller, distance: float | None, speaks: bool, rules: PlacementRules
) -> tuple[tuple[str, float], ...]:
    radius = caller.place.radius_km if caller.place else 0
    beyond = max(0.0, distance - radius) if distance is not None else 0.0
    return (
        ("distance", beyond / 1000 * rules.seconds_per_1000_km),
        ("language", 0.0 if speaks else rules.language_seconds),
    )


def _affinity_seconds(region: str, ties: Ties, rules: PlacementRules) -> float:
    """What the customer's ties with a region are worth."""
    if region == ties.own:
        return rules.affinity_seconds
    return rules.usual_seconds if region == ties.usual else 0.0


def _belongs_elsewhere(eligible: Sequence[_Weighed], home: str, own: str, rules: PlacementRules) -> bool:
    """Whether the region that the customer belongs to goes before its home."""
    if not own or own == home:
        return False
    tied = next((each for each in eligible if each.region == own), None)
    if tied is None or not tied.standing.agents_free:
        return False
    at_home = next(each for each in eligible if each.region == home)
    if at_home.speaks and not tied.speaks:
        return False
    return tied.cost_seconds + rules.hysteresis_seconds < at_home.cost_seconds


def _wait_seconds(fresh: QueueView | None, rules: PlacementRules) -> float:
    if fresh is None:
        return rules.unknown_wait_seconds
    if fresh.agents_logged_in == 0:
        return WAIT_SECONDS_MAX
    if fresh.ewt_seconds is None:
        return 0.0 if fresh.agents_free > fresh.placed_since else rules.unknown_wait_seconds
    return min(fresh.ewt_seconds, WAIT_SECONDS_MAX)


def _load_ratio(fresh: QueueView | None) -> float:
    """Calls an agent, waiting ones and those placed since included; 1.0 where nothing is known."""
    if fresh is None:
        return 1.0
    calls = fresh.agents_logged_in - fresh.agents_free + fresh.waiting + fresh.placed_since
    return (
        min(LOAD_RATIO_MAX, max(0, calls) / fresh.agents_logged_in)
        if fresh.agents_logged_in
        else LOAD_RATIO_MAX
    )


def _step(
    at_home: Standing | None,
    draw: float,
    eligible: Sequence[_Weighed],
    rules: PlacementRules,
    before: Previous,
) -> Step:
    """Which rule applies to this call."""
    if not eligible:
        return Step.NOWHERE
    if at_home is None:
        return Step.NO_HOME
    if at_home.skipped:
        return Step.SHIFTED if at_home.skipped is Skipped.SHIFTED_AWAY else Step.HOME_SKIPPED
    if len(eligible) > 1:
        if draw >= at_home.weight / NORMAL_WEIGHT:
            return Step.SHIFTED
        speaks = next(each.speaks for each in eligible if each.region == at_home.region)
        if not speaks and any(each.speaks for each in eligible):
            return Step.LANGUAGE
    return Step.OVERFLOW if _overflows(at_home, eligible, rules, before) else Step.HOME


def _overflows(home: Standing, eligible: Sequence[_Weighed], rules: PlacementRules, before: Previous) -> bool:
    if home.agents_logged_in is None or home.agents_free:
        return False
    if home.agents_logged_in == 0:
        return any(each.standing.agents_logged_in for each in eligible if each.region != home.region)
    threshold = rules.overflow_seconds * (1 - rules.hysteresis_ratio if before.overflowing else 1)
    return home.ewt_seconds is not None and home.ewt_seconds > threshold


def _still_overflows(step: Step, before: Previous) -> bool:
    """A call that goes its own way (shifted, for its language) says nothing of the others."""
    if step in (Step.SHIFTED, Step.LANGUAGE):
        return before.overflowing
    return step is Step.OVERFLOW


def _sorted(
    eligible: Sequence[_Weighed], home: str, step: Step, rules: PlacementRules, before: Previous, own: str
) -> list[_Weighed]:
    """Best first."""
    somebody_speaks = any(each.speaks for each in eligible)
    stays = step is Step.OVERFLOW and not any(each.standing.agents_free for each in eligible)

    def key(each: _Weighed) -> tuple[bool, bool, bool, float, str]:
        is_home = each.region == home
        not_own = step is Step.AFFINITY and each.region != own
        after_others = is_home if step is Step.SHIFTED else _home_first(step) and not is_home
        has_fitting = bool(each.standing.agents_free) and (each.speaks or not somebody_speaks)
        kept = rules.hysteresis_seconds if is_home or each.region == before.target else 0.0
        if is_home and stays:
            kept = max(kept, rules.leave_seconds)
        return not_own, after_others, not has_fitting, each.cost_seconds - kept, each.region

    return sorted(eligible, key=key)


def _home_first(step: Step) -> bool:
    """Home goes before all others, or all but the one that the customer belongs to."""
    return step in (Step.HOME, Step.AFFINITY)


def _why(
    region: RegionView, info: QueueView | None, fresh: QueueView | None, distance: float | None, speaks: bool
) -> str:
    """What speaks for and against a region, for a supervisor."""
    parts = ["place unknown" if distance is None else f"{distance:.0f} km"]
    if region.state is not RegionState.UP:
        parts.append(region.state.value.lower())
    if fresh is not None:
        wait = "wait unknown" if fresh.ewt_seconds is None else f"wait {fresh.ewt_seconds:.0f} s"
        parts.append(
            f"{fresh.agents_free} of {fresh.agents_logged_in} agents free, {fresh.waiting} waiting, {wait}"
        )
    elif info is not None:
        parts.append(f"load unknown, last heard {info.age_ms / 1000:.1f} s ago")
    else:
        parts.append("load unknown")
    if not speaks:
        parts.append("does not speak the language")
    return ", ".join(parts)


_REASONS = {
    Step.HOME: "{target} is home by {by}",
    Step.OVERFLOW: "{home} is home by {by} but its wait is past the threshold: {target} is best",
    Step.HOME_SKIPPED: "{home} is home by {by} but takes no calls: {target} is best",
    Step.SHIFTED: "{home} is home by {by}, this call is of the share moved away from it: {target} is best",
    Step.LANGUAGE: "{home} is home by {by} but does not speak the language: {target} is best",
    Step.AFFINITY: "{home} is home by {by}, but the customer belongs to {target} and somebody is free there",
    Step.NO_HOME: "nobody is home to this caller: {target} costs least",
    Step.NOWHERE: "no region takes calls of this queue",
}


def _summary(home: str, home_by: HomeBy, step: Step, target: str) -> str:
    return _REASONS[step].format(home=home, by=home_by.value.lower(), target=target)
