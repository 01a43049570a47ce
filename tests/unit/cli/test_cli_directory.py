"""`callmesh directory apply`: what a file may say, and what is said against it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.directory import Refused, read
from cli.main import COMMANDS, app

YAML = """
regions:
  - name: regions/beijing
    location: {latitude: 39.9, longitude: 116.4}
    served_areas: [CN/北京]
queues:
  - name: queues/service
    skills: [{skill: chinese, level_min: 2}]
    ring_timeout: 15s
"""


def test_a_file_is_yaml_or_json_in_the_names_of_the_api(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps({"skills": [{"name": "skills/chinese"}]}), encoding="utf-8")
    directory = read(tmp_path / "a.yaml")
    assert directory.regions[0].served_areas == ["CN/北京"]
    assert directory.queues[0].ring_timeout.seconds == 15
    assert read(tmp_path / "a.json").skills[0].name == "skills/chinese"


def test_the_example_is_read() -> None:
    example = read(Path(__file__).resolve().parents[3] / "examples" / "directory.yaml")
    assert [each.name for each in example.agents] == ["agents/ann", "agents/bob"] and len(
        example.regions
    ) == 2


BAD = [
    ("regions: [", "neither YAML nor JSON"),
    ("[" * 10_000, "neither YAML nor JSON"),
    ("- a", "at its top"),
    ("regions: [{nmae: regions/x}]", "nmae"),
    ("regions: [{weight: many}]", "weight"),
    ("regions: [{weight: 5}, {weight: 0}]", r"regions\[1\]\.weight must be 1 to 1000"),
    ("agents: [{skills: {english: high}}]", "skills"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_a_bad_file_is_refused_with_its_fault(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=named):
        read(path)


def test_the_router_is_the_local_stacks_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT_BASE", "1")
    monkeypatch.delenv("CALLMESH_ADDRESS", raising=False)
    refused = CliRunner().invoke(app, ["region", "list"]).exception
    assert isinstance(refused, Refused) and "nothing answers at 127.0.0.1:21:" in str(refused)
    monkeypatch.setenv("PORT_BASE", "many")
    assert "PORT_BASE" in CliRunner().invoke(app, ["region", "list"]).output


def test_help_names_every_command_under_a_heading() -> None:
    told = CliRunner().invoke(app, ["--help"]).output
    assert "Other:" not in told and "Keeping a platform running:" in told
    names = set(re.findall(r"^  ([a-z]+)  ", told, re.M))
    assert {command.__name__ for command in COMMANDS} | {"import", "export", "region", "config"} <= names


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"none\.yaml"):
        read(tmp_path / "none.yaml")


def test_a_seizure_names_its_reason_and_says_when_nobody_answers() -> None:
    nobody = ["shard", "seize", "beijing", "--address", "127.0.0.1:1"]
    assert "--reason" in CliRunner().invoke(app, nobody).output
    result = CliRunner().invoke(app, [*nobody, "--reason", "a drill"])
    assert isinstance(result.exception, Refused) and "nothing answers" in str(result.exception)
