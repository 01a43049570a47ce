"""The chart without a cluster: rendered by Helm's library, checked against the API's schemas and policies.

`UPDATE_GOLDEN=1` writes the renders of the examples anew; what changes in them is reviewed as a diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from pydantic import BaseModel, ConfigDict
from tests.deploy import operator_models
from tests.deploy.chart_renders import (
    CHART,
    EXAMPLES,
    ROOT,
    STORED,
    Manifest,
    example,
    pods,
    prefix_of,
    render,
    settings_class,
    validate,
)

from chassis import limits
from chassis.config import ServiceSettings
from marketing import senders

GOLDEN = Path(__file__).parent / "golden"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
#: What stands in the files whose contents are looked at when settings are read.
CONTENTS = {"/etc/callmesh/mongodb/uri": "mongodb://db\n", "/etc/callmesh/rabbitmq/uri": "amqp://mq\n"}
#: Variables that are addresses of no store: nobody logs in there.
ADDRESSES = {"OTEL_EXPORTER_OTLP_ENDPOINT", "AUTH_JWKS_URL"}
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

examples = pytest.mark.parametrize("name", sorted(EXAMPLES))


def test_helm_finds_nothing_to_complain_about() -> None:
    found = helm_python.lint(str(CHART))
    serious = [message for message in found["messages"] if message.get("severity", 0) >= 2]
    assert not found["errors"] and not serious


def without_dashboards(manifest: Manifest) -> Manifest:
    """A dashboard is reviewed where it is made: here only that it is shipped as it stands there."""
    if "grafana_dashboard" not in manifest["metadata"].get("labels", {}):
        return manifest
    ((name, text),) = manifest["data"].items()
    file = f"deploy/observability/dashboards/{name.removeprefix('callmesh-')}"
    assert json.loads(text) == json.loads((ROOT / file).read_text())
    return {**manifest, "data": {name: f"<{file}>"}}


@examples
def test_the_render_is_the_one_that_was_reviewed(name: str) -> None:
    shown = [without_dashboards(one) for one in example(name)]
    text = yaml.safe_dump_all(shown, sort_keys=False, allow_unicode=True, width=110)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "run with UPDATE_GOLDEN=1 and review the diff"


# --- schemas ----------------------------------------------------------------------------------------------


@cache
def operator_kinds() -> dict[str, type[BaseModel]]:
    """The Prometheus operator's objects. Its models let unknown fields pass; these don't.

    Loaded here, not with this file, which every worker of `make test` reads to know its tests.
    """
    from cloudcoil.models.prometheus_operator import v1 as operator

    parts = [
        part for part in vars(operator).values() if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    for part in parts:
        part.model_config = ConfigDict(**{**part.model_config, "extra": "forbid"})
    for part in parts:
        part.model_rebuild(force=True)
    return {
        "PodMonitor": operator.PodMonitor,
        "PrometheusRule": operator.PrometheusRule,
        **operator_models.MODELS,
    }


@examples
def test_every_object_is_one_that_the_api_takes(name: str) -> None:
    for one in example(name):
        if model := operator_kinds().get(one["kind"]):
            model.model_validate(one)
        else:  # raises for an unknown kind as well as for an unknown field
            validate(one)


def test_the_checks_themselves_find_what_is_wrong() -> None:
    from jsonschema import ValidationError

    good = next(one for one in example("single-cluster") if one["kind"] == "PodMonitor")
    with pytest.raises(ValueError, match="extra"):
        operator_kinds()["PodMonitor"].model_validate({**good, "spec": {**good["spec"], "slector": {}}})
    service = next(one for one in example("single-cluster") if one["kind"] == "Service")
    with pytest.raises(ValidationError):
        validate({**service, "spec": {**service["spec"], "prots": []}})
    with pytest.raises(FileNotFoundError):
        validate({**service, "kind": "Servise"})
    for kind, model in operator_models.MODELS.items():
        good = next(one for one in example("operators") if one["kind"] == kind)
        with pytest.raises(ValueError, match="extra"):
            model.model_validate({**good, "spec": {**good["spec"], "replcas": 3}})


@pytest.mark.parametrize(("values", "where"), [
    ({"role": "everything"}, "role"),
    ({"rolle": "all"}, "rolle"),
    ({"regions": []}, "regions"),
    ({"regions": [{"id": "Beijing", "replicas": 2}]}, "id"),
    ({"regions": [{"id": "beijing", "replicas": 0}]}, "replicas"),
    ({"peers": ["beijing:7100"]}, "peers"),
    ({"crm": {"server": {"replicas": "2"}}}, "replicas"),
    ({"crm": {"server": {"resources": {"requests": {"cpu": 1}, "limits": {"memory": "much"}}}}}, "memory"),
    ({"crm": {"worker": {"autoscaling": {"queue": {"enabeld": True}}}}}, "enabeld"),
    ({"env": {"MONGO_URI": "mongodb://user:password@db"}}, "MONGO_URI"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"tls": {"clients": "none"}}, "clients"),
    ({"telemetry": {"traceRatio": 2}}, "traceRatio"),
    ({"proxy": {"service": {"type": "NodePort"}}}, "type"),
    ({"proxy": {"drainSeconds": 0}}, "drainSeconds"),
    ({"mongodb": {"operator": {"members": 2}}}, "members"),
    ({"rabbitmq": {"operator": {"storage": "much"}}}, "storage"),
    ({"role": "region", "mongodb": {"operator": {"enabled": True}}}, "operator"),
    ({"auth": {"jwks": {"url": "http://issuer.example.org/jwks"}}}, "url"),
    ({"auth": {"jwks": {"url": "https://user:password@issuer.example.org/jwks"}}}, "url"),
    ({"auth": {"jwks": {"name": ""}}}, "jwks"),
    ({"auth": {"binding": "subject"}}, "tls"),
    ({"auth": {"binding": "subject"}, "tls": {"enabled": True, "clients": "any"}}, "clients"),
    ({"auth": {"binding": False}}, "binding"),
    # Servers see the proxy's certificate: partners' tokens fit it never, those of our own processes always.
    ({"auth": {"binding": "subject"}, "tls": {"enabled": True}, "proxy": {"enabled": True}}, "proxy"),
    ({"limits": {"defaults": {}}}, "defaults"),
    ({"limits": {"default": {"rates": {"al": [{"calls": 1}]}}}}, "al"),
    ({"limits": {"subjects": {"pbx-1": {"rates": {"all": [{"calls": 0}]}}}}}, "calls"),
    ({"limits": {"default": {"stream_messages": {"call": 1}}}}, "call"),
    ({"retention": {"enabled": "yes"}}, "enabled"),
    ({"dialler": {"enabled": True, "floors": [{"region": "main", "inbound": "service"}]}}, "outbound"),
    ({"dialler": {"enabled": True, "floors": []}}, "floors"),
    ({"dialler": {"enabled": True, "floors": [{"region": "elsewhere", "inbound": "a", "outbound": "b"}]}},
     "elsewhere"),
    ({"dialler": {"enabled": True, "floors": [{"region": "main", "inbound": "a", "outbound": "b"}] * 2}},
     "twice"),
    ({"dialler": {"enabled": True}, "role": "region"}, "marketing"),
    ({"dialler": {"env": {"DIALLER_TOKEN": "x"}}}, "DIALLER_TOKEN"),
    ({"role": "hq", "dialler": {"enabled": True}}, "dialler"),
    ({"role": "hq", "canary": {"enabled": True}}, "canary"),
    ({"canary": {"enabled": True, "region": "elsewhere"}}, "elsewhere"),
    ({"regions": [{"id": "beijing", "replicas": 1}, {"id": "beijing", "replicas": 2}]}, "routing-beijing"),
    ({"regions": [{"id": "worker", "replicas": 1}]}, "routing-worker"),
    ({"mongodb": {"secrets": {"sales": "sales-mongodb"}}}, "sales"),
    ({"rabbitmq": {"authority": {"kind": "File"}}}, "kind"),
    ({"networkPolicy": {"partners": {"ports": []}}}, "ports"),
    # Without its labels a selector finds every pod there is.
    ({"networkPolicy": {"clients": [{"podSelector": {"matchLabel": {"app": "pbx"}}}]}}, "matchLabel"),
    ({"mongodb": {"network": {"to": [{"ipBlock": {"cidr": "10.1.0.0"}}]}}}, "cidr"),
    # Rules look back for a few minutes.
    ({"monitoring": {"interval": "5m"}}, "interval"),
    ({"marketing": {"worker": {"files": [{"kind": "File", "name": "smtp"}]}}}, "kind"),
    ({"fullnameOverride": "a" * 30, "regions": [{"id": "b" * 14, "replicas": 1}]}, "at most 52 fit"),
    ({"fullnameOverride": "a" * 40, "dialler": {"enabled": True, "floors": [
        {"region": "main", "inbound": "a", "outbound": "b"}]}, "regions": [{"id": "main", "replicas": 1}]},
     "at most 52 fit"),
])  # fmt: skip
def test_a_typing_error_is_refused_with_its_place(values: dict[str, Any], where: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert where in str(refused.value)


# --- policies ---------------------------------------------------------------------------------------------


@examples
def test_pods_are_restricted(name: str) -> None:
    for owner, pod in pods(example(name)):
        spec, what = pod["spec"], owner["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"] is True, what
        assert spec["securityContext"]["runAsUser"] >= 10_000, what
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, what
        assert spec["automountServiceAccountToken"] is False, what
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), what
        assert all({"emptyDir", "secret", "configMap", "persistentVolumeClaim"} & v.keys()
                   for v in spec.get("volumes", ())), what  # fmt: skip
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
            assert context["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]


@examples
def test_no_secret_stands_in_an_environment(name: str) -> None:
    for owner, pod in pods(example(name)):
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", ()):
                if "value" in variable:
                    assert not re.search(r"(URI|PASSWORD|SECRET|TOKEN|KEY)$", variable["name"]), variable
                    assert "://" not in variable["value"] or variable["name"] in ADDRESSES
                    assert "@" not in variable["value"], owner["metadata"]["name"]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector of pods finds one with these labels."""
    exactly = selector.get("matchLabels", {}).items() <= labels.items()
    return exactly and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


