"""Backups of a real replica set: one instant, order of indexes, seals, damage, what a restore refuses."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest
import typer
from bson import Int64
from pymongo.monitoring import CommandListener
from typer.testing import CliRunner

from chassis.config import ServiceSettings
from chassis.errors import StartError
from chassis.localstack import MongoNode, free_ports
from chassis.mongo import RESTORING, connect
from cli import dump
from cli.backup import drill
from cli.directory import Refused
from cli.dump_files import MANIFEST, BadBackup, read_key

pytestmark = pytest.mark.integration

KEY = bytes(range(32))
NAMES = ("drill_first", "drill_second")
drills = typer.Typer()
drills.command()(drill)
Client = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A set of its own: a restore refuses one that services are connected to."""
    with (
        MongoNode(tmp_path_factory.mktemp("mongo"), free_ports(1)[0]) as node,
        pymongo.MongoClient[dict[str, Any]](node.uri, w="majority", appname="callmesh-cli") as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def data(client: Client) -> Iterator[None]:
    first, second = (client[name] for name in NAMES)
    first.things.insert_many([{"_id": n, "b": Int64(n), "a": "x" * 50} for n in range(5_000)])
    first.things.create_index([("b", 1), ("a", -1)], name="b_a")
    first.things.create_index([("a", 1), ("b", 1)], name="a_b", sparse=True)
    first.create_collection("empty", collation={"locale": "zh"})
    second.marks.create_index("at", name="kept", expireAfterSeconds=60)
    second.marks.insert_one({"_id": "mark"})
    yield
    for name in NAMES:
        client.drop_database(name)


def indexes(collection: Any) -> list[Any]:
    return [
        (each["name"], list(each["key"].items()), each.get("sparse")) for each in collection.list_indexes()
    ]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_what_was_backed_up_comes_back_as_it_was(client: Client, tmp_path: Path, key: bytes | None) -> None:
    things = client[NAMES[0]].things
    before, there = list(things.find()), indexes(things)
    made = dump.back_up(client, NAMES, tmp_path, key)
    assert made.documents == 5_001
    assert (b"x" * 20 in b"".join(path.read_bytes() for path in made.directory.rglob("*.bson*"))) is False

    things.delete_many({})
    things.insert_one({"_id": "later"})
    with pytest.raises(dump.CannotRestore, match=r"drill_first, drill_second hold data: --replace"):
        dump.restore(client, made.directory, key)
    assert things.count_documents({}) == 1
    assert dump.restore(client, made.directory, key, replace=True).documents == 5_001
    assert list(things.find()) == before and indexes(things) == there
    assert client[NAMES[0]]["empty"].options()["collation"]["locale"] == "zh"
    assert client[NAMES[1]].marks.index_information()["kept"]["expireAfterSeconds"] == 60
    assert RESTORING not in client[NAMES[0]].list_collection_names()


def test_all_databases_are_read_at_one_instant(client: Client, tmp_path: Path) -> None:
    """A writer counts up in both databases, the second always after the first."""
    going = threading.Event()

    def count() -> None:
        for n in range(100_000):
            for name in NAMES:
                client[name].counter.replace_one({"_id": 0}, {"n": n}, upsert=True)
            if going.is_set():
                return

    for name in NAMES:
        client[name].counter.insert_one({"_id": 0, "n": -1})
    writer = threading.Thread(target=count)
    writer.start()
    try:
        backups = [dump.back_up(client, NAMES, tmp_path) for _ in range(3)]
    finally:
        going.set()
        writer.join()
    for made in backups:
        dump.restore(client, made.directory, replace=True)
        first, second = (client[name].counter.find_one({})["n"] for name in NAMES)  # type: ignore[index]
        assert second <= first <= second + 1


def _flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def _forget(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [_flip, _forget])
@pytest.mark.parametrize("file", [MANIFEST, "drill_first/things.bson.gz"])
def test_a_damaged_backup_touches_nothing(client: Client, tmp_path: Path, harm: Any, file: str) -> None:
    made = dump.back_up(client, NAMES, tmp_path)
    harm(made.directory / file)
    with pytest.raises(BadBackup):
        dump.restore(client, made.directory, replace=True)
    assert client[NAMES[0]].things.count_documents({}) == 5_000


def test_a_sealed_backup_opens_with_its_key_alone(client: Client, tmp_path: Path) -> None:
    made = dump.back_up(client, NAMES, tmp_path, KEY)
    for key, why in ((None, "name its key file"), (bytes(32), "the key is another")):
        with pytest.raises(BadBackup, match=why):
            dump.verify(made.directory, key)
    for said, why in (("abc", "must hold 32 bytes"), (None, "cannot be read")):
        file = tmp_path / f"key-{said}"
        if said:
            file.write_text(said)
        with pytest.raises(BadBackup, match=why):
            read_key(file)


def test_nothing_starts_on_and_nobody_writes_into_a_restore(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "GOING_SECONDS_MAX", 0.0)
    made = dump.back_up(client, NAMES, tmp_path)
    host, port = client.address or ("", 0)
    uri = f"mongodb://{host}:{port}/?directConnection=true"
    with pymongo.MongoClient[dict[str, Any]](uri, appname="callmesh-crm") as service:
        service.admin.command("ping")
        with pytest.raises(dump.CannotRestore, match=r"services are connected.*callmesh-crm"):
            dump.restore(client, made.directory, replace=True)
    client[NAMES[0]][RESTORING].insert_one({"_id": "restore"})
    with pytest.raises(StartError, match="half restored"):
        connect(ServiceSettings(service="test", mongo_uri=uri, mongo_database=NAMES[0]))


@pytest.mark.parametrize("database", NAMES)
def test_no_backup_is_made_of_a_half_restored_database(client: Client, tmp_path: Path, database: str) -> None:
    """It would look whole, and with each hour one good backup less would be left."""
    made = dump.back_up(client, NAMES, tmp_path)
    client[database][RESTORING].insert_one({"_id": "restore"})
    with pytest.raises(dump.CannotBackUp, match=f"{database} is being restored, or was left half restored"):
        dump.back_up(client, NAMES, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [made.directory.name]
    # The restore that mends it takes the mark away, also the one that was left.
    dump.restore(client, made.directory, replace=True)
    assert dump.back_up(client, NAMES, tmp_path).documents == 5_001


class Heard(CommandListener):
    """What a client asked for."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, frozenset[str]]] = []

    def started(self, event: Any) -> None:
        self.commands.append((event.command_name, frozenset(event.command)))

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


def test_a_restore_needs_no_more_rights_than_the_services(client: Client, tmp_path: Path) -> None:
    """Those of readWrite, and clusterMonitor to see who is connected: dropping a database, or passing over a
    collection's rules, is for dbAdmin alone.
    """
    made = dump.back_up(client, NAMES, tmp_path)
    heard = Heard()
    host, port = client.address or ("", 0)
    uri = f"mongodb://{host}:{port}/?directConnection=true"
    with pymongo.MongoClient[dict[str, Any]](uri, appname="callmesh-cli", event_listeners=[heard]) as user:
        dump.restore(user, made.directory, replace=True)
    allowed = {"aggregate", "create", "createIndexes", "drop", "find", "insert", "listCollections", "update"}
    assert {name for name, _ in heard.commands} <= allowed | {"endSessions", "ping"}
    assert not any("bypassDocumentValidation" in fields for _, fields in heard.commands)


def test_all_databases_are_marked_before_one_is_emptied(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dump.back_up(client, NAMES, tmp_path)

    def cut(database: Any) -> None:
        raise pymongo.errors.AutoReconnect(database.name)

    monkeypatch.setattr(dump, "_empty", cut)
    with pytest.raises(dump.CannotRestore):
        dump.restore(client, made.directory, replace=True)
    assert all(RESTORING in client[name].list_collection_names() for name in NAMES)
    assert client[NAMES[0]].things.count_documents({}) == 5_000


def test_the_oldest_backups_go_and_nothing_else(client: Client, tmp_path: Path) -> None:
    made = [dump.back_up(client, NAMES[1:], tmp_path).directory.name for _ in range(3)]
    (tmp_path / "callmesh-notes").mkdir()
    gone = dump.prune(tmp_path, 1)
    left = {each.name for each in tmp_path.iterdir()}
    assert len(gone) == 2 and left == {"callmesh-notes", *made} - set(gone)
    with pytest.raises(dump.CannotBackUp, match="nothing to back up"):
        dump.back_up(client, ["drill_nowhere"], tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == left


def test_what_a_killed_backup_left_goes_in_time(client: Client, tmp_path: Path) -> None:
    fresh = datetime.now(UTC).strftime("callmesh-%Y%m%dT%H%M%SZ-zzzz.part")
    names = {"callmesh-20200101T000000Z-aaaa.part", fresh, "notes.part"}
    for name in names:
        (tmp_path / name / "callmesh_crm").mkdir(parents=True)
    made = dump.back_up(client, NAMES[1:], tmp_path).directory.name
    assert {each.name for each in tmp_path.iterdir()} == {fresh, "notes.part", made}


def test_a_drill_tries_the_restore_elsewhere_and_names_what_is_missing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command: with a backup that it makes of the running databases, and with one whose restore loses
    something on the way, which is what drills are for.
    """
    host, port = client.address or ("", 0)
    monkeypatch.setenv("MONGO_URI", f"mongodb://{host}:{port}/?directConnection=true")
    for service, name in zip(("ROUTING", "CRM"), NAMES, strict=True):
        monkeypatch.setenv(f"{service}_MONGO_DATABASE", name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    report = tmp_path / "reports" / "drill.json"

    done = CliRunner().invoke(drills, ["--out", str(report)])
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())
    assert (figures["ok"], figures["missing"], figures["documents"], figures["indexes"]) == (
        True,
        [],
        5_001,
        6,
    )
    assert all(figures[f"{name}_seconds"] >= 0 for name in ("backup", "restore", "backup_age"))
    assert "documents                5001" in done.output

    restore = dump.restore

    def losing(held: Client, *given: Any) -> dump.Restored:
        told = restore(held, *given)
        held[NAMES[0]].things.delete_one({"_id": 7})
        held[NAMES[0]].things.drop_index("a_b")
        return told

    monkeypatch.setattr(dump, "restore", losing)
    made = dump.back_up(client, NAMES, tmp_path / "kept", KEY)
    (tmp_path / "key").write_bytes(KEY)
    words = [str(made.directory), "--key-file", str(tmp_path / "key"), "--out", str(report)]
    assert CliRunner().invoke(drills, words).exit_code == 1
    assert json.loads(report.read_text())["missing"] == [
        "drill_first.things: 4999 of 5000 documents",
        "drill_first.things: index a_b (a, b)",
    ]
    refused = CliRunner().invoke(drills, [str(made.directory), "--out", str(report)])
    assert isinstance(refused.exception, Refused) and "name its key file" in str(refused.exception)
    # What it was tried on is as it was, and what it was tried in is gone.
    assert client[NAMES[0]].things.count_documents({}) == 5_000
    assert list((tmp_path / "scratch").iterdir()) == []
