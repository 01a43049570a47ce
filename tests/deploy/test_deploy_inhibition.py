"""One cause, one page: what fires beside each other in a known outage, and what is left of it when
Alertmanager has applied the rules that come with the alerts.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.deploy.test_deploy_observability import FOLDER, rules

RULES = yaml.safe_load((FOLDER / "alertmanager-inhibit.yaml").read_text())["inhibit_rules"]
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')

Alert = dict[str, str]


def fits(matchers: list[str], alert: Alert) -> bool:
    """As Alertmanager matches: all of them, regular expressions whole; a missing label is empty."""
    for text in matchers:
        found = MATCHER.fullmatch(text)
        assert found is not None, text
        name, how, value = found.groups()
        has = alert.get(name, "")
        equal = re.fullmatch(value, has) is not None if "~" in how else has == value
        if equal is how.startswith("!"):
            return False
    return True


def silenced(alert: Alert, firing: list[Alert]) -> bool:
    return any(
        fits(rule["target_matchers"], alert)
        and not fits(rule["source_matchers"], alert)
        and any(
            fits(rule["source_matchers"], source)
            and all(source.get(name, "") == alert.get(name, "") for name in rule["equal"])
            for source in firing
        )
        for rule in RULES
    )


def alert(name: str, **labels: str) -> Alert:
    return {"alertname": f"Callmesh{name}", "platform": "demo", **labels}


BEIJING, SALES = {"region": "beijing"}, {"region": "beijing", "queue": "sales"}
ROUTING = {"service": "routing"}
#: What is wrong -> what fires; the first is what shall be heard.
OUTAGES: dict[str, list[Alert]] = {
    "all routers are gone": [
        alert("RoutersDown"),
        alert("ShardWithoutLeader", **BEIJING),
        alert("ShardWithoutLeader", region="shanghai"),
        alert("CanaryFails", instance="canary:1"),
        alert("ServiceLevelBurnsFast", **BEIJING),
        alert("ProcessDown", process="routing", instance="r:1"),
    ],
    "a region's routers are gone": [
        alert("ShardWithoutLeader", **BEIJING),
        alert("NobodyAnswers", **SALES),
        alert("CallersWaitLong", **SALES),
        alert("ServiceLevelBurnsFast", **BEIJING),
        alert("ServiceLevelBurnsSlowly", **BEIJING),
    ],
    "a journal cannot be written": [
        alert("JournalStalled", shard="beijing"),
        alert("JournalSlow", shard="beijing"),
        alert("CanaryFails", instance="canary:1"),
        alert("ErrorBudgetBurnsFast", **ROUTING),
        alert("ErrorBudgetBurnsSlowly", **ROUTING),
        alert("QueriesFail", **ROUTING),
    ],
    "a journal cannot be written, and its leader goes on": [
        alert("LedFromMemory", shard="beijing"),
        alert("EventsWait", shard="beijing"),
        alert("QueriesFail", **ROUTING),
    ],
    "all agents went home": [
        alert("NobodyAnswers", **SALES),
        alert("CallersWaitLong", **SALES),
        alert("CallsRefused", **BEIJING),
        alert("ServiceLevelBurnsFast", **BEIJING),
    ],
    "crm's database fails": [
        alert("QueriesFail", service="crm"),
        alert("OutboxWaits", service="crm"),
        alert("ConsumersBehind", service="crm", handler="h"),
        alert("ErrorBudgetBurnsSlowly", service="crm"),
    ],
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_one_cause_is_told_once(outage: str) -> None:
    firing = OUTAGES[outage]
    assert [one for one in firing if not silenced(one, firing)] == firing[:1]


def test_a_symptom_without_its_cause_speaks() -> None:
    for firing in OUTAGES.values():
        for one in firing[1:]:
            assert not silenced(one, [one]), one


def test_what_fires_elsewhere_is_told_as_well() -> None:
    cause = alert("ShardWithoutLeader", **BEIJING)
    elsewhere = alert("NobodyAnswers", region="shanghai", queue="sales")
    assert not silenced(elsewhere, [cause, elsewhere])
    other = {**alert("CanaryFails", instance="canary:1"), "platform": "other"}
    assert not silenced(other, [alert("RoutersDown"), other])
    crm = alert("ErrorBudgetBurnsFast", service="crm")
    assert not silenced(crm, [alert("JournalStalled", shard="beijing"), crm])


def test_every_rule_is_about_alerts_that_there_are() -> None:
    """And asks for equality of labels that both sides have."""
    known: dict[str, Any] = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    for rule in RULES:
        for side in ("source_matchers", "target_matchers"):
            found = MATCHER.fullmatch(rule[side][0])
            assert found is not None and found[1] == "alertname"
            for pattern in found[3].split("|"):
                named = [name for name in known if re.fullmatch(pattern, name)]
                assert named, pattern
                for name in named:
                    by = set(
                        re.findall(r"[a-z]+", " ".join(re.findall(r"by \(([^)]*)\)", known[name]["expr"])))
                    )
                    recorded = "callmesh:" in known[name]["expr"]
                    assert recorded or set(rule["equal"]) <= by, (name, by)
