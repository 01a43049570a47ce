"""Fixtures for every test of the project, and how they are dealt to the workers of `make test`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is not a failure: examples have no deadline, and slow generation only takes longer.
settings.register_profile("callmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callmesh")

pytest_plugins = ["chassis.testing.grpc", "chassis.testing.stack"]


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start, though a shell starts what runs in its background without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFile(LoadScopeScheduling):
    """A file's tests stay together and in order; so does whatever starts the whole platform: two platforms at
    once, eleven processes each, take longer on two cores than one after the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "platform" if Path(file).parent.name == "e2e" else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """How tests are dealt to the workers of `make test`."""
    return ByFile(config, log)
