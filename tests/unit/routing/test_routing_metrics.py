"""What a router and the worker show of calls: each counted once, whoever leads, in so many series at most."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from tests.unit.routing.routing_journals import Journal, busy_day

from chassis.metrics import OTHERS
from routing.metrics_journal import JournalMetrics
from routing.metrics_shard import OVERDUE_SPAN_MS, SUSPECT_SECONDS, WALK_SECONDS, ShardMetrics
from routing.model import ConfigureQueue, EndCall, FinishWrapUp, HangUp, QueueConfig
from routing.reports import Counter, Rows
from routing.state import ShardState

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Leads:
    """A leader of a journal's state."""

    journal: Journal
    leading: bool = True
    stalled: bool = False
    shard: str = "beijing"

    @property
    def state(self) -> ShardState:
        return self.journal.state

    @property
    def epoch(self) -> int:
        return self.journal.state.epoch

    @property
    def sequence(self) -> int:
        return self.journal.blocks.newest("beijing")

    def now_ms(self) -> int:
        return self.journal.now_ms


class Router:
    """A router that is scraped."""

    def __init__(self, journal: Journal, *, leading: bool, named_max: int = 10) -> None:
        self.seconds = 0.0
        self.leader = Leads(journal, leading)
        self.source = ShardMetrics(
            lambda: {"beijing": self.leader}, queues_named_max=named_max, monotonic=lambda: self.seconds
        )
        if leading:
            self.source.begin(self.leader)

    def scrape(self) -> Any:
        """`value(metric, **labels)` of this moment; None where there is no such series."""
        self.source.look()
        return values(self.source)


def values(source: Any) -> Any:
    class Once(Collector):
        def collect(self) -> Any:
            return source.collect()

    registry = CollectorRegistry()
    registry.register(Once())
    return lambda name, **labels: registry.get_sample_value(name, {"region": "beijing", **labels})


def calls(journal: Journal, *ids: str, queue: str = "service") -> None:
    for call_id in ids:
        journal.place(call_id, queue)
        journal.wait(7_000)
        journal.connect(call_id)
        journal.wait(50_000)
        journal.do(EndCall(call_id=call_id))
        journal.do(FinishWrapUp(agent="ann", session=1, call_id=call_id))


def test_the_leader_shows_what_happens_to_calls() -> None:
    journal = Journal()
    journal.agent("ann")
    router = Router(journal, leading=True)
    assert router.scrape()("callmesh_queue_offered_total", queue="service") == 0
    calls(journal, "c1", "c2")
    journal.place("c3")
    journal.place("c4")
    journal.wait(9_000)
    journal.do(HangUp(call_id="c4", attempt=1))
    router.seconds += WALK_SECONDS
    value = router.scrape()

    def queue(name: str) -> float | None:
        found: float | None = value(f"callmesh_queue_{name}", queue="service")
        return found

    assert (queue("offered_total"), queue("answered_total"), queue("answered_in_target_total")) == (4, 2, 2)
    assert (queue("abandoned_total"), queue("short_abandoned_total"), queue("handled_total")) == (1, 0, 2)
    assert queue("answer_wait_seconds_total") == 14
    assert (queue("waiting_calls"), queue("calls_in_service"), queue("longest_wait_seconds")) == (0, 1, 0)
    assert (queue("agents_logged_in"), queue("agents_free")) == (1, 0)
    assert queue("service_level_target_seconds") == 20
    assert value("callmesh_agents", state="reserved") == 1 and value("callmesh_agents", state="paused") == 0
    assert (
        value("callmesh_calls_live", state="offered") == 1
        and value("callmesh_calls_live", state="waiting") == 0
    )
    assert (value("callmesh_agents_stuck"), value("callmesh_calls_lost")) == (0, 0)


def test_routers_together_count_a_call_once_whoever_leads() -> None:
    journal = Journal()
    journal.agent("ann")
    first, second = Router(journal, leading=True), Router(journal, leading=False)
    routers = (first, second)
    for router in routers:
        router.scrape()
    calls(journal, "c1", "c2", "c3")
    total = [router.scrape()("callmesh_queue_offered_total", queue="service") for router in routers]
    assert total == [3, 0], "a standby reads the same journal and has counted nothing"
    assert second.scrape()("callmesh_queue_waiting_calls", queue="service") is None
    # The second leads, and later the first again, which has read the journal anew.
    first.leader.leading, second.leader.leading = False, True
    second.source.begin(second.leader)
    calls(journal, "c4", "c5")
    second.scrape()
    first.leader.leading, second.leader.leading = True, False
    first.source.begin(first.leader)
    calls(journal, "c6")
    total = [router.scrape()("callmesh_queue_answered_total", queue="service") for router in routers]
    assert total == [4, 2]


def test_queues_beyond_the_largest_are_added_up_and_nothing_is_counted_back() -> None:
    journal = Journal()
    for number in range(6):
        journal.do(ConfigureQueue(queue=QueueConfig(id=f"small-{number}")))
    journal.agent("ann")
    calls(journal, "c1", "c2")
    router = Router(journal, leading=True, named_max=2)
    router.scrape()
    calls(journal, "c3")
    for number in range(1, 6):
        calls(journal, f"s{number}", queue=f"small-{number}")
    value = router.scrape()
    assert value("callmesh_queue_offered_total", queue="service") == 1
    named = [q for q in (*(f"small-{n}" for n in range(6)), "sales", "service")
             if value("callmesh_queue_offered_total", queue=q) is not None]  # fmt: skip
    assert len(named) == 2
    others = value("callmesh_queue_offered_total", queue=OTHERS)
    assert others == 5 - sum(value("callmesh_queue_offered_total", queue=q) for q in named if q != "service")
    assert value("callmesh_queue_waiting_calls", queue=OTHERS) == 0
    # One of the small ones becomes the largest: it gets its name, the rest keeps what it was.
    calls(journal, *(f"t{number}" for number in range(9)), queue="small-5")
    router.seconds += 10_000
    router.scrape()
    value = router.scrape()
    assert value("callmesh_queue_offered_total", queue="small-5") == 10
    assert value("callmesh_queue_offered_total", queue=OTHERS) >= others


