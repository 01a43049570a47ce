"""Reading four databases at one instant, and writing them back.

1. The instant is a point of the replica set's (or sharded cluster's) own clock, fixed by the first reading
   of one snapshot session. Every write that had been acknowledged by a majority before the backup began
   lies before it.
2. All collections of all databases are read in that session, hence at that very point. So customers,
   tickets, offers and routing's journal fit together, however long the reading takes and whatever is
   written meanwhile.
3. The server keeps the past for `minSnapshotHistoryWindowInSeconds` (300 s by default): a reading that
   takes longer ends with an error and leaves nothing behind. A primary lost on the way costs the collection
   in hand, which is read again at the same point.
4. A backup appears under its name when all of it lies on the disk: what was cut short is never taken for one.
5. A restore looks at every checksum before it touches anything and writes into empty databases only. It marks
   all of them before it drops anything, until all is written: services do not start on a half-restored
   database, and no backup is made of one.
6. Neither needs more than to read and write: what a database holds is dropped collection by collection.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
from bson import Timestamp, json_util
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from chassis.mongo import RESTORING
from cli.dump_files import (
    FORMAT,
    LENGTH,
    PLAIN,
    SEALED,
    BadBackup,
    Writer,
    checksum,
    documents,
    fresh_name,
    read_manifest,
    write_manifest,
)

#: Documents asked for at once, and written at once; bytes written at once.
BATCH_DOCUMENTS, INSERT_DOCUMENTS_MAX, INSERT_BYTES_MAX = 2_000, 5_000, 16 << 20
#: How often a collection is begun again after a lost connection.
ATTEMPTS_MAX = 3
#: How long connections of services that have just ended are waited for, and between two looks, seconds.
GOING_SECONDS_MAX, POLL_SECONDS = 5.0, 0.2
#: Names of backups, which is what `keep` counts and removes.
NAMED = re.compile(r"callmesh-\d{8}T\d{6}Z-[0-9a-z]{4}")
#: Ending of the name of one that is not finished; age at which nobody works on it any more, seconds.
PART, PART_SECONDS_MAX = ".part", 86_400
#: What a backup's file may be called: no way out of its directory.
_PLACE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,119}")
#: The server no longer has the past that was asked for: SnapshotTooOld, SnapshotUnavailable.
_TOO_OLD = frozenset({239, 246})
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_MAJORITY = WriteConcern(w="majority")

Told = Callable[[str], None]


class CannotBackUp(Exception):
    """The backup was not made: one line with what to do."""


class CannotRestore(Exception):
    """Nothing was restored, or not all of it: one line with what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A finished backup."""

    directory: Path
    manifest: dict[str, Any]
    #: Real seconds that it took.
    seconds: float

    @property
    def documents(self) -> int:
        """Documents in it."""
        return sum(entry["documents"] for _, _, entry in entries(self.manifest))

    @property
    def bytes(self) -> int:
        """Bytes of BSON in it, before compression."""
        return sum(entry["bytes"] for _, _, entry in entries(self.manifest))


def entries(manifest: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(database, collection, what the manifest says of it), in order."""
    for database, collections in sorted(manifest["databases"].items()):
        for collection, entry in sorted(collections.items()):
            yield database, collection, entry


def place(database: str, collection: str, *, sealed: bool) -> str:
    """A collection's file in a backup. Raises BadBackup for a name that would be none."""
    for name in (database, collection):
        if not _PLACE.fullmatch(name):
            raise BadBackup(f"{database}.{collection} is no name of a collection that a backup may hold")
    return f"{database}/{collection}{SEALED if sealed else PLAIN}"


# --- there -------------------------------------------------------------------------------------------------


