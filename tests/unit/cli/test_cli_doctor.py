"""The doctor: findings say what to do, no check keeps another from looking, levels and exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError
from typer.testing import CliRunner

from chassis.release import RELEASE
from chassis.testing.certificates import Authority
from cli import doctor
from cli.directory import Refused
from cli.doctor import Finding, Level, certificate, clock_skew, replica_set, run, settings, well

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class Mongo:
    """A client whose admin commands are answered from a table."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.admin = self

    def command(self, name: str) -> Any:
        answer = self._answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def server_info(self) -> dict[str, str]:
        return {"version": "6.0.5"}


def member(name: str, state: str, behind_seconds: float = 0.0) -> dict[str, Any]:
    return {"name": name, "stateStr": state, "optimeDate": NOW - timedelta(seconds=behind_seconds)}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"members": [member("a", "PRIMARY"), member("b", "SECONDARY"), member("c", "SECONDARY", 2)]}, {}),
        ({"members": [member("a", "PRIMARY")]}, {"1 member": Level.WARNING}),
        (
            {"members": [member("a", "PRIMARY"), member("b", "SECONDARY", 60), member("c", "DOWN")]},
            {"b is 60 s behind": Level.WARNING, "c is DOWN": Level.BROKEN},
        ),
        (OperationFailure("no", code=13), {"may not look": Level.WARNING}),
        (OperationFailure("no", code=76), {"is no replica set": Level.BROKEN}),
    ],
)
def test_a_replica_set_is_told_by_its_members(answer: Any, said: dict[str, Level]) -> None:
    wrong = [each for each in replica_set(Mongo(replSetGetStatus=answer)) if each.level is not Level.OK]
    assert len(wrong) == len(said) and all(each.do for each in wrong)
    for text, level in said.items():
        assert [each.level for each in wrong if text in each.what] == [level]


@pytest.mark.parametrize(("off", "level"), [(0, Level.OK), (30, Level.WARNING), (-30, Level.WARNING)])
def test_clocks_that_differ_are_told(off: int, level: Level) -> None:
    there = datetime.now(UTC) + timedelta(seconds=off)
    (found,) = clock_skew(Mongo(hello={"localTime": there}))
    assert found.level is level


def test_a_certificate_is_told_before_it_ends(tmp_path: Path) -> None:
    Authority().write(tmp_path, "server")
    path = next(tmp_path.rglob("tls.crt"))
    assert [each.level for each in certificate(path, NOW - timedelta(days=900))] == [Level.OK]
    later = datetime.now(UTC) + timedelta(days=365 * 50)
    (ended,) = certificate(path, later)
    assert ended.level is Level.BROKEN and "ended" in ended.what and "renew" in ended.do
    path.write_text("nonsense")
    assert next(certificate(path, NOW)).level is Level.BROKEN


def test_settings_that_are_unwise_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTH_MODE", "MONGO_URI", "AMQP_URI", "CLOCK_SPEED", "MONGO_URI_FILE", "AMQP_URI_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert [each.level for each in settings()] == [Level.OK]
    monkeypatch.setenv("AUTH_MODE", "open")
    monkeypatch.setenv("MONGO_URI", "mongodb://user:hunter2@db")
    monkeypatch.setenv("CLOCK_SPEED", "60")
    found = list(settings())
    assert len(found) == 3 and "hunter2" not in str(found)


def _breaks(error: Exception) -> Any:
    def check() -> Iterator[Finding]:
        yield well("first", "fine")
        raise error

    return check


def test_a_check_that_cannot_look_keeps_no_other_from_looking() -> None:
    checks = [
        ("a", _breaks(Refused("the database does not answer"))),
        ("b", _breaks(ServerSelectionTimeoutError("mongodb://user:hunter2@db"))),
        ("c", lambda: iter([well("c", "fine")])),
    ]
    found = run(checks)
    assert [each.level for each in found if each.check in "abc"] == [Level.BROKEN, Level.BROKEN, Level.OK]
    assert "does not answer" in next(each.what for each in found if each.check == "a")
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("level", "status"), [(Level.OK, 0), (Level.WARNING, 1), (Level.BROKEN, 2)])
def test_the_worst_finding_is_the_exit_status(
    level: Level, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [Finding(check="x", level=level, what="something", do="mend it")]
    monkeypatch.setattr(doctor, "run", lambda checks: found)
    app = typer.Typer()
    app.command()(doctor.doctor)
    done = CliRunner().invoke(app, ["--json", "--run-dir", str(tmp_path)])
    assert done.exit_code == status
    assert json.loads(done.output) == [{"check": "x", "level": level, "what": "something", "do": "mend it"}]
    assert "mend it" in CliRunner().invoke(app, ["--run-dir", str(tmp_path)]).output


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"crm": [RELEASE], "routing": [RELEASE]}, {f"crm, routing: {RELEASE}": Level.OK}),
        (
            {"crm": ["0.0.9", RELEASE]},
            {f"a rollout is under way, or was left: crm 0.0.9/{RELEASE}": Level.WARNING},
        ),
        (
            {"crm": [RELEASE], "routing": ["0.7.0"]},
            {f"{RELEASE} and 0.7.0 run side by side": Level.BROKEN},
        ),
        (
            {"crm": ["0.2.0"]},
            {
                f"this command is of {RELEASE}, the platform is not": Level.WARNING,
                "crm: 0.2.0": Level.OK,
            },
        ),
        ({}, {"no process is connected": Level.WARNING}),
        (None, {"this user may not see who is connected": Level.WARNING}),
    ],
)
def test_releases_that_run_are_compared(names: Any, said: dict[str, Level]) -> None:
    def aggregate(pipeline: Any) -> Any:
        if names is None:
            raise OperationFailure("not allowed", code=13)
        every = [f"callmesh-{service}/{release}" for service, found in names.items() for release in found]
        return [{"_id": name} for name in (*every, "callmesh-cli", "mongosh", None)]

    client = SimpleNamespace(admin=SimpleNamespace(aggregate=aggregate))
    assert {each.what: each.level for each in doctor.releases(client)} == said
