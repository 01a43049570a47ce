"""Configuration as files: what a plan shows, how an apply that is refused is put back, what the history
keeps.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from callmesh.marketing.v1 import offers_pb2
from callmesh.tickets.v1 import team_pb2
from cli import configuration
from cli.configuration import (
    DIRECTORY,
    HISTORY,
    OFFERS,
    TICKETS,
    Files,
    Kind,
    Plan,
    apply_plan,
    config,
    plan,
    read,
    revisions,
)
from cli.directory import Refused


class Conflict(grpc.RpcError):
    """Somebody changed it meanwhile."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.ABORTED

    def details(self) -> str:
        return "changed meanwhile"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Memory(configuration.Platform):
    """A platform that keeps resources in a dictionary; `stubborn` refuses to be written."""

    def __init__(self, *_: Any) -> None:
        super().__init__({})
        self.kept: dict[str, Any] = {}
        self.stubborn = ""
        self.version = 0

    def get(self, kind: Kind, name: str) -> Any:
        return copy.deepcopy(self.kept.get(name))

    def _put(self, resource: Any, etag: str | None) -> Any:
        if resource.name == self.stubborn or (etag is not None and self.kept[resource.name].etag != etag):
            raise Conflict
        self.version += 1
        kept = copy.deepcopy(resource)
        kept.etag = f"v{self.version}"
        self.kept[resource.name] = kept
        return copy.deepcopy(kept)

    def create(self, kind: Kind, wanted: Any) -> Any:
        return self._put(wanted, None)

    def update(self, kind: Kind, wanted: Any, fields: list[str], etag: str) -> Any:
        changed = copy.deepcopy(self.kept[wanted.name])
        for each in fields:
            changed.ClearField(each)
            if any(set_.name == each for set_, _ in wanted.ListFields()):
                part = type(wanted)()
                part.CopyFrom(wanted)
                for other, _ in wanted.ListFields():
                    if other.name != each:
                        part.ClearField(other.name)
                changed.MergeFrom(part)
        return self._put(changed, etag)

    def delete(self, kind: Kind, name: str, etag: str) -> None:
        assert self.kept.pop(name).etag == etag


def write(directory: Path, **teams: str) -> Path:
    rows = "".join(f"  - {{name: teams/{id}, display_name: {name}}}\n" for id, name in teams.items())
    (directory / TICKETS).write_text(f"teams:\n{rows}")
    return directory


def names(platform: Memory) -> dict[str, str]:
    return {name: kept.display_name for name, kept in platform.kept.items()}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(configuration, "_platform", lambda *_: made)
    return made


def run(*words: str) -> Any:
    return CliRunner().invoke(config, words)


def test_plan_apply_history_and_rollback(platform: Memory, tmp_path: Path) -> None:
    write(tmp_path, one="First", two="Second")
    planned = run("plan", str(tmp_path))
    assert planned.exit_code == 1 and "+ teams/one" in planned.output and not platform.kept
    assert "revision 1" in run("apply", str(tmp_path)).output
    assert run("plan", str(tmp_path)).exit_code == 0
    write(tmp_path, one="First", two="Other")
    changed = run("plan", str(tmp_path)).output
    assert '    display_name: "Second" -> "Other"' in changed and "teams/one" not in changed
    assert "revision 2" in run("apply", str(tmp_path), "--note", "renamed").output
    assert names(platform) == {"teams/one": "First", "teams/two": "Other"}

    assert "revision 3" in run("rollback", str(tmp_path), "1").output
    assert names(platform)["teams/two"] == "Second" and "Second" in (tmp_path / TICKETS).read_text()
    listed = run("history", str(tmp_path)).output.splitlines()
    assert ["rollback to 1" in listed[0], "renamed" in listed[1], len(listed)] == [True, True, 3]
    first = revisions(tmp_path)[0]
    assert first["actor"].startswith("cli:") and first["changes"] == ["+ teams/one", "+ teams/two"]
    assert isinstance(run("rollback", str(tmp_path), "9").exception, Refused)


def test_an_apply_that_is_refused_on_the_way_is_put_back(platform: Memory, tmp_path: Path) -> None:
    run("apply", str(write(tmp_path, one="First", three="Third")))
    write(tmp_path, one="Changed", two="New", three="Other")
    platform.stubborn = "teams/three"
    refused = run("apply", str(tmp_path))
    assert isinstance(refused.exception, Refused) and "was put back" in str(refused.exception)
    assert names(platform) == {"teams/one": "First", "teams/three": "Third"}
    assert len(revisions(tmp_path)) == 1


def test_a_resource_that_changed_since_the_plan_is_not_overwritten(platform: Memory, tmp_path: Path) -> None:
    run("apply", str(write(tmp_path, one="First")))
    files = read(write(tmp_path, one="Mine"))
    planned = plan(platform, files)
    platform._put(team_pb2.Team(name="teams/one", display_name="Theirs"), None)
    with pytest.raises(Refused, match="changed meanwhile"):
        apply_plan(platform, files, planned)
    assert names(platform) == {"teams/one": "Theirs"}


