"""A whole directory over gRPC: dry run, apply, apply again, prune, and files with a fault."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from callmesh.routing.v1 import directory_pb2 as pb
from chassis.clock import SystemClock
from chassis.errors import EtagMismatch, InvalidArgument, StartError
from chassis.mongo import connect, disconnect, ensure_indexes, update_aggregate
from routing.config import RoutingSettings
from routing.directory_file import apply_directory
from routing.directory_handlers import DirectoryHandlers
from routing.directory_kinds import AGENT, REGION
from routing.documents import DOCUMENTS, AgentDocument, RegionDocument

pytestmark = pytest.mark.integration
POINT = {"latitude": 39.9, "longitude": 116.4}


@pytest.fixture
def handlers(mongo_uri: str, mongo_database: str) -> Iterator[DirectoryHandlers]:
    connect(RoutingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    yield DirectoryHandlers(SystemClock(), {"a:7120"})
    disconnect()


def whole(**more: Any) -> pb.Directory:
    said: dict[str, Any] = {
        "regions": [{"name": "regions/beijing", "location": POINT, "served_areas": ["CN/北京"]}],
        "skills": [{"name": "skills/chinese"}],
        "queues": [{"name": "queues/service", "skills": [{"skill": "chinese", "level_min": 1}]}],
        "agents": [{"name": "agents/amy", "region": "regions/beijing", "skills": {"chinese": 3}}],
    }
    return pb.Directory(**{**said, **more})


def changes(
    handlers: DirectoryHandlers, directory: pb.Directory, **how: bool
) -> list[tuple[str, str, list[str]]]:
    request = pb.ApplyDirectoryRequest(directory=directory, **how)
    return [(c.action, c.name, list(c.fields)) for c in apply_directory(handlers, request).changes]


EVERYTHING = [
    ("create", "skills/chinese", []),
    ("create", "regions/beijing", []),
    ("create", "queues/service", []),
    ("create", "agents/amy", []),
]


def test_a_directory_comes_into_force_and_stays_so(handlers: DirectoryHandlers) -> None:
    assert changes(handlers, whole(), validate_only=True) == EVERYTHING
    assert handlers.all_of(REGION) == {}, "a dry run writes nothing"
    assert changes(handlers, whole()) == EVERYTHING
    assert changes(handlers, whole()) == [], "the same file again changes nothing"
    moved = whole(regions=[{"name": "regions/beijing", "location": POINT, "weight": 50}])
    assert changes(handlers, moved) == [("update", "regions/beijing", ["served_areas", "weight"])]
    assert handlers.all_of(REGION)["beijing"].weight == 50


def test_pruning_removes_what_the_file_does_not_name(handlers: DirectoryHandlers) -> None:
    changes(handlers, whole())
    less = pb.Directory(skills=[{"name": "skills/chinese"}])
    assert changes(handlers, less) == []
    assert [(action, name) for action, name, _ in changes(handlers, less, prune=True)] == [
        ("delete", "agents/amy"),
        ("delete", "queues/service"),
        ("delete", "regions/beijing"),
    ]


BEIJING = {"name": "regions/beijing", "location": POINT}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"regions": [BEIJING, BEIJING]}, "directory.regions[1].name"),
    ({"regions": [{"name": "regions/beijing"}]}, "directory.regions[0].location"),
    (
        {"regions": [{**BEIJING, "location": {"latitude": 91, "longitude": 0}}]},
        "directory.regions[0].location.latitude",
    ),
    (
        {
            "regions": [
                {**BEIJING, "served_areas": ["CN/北京"]},
                {**BEIJING, "name": "regions/tianjin", "served_areas": ["CN/北京"]},
            ]
        },
        "directory.regions[1].served_areas[0]",
    ),
    ({"regions": [{**BEIJING, "served_prefixes": ["10"]}]}, "directory.regions[0].served_prefixes[0]"),
    (
        {"regions": [{**BEIJING, "served_areas": ["CN/北京", "CN/北平"]}]},
        "directory.regions[0].served_areas[1]",
    ),
    ({"regions": [{**BEIJING, "served_areas": [""]}]}, "directory.regions[0].served_areas[0]"),
    ({"regions": [{**BEIJING, "lead_list": ["a:7120", "b:99999"]}]}, "directory.regions[0].lead_list[1]"),
    ({"regions": [{**BEIJING, "lead_list": ["a:7120", "b:7120"]}]}, "directory.regions[0].lead_list[1]"),
    ({"skills": []}, "queues/service.skills"),
    ({"agents": [{"name": "agents/amy", "region": "regions/nowhere"}]}, "agents/amy.region"),
    ({"agents": [{"name": "amy", "region": "regions/beijing"}]}, "directory.agents[0].name"),
]


@pytest.mark.parametrize(("more", "field"), FAULTS)
def test_a_fault_is_named_and_the_directory_before_stays(
    handlers: DirectoryHandlers, more: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        changes(handlers, whole(**more))
    assert refused.value.details.field_violations[0].field == field
    assert handlers.all_of(REGION) == {}


def test_an_area_of_a_region_that_stays_is_not_claimed_again(handlers: DirectoryHandlers) -> None:
    """The file does not name the region that has it; with pruning that region would go."""
    changes(handlers, whole())
    claims = {"name": "regions/tianjin", "location": POINT, "served_areas": ["CN/天津", "CN/北京"]}
    with pytest.raises(InvalidArgument, match="served by regions/beijing already") as refused:
        changes(handlers, pb.Directory(regions=[claims]))
    assert refused.value.details.field_violations[0].field == "directory.regions[0].served_areas[1]"
    assert list(handlers.all_of(REGION)) == ["beijing"]
    hand_over = pb.Directory(regions=[{**BEIJING, "served_areas": []}, claims])
    assert len(changes(handlers, hand_over)) == 2


@pytest.mark.parametrize("etag", ["", "v1"])
def test_what_changes_while_it_is_removed_is_removed_or_its_etag_refused(
    handlers: DirectoryHandlers, monkeypatch: pytest.MonkeyPatch, etag: str
) -> None:
    changes(handlers, whole())
    looked = iter([True])

    def change(_kind: Any, id: str) -> str:
        if next(looked, False):
            update_aggregate(AgentDocument.objects.get(id=id))
        return ""

    monkeypatch.setattr(handlers, "_user_of", change)
    if etag:
        with pytest.raises(EtagMismatch):
            handlers.delete(AGENT, "agents/amy", etag)
    else:
        handlers.delete(AGENT, "agents/amy", etag)
    assert (AgentDocument.objects(id="amy").first() is not None) == bool(etag)


def test_regions_exchange_what_they_serve_and_a_removed_one_leaves_it(handlers: DirectoryHandlers) -> None:
    tianjin = {"name": "regions/tianjin", "location": POINT}
    given = (
        {"served_areas": ["CN/北京", "CN/河北"], "served_prefixes": ["+8610"]},
        {"served_areas": ["CN/天津"]},
    )
    for first, second in (given, reversed(given)):
        changes(handlers, whole(regions=[{**BEIJING, **first}, {**tianjin, **second}]))
        served = handlers.all_of(REGION)
        for region, said in (("beijing", first), ("tianjin", second)):
            assert list(served[region].served_areas) == said["served_areas"]
            assert list(served[region].served_prefixes) == said.get("served_prefixes", [])
    alone = pb.Directory(regions=[{**BEIJING, "served_areas": ["CN/北京", "CN/天津"]}])
    changes(handlers, alone, prune=True)
    assert {id: list(region.served_areas) for id, region in handlers.all_of(REGION).items()} == {
        "beijing": ["CN/北京", "CN/天津"]
    }


def test_regions_of_before_that_share_an_area_are_named_by_what_they_share(
    handlers: DirectoryHandlers,
) -> None:
    changes(handlers, whole(regions=[BEIJING, {**BEIJING, "name": "regions/tianjin"}], agents=[]))
    regions = RegionDocument._get_collection()
    regions.drop_indexes()
    regions.update_many({}, {"$set": {"served_areas": ["CN/北京"]}})
    with pytest.raises(StartError, match="indexes of regions: two documents have the same served_areas"):
        ensure_indexes(DOCUMENTS)


@pytest.mark.parametrize("field", ["served_areas", "served_prefixes"])
def test_of_two_regions_that_take_the_same_at_once_one_gets_it(
    handlers: DirectoryHandlers, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Both have looked and found it free before either writes; made alone, and changed."""
    taken = {"served_areas": ["CN/北京"], "served_prefixes": ["+8610"]}[field]
    together, look = threading.Barrier(2), handlers._check_served
    looked = threading.local()

    def looked_together(document: Any) -> None:
        look(document)
        if not hasattr(looked, "once"):
            looked.once = True
            together.wait(30)

    def make(id: str) -> str:
        said = pb.Region(location=POINT, **{field: taken})
        try:
            handlers.create(REGION, id, said, pb.CreateRegionRequest(region_id=id), "me")
        except InvalidArgument as error:
            return error.details.field_violations[0].field
        return "made"

    def change(id: str) -> str:
        said = pb.Region(name=f"regions/{id}", **{field: taken})
        try:
            handlers.update(REGION, said, FieldMask(paths=[field]))
        except InvalidArgument as error:
            return error.details.field_violations[0].field
        return "made"

    for ids, use in ((("a", "b"), make), (("c", "d"), change)):
        if use is change:
            free = pb.Region(location=POINT)
            for id in ids:
                handlers.create(REGION, id, free, pb.CreateRegionRequest(region_id=id), "me")
            (holder,) = (id for id, region in handlers.all_of(REGION).items() if getattr(region, field))
            handlers.delete(REGION, f"regions/{holder}", "")
        with monkeypatch.context() as patched, ThreadPoolExecutor(2) as pool:
            patched.setattr(handlers, "_check_served", looked_together)
            assert sorted(pool.map(use, ids)) == ["made", f"region.{field}[0]"]
        assert sum(list(getattr(region, field)) == taken for region in handlers.all_of(REGION).values()) == 1