@examples
def test_selectors_find_their_own_pods_and_never_change(name: str) -> None:
    manifests = example(name)
    workloads = {
        one["metadata"]["name"]: one for one in manifests if one["kind"] in ("Deployment", "StatefulSet")
    }
    for what, one in workloads.items():
        selector = one["spec"]["selector"]["matchLabels"]
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items(), what
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & selector.keys(), (
            "an upgrade would be refused"
        )
        found = [other for other, it in workloads.items()
                 if selector.items() <= it["spec"]["template"]["metadata"]["labels"].items()]  # fmt: skip
        assert found == [what]
    labels = [pod["metadata"]["labels"] for _, pod in pods(manifests)]
    for one in manifests:
        if one["kind"] in ("PodDisruptionBudget", "Service", "NetworkPolicy"):
            spec = one["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            if one["kind"] == "Service":
                selector = {"matchLabels": selector}
            assert any(selects(selector, each) for each in labels), one["metadata"]["name"]


@examples
def test_every_pod_has_its_policy_and_its_budget(name: str) -> None:
    """Jobs and tests, too, have a policy: whoever has none is let out nowhere, or everywhere."""
    manifests = example(name)
    policies = [one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"]
    for owner, pod in pods(manifests):
        found = [each for each in policies if selects(each["podSelector"], pod["metadata"]["labels"])]
        assert [each["policyTypes"] for each in found] == [["Ingress", "Egress"]], owner["metadata"]["name"]
    names = {one["metadata"]["name"] for one in manifests if one["kind"] in ("Deployment", "StatefulSet")}
    budgets = [one for one in manifests if one["kind"] == "PodDisruptionBudget"]
    assert {one["metadata"]["name"] for one in budgets} == names
    # What is broken anyway never keeps a node from being emptied.
    assert {one["spec"]["unhealthyPodEvictionPolicy"] for one in budgets} == {"AlwaysAllow"}


@examples
def test_names_labels_and_ports_are_legal(name: str) -> None:
    for one in example(name):
        metadata = one["metadata"]
        assert NAME.fullmatch(metadata["name"]) and len(metadata["name"]) <= 63
        assert all(LABEL.fullmatch(value) and len(value) <= 63 for value in metadata["labels"].values())
    for _, pod in pods(example(name)):
        for container in pod["spec"]["containers"]:
            ports = container.get("ports", [])
            assert all(port["containerPort"] > 1024 and len(port["name"]) <= 15 for port in ports)


@examples
def test_every_process_starts_with_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The settings classes themselves read what the chart sets: nothing misspelt, no value out of range."""
    for owner, pod in pods(example(name)):
        (container, *_) = pod["spec"]["containers"]
        command = container.get("args", [])
        if command[:2] != ["python", "-m"]:
            continue
        prefix = prefix_of(command[2])
        cls = settings_class(prefix)
        values = {v["name"]: v.get("value", "") for v in container["env"]}
        known = {f"{prefix}_{field.upper()}" for field in cls.model_fields}
        unknown = {v for v in values if v.startswith(f"{prefix}_")} - known
        assert not unknown, f"{owner['metadata']['name']}: {unknown}"
        with monkeypatch.context() as patched:
            for variable, value in values.items():
                text = value.replace("$(POD_NAME)", f"{owner['metadata']['name']}-0")
                if text.startswith("/etc/callmesh/"):
                    assert any(
                        text.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"]
                    )
                    file = tmp_path / text.lstrip("/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(CONTENTS.get(text, "x" * 32))
                    text = str(file)
                patched.setenv(variable, text)
            settings = cls()
        assert (settings.mongo_uri == "mongodb://db") is (prefix in STORED)
        assert command[2].endswith(".worker") is (settings.amqp_uri == "amqp://mq")
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        assert grace > settings.drain_notice_seconds + settings.drain_seconds


def test_routers_know_each_other_by_the_names_of_their_pods() -> None:
    routers = [one for one in example("single-cluster") if one["kind"] == "StatefulSet"]
    addresses = set()
    for one in routers:
        env = {v["name"]: v.get("value") for v in one["spec"]["template"]["spec"]["containers"][0]["env"]}
        for ordinal in range(one["spec"]["replicas"]):
            own = env["ROUTING_ADVERTISE"].replace("$(POD_NAME)", f"{one['metadata']['name']}-{ordinal}")
            addresses.add(f"{env['ROUTING_REGION']}={own}")
        peers = set(env["ROUTING_PEERS"].split(","))
    assert len(addresses) == 4 and addresses == peers


def test_a_router_has_one_name_in_every_cluster() -> None:
    """By which it finds itself on the lead list of a region elsewhere."""
    (router,) = [one for one in example("region") if one["kind"] == "StatefulSet"]
    env = {v["name"]: v.get("value") for v in router["spec"]["template"]["spec"]["containers"][0]["env"]}
    own = [peer for peer in env["ROUTING_PEERS"].split(",") if peer.startswith("chengdu=")]
    pods = [f"{router['metadata']['name']}-{ordinal}" for ordinal in range(3)]
    assert own == [f"chengdu={pod}.chengdu.example.internal:7100" for pod in pods]
    assert env["ROUTING_ADVERTISE"] == "$(POD_NAME).chengdu.example.internal:7100"
    headless = [one for one in example("region") if one["metadata"]["name"] == router["spec"]["serviceName"]]
    assert "chengdu.example.internal" in [
        value
        for one in headless
        if one["kind"] == "Service"
        for value in one["metadata"]["annotations"].values()
    ]


@examples
def test_whatever_is_to_be_scraped_may_be(name: str) -> None:
    """A monitor whose targets let nobody in tells of nothing but processes that are down."""
    manifests = example(name)
    if any(one["kind"] == "PodMonitor" for one in manifests):
        for one in manifests:
            if one["kind"] == "NetworkPolicy" and one["spec"]["ingress"]:
                peers = allowed(one, "http")
                assert any("namespaceSelector" in peer for peer in peers), one["metadata"]["name"]


def test_each_role_runs_its_part() -> None:
    def components(name: str) -> set[str]:
        return {pod["metadata"]["labels"]["app.kubernetes.io/component"] for one, pod in pods(example(name))
                if one["kind"] in ("Deployment", "StatefulSet")}  # fmt: skip

    business = {f"{s}-{k}" for s in ("crm", "tickets", "marketing") for k in ("server", "worker")}
    assert components("hq") == business | {"routing-worker"}
    assert components("region") == {"routing-server", "dialler-server"}
    assert components("single-cluster") == components("hq") | components("region")


def allowed(policy: Manifest, port: Any) -> list[Manifest]:
    rules = [rule for rule in policy["spec"]["ingress"] if {"port": port} in rule["ports"]]
    return [peer for rule in rules for peer in rule["from"]]


def test_the_network_is_the_picture() -> None:
    """Nobody but routers and named clients reaches a router; workers are called by nobody; only workers reach
    the broker.
    """
    policies = {
        one["metadata"]["name"]: one for one in example("single-cluster") if one["kind"] == "NetworkPolicy"
    }
    jobs = {f"demo-callmesh-{kind}" for kind in ("backup", "retention", "test")}
    for what in jobs - {"demo-callmesh-test"}:
        ports = {port["port"] for rule in policies[what]["spec"]["egress"] for port in rule["ports"]}
        assert ports == {53, 27017} and policies[what]["spec"]["ingress"] == []
    for what, policy in policies.items():
        if what in jobs:
            continue
        worker, dialler = what.endswith("-worker"), "-dialler-" in what
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        assert (5672 in ports) is worker
        assert (27017 in ports) is not dialler
        assert (7100 in ports) is (dialler or ("-routing-" in what and not worker)), what
        assert bool(allowed(policy, "grpc")) is not worker
    inside = {"app.kubernetes.io/component": "routing-server"}
    peers = allowed(policies["demo-callmesh-routing-beijing"], "grpc")
    assert any(inside.items() <= p.get("podSelector", {}).get("matchLabels", {}).items() for p in peers)
    assert not any("podSelector" in p for p in allowed(policies["demo-callmesh-crm"], "grpc"))
    # A dialler reaches the routers of its region and marketing, and they let it in.
    mine = {"app.kubernetes.io/component": "dialler-server"}
    let_in = {
        what
        for what, policy in policies.items()
        for peer in allowed(policy, "grpc")
        if mine.items() <= peer.get("podSelector", {}).get("matchLabels", {}).items()
    }
    assert let_in == {"demo-callmesh-routing-beijing", "demo-callmesh-marketing"}
    (reached,) = [
        rule["to"] for rule in policies["demo-callmesh-dialler-beijing"]["spec"]["egress"] if "to" in rule
    ]
    labels = [peer["podSelector"]["matchLabels"] for peer in reached]
    assert [(one["app.kubernetes.io/component"], one.get("callmesh.io/region", "")) for one in labels] == [
        ("routing-server", "beijing"),
        ("marketing-server", ""),
    ]


@pytest.mark.parametrize("secure", [False, True])
def test_a_process_has_started_when_all_of_it_is_ready(secure: bool) -> None:
    """A router that serves and has not found its shard would let the next one be restarted; gRPC's health
    does not tell. A dialler may wait for its floor as long as it likes, and is not ended over it.
    """
    for one, pod in pods(everything() if secure else example("single-cluster")):
        probe = pod["spec"]["containers"][0].get("startupProbe")
        if probe is not None:
            dialler = "dialler" in one["metadata"]["name"]
            assert probe["httpGet"]["path"] == ("/healthz" if dialler else "/readyz"), one["metadata"]["name"]


def test_what_the_schema_lets_pass_the_settings_take() -> None:
    """Or an upgrade would end in processes that do not start."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    bounds = {"noticeSeconds": "drain_notice_seconds", "seconds": "drain_seconds"}
    parts = [schema["$defs"]["server"], schema["$defs"]["worker"], schema["properties"]["dialler"]]
    parts.append(schema["properties"]["routing"]["properties"]["server"])
    fields = ServiceSettings.model_fields
    for part in parts:
        for name, said in part["properties"]["drain"]["properties"].items():
            (most,) = [each.le for each in fields[bounds[name]].metadata if hasattr(each, "le")]
            assert said["maximum"] <= most, name


def test_a_variable_is_written_as_it_is_meant() -> None:
    """Helm reads numbers as floating ones, and would write a million as no setting takes it."""
    given = {"CRM_A": 1_000_000, "CRM_B": 25_000_000, "CRM_C": 0.25, "CRM_D": True, "CRM_E": "1e6"}
    values = {"crm": {"worker": {"env": given}}}
    (pod,) = [pod for one, pod in pods(render(values)) if one["metadata"]["name"].endswith("-crm-worker")]
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    assert [env[name] for name in given] == ["1000000", "25000000", "0.25", "true", "1e6"]


def test_files_that_settings_name_are_where_they_are_named() -> None:
    """A sender's password, for one."""
    files = [{"kind": "Secret", "name": "smtp"}, {"kind": "ConfigMap", "name": "setup"}]
    values = {"marketing": {"worker": {"files": files}}, "dialler": {"enabled": True, "files": files[:1]}}
    found = {}
    for one, pod in pods(render(values)):
        mounts = pod["spec"]["containers"][0].get("volumeMounts", ())
        sources = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        for mount in mounts:
            if mount["mountPath"].startswith("/etc/callmesh/files/"):
                source = sources[mount["name"]]
                named = source.get("secret", {}).get("secretName") or source["configMap"]["name"]
                assert mount["mountPath"] == f"/etc/callmesh/files/{named}" and mount["readOnly"]
                found.setdefault(one["metadata"]["name"], []).append(named)
    assert found == {
        "demo-callmesh-marketing-worker": ["smtp", "setup"],
        "demo-callmesh-dialler-main": ["smtp"],
    }


def test_workers_reach_partners_where_the_docs_say_that_they_are() -> None:
    """A sender of mail without a port of its own is called at 25."""
    text = (ROOT / "docs" / "marketing.md").read_text()
    (said,) = re.findall(r"^MARKETING_SENDERS='(.*?)'", text, re.S | re.M)
    wanted = {443 if one.target.startswith("https:") else int(one.target.rpartition(":")[2])
              for one in senders.read_configs(said)}  # fmt: skip
    assert wanted == {25, 443}
    for values, more in (({}, set()), ({"networkPolicy": {"partners": {"ports": [8443]}}}, {8443})):
        for one in render(values):
            if one["kind"] == "NetworkPolicy" and re.search(
                "(crm|marketing)-worker$", one["metadata"]["name"]
            ):
                ports = {port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]}
                assert (more or wanted) <= ports and (8443 in ports) is bool(more)


def test_every_series_says_of_which_platform_it_is() -> None:
    """Or the figures of a trial in the same Prometheus would be added to the real ones. Releases of several
    clusters that are one platform say so.
    """
    for said, count, manifests in (
        ("contact", 4, everything()),
        ("contact-centre", 2, example("hq")),
        ("contact-centre", 2, example("region")),
    ):
        monitors = [one for one in manifests if one["kind"] == "PodMonitor"]
        assert len(monitors) == count
        for one in monitors:
            (endpoint,) = one["spec"]["podMetricsEndpoints"]
            assert {"targetLabel": "platform", "replacement": said} in endpoint["relabelings"]


@pytest.mark.parametrize("kind", ["server", "worker"])
def test_probes_ask_what_the_process_has(kind: str) -> None:
    for one, pod in pods(example("single-cluster")):
        if one["kind"] in ("Deployment", "StatefulSet") and one["metadata"]["name"].endswith("worker") is (
            kind == "worker"
        ):
            (container,) = pod["spec"]["containers"]
            assert ("grpc" in container["readinessProbe"]) is (kind == "server")
            assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    for one, pod in pods(example("hq")):
        if one["kind"] == "Deployment":
            assert "httpGet" in pod["spec"]["containers"][0]["readinessProbe"], "TLS is probed over HTTP"


def test_the_charts_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "tools/chart_readme.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run make chart-readme"


@examples
def test_every_pod_is_spread_over_zones_and_nodes(name: str) -> None:
    for owner, pod in pods(example(name)):
        if owner["kind"] in ("Deployment", "StatefulSet"):
            spread = pod["spec"]["topologySpreadConstraints"]
            assert {one["topologyKey"] for one in spread} == {
                "topology.kubernetes.io/zone",
                "kubernetes.io/hostname",
            }
            for one in spread:
                assert one["labelSelector"]["matchLabels"] == owner["spec"]["selector"]["matchLabels"]


def test_what_is_scaled_leaves_its_number_to_the_scaler() -> None:
    """And only what may be scaled is: routers are named one by one to each other."""
    manifests = example("hq")
    scalers = {
        one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "HorizontalPodAutoscaler"
    }
    assert set(scalers) == {"demo-callmesh-crm", "demo-callmesh-crm-worker"}
    for one in manifests:
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert ("replicas" in one["spec"]) is (one["metadata"]["name"] not in scalers)
    kinds = {name: [metric["type"] for metric in spec["metrics"]] for name, spec in scalers.items()}
    assert kinds == {"demo-callmesh-crm": ["Resource"], "demo-callmesh-crm-worker": ["Resource", "External"]}
    (queue,) = [metric["external"] for metric in scalers["demo-callmesh-crm-worker"]["metrics"][1:]]
    assert queue["metric"]["selector"]["matchLabels"] == {"service": "crm"}
    told = "".join(path.read_text() for path in (ROOT / "services" / "chassis").rglob("*.py"))
    assert f'"{queue["metric"]["name"]}"' in told, "no worker tells it"
    assert queue["target"] == {"type": "AverageValue", "averageValue": "1000"}
    for name, spec in scalers.items():
        target = spec["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", name)
        assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]


