"""Connection strings in files that somebody renews: a password changes without a restart.

A file holds one or two connection strings, a line each. The second is there
while a password is being changed, for as long as it is not sure which of them the server takes. What is
read again is the user and the password, whenever a connection is opened: connections that stand go on, and
other hosts or options in the file count with the next start.

To change a password: write new and old into the file, wait until every process can see it, change it at the
server, write the new one alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError
from pymongo.monitoring import ConnectionPoolListener
from pymongo.uri_parser import parse_uri

from chassis import logs
from chassis.errors import StartError
from chassis.watched import WatchedFiles

#: Connection strings in one file: the one to use, and the one before or after it.
LINES_MAX = 2
#: How often such a client looks at its servers, milliseconds.
LOOK_MS = 1_000
#: MongoDB's code for a user or a password that it does not take.
REFUSED = 18

_log = logs.get_logger(__name__)


def _lines(contents: bytes) -> list[str]:
    said = [line.strip() for line in contents.decode("utf-8", "replace").splitlines()]
    return [line for line in said if line and not line.startswith("#")][:LINES_MAX]


class ConnectionFile:
    """The connection strings in a file, as they are now; the last good ones where it cannot be read."""

    def __init__(self, path: str) -> None:
        """StartError when the file cannot be read or holds nothing."""
        self._files = WatchedFiles([path])
        self._known: list[str] = []
        self._seen = -1
        if not self.candidates():
            raise StartError("the file with the connection string is empty")

    @property
    def generation(self) -> int:
        """+1 with every change that was noticed."""
        return self._files.generation

    def candidates(self) -> list[str]:
        """One or two, the one to try first at the front."""
        (contents,) = self._files.contents()
        if self._files.generation != self._seen:
            self._seen = self._files.generation
            # An empty file is one that is being written.
            self._known = _lines(contents) or self._known
        return list(self._known)


def first_of(path: str) -> str:
    """The connection string to start with. StartError when the file cannot be read or holds nothing."""
    return ConnectionFile(path).candidates()[0]


def taken(candidates: Sequence[str], answer_ms_max: int) -> str:
    """The first connection string whose user and password the database does not refuse; the last one is not
    tried. One that does not answer refuses nobody.
    """
    *others, last = candidates
    for each in others:
        try:
            with MongoClient[dict[str, Any]](each, serverSelectionTimeoutMS=answer_ms_max) as client:
                client.admin.command("ping")
        except OperationFailure as error:
            if error.code == REFUSED:
                continue
        except (PyMongoError, ValueError):
            # Whoever uses it is told.
            return each
        return each
    return last


def client_of(uri: str, file: str, answer_ms_max: int) -> MongoClient[dict[str, Any]]:
    """A client for one piece of work: of `uri`, or of what holds in `file`, if one is named. StartError when
    the file cannot be read or holds nothing, ConfigurationError for what is no connection string.
    """
    if file:
        uri = taken(ConnectionFile(file).candidates(), answer_ms_max)
    return MongoClient(uri, serverSelectionTimeoutMS=answer_ms_max, tz_aware=True)


class _Renewed:
    """A user's credential, as pymongo wants it, that is looked up anew for each connection."""

    def __init__(self, first: Any, file: ConnectionFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._generation = file.generation
        self._choices = [first]
        self._chosen = 0
        self._load(first)

    def _load(self, like: Any) -> None:
        made = []
        for uri in self._file.candidates():
            try:
                said = parse_uri(uri, validate=False, warn=False)
            except (InvalidURI, ConfigurationError, ValueError) as error:
                _log.warning("credentials.unusable", error=type(error).__name__)
                continue
            if said["username"]:
                # A cache of its own: what was derived from another password does not fit this one.
                fresh = type(like.cache)() if like.cache is not None else None
                made.append(like._replace(username=said["username"], password=said["password"], cache=fresh))
        if made:
            # What the server took so far is gone on with, as long as the file still has it.
            names = [(each.username, each.password) for each in made]
            used = (like.username, like.password)
            self._choices, self._chosen = made, names.index(used) if used in names else 0

    def current(self) -> Any:
        """The credential for a connection that is being opened."""
        with self._lock:
            self._file.candidates()
            if self._file.generation != self._generation:
                self._generation = self._file.generation
                self._load(self._choices[self._chosen])
                _log.info("credentials.renewed", candidates=len(self._choices))
            return self._choices[self._chosen]

    def refused(self, used: Any) -> None:
        """The server did not take that one: the other one is next."""
        with self._lock:
            # Several connections may have been opened at once with it: one of them turns the page.
            if self._choices[self._chosen] is used:
                self._chosen = (self._chosen + 1) % len(self._choices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current(), name)


class _Turning(ConnectionPoolListener):
    """Notices a connection that ends before it was ready: the server did not take the password."""

    def __init__(self) -> None:
        self._opening: dict[tuple[Any, int], Any] = {}
        self.credential: _Renewed | None = None

    def connection_created(self, event: Any) -> None:
        """pymongo: it is being opened."""
        if self.credential is not None:
            self._opening[event.address, event.connection_id] = self.credential.current()

    def connection_ready(self, event: Any) -> None:
        """pymongo: the server took the credential."""
        self._opening.pop((event.address, event.connection_id), None)

    def connection_closed(self, event: Any) -> None:
        """pymongo: it is gone."""
        used = self._opening.pop((event.address, event.connection_id), None)
        if used is not None and self.credential is not None:
            self.credential.refused(used)

    def pool_created(self, event: Any) -> None:
        """pymongo: of no interest here, as what follows."""

    pool_ready = pool_cleared = pool_closed = pool_created
    connection_check_out_started = connection_check_out_failed = pool_created
    connection_checked_out = connection_checked_in = pool_created


class Renewal:
    """What makes a MongoDB client look its credential up again: options for its making, then `attach`."""

    def __init__(self, path: str) -> None:
        """No file, no renewal. StartError when the file cannot be read or holds nothing."""
        self._file = ConnectionFile(path) if path else None
        self._turning = _Turning()

    @property
    def choices(self) -> int:
        """How many connection strings there are to try."""
        return 1 if self._file is None else len(self._file.candidates())

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the client: those given, and what a renewal needs."""
        if self._file is None:
            return given
        return {
            **given,
            "event_listeners": [*given.get("event_listeners", ()), self._turning],
            # After a refusal the driver uses the server again when its monitor has looked at it once more.
            "heartbeatFrequencyMS": LOOK_MS,
        }

    def attach(self, client: Any) -> None:
        """Lets the client's new connections ask the file. StartError where the driver has no place for it.

        The driver reads its credential once for each connection, from one place; it has no public way to
        change what lies there. A test with a real server holds that this one works.
        """
        if self._file is None:
            return
        pool_options = client.options.pool_options
        first = pool_options._credentials
        if first is None:
            raise StartError("the connection string in the file names no user: there is nothing to renew")
        renewed = _Renewed(first, self._file)
        try:
            pool_options._PoolOptions__credentials = renewed
        except AttributeError:
            raise StartError("this MongoDB driver keeps its credential elsewhere: use no file") from None
        if pool_options._credentials is not renewed:
            raise StartError("this MongoDB driver keeps its credential elsewhere: use no file")
        self._turning.credential = renewed
