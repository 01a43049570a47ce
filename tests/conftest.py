"""Fixtures for every test of the project, and how they are dealt to the two workers of `make test`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is not a failure: examples have no deadline, and slow generation only takes longer.
settings.register_profile("callmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callmesh")

pytest_plugins = ["chassis.testing.grpc", "chassis.testing.stack"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together and in order; the files that share the one platform stay together too."""
    for item in items:
        name = item.path.name
        group = "platform" if name.startswith("test_platform_") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
