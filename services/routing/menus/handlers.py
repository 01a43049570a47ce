"""Use cases of operators and of callers' short cuts: load, publish, look, count, rebuild, compare."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.routing.v1 import menu_events_pb2 as events
from callmesh.routing.v1 import menus_pb2 as pb
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import EtagMismatch, FailedPrecondition, InvalidArgument
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import parse_name, resource_name
from chassis.mongo import etag, parse_etag
from chassis.pagination import Page
from routing.convert import duration, timestamp
from routing.menus import apart, convert, records
from routing.menus.limited import CHANGES_MAX
from routing.menus.model import CHOICES_MAX, Act, Index, Kind, Menu
from routing.menus.records import Difference, Query, Totals
from routing.menus.running import MenuNotFound, Running
from routing.menus.sessions import caller_number
from routing.menus.store import MenuStore, Published, Shortcut, Stored
from routing.menus.tokens import SessionTokens

#: Accesses that count where no span is named.
SPAN_MS_DEFAULT = 28 * 86_400_000
ACCESSES_MAX = 10**12
#: Tries to publish while others do.
PUBLISH_TRIES_MAX = 5


class CallerUnknown(FailedPrecondition):
    """{subject} cannot have short cuts: {why}."""

    reason = "CALLER_UNKNOWN"


class MenuHandlers:
    """Use cases; one a router."""

    def __init__(self, store: MenuStore, running: Running, tokens: SessionTokens, clock: Clock) -> None:
        self._store = store
        self._running = running
        self._tokens = tokens
        self._clock = clock

    # --- versions ---

    async def create(self, request: pb.CreateMenuRequest, subject: str) -> pb.Menu:
        """A new version; a repeat of the request answers the first result. Raises InvalidArgument naming
        the place.
        """
        id = convert.menu_id("menu_id", request.menu_id)
        key = request_key(subject, "CreateMenu", request.request_id)
        # A large tree takes a moment to check, and calls are routed meanwhile.
        menu = await asyncio.to_thread(convert.checked_menu, id, request.menu)
        await self._check_queues(menu)
        if request.validate_only:
            return convert.show_menu(menu)
        return await self._add(menu, key, content_fingerprint(request))

    async def _add(self, menu: Menu, key: str | None, fingerprint: str) -> pb.Menu:
        content = convert.show_menu(menu).SerializeToString(deterministic=True)
        stored = await self._store.add_version(menu.id, content, key, fingerprint, self._clock.now())
        return self._shown(stored, await self._store.published(menu.id))

    async def _check_queues(self, menu: Menu) -> None:
        """A queue that is not there is a dead end, too."""
        named = convert.queues_of(menu)
        known = await self._store.queues(list(named)) if named else set()
        missing = [
            (place, f"is a dead end: there is no queue {id!r}")
            for id, place in named.items()
            if id not in known
        ]
        if missing:
            raise InvalidArgument.many(missing)

    @staticmethod
    def _shown(stored: Stored, published: Published | None) -> pb.Menu:
        message = pb.Menu.FromString(stored.content)
        message.version = stored.number
        if stored.created_at is not None:
            message.create_time.FromDatetime(stored.created_at)
        return _with_publication(message, published or Published(menu=stored.menu))

    async def get(self, name: str) -> pb.Menu:
        """One version, the running one by default. Raises MenuNotFound, MenuNotPublished."""
        id, version = convert.named("name", name)
        published = await self._published(id)
        if not version:
            version = (await self._running.published(id)).version
        stored = await self._store.version(id, version)
        if stored is None:
            raise MenuNotFound(resource=name)
        return self._shown(stored, published)

    async def _published(self, id: str) -> Published:
        published = await self._store.published(id)
        if published is None:
            raise MenuNotFound(resource=f"menus/{id}")
        return published

    async def list(self, request: pb.ListMenusRequest) -> pb.ListMenusResponse:
        """One page by id, without trees."""
        page = Page.parse(request.page_size, request.page_token, fingerprint="menus")
        rows = await self._store.page(page.value(str) or "", page.limit + 1)
        shown, token = page.cut(rows, attrgetter("menu"))
        menus = [
            _with_publication(pb.Menu(name=resource_name("menus", row.menu), version=row.version), row)
            for row in shown
        ]
        return pb.ListMenusResponse(menus=menus, next_page_token=token)

    async def publish(self, request: pb.PublishMenuRequest) -> pb.Menu:
        """Puts a version in service, or on trial. Raises InvalidArgument, MenuNotFound, EtagMismatch."""
        id = _alone("name", request.name)
        expected = parse_etag("etag", request.etag)
        if not math.isfinite(request.share) or not 0 <= request.share <= 1:
            raise InvalidArgument(field="share", why="must be 0.0 to 1.0")
        await self._published(id)
        stored = await self._store.version(id, request.version) if request.version > 0 else None
        if stored is None:
            raise MenuNotFound(resource=f"menus/{id}@{request.version}")
        menu = await asyncio.to_thread(convert.checked_menu, id, pb.Menu.FromString(stored.content))
        await self._check_queues(menu)
        done = await self._put_in_service(id, request, expected)
        self._running.forget(id)
        return self._shown(stored, done)

    async def _put_in_service(
        self, id: str, request: pb.PublishMenuRequest, expected: int | None
    ) -> Published:
        """A trial stands beside what is in service, so each try is decided anew. Raises InvalidArgument,
        EtagMismatch.
        """
        for tries_left in reversed(range(PUBLISH_TRIES_MAX)):
            before = await self._published(id)
            wanted = _publication(before, request)
            revision = before.revision if expected is None else expected
            try:
                event = self._told(before, wanted)
                return await self._store.publish(wanted, revision, event, self._clock.now())
            except EtagMismatch:
                if expected is not None or not tries_left:
                    raise
        raise AssertionError("the last try answers or raises")

    def _told(self, before: Published, wanted: Published) -> Event:
        now = self._clock.now()
        stamp = Timestamp()
        stamp.FromDatetime(now)
        name = resource_name("menus", wanted.menu)
        message = events.MenuPublished(
            menu=name,
            version=wanted.version,
            previous_version=before.version,
            trial_version=wanted.trial,
            trial_share=wanted.share,
            event_time=stamp,
        )
        return Event.of(message, source="routing", subject=name, time=now)

    # --- short cuts ---

    async def set_shortcut(self, request: pb.SetShortcutRequest) -> pb.Shortcut:
        """Sets or removes a short cut. Raises InvalidArgument, MenuNotFound, TooManyShortcuts."""
        said, now_ms = request.shortcut, self._clock.now_ms()
        if len(said.digit) != 1 or said.digit not in "123456789":
            raise InvalidArgument(field="shortcut.digit", why="must be one of 1-9")
        if said.source not in pb.ShortcutSource.values():
            raise InvalidArgument(field="shortcut.source", why="is not one that this release knows")
        if request.session:
            state = self._tokens.read(request.session, now_ms)
            menu, number, node, source = state.menu, state.number, state.node, pb.SHORTCUT_SOURCE_PHONE
            if not number:
                raise CallerUnknown(subject="the caller", why="the number is withheld")
            index = await self._running.index(menu, state.version)
        else:
            menu = _alone("shortcut.menu", said.menu)
            number = caller_number("shortcut.caller_number", said.caller_number)
            if not number:
                raise InvalidArgument(field="shortcut.caller_number", why="must not be empty")
            node, source = said.node, said.source
            index = await self._running.index(menu, (await self._running.published(menu)).version)
        field = "session" if request.session else "shortcut.node"
        if node and (node not in index.nodes or node == index.menu.root.id):
            raise InvalidArgument(field=field, why="must be a node below the root of the running version")
        shortcut = Shortcut(menu=menu, number=number, key=said.digit, node=node, source=source, at_ms=now_ms)
        await self._store.set_shortcut(shortcut)
        return _show_shortcut(shortcut)

    async def shortcuts(self, request: pb.ListShortcutsRequest) -> pb.ListShortcutsResponse:
        """A caller's short cuts."""
        number = caller_number("caller_number", request.caller_number)
        if not number:
            raise InvalidArgument(field="caller_number", why="must not be empty")
        menu = _alone("menu", request.menu) if request.menu else ""
        found = await self._store.shortcuts(number, menu)
        return pb.ListShortcutsResponse(shortcuts=map(_show_shortcut, found))

    # --- statistics ---

    def _query(self, id: str, request: Any, **more: Any) -> Query:
        now_ms = self._clock.now_ms()
        start, end = convert.interval_ms("interval", request, now_ms, SPAN_MS_DEFAULT)
        return Query(
            menu=id, from_ms=start, to_ms=end, vanished_ms=now_ms - self._tokens.life_span_ms, **more
        )

    async def stats(self, request: pb.GetMenuStatsRequest) -> pb.MenuStats:
        """What callers did. Raises InvalidArgument, MenuNotFound."""
        id, version = _asked(request)
        await self._published(id)
        customer = request.customer and resource_name(
            "customers", parse_name("customer", "customers", request.customer)
        )
        number = caller_number("caller_number", request.caller_number)
        query = self._query(id, request, version=version, number=number, customer=customer)
        return _show_counts(await self._store.counts(query))

    async def compare(self, request: pb.CompareMenusRequest) -> pb.CompareMenusResponse:
        """Two versions as callers used them. Raises InvalidArgument, MenuNotFound."""
        id = _alone("name", request.name)
        await self._published(id)
        asked = (request.version_a, request.version_b)
        for field, version in zip(("version_a", "version_b"), asked, strict=True):
            if version < 1:
                raise InvalidArgument(field=field, why="must be 1 or more")
        if asked[0] == asked[1]:
            raise InvalidArgument(field="version_b", why="must be another version than version_a")
        found = await self._store.totals(self._query(id, request), asked)
        a, b = found[asked[0]], found[asked[1]]
        presses = records.mean_difference(
            (a.presses, a.presses_squared, a.completed), (b.presses, b.presses_squared, b.completed)
        )
        listening = records.mean_difference(
            (a.listened_ms / 1e3, a.listened_ms_squared / 1e6, a.completed),
            (b.listened_ms / 1e3, b.listened_ms_squared / 1e6, b.completed),
        )
        given_up = records.share_difference(a.given_up, a.over, b.given_up, b.over)
        return pb.CompareMenusResponse(
            a=_report(asked[0], a),
            b=_report(asked[1], b),
            presses=_show_difference(presses),
            listening_seconds=_show_difference(listening),
            given_up=_show_difference(given_up),
        )

    # --- rebuilding ---

    async def rebuild(self, request: pb.RebuildMenuRequest, subject: str) -> pb.RebuildMenuResponse:
        """A draft rebuilt from use, stored unless it is only to be shown. Raises InvalidArgument,
        RebuildImpossible.
        """
        id, asked = _asked(request)
        key = request_key(subject, "RebuildMenu", request.request_id)
        _check_rebuild(request)
        version = asked or (await self._running.published(id)).version
        index = await self._running.index(id, version)
        if index.menu.kind is Kind.SURVEY:
            raise apart.RebuildImpossible(
                subject=f"menus/{id}", why="the levels of a survey are its questions"
            )
        accesses, regulars = await self._accesses(index, request)
        leaves = sum(1 for _ in index.menu.root.leaves())
        job = apart.Job(
            menu=convert.show_menu(index.menu).SerializeToString(),
            id=id,
            accesses=accesses,
            regulars=regulars,
            keep_groups=request.keep_groups,
            choices_max=request.choices_max or CHOICES_MAX,
            changes_max=request.changes_max,
            listening_weight=request.listening_weight,
            stability=request.stability,
        )
        answer = await apart.answer(job, leaves)
        answer.menu.note = f"rebuilt from version {version} by {answer.accesses} accesses"
        if not request.validate_only:
            draft = await asyncio.to_thread(convert.checked_menu, id, answer.menu)
            answer.menu.CopyFrom(await self._add(draft, key, content_fingerprint(request)))
        return answer

    async def _accesses(
        self, index: Index, request: pb.RebuildMenuRequest
    ) -> tuple[dict[str, int], dict[str, int]]:
        if not request.accesses:
            links = tuple(leaf.id for leaf in index.menu.root.leaves() if leaf.act is Act.LINK)
            return await self._store.accesses(self._query(index.menu.id, request, links=links))
        for id, number in request.accesses.items():
            node = index.nodes.get(id)
            if node is None or not node.leaf:
                raise InvalidArgument(field=f"accesses[{id[:128]}]", why="is not a leaf of this version")
            if not 0 <= number <= ACCESSES_MAX:
                raise InvalidArgument(field=f"accesses[{id[:128]}]", why=f"must be 0 to {ACCESSES_MAX}")
        return dict(request.accesses), {}


