"""What tickets go by at this moment, as every process of the service knows it.

Flows, policies, calendars and teams are records. Whoever changes one raises a counter; every process looks at
the counter at least every `REFRESH_SECONDS` and reads them all anew when it rose. A change of policies or
calendars besides asks for all open tickets to be taken over to them: the worker that runs the timers does it,
batch by batch, and remembers how far it came.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from google.protobuf.json_format import Parse
from mongoengine import get_db
from pymongo import ReturnDocument

from callmesh.tickets.v1 import flow_pb2, sla_pb2, team_pb2
from chassis.clock import Clock
from chassis.errors import InvalidArgument
from tickets import convert_config, flows, records
from tickets.calendars import Calendar
from tickets.model import Flow, Kind, Policy, Rules
from tickets.records import Record, Records

#: How old what a process knows may be, real seconds.
REFRESH_SECONDS = 0.5
#: Most records of each kind, every version of flows and calendars counted: what would be one more is refused.
RECORDS_MAX = 20_000
#: Other processes may go by the old rules for so long after a change; open tickets are taken over afterwards.
SETTLE_SECONDS = 2.0

#: Marks a version in a record's id.
VERSION_MARK = "@"
#: Ends the id of the record that tells of a team's deletion. The team's own is removed: one of that id may
#: come again.
GONE_MARK = "@gone"
#: Collection of the counters.
COUNTERS = "counters"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The counters."""

    #: How often anything was changed.
    version: int = 0
    #: How often open tickets are to be taken over.
    wanted: int = 0
    #: How often they were.
    done: int = 0
    #: How far the present round is: the last ticket's id.
    cursor: str = ""


class StateStore(Protocol):
    """Keeps the counters, and those of turns."""

    def read(self) -> State:
        """As they are."""

    def changed(self, *, retime: bool) -> None:
        """Something was changed; `retime`: open tickets are to be taken over."""

    def progress(self, state: State, cursor: str) -> None:
        """How far a round is; an empty cursor ends it."""

    def next(self, name: str) -> int:
        """1 for the first who asks, +1 for each after."""


