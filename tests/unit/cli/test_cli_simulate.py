"""`callmesh simulate`: policies are checked, a day is compared, bad input is one line naming the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chassis.errors import InvalidArgument
from cli.demo.calls import COLUMNS
from cli.main import app
from cli.simulate import span_of_day
from cli.simulate_log import past_from_log
from cli.simulate_policy import parse, policy_for
from routing.model import Strategy
from routing.whatif import Past, apply

runner = CliRunner()


def line(
    number: int, clock: str, wait: int, outcome: str, service: int, server: str, kind: str = "PS"
) -> str:
    """A call that asks for an agent at `clock`, as the log writes it."""
    seconds = sum(int(part) * unit for part, unit in zip(clock.split(":"), (3600, 60, 1), strict=True))

    def at(moment: int) -> str:
        return f"{moment // 3600}:{moment // 60 % 60:02d}:{moment % 60:02d}"

    served = outcome == "AGENT"
    cells = ["AA0101", str(number), "0", "0", kind, "990201", clock, clock, "0"]
    cells += [clock, at(seconds + wait), str(wait), outcome]
    start = seconds + wait
    cells += [at(start) if served else "0:00:00", at(start + service) if served else "0:00:00", str(service)]
    return "\t".join([*cells, server])


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    rows = [line(n, f"10:{n:02d}:00", 30, "AGENT", 100, "DORIT" if n % 2 else "AVI") for n in range(20)]
    rows += [line(50 + n, f"10:{n:02d}:30", 12, "HANG", 0, "NO_SERVER", "NE") for n in range(5)]
    path = tmp_path / "calls.tsv"
    path.write_text("\n".join(["\t".join(COLUMNS), *rows, "torn"]) + "\n")
    return path


@pytest.fixture
def past(log_file: Path) -> Past:
    return past_from_log(log_file, None, by_type=True)[0]


def simulate(log_file: Path, tmp_path: Path, *arguments: str) -> Any:
    out = tmp_path / "report.json"
    return runner.invoke(app, ["simulate", "--calls", str(log_file), "--out", str(out), *arguments])


def test_a_day_of_a_log_against_more_people(log_file: Path, tmp_path: Path) -> None:
    done = simulate(log_file, tmp_path, "--agents", "5")
    assert done.exit_code == 0, done.output
    assert "1 lines of the log were left out" in done.output and "service level" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["happened"]["offered"] == 25 and report["happened"]["asa_seconds"] == 30
    assert report["happened"]["abandoned_ratio"] == pytest.approx(0.2)
    assert report["as_it_was"]["agents"] == 2 and report["proposed"]["agents"] == 5
    assert report["proposed"]["asa_seconds"] == 0 and report["proposed"]["service_level_ratio"] == 1
    assert 0 < report["proposed"]["occupancy_ratio"] < report["as_it_was"]["occupancy_ratio"] <= 1
    assert [row["offered"] for row in report["happened"]["half_hours"]] == [25]


def test_json_is_all_that_is_printed_when_asked_for(log_file: Path, tmp_path: Path) -> None:
    done = simulate(log_file, tmp_path, "--json", "--by-type")
    assert set(json.loads(done.output)["proposed"]["queues"]) == {"ne", "ps"}


def test_a_policy_changes_people_hours_skills_and_rules(past: Past) -> None:
    text = {
        "shifts": [{"agent": "avi", "from": "10:00", "until": "12:30", "skills": {"stocks": 3}}],
        "add": [
            {"agent": "new", "from": "09:00", "until": "10:00"},
            {"agent": "new", "from": "23:00", "until": "25:00"},
        ],
        "skills": {"new": {"stocks": 5}},
        "queues": {"ne": {"skills": {"stocks": 2}, "strategy": "best_proficiency", "wait_max_seconds": 90}},
        "ring_seconds": 1.5,
    }
    roster = apply(past.roster, policy_for(past, parse(json.dumps(text).encode())))
    assert [(d.agent, d.start_ms // 60_000, d.end_ms // 60_000) for d in roster.duties] == [
        ("avi", 600, 750),
        ("new", 540, 600),
        ("new", 1380, 1500),
    ]
    assert {agent.id: agent.skills for agent in roster.agents} == {
        "avi": (("stocks", 3),),
        "new": (("stocks", 5),),
    }
    changed = next(queue for queue in roster.queues if queue.id == "ne")
    assert (changed.strategy, changed.wait_span_max_ms) == (Strategy.BEST_PROFICIENCY, 90_000)
    assert changed.skills == (("stocks", 2),) and changed.service_level_span_ms == 20_000
    assert roster.ring_ms == 1_500


def test_people_may_be_removed(past: Past) -> None:
    roster = apply(past.roster, policy_for(past, parse(b'{"remove": ["avi"]}')))
    assert [agent.id for agent in roster.agents] == ["dorit"]
    assert {duty.agent for duty in roster.duties} == {"dorit"}


SHIFT = {"agent": "new", "from": "09:00", "until": "10:00"}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"{", "policy"),
        (b"\xff", "policy"),
        (b"[]", "policy"),
        ({"agent": 3}, "policy"),
        ({"agents": "three"}, "policy.agents"),
        ({"agents": 0}, "policy.agents"),
        ({"scale": 11}, "policy.scale"),
        ({"agents": 3, "shifts": []}, "policy.shifts"),
        ({"queues": {"ps": {"weight": 101}}}, "policy.queues[...].weight"),
        ({"queues": {"ps": {"weight": -1}}}, "policy.queues[...].weight"),
        ({"queues": {"ps": {"strategy": "luck"}}}, "policy.queues[...].strategy"),
        ({"queues": {"sales": {}}}, "policy.queues['sales']"),
        ({"remove": ["zoe"]}, "policy.remove[0]"),
        ({"skills": {"zoe": {}}}, "policy.skills['zoe']"),
        ({"skills": {"avi": {"x": 6}}}, "policy.skills[...][...]"),
        ({"add": [{**SHIFT, "from": "9 am"}]}, "policy.add[0].from"),
        ({"add": [{**SHIFT, "until": "49:00"}]}, "policy.add[0].until"),
        ({"add": [{**SHIFT, "until": "08:00"}]}, "policy.add[0].until"),
        ({"add": [SHIFT, SHIFT]}, "policy.add[1]"),
        ({"add": [{**SHIFT, "site": "moon"}]}, "policy.add[0].site"),
        ({"add": [{"agent": "new"}]}, "policy.add[0]"),
        ({"ring_seconds": -1}, "policy.ring_seconds"),
    ],
)
def test_what_a_policy_may_not_say_is_named(past: Past, text: Any, field: str) -> None:
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    with pytest.raises(InvalidArgument) as caught:
        policy_for(past, parse(raw))
    assert caught.value.values["field"] == field


def test_an_unknown_strategy_is_told_those_that_there_are() -> None:
    with pytest.raises(InvalidArgument, match=r"must be one of longest_idle, .*, got 'luck'"):
        parse(b'{"queues": {"ps": {"strategy": "luck"}}}')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--day", "990202"], "calls: the log has no call on 1999-02-02"),
        (["--agents", "0"], "agents: must be 1 to 20000"),
        (["--scale", "99"], "scale: must be 0.1 to 10"),
        (["--agents", "3", "--scale", "1"], "scale: cannot be given together with agents"),
        (["--policy", "nowhere.json"], "policy: nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(
    log_file: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = simulate(log_file, tmp_path, *arguments)
    assert done.exit_code == 2
    said_lines = [text for text in done.output.splitlines() if text.startswith("callmesh: ")]
    assert len(said_lines) == 1 and said_lines[0].startswith(f"callmesh: {said}")
    assert "Traceback" not in done.output and not (tmp_path / "report.json").exists()


def test_a_missing_log_and_a_missing_stack_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGO_URI", raising=False)
    done = runner.invoke(app, ["simulate", "--calls", str(tmp_path / "none.tsv")])
    assert done.exit_code == 2 and "calls: the call log" in done.output
    done = runner.invoke(app, ["simulate", "--day", "2026-11-22", "--run-dir", str(tmp_path)])
    assert done.exit_code == 2 and "calls: give a call log, set MONGO_URI, or start a stack" in done.output


def test_a_report_that_cannot_be_written_is_said_after_what_came_of_the_day(
    log_file: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    done = simulate(log_file, tmp_path, "--out", str(taken / "report.json"))
    assert done.exit_code == 1 and "Traceback" not in done.output and isinstance(done.exception, SystemExit)
    assert "service level" in done.output and "out: " in done.output and "cannot be written" in done.output


def test_days_are_those_of_the_zone() -> None:
    start_ms, end_ms, title = span_of_day("2026-03-01", "Asia/Shanghai")
    assert (start_ms, end_ms - start_ms) == (1_772_294_400_000, 86_400_000) and "Sun 2026-03-01" in title
    # 25 hours where clocks are put back, 23 where they are put forward
    assert [
        (span := span_of_day(day, "Europe/Berlin"))[1] - span[0] for day in ("2026-10-25", "2026-03-29")
    ] == [86_400_000, 82_800_000]


@pytest.mark.parametrize(
    ("day", "zone", "field"),
    [
        ("", "UTC", "day"),
        ("tomorrow", "UTC", "day"),
        ("2026-02-30", "UTC", "day"),
        ("2026-02-01", "../x", "zone"),
    ],
)
def test_days_and_zones_that_are_none_are_named(day: str, zone: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        span_of_day(day, zone)
    assert caught.value.values["field"] == field
