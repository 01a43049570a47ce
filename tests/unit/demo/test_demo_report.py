"""Live view, report, event counts and options."""

from __future__ import annotations

import datetime
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.demo import command, report
from cli.demo.day import generate
from cli.demo.events import EventCounter, read_samples
from cli.demo.figures import service_figures
from cli.demo.ledger import Entry, Fact
from cli.demo.live import LiveView, Scoreboard, Snapshot, line, sparkline
from cli.demo.media import Media
from cli.demo.model import REGIONS
from cli.demo.world import preference

#: The keys that a report must have, whatever else it has.
KEYS = [
    "calls_offered",
    "calls_answered",
    "calls_abandoned",
    "asa_seconds",
    "service_level_ratio",
    "answered_at_home_ratio",
    "calls_rerouted",
    "tickets_opened",
    "offers_made",
    "offers_accepted",
    "events_published",
    "events_consumed",
    "events_dead_lettered",
    "calls_lost",
    "agents_double_booked",
]
GOOD: dict[str, report.Figure] = dict.fromkeys(KEYS, 0)


def test_service_figures_by_definition() -> None:
    found = service_figures([0.0, 10.0, 20.0, 30.0], [1.0, 5.0, 6.0])
    assert (found.answered, found.abandoned, found.asa_seconds) == (4, 3, 15.0)
    # 3 of 4 answered in time, one abandoned late enough to count.
    assert found.service_level_ratio == pytest.approx(3 / 5)
    assert found.abandoned_ratio == pytest.approx(3 / 7)
    nothing = service_figures([], [])
    assert (nothing.asa_seconds, nothing.service_level_ratio, nothing.abandoned_ratio) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "key",
    ["calls_lost", "agents_double_booked", "events_dead_lettered", "events_unconsumed", "calls_unfinished"],
)
def test_anything_lost_is_not_ok(key: str) -> None:
    assert report.judge(GOOD, asa_limit_applies=False).ok
    verdict = report.judge(GOOD | {key: 1}, asa_limit_applies=False)
    assert not verdict.ok
    assert verdict.misses[0].startswith("1 ")


def test_the_asa_limit_counts_only_where_it_applies() -> None:
    slow = GOOD | {"asa_ratio_to_reference": 2.01}
    assert report.judge(slow, asa_limit_applies=False).ok
    assert not report.judge(slow, asa_limit_applies=True).ok
    assert report.judge(GOOD | {"asa_ratio_to_reference": 1.99}, asa_limit_applies=True).ok
    assert report.judge(GOOD | {"asa_ratio_to_reference": None}, asa_limit_applies=True).ok


def test_a_day_without_answers_is_not_ok() -> None:
    silent = GOOD | {"calls_offered": 100, "calls_answered": 0, "calls_unacknowledged": 6}
    assert len(report.judge(silent, asa_limit_applies=False).misses) == 2
    assert report.judge(
        silent | {"calls_answered": 90, "calls_unacknowledged": 5}, asa_limit_applies=False
    ).ok


def test_the_file_is_one_flat_object_with_ok(tmp_path: Path) -> None:
    path = tmp_path / "build/reports/demo.json"
    report.write(path, GOOD, report.judge(GOOD | {"calls_lost": 2}, asa_limit_applies=False))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() >= {*KEYS, "ok"}
    assert written["ok"] is False


def test_the_report_is_printed_with_its_notes(tmp_path: Path) -> None:
    out = io.StringIO()
    figures = GOOD | {"asa_seconds": 12.345, "service_level_ratio": 0.812, "region_killed": "chengdu"}
    report.show(
        Console(file=out, width=100),
        figures,
        report.judge(figures | {"calls_lost": 1}, asa_limit_applies=False),
        notes=["numbers are constructed"],
        path=tmp_path / "demo.json",
    )
    text = out.getvalue()
    for expected in ("12.35", "81.2%", "chengdu", "numbers are constructed", "not ok: 1 calls were lost"):
        assert expected in text


def test_the_report_fits_a_narrow_terminal_in_one_line_a_figure() -> None:
    out = io.StringIO()
    names = [name for _, rows in report._ROWS for _, name in rows]
    figures = {key: 12345.0 for _, rows in report._ROWS for key, _ in rows}
    answered = {"guangzhou": 16, "shanghai": 16, "chengdu": 13, "beijing": 12}
    Console(file=out, width=80).print(report.table(figures | {"region_callers_answered_by": answered}))
    text = out.getvalue()
    assert [name for name in names if name not in text] == []
    assert [line.split()[-2:] for line in text.splitlines() if "beijing" in line] == [["beijing", "12"]]


def board() -> Scoreboard:
    def fact(call: str, what: Fact, business: float, region: str = "") -> Entry:
        return Entry(call=call, fact=what, at=business, business=business, region=region)

    made = Scoreboard(home_of={"a": "beijing", "b": "chengdu", "c": "chengdu"}, window_seconds=3200.0)
    made.feed(
        [
            fact("a", Fact.ASKED, 0),
            fact("a", Fact.QUEUED, 1, "beijing"),
            fact("a", Fact.BRIDGED, 10, "beijing"),
            fact("b", Fact.ASKED, 1700),
            fact("b", Fact.QUEUED, 1701, "chengdu"),
            fact("c", Fact.ASKED, 1702),
            fact("c", Fact.QUEUED, 1702, "chengdu"),
            fact("c", Fact.MOVED, 1710, "shanghai"),
            fact("c", Fact.HUNG_UP, 1800),
        ]
    )
    return made


