"""Real processes of the marketing service on real parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.service_processes import StartProcess, processes


@pytest.fixture
def start_process(tmp_path: Path, mongo_uri: str, mongo_database: str) -> Iterator[StartProcess]:
    """See `processes`."""
    with processes("marketing", tmp_path, mongo_uri, mongo_database) as start:
        yield start
