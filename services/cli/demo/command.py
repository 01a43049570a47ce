"""`callmesh demo`: the whole platform on this machine, a day of calls in minutes, a region lost on the way, a
report.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from chassis import garbage
from chassis.clock import SPEED_MAX, SystemClock
from chassis.localstack import PortInUse
from cli import plan
from cli.demo import day as generator
from cli.demo import reference, replay, report
from cli.demo.calls import CallLogError, TornLines
from cli.demo.edge import PRIORITY_POINTS
from cli.demo.figures import ServiceFigures
from cli.demo.live import LiveView
from cli.demo.model import REGIONS, Day
from cli.demo.rpc import facts_of
from cli.demo.world import Outcome, Setup, World
from cli.options import RUN_DIR_DEFAULT, PortBase, RunDir, stack_config
from cli.plan import PORT_BASE_DEFAULT, BadStackConfig
from cli.stack import Stack, StackBusy, StackRuns
from cli.up import StartProgress
from cli.view import print_error

#: The demo's lines have markup of their own.
OUT = Console()

SPEED_DEFAULT = 120.0
SPEED_MIN = 1.0
HOURS_DEFAULT = "4"
HOURS_MAX = 24.0
AGENTS_MAX = 2000
REPORT = Path("build/reports/demo.json")
#: The demo keeps its stack apart from one that `callmesh up` started: it begins with empty databases.
FOLDER = "demo"
#: Business time runs ahead of the day's window while the stack starts, by about so many real seconds.
START_SECONDS = 30.0

#: What each priority is worth in waiting: its points (`PRIORITY_POINTS`) times the queues' credit of 30 s.
CREDIT_SECONDS = {priority: points * 30.0 for priority, points in PRIORITY_POINTS.items()}

EXIT_NOT_OK = 1
EXIT_USAGE = 2


class BadDemoOption(ValueError):
    """An option of the demo is out of range; the text is one line for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command's options, checked."""

    #: A call log, or None for a generated day.
    calls: Path | None
    #: Its day.
    day: str | None
    #: Business seconds in a real one.
    speed: float
    #: Region to lose; None for none.
    kill: str | None
    #: Agents on duty all the time; None for as many as the day had.
    agents: int | None
    #: Busiest hours of the day; None for the whole day.
    hours: float | None
    #: Decides everything that is drawn.
    seed: int


def check(calls: str, day: str, speed: float, kill: str, agents: str, hours: str, seed: int) -> Options:
    """The options, or BadDemoOption; empty text means not given."""
    if not SPEED_MIN <= speed <= SPEED_MAX:
        raise BadDemoOption(f"SPEED must be between {SPEED_MIN:g} and {SPEED_MAX:g}, got {speed:g}")
    known = [region.id for region in REGIONS]
    if kill not in (*known, "none"):
        raise BadDemoOption(f"KILL must be none or one of {', '.join(known)}, got {kill[:32]!r}")
    if day and not calls:
        raise BadDemoOption("DAY chooses a day of a call log: give CALLS=<file> too")
    return Options(
        calls=Path(calls) if calls else None,
        day=day or None,
        speed=speed,
        kill=None if kill == "none" else kill,
        agents=int(_number("AGENTS", agents, 1, AGENTS_MAX)) if agents else None,
        hours=None if hours == "all" else _number("HOURS", hours, 0.1, HOURS_MAX),
        seed=seed,
    )


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadDemoOption(f"{name} must be a number, got {text[:32]!r}") from None
    if not low <= value <= high:
        raise BadDemoOption(f"{name} must be between {low:g} and {high:g}, got {text[:32]}")
    return value


def load_day(options: Options) -> tuple[Day, TornLines]:
    """The day to be replayed, and the log's lines that were left out. Raises CallLogError."""
    if options.calls is None:
        today = datetime.datetime.now(datetime.UTC).date()
        made = generator.generate(seed=options.seed, date=today, hours=options.hours, agents=options.agents)
        return made, TornLines()
    loaded = replay.load(
        options.calls, wanted=options.day, hours=options.hours, seed=options.seed, agents=options.agents
    )
    return loaded.day, loaded.torn


