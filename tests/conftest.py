"""Fixtures for every test of the project, and how they are dealt to the workers of `make test`."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator
from importlib import import_module
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """What is collected stays to the end: to look through it for garbage took up to a fifth of the time."""
    gc.disable()
    try:
        _import_share(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _import_share(config: pytest.Config) -> None:
    """Of workers side by side, each begins with other files, and finds the rest translated by the others:
    pytest's own translation of a fresh checkout takes as long as all of the collection besides.
    """
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        return
    files = sorted(path for name in config.args for path in Path(name).resolve().rglob("test_*.py"))
    for path in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        # What cannot be imported is tried again, and told, when it is collected.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))


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