def back_up(
    client: pymongo.MongoClient[dict[str, Any]],
    names: Sequence[str],
    target: Path,
    key: bytes | None = None,
    *,
    release: str = "",
    told: Told = lambda line: None,
) -> Made:
    """Backs up the databases into a new directory under `target`. Raises CannotBackUp, and leaves nothing
    then.
    """
    started = time.monotonic()
    taken_at = datetime.now(UTC).replace(microsecond=0)
    directory = target / fresh_name(taken_at.strftime("%Y%m%dT%H%M%SZ"))
    part = directory.with_name(f"{directory.name}{PART}")
    try:
        _sweep(target, taken_at)
        part.mkdir(parents=True, mode=0o700)
        point = _now_there(client)
        databases = _read(client, names, part, key, told)
        manifest = {
            "format": FORMAT,
            "release": release,
            "taken_at": taken_at.isoformat(),
            "cluster_time": [point.time, point.inc],
            "server": client.server_info()["version"],
            "sealed": key is not None,
            "databases": databases,
        }
        if not any(databases.values()):
            raise CannotBackUp(f"there is nothing to back up: {', '.join(names)} are empty")
        write_manifest(part, manifest, key)
        _settle(part)
        part.rename(directory)
    except OSError as error:
        raise CannotBackUp(f"{target} cannot be written: {error.strerror or error}") from None
    except PyMongoError as error:
        raise CannotBackUp(_why_unread(error)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Made(directory=directory, manifest=manifest, seconds=time.monotonic() - started)


def _read(
    client: pymongo.MongoClient[dict[str, Any]],
    names: Sequence[str],
    part: Path,
    key: bytes | None,
    told: Told,
) -> dict[str, dict[str, dict[str, Any]]]:
    """All databases at one instant; at a later one when an index or a collection was made meanwhile."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            # The session's first reading fixes the instant of all its readings.
            with client.start_session(snapshot=True) as session:
                return {name: _read_database(client[name], session, part, key, told) for name in names}
        except OperationFailure as error:
            if error.code not in _TOO_OLD or attempt == ATTEMPTS_MAX:
                raise
            told("begun again: the server has no picture of that instant")
    raise AssertionError("unreachable")


def _sweep(target: Path, now: datetime) -> None:
    """Removes what is left of backups that were killed: nobody else would, and one day the disk would be
    full.
    """
    for left in target.glob(f"*{PART}") if target.is_dir() else ():
        name = left.name.removesuffix(PART)
        if not NAMED.fullmatch(name):
            continue
        begun = datetime.strptime(name.split("-")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if (now - begun).total_seconds() > PART_SECONDS_MAX:
            shutil.rmtree(left, ignore_errors=True)


def _now_there(client: pymongo.MongoClient[dict[str, Any]]) -> Timestamp:
    """The primary's own time as the reading begins, for the record. Pymongo's errors."""
    point: Timestamp | None = client.admin.command("ping").get("operationTime")
    if point is None:
        raise CannotBackUp(
            "a backup needs a replica set or a sharded cluster: this server keeps no cluster time"
        )
    return point


def _why_unread(error: PyMongoError) -> str:
    if isinstance(error, OperationFailure) and error.code in _TOO_OLD:
        return (
            "the server has forgotten the instant of this backup before all was read: raise its parameter "
            "minSnapshotHistoryWindowInSeconds"
        )
    code = f" ({error.code})" if isinstance(error, OperationFailure) else ""
    return f"the database cannot be read: {type(error).__name__}{code}"


def _read_database(
    database: Any, session: Any, part: Path, key: bytes | None, told: Told
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for info in sorted(database.list_collections(), key=lambda each: str(each["name"])):
        name = info["name"]
        if name == RESTORING:
            # It would look whole, and in time take the place of the last good one.
            raise CannotBackUp(f"{database.name} is being restored, or was left half restored")
        if info["type"] != "collection" or name.startswith("system."):
            continue
        if info.get("options", {}).get("capped"):
            raise CannotBackUp(f"{database.name}.{name} is capped: such a collection has no past to read")
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                found[name] = _read_collection(database, info, session, part, key)
                break
            except AutoReconnect:
                if attempt == ATTEMPTS_MAX:
                    raise
        told(f"{database.name}.{name}: {found[name]['documents']}")
    return found


def _read_collection(
    database: Any, info: dict[str, Any], session: Any, part: Path, key: bytes | None
) -> dict[str, Any]:
    name = place(database.name, info["name"], sealed=key is not None)
    path = part / name
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    writer = Writer(path, name, key)
    count = size = 0
    try:
        found = database[info["name"]].find_raw_batches({}, batch_size=BATCH_DOCUMENTS, session=session)
        with found as batches:
            for batch in batches:
                writer.write(batch)
                count += _count(batch)
                size += len(batch)
        digest = writer.close()
    finally:
        writer.abandon()
    said = [dict(index) for index in database[info["name"]].list_indexes()]
    return {
        "file": name,
        "documents": count,
        "bytes": size,
        "sha256": digest,
        "options": _plain(info.get("options", {})),
        "indexes": _plain(said),
    }


def _count(batch: bytes) -> int:
    """How many documents lie one after another in a batch."""
    count = at = 0
    while at < len(batch):
        at += LENGTH.unpack_from(batch, at)[0]
        count += 1
    return count


def _plain(value: Any) -> Any:
    """As JSON can say it, and `_rich` takes back."""
    return json.loads(json_util.dumps(value, json_options=json_util.CANONICAL_JSON_OPTIONS))


def _rich(value: Any) -> Any:
    return json_util.loads(json.dumps(value))


def _settle(part: Path) -> None:
    """Lets the disk know the names as well."""
    for directory in (part, *(each for each in part.iterdir() if each.is_dir())):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def prune(target: Path, keep: int) -> list[str]:
    """Removes all but the newest backups in a directory; their names. What has another name is left alone."""
    names = sorted((each.name for each in target.iterdir() if NAMED.fullmatch(each.name)), reverse=True)
    for name in names[keep:]:
        shutil.rmtree(target / name)
    return names[keep:]


# --- and back ----------------------------------------------------------------------------------------------


def verify(directory: Path, key: bytes | None) -> dict[str, Any]:
    """The manifest of a backup whose files are all as they were written. Raises BadBackup."""
    manifest = read_manifest(directory, key)
    for database, collection, entry in entries(manifest):
        name = place(database, collection, sealed=key is not None)
        if entry["file"] != name:
            raise BadBackup(f"the manifest calls {name} {str(entry['file'])[:80]!r}")
        if checksum(directory / name) != entry["sha256"]:
            raise BadBackup(f"{name} is not as it was written")
    return manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """What a restore did."""

    manifest: dict[str, Any]
    documents: int
    #: Real seconds.
    seconds: float


def restore(
    client: pymongo.MongoClient[dict[str, Any]],
    directory: Path,
    key: bytes | None = None,
    *,
    replace: bool = False,
    told: Told = lambda line: None,
) -> Restored:
    """Writes a backup into empty databases; with `replace` into databases whose data are dropped first.

    Raises BadBackup before anything is touched, CannotRestore.
    """
    started = time.monotonic()
    manifest = verify(directory, key)
    try:
        _refuse_if_used(client)
        held = [name for name in manifest["databases"] if _holds_anything(client[name])]
        if held and not replace:
            raise CannotRestore(f"{', '.join(held)} hold data: --replace drops them first")
        for name in manifest["databases"]:
            _mark(client[name], manifest)
        for name in manifest["databases"]:
            _empty(client[name])
        count = 0
        for database, collection, entry in entries(manifest):
            path = directory / place(database, collection, sealed=key is not None)
            written = _write_collection(client[database], collection, entry, path, key)
            told(f"{database}.{collection}: {written}")
            count += written
        for name in manifest["databases"]:
            client[name].drop_collection(RESTORING)
    except PyMongoError as error:
        code = f" ({error.code})" if isinstance(error, OperationFailure) else ""
        raise CannotRestore(
            f"the database cannot be written: {type(error).__name__}{code}; repeat with --replace"
        ) from None
    return Restored(manifest=manifest, documents=count, seconds=time.monotonic() - started)


def _holds_anything(database: Any) -> bool:
    return any(
        name == RESTORING or database[name].find_one({}, {"_id": 1}) is not None
        for name in database.list_collection_names()
        if not name.startswith("system.")
    )


def _refuse_if_used(client: pymongo.MongoClient[dict[str, Any]]) -> None:
    """A platform that is running would write between what is restored. Raises CannotRestore."""
    give_up = time.monotonic() + GOING_SECONDS_MAX
    while running := _connected(client):
        if time.monotonic() >= give_up:
            raise CannotRestore(f"services are connected: stop them first ({', '.join(running)})")
        time.sleep(POLL_SECONDS)


def _connected(client: pymongo.MongoClient[dict[str, Any]]) -> list[str]:
    """Names of callmesh's processes that are connected; none where this user may not ask."""
    asked: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True, "idleConnections": True}},
        {"$match": {"appName": {"$regex": "^callmesh-(?!cli$)"}}},
        {"$group": {"_id": "$appName"}},
    ]
    try:
        return sorted(str(each["_id"]) for each in client.admin.aggregate(asked))
    except OperationFailure:
        return []


