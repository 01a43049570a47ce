"""The demo while it runs: what the edges' book says so far, shown as a live screen or, without a terminal, as
lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli.demo.figures import SHORT_ABANDON_SECONDS, TARGET_SECONDS
from cli.demo.ledger import Entry, Fact
from cli.demo.model import RegionPlan, clock_text
from cli.demo.regionmap import picture

#: Width of the sparkline, slots.
SLOTS = 32
BARS = "▁▂▃▄▅▆▇█"
#: Without a terminal: a line every so many real seconds.
LINE_SECONDS = 10.0


@dataclass(slots=True)
class _CallNow:
    """Where one call stands, by its edge's book."""

    asked: float = 0.0
    waiting_in: str = ""
    talking_in: str = ""
    answered: bool = False
    over: bool = False


@dataclass(slots=True)
class Scoreboard:
    """Counts of the day so far; fed with the ledger's new lines."""

    #: Home region by call id.
    home_of: Mapping[str, str]
    #: Length of the window, business seconds.
    window_seconds: float
    offered: int = 0
    answered: int = 0
    abandoned: int = 0
    reopened: int = 0
    answered_in_time: int = 0
    counted: int = 0
    wait_sum: float = 0.0
    answered_by: Counter[str] = field(default_factory=Counter)
    at_home_by: Counter[str] = field(default_factory=Counter)
    #: Calls answered away from home, by (home, region that answered).
    flows: Counter[tuple[str, str]] = field(default_factory=Counter)
    arrivals: list[int] = field(default_factory=lambda: [0] * SLOTS)
    _calls: dict[str, _CallNow] = field(default_factory=dict)
    _read: int = 0

    def feed(self, entries: Sequence[Entry]) -> None:
        """Takes the lines not seen yet of the whole ledger."""
        for entry in entries[self._read :]:
            self._take(entry)
        self._read = len(entries)

    def _take(self, entry: Entry) -> None:
        call = self._calls.setdefault(entry.call, _CallNow())
        if entry.fact is Fact.ASKED:
            call.asked = entry.business
            self.offered += 1
            self.arrivals[min(max(int(entry.business / self.window_seconds * SLOTS), 0), SLOTS - 1)] += 1
        elif entry.fact in (Fact.QUEUED, Fact.MOVED):
            call.waiting_in, call.talking_in = entry.region, ""
        elif entry.fact is Fact.REOPENED:
            self.reopened += 1
        elif entry.fact is Fact.BRIDGED:
            self._bridged(entry, call)
        elif entry.fact is Fact.BROKEN:
            call.talking_in = ""
        else:
            self._over(entry, call)

    def _bridged(self, entry: Entry, call: _CallNow) -> None:
        call.waiting_in, call.talking_in = "", entry.region
        if call.answered:
            return
        call.answered = True
        wait = entry.business - call.asked
        self.answered += 1
        self.counted += 1
        self.wait_sum += wait
        self.answered_in_time += wait <= TARGET_SECONDS
        self.answered_by[entry.region] += 1
        home = self.home_of.get(entry.call, "")
        self.at_home_by[entry.region] += home == entry.region
        if home != entry.region:
            self.flows[home, entry.region] += 1

    def _over(self, entry: Entry, call: _CallNow) -> None:
        call.waiting_in = call.talking_in = ""
        call.over = True
        if entry.fact is Fact.HUNG_UP and not call.answered:
            self.abandoned += 1
            self.counted += entry.business - call.asked > SHORT_ABANDON_SECONDS

    def waiting(self) -> Counter[str]:
        """Callers waiting, by region; "" for those whose call is being opened."""
        return Counter(c.waiting_in for c in self._calls.values() if not c.over and not c.talking_in)

    def talking(self) -> Counter[str]:
        """Conversations by the agent's region."""
        return Counter(c.talking_in for c in self._calls.values() if c.talking_in)

    @property
    def service_level(self) -> float:
        return self.answered_in_time / self.counted if self.counted else 1.0

    @property
    def asa(self) -> float:
        return self.wait_sum / self.answered if self.answered else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What is known besides the book, at one moment."""

    #: Time of day to be shown.
    day_seconds: float
    #: Share of the window that has passed.
    progress: float
    #: Region id to "up", "lost" or "coming back".
    regions: Mapping[str, str]
    #: Region id to agents by state (available, ringing, talking, wrap-up, off, lost …).
    agents: Mapping[str, Counter[str]]
    #: One line of what has just happened.
    headline: str


def sparkline(values: Sequence[int]) -> str:
    """One character a value, the highest full."""
    top = max(values, default=0)
    if top == 0:
        return BARS[0] * len(values)
    return "".join(BARS[min(int(value / top * (len(BARS) - 1) + 0.5), len(BARS) - 1)] for value in values)


def line(board: Scoreboard, now: Snapshot) -> str:
    """The day so far in one plain line."""
    waiting, talking = board.waiting(), board.talking()
    regions = " ".join(
        f"{region}:{'' if state == 'up' else state + ' '}{waiting[region]}w/{talking[region]}t"
        for region, state in now.regions.items()
    )
    return (
        f"{clock_text(now.day_seconds)}  offered {board.offered}  answered {board.answered}  "
        f"abandoned {board.abandoned}  SL {board.service_level:.0%}  ASA {board.asa:.0f} s  {regions}"
        + (f"  {now.headline}" if now.headline else "")
    )


def screen(plans: Sequence[RegionPlan], board: Scoreboard, now: Snapshot, title: str) -> RenderableType:
    """The whole picture for a terminal."""
    waiting, talking = board.waiting(), board.talking()
    head = Table.grid(padding=(0, 3))
    head.add_row(
        Text(clock_text(now.day_seconds), style="bold cyan"),
        f"offered [b]{board.offered}[/]",
        f"answered [b]{board.answered}[/]",
        f"waiting [b]{sum(waiting.values())}[/]",
        f"talking [b]{sum(talking.values())}[/]",
        f"abandoned [b]{board.abandoned}[/]",
        f"SL [b]{board.service_level:.0%}[/]",
        f"ASA [b]{board.asa:.0f} s[/]",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("region", "state", "agents", "free", "talking", "queue", "", "answered", "at home"):
        table.add_column(heading, justify="left" if heading in ("region", "state", "") else "right")
    for plan in plans:
        _region_row(table, plan, board, now, waiting[plan.id], talking[plan.id])
    country = picture(plans, now.regions, waiting, talking, board.flows)
    spark = Text.assemble("arrivals ", (sparkline(board.arrivals), "cyan"), f" {now.progress:.0%}")
    return Panel(
        Group(head, "", country, "", table, "", spark, Text(now.headline, style="yellow")), title=title
    )


def _region_row(
    table: Table, plan: RegionPlan, board: Scoreboard, now: Snapshot, waiting: int, talking: int
) -> None:
    state = now.regions.get(plan.id, "up")
    agents = now.agents.get(plan.id, Counter())
    on_duty = sum(agents.values()) - agents["off"]
    answered = board.answered_by[plan.id]
    home = f"{board.at_home_by[plan.id] / answered:.0%}" if answered else "-"
    table.add_row(
        f"{plan.display_name} {plan.id}" + (" (HQ)" if plan.head_office else ""),
        Text(state, style={"up": "green", "lost": "bold red"}.get(state, "yellow")),
        str(on_duty),
        str(agents["available"]),
        str(talking),
        str(waiting),
        Text("█" * min(waiting, 20), style="red"),
        str(answered),
        home,
    )


class LiveView:
    """Shows the demo on the console; a terminal gets the live screen, anything else a line now and then."""

    def __init__(self, console: Console, plans: Sequence[RegionPlan], title: str) -> None:
        self._console = console
        self._plans = plans
        self._title = title
        self._live: Live | None = None
        self._shown = False
        self._last_line = float("-inf")

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        else:
            self._console.print(self._title, highlight=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def show(self, board: Scoreboard, now: Snapshot, real_seconds: float) -> None:
        """The state at that real second (monotonic)."""
        self._shown = True
        if self._live is not None:
            self._live.update(screen(self._plans, board, now, self._title), refresh=True)
        elif real_seconds - self._last_line >= LINE_SECONDS:
            self._last_line = real_seconds
            self._console.print(line(board, now), highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line of news: printed; on a live screen it stands alone until the next `show`, which has it as
        its headline.
        """
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)
        elif not self._shown:
            self._live.update(Panel(Text(text, style="yellow"), title=self._title), refresh=True)
