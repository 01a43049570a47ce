"""The end of a demo: a flat object of figures, `ok` against the demo's own limits, a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: With the log's own agents and no region killed, the ASA is at most this many times the reference's.
ASA_RATIO_MAX = 2.0

#: Callers may give up before any router has taken their call, in the seconds after a region is lost: so many
#: at most.
UNACKNOWLEDGED_RATIO_MAX = 0.05

Figure = float | int | bool | str | None | Sequence[str] | Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the figures are worth."""

    #: True when no limit was missed.
    ok: bool
    #: One sentence for each limit missed.
    misses: tuple[str, ...]


def judge(figures: Mapping[str, Figure], *, asa_limit_applies: bool) -> Verdict:
    """The demo's limits: nothing lost, nobody double-booked, no event dead, everything consumed, ASA in
    bounds.
    """
    misses = []
    for key, what in (
        ("calls_lost", "calls were lost"),
        ("calls_untaken", "calls were taken by no router"),
        ("calls_unfinished", "calls were not over when the demo's time was"),
        ("agents_double_booked", "agents were double-booked"),
        ("events_dead_lettered", "events were dead-lettered"),
        ("events_unconsumed", "events were not consumed in time"),
        ("simulator_errors", "simulated edges or desktops failed"),
    ):
        count = figures.get(key)
        if isinstance(count, int | float) and count > 0:
            misses.append(f"{count:g} {what}")
    offered, silent = figures.get("calls_offered"), figures.get("calls_unacknowledged")
    if isinstance(offered, int) and isinstance(silent, int) and silent > offered * UNACKNOWLEDGED_RATIO_MAX:
        misses.append(f"{silent} of {offered} calls were never acknowledged before their callers hung up")
    if offered and not figures.get("calls_answered"):
        misses.append("no call was answered")
    ratio = figures.get("asa_ratio_to_reference")
    if asa_limit_applies and isinstance(ratio, int | float) and ratio > ASA_RATIO_MAX:
        misses.append(f"ASA is {ratio:.2f} times the reference's, the limit is {ASA_RATIO_MAX:g}")
    return Verdict(ok=not misses, misses=tuple(misses))


def write(path: Path, figures: Mapping[str, Figure], verdict: Verdict) -> None:
    """Writes the report; keys of the same name are not given twice. Creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {**figures, "misses": list(verdict.misses), "ok": verdict.ok}
    path.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


#: Section: keys and what they are called. Ratios print as per cent.
_ROWS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "calls",
        (
            ("calls_offered", "offered"),
            ("calls_answered", "answered"),
            ("calls_abandoned", "abandoned (the caller hung up first)"),
            ("calls_refused", "refused"),
            ("asa_seconds", "mean wait of those answered (ASA), s"),
            ("asa_reference_seconds", "  in a simulation (ciw), nothing lost, s"),
            ("asa_ratio_to_reference", "  ours ÷ the simulation's"),
            ("service_level_ratio", "service level: answered within 20 s"),
            ("service_level_reference_ratio", "  in the simulation"),
            ("answered_at_home_ratio", "answered in the caller's own region"),
        ),
    ),
    (
        "region lost",
        (
            ("region_killed", "region killed"),
            ("calls_rerouted", "calls rerouted"),
            ("calls_reopened", "  of them opened again by their edge"),
            ("calls_interrupted", "conversations broken off"),
            ("recovery_real_seconds", "last affected caller safe after, real s"),
            ("first_new_call_real_seconds", "first new local caller queued after, real s"),
            ("return_real_seconds", "region answers again after its restart, real s"),
            ("region_callers_answered_by", "its callers, from the loss on, answered by"),
        ),
    ),
    (
        "work",
        (
            ("acknowledge_p50_ms", "call acknowledged after, median, ms"),
            ("screen_pops", "screen pops"),
            ("screen_pop_p50_ms", "  median, ms"),
            ("tickets_opened", "tickets opened"),
            ("offers_made", "offers made"),
            ("offers_accepted", "offers accepted"),
            ("events_published", "events published"),
            ("events_consumed", "events consumed"),
            ("events_dead_lettered", "events dead-lettered"),
        ),
    ),
    (
        "must be 0",
        (
            ("calls_lost", "calls lost"),
            ("agents_double_booked", "agents double-booked"),
        ),
    ),
)


def table(figures: Mapping[str, Figure]) -> Table:
    """The figures for people, in sections; absent ones are left out."""
    result = Table(box=None, pad_edge=False, show_header=False)
    result.add_column()
    result.add_column(justify="right")
    for section, rows in _ROWS:
        shown = [(name, figures[key], key) for key, name in rows if figures.get(key) is not None]
        if not shown:
            continue
        result.add_row("", "")
        result.add_row(f"[b]{section}[/]", "")
        for name, value, key in shown:
            result.add_row(name, _text(key, value))
    return result


def _text(key: str, value: Figure) -> str:
    if isinstance(value, Mapping):
        # A line each: one long line would leave the column of names no room.
        return "\n".join(f"{name} {count}" for name, count in value.items()) or "nobody"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_ratio"):
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def show(
    console: Console, figures: Mapping[str, Figure], verdict: Verdict, *, notes: Sequence[str], path: Path
) -> None:
    """Prints the report."""
    console.print(table(figures))
    console.print()
    for note in notes:
        console.print(f"- {note}", style="dim", highlight=False)
    console.print(f"written to {path}", style="dim", highlight=False)
    if verdict.ok:
        console.print("[b green]ok[/]: nothing lost, nobody double-booked")
    for miss in verdict.misses:
        console.print(f"[b red]not ok[/]: {escape(miss)}", highlight=False)
