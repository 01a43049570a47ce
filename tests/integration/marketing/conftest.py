"""Real processes of the marketing service on real parts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.service_processes import StartProcess, processes


@pytest.fixture
def start_process(tmp_path: Path, mongo_uri: str, mongo_database: str) -> Iterator[StartProcess]:
    """See `processes`."""
    with processes("marketing", tmp_path, mongo_uri, mongo_database) as start:
        yield start


@pytest.fixture(scope="module")
def served_database() -> str:
    """The name of the database of `shared_server`."""
    return f"test_{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def _running_server(
    tmp_path_factory: pytest.TempPathFactory, mongo_uri: str, mongo_client: Any, served_database: str
) -> Iterator[int]:
    with processes("marketing", tmp_path_factory.mktemp("server"), mongo_uri, served_database) as start:
        yield start("marketing", "server")[1]
    mongo_client.drop_database(served_database)


@pytest.fixture
def shared_server(_running_server: int, mongo_client: Any, served_database: str) -> Iterator[int]:
    """gRPC port of one server for the tests of a module; it keeps nothing of an earlier test but what it
    remembers to rank by.
    """
    yield _running_server
    database = mongo_client[served_database]
    for name in database.list_collection_names():
        database[name].delete_many({})
