"""Regions as placement needs them: the directory's regions with the peers' live load, and the memory
between placements.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from callmesh.routing.v1 import call_pb2, directory_pb2, shard_pb2
from chassis.clock import Clock
from routing import placement
from routing.callers import STRANGER, KnownCaller, usual_region
from routing.geo import Located, locate, with_point
from routing.hours import Schedule
from routing.model import VOICE
from routing.peers import PeerTable
from routing.placement import (
    NO_TIES,
    Caller,
    Nearness,
    Placement,
    PlacementRules,
    Previous,
    QueueView,
    RegionState,
    RegionView,
    Standing,
    Ties,
)

#: Placements remembered as not yet seen in the peers' figures, for at most this long, real seconds.
PLACED_SECONDS = 0.3
PLACED_REMEMBERED_MAX = 1_000
#: The overflow threshold of a queue that the directory does not hold yet, business milliseconds.
OVERFLOW_MS_DEFAULT = 20_000
#: So much longer a call waits before it goes where its language is not spoken, business milliseconds: what
#: that costs when it is placed.
LANGUAGE_MS = round(PlacementRules().language_seconds * 1000)
#: What was worked out of a queue's standings is used for at most this long, real seconds; less when a peer
#: says something new, or a free agent may have been filled.
STANDINGS_SECONDS = 0.02
#: Places and languages of callers whose way to the regions is remembered; then all are worked out anew.
NEARNESS_REMEMBERED_MAX = 10_000
#: A queue without agents for this long is left by those who wait there: desktops have the same time to come
#: back after a change of leader. Real seconds.
DESERTED_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionConfig:
    """A region of the directory."""

    id: str
    latitude: float
    longitude: float
    served_areas: tuple[str, ...] = ()
    served_prefixes: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    weight: int = placement.NORMAL_WEIGHT
    draining: bool = False
    #: While draining: waiting calls go elsewhere at once.
    move_waiting: bool = False
    #: What a line costs there, as seconds of waiting.
    trunk_seconds: float = 0.0
    #: Business hours; None: always open.
    schedule: Schedule | None = None
    #: IANA zone whose midnight the region's day begins at; empty for UTC.
    time_zone: str = ""
    #: Routers that may lead its shard, `host:port`; empty: its own.
    lead_list: tuple[str, ...] = ()


@dataclass(slots=True)
class _Placed:
    """Calls that this router has sent to a region's queue a moment ago."""

    at: list[float] = field(default_factory=list)


class Ranked(NamedTuple):
    """Where a call goes."""

    #: The caller's home region; empty if there is none.
    home: str
    #: Ids to be tried, best first; empty when no region takes the call.
    regions: list[str]


class _Standings(NamedTuple):
    """All regions for one queue, until when (monotonic seconds), and those where an agent is free."""

    until: float
    rows: list[Standing]
    free: frozenset[str]
    #: What was decided on them, by what else decides: the way (by identity), the home and what was before.
    decided: dict[tuple[int, str, Previous], _Decided]


class _Decided(NamedTuple):
    """Where calls of one place go by the same standings, and what that leaves to the next."""

    ranked: Ranked
    after: Previous
    #: Whose identity it is remembered by.
    way: _Way


class _Way(NamedTuple):
    """From one place, in one language, to all regions."""

    #: Home by the place alone: a number's prefix wins.
    home: str
    rows: list[Nearness]


#: A caller's place and language, as far as regions are told apart by them.
_From = tuple[str, str, str, float | None, float | None, int, str, str]


