"""Canary, backup and retention in the chart: what they run is a command of the platform, as any other pod."""

from __future__ import annotations

from typing import Any

import pytest
from tests.deploy.chart_renders import pods, render, validate
from typer.testing import CliRunner

from cli.main import app

VALUES: dict[str, Any] = {
    "canary": {"enabled": True},
    "backup": {"enabled": True, "keySecret": "backup-key"},
    "retention": {"enabled": True},
    "monitoring": {"enabled": True, "rules": False, "labels": {"release": "prometheus"}},
    "networkPolicy": {"monitoring": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
}


@pytest.fixture(scope="module")
def release() -> list[dict[str, Any]]:
    return render(VALUES)


def component(one: dict[str, Any]) -> str:
    return str(one["metadata"]["labels"].get("app.kubernetes.io/component", ""))


JOBS = ("database-backup", "database-retention")


@pytest.mark.parametrize(
    ("which", "kind"), [("canary-canary", "Deployment"), *((job, "CronJob") for job in JOBS)]
)
def test_it_runs_a_command_of_the_platform_as_any_pod(release: Any, which: str, kind: str) -> None:
    ((_, pod),) = [
        (one, pod) for one, pod in pods(release) if component(one) == which and one["kind"] == kind
    ]
    (container,) = pod["spec"]["containers"]
    assert container["image"].startswith("callmesh:")
    command, *rest = container["args"]
    assert container["command"] == ["python", "-m", "cli.main"]
    known = CliRunner().invoke(app, [command, "--help"])
    assert known.exit_code == 0
    # A narrow terminal may break the help anywhere, but not in a word.
    for option in (word for word in rest if word.startswith("--")):
        assert option in known.output, f"{command} has no {option}"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["automountServiceAccountToken"]
    own = container["securityContext"]
    assert (
        own["readOnlyRootFilesystem"]
        and not own["allowPrivilegeEscalation"]
        and "memory" in container["resources"]["limits"]
    )
    literal = [each["name"] for each in container["env"] if "value" in each]
    assert all(name.endswith("_FILE") for name in literal)


def test_all_of_it_is_what_the_api_takes(release: Any) -> None:
    own = [one for one in release if component(one) in ("canary-canary", *JOBS)]
    assert {one["kind"] for one in own} == {"Deployment", "CronJob", "NetworkPolicy"}
    for one in own:
        validate(one)


def test_the_canary_reaches_routers_and_nothing_else(release: Any) -> None:
    policies = [
        one for one in release if one["kind"] == "NetworkPolicy" and component(one) == "canary-canary"
    ]
    out, into = sorted(
        (one["spec"] for one in policies), key=lambda spec: "Egress" not in spec["policyTypes"]
    )
    (dns, routers) = out["egress"]
    assert {each["port"] for each in dns["ports"]} == {53}
    (peer,) = routers["to"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "routing-server"
    assert into["podSelector"] == peer["podSelector"]
    assert into["ingress"][0]["from"][0]["podSelector"] == out["podSelector"]


def test_without_the_values_there_is_neither() -> None:
    assert not {"canary-canary", *JOBS} & {component(one) for one in render({})}


def test_the_jobs_read_the_database_where_it_is_mounted(release: Any) -> None:
    jobs = {component(one): pod["spec"] for one, pod in pods(release) if component(one) in JOBS}
    assert jobs.keys() == set(JOBS)
    for spec in jobs.values():
        (container,) = spec["containers"]
        (path,) = [one["value"] for one in container["env"] if one["name"] == "MONGO_URI_FILE"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = [one for one in spec["volumes"] if one["name"] == mounts[path.rpartition("/")[0]]]
        assert volume["secret"]["items"] == [{"key": "uri", "path": path.rpartition("/")[2]}]
    assert jobs["database-retention"]["containers"][0]["args"] == ["retention", "--apply"]


def test_the_canary_is_scraped_once_and_missed_when_it_is_gone(release: Any) -> None:
    (pod,) = [pod for one, pod in pods(release) if component(one) == "canary-canary"]
    labels = pod["metadata"]["labels"]
    assert "annotations" not in pod["metadata"], "scraped twice, its calls would count twice"
    found = []
    for one in release:
        if one["kind"] == "PodMonitor":
            selector = one["spec"]["selector"]
            (wanted,) = selector["matchExpressions"]
            assert selector["matchLabels"].items() <= labels.items()
            if labels[wanted["key"]] in wanted["values"]:
                found.append(one)
    (monitor,) = found
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = pod["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    rules = {one["metadata"]["name"]: one for one in release if one["kind"] == "PrometheusRule"}
    rule = rules["demo-callmesh-canary"]
    alerts = [each["alert"] for group in rule["spec"]["groups"] for each in group["rules"]]
    assert alerts == ["CallmeshCanaryAbsent"], "missed where it was asked for, whoever has the others"
    ((missed,),) = [group["rules"] for group in rule["spec"]["groups"]]
    job = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    assert missed["expr"] == f'absent(callmesh_canary_calls_total{{job="{job}"}})', "its own, not another's"
    for one in (monitor, rule):
        assert one["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize("kind", ["backup", "retention"])
def test_a_job_that_fails_is_told_by_its_name(release: Any, kind: str) -> None:
    (job,) = [one["metadata"]["name"] for one in release if component(one) == f"database-{kind}"
              and one["kind"] == "CronJob"]  # fmt: skip
    (rule,) = [one for one in release if one["kind"] == "PrometheusRule"
               and one["metadata"]["name"].endswith(f"-{kind}")]  # fmt: skip
    ((each,),) = [group["rules"] for group in rule["spec"]["groups"]]
    assert each["alert"] == f"Callmesh{kind.capitalize()}Fails" and f'cronjob="{job}"' in each["expr"]
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_nobody_misses_a_canary_that_was_not_asked_for() -> None:
    names = [one["metadata"]["name"] for one in render({"monitoring": {"enabled": True}})]
    assert not any("canary" in name for name in names)