def _mark(database: Any, manifest: dict[str, Any]) -> None:
    marks = database.get_collection(RESTORING, write_concern=_MAJORITY)
    mark = {"taken_at": manifest["taken_at"], "since": datetime.now(UTC)}
    # One that was cut short before has left its own.
    marks.replace_one({"_id": "restore"}, mark, upsert=True)


def _empty(database: Any) -> None:
    """Drops all but the mark. Not the database itself: that takes a right that writing does not need."""
    for name in database.list_collection_names():
        if name != RESTORING and not name.startswith("system."):
            database.drop_collection(name)


def _write_collection(database: Any, name: str, entry: dict[str, Any], path: Path, key: bytes | None) -> int:
    database.create_collection(name, **_rich(entry["options"]))
    collection = database.get_collection(name, codec_options=_RAW, write_concern=_MAJORITY)
    # What is valid now need not have been when it was written; passing a rule over is a right of its own.
    unchecked = True if "validator" in entry["options"] else None
    count = 0
    for batch in _batches(documents(path, entry["file"], key)):
        collection.insert_many(batch, ordered=False, bypass_document_validation=unchecked)
        count += len(batch)
    if count != entry["documents"]:
        raise BadBackup(f"{entry['file']} has {count} documents, the manifest says {entry['documents']}")
    wanted = [index for index in _rich(entry["indexes"]) if index["name"] != "_id_"]
    if wanted:
        plain = [{key: value for key, value in index.items() if key not in ("v", "ns")} for index in wanted]
        database.command("createIndexes", name, indexes=plain)
    return count


def _batches(found: Iterator[bytes]) -> Iterator[list[RawBSONDocument]]:
    batch: list[RawBSONDocument] = []
    size = 0
    for raw in found:
        batch.append(RawBSONDocument(raw))
        size += len(raw)
        if len(batch) >= INSERT_DOCUMENTS_MAX or size >= INSERT_BYTES_MAX:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
