"""Every collection of every service has a stated class and retention, every scope that changes something is
classed.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import SON
from mongoengine import Document

from chassis import lifecycle
from chassis.lifecycle import DataClass, Rule

SERVICES = ("crm", "tickets", "marketing", "routing")
#: Scopes that read so much of so many people that it is an act, too.
BULK = {"crm.export.read"}
ROOT = Path(__file__).parents[3] / "services"
#: Processes, and what only eventlet may load.
NOT_IMPORTED = ("worker", "consumers", "__main__", "dialler_main")
READS = re.compile(r"\.(read|reports|personal)$")


def documents(service: str) -> set[type[Document]]:
    """Every mapping that a service's code defines."""
    package = importlib.import_module(service)
    for module in pkgutil.walk_packages(package.__path__, f"{service}."):
        path = ROOT.joinpath(*module.name.split(".")).with_suffix(".py")
        # Only those that map something: the others load much and tell nothing here.
        text = path.read_text() if path.exists() else ""
        maps = "mongoengine" in text or "Document)" in text
        if maps and module.name.rsplit(".", 1)[-1] not in NOT_IMPORTED:
            importlib.import_module(module.name)

    def below(document: Any) -> Iterator[Any]:
        for each in document.__subclasses__():
            yield each
            yield from below(each)

    return {
        each
        for each in below(Document)
        if each.__module__.startswith(f"{service}.") and not each._meta.get("abstract")
    }


@pytest.mark.parametrize("service", SERVICES)
def test_every_collection_has_its_class_and_its_end(service: str) -> None:
    table = lifecycle.load(service)
    assert table.service == service
    held = {each.name: each for each in table.held}
    assert len(held) == len(table.held), "a collection is named twice"
    assert {each._meta["collection"] for each in documents(service)} <= set(held)
    for each in table.held:
        ttl = [
            spec["expireAfterSeconds"]
            for spec in (each.document._meta.get("index_specs", ()) if each.document else ())
            if "expireAfterSeconds" in spec
        ]
        if each.document is not None:
            assert ttl == ([each.seconds] if each.rule is Rule.TTL else []), each.name
        assert (each.rule is Rule.AGED) == bool(each.aged_by), each.name
        if each.rule is Rule.AGED:
            assert each.seconds and each.document is not None
            firsts = [spec["fields"][0][0] for spec in each.document._meta["index_specs"]]
            assert each.aged_by in firsts, f"{each.name}: its age is not indexed"
        if each.kind is DataClass.PERSONAL and each.name != "forbidden_numbers":
            assert each.rule is not Rule.DELETED, f"{each.name}: what is personal ends with the person"


@pytest.mark.parametrize("service", SERVICES)
def test_every_scope_that_changes_something_is_an_act_or_daily_work(service: str) -> None:
    table = lifecycle.load(service)
    module = next(
        found
        for name in ("scopes", "servicer")
        if (ROOT / service / f"{name}.py").exists()
        and hasattr(found := importlib.import_module(f"{service}.{name}"), "SCOPES")
    )
    changing = {scope for scope in module.SCOPES.values() if not READS.search(scope)}
    changing -= {"tickets.read"}
    assert changing == set(table.acts | table.daily) - BULK and table.acts <= set(module.SCOPES.values())
    assert not table.acts & table.daily


def test_the_table_is_told_as_it_is() -> None:
    rows = {row["collection"]: row for row in lifecycle.table(lifecycle.load("crm"))}
    assert rows["webhook_deliveries"] == {
        "collection": "webhook_deliveries",
        "class": "technical",
        "ends": "removed by the database",
        "days": 30.0,
    }


def test_an_index_is_the_same_however_the_server_writes_it() -> None:
    ours = {"fields": [("own", 1)], "unique": True, "partialFilterExpression": {"own": {"$gt": ""}}}
    theirs = {
        "v": 2,
        "key": SON([("own", 1)]),
        "name": "own_1",
        "unique": True,
        "partialFilterExpression": SON([("own", SON([("$gt", "")]))]),
    }
    assert lifecycle._shape(lifecycle._as_index(ours)) == lifecycle._shape(theirs)
    assert lifecycle._shape(theirs) != lifecycle._shape({**theirs, "unique": False})
    assert lifecycle._shape({"key": SON([("b", 1), ("a", -1)])}) == "(b 1, a -1)"


class _Store(dict[str, Any]):
    """As much of a database as migrations need."""

    def __missing__(self, name: str) -> Any:
        return self.setdefault(name, _Marks())


class _Marks:
    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}

    def find_one(self, where: dict[str, str]) -> Any:
        return self.rows.get(where["_id"])

    def update_one(self, where: dict[str, str], change: Any, upsert: bool) -> None:
        self.rows[where["_id"]] = change


def test_a_migration_runs_once_and_again_only_when_it_broke() -> None:
    runs: list[bool] = []

    def step(_: Any, really: bool) -> int:
        runs.append(really)
        if len(runs) == 1:
            raise RuntimeError("the database went away")
        return 3

    table = lifecycle.Lifecycle(
        service="x", held=(), migrations=(lifecycle.Migration(id="2026-11-one", what="", run=step),)
    )
    store: Any = _Store()
    with pytest.raises(RuntimeError):
        list(lifecycle.apply(store, table))
    assert list(lifecycle.apply(store, table)) == ["migration 2026-11-one: 3 changed"]
    assert list(lifecycle.apply(store, table)) == [] and runs == [True, True]


@pytest.mark.parametrize("count", [0, 2])
def test_a_migration_is_told_of_where_it_would_change_something(count: int) -> None:
    step = lifecycle.Migration(id="2026-11-one", what="older rows", run=lambda _, __: count)
    table = lifecycle.Lifecycle(service="x", held=(), migrations=(step,))

    class Empty(dict[str, Any]):
        def list_collection_names(self) -> list[str]:
            return []

        def __missing__(self, name: str) -> Any:
            return self

        def find(self, *_: Any) -> list[Any]:
            return []

    store: Any = Empty()
    told = [finding.what for finding in lifecycle.findings(store, table)]
    assert told == (["migration 2026-11-one: older rows (2)"] if count else [])