def business_origin_ms(day: Day, speed: float, now: datetime.datetime) -> int:
    """Business time at the start of the stack: today, a little before the window's time of day (Shanghai)."""
    midnight = now.astimezone(datetime.timezone(datetime.timedelta(hours=8))).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    start = midnight + datetime.timedelta(seconds=day.window_start_seconds - START_SECONDS * speed)
    return int(start.timestamp() * 1000)


def demo(
    run_dir: RunDir = RUN_DIR_DEFAULT,
    port_base: PortBase = PORT_BASE_DEFAULT,
    calls: Annotated[
        str,
        typer.Option(
            envvar="CALLS",
            help="Call log to replay (tab separated, .gz or plain); a day is generated without.",
        ),
    ] = "",
    day: Annotated[
        str,
        typer.Option(envvar="DAY", help="Day of the log, 990201 or 1999-02-01; the first weekday without."),
    ] = "",
    speed: Annotated[
        float, typer.Option(envvar="SPEED", help="Business seconds in a real second.")
    ] = SPEED_DEFAULT,
    kill: Annotated[
        str,
        typer.Option(
            envvar="KILL", help="Region lost halfway: beijing, shanghai, guangzhou, chengdu or none."
        ),
    ] = "chengdu",
    agents: Annotated[
        str, typer.Option(envvar="AGENTS", help="Agents on duty all the time; as the day had without.")
    ] = "",
    hours: Annotated[
        str, typer.Option(envvar="HOURS", help="The day's busiest hours to replay, or all.")
    ] = HOURS_DEFAULT,
    seed: Annotated[int, typer.Option(envvar="SEED", help="Decides everything that is drawn.")] = 1,
    keep: Annotated[bool, typer.Option(envvar="KEEP", help="Leave the stack up at the end.")] = False,
) -> None:
    """Show the whole platform: start it, replay a day of calls, lose a region halfway, report.

    Exits 1 when a call was lost, an agent double-booked, or another limit was missed.
    """
    try:
        options = check(calls, day, speed, kill, agents, hours, seed)
        chosen, torn = load_day(options)
    except (BadDemoOption, CallLogError) as error:
        print_error(error)
        raise typer.Exit(EXIT_USAGE) from None
    _announce(chosen, torn, options)
    ok = run(options, chosen, torn, run_dir=run_dir, port_base=port_base, keep=keep)
    if not ok:
        raise typer.Exit(EXIT_NOT_OK)


def _announce(day: Day, torn: TornLines, options: Options) -> None:
    OUT.print(
        f"[b]{day.title}[/]: {len(day.calls)} calls, {len(day.agent_regions)} agents, speed {options.speed:g}"
    )
    for line in torn.kept[:10]:
        OUT.print(
            f"line {line.number} left out: {line.reason}", style="yellow", markup=False, highlight=False
        )
    if torn.total:
        OUT.print(f"{torn.total} lines of the log were left out", style="yellow", highlight=False)


