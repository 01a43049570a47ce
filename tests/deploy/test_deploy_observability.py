"""Rules, alerts, dashboards: they parse, speak of metrics that exist, and alerts fire when they should."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.chart_renders import EXAMPLES, ROOT, example, render
from tools import dashboard_check

from routing import metrics_journal, metrics_shard

FOLDER = ROOT / "deploy" / "observability"
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
#: Of Prometheus' client for Python, and of Prometheus itself.
COMMON = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}
#: Labels of whoever scrapes, and of kube-state-metrics' series.
OF_TARGETS = {"platform", "process", "instance", "job", "namespace", "cronjob"}
#: Labels of recorded series, of one or another.
RECORDED = {"region", "queue", "shard", "service", "handler"}
#: Grafana's units in use; a misspelt one shows bare numbers.
UNITS = {"none", "s", "percentunit", "reqps", "bytes"}


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("rules*.yaml"))]
    files = [file for file in files if "groups" in file]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> None:
    try:
        done = subprocess.run(
            ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs promtool (Debian: prometheus)")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def metrics_of(expression: str) -> set[str]:
    """Names of metrics and recorded series in a query; label names and values are not."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return set(
        re.findall(r"\b(?:callmesh[_:][A-Za-z0-9_:]+|(?:crm|marketing)_[a-z_]+|process_[a-z_]+|up)\b", bare)
    )


@pytest.fixture(scope="module")
def known() -> set[str]:
    """What the code names, and what is recorded."""
    sources = "".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    named = set(re.findall(r'"((?:callmesh|crm|marketing)_[a-z0-9_]+)"', sources))
    return named | {rule["record"] for rule in rules() if "record" in rule} | COMMON


def unknown(expression: str, known: set[str]) -> set[str]:
    """Metrics that nobody has. Sums and counts belong to a metric, and a family's counter has no suffix."""
    found = metrics_of(expression)
    return {name for name in found if not {name, re.sub(r"_(total|bucket|sum|count)$", "", name)} & known}


def test_every_alert_has_a_runbook_and_a_test() -> None:
    tested = (FOLDER / "rules_test.yaml").read_text()
    for rule in rules():
        if "alert" in rule:
            page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
            assert rule["alert"] in page.splitlines()[0], "the page is headed by its alerts"
            assert re.search(rf"alertname: {rule['alert']}\n", tested) and rule["annotations"]["summary"]
            assert rule["labels"]["severity"] in ("critical", "warning")


def test_every_runbook_is_of_an_alert_that_exists() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    for page in (ROOT / "docs" / "runbooks").glob("*.md"):
        heads = set(re.findall(r"\bCallmesh\w+", page.read_text().splitlines()[0]))
        assert heads <= alerts, page.name


def test_an_alert_of_the_chart_leads_to_its_page() -> None:
    """To where the operator serves the pages, or else to the command that prints them in a pod."""
    values = yaml.safe_load(EXAMPLES["single-cluster"].read_text())
    values["monitoring"]["runbooks"] = "https://wiki.example.com/callmesh/"
    served, unserved = alerts_of(render(values)), alerts_of(example("single-cluster"))
    pages = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules() if "alert" in rule}
    assert set(served) == set(unserved) and len(served) > 20
    for alert in served:
        name = pages[alert].removeprefix("docs/runbooks/")
        assert served[alert]["runbook_url"] == f"https://wiki.example.com/callmesh/{name}"
        assert "runbook_url" not in unserved[alert], "a link that leads nowhere"
        assert unserved[alert]["runbook"] == f"callmesh runbook {name.removesuffix('.md')}"


def alerts_of(manifests: Any) -> dict[str, dict[str, str]]:
    """Each alert's annotations."""
    groups = [
        group for one in manifests if one["kind"] == "PrometheusRule" for group in one["spec"]["groups"]
    ]
    return {
        rule["alert"]: rule["annotations"] for group in groups for rule in group["rules"] if "alert" in rule
    }


def test_rules_speak_of_metrics_that_exist(known: set[str]) -> None:
    assert {rule["expr"]: names for rule in rules() if (names := unknown(rule["expr"], known))} == {}
    assert unknown("sum(callmesh_no_such_total)", known) == {"callmesh_no_such_total"}


def labels_of_families() -> dict[str, set[str]]:
    """Labels of the metrics that are written out from tables."""
    shard, journal, queries = metrics_shard, metrics_journal, {"service", "collection", "command"}
    counters = [*shard.COUNTERS.values(), *journal.COUNTERS.values()]
    by_pair = [*shard.GAUGES.values(), journal.WAIT, journal.ABANDONED, journal.TALK]
    return {
        **{f"{family[0]}_total": {"region", "queue"} for family in counters},
        **{family[0]: {"region", "queue"} for family in by_pair},
        **{family[0]: {"region", "state"} for family in (shard.AGENTS, shard.CALLS)},
        **{family[0]: {"region"} for family in (shard.STUCK, shard.LOST, shard.DRAINING)},
        **{family[0]: {"shard"} for family in (shard.EPOCH, shard.SEQUENCE, shard.STALLED)},
        "callmesh_db_queries_total": {*queries, "outcome"},
        "callmesh_db_query_seconds": queries,
    }