class Regions:
    """Ranks regions for a call. Belongs to one event loop."""

    def __init__(self, peers: PeerTable, clock: Clock) -> None:
        self._peers = peers
        self._clock = clock
        self._regions: dict[str, RegionConfig] = {}
        self._overflow_ms: dict[str, int] = {}
        self._previous: dict[tuple[str, str], Previous] = {}
        self._placed: dict[tuple[str, str], _Placed] = defaultdict(_Placed)
        #: Region and queue to since when nobody has been there to answer.
        self._deserted: dict[tuple[str, str], float] = {}
        #: Region to (minute since 1970, whether it is open in it).
        self._open: dict[str, tuple[int, bool]] = {}
        #: By queue; dropped whenever a peer says something new.
        self._standings: dict[str, _Standings] = {}
        self._ways: dict[_From, _Way] = {}
        self._rules: dict[str, PlacementRules] = {}
        #: The regions as they lie, those of them that are home by numbers' prefixes, and whether any keeps
        #: only a part of its calls.
        self._lying: list[RegionView] = []
        self._prefixed: list[RegionView] = []
        self._shifting = False
        #: A region has no business hours.
        self._always_open = False
        #: Whether the directory has been read at all: before that nobody can say that something is not in it.
        self.configured = False
        peers.on_change.append(self._standings.clear)

    def configure(self, regions: tuple[RegionConfig, ...], overflow_ms: dict[str, int]) -> None:
        """Puts the directory's regions, and the queues' overflow thresholds (business milliseconds), in
        force.
        """
        self.configured = True
        self._regions = {region.id: region for region in regions}
        self._overflow_ms = overflow_ms
        self._open.clear()
        self._standings.clear()
        self._ways.clear()
        self._rules.clear()
        self._always_open = any(region.schedule is None for region in regions)
        self._lying = [_lying(region) for region in regions]
        self._prefixed = [region for region in self._lying if region.served_prefixes]
        self._shifting = any(region.weight < placement.NORMAL_WEIGHT for region in regions)

    def known(self, region: str) -> bool:
        return region in self._regions

    def zone_of(self, region: str) -> str:
        """The region's time zone, empty for UTC or when it is not known."""
        config = self._regions.get(region)
        return config.time_zone if config is not None else ""

    def is_open(self, region: str) -> bool:
        """Whether a region is within its business hours; those begin and end on whole minutes."""
        schedule = self._regions[region].schedule
        if schedule is None:
            return True
        now_ms = self._clock.now_ms()
        minute = now_ms // 60_000
        known = self._open.get(region)
        if known is None or known[0] != minute:
            known = self._open[region] = (minute, schedule.is_open(now_ms))
        return known[1]

    def closed_until_ms(self) -> int | None:
        """While every region is closed: when the first one opens, 0 if that is not foreseeable. None while
        one is open.
        """
        if self._always_open or not self._regions or any(map(self.is_open, self._regions)):
            return None
        now_ms = self._clock.now_ms()
        opens = [
            at
            for config in self._regions.values()
            if config.schedule is not None and (at := config.schedule.next_opening_ms(now_ms)) is not None
        ]
        return min(opens, default=0)

    def order(
        self, request: call_pb2.CallRequest, located: Located | None, queue: str, ties: Ties = NO_TIES
    ) -> Ranked:
        """The regions for a call that is to be placed, best first: as `rank`, and remembered for the next."""
        standings, way = self._standings_of(queue), self._way(located, request.language)
        home = way.home
        if self._prefixed and located is not None:
            home = placement.home_by_prefix(located.e164, self._prefixed) or home
        before = self._previous.get((home, queue), _FIRST)
        if self._shifting or ties is not NO_TIES:
            draw = _draw(request.call_id) if self._shifting else 0.0
            found = self._decide(standings, way, home, draw, queue, before, ties)
        else:
            # All else that decides is the same for many calls in a row.
            key, decided = (id(way), home, before), standings.decided
            found = decided.get(key) or self._decide(standings, way, home, 0.0, queue, before, ties)
            if len(decided) < NEARNESS_REMEMBERED_MAX:
                decided[key] = found
        self._previous[(home, queue)] = found.after
        return found.ranked

    def _decide(
        self,
        standings: _Standings,
        way: _Way,
        home: str,
        draw: float,
        queue: str,
        before: Previous,
        ties: Ties,
    ) -> _Decided:
        rules = self._rules_of(queue)
        step, regions = placement.order(standings.rows, way.rows, home, draw, rules, before, ties)
        after = placement.follows(step, regions[0] if regions else "", before)
        return _Decided(Ranked(home, regions), after, way)

    def rank(
        self, request: call_pb2.CallRequest, located: Located | None, queue: str, ties: Ties = NO_TIES
    ) -> Placement:
        """The regions for a call, best first, with the reasons; nobody is to be placed."""
        caller = Caller(place=located, language=request.language, draw=_draw(request.call_id), ties=ties)
        views = [self._view(region, queue) for region in self._regions.values()]
        home, _ = placement.find_home(caller, views)
        return placement.place(caller, views, queue, self._rules_of(queue), self._previous.get((home, queue)))

    def _rules_of(self, queue: str) -> PlacementRules:
        rules = self._rules.get(queue)
        if rules is None:
            rules = self._rules[queue] = PlacementRules(overflow_seconds=self._threshold_ms(queue) / 1000)
        return rules

    def _threshold_ms(self, queue: str) -> int:
        """How long a call of a queue waits at home before it may go elsewhere, business milliseconds."""
        return self._overflow_ms.get(queue, OVERFLOW_MS_DEFAULT)

    def _standings_of(self, queue: str) -> _Standings:
        known = self._standings.get(queue)
        now = self._clock.monotonic()
        if known is not None and now < known.until:
            return known
        rules = self._rules_of(queue)
        views = (self._view(region, queue) for region in self._regions.values())
        rows = [placement.standing_of(view, queue, rules) for view in views]
        free = frozenset(row.region for row in rows if row.agents_free)
        known = self._standings[queue] = _Standings(now + STANDINGS_SECONDS, rows, free, {})
        return known

    def _way(self, located: Located | None, language: str) -> _Way:
        origin = _origin(located, language)
        way = self._ways.get(origin)
        if way is None:
            if len(self._ways) >= NEARNESS_REMEMBERED_MAX:
                self._ways.clear()
            # Without the number: its prefixes are looked at for each call.
            caller = Caller(
                place=msgspec.structs.replace(located, e164="") if located else None, language=language
            )
            rules = PlacementRules()
            rows = [placement.nearness_of(caller, region, rules) for region in self._lying]
            way = self._ways[origin] = _Way(placement.find_home(caller, self._lying)[0], rows)
        return way

    def home_of(self, located: Located) -> str:
        """The region at home there; empty if there is none."""
        return placement.find_home(Caller(place=located), self._lying)[0]

    def note_placed(self, region: str, queue: str) -> None:
        """Remembers a placement until the peers' figures can show it."""
        placed = self._placed[(region, queue)].at
        placed.append(self._clock.monotonic())
        del placed[:-PLACED_REMEMBERED_MAX]
        known = self._standings.get(queue)
        if known is not None and region in known.free:
            # One fewer is free there.
            del self._standings[queue]

    def find_overflow(
        self,
        queue: str,
        region: str,
        waited_ms: int,
        language: str,
        besides: Container[str] = (),
        *,
        channel: str = VOICE,
        skilled: bool = False,
    ) -> str | None:
        """A region with a free agent and nobody waiting, for a call that has waited past the threshold
        where it is, and longer for one that does not speak its language; any that has agents, for one that
        waits where nobody is or should be. None of `besides`.

        Figures are of voice and of the queue's own skills: who is free here is nobody for a call of another
        channel, or that asks for more, as long as it waits; who is free there may be nobody, too.
        """
        if self.leaves(region) or (channel == VOICE and self.deserted(region, queue)):
            return self._refuge(queue, region, language, besides)
        threshold_ms = self._threshold_ms(queue)
        if waited_ms < threshold_ms:
            return None
        here = self._peers.load(region, queue)
        if here is not None and here.agents_free > 0 and channel == VOICE and not skilled:
            return None
        free = [
            (not self._speaks(other, language), -spare, other)
            for other, config in self._regions.items()
            if other != region
            and other not in besides
            and not config.draining
            and self.is_open(other)
            and (spare := self._spare(other, queue)) > 0
        ]
        if not free:
            return None
        foreign, _, target = min(free)
        longer_ms = LANGUAGE_MS if foreign and self._speaks(region, language) else 0
        return target if waited_ms >= threshold_ms + longer_ms else None

    def _speaks(self, region: str, language: str) -> bool:
        config = self._regions.get(region)
        return config is None or placement.is_spoken(language, config.languages)

    def deserted(self, region: str, queue: str) -> bool:
        """Whether all agents of a queue have been gone for long enough to say so."""
        load = self._peers.load(region, queue)
        if load is None or load.agents_logged_in:
            self._deserted.pop((region, queue), None)
            return False
        now = self._clock.monotonic()
        return now - self._deserted.setdefault((region, queue), now) >= DESERTED_SECONDS

    def serves(self, region: str, queue: str) -> bool:
        """Whether somebody is there to answer calls of a queue, as far as is known."""
        load = self._peers.load(region, queue)
        return load is None or load.agents_logged_in > 0

    def leaves(self, region: str) -> bool:
        """Whether a region is being drained of its waiting calls too."""
        config = self._regions.get(region)
        return config is not None and config.draining and config.move_waiting

    def _refuge(self, queue: str, region: str, language: str, besides: Container[str]) -> str | None:
        """Where calls of a drained region wait instead: where their language is spoken, free agents first,
        then the shortest expected wait; None while nobody else serves the queue, for then its own agents
        finish them.
        """
        others = [
            (
                not self._speaks(other, language),
                -self._spare(other, queue),
                _known_wait_ms(load),
                other,
            )
            for other, config in self._regions.items()
            if other != region
            and other not in besides
            and not config.draining
            and self.is_open(other)
            and (load := self._peers.load(other, queue)) is not None
            and load.agents_logged_in
        ]
        return min(others)[-1] if others else None

    def _spare(self, region: str, queue: str) -> int:
        load = self._peers.load(region, queue)
        if load is None or load.waiting:
            return 0
        return load.agents_free - self._placed_since(region, queue)

    def _placed_since(self, region: str, queue: str) -> int:
        now = self._clock.monotonic()
        placed = self._placed[(region, queue)]
        placed.at = [at for at in placed.at if now - at < PLACED_SECONDS]
        return len(placed.at)

    def _view(self, region: RegionConfig, queue: str) -> RegionView:
        state = self._peers.state(region.id)
        age = self._peers.age_seconds(region.id)
        load = next((q for q in state.queues if q.queue == queue), None) if state is not None else None
        return RegionView(
            id=region.id,
            state=self._state_of(region, state),
            latitude=region.latitude,
            longitude=region.longitude,
            served_areas=region.served_areas,
            served_prefixes=region.served_prefixes,
            languages=region.languages,
            weight=region.weight,
            is_open=self.is_open(region.id),
            trunk_seconds=region.trunk_seconds,
            queues={queue: self._queue_view(region.id, load, age)} if load is not None else {},
        )

    def _state_of(self, region: RegionConfig, state: shard_pb2.PeerState | None) -> RegionState:
        if not self._peers.alive(region.id):
            return RegionState.DOWN
        draining = state is not None and state.state == directory_pb2.REGION_STATE_DRAINING
        return RegionState.DRAINING if region.draining or draining else RegionState.UP

    def _queue_view(self, region: str, load: shard_pb2.PeerState.QueueLoad, age: float | None) -> QueueView:
        return QueueView(
            agents_logged_in=load.agents_logged_in,
            agents_free=load.agents_free,
            waiting=load.waiting,
            ewt_seconds=load.expected_wait_ms / 1000 if load.expected_wait_ms >= 0 else None,
            age_ms=round((age or 0.0) * 1000),
            placed_since=self._placed_since(region, load.queue),
        )