def _alone(field: str, name: str) -> str:
    """The id in `menus/{menu}`. Raises InvalidArgument."""
    id, version = convert.named(field, name)
    if version:
        raise InvalidArgument(field=field, why="must name the menu alone; the version has a field of its own")
    return id


def _asked(request: Any) -> tuple[str, int]:
    """Id and version of a request that has a field for the version and may have it in the name; 0 for none.
    Raises InvalidArgument.
    """
    id, in_name = convert.named("name", request.name)
    if request.version < 0:
        raise InvalidArgument(field="version", why="must not be negative")
    if in_name and request.version not in (0, in_name):
        raise InvalidArgument(field="version", why="must be that of the name, or 0")
    return id, request.version or in_name


def _check_rebuild(request: pb.RebuildMenuRequest) -> None:
    bounds: Mapping[str, tuple[float, float]] = {
        "changes_max": (0, CHANGES_MAX),
        "listening_weight": (0, 10),
        "stability": (0, 100),
        "version": (0, 10**9),
    }
    for field, (low, high) in bounds.items():
        value = getattr(request, field)
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidArgument(field=field, why=f"must be {low:g} to {high:g}")
    if request.choices_max and not 2 <= request.choices_max <= CHOICES_MAX:
        raise InvalidArgument(field="choices_max", why=f"must be 2 to {CHOICES_MAX}, or 0 for {CHOICES_MAX}")


