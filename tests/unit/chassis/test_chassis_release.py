"""Which release this is, and which may run beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from chassis.release import RELEASE, apart, app_name, neighbours, of_app_name

ROOT = Path(__file__).resolve().parents[3]


def test_every_place_names_the_same_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "callmesh" / "Chart.yaml").read_text())
    assert RELEASE == project == str(chart["appVersion"])


def test_a_process_is_known_by_its_name_at_the_database() -> None:
    assert of_app_name(app_name("crm")) == ("crm", RELEASE)
    assert of_app_name("callmesh-crm") == ("crm", "")
    assert of_app_name("mongosh 2.3.0") is None


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("1.2.3", "1.2.9", True),
        ("1.2.0", "1.3.0", True),
        ("1.4.0", "1.2.0", False),
        ("2.0.0", "1.9.0", False),
        ("", "1.2.0", False),
        ("", "", True),
    ],
)
def test_neighbours_run_side_by_side(one: str, other: str, together: bool) -> None:
    assert neighbours(one, other) is together is neighbours(other, one)


def test_pairs_that_may_not_meet_are_named() -> None:
    running = {"crm": {"1.2.0", "1.3.0"}, "routing": {"1.4.0"}}
    assert apart(running) == [("1.2.0", "1.4.0")]
    assert apart({"crm": {"1.2.0"}}) == [] == apart({})
