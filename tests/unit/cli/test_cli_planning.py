"""`callmesh plan`: what it asks, and what it says of bad input."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import menus_pb2, planning_pb2
from cli import planning, simulate_policy
from cli.directory import Refused


def test_days_become_an_interval_of_the_zone() -> None:
    one = planning.span("2026-11-23", 2, "Asia/Shanghai")
    assert one.start_time.ToDatetime() == dt.datetime(2026, 11, 22, 16)
    assert one.end_time.ToDatetime() == dt.datetime(2026, 11, 24, 16)
    tomorrow = planning.span("", 1, "UTC", today=dt.date(2026, 11, 22))
    assert tomorrow.start_time.ToDatetime() == dt.datetime(2026, 11, 23)


@pytest.mark.parametrize(
    ("first", "zone", "said"),
    [
        ("23.11.2026", "UTC", "from: must be a day"),
        ("", "Mars/Olympus", "zone: must be an IANA zone"),
        ("9999-12-31", "UTC", "from: must lie in the years"),
        ("0001-01-01", "Asia/Shanghai", "from: must lie in the years"),
    ],
)
def test_bad_days_are_named(first: str, zone: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        planning.span(first, 1, zone)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agent,from\n", "line 1: must name the columns"),
        ("agent,from,until\nann,2026-11-23T09:00,2026-11-23T17:00+08:00\n", "line 2: from: must be a time"),
        ("agent,from,until\nann,2026-11-23T09:00+08:00,\n", "line 2: until: must be a time"),
        ("agent,from,until\n,2026-11-23T09:00+08:00,2026-11-23T17:00+08:00\n", "line 2: agent: must not be"),
        ("from,until,agent\n2026-11-23T09:00+08:00,2026-11-23T17:00+08:00\n", "line 2: agent: must not be"),
        (f"agent,from,until\n{'a' * 3_000_000},,\n", "line 2: field larger"),
    ],
)
def test_bad_rosters_are_named_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "roster.csv"
    path.write_text(text)
    with pytest.raises(Refused, match=said):
        planning.read_roster(path)
    with pytest.raises(Refused, match="cannot be read"):
        planning.read_roster(tmp_path / "none.csv")


def test_a_plan_can_be_tried_on_a_past_day() -> None:
    begin = planning.span("2026-11-23", 1, "Asia/Shanghai").start_time

    def at(hour: float) -> Timestamp:
        return Timestamp(seconds=begin.seconds + round(hour * 3600))

    rest = common_pb2.Interval(start_time=at(12), end_time=at(12.5))
    shift = menus_pb2.PlanStaffingResponse.Shift(start_time=at(9), end_time=at(17), breaks=[rest], agents=2)
    policy = planning.policy_of([shift], begin)
    read = simulate_policy.parse(json.dumps(policy).encode())
    spans = [(each.agent, each.start, each.until) for each in read.shifts or ()]
    assert spans == [
        (f"planned-000{n}", *times) for n in (1, 2) for times in (("09:00", "12:00"), ("12:30", "17:00"))
    ]


def test_what_is_answered_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Timestamp(seconds=1_795_395_600)
    answers: dict[str, Any] = {
        "ForecastArrivals": menus_pb2.ForecastArrivalsResponse(
            forecasts=[
                menus_pb2.ForecastArrivalsResponse.Forecast(start_time=at, arrivals=12.5, arrivals_high=19)
            ],
            days=20,
            error_ratio=0.25,
            naive_error_ratio=0.34,
        ),
        "PlanStaffing": menus_pb2.PlanStaffingResponse(
            requirements=[
                menus_pb2.PlanStaffingResponse.Requirement(start_time=at, agents=7, service_level=0.83)
            ],
            shifts=[menus_pb2.PlanStaffingResponse.Shift(start_time=at, end_time=at, agents=5)],
        ),
        "GetAdherence": planning_pb2.GetAdherenceResponse(
            agents=[planning_pb2.GetAdherenceResponse.Adherence(agent="agents/ann", adherence=0.9)]
        ),
    }
    asked: list[Any] = []

    def ask(address: str, method: str, request: Any) -> Any:
        asked.append(request)
        return answers[method]

    monkeypatch.setattr(planning, "_ask", ask)
    roster = tmp_path / "roster.csv"
    roster.write_text("agent,from,until\nann,2026-11-23T09:00+08:00,2026-11-23T17:00+08:00\n")
    run = CliRunner().invoke
    shown = run(planning.plan, ["forecast", "service", "--from", "2026-11-23"])
    assert "12.5" in shown.output and "25.0%" in shown.output
    shown = run(planning.plan, ["staff", "service", "--from", "2026-11-23", "--shrinkage", "0.1"])
    assert "83%" in shown.output and asked[-1].shrinkage == 0.1
    unwritten = ["staff", "service", "--from", "2026-11-23", "--policy", str(tmp_path / "none" / "p.json")]
    assert "policy: " in str(run(planning.plan, unwritten).exception)
    shown = run(planning.plan, ["adherence", str(roster)])
    assert "ann" in shown.output and "90.0%" in shown.output
    assert asked[-1].roster[0].agent == "agents/ann"
    assert '"adherence": 0.9' in run(planning.plan, ["adherence", str(roster), "--json"]).output