def run(options: Options, day: Day, torn: TornLines, *, run_dir: Path, port_base: int, keep: bool) -> bool:
    """The demo on a stack of its own, stopped whatever happens; true when no limit was missed."""
    began = time.monotonic()
    now = datetime.datetime.now(datetime.UTC)
    monotonic_ms, business_ms = int(time.monotonic() * 1000), business_origin_ms(day, options.speed, now)
    env = {
        "CLOCK_SPEED": f"{options.speed:g}",
        "CLOCK_ORIGIN_MONOTONIC_MS": str(monotonic_ms),
        "CLOCK_ORIGIN_BUSINESS_MS": str(business_ms),
        "LOG_LEVEL": "warning",
    }
    config = stack_config(run_dir / FOLDER, port_base, env=env)
    progress = StartProgress()
    stack = Stack(config, die_with_parent=not keep, on_progress=progress.note)
    leave_up = False
    try:
        progress.run(stack, fresh=True)
        started = time.monotonic() - began
        clock = SystemClock(options.speed, origin_business_ms=business_ms, origin_monotonic_ms=monotonic_ms)
        setup = Setup(
            day=day,
            seed=options.seed,
            kill=options.kill,
            speed=options.speed,
            processes=[process.name for process in plan.scrape_targets(config)],
        )
        outcome = _replay(setup, stack, clock)
        outcome.figures |= {
            "stack_start_real_seconds": started,
            "demo_real_seconds": time.monotonic() - began,
        }
        ok = _report(options, day, torn, outcome)
        leave_up = keep
        if keep:
            OUT.print(f"the stack is left up: RUN_DIR={run_dir / FOLDER} make status, or make down")
        return ok
    except (StackRuns, StackBusy, BadStackConfig, PortInUse):
        # Nothing of ours was started, and what runs there is somebody else's.
        leave_up = True
        raise
    except grpc.RpcError as error:
        facts = facts_of(error)
        why = escape(f"{facts.reason}: {facts.text}")
        OUT.print(f"[b red]the platform refused the demo's set-up[/]: {why}")
        return False
    finally:
        if not leave_up:
            stack.stop(discard=True)


def _replay(setup: Setup, stack: Stack, clock: SystemClock) -> Outcome:
    # All edges and desktops are in this process: a look at everything would stop them all for as long.
    garbage.settle()
    with (
        LiveView(OUT, REGIONS, setup.day.title) as view,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(World(setup, stack, clock, view).run())


def _reference(day: Day, remarks: list[str]) -> ServiceFigures | None:
    """ciw's word on the day; None, with a remark why, where there is none."""
    try:
        return reference.run(day, credit_seconds_of=CREDIT_SECONDS)
    except reference.ReferenceMissing as error:
        remarks.append(f"no reference simulation: {error}")
        return None


def _report(options: Options, day: Day, torn: TornLines, outcome: Outcome) -> bool:
    figures = dict(outcome.figures)
    told = _reference(day, outcome.remarks)
    if told is not None:
        asa = figures["asa_seconds"]
        ratio = asa / told.asa_seconds if told.asa_seconds and isinstance(asa, int | float) else None
        figures |= {
            "asa_reference_seconds": told.asa_seconds,
            "asa_ratio_to_reference": ratio,
            "service_level_reference_ratio": told.service_level_ratio,
            "abandoned_reference": told.abandoned,
        }
    figures |= {
        "source": day.source,
        "day": day.date.isoformat(),
        "window_start_seconds": day.window_start_seconds,
        "window_seconds": day.window_seconds,
        "speed": options.speed,
        "seed": options.seed,
        "numbers_constructed": True,
        "torn_lines": torn.total,
        "torn_line_reasons": [f"line {line.number}: {line.reason}" for line in torn.kept],
        "notes": list(day.notes),
    }
    applies = day.source == "log" and options.kill is None and options.agents is None
    verdict = report.judge(figures, asa_limit_applies=applies)
    report.write(REPORT, figures, verdict)
    _keep_ledger(outcome)
    costs = f"every 10 ms of the platform's work cost a caller {options.speed / 100:g} s of the day."
    fast = f"At speed {options.speed:g}, {costs}"
    report.show(OUT, figures, verdict, notes=[*outcome.remarks, fast, *day.notes], path=REPORT)
    return verdict.ok


def _keep_ledger(outcome: Outcome) -> None:
    """The edges' book beside the report, a line a fact: what the counts were made from."""
    with REPORT.with_name("demo-ledger.jsonl").open("w", encoding="utf-8") as file:
        for e in outcome.ledger.entries:
            row: dict[str, Any] = {
                "call": e.call,
                "fact": e.fact.value,
                "real": round(e.at, 4),
                "business": round(e.business, 3),
            }
            row |= {"region": e.region, "agent": e.agent, "attempt": e.attempt, "why": e.why}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
