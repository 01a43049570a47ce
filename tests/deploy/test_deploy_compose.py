"""The laptop's compose file: every process that there is, each with an environment that its settings take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.chart_renders import ROOT, settings_class

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "docker" / "compose.yaml").read_text())[
    "services"
]
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "callmesh" and name != "keys"}


def test_every_process_is_there() -> None:
    commands = {one["command"][-1] for one in OURS.values()}
    services = ("routing", "crm", "tickets", "marketing")
    assert commands == {*services, *(f"{service}.worker" for service in services)}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_process_starts_with_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = OURS[name]
    prefix = one["command"][-1].partition(".")[0].upper()
    cls = settings_class(prefix)
    known = {f"{prefix}_{field.upper()}" for field in cls.model_fields}
    assert {v for v in one["environment"] if v.startswith(f"{prefix}_")} <= known
    for variable, value in one["environment"].items():
        if value.startswith("/keys/"):
            file = tmp_path / Path(value).name
            file.write_bytes(b"x" * 32)
            value = str(file)
        monkeypatch.setenv(variable, value)
    settings = cls()
    assert settings.http_host == "0.0.0.0"
    assert one["user"] != "0:0" and one["read_only"] is True
    ports = one.get("ports", [])
    assert all(port.startswith("127.0.0.1:") and port.endswith(f":{settings.grpc_port}") for port in ports)


def test_what_is_scraped_is_what_runs() -> None:
    text = (ROOT / "deploy" / "docker" / "compose.yaml").read_text()
    config = yaml.safe_load(yaml.safe_load(text)["configs"]["prometheus"]["content"])
    assert {
        target for job in config["scrape_configs"] for s in job["static_configs"] for target in s["targets"]
    } == {f"{name}:7101" for name in OURS}
