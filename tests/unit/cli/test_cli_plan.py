"""What a local stack consists of."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from cli import plan
from cli.plan import BadStackConfig, StackConfig
from cli.secret_files import secret_file
from cli.view import duration
from routing.planning.dialler_config import DiallerSettings


def config(**changes: object) -> StackConfig:
    return StackConfig(**{"run_dir": Path("/nowhere"), **changes})  # type: ignore[arg-type]


def every_port(base: int) -> list[int]:
    stack = config(port_base=base)
    return [port for process in plan.scrape_targets(stack) for port in process.ports]


def test_there_are_four_workers_and_seven_servers() -> None:
    assert [p.name for p in plan.workers(config())] == [
        *("routing-worker", "crm-worker", "tickets-worker", "marketing-worker")
    ]
    assert [p.name for p in plan.servers(config())] == [
        *("crm", "tickets", "marketing"),
        *("routing-beijing", "routing-shanghai", "routing-guangzhou", "routing-chengdu"),
    ]


def test_no_port_is_given_twice_and_all_lie_in_the_stack_s_own_range() -> None:
    ports = every_port(7100)
    assert len(set(ports)) == len(ports)
    assert all(7100 <= port <= 7100 + plan.PORT_OFFSET_MAX for port in ports)


def test_two_bases_far_enough_apart_share_no_port() -> None:
    assert not set(every_port(7100)) & set(every_port(7100 + plan.PORT_OFFSET_MAX + 1))


def test_every_router_knows_itself_and_all_its_peers() -> None:
    routers = [p for p in plan.servers(config(port_base=9000)) if p.service == "routing"]
    assert [r.env["ROUTING_REGION"] for r in routers] == list(plan.REGIONS)
    for router in routers:
        peers = dict(peer.split("=") for peer in router.env["ROUTING_PEERS"].split(","))
        assert peers[router.env["ROUTING_REGION"]] == f"127.0.0.1:{router.grpc_port}"
        assert router.env["ROUTING_GRPC_PORT"] == str(router.grpc_port)


def test_with_two_routers_a_region_each_says_which_of_them_it_is() -> None:
    stack = config(port_base=9000, routers=2)
    routers = [p for p in plan.servers(stack) if p.service == "routing"]
    assert [r.name for r in routers[::4]] == ["routing-beijing", "routing-beijing-2"]
    addresses = [f"127.0.0.1:{router.grpc_port}" for router in routers]
    assert [router.env["ROUTING_ADVERTISE"] for router in routers] == addresses
    peers = [tuple(peer.split("=")) for peer in routers[0].env["ROUTING_PEERS"].split(",")]
    assert sorted(peers) == sorted(
        (r.env["ROUTING_REGION"], a) for r, a in zip(routers, addresses, strict=True)
    )
    assert len({r.env["ROUTING_PEERS"] for r in (*routers, plan.workers(stack)[0])}) == 1
    ports = [port for process in plan.scrape_targets(stack) for port in process.ports]
    assert len(set(ports)) == len(ports) and max(ports) <= 9000 + plan.PORT_OFFSET_MAX


def test_a_dialler_is_started_where_a_region_is_named_for_it() -> None:
    assert plan.clients(config()) == []
    stack = config(port_base=9000, routers=2, dialler="shanghai")
    (dialler,) = plan.clients(stack)
    assert (dialler.name, dialler.module) == ("dialler", "routing.planning.dialler_main")
    router = next(p for p in plan.servers(stack) if p.name == "routing-shanghai")
    marketing = next(p for p in plan.servers(stack) if p.name == "marketing")
    assert dialler.env["DIALLER_ROUTING"] == router.env["ROUTING_ADVERTISE"]
    assert dialler.env["DIALLER_MARKETING"] == f"127.0.0.1:{marketing.grpc_port}"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in dialler.env.items():
            patched.setenv(name, value)
        settings = DiallerSettings()
    assert (settings.region, settings.grpc_port, settings.http_port) == ("shanghai", *dialler.ports)
    ports = [port for process in plan.scrape_targets(stack) for port in process.ports]
    assert len(set(ports)) == len(ports) and max(ports) <= 9000 + plan.PORT_OFFSET_MAX
    assert "job_name: dialler" in plan.prometheus_config(stack)
    with pytest.raises(BadStackConfig, match="DIALLER must be none or one of beijing"):
        config(dialler="atlantis")


@pytest.mark.parametrize("routers", [-1, 0, 3])
def test_a_region_has_one_or_two_routers(routers: int) -> None:
    with pytest.raises(BadStackConfig, match=f"ROUTERS must be 1 or 2, got {routers}"):
        config(routers=routers)


def test_a_worker_has_no_grpc_port() -> None:
    for worker in plan.workers(config()):
        assert worker.grpc_port is None
        assert f"{worker.service.upper()}_GRPC_PORT" not in worker.env
        assert worker.module == f"{worker.service}.worker"


@pytest.mark.parametrize("base", [-1, 0, 1023, 65466, 70000])
def test_a_base_without_room_for_the_ports_is_refused(base: int) -> None:
    with pytest.raises(BadStackConfig, match=r"PORT_BASE must be between 1024 and 65465"):
        config(port_base=base)


@pytest.mark.parametrize("members", [-1, 0, 2, 4])
def test_a_replica_set_has_one_or_three_members(members: int) -> None:
    with pytest.raises(BadStackConfig, match=f"MEMBERS must be 1 or 3, got {members}"):
        config(members=members)


def test_prometheus_scrapes_every_process_once() -> None:
    text = plan.prometheus_config(config())
    targets = [line for line in text.splitlines() if "targets:" in line]
    assert len(targets) == len(set(targets)) == 11
    for process in plan.scrape_targets(config()):
        assert f'["127.0.0.1:{process.http_port}"]\n        labels: {{process: {process.name}}}' in text


def test_prometheus_reads_the_rules_where_there_are_some() -> None:
    assert "rule_files" not in yaml.safe_load(plan.prometheus_config(config()))
    assert yaml.safe_load(plan.prometheus_config(config(), "rules.yaml"))["rule_files"] == ["rules.yaml"]


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    path = secret_file(directory, "key")
    first = path.read_text()
    assert len(bytes.fromhex(first)) == 32
    assert secret_file(directory, "key").read_text() == first
    assert secret_file(directory, "other").read_text() != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("torn", ["", "abc", "\n"])
def test_a_torn_secret_is_made_anew(tmp_path: Path, torn: str) -> None:
    (tmp_path / "key").write_text(torn)
    assert len(bytes.fromhex(secret_file(tmp_path, "key").read_text())) == 32


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"), (90_000, "1 d 1 h")],
)
def test_durations_name_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
