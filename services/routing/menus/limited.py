"""A tree made better by a bounded number of moves, so that callers find most of what they know. Pure.

A *change* is a node that gets another parent or key. Three moves are tried, and the one that spares most
for each change is made, until none spares anything or the bound is reached:

- promote: a node goes to a higher level that has a free key (one change);
- swap: a heavy node and a light one of a higher level change places (two changes);
- collapse: a level with one choice is replaced by it (one change).

Every move stays inside its scope (rebuild.py, rule 1); pinned nodes and what leads to them stay where they
are, ordered scopes altogether. What a move spares is computed exactly, in key presses and in prompts
listened to, since the cost of a tree is a sum over its levels and a move touches only those on two ways to
the root. `stability` charges each regular access of what is moved. It is a local search: the best tree
within n moves is not promised, a better one than before is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from routing.menus.check import choice_seconds
from routing.menus.codes import told_in_order
from routing.menus.model import Menu, Node
from routing.menus.rebuild import (
    Constraints,
    Weights,
    distinct_words,
    height,
    keyed,
    language_of,
    scopes_of,
    section_heights,
)

#: Changes of one release.
CHANGES_MAX = 200
#: Nodes of a level that are looked at for a move.
CANDIDATES_MAX = 4
#: A move that spares less is none, key presses.
SPARED_MIN = 1e-9


@dataclass(slots=True, eq=False)
class _Place:
    """A node that can be moved about."""

    node: Node
    weight: float
    seconds: float
    #: Regular accesses below it.
    regular: float
    #: Scope whose item or level it is; None for a root.
    scope: str
    parent: _Place | None
    children: list[_Place]

    @property
    def depth(self) -> int:
        depth, above = 0, self.parent
        while above is not None:
            depth, above = depth + 1, above.parent
        return depth

    def above(self) -> Iterator[_Place]:
        """Its ancestors, nearest first."""
        place = self.parent
        while place is not None:
            yield place
            place = place.parent


@dataclass(frozen=True, slots=True)
class _Move:
    spared: float
    count: int
    kind: str
    first: _Place
    second: _Place


def improve(
    menu: Menu, accesses: Mapping[str, float], constraints: Constraints, regulars: Mapping[str, float]
) -> Node:
    """The root of a better tree with at most `constraints.changes_max` changes."""
    search = _Search(menu, accesses, constraints, regulars)
    left = min(constraints.changes_max, CHANGES_MAX)
    while left > 0 and (move := search.best(left)) is not None:
        search.make(move)
        left -= move.count
    return search.tree()


class _Search:
    def __init__(
        self,
        menu: Menu,
        accesses: Mapping[str, float],
        constraints: Constraints,
        regulars: Mapping[str, float],
    ) -> None:
        self._menu = menu
        self._constraints = constraints
        self._weights = Weights.over(menu.root, accesses).of
        self._loyal = Weights.over(menu.root, regulars).of
        self._heights = section_heights(menu)
        self._scopes, self._fixed = scopes_of(menu, keep_groups=constraints.keep_groups)
        self._language = language_of(menu)
        self._ordered = frozenset(node.id for node in menu.root.walk() if node.ordered)
        inside = (node for node in menu.root.walk() if node.id in self._scopes)
        self._distinct = {
            id: words for node in inside for id, words in distinct_words(menu, node, self._scopes).items()
        }
        self._moved: set[str] = set()
        self._root = self._place(menu.root, None, menu.root.id)

    def _place(self, node: Node, parent: _Place | None, scope: str) -> _Place:
        seconds = choice_seconds(node, "1", self._language)
        place = _Place(node, self._weights[node.id], seconds, self._loyal[node.id], scope, parent, [])
        inside = node.id if node.id in self._scopes else scope
        place.children = [self._place(child, place, inside) for child in node.children]
        return place

    # --- what a tree costs ---

    def _level_cost(self, place: _Place) -> float:
        """Key presses, and seconds in their worth, spent on one level."""
        members, worth = place.children, self._constraints.listening_weight
        if not worth:
            return sum([member.weight for member in members])
        if not place.node.ordered:
            members = sorted(members, key=lambda p: -p.weight / p.seconds)
        told, cost = 0.0, 0.0
        for member in members:
            told += member.seconds
            cost += member.weight * (1.0 + worth * told)
        return cost

    def _cost_along(self, *places: _Place) -> float:
        touched = {id(p): p for place in places for p in (place, *place.above())}
        return sum(self._level_cost(place) for place in touched.values())

    def _move_weight(self, place: _Place, weight: float) -> None:
        for above in (place, *place.above()):
            above.weight += weight

    # --- moves ---

    def _candidates(self) -> dict[tuple[str, int], tuple[list[_Place], list[_Place]]]:
        """By scope and depth: (what may be moved, levels that have a free key)."""
        found: dict[tuple[str, int], tuple[list[_Place], list[_Place]]] = {}
        stack = [(0, self._root)]
        while stack:
            depth, place = stack.pop()
            below = place.node.id if place.node.id in self._scopes else place.scope
            stack.extend((depth + 1, child) for child in place.children)
            if place is not self._root and place.node.id not in self._fixed:
                found.setdefault((place.scope, depth), ([], []))[0].append(place)
            if place.children and len(place.children) < self._constraints.choices_max:
                found.setdefault((below, depth), ([], []))[1].append(place)
        return {key: value for key, value in found.items() if key[0] not in self._ordered}

    def best(self, left: int) -> _Move | None:
        """The move that spares most a change, of at most `left` changes; None when none spares anything."""
        by_depth = self._candidates()
        heavy = {
            key: sorted(movable, key=lambda p: -p.weight)[:CANDIDATES_MAX]
            for key, (movable, _) in by_depth.items()
        }
        light = {
            key: sorted(movable, key=lambda p: p.weight)[:CANDIDATES_MAX]
            for key, (movable, _) in by_depth.items()
        }
        moves = self._moves(by_depth, heavy, light, left)
        return max(moves, key=lambda move: move.spared / move.count, default=None)

    def _moves(
        self,
        by_depth: Mapping[tuple[str, int], tuple[list[_Place], list[_Place]]],
        heavy: Mapping[tuple[str, int], list[_Place]],
        light: Mapping[tuple[str, int], list[_Place]],
        left: int,
    ) -> Iterator[_Move]:
        for scope, depth in by_depth:
            for other, upper in by_depth:
                if other != scope:
                    continue
                if upper + 1 < depth:
                    levels = sorted(by_depth[other, upper][1], key=lambda p: p.weight)[:CANDIDATES_MAX]
                    yield from self._promotions(heavy[scope, depth], levels)
                if upper < depth and left >= 2:
                    yield from self._swaps(heavy[scope, depth], light[other, upper])
        for place in (p for movable, _ in by_depth.values() for p in movable):
            if len(place.children) == 1 and place.node.id not in self._scopes:
                yield from self._worth("collapse", 1, place.children[0], place)

    def _promotions(self, nodes: list[_Place], levels: list[_Place]) -> Iterator[_Move]:
        for node in nodes:
            for level in levels:
                if level is not node.parent and node not in (level, *level.above()):
                    yield from self._worth("promote", 1, node, level)

    def _swaps(self, lower: list[_Place], upper: list[_Place]) -> Iterator[_Move]:
        for low in lower:
            for high in upper:
                if low.weight > high.weight and high not in low.above():
                    yield from self._worth("swap", 2, low, high)

    def _worth(self, kind: str, count: int, first: _Place, second: _Place) -> Iterator[_Move]:
        if self._too_deep(kind, first, second):
            return
        loyal = first.regular + (second.regular if kind == "swap" else 0.0)
        fee = self._constraints.stability * loyal
        touched = (first.parent or first, second if kind != "collapse" else second.parent or second)
        ways = [place for place in (*touched, second.parent) if place is not None]
        before = self._cost_along(*ways)
        undo = self._apply(kind, first, second)
        after = self._cost_along(*(place for place in ways if place.children))
        self._revert(undo)
        spared = before - after - fee
        if spared > SPARED_MIN:
            yield _Move(spared, count, kind, first, second)

    def _too_deep(self, kind: str, first: _Place, second: _Place) -> bool:
        """A swap takes the higher node down, with everything below it."""
        return kind == "swap" and first.depth + self._height(second) > self._constraints.depth_max

    def _height(self, place: _Place) -> int:
        if not place.children:
            return height(place.node, self._heights) if place.node.leaf else 0
        return 1 + max(map(self._height, place.children))

    def make(self, move: _Move) -> None:
        """Makes a move for good."""
        self._apply(move.kind, move.first, move.second)
        self._moved |= {move.first.node.id} | ({move.second.node.id} if move.kind == "swap" else set())

    def _apply(
        self, kind: str, first: _Place, second: _Place
    ) -> list[tuple[_Place, _Place | None, list[_Place], float]]:
        """Carries a move out; what brings everything back."""
        parents = [p for p in (first.parent, second, second.parent) if p is not None]
        touched = {id(p): p for place in (first, second, *parents) for p in (place, *place.above())}
        undo = [(p, p.parent, list(p.children), p.weight) for p in touched.values()]
        if kind == "swap":
            here, there = first.parent, second.parent
            assert here is not None and there is not None
            self._detach(first)
            self._detach(second)
            self._attach(first, there)
            self._attach(second, here)
        elif kind == "promote":
            old = first.parent
            self._detach(first)
            self._attach(first, second)
            self._drop_empty(old)
        else:
            above = second.parent
            assert above is not None
            self._detach(first)
            self._detach(second)
            self._attach(first, above)
        return undo

    def _revert(self, undo: list[tuple[_Place, _Place | None, list[_Place], float]]) -> None:
        for place, parent, children, weight in undo:
            place.parent, place.children, place.weight = parent, children, weight

    def _detach(self, place: _Place) -> None:
        parent = place.parent
        assert parent is not None
        parent.children = [child for child in parent.children if child is not place]
        self._move_weight(parent, -place.weight)
        place.parent = None

    def _attach(self, place: _Place, parent: _Place) -> None:
        parent.children = [*parent.children, place]
        self._move_weight(parent, place.weight)
        place.parent = parent

    def _drop_empty(self, place: _Place | None) -> None:
        """A level without choices is a dead end: it goes."""
        while place is not None and not place.children and place.parent is not None:
            above = place.parent
            self._detach(place)
            place = above

    # --- the outcome ---

    def tree(self) -> Node:
        """The tree as it stands: what was not moved keeps its key."""
        return self._node(self._root)

    def _node(self, place: _Place) -> Node:
        members = place.children
        if not place.node.ordered:
            members = told_in_order(members, lambda p: p.weight, lambda p: p.seconds)
        old = {p.node.id: p.node.digit for p in members if p.node.id not in self._moved}
        made = replace(place.node, children=keyed([self._node(p) for p in members], old, self._fixed))
        if place.node.id in self._moved:
            return replace(made, prompts=self._distinct.get(made.id, made.prompts))
        return made