#: Before the first call of a home and queue.
_FIRST = Previous()


def _draw(call_id: str) -> float:
    """In [0, 1), the same for each try of a call."""
    return int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:4]) / 2**32


def _origin(located: Located | None, language: str) -> _From:
    if located is None:
        return "", "", "", None, None, 0, "", language
    return (
        located.country,
        located.province,
        located.city,
        located.latitude,
        located.longitude,
        located.radius_km,
        located.precision,
        language,
    )


def _lying(region: RegionConfig) -> RegionView:
    """Where a region is and whom it serves, without its load."""
    return RegionView(
        id=region.id,
        state=RegionState.UP,
        latitude=region.latitude,
        longitude=region.longitude,
        served_areas=region.served_areas,
        served_prefixes=region.served_prefixes,
        languages=region.languages,
    )


def _known_wait_ms(load: shard_pb2.PeerState.QueueLoad) -> int:
    """The expected wait; endless when it cannot be estimated."""
    return load.expected_wait_ms if load.expected_wait_ms >= 0 else 1 << 62


def ties_of(known: KnownCaller) -> Ties:
    """The regions that a known caller has to do with."""
    if known is STRANGER:
        return NO_TIES
    usual = usual_region(known)
    return Ties(known.region, usual) if known.region or usual else NO_TIES


def place_of(request: call_pb2.CallRequest) -> Located | None:
    """Number and place of a caller; the edge's location wins. None for a withheld number without a location.

    Raises geo.InvalidNumber (field call.caller_number) and InvalidArgument (call.location).
    """
    located = None
    if request.caller_number:
        # A number in a range that the plan does not know is still somebody's call.
        located = locate(request.caller_number, field="call.caller_number", accept_unassigned=True)
    if not request.HasField("location"):
        return located
    return with_point(located, request.location.latitude, request.location.longitude, field="call.location")