def snapshot(headline: str = "") -> Snapshot:
    return Snapshot(
        day_seconds=8 * 3600.0,
        progress=0.5,
        regions={plan.id: "lost" if plan.id == "chengdu" else "up" for plan in REGIONS},
        agents={"beijing": Counter(available=2, talking=1, off=4)},
        headline=headline,
    )


def test_the_scoreboard_follows_the_book() -> None:
    made = board()
    assert (made.offered, made.answered, made.abandoned) == (3, 1, 1)
    assert made.waiting() == Counter(chengdu=1)
    assert made.talking() == Counter(beijing=1)
    assert made.asa == 10.0
    assert made.service_level == pytest.approx(0.5)
    assert made.at_home_by["beijing"] == 1
    assert (made.arrivals[0], made.arrivals[17]) == (1, 2)


def test_the_scoreboard_takes_each_line_once() -> None:
    entries = [Entry(call="a", fact=Fact.ASKED, at=0, business=0)]
    made = Scoreboard(home_of={}, window_seconds=100.0)
    made.feed(entries)
    made.feed(entries)
    assert made.offered == 1


def test_a_line_without_a_terminal_and_a_screen_with_one() -> None:
    assert "chengdu:lost 1w/0t" in line(board(), snapshot())
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        with LiveView(console, REGIONS, "the day") as view:
            view.show(board(), snapshot("chengdu is lost"), 0.0)
            view.show(board(), snapshot(), 1.0)
        text = out.getvalue()
        assert "the day" in text and "08:00" in text and "chengdu" in text
        assert text.count("offered") > 1 if terminal else text.count("offered") == 1


def test_sparkline() -> None:
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 5, 10]) == "▁▅█"


def test_media_breaks_what_is_bridged_in_the_region_alone() -> None:
    media = Media({"amy": "near", "bob": "far"})
    lost: list[str] = []
    media.on_loss("near", lambda: lost.append("near"))
    one, two = media.bridge("c1", "amy"), media.bridge("c2", "bob")
    ended = media.bridge("c3", "amy")
    media.unbridge("c3")
    media.lose("near")
    assert (one.is_set(), two.is_set(), ended.is_set(), lost) == (True, False, False, ["near"])
    assert media.bridge("c4", "amy").is_set()
    media.restore("near")
    assert not media.bridge("c5", "amy").is_set()


def test_edges_prefer_their_own_router_then_the_nearest() -> None:
    assert preference("guangzhou")[0] == "guangzhou"
    assert preference("beijing") == ["beijing", "shanghai", "chengdu", "guangzhou"]


def test_scrapes_are_summed_over_processes() -> None:
    text = (
        "# TYPE callmesh_bus_consumed_total counter\n"
        'callmesh_bus_consumed_total{service="crm",handler="on_call"} 3.0\n'
        'callmesh_bus_consumed_total{service="tickets",handler="on_call"} 2.0\n'
    )
    samples = read_samples([text, text, "", "no exposition {{{"])
    assert samples.total("callmesh_bus_consumed_total") == 10
    assert samples.total("callmesh_bus_consumed_total", service="crm") == 6
    assert samples.by("callmesh_bus_consumed_total", "service") == {"crm": 6, "tickets": 4}
    assert samples.pairs("callmesh_bus_consumed_total", "service", "handler") == [
        ("crm", "on_call"),
        ("tickets", "on_call"),
    ]


async def test_of_who_does_not_answer_nothing_is_known() -> None:
    nobody = "127.0.0.1:1"
    figures = await EventCounter({"crm-worker": nobody}, f"amqp://{nobody}//").read()
    assert (figures.waiting, figures.backlog, figures.unheard) == (0, 0, 2) and not figures.settled


def options(**changes: Any) -> command.Options:
    values: dict[str, Any] = {
        "calls": "", "day": "", "speed": 120.0, "kill": "chengdu", "agents": "", "hours": "4", "seed": 1,
    }  # fmt: skip
    return command.check(**(values | changes))


def test_options_as_given() -> None:
    assert options() == command.Options(
        calls=None, day=None, speed=120.0, kill="chengdu", agents=None, hours=4.0, seed=1
    )
    other = options(calls="log.tsv", day="990201", kill="none", agents="12", hours="all")
    assert (other.calls, other.day, other.kill, other.agents, other.hours) == (
        Path("log.tsv"), "990201", None, 12, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"speed": 0.0}, "SPEED"),
        ({"speed": float("nan")}, "SPEED"),
        ({"speed": 1e9}, "SPEED"),
        ({"kill": "atlantis"}, "KILL"),
        ({"agents": "many"}, "AGENTS"),
        ({"agents": "0"}, "AGENTS"),
        ({"agents": "999999"}, "AGENTS"),
        ({"hours": "-1"}, "HOURS"),
        ({"hours": "nan"}, "HOURS"),
        ({"day": "990201"}, "CALLS"),
    ],
)
def test_a_bad_option_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(command.BadDemoOption, match=named):
        options(**changes)


def test_business_time_begins_a_little_before_the_window() -> None:
    made = generate(seed=1, date=datetime.date(2026, 11, 23))
    now = datetime.datetime(2026, 11, 23, 3, 0, tzinfo=datetime.UTC)
    origin = command.business_origin_ms(made, 120.0, now) / 1000
    midnight = datetime.datetime(2026, 11, 22, 16, 0, tzinfo=datetime.UTC).timestamp()
    assert origin == midnight + made.window_start_seconds - command.START_SECONDS * 120