def labels_of_metrics() -> dict[str, set[str]]:
    """Each metric's labels, as the code names them."""
    found = labels_of_families()
    for path in (ROOT / "services").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        constants = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in assigned}
        for node in ast.walk(tree):
            made = isinstance(node, ast.Call) and re.search(
                r"\b(counter|gauge|histogram)$", ast.unparse(node.func)
            )
            if made and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
                said = ast.unparse(node.args[2]) if len(node.args) > 2 else "()"
                found[str(node.args[0].value)] = set(ast.literal_eval(constants.get(said, said)))
    return found


def wrong_labels(rule: dict[str, Any], labels: dict[str, set[str]]) -> Iterator[str]:
    """What a rule selects, adds up or tells by and its metrics do not have."""
    expression, has = rule["expr"], set()
    for metric in metrics_of(expression) - COMMON:
        own = labels.get(metric) or labels.get(re.sub(r"_(bucket|sum|count)$", "", metric)) or RECORDED
        has |= own
        for selector in re.findall(rf"\b{metric}\{{([^}}]*)\}}", expression):
            names = set(re.findall(r"(\w+)\s*[=!]", selector))
            yield from (f"{metric} has no {name}" for name in names - own - OF_TARGETS)
    by = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", expression))))
    yield from (f"by {name}" for name in by - has - OF_TARGETS - {"le"})
    told = set(re.findall(r"labels\.(\w+)", str(rule.get("annotations"))))
    yield from (f"{rule['alert']} tells {name}" for name in told - (by or has))


def test_rules_ask_for_labels_that_metrics_have() -> None:
    """A rule that selects or adds up by a label that its metric does not have never fires."""
    labels = labels_of_metrics()
    assert len(labels) > 90
    assert [wrong for rule in rules() for wrong in wrong_labels(rule, labels)] == []
    bad = {"alert": "A", "expr": 'sum by (region) (callmesh_shard_leads{lead="1"})', "annotations": {}}
    assert list(wrong_labels(bad, labels)) == ["callmesh_shard_leads has no lead", "by region"]


@pytest.mark.timeout(300)
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "deploy/observability/rules_test.yaml")


# --- dashboards -------------------------------------------------------------------------------------------


def test_the_dashboards_are_as_they_are_made() -> None:
    done = subprocess.run([sys.executable, "tools/make_dashboards.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python tools/make_dashboards.py"
    assert set(DASHBOARDS) == {"wallboard", "routing", "failover", "services", "bus", "business"}


def test_dashboards_have_their_own_ids() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_a_dashboard_is_well_made(name: str, known: set[str]) -> None:
    dashboard = DASHBOARDS[name]
    assert 36 <= dashboard["schemaVersion"] <= 40 and dashboard["uid"] == f"callmesh-{name}"
    assert len(dashboard["uid"]) <= 40
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries", "table")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS and panel["targets"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies on another"
        taken |= cells
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables and not unknown(target["expr"], known), target["expr"]
            assert metrics_of(target["expr"]), "a query asks for something"


def test_every_query_parses(tmp_path: Path) -> None:
    asked = [
        {"record": f"query:{number}", "expr": query.expression}
        for number, query in enumerate(dashboard_check.queries())
    ]
    assert len(asked) > 100
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": asked}]}))
    promtool("check", "rules", str(file))


def test_the_chart_ships_every_dashboard() -> None:
    shipped = [
        one["data"] for one in example("single-cluster")
        if one["kind"] == "ConfigMap" and one["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]  # fmt: skip
    assert {name for data in shipped for name in data} == {f"callmesh-{name}.json" for name in DASHBOARDS}


def test_an_empty_query_is_found() -> None:
    """The tool that asks a live Prometheus takes neither no series nor NaN for an answer."""
    assert not dashboard_check.answered([])
    assert not dashboard_check.answered([{"values": [[1, "NaN"], [2, "NaN"]]}])
    assert dashboard_check.answered([{"values": [[1, "NaN"], [2, "0"]]}])
    assert dashboard_check.filled('x{region=~"$region"}[$__rate_interval]') == 'x{region=~".*"}[5m]'


def test_the_page_tells_every_metric(known: set[str]) -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    made = re.compile(r'(?:counter|gauge|histogram)\(\s*"([a-z0-9_]+)"')
    named = {name for path in (ROOT / "services").rglob("*.py") for name in made.findall(path.read_text())}
    families = [*metrics_shard.COUNTERS.values(), *metrics_journal.COUNTERS.values()]
    named |= {f"{family[0]}_total" for family in families} | {g[0] for g in metrics_shard.GAUGES.values()}
    named |= {rule["record"].rpartition("_")[0] for rule in rules() if "record" in rule}
    assert {name for name in named if f"`{name}" not in page} == set()