def test_no_region_takes_what_another_one_serves(handlers: DirectoryHandlers) -> None:
    """Made or changed alone, too. A finer area and a longer prefix are no conflict."""
    changes(handlers, whole(regions=[{**BEIJING, "served_areas": ["CN/北京"], "served_prefixes": ["+8610"]}]))
    said = pb.Region(location=POINT, served_areas=["CN/天津", "CN/北京"])
    with pytest.raises(InvalidArgument, match="served by regions/beijing already") as refused:
        handlers.create(REGION, "tianjin", said, pb.CreateRegionRequest(region_id="tianjin"), "me")
    assert refused.value.details.field_violations[0].field == "region.served_areas[1]"
    fine = pb.Region(location=POINT, served_areas=["CN/天津"], served_prefixes=["+861065"])
    handlers.create(REGION, "tianjin", fine, pb.CreateRegionRequest(region_id="tianjin"), "me")
    for field in ("served_areas", "served_prefixes"):
        taken = pb.Region(
            name="regions/tianjin", served_areas=["CN/天津", "CN/北京"], served_prefixes=["+86109", "+8610"]
        )
        with pytest.raises(InvalidArgument, match="served by regions/beijing already") as refused:
            handlers.update(REGION, taken, FieldMask(paths=[field]))
        assert refused.value.details.field_violations[0].field == f"region.{field}[1]"
    assert list(handlers.all_of(REGION)["tianjin"].served_prefixes) == ["+861065"]
    nothing = pb.Region(name="regions/tianjin")
    with pytest.raises(InvalidArgument, match="draining"):
        handlers.update(REGION, nothing, FieldMask(paths=["weight"]))
    assert handlers.all_of(REGION)["tianjin"].weight == 100


def test_a_region_is_not_led_from_where_no_router_is(handlers: DirectoryHandlers) -> None:
    changes(handlers, whole())
    region = pb.Region(name="regions/beijing", lead_list=["a:7120", "nowhere:1"])
    with pytest.raises(InvalidArgument, match="no router") as refused:
        handlers.update(REGION, region, FieldMask(paths=["lead_list"]))
    assert refused.value.details.field_violations[0].field == "region.lead_list[1]"
    assert list(handlers.all_of(REGION)["beijing"].lead_list) == []