def test_the_operators_own_secrets_are_read_where_they_are_asked_for() -> None:
    """A name that the operators make from the name of their object, with the key that they write."""
    manifests = example("operators")
    (mongo,) = [one for one in manifests if one["kind"] == "MongoDBCommunity"]
    (broker,) = [one for one in manifests if one["kind"] == "RabbitmqCluster"]
    (user,) = mongo["spec"]["users"]
    expected = {
        "mongodb": (
            f"{mongo['metadata']['name']}-{user['db']}-{user['name']}",
            "connectionString.standard",
        ),
        "rabbitmq": (f"{broker['metadata']['name']}-default-user", "connection_string"),
    }
    seen = set()
    for _, pod in pods(manifests):
        for volume in pod["spec"].get("volumes", ()):
            if volume["name"] in expected:
                (item,) = volume["secret"]["items"]
                assert (volume["secret"]["secretName"], item["key"]) == expected[volume["name"]]
                seen.add(volume["name"])
    assert seen == expected.keys()
    assert {role["db"] for role in user["roles"]} >= {f"callmesh_{prefix.lower()}" for prefix in STORED}


def test_the_operators_user_may_do_what_the_commands_do() -> None:
    """Without clusterMonitor a restore would not see that services are connected, and would not refuse."""
    (mongo,) = [one for one in example("operators") if one["kind"] == "MongoDBCommunity"]
    (user,) = mongo["spec"]["users"]
    assert {"backup", "clusterMonitor"} <= {role["name"] for role in user["roles"] if role["db"] == "admin"}