def test_who_is_held_by_nothing_is_stuck_and_what_nobody_holds_is_lost() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.place("c1")
    journal.place("c2")
    router = Router(journal, leading=True)
    router.scrape()
    state = journal.state
    state.calls["c1"].agent = ""
    state.calls["c2"].ticket = 0
    value = router.scrape()
    assert (value("callmesh_agents_stuck"), value("callmesh_calls_lost")) == (0, 0), "not before a while"
    router.seconds += SUSPECT_SECONDS
    router.scrape()
    router.seconds += SUSPECT_SECONDS
    value = router.scrape()
    assert (value("callmesh_agents_stuck"), value("callmesh_calls_lost")) == (1, 2)
    router.leader.stalled = True
    router.seconds += SUSPECT_SECONDS
    assert router.scrape()("callmesh_calls_lost") == 0, "timers stand still while nothing can be committed"


def test_an_offer_long_past_its_end_makes_its_agent_stuck() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.place("c1")
    router = Router(journal, leading=True)
    router.scrape()
    journal.now_ms += 15_000 + OVERDUE_SPAN_MS
    for _ in range(2):
        router.seconds += SUSPECT_SECONDS
        value = router.scrape()
    assert (value("callmesh_agents_stuck"), value("callmesh_calls_lost")) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_day_at_work_leaves_nobody_stuck_and_nothing_lost(seed: int) -> None:
    router = Router(busy_day(seed), leading=True)
    for _ in range(3):
        router.seconds += SUSPECT_SECONDS
        value = router.scrape()
    assert (value("callmesh_agents_stuck"), value("callmesh_calls_lost")) == (0, 0)


def counted(journal: Journal, meter: JournalMetrics) -> Any:
    counter = Counter("beijing", Rows(lambda start_ms: ()), meter)
    for block in journal.blocks.of("beijing"):
        counter.count(block)
    meter.look()
    return values(meter)


def test_the_journal_tells_waits_conversations_and_promises() -> None:
    journal = Journal()
    journal.agent("ann")
    calls(journal, "c1")
    journal.place("c2")
    journal.connect("c2")
    journal.place("c3")  # told the mean of what ann took for c1
    journal.wait(40_000)
    journal.do(EndCall(call_id="c2"))
    journal.do(FinishWrapUp(agent="ann", session=1, call_id="c2"))
    journal.wait(3_000)
    journal.connect("c3")
    journal.block()
    meter = JournalMetrics()
    value = counted(journal, meter)
    service = {"queue": "service"}
    assert value("callmesh_calls_answer_wait_seconds_count", **service) == 3
    assert value("callmesh_calls_answer_wait_seconds_bucket", le="10.0", **service) == 2
    assert value("callmesh_calls_answer_wait_seconds_sum", **service) == 7 + 43
    assert (
        value("callmesh_calls_talk_seconds_count", **service),
        value("callmesh_calls_talk_seconds_sum", **service),
    ) == (2, 90)
    assert value("callmesh_calls_promised_total", **service) == 1
    told = value("callmesh_calls_promised_wait_seconds_total", **service)
    assert 45 <= told <= 55
    assert value("callmesh_calls_promised_real_wait_seconds_total", **service) == 43
    assert value("callmesh_calls_promised_error_seconds_total", **service) == pytest.approx(told - 43)
    # Read again from the beginning, as after an outage of the database: nothing is counted twice.
    again = counted(journal, meter)
    assert again("callmesh_calls_answer_wait_seconds_count", **service) == 3


def test_queues_that_come_when_all_names_are_given_are_others_until_somebody_looks() -> None:
    meter = JournalMetrics(queues_named_max=2)
    ranks: list[int] = []
    rank = meter._names.rank
    meter._names.rank = lambda sizes: ranks.append(len(sizes)) or rank(sizes)  # type: ignore[method-assign,func-returns-value]
    for n in range(50):
        meter.add("beijing", f"q{n}", {"offered": n, "handled": 1})
    assert ranks == [1, 2], "at a start there are thousands"
    value = values(meter)
    assert value("callmesh_calls_talk_seconds_count", queue="q0") == 1
    assert value("callmesh_calls_talk_seconds_count", queue="(other)") == 48
    meter.look()
    assert values(meter)("callmesh_calls_talk_seconds_count", queue="q49") == 1, "the largest has a name"


def test_a_scrape_of_a_busy_router_is_small_and_quick(tmp_path: Path) -> None:
    """The bench, on small centres: as many series as on large ones."""
    report = tmp_path / "metrics.json"
    subprocess.run(
        [sys.executable, "-m", "bench.metrics", "--agents=40", "--commands=400", f"--out={report}"],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    found = json.loads(report.read_text())
    assert found["ok"] is True
    for name in ("q60", "q600", "regions4_q60", "worker"):
        assert 1_000 < found[f"{name}_series"] <= 5_000
        assert found[f"{name}_scrape_cpu_ms"] <= 200
