"""What workers use of the chassis must not load grpc, and nothing here may load eventlet."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHARED = "auth callcontext clock config errors fieldmask idempotency ids logs metrics mongo pagination"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (SHARED + " probes telemetry", ("grpc", "eventlet", "nameko")),
        ("server client rpc", ("eventlet", "nameko")),
    ],
)
def test_importing_leaves_the_other_world_unloaded(modules, absent):
    code = (
        f"import sys, importlib\nfor m in {modules.split()!r}: importlib.import_module('chassis.' + m)\n"
        f"print([m for m in {absent!r} if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "services"}
    )
    assert ran.stdout.strip() == "[]", ran.stderr
