"""Fixtures for every test of the project, and how they are dealt to the workers of `make test`."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is not a failure: examples have no deadline, and slow generation only takes longer.
settings.register_profile("callmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callmesh")

pytest_plugins = ["chassis.testing.grpc", "chassis.testing.stack"]


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start, though a shell starts what runs in its background without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# First: the workers read the groups in a hook of the same name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together and in order; so does whatever starts the whole platform: two platforms at
    once, eleven processes each, take longer on two cores than one after the other.
    """
    for item in items:
        group = "platform" if item.path.parent.name == "e2e" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