def _publication(before: Published, request: pb.PublishMenuRequest) -> Published:
    """What is to be in service."""
    trial = 0 < request.share < 1
    if trial and not before.version:
        raise InvalidArgument(
            field="share", why="must be 0: there is no version in service beside which to try another"
        )
    if trial and request.version == before.version:
        raise InvalidArgument(field="version", why="is in service for everybody already")
    if trial:
        return Published(menu=before.menu, version=before.version, trial=request.version, share=request.share)
    return Published(menu=before.menu, version=request.version)


def _with_publication(message: pb.Menu, published: Published) -> pb.Menu:
    message.published = bool(message.version) and message.version == published.version
    message.etag = etag(published.revision)
    message.trial_version = published.trial
    message.trial_share = published.share
    return message


def _show_shortcut(shortcut: Shortcut) -> pb.Shortcut:
    return pb.Shortcut(
        caller_number=shortcut.number,
        menu=resource_name("menus", shortcut.menu),
        digit=shortcut.key,
        node=shortcut.node,
        source=shortcut.source,  # type: ignore[arg-type]
        update_time=timestamp(shortcut.at_ms),
    )


def _means(totals: Totals) -> tuple[float, float]:
    completed = totals.completed or 1
    return totals.presses / completed, totals.listened_ms / completed / 1000


