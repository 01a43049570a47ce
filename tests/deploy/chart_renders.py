"""Renders the chart with Helm's own library and looks at what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helm_python
import yaml

if TYPE_CHECKING:
    from referencing import Registry

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "callmesh"
EXAMPLES = {path.stem: path for path in sorted((ROOT / "deploy" / "helm" / "examples").glob("*.yaml"))}
RELEASE, NAMESPACE = "demo", "contact"
#: The API whose schemas hold.
KUBERNETES = "1.31"

#: Settings classes by the prefix of their variables.
SETTINGS = {
    "CRM": "crm.config.CrmSettings",
    "TICKETS": "tickets.config.TicketsSettings",
    "MARKETING": "marketing.config.MarketingSettings",
    "ROUTING": "routing.config.RoutingSettings",
    "DIALLER": "routing.planning.dialler_config.DiallerSettings",
}
#: Those that keep something.
STORED = tuple(prefix for prefix in SETTINGS if prefix != "DIALLER")

Manifest = dict[str, Any]


def render(values: dict[str, Any]) -> list[Manifest]:
    """Every object of a release, in the templates' order."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
        found = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    texts = [found[name] for name in sorted(found) if name.endswith(".yaml")]
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]


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


def prefix_of(module: str) -> str:
    """The prefix of the settings of a process that runs a module."""
    return "DIALLER" if module == "routing.planning.dialler_main" else module.partition(".")[0].upper()


def settings_class(prefix: str) -> Any:
    """The settings that a service's processes read."""
    module, _, name = SETTINGS[prefix].rpartition(".")
    return getattr(import_module(module), name)


# --- the API's schemas; kubernetes_validate's own function reads all of them for every object. What knows
# schemas takes seconds to import, and every worker collects these files.


@cache
def _schemas() -> tuple[str, Registry[Any]]:
    """(the folder of the newest strict schemas of `KUBERNETES`, what they refer to)."""
    from kubernetes_validate import utils as kubernetes
    from referencing import Registry, Resource

    version = next(one for one in kubernetes.all_versions() if kubernetes.major_minor(one) == KUBERNETES)
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    definitions = Resource.from_contents(
        kubernetes.schema_contents(f"{folder}/_definitions.json", KUBERNETES)
    )
    return folder, (definitions @ Registry()).crawl()


@cache
def _validator(kind: str, api_version: str) -> Any:
    from jsonschema.validators import Draft202012Validator
    from kubernetes_validate import utils as kubernetes

    folder, registry = _schemas()
    group, _, version = api_version.rpartition("/")
    short = f"{group.partition('.')[0]}-{version}" if group else version
    schema = kubernetes.schema_contents(f"{folder}/{kind.lower()}-{short}.json", KUBERNETES)
    return Draft202012Validator(schema, registry=registry)


def validate(one: Manifest) -> None:
    """What the API would say of an object, unknown fields refused.

    Raises:
        jsonschema.ValidationError: the object is none that the API takes.
        FileNotFoundError: the API knows no such kind.
    """
    _validator(one["kind"], one["apiVersion"]).validate(one)
