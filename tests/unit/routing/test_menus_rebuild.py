"""Menus rebuilt from their use: what is kept, what is spared, what is refused."""

from __future__ import annotations

import csv
import functools
import gzip
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.menus.check import problems
from routing.menus.limited import CHANGES_MAX
from routing.menus.model import DEPTH_MAX, Act, Menu, Node
from routing.menus.rebuild import Constraints, Impossible, changes, cost_of, keys_of, rebuild

ROOT = Path(__file__).resolve().parents[3]
COUNTS = Path(os.environ.get("CALLMESH_DATA", ROOT.parent / "shared" / "data")) / "menu_tree_counts.csv.gz"


def leaf(id: str, digit: str = "", **fields: object) -> Node:
    base = Node(id=id, digit=digit, prompts=(("en", id), ("zh", "项" + id)), act=Act.ANSWER, target=id)
    return replace(base, **fields)  # type: ignore[arg-type]


def level(id: str, *children: Node, digit: str = "", **fields: object) -> Node:
    keyed = tuple(replace(c, digit=c.digit or str(i + 1)) for i, c in enumerate(children))
    base = Node(id=id, digit=digit, prompts=(("en", id), ("zh", "组" + id)), children=keyed)
    return replace(base, **fields)  # type: ignore[arg-type]


@st.composite
def menus(draw: st.DrawFn) -> tuple[Menu, dict[str, float]]:
    """Menus of up to three levels, some nodes pinned, groups or ordered; how often each leaf was wanted."""
    ids = map(str, itertools.count())

    def node(depth: int) -> Node:
        pinned = draw(st.integers(0, 9)) == 0
        if depth == 0 or draw(st.integers(0, 2)) == 0:
            return leaf(f"l{next(ids)}", pinned=pinned)
        inside = [node(depth - 1) for _ in range(draw(st.integers(1, 4)))]
        kind = draw(st.integers(0, 5))
        return level(f"g{next(ids)}", *inside, group=kind == 0, ordered=kind == 1, pinned=pinned)

    root = level("root", *(node(2) for _ in range(draw(st.integers(2, 6)))))
    return Menu(id="m", root=root), {each.id: float(draw(st.integers(0, 50))) for each in root.leaves()}


CONSTRAINTS = st.builds(
    Constraints,
    keep_groups=st.booleans(),
    choices_max=st.sampled_from([6, 9]),
    changes_max=st.sampled_from([0, 0, 1, 5]),
    listening_weight=st.sampled_from([0.0, 0.5]),
    stability=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=30, deadline=None)
@given(made=menus(), constraints=CONSTRAINTS)
def test_whatever_is_rebuilt_is_sound_and_keeps_what_was_promised(
    made: tuple[Menu, dict[str, float]], constraints: Constraints
) -> None:
    menu, accesses = made
    assert problems(menu) == []
    found = rebuild(menu, accesses, constraints)
    assert problems(found.menu) == []
    before, after = menu.root, found.menu.root
    assert sorted(n.id for n in before.leaves()) == sorted(n.id for n in after.leaves())
    was, now = keys_of(before), keys_of(after)
    for node in before.walk():
        if node.pinned:
            assert now[node.id] == was[node.id]
    check_groups(before, after, constraints)
    assert (
        found.after.presses >= found.presses_optimal - 1e-9
        or constraints.choices_max < 9
        or not found.accesses
    )
    if constraints.changes_max:
        assert len(found.changes) <= constraints.changes_max + emptied(before, after)
        worth = constraints.listening_weight
        spent = [cost.presses + worth * cost.listening_seconds for cost in (found.before, found.after)]
        assert spent[1] <= spent[0] + 1e-9


def emptied(before: Node, after: Node) -> int:
    """Levels that are gone because nothing was left in them."""
    return len({n.id for n in before.walk() if not n.leaf} - {n.id for n in after.walk()})


def check_groups(before: Node, after: Node, constraints: Constraints) -> None:
    """What was together is together; what had an order has it."""
    order = [n.id for n in after.leaves()]
    tops = {child.id for child in before.children}
    for node in before.walk():
        kept = node.group or node.ordered or (constraints.keep_groups and node.id in tops)
        members = {n.id for n in node.leaves()}
        if node.leaf or not kept or node is before:
            continue
        holders = [n for n in after.walk() if {m.id for m in n.leaves()} == members]
        assert holders, f"{node.id} fell apart"
        if node.ordered and all(child.leaf for child in node.children):
            assert [id for id in order if id in members] == [n.id for n in node.leaves()]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.integers(0, 100), min_size=2, max_size=30))
def test_without_constraints_it_is_the_optimum(weights: list[int]) -> None:
    accesses = {f"l{i}": float(w) for i, w in enumerate(weights)}
    halves = [list(accesses)[0::2], list(accesses)[1::2]]
    groups = [level(f"g{i}", *nested([leaf(id) for id in half], f"g{i}")) for i, half in enumerate(halves)]
    found = rebuild(Menu(id="m", root=level("root", *groups)), accesses, Constraints())
    if sum(weights):
        assert found.after.presses == pytest.approx(found.presses_optimal)