#: A platform with everything on, from a registry of its own.
EVERYTHING: dict[str, Any] = {
    "image": {"pullSecrets": ["registry"]},
    "tls": {"enabled": True},
    "proxy": {"enabled": True},
    "dialler": {"enabled": True},
    "canary": {"enabled": True},
    "backup": {"enabled": True},
    "retention": {"enabled": True},
    "monitoring": {"enabled": True},
    "mongodb": {
        "authority": {"kind": "Secret", "name": "stores-authority", "key": "root.pem"},
        "secrets": {"crm": "crm-mongodb"},
    },
    "rabbitmq": {"authority": {"name": "stores-authority"}, "secrets": {"tickets": "tickets-rabbitmq"}},
}


@cache
def everything() -> tuple[Manifest, ...]:
    return tuple(render(EVERYTHING))


def test_every_image_is_pulled_with_the_secrets() -> None:
    """Those of `helm test` as well."""
    for owner, pod in pods(everything()):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}], owner["metadata"]["name"]
        assert pod["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
        assert pod["spec"]["serviceAccountName"] == "demo-callmesh"


@pytest.mark.parametrize(("tls", "protocol"), [(True, "https"), (False, "kubernetes.io/h2c")])
def test_a_port_says_what_is_spoken_there(tls: bool, protocol: str) -> None:
    """Gateways and meshes believe it: h2c before a TLS port is a connection that never stands."""
    manifests = everything() if tls else render({"proxy": {"enabled": True}})
    ports = [port for one in manifests if one["kind"] == "Service" for port in one["spec"]["ports"]]
    assert {port["appProtocol"] for port in ports if port["name"] == "grpc"} == {protocol}


def test_whoever_calls_shows_a_certificate_where_servers_ask_for_one() -> None:
    """Servers, the dialler and the canary: the same variables, files that are there."""
    callers = 0
    for owner, pod in pods(everything()):
        (container,) = pod["spec"]["containers"]
        values = {one["name"]: one.get("value") for one in container.get("env", ())}
        if "TLS_CA_FILE" in values:
            callers += 1
            assert [values[f"TLS_{kind}_FILE"] for kind in ("CERT", "KEY", "CA")] == [
                f"/etc/callmesh/tls/{file}" for file in ("tls.crt", "tls.key", "ca.crt")
            ], owner["metadata"]["name"]
            (volume,) = [one["secret"] for one in pod["spec"]["volumes"] if one["name"] == "tls"]
            assert volume == {"secretName": "callmesh-tls"}
    assert callers == 6


def test_stores_have_an_authority_and_services_may_have_users_of_their_own() -> None:
    seen = set()
    for _, pod in pods(everything()):
        spec = pod["spec"]
        volumes = {one["name"]: one for one in spec.get("volumes", ())}
        mounts = {one["name"]: one["mountPath"] for one in spec["containers"][0].get("volumeMounts", ())}
        for store, own in (
            ("mongodb", {"crm": "crm-mongodb"}),
            ("rabbitmq", {"tickets": "tickets-rabbitmq"}),
        ):
            assert (store in volumes) is (f"{store}-authority" in volumes)
            if store in volumes:
                service = pod["metadata"]["labels"]["app.kubernetes.io/component"].partition("-")[0]
                seen.add((store, service))
                assert volumes[store]["secret"]["secretName"] == own.get(service, f"callmesh-{store}")
                assert mounts[f"{store}-authority"] == f"/etc/callmesh/{store}-authority"
                kind = "secret" if store == "mongodb" else "configMap"
                (item,) = volumes[f"{store}-authority"][kind]["items"]
                assert item["path"] == "ca.crt"
    services = {"routing", "crm", "tickets", "marketing"}
    assert seen == {("mongodb", one) for one in services | {"database"}} | {
        ("rabbitmq", one) for one in services
    }


def test_every_target_says_which_process_it_is() -> None:
    """By that label CallmeshProcessDown looks for who is missing."""
    monitors = [one["spec"]["podMetricsEndpoints"] for one in everything() if one["kind"] == "PodMonitor"]
    assert len(monitors) == 4
    for (endpoint,) in monitors:
        assert "process" in {one["targetLabel"] for one in endpoint["relabelings"]}


def test_jobs_and_the_canary_run_where_they_may() -> None:
    where = {"nodeSelector": {"pool": "calls"}, "tolerations": [{"key": "pool", "operator": "Exists"}]}
    values = {part: {"enabled": True, **where} for part in ("backup", "retention", "canary")}
    values["crm"] = {"server": where}
    found = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, pod in pods(render(values))
        if where.items() <= pod["spec"].items()
    }
    wanted = {"database-backup", "database-retention", "canary-canary", "crm-server", "crm-test"}
    assert found == wanted


