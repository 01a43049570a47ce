"""SimulateDay's request is checked before anything is started, and what is started is bounded."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2, supervision_pb2
from chassis.errors import CallmeshError, DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from chassis.testing.waiting import eventually
from routing import whatif_day

START, END = Timestamp(seconds=1_772_000_000), Timestamp(seconds=1_772_010_000)


def interval(start: Timestamp = START, end: Timestamp = END) -> common_pb2.Interval:
    return common_pb2.Interval(start_time=start, end_time=end)


def agent(name: str = "agents/ann", region: str = "regions/north", **more: Any) -> directory_pb2.Agent:
    return directory_pb2.Agent(name=name, region=region, **more)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"interval": None}, "interval.start_time"),
        ({"interval": common_pb2.Interval(start_time=START)}, "interval.end_time"),
        ({"interval": interval(END, START)}, "interval"),
        ({"interval": interval(Timestamp(seconds=0))}, "interval"),
        ({"agents": [agent(name="ann")]}, "agents[0].name"),
        ({"agents": [agent(), agent(name="agents/bob", skills={"e": 6})]}, "agents[1].skills['e']"),
        ({"agents": [agent(region="north")]}, "agents[0].region"),
        ({"agents": [agent(), agent()]}, "agents"),
        ({"queues": [directory_pb2.Queue(name="queues/a")] * 2}, "queues"),
        ({"queues": [directory_pb2.Queue(name="queues/a", weight=1_000_000)]}, "queues[0].weight"),
        ({"queues": [directory_pb2.Queue(name=f"queues/q{n}") for n in range(1_001)]}, "queues"),
    ],
)
async def test_bad_requests_are_named(change: dict[str, Any], field: str) -> None:
    request = supervision_pb2.SimulateDayRequest(**{"interval": interval(), **change})
    with pytest.raises(InvalidArgument) as caught:
        await whatif_day.answer(request, "mongodb://127.0.0.1:1", "none")
    assert caught.value.values["field"] == field


def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of the process that would do the work."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


async def ask() -> Any:
    request = supervision_pb2.SimulateDayRequest(interval=interval())
    return await whatif_day.answer(request, "mongodb://127.0.0.1:1", "none", "/etc/uri")


async def test_the_other_process_reads_the_password_where_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """cat > /dev/null; printf '{"field": "f", "why": "%s"}' "$MONGO_URI_FILE"; exit 3"""
    another(tmp_path, monkeypatch, script)
    with pytest.raises(InvalidArgument, match="f: /etc/uri"):
        await ask()


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("cat > /dev/null; echo trouble >&2; exit 4", Unavailable, "the journal cannot be read"),
        ("kill -9 $$", Unavailable, "the journal cannot be read"),
        (
            """cat > /dev/null; echo '{"field": "interval", "why": "is empty"}'; exit 3""",
            *(InvalidArgument, "interval: is empty"),
        ),
        ("exec sleep 60", DeadlineExceeded, "deadline"),
    ],
)
async def test_what_goes_wrong_in_the_other_process_is_one_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[CallmeshError],
    said: str,
) -> None:
    another(tmp_path, monkeypatch, script)
    monkeypatch.setattr(whatif_day, "SECONDS_MAX", 0.3 if "sleep" in script else 30)
    with pytest.raises(error, match=said):
        await ask()


async def test_one_day_at_a_time_and_a_caller_who_leaves_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    another(tmp_path, monkeypatch, f"touch {started}; exec sleep 60")
    first = asyncio.create_task(ask())
    await eventually(started.exists)
    with pytest.raises(ResourceExhausted, match="one day is simulated at a time"):
        await ask()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    another(tmp_path, monkeypatch, "cat > /dev/null")
    assert await ask() == supervision_pb2.SimulateDayResponse()


def test_the_other_process_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = supervision_pb2.SimulateDayRequest(interval=interval(END, START))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(request.SerializeToString())))
    monkeypatch.setattr(sys, "argv", ["whatif_day", "none"])
    monkeypatch.setenv("MONGO_URI", "mongodb://127.0.0.1:1/?connect=false")
    assert whatif_day.main() == whatif_day.EXIT_INVALID
    said = json.loads(capsys.readouterr().out)
    assert said == {"field": "interval", "why": "must end after it begins, at most a day later"}