def nested(leaves: list[Node], name: str) -> list[Node]:
    if len(leaves) <= 9:
        return leaves
    return [*leaves[:8], level(f"{name}x", *nested(leaves[8:], f"{name}x"))]


def test_a_heavy_leaf_comes_up_and_keys_stay_where_they_can() -> None:
    deep = level("deep", leaf("rare"), leaf("wanted"))
    menu = Menu(id="m", root=level("root", level("a", deep, leaf("b")), leaf("c")))
    accesses = {"wanted": 90.0, "rare": 1.0, "b": 2.0, "c": 7.0}
    one = rebuild(menu, accesses, Constraints(changes_max=1))
    assert [(c.node, c.before) for c in one.changes] == [("wanted", "1-1-2")]
    assert one.after.presses < one.before.presses and keys_of(one.menu.root)["c"] == "2"
    free = rebuild(menu, accesses, Constraints())
    assert free.after.presses == 1.0
    assert keys_of(free.menu.root)["c"] == "2", "what stays at its parent keeps its key"


def test_regular_callers_keep_their_keys_where_moving_costs() -> None:
    menu = Menu(
        id="m", root=level("root", level("a", leaf("x"), level("d", leaf("y"), leaf("z"))), leaf("c"))
    )
    accesses = {"x": 10.0, "y": 30.0, "z": 28.0, "c": 1.0}
    regulars = {"y": 30.0}
    moved = rebuild(menu, accesses, Constraints(changes_max=1), regulars)
    assert [c.node for c in moved.changes] == ["y"] and moved.regulars_moved == 1.0
    stable = rebuild(menu, accesses, Constraints(changes_max=1, stability=3.0), regulars)
    assert stable.regulars_moved == 0.0 and [c.node for c in stable.changes] == ["z"]


def test_pinned_choices_leave_the_rest_of_the_keys() -> None:
    pins = [leaf(f"p{i}", str(i), pinned=True) for i in range(1, 9)]
    menu = Menu(id="m", root=level("root", *pins, level("rest", leaf("x"), leaf("y"), digit="9")))
    accesses = {"x": 5.0, "y": 4.0}
    found = rebuild(menu, accesses, Constraints())
    assert keys_of(found.menu.root)["x"].startswith("9-") and problems(found.menu) == []
    nine = Menu(id="m", root=level("root", *pins, leaf("p9", "9", pinned=True)))
    assert rebuild(nine, {}, Constraints()).menu.root == nine.root
    with pytest.raises(Impossible, match="no key left"):
        rebuild(menu, accesses, Constraints(choices_max=8))


def test_words_of_a_new_level_name_what_is_in_it() -> None:
    menu = Menu(
        id="m", root=level("root", level("a", *map(leaf, "bcdefgh")), level("i", *map(leaf, "jklmnop")))
    )
    accesses = {id: 1.0 + (id in "bc") * 20 for id in "bcdefghjklmnop"}
    made = rebuild(menu, accesses, Constraints()).menu.root
    new = [child for child in made.children if child.id.startswith("root.more")]
    assert new and all(
        " and more" in dict(n.prompts)["en"] and dict(n.prompts)["zh"].endswith("等") for n in new
    )


def test_members_that_were_told_apart_by_their_parents_still_are() -> None:
    def disputed(id: str, **fields: object) -> Node:
        return leaf(id, prompts=(("en", "not mine"), ("zh", "不是我的")), **fields)

    debts = [level(name, disputed(f"{name}-not"), leaf(f"{name}-paid")) for name in ("medical", "other")]
    menu = Menu(id="m", root=level("root", *debts))
    accesses = {"medical-not": 9.0, "other-not": 8.0, "medical-paid": 1.0, "other-paid": 1.0}
    for constraints in (Constraints(), Constraints(changes_max=2)):
        made = rebuild(menu, accesses, constraints).menu.root
        told = {node.id: dict(node.prompts) for node in made.children}
        assert told["medical-not"] == {"en": "medical: not mine", "zh": "组medical：不是我的"}
        assert told["other-not"]["en"] == "other: not mine"
    assert told["medical"]["en"] == "medical", "and what stays is told as it was"


def test_a_level_over_the_same_leaves_keeps_its_name() -> None:
    menu = Menu(
        id="m", root=level("root", level("a", *map(leaf, "bcdefghij")), *(leaf(f"k{i}") for i in range(8)))
    )
    accesses = {**{id: 1.0 for id in "bcdefghij"}, **{f"k{i}": 50.0 for i in range(8)}}
    found = rebuild(menu, accesses, Constraints())
    assert found.changes == () and found.menu.root.children[-1].id == "a"


