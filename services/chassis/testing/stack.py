"""pytest fixtures around real parts: a private MongoDB and a private RabbitMQ for a test session.

A test that uses one carries `@pytest.mark.integration`. `MONGO_URI` and `AMQP_URI` in the environment are
used instead of starting anything; without them and without the programs the tests skip with the reason. Every
pytest-xdist worker is a session of its own and starts its own nodes, so tests of two workers never meet.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pymongo
import pytest

from chassis.localstack import (
    MongoNode,
    PortInUse,
    ProcessFailed,
    RabbitNode,
    find_mongod,
    find_rabbitmq_server,
    free_ports,
)

#: A file system in memory, and the free bytes there that are enough for all workers' nodes.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 * 1024**3
#: Starts tried when another process takes the chosen port first.
START_TRIES_MAX = 3

Node = TypeVar("Node", MongoNode, RabbitNode)


@pytest.fixture(scope="session")
def stack_run_dir() -> Iterator[Path]:
    """A directory for data and logs of the session's nodes, removed at the end. In memory where there is
    room: a disk's part in every commit is an eighth of the time of tests that use a database.
    """
    room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    path = Path(tempfile.mkdtemp(prefix="callmesh-test-", dir=MEMORY if room else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _start(make: Callable[[int], Node]) -> Node:
    for attempt in range(1, START_TRIES_MAX + 1):
        node = make(free_ports(3)[0])
        try:
            node.start()
            return node
        except (ProcessFailed, PortInUse):
            node.stop()
            if attempt == START_TRIES_MAX:
                raise
    raise AssertionError("unreachable")


@pytest.fixture(scope="session")
def mongo_node(stack_run_dir: Path) -> Iterator[MongoNode]:
    """The session's own one-member replica set, even where MONGO_URI is set; for tests that kill it, make
    another.
    """
    if find_mongod() is None:
        pytest.skip("no mongod on the PATH nor in the development requirements")
    node = _start(lambda port: MongoNode(stack_run_dir / f"mongo-{port}", port))
    yield node
    node.stop()


@pytest.fixture(scope="session")
def rabbit_node(stack_run_dir: Path) -> Iterator[RabbitNode]:
    """The session's own broker, even where AMQP_URI is set. A test that restarts it leaves it running."""
    if find_rabbitmq_server() is None:
        pytest.skip("rabbitmq-server is not installed")
    node = _start(lambda port: RabbitNode(stack_run_dir / f"rabbit-{port}", port))
    yield node
    node.stop()


@pytest.fixture(scope="session")
def mongo_uri(request: pytest.FixtureRequest) -> str:
    """Connection string of a replica set: MONGO_URI, or the session's own."""
    given = os.environ.get("MONGO_URI")
    if given:
        return given
    node: MongoNode = request.getfixturevalue("mongo_node")
    return node.uri


@pytest.fixture(scope="session")
def amqp_uri(request: pytest.FixtureRequest) -> str:
    """URI of a broker: AMQP_URI, or the session's own node."""
    given = os.environ.get("AMQP_URI")
    if given:
        return given
    node: RabbitNode = request.getfixturevalue("rabbit_node")
    return node.uri


@pytest.fixture(scope="session")
def mongo_client(mongo_uri: str) -> Iterator[pymongo.MongoClient[dict[str, Any]]]:
    """A client for looking at what the code under test wrote."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_uri, tz_aware=True)
    with client:
        yield client


@pytest.fixture
def fresh_database(mongo_client: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    """The name of a database that no other test uses, dropped afterwards; for tests that change indexes, or
    look at which collections there are.
    """
    name = f"test_{secrets.token_hex(8)}"
    yield name
    mongo_client.drop_database(name)


@pytest.fixture(scope="module")
def _module_database(mongo_client: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    yield name
    mongo_client.drop_database(name)


@pytest.fixture
def mongo_database(mongo_client: pymongo.MongoClient[dict[str, Any]], _module_database: str) -> Iterator[str]:
    """The name of an empty database. The tests of a file share its collections and indexes, for to make them
    takes longer than most tests.
    """
    yield _module_database
    database = mongo_client[_module_database]
    for name in database.list_collection_names():
        if name == "system.profile":
            database.drop_collection(name)
        elif not name.startswith("system."):
            database[name].delete_many({})
