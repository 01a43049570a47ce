"""The demo as a user runs it: real processes, a real log with a torn line, a region killed, a report; and
Ctrl-C.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.demo.test_demo_report import KEYS as REPORT_KEYS
from tools import dashboard_check

from chassis.localstack import find_mongod, find_rabbitmq_server, free_ports
from chassis.testing.waiting import wait_until
from cli.demo.calls import COLUMNS
from cli.demo.ledger import Entry, Fact, Ledger, conversations, double_booked, lost_calls
from cli.plan import PORT_OFFSET_MAX, PROMETHEUS_OFFSET

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        find_mongod() is None or find_rabbitmq_server() is None, reason="needs a mongod and a rabbitmq-server"
    ),
]

SOURCE = Path(__file__).resolve().parents[2] / "services"
#: The keys that a report must have.
KEYS = [*REPORT_KEYS, "ok"]
SERVERS = ("AMY", "BOB", "CYD", "DAN", "EVE", "FAY", "GUS", "HAL")
CALLS = 70


def clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def write_log(path: Path) -> None:
    """Half an hour of a Monday morning with one line torn in the middle."""
    rng = random.Random(5)
    lines = ["\t".join(COLUMNS)]
    for number in range(CALLS):
        arrival = 9 * 3600 + number * 25
        service = rng.randint(40, 160)
        left = number % 9 == 4
        tail = (
            [clock(arrival), clock(arrival + 30), "30", "HANG", "0:00:00", "0:00:00", "0", "NO_SERVER"]
            if left
            else ["0:00:00", "0:00:00", "0", "AGENT", clock(arrival), clock(arrival + service), str(service),
                  SERVERS[number % len(SERVERS)]]
        )  # fmt: skip
        customer = str(1000 + number % 20) if number % 2 else "0"
        head = ["AA0101", str(number), customer, "0", "PS", "990201", clock(arrival), clock(arrival), "0"]
        lines.append("\t".join([*head, *tail]))
    lines.insert(20, lines[20][:50])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Run:
    """`callmesh demo` in a folder of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.mark = str(folder)
        self.variables = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "RUN_DIR": str(folder / "run"),
            "PORT_BASE": str(free_ports(PORT_OFFSET_MAX + 1)[0]),
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "demo"],
            cwd=folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, seconds: float) -> str:
        output, _ = self.process.communicate(timeout=seconds)
        return output

    def left_over(self) -> list[str]:
        """Command lines of living processes that belong to this run."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in (os.getpid(), self.process.pid):
                continue
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self.mark.encode() in text and state != "Z":
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    started: list[Run] = []

    def start(**variables: str) -> Run:
        started.append(Run(tmp_path, **variables))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def edges_book(path: Path) -> Ledger:
    """The book as the demo wrote it down."""
    ledger = Ledger()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ledger.write(
            Entry(
                call=row["call"],
                fact=Fact(row["fact"]),
                at=row["real"],
                business=row["business"],
                region=row["region"],
                agent=row["agent"],
                attempt=row["attempt"],
                why=row["why"],
            )
        )
    return ledger


def check_report(tmp_path: Path) -> None:
    report = json.loads((tmp_path / "build/reports/demo.json").read_text(encoding="utf-8"))
    assert report.keys() >= set(KEYS)
    assert report["ok"] is True
    assert report["calls_offered"] == CALLS
    assert report["calls_answered"] + report["calls_abandoned"] == CALLS
    assert report["calls_answered"] > CALLS / 2
    assert (report["torn_lines"], report["numbers_constructed"]) == (1, True)
    assert report["region_killed"] == "shanghai"
    assert report["events_consumed"] > 0
    assert report["screen_pops_known"] > 0
    # The counts again, from the book that the edges kept.
    ledger = edges_book(tmp_path / "build/reports/demo-ledger.jsonl")
    assert len(ledger.by_call()) == CALLS
    assert lost_calls(ledger) == []
    assert double_booked(conversations(ledger)) == {}


def check_dashboards(port_base: int) -> None:
    """Every query of the dashboards has an answer from the Prometheus that scraped the demo."""
    if shutil.which("prometheus") is None:
        return
    prometheus = f"http://127.0.0.1:{port_base + PROMETHEUS_OFFSET}"

    missing = list(dashboard_check.queries())

    def all_answered() -> bool:
        missing[:] = [
            each
            for each in missing
            if not dashboard_check.answered(dashboard_check.ask(prometheus, each.expression, minutes=15))
        ]
        return not missing

    try:
        # What is recorded of the last scrape may still be on its way.
        wait_until(all_answered, 60, what="an answer to every query")
    finally:
        print(*(f"{each.dashboard} / {each.panel}: no data: {each.expression}" for each in missing), sep="\n")


def lasting(commands: list[str]) -> list[str]:
    """Without the helpers that a broker runs for moments, such as `df`."""
    return sorted(each for each in commands if re.match(r"\S*(python|mongod|beam\.smp)", each))


def test_a_log_is_replayed_with_a_region_killed_and_nothing_is_lost(runs: Any, tmp_path: Path) -> None:
    write_log(tmp_path / "calls.tsv")
    run = runs(CALLS="calls.tsv", DAY="1999-02-01", HOURS="0.5", SPEED="60", KILL="shanghai", KEEP="1")
    output = run.finish(240)
    try:
        assert run.process.returncode == 0, output
        assert "line 21 left out" in output
        check_report(tmp_path)
        check_dashboards(int(run.variables["PORT_BASE"]))
        # KEEP=1 left the stack up, and a second demo does not touch it.
        kept = run.left_over()
        assert kept != []
        second = runs(HOURS="0.1", PORT_BASE=run.variables["PORT_BASE"])
        assert "a stack runs in" in second.finish(60)
        assert second.process.returncode != 0
        assert lasting(run.left_over()) == lasting(kept)
    finally:
        environment = {**run.variables, "RUN_DIR": str(tmp_path / "run" / "demo")}
        subprocess.run([sys.executable, "-m", "cli.main", "down"], env=environment, check=True, timeout=90)
    assert run.left_over() == []


@pytest.mark.parametrize("moment", ["starting", "replaying"])
def test_ctrl_c_leaves_no_process_behind(runs: Any, tmp_path: Path, moment: str) -> None:
    run = runs(HOURS="1", SPEED="60")
    assert run.process.stdout is not None
    if moment == "starting":
        wait_until(run.left_over, 120, what="the first process of the stack")
    else:
        for line in run.process.stdout:
            if "offered" in line:
                break
    assert run.process.poll() is None
    assert run.left_over() != []
    run.process.send_signal(signal.SIGINT)
    run.finish(90)
    assert run.process.returncode != 0
    assert run.left_over() == []