def test_jobs_and_the_canary_have_the_environment_of_every_process() -> None:
    """A backup of databases that nobody uses succeeds, too: it has to know another name. Paths to `files` of
    other pods lead nowhere in these.
    """
    named = {"ROUTING_MONGO_DATABASE": "calls", "CRM_MONGO_DATABASE": "customers"}
    paths = {"MONGO_URI_FILE": "/files/mongo", "CALLMESH_TOKEN_FILE": "/files/token"}
    values = {part: {"enabled": True} for part in ("backup", "retention", "canary")} | {
        "env": {**named, **paths},
        "crm": {"worker": {"env": {"CRM_MONGO_DATABASE": "people", "CRM_LANGUAGE": "en"}}},
        "tickets": {"worker": {"env": None}},
    }
    found = {
        owner["metadata"]["name"]: {each["name"]: each["value"] for each in spec["containers"][0]["env"]}
        for owner, spec in ((one, pod["spec"]) for one, pod in pods(render(values)))
        if owner["metadata"]["name"].endswith(("-backup", "-retention", "-canary"))
    }
    job = values["env"] | {"MONGO_URI_FILE": "/etc/callmesh/mongodb/uri", "CRM_MONGO_DATABASE": "people"}
    assert found["demo-callmesh-backup"] == found["demo-callmesh-retention"] == job
    canary = {**values["env"], "CALLMESH_TOKEN_FILE": "/etc/callmesh/canary/token"}
    assert found["demo-callmesh-canary"] == canary