class MongoState:
    """The counters on MongoDB. Needs `chassis.mongo.connect` first."""

    def _collection(self) -> Any:
        return get_db()[COUNTERS]

    def read(self) -> State:
        """As the port says."""
        raw: Mapping[str, Any] = self._collection().find_one({"_id": "config"}) or {}
        names = ("version", "wanted", "done")
        return State(**{name: raw.get(name) or 0 for name in names}, cursor=raw.get("cursor") or "")

    def changed(self, *, retime: bool) -> None:
        """As the port says. A round that is under way begins anew."""
        update: dict[str, Any] = {"$inc": {"version": 1, "wanted": int(retime)}}
        if retime:
            update["$set"] = {"cursor": ""}
        self._collection().update_one({"_id": "config"}, update, upsert=True)

    def progress(self, state: State, cursor: str) -> None:
        """As the port says. Nothing when another change came meanwhile: then the round begins anew."""
        values = {"cursor": cursor} if cursor else {"cursor": "", "done": state.wanted}
        self._collection().update_one({"_id": "config", "wanted": state.wanted}, {"$set": values})

    def next(self, name: str) -> int:
        """As the port says."""
        raw = self._collection().find_one_and_update(
            {"_id": name}, {"$inc": {"count": 1}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        return int(raw["count"])


class MemoryState:
    """The counters in memory; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = State()
        self._counts: dict[str, int] = {}

    def read(self) -> State:
        """As the port says."""
        return self._state

    def changed(self, *, retime: bool) -> None:
        """As the port says."""
        with self._lock:
            old = self._state
            cursor = "" if retime else old.cursor
            self._state = replace(old, version=old.version + 1, wanted=old.wanted + retime, cursor=cursor)

    def progress(self, state: State, cursor: str) -> None:
        """As the port says."""
        with self._lock:
            if self._state.wanted == state.wanted:
                done = self._state.done if cursor else state.wanted
                self._state = replace(self._state, cursor=cursor, done=done)

    def next(self, name: str) -> int:
        """As the port says."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1
            return self._counts[name]


def split_version(id: str) -> tuple[str, int]:
    """(id, version) of a record's id; version 0 for the latest."""
    bare, mark, version = id.partition(VERSION_MARK)
    return bare, int(version) if mark and version.isdecimal() else 0


class Governor:
    """The rules of one process."""

    def __init__(self, base: Rules, store: Records, state: StateStore, clock: Clock) -> None:
        """Knows nothing but `base` until the first `refresh`."""
        self._base = base
        self._store = store
        self._state = state
        self._clock = clock
        self._lock = threading.Lock()
        self._version = -1
        self._rules = base

    def rules(self) -> Rules:
        """What counts at this moment; no I/O."""
        return self._rules

    def known(self) -> Rules:
        """As `rules`, but never what nobody has read yet: for a process that takes work before its first
        `refresh`. As `refresh` that once."""
        if self._version < 0:
            self.refresh()
        return self._rules

    def refresh(self) -> None:
        """Looks for changes. Unavailable, pymongo's errors."""
        with self._lock:
            # the counter first: what is changed while we read is read again
            version = self._state.read().version
            if version != self._version:
                self._rules = self._load()
                self._version = version

    def changed(self, *, retime: bool = False) -> None:
        """Something was changed by this process: told to the others, and known here at once."""
        self._state.changed(retime=retime)
        self.refresh()

    def _load(self) -> Rules:
        known = self._load_flows()
        calendars, latest = self._load_calendars()
        stored = self._all("teams", team_pb2.Team)
        teams = {
            record.id: convert_config.read_team(message, record.id)
            for record, message in stored
            if not record.search.get("retired")
        }
        was = {record.id.removesuffix(GONE_MARK) for record, _ in stored if record.search.get("retired")}
        gone = frozenset(was - teams.keys())
        return replace(
            self._base,
            policies=self._load_policies(latest, gone),
            calendars=calendars,
            default_flows=_defaults(known),
            teams=teams,
            gone_teams=gone,
        )

    def _all(self, kind: str, message: type[Any]) -> list[tuple[Record, Any]]:
        return [
            (record, Parse(record.body, message(), ignore_unknown_fields=True))
            for record in records.all_of(self._store, kind)
        ]

    def _load_flows(self) -> list[Flow]:
        """Puts every version into the book; the latest of each that is not retired."""
        found = self._all("flows", flow_pb2.Flow)
        stored = {record.id for record, _ in found}
        newest = {r.id: int(r.search.get("version") or 1) for r, _ in found if r.search.get("latest")}
        retired = {record.id for record, _ in found if record.search.get("retired")}
        flows.set_retired(retired)
        latest = []
        for record, message in found:
            id, version = split_version(record.id)
            if not version and f"{id}{VERSION_MARK}{newest.get(id)}" not in stored:
                version = newest[id]  # its first version was not written any more
            if not version or version > newest.get(id, 0):
                continue
            try:
                flow = convert_config.read_flow(message, id, version)
                flows.install([flow])
            except (ValueError, InvalidArgument):
                continue  # a newer release may store what this one cannot read
            if version == newest[id] and id not in retired:
                latest.append(flow)
        return latest

    def _load_calendars(self) -> tuple[dict[str, Calendar], dict[str, str]]:
        """Every version by `{calendar}@{version}`; and which is the latest."""
        year = self._clock.now().year
        messages, newest, latest = dict[str, Any](), dict[str, Any](), dict[str, str]()
        for record, message in self._all("calendars", sla_pb2.Calendar):
            id, version = split_version(record.id)
            if version:
                messages[record.id] = message
            else:
                latest[id] = f"{id}{VERSION_MARK}{record.search.get('version') or 1}"
                newest[latest[id]] = message
        # one whose first version was not written any more counts as it
        found = {
            id: convert_config.read_calendar(message, id, year) for id, message in (newest | messages).items()
        }
        return found, latest

    def _load_policies(self, latest: Mapping[str, str], gone: frozenset[str]) -> tuple[Policy, ...]:
        found = []
        for record, message in self._all("slaPolicies", sla_pb2.SlaPolicy):
            calendar = latest.get(message.calendar.removeprefix("calendars/"))
            if calendar is not None:
                policy = convert_config.read_policy(message, record.id, calendar)
                # an escalation to a team that is no more leaves the ticket where it is
                levels = (replace(one, team="") if one.team in gone else one for one in policy.levels)
                found.append(replace(policy, levels=tuple(levels)))
        return tuple(sorted(found, key=lambda policy: (policy.order, policy.id)))


def _defaults(known: list[Flow]) -> dict[Kind, str]:
    """Each kind's default among the operator's flows; the first by id where several say so."""
    found: dict[Kind, str] = {}
    for flow in sorted(known, key=lambda flow: flow.id):
        if flow.default:
            found.setdefault(flow.kind, flow.id)
    return found
