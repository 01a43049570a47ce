"""The life of a release by helm and kubectl themselves: install, upgrade, rollback, test, uninstall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.deploy.chart_renders import CHART, EXAMPLES, NAMESPACE, RELEASE, Manifest, example
from tests.deploy.kube_api import Cluster, cluster

pytestmark = pytest.mark.timeout(180)

WAIT = ("--wait", "--timeout", "30s")
VALUES = ("--values", str(EXAMPLES["single-cluster"]))
#: Without these in the way a rolling restart could not begin: what a cluster lets nobody change.
FIXED = {"Deployment": ("selector",), "StatefulSet": ("selector", "serviceName", "podManagementPolicy")}


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An empty cluster."""
    with cluster(tmp_path_factory.mktemp("kube")) as found:
        yield found


def wanted(tests: bool = False) -> set[str]:
    """What the example's render holds, without what only `helm test` makes."""
    return {
        f"{one['kind']}/{one['metadata']['name']}"
        for one in example("single-cluster")
        if ("helm.sh/hook" in one["metadata"].get("annotations", {})) is tests
    }


def fixed(kube: Cluster) -> dict[str, list[Any]]:
    """The fields of the workloads that never change."""
    return {
        name: [one["spec"][field] for field in FIXED[one["kind"]]]
        for name, one in kube.store.of_release(RELEASE).items()
        if one["kind"] in FIXED
    }


def crm(kube: Cluster) -> Manifest:
    """The deployment as kubectl reads it."""
    found: Manifest = json.loads(
        kube.run("kubectl", "get", "deployment", f"{RELEASE}-callmesh-crm", "-o", "json")
    )
    return found


def image(one: Manifest) -> str:
    """Of its first container."""
    return str(one["spec"]["template"]["spec"]["containers"][0]["image"])


def history(kube: Cluster) -> list[tuple[int, str]]:
    """(revision, status) of each revision."""
    found = json.loads(kube.run("helm", "history", RELEASE, "--output", "json"))
    return [(row["revision"], row["status"]) for row in found]


def test_a_release_lives_and_leaves_nothing(kube: Cluster) -> None:
    notes = kube.run("helm", "install", RELEASE, str(CHART), "--namespace", NAMESPACE, *VALUES, *WAIT)
    assert f"helm test {RELEASE}" in notes and f"{RELEASE}-callmesh-routing.{NAMESPACE}.svc:7100" in notes
    assert kube.store.of_release(RELEASE).keys() == wanted()
    first, fields = crm(kube), fixed(kube)
    assert image(first) == "callmesh:0.1.0"

    newer = ("--set", "image.tag=0.2.0", "--set", "crm.server.replicas=3")
    kube.run("helm", "upgrade", RELEASE, str(CHART), *VALUES, *newer, *WAIT)
    upgraded = crm(kube)
    assert (image(upgraded), upgraded["spec"]["replicas"]) == ("callmesh:0.2.0", 3)
    assert fixed(kube) == fields, "a cluster would refuse the upgrade"

    said = kube.run(
        "helm", "upgrade", RELEASE, str(CHART), *VALUES, "--set", "crm.server.replicas=many", fails=True
    )
    assert "replicas" in said and history(kube) == [(1, "superseded"), (2, "deployed")]

    kube.run("helm", "rollback", RELEASE, "1", *WAIT)
    back = crm(kube)
    assert (image(back), back["spec"]["replicas"]) == (image(first), first["spec"]["replicas"])
    assert history(kube)[-1] == (3, "deployed") and kube.store.of_release(RELEASE).keys() == wanted()

    kube.run("helm", "test", RELEASE, "--timeout", "30s")
    assert kube.store.of_release(RELEASE).keys() == wanted(), "a test that went well leaves nothing"
    kube.store.pod_phase = "Failed"
    kube.run("helm", "test", RELEASE, "--timeout", "30s", fails=True)
    assert kube.store.of_release(RELEASE).keys() & wanted(tests=True), "what failed is left to be looked at"

    kube.run("helm", "uninstall", RELEASE, *WAIT)
    assert not {name for name in kube.store.of_release(RELEASE) if name not in wanted(tests=True)}
