"""What the integration tests of crm share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymongo
import pytest

from crm import plans


@pytest.fixture
def nothing_scanned(mongo_client: pymongo.MongoClient[dict[str, Any]], mongo_database: str) -> Iterator[None]:
    """Whatever the test has crm ask of its database goes along an index: the database's profiler is asked."""
    database = mongo_client[mongo_database]
    with plans.profiled(database):
        yield
    assert plans.scans_profiled(database) == []
