"""The demo's map of regions, and where a lost one's callers went."""

from __future__ import annotations

from collections import Counter

from cli.demo.ledger import Entry, Fact, Ledger, recovery
from cli.demo.model import REGIONS
from cli.demo.regionmap import HEIGHT, WIDTH, picture, places


def test_regions_lie_as_on_a_map_and_never_on_one_another() -> None:
    found = places(REGIONS)
    assert found["beijing"][0] < found["shanghai"][0] < found["guangzhou"][0], "north is up"
    assert found["chengdu"][1] < found["guangzhou"][1] < found["shanghai"][1], "west is left"
    assert len({row for row, _ in found.values()}) == len(REGIONS)
    assert all(0 <= row < HEIGHT and 0 <= column <= WIDTH for row, column in found.values())
    assert places(()) == {}


def test_a_lost_region_shows_where_its_callers_are_answered() -> None:
    flows = Counter({("chengdu", "beijing"): 3, ("chengdu", "shanghai"): 5, ("beijing", "shanghai"): 9})
    text = picture(REGIONS, {"chengdu": "lost"}, {"beijing": 2}, {"shanghai": 4}, flows).plain
    assert "✕ chengdu 0 talk 0 wait  → shanghai 5, beijing 3" in text
    assert "● beijing 0 talk 2 wait" in text and "shanghai 9" not in text


def test_the_report_says_who_answered_the_lost_regions_callers() -> None:
    ledger = Ledger()
    for call, home_at, region in (("a", 1.0, "x"), ("b", 2.0, "x"), ("c", 3.0, "y"), ("old", 0.1, "lost")):
        ledger.write(Entry(call=call, fact=Fact.ASKED, at=home_at, business=home_at))
        ledger.write(
            Entry(call=call, fact=Fact.BRIDGED, at=home_at + 0.1, business=home_at, region=region, agent="a")
        )
    homes = dict.fromkeys(("a", "b", "c", "old"), "lost")
    assert recovery(ledger, "lost", 0.5, homes).answered_by == {"x": 2, "y": 1}