def servers(manifests: Any) -> dict[str, Manifest]:
    """Service -> pod of those that take calls."""
    return {
        pod["spec"]["containers"][0]["args"][2]: pod
        for one, pod in pods(manifests)
        if one["kind"] in ("Deployment", "StatefulSet")
        and pod["metadata"]["labels"]["app.kubernetes.io/component"].endswith("-server")
    }


def test_what_is_renewed_is_mounted_as_a_directory() -> None:
    """A file that is mounted by itself (subPath) or read into a variable stays as it was at the start."""
    for name in EXAMPLES:
        for owner, pod in pods(example(name)):
            for container in pod["spec"]["containers"]:
                mounts = container.get("volumeMounts", ())
                assert not any("subPath" in mount for mount in mounts), owner["metadata"]["name"]
                variables = container.get("env", ())
                assert not any("secretKeyRef" in one.get("valueFrom", {}) for one in variables)


def test_every_server_can_use_the_limits() -> None:
    """The file that the chart makes of the values, read as each server reads it, with its own scopes."""
    manifests = example("hq")
    (made,) = [one for one in manifests if one["metadata"]["name"].endswith("-limits")]
    ((name, text),) = made["data"].items()
    assert servers(manifests).keys() == {"crm", "tickets", "marketing"}
    for service, pod in servers(manifests).items():
        scopes = set(import_module(f"{service}.scopes").SCOPES.values())
        found = limits.parse(text.encode(), service, scopes)
        assert "billing" in found.subjects
        assert found.default.rates["write"][1].calls == 1_000_000, "Helm writes large numbers as numbers"
        (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "limits"]
        assert volume["configMap"]["name"] == made["metadata"]["name"]
        values = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
        assert values["LIMITS_FILE"] == f"/etc/callmesh/limits/{name}"
        checksums = [key for key in pod["metadata"].get("annotations", {}) if "checksum" in key]
        assert not checksums, "changed limits would restart the pods"
    assert not any(one["metadata"]["name"].endswith("-limits") for one in example("region"))


