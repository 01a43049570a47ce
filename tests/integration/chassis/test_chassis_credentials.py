"""Passwords changed under processes that go on: a real mongod that asks for them, a real broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import amqp
import pymongo
import pytest
from pymongo.errors import OperationFailure

from chassis import mongo
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.verdict import is_away
from chassis.config import ServiceSettings
from chassis.credentials import ConnectionFile, client_of
from chassis.errors import StartError, translate
from chassis.localstack import ManagedProcess, RabbitNode, TcpReady, find_mongod, free_ports
from cli.stores import amqp_uri

pytestmark = pytest.mark.integration

START_SECONDS_MAX = 40.0
ANSWER_MS_MAX = 5_000
#: Answered so slowly that operations at once need a connection each.
SLOWLY: list[dict[str, Any]] = [
    {"$addFields": {"slow": {"$function": {"body": "function() { sleep(200) }", "args": [], "lang": "js"}}}}
]


class Guarded:
    """A mongod with a user "app"."""

    def __init__(self, port: int) -> None:
        self._at = f"127.0.0.1:{port}"
        self._root: Any = pymongo.MongoClient(f"mongodb://{self._at}/?directConnection=true")
        self._root.admin.command("createUser", "root", pwd="root", roles=["root"])
        self._root.close()
        self._root = pymongo.MongoClient(f"mongodb://root:root@{self._at}/?directConnection=true")
        self._root.admin.command("createUser", "app", pwd="one", roles=["readWriteAnyDatabase"])

    def uri(self, password: str) -> str:
        return f"mongodb://app:{password}@{self._at}/?authSource=admin"

    def change(self, password: str) -> None:
        self._root.admin.command("updateUser", "app", pwd=password)

    def close(self) -> None:
        self._root.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    binary = find_mongod()
    if binary is None:
        pytest.skip("needs a mongod")
    (data := tmp_path / "data").mkdir()
    (port,) = free_ports(1)
    process = ManagedProcess(tmp_path, "mongod-guarded")
    command = [binary, "--auth", "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
    command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--quiet"]
    process.start(command, env={"PATH": os.environ["PATH"]}, die_with_parent=True)
    try:
        process.wait_ready(TcpReady(address=f"127.0.0.1:{port}"), START_SECONDS_MAX)
        made = Guarded(port)
        yield made
        made.close()
    finally:
        process.kill()


def at_once(database: Any, count: int) -> list[BaseException]:
    """What goes wrong with so many operations side by side, each on a connection of its own."""

    def one(_: int) -> BaseException | None:
        try:
            database.marks.aggregate(SLOWLY).to_list()
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return [error for error in pool.map(one, range(count)) if error is not None]


async def test_a_mongodb_password_changes_without_a_restart(guarded: Guarded, tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text(guarded.uri("one") + "\n")
    settings = ServiceSettings(service="test", mongo_uri_file=str(file), mongo_operation_seconds=30)
    assert settings.mongo_uri == guarded.uri("one")
    database = mongo.connect(settings)
    hot = mongo.async_database(settings)
    try:
        database.marks.insert_one({"_id": 1})
        # Announced, not in force yet: nobody notices.
        file.write_text(guarded.uri("two") + "\n" + guarded.uri("one") + "\n")
        assert at_once(database, 3) == []
        # Nor does a process that starts meanwhile, or one that works for another.
        mongo.disconnect()
        fresh = ServiceSettings(service="test", mongo_uri_file=str(file), mongo_operation_seconds=30)
        assert fresh.mongo_uri == guarded.uri("two")
        database = mongo.connect(fresh)
        assert at_once(database, 3) == []
        for _ in ("announced", "in force"):
            with client_of("", str(file), ANSWER_MS_MAX) as apart:
                assert apart[settings.mongo_database].marks.count_documents({}) == 1
            guarded.change("two")
        # Connections that stand go on. The first new one is refused, which is said as "try again", and
        # turns the page.
        for error in at_once(database, 5):
            assert translate(error).code.value == "UNAVAILABLE" and is_away(error)
        assert at_once(database, 6) == []
        file.write_text(guarded.uri("two") + "\n")
        assert await hot.marks.count_documents({}) == 1
        # In one step, where a moment's refusals do not matter.
        guarded.change("three")
        file.write_text(guarded.uri("three") + "\n")
        assert at_once(database, 8) == []
    finally:
        await hot.client.close()
        mongo.disconnect()


def test_another_refusal_is_no_outage() -> None:
    assert not is_away(OperationFailure("bad", code=2))
    assert translate(OperationFailure("bad", code=2)).code.value == "INTERNAL"


def test_a_broker_password_changes_without_a_restart(
    rabbit_node: RabbitNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbit_node.evaluate(
        'All = <<".*">>, rabbit_auth_backend_internal:add_user(<<"app">>, <<"one">>, <<"test">>),'
        ' rabbit_auth_backend_internal:set_permissions(<<"app">>, <<"/">>, All, All, All, <<"test">>).'
    )
    uri = f"amqp://app:{{}}@127.0.0.1:{rabbit_node.port}//"
    file = tmp_path / "uri"
    file.write_text(uri.format("two") + "\n# before:\n" + uri.format("one") + "\n")
    broker = ConnectionFile(str(file))
    close_quietly(open_connection(broker))
    monkeypatch.setenv("AMQP_URI_FILE", str(file))
    assert amqp_uri(tmp_path) == uri.format("one"), "commands take what holds, too"
    rabbit_node.evaluate('rabbit_auth_backend_internal:change_password(<<"app">>, <<"two">>, <<"test">>).')
    close_quietly(open_connection(broker))
    assert amqp_uri(tmp_path) == uri.format("two")
    file.write_text(uri.format("one") + "\n")
    with pytest.raises(amqp.AccessRefused):
        open_connection(broker)
    file.write_text(uri.format("two") + "\n")
    close_quietly(open_connection(broker))


def test_a_file_without_a_connection_string_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        ConnectionFile(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(StartError, match="is empty"):
        ConnectionFile(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="must come from a file"):
        ServiceSettings(mongo_uri_file=str(tmp_path / "empty"))
