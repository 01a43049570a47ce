"""Renders the chart with Helm's own library and looks at what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "callmesh"
EXAMPLES = {path.stem: path for path in sorted((ROOT / "deploy" / "helm" / "examples").glob("*.yaml"))}
RELEASE, NAMESPACE = "demo", "contact"

#: Settings classes by the prefix of their variables.
SETTINGS = {
    "CRM": "crm.config.CrmSettings",
    "TICKETS": "tickets.config.TicketsSettings",
    "MARKETING": "marketing.config.MarketingSettings",
    "ROUTING": "routing.config.RoutingSettings",
}

Manifest = dict[str, Any]


def render(values: dict[str, Any]) -> list[Manifest]:
    """Every object of a release, in the templates' order."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
        found = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    texts = [found[name] for name in sorted(found) if name.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


@cache
def example(name: str) -> tuple[Manifest, ...]:
    """Every object of an example's release."""
    return tuple(render(yaml.safe_load(EXAMPLES[name].read_text())))


def pods(manifests: Any) -> Iterator[tuple[Manifest, Manifest]]:
    """(the object, its pod's {metadata, spec}) of everything that runs a pod."""
    for one in manifests:
        if one["kind"] == "Pod":
            yield one, one
        elif one["kind"] in ("Deployment", "StatefulSet"):
            yield one, one["spec"]["template"]
        elif one["kind"] == "CronJob":
            yield one, one["spec"]["jobTemplate"]["spec"]["template"]


def settings_class(prefix: str) -> Any:
    """The settings that a service's processes read."""
    module, _, name = SETTINGS[prefix].rpartition(".")
    return getattr(import_module(module), name)