def _show_counts(counts: records.Counts) -> pb.MenuStats:
    totals = counts.totals
    presses, seconds = _means(totals)
    message = pb.MenuStats(
        sessions=totals.sessions,
        completed=totals.completed,
        given_up=totals.given_up,
        fallbacks=totals.fallbacks,
        presses_mean=presses,
        listening_seconds_mean=seconds,
        callers=counts.callers,
        regular_callers=counts.regular_callers,
    )
    for id, node in sorted(counts.nodes.items()):
        message.nodes.add(
            node=id,
            accesses=node.accesses,
            given_up=node.given_up,
            listening=duration(node.listened_ms // node.heard if node.heard else 0),
            wrong_keys=node.wrong_keys,
            timeouts=node.timeouts,
        )
    for way, sessions, lost in counts.paths:
        message.paths.add(nodes=way, sessions=sessions, given_up=lost)
    return message


def _report(version: int, totals: Totals) -> pb.CompareMenusResponse.VersionReport:
    presses, seconds = _means(totals)
    return pb.CompareMenusResponse.VersionReport(
        version=version,
        sessions=totals.over,
        completed=totals.completed,
        given_up=totals.given_up,
        fallbacks=totals.fallbacks,
        presses_mean=presses,
        listening_seconds_mean=seconds,
    )


def _show_difference(found: Difference) -> pb.CompareMenusResponse.Difference:
    return pb.CompareMenusResponse.Difference(
        value=found.value, low=found.low, high=found.high, significant=found.significant
    )
