"""A process map as a picture: Graphviz source, or SVG laid out in layers (Sugiyama's method, by grandalf)."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from grandalf.graphs import Edge as LayoutEdge  # type: ignore[import-untyped]
from grandalf.graphs import Graph, Vertex
from grandalf.layouts import SugiyamaLayout  # type: ignore[import-untyped]

from tickets.reports import Edge, ProcessMap

#: Size of a box, and of the distances between, px.
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 168, 46, 60, 90
MARGIN = 40
#: Most activities that are drawn.
ACTIVITIES_MAX = 200
#: What beginning and end are called in a picture.
BEGIN, END = "●", "◎"


def _duration(ms: int) -> str:
    hours = ms / 3_600_000
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    return f"{hours:.1f} h" if hours >= 1 else f"{ms / 60_000:.0f} min"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dot(found: ProcessMap) -> str:
    """Graphviz source of a map."""
    lines = ["digraph process {", "  node [shape=box, style=rounded];"]
    lines += [f"  {_quoted(BEGIN)} [shape=circle];", f"  {_quoted(END)} [shape=doublecircle];"]
    for activity in found.activities:
        figures = f"{activity.count} · {_duration(activity.mean_ms)}"
        name = _quoted(activity.name)
        lines.append(f'  {name} [label="{name[1:-1]}\\n{figures}"];')
    most = max((edge.count for edge in found.edges), default=1)
    for edge in found.edges:
        ends = f"{_quoted(edge.source or BEGIN)} -> {_quoted(edge.target or END)}"
        width = 1 + 5 * edge.count / most
        lines.append(f'  {ends} [label="{edge.count}", penwidth={width:.1f}];')
    return "\n".join([*lines, "}"]) + "\n"


@dataclass(slots=True)
class _Box:
    """What the layout asks of a vertex: its size, and where it was put."""

    w: float
    h: float
    xy: tuple[float, float] = (0.0, 0.0)


def _places(names: list[str], edges: tuple[Edge, ...]) -> dict[str, tuple[float, float]]:
    """The middle of each box, px, from the top left."""
    vertices = {name: Vertex(name) for name in names}
    for vertex in vertices.values():
        vertex.view = _Box(w=BOX_WIDTH, h=BOX_HEIGHT)
    pairs = {(edge.source or BEGIN, edge.target or END) for edge in edges}
    links = [
        LayoutEdge(vertices[a], vertices[b]) for a, b in sorted(pairs) if a != b and {a, b} <= vertices.keys()
    ]
    places: dict[str, tuple[float, float]] = {}
    left = 0.0
    for part in Graph(list(vertices.values()), links).C:
        layout: Any = SugiyamaLayout(part)
        layout.xspace, layout.yspace = GAP_X, GAP_Y
        roots = [vertex for vertex in part.sV if vertex.data == BEGIN] or None
        layout.init_all(roots=roots)
        layout.draw(5)
        xs = [vertex.view.xy[0] for vertex in part.sV]
        ys = [vertex.view.xy[1] for vertex in part.sV]
        for vertex in part.sV:
            x, y = vertex.view.xy
            places[vertex.data] = (left + x - min(xs) + BOX_WIDTH / 2, y - min(ys) + BOX_HEIGHT / 2)
        left += max(xs) - min(xs) + BOX_WIDTH + GAP_X
    return places


def _shade(share: float) -> str:
    """From pale to strong blue."""
    return f"#{round(235 - 150 * share):02x}{round(243 - 90 * share):02x}ff"


def _line(edge: Edge, places: dict[str, tuple[float, float]], most: int) -> str:
    (x1, y1), (x2, y2) = places[edge.source or BEGIN], places[edge.target or END]
    width = 1 + 5 * edge.count / most
    half = BOX_HEIGHT / 2
    if edge.source == edge.target:
        side = x1 + BOX_WIDTH / 2
        path = f"M{side:.0f},{y1 - 8:.0f} c40,-20 40,36 0,16"
        label_x, label_y = side + 36, y1
    elif y2 > y1:
        bend = (y2 - y1) / 2
        path = f"M{x1:.0f},{y1 + half:.0f} C{x1:.0f},{y1 + bend:.0f}"
        path += f" {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2 - half:.0f}"
        label_x, label_y = (x1 + x2) / 2, (y1 + y2) / 2
    else:  # back to an earlier one: round the right side
        side = max(x1, x2) + BOX_WIDTH / 2 + 50
        a, b = x1 + BOX_WIDTH / 2, x2 + BOX_WIDTH / 2
        path = f"M{a:.0f},{y1:.0f} C{side:.0f},{y1:.0f} {side:.0f},{y2:.0f} {b:.0f},{y2:.0f}"
        label_x, label_y = side - 14, (y1 + y2) / 2
    drawn = f'<path d="{path}" fill="none" stroke="#567" stroke-width="{width:.1f}" marker-end="url(#tip)"/>'
    return drawn + f'<text x="{label_x:.0f}" y="{label_y:.0f}" class="count edge">{edge.count}</text>'


def _box(name: str, text: str, place: tuple[float, float], share: float) -> str:
    x, y = place
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    if name in (BEGIN, END):
        fill = "#345" if name == BEGIN else "#fff"
        return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="14" fill="{fill}" stroke="#345" stroke-width="3"/>'
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9" '
        f'fill="{_shade(share)}" stroke="#345"/>'
        f'<text x="{x:.0f}" y="{y - 4:.0f}" class="name">{escape(name[:26])}</text>'
        f'<text x="{x:.0f}" y="{y + 14:.0f}" class="count">{escape(text)}</text>'
    )


def svg(found: ProcessMap) -> str:
    """A map as SVG."""
    shown = found.activities[:ACTIVITIES_MAX]
    names = [BEGIN, *(activity.name for activity in shown), END]
    edges = tuple(e for e in found.edges if {e.source or BEGIN, e.target or END} <= set(names))
    places = {name: (x + MARGIN, y + MARGIN) for name, (x, y) in _places(names, edges).items()}
    width = max(x for x, _ in places.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in places.values()) + BOX_HEIGHT + MARGIN
    most_edge = max((edge.count for edge in edges), default=1)
    most_box = max((activity.count for activity in shown), default=1)
    parts = [_line(edge, places, most_edge) for edge in reversed(edges)]
    parts += [_box(name, "", places[name], 0) for name in (BEGIN, END)]
    for activity in shown:
        text = f"{activity.count} · {_duration(activity.mean_ms)}"
        parts.append(_box(activity.name, text, places[activity.name], activity.count / most_box))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" text-anchor="middle">'
        "<style>.name{font-size:13px;font-weight:600}.count{font-size:11px;fill:#234}"
        ".edge{paint-order:stroke;stroke:#fff;stroke-width:4px}</style>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#567"/></marker></defs>'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return head + "".join(parts) + "</svg>\n"
