"""The `callmesh` command as a user meets it: output and exit statuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.localstack import free_ports
from cli import plan

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("RUN_DIR", "PORT_BASE", "MEMBERS", "MONGO_URI", "AMQP_URI")


def callmesh(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with none of the stack's variables but those given."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    path = os.pathsep.join([str(ROOT / "services"), clean.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=clean | {"PYTHONPATH": path, "COLUMNS": "200"} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_and_down_where_no_stack_ever_was(tmp_path: Path) -> None:
    looked = callmesh("status", RUN_DIR=str(tmp_path))
    assert (looked.returncode, looked.stderr) == (1, "")
    assert "No stack was ever started" in looked.stdout.replace("\n", " ")
    assert json.loads(callmesh("status", "--json", RUN_DIR=str(tmp_path)).stdout) == []
    assert callmesh("down", RUN_DIR=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"MEMBERS": "2"}, "callmesh: MEMBERS must be 1 or 3, got 2\n"),
        ({"PORT_BASE": "80"}, "callmesh: PORT_BASE must be between 1024 and 65465, got 80\n"),
    ],
)
def test_a_bad_setting_is_one_line_and_status_2(tmp_path: Path, env: dict[str, str], line: str) -> None:
    done = callmesh("up", RUN_DIR=str(tmp_path / "run"), **env)
    assert (done.returncode, done.stderr) == (2, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["up", "--port-base", "many"], ["up", "--sideways"], ["fly"]])
def test_a_bad_command_line_shows_the_usage(arguments: list[str]) -> None:
    done = callmesh(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Usage" in done.stderr


def test_empty_variables_count_as_not_given(tmp_path: Path) -> None:
    done = callmesh("status", "--run-dir", str(tmp_path), PORT_BASE="", MEMBERS="", RUN_DIR="")
    assert done.returncode == 1 and "No stack" in done.stdout


def test_a_taken_port_is_one_line_and_leaves_nothing_running(tmp_path: Path) -> None:
    base = free_ports(plan.PORT_OFFSET_MAX + 1)[0]
    env = {
        "RUN_DIR": str(tmp_path / "run"),
        "PORT_BASE": str(base),
        "MONGO_URI": "mongodb://given.invalid",
        "AMQP_URI": "amqp://given.invalid",
    }
    with socket.create_server(("127.0.0.1", base + 40)):
        done = callmesh("up", **env)
    assert done.returncode == 2
    assert done.stderr == f"callmesh: crm needs port {base + 40} on 127.0.0.1, which another process holds\n"
    assert not list((tmp_path / "run").glob("*.pid.json"))


def test_help_names_every_command() -> None:
    done = callmesh("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("up", "down", "status", "locate", "demo"))
