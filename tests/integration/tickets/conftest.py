"""Real processes of the tickets service on real parts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.service_processes import StartProcess, processes

from chassis.localstack.process import ManagedProcess


@pytest.fixture
def start_process(tmp_path: Path, mongo_uri: str, mongo_database: str) -> Iterator[StartProcess]:
    """See `processes`."""
    with processes("tickets", tmp_path, mongo_uri, mongo_database) as start:
        yield start


@pytest.fixture(scope="module")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory, mongo_uri: str, mongo_client: Any
) -> Iterator[tuple[ManagedProcess, int]]:
    """One server for the tests of a module: (process, gRPC port)."""
    database = f"test_{secrets.token_hex(8)}"
    with processes("tickets", tmp_path_factory.mktemp("server"), mongo_uri, database) as start:
        yield start("tickets", "server")
    mongo_client.drop_database(database)
