"""The demo's map: each region where it lies, how it stands, and where the callers of a lost one are answered.

A plain character map by latitude and longitude (equirectangular: the regions of one country are near enough
for that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from cli.demo.model import RegionPlan

#: Size in characters; a character is about twice as high as wide.
WIDTH, HEIGHT = 46, 11
STYLES = {"up": "green", "lost": "bold red"}
MARKS = {"up": "●", "lost": "✕"}


def places(plans: Sequence[RegionPlan]) -> dict[str, tuple[int, int]]:
    """(row, column) of each region, apart from one another; labels need a free line each, so no two
    share one.
    """
    if not plans:
        return {}
    north = max(plan.latitude for plan in plans)
    west = min(plan.longitude for plan in plans)
    high = max(north - min(plan.latitude for plan in plans), 1e-9)
    wide = max(max(plan.longitude for plan in plans) - west, 1e-9)
    found: dict[str, tuple[int, int]] = {}
    taken: set[int] = set()
    for plan in sorted(plans, key=lambda each: -each.latitude):
        row = round((north - plan.latitude) / high * (HEIGHT - 1))
        free = [r for r in range(HEIGHT) if r not in taken]
        row = min(free, key=lambda r: (abs(r - row), r)) if free else row
        taken.add(row)
        found[plan.id] = (row, round((plan.longitude - west) / wide * (WIDTH // 2)))
    return found


def picture(
    plans: Sequence[RegionPlan],
    states: Mapping[str, str],
    waiting: Mapping[str, int],
    talking: Mapping[str, int],
    flows: Mapping[tuple[str, str], int],
) -> Text:
    """The map. `flows` counts calls answered away from home, by (home, region that answered)."""
    rows: dict[int, Text] = {}
    for plan in plans:
        row, column = places(plans)[plan.id]
        state = states.get(plan.id, "up")
        style = STYLES.get(state, "yellow")
        label = (
            f"{MARKS.get(state, '○')} {plan.id} {talking.get(plan.id, 0)} talk {waiting.get(plan.id, 0)} wait"
        )
        rows[row] = Text(" " * column).append(label, style=style).append(_went(plan.id, state, flows))
    return Text("\n").join(rows.get(row, Text("")) for row in range(HEIGHT))


def _went(region: str, state: str, flows: Mapping[tuple[str, str], int]) -> Text:
    """Where the callers of a region that is not up are answered, most first."""
    if state == "up":
        return Text("")
    away = sorted(((n, to) for (home, to), n in flows.items() if home == region and n), reverse=True)
    return Text("  → " + ", ".join(f"{to} {n}" for n, to in away) if away else "", style="yellow")