def test_listening_counts() -> None:
    wordy = [replace(leaf(f"w{i}"), prompts=(("en", f"w{i} " + "word " * 30),)) for i in range(8)]
    menu = Menu(id="m", root=level("root", *wordy, leaf("short"), prompts=(("en", "hello"),)))
    accesses = {**{f"w{i}": 1.0 for i in range(8)}, "short": 10.0}
    keys_alone, both = (rebuild(menu, accesses, Constraints(listening_weight=w)) for w in (0.0, 2.0))
    assert keys_alone.menu.root.children[0].id == "short", "told first"
    spent = [f.after.presses + 2.0 * f.after.listening_seconds for f in (keys_alone, both)]
    assert spent[1] < spent[0] < both.before.presses + 2.0 * both.before.listening_seconds


def test_a_skewed_use_does_not_make_a_tree_too_deep() -> None:
    leaves = [leaf(f"l{i}") for i in range(60)]
    menu = Menu(id="m", root=level("root", *nested(leaves, "g")))
    accesses = {f"l{i}": 3.0**i for i in range(60)}
    found = rebuild(menu, accesses, Constraints(choices_max=3))
    assert problems(found.menu) == []
    assert max(keys.count("-") + 1 for keys in keys_of(found.menu.root).values()) <= DEPTH_MAX
    with pytest.raises(Impossible, match="within 3 levels"):
        rebuild(menu, accesses, Constraints(choices_max=3, depth_max=3))


@pytest.mark.parametrize(("choices_max", "changes_max", "growth"), [(3, 0, 3.0), (2, 2, 1.0)])
def test_a_way_that_goes_on_in_a_section_is_not_made_too_long(
    choices_max: int, changes_max: int, growth: float
) -> None:
    """Hardly anybody goes there, so it would go to the bottom, and the whole menu be refused."""
    section = level("fault", level("line", leaf("slow"), leaf("dead")), leaf("bill"))
    rare = leaf("rare", act=Act.LINK, target="fault")
    deep = functools.reduce(
        lambda below, n: level(f"g{n}", leaf(f"l{n}"), leaf(f"m{n}"), below), range(6), leaf("heavy")
    )
    menu = Menu(id="m", root=level("root", rare, deep), sections=(section,))
    assert problems(menu) == []
    weights = {each.id: growth**n for n, each in enumerate(menu.root.leaves())}
    weights |= {"rare": 0.0, "heavy": 1e9}
    found = rebuild(menu, weights, Constraints(choices_max=choices_max, changes_max=changes_max))
    assert problems(found.menu) == []
    assert found.after.presses < found.before.presses


def test_what_changed_is_what_moved_itself() -> None:
    before = level("root", level("a", leaf("x"), leaf("y")), leaf("c"))
    after = level("root", leaf("c"), level("a", leaf("x"), leaf("y")))
    assert [(c.node, c.before, c.after) for c in changes(before, after)] == [("a", "1", "2"), ("c", "2", "1")]


def rows() -> Iterator[dict[str, str]]:
    with gzip.open(COUNTS, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@pytest.mark.skipif(not COUNTS.exists(), reason=f"no {COUNTS.name} in {COUNTS.parent}")
def test_a_real_tree_of_491_leaves() -> None:
    accesses: dict[str, float] = {}
    table = list(rows())

    def grown(below: list[dict[str, str]], names: list[str], id: str) -> Node:
        if not names:
            accesses[id] = float(sum(int(row["n"]) for row in below))
            return leaf(id)
        parts = {row[names[0]]: [r for r in below if r[names[0]] == row[names[0]]] for row in below}
        inside = [grown(part, names[1:], f"{id}.{i}") for i, part in enumerate(parts.values())]
        return Node(id=id, prompts=(("en", id),), children=tuple(inside))

    menu = Menu(id="m", root=grown(table, ["Product", "Sub-product", "Issue", "Sub-issue"], "r"))
    free = rebuild(menu, accesses, Constraints())
    kept = rebuild(menu, accesses, Constraints(keep_groups=True))
    assert (free.accesses, len(accesses), free.before.presses) == (6_623, 491, 4.0)
    assert free.after.presses <= 1.05 * free.presses_optimal
    assert 1 - kept.after.presses / kept.before.presses == pytest.approx(0.392, abs=0.0005)
    assert problems(free.menu) == problems(kept.menu) == []


def test_a_bounded_rebuild_of_a_large_tree_is_better_and_bounded() -> None:
    draw = random.Random(5)
    leaves = [leaf(f"l{i}") for i in range(600)]

    def grown(part: list[Node], name: str) -> list[Node]:
        if len(part) <= 9:
            return part
        size = -(-len(part) // 9)
        cuts = [part[i : i + size] for i in range(0, len(part), size)]
        return [level(f"{name}.{i}", *grown(cut, f"{name}.{i}")) for i, cut in enumerate(cuts)]

    menu = Menu(id="m", root=level("root", *grown(leaves, "g")))
    accesses = {each.id: draw.paretovariate(1.0) for each in leaves}
    best = rebuild(menu, accesses, Constraints())
    found = rebuild(menu, accesses, Constraints(changes_max=20))
    assert 0 < len(found.changes) <= 20 <= CHANGES_MAX and problems(found.menu) == []
    assert best.after.presses <= found.after.presses < found.before.presses
    assert cost_of(found.menu.root, accesses, "en").presses == pytest.approx(found.after.presses)