def test_what_a_service_would_refuse_changes_nothing(platform: Memory) -> None:
    files = Files(directory=None, wanted={}, texts={})
    with pytest.raises(Refused, match="nothing was changed: offers/a: price"):
        apply_plan(platform, files, Plan(changes=[], directory=[], refused=["offers/a: price"]))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (TICKETS, "teams: [{display_name: A}]", r"teams\[0\] must have a name"),
        (TICKETS, "teams: [{name: teams/a}, {name: teams/a}]", "teams/a is there twice"),
        (TICKETS, "teams: [{name: teams/a, nonsense: 1}]", "nonsense"),
        (TICKETS, "tems: []", "tems is none of"),
        (TICKETS, "{offers: [], 1: []}", "1 is none of"),
        (OFFERS, "teams: []", "teams is none of offers"),
        (DIRECTORY, "regions: [{weight: 0}]", r"regions\[0\]\.weight must be 1 to 1000"),
        (TICKETS, "teams: [{name: teams/a, display_n", "neither YAML nor JSON"),
        (TICKETS, "teams: 2026-13-45", "neither YAML nor JSON"),
        (TICKETS, "[1]", "must have lists at its top"),
        (OFFERS, "offers: 7", "must be a list"),
        ("other.yaml", "x: 1", "has none of"),
    ],
)
def test_a_file_with_a_fault_is_refused_by_name(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match=why):
        read(tmp_path)


def test_a_history_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / HISTORY).mkdir()
    (tmp_path / HISTORY / "000001.json").write_text("{")
    with pytest.raises(Refused, match=r"000001\.json cannot be read"):
        revisions(tmp_path)
    (tmp_path / HISTORY / "000001.json").write_text(json.dumps({"revision": 1}))
    with pytest.raises(Refused, match="is no revision: it must have revision, time"):
        revisions(tmp_path)


def test_a_history_that_cannot_be_gone_on_with_stops_an_apply(platform: Memory, tmp_path: Path) -> None:
    (tmp_path / HISTORY).mkdir()
    (tmp_path / HISTORY / "000001.json").write_text('{"revision": 1, "ti')
    refused = run("apply", str(write(tmp_path, one="First")))
    assert "000001.json cannot be read" in str(refused.exception) and not platform.kept


def test_a_field_that_the_file_empties_is_emptied(platform: Memory, tmp_path: Path) -> None:
    run("apply", str(write(tmp_path, one="First")))
    platform.kept["teams/one"].members.add(agent="agents/a")
    assert run("plan", str(tmp_path)).exit_code == 0, "what the file does not name is left alone"
    (tmp_path / TICKETS).write_text("teams: [{name: teams/one, displayName: '', members: []}]")
    planned = run("plan", str(tmp_path))
    assert planned.exit_code == 1 and '"First" -> null' in planned.output and "members: [{" in planned.output
    run("apply", str(tmp_path))
    assert platform.kept["teams/one"] == team_pb2.Team(name="teams/one", etag="v2")
    assert run("plan", str(tmp_path)).exit_code == 0


def test_a_rollback_that_is_refused_leaves_the_files_alone(platform: Memory, tmp_path: Path) -> None:
    run("apply", str(write(tmp_path, one="First")))
    run("apply", str(write(tmp_path, one="Second")))
    platform.stubborn = "teams/one"
    assert isinstance(run("rollback", str(tmp_path), "1").exception, Refused)
    assert "Second" in (tmp_path / TICKETS).read_text() and len(revisions(tmp_path)) == 2


def test_an_apply_that_is_interrupted_is_put_back(
    platform: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = read(write(tmp_path, one="First", two="Second"))
    planned = plan(platform, files)
    real = Memory.create

    def create(self: Memory, kind: Kind, wanted: Any) -> Any:
        if wanted.name == "teams/two":
            raise KeyboardInterrupt
        return real(self, kind, wanted)

    monkeypatch.setattr(Memory, "create", create)
    with pytest.raises(KeyboardInterrupt):
        apply_plan(platform, files, planned)
    assert not platform.kept and not revisions(tmp_path)


def _offers(**stubs: Any) -> configuration.Platform:
    made = configuration.Platform({})
    made._stubs = {configuration.KINDS[-1].stub: SimpleNamespace(**stubs)}
    return made


def test_an_offer_that_cannot_be_published_is_not_left_as_a_draft() -> None:
    gone: list[tuple[str, str]] = []

    def publish(request: Any, **_: Any) -> Any:
        raise Conflict

    platform = _offers(
        CreateOffer=lambda request, **_: offers_pb2.Offer(name=request.offer.name, etag="v1"),
        PublishOffer=publish,
        DeleteOffer=lambda request, **_: gone.append((request.name, request.etag)),
    )
    with pytest.raises(Conflict):
        platform.create(configuration.KINDS[-1], offers_pb2.Offer(name="offers/a"))
    assert gone == [("offers/a", "v1")]