def test_servers_reach_the_address_of_the_keys_and_workers_do_not() -> None:
    values = {"auth": {"jwks": {"name": "", "url": "https://issuer.example.org/jwks"}}}
    manifests = render(values | {"networkPolicy": {"enabled": True}})
    for service, pod in servers(manifests).items():
        environment = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
        assert environment["AUTH_JWKS_URL"] == values["auth"]["jwks"]["url"], service
        assert "AUTH_JWKS_FILE" not in environment
        assert not any(volume["name"].startswith("jwks") for volume in pod["spec"]["volumes"])
    for manifest, opened in ((manifests, True), (render({}), False)):
        for one in manifest:
            if one["kind"] == "NetworkPolicy" and one["metadata"]["labels"][
                "app.kubernetes.io/component"
            ].endswith("-server"):
                ports = {port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]}
                assert (443 in ports) is opened, one["metadata"]["name"]


def test_the_certificate_of_the_docs_names_whatever_is_called() -> None:
    """Routers one another, dialler and canary their routers, the proxy its servers, clients all of them."""
    text = (ROOT / "docs" / "deploying.md").read_text()
    (block,) = [one for one in re.findall(r"```yaml\n(.*?)```", text, re.S) if "kind: Certificate" in one]
    for word, value in (("RELEASE", "demo"), ("REGION", "main"), ("NAMESPACE", "contact")):
        block = block.replace(word, value)
    names = yaml.safe_load(block)["spec"]["dnsNames"]
    pattern = "|".join(re.escape(name).replace(r"\*", "[^.]+") for name in names)
    rendered = yaml.safe_dump_all(everything())
    called = set(re.findall(r"\b[a-z0-9.-]+\.contact\.svc\b(?=:7100|[^:]*port_value: 7100)", rendered))
    called |= {f"{one['metadata']['name']}.contact.svc" for one in everything() if one["kind"] == "Service"}
    assert {"demo-callmesh-routing-main-1.demo-callmesh-routing-main.contact.svc"} < called
    assert {one for one in called if not re.fullmatch(pattern, one)} == set()
