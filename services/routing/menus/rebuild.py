"""A menu's tree rebuilt from its use. Pure; the algorithms are in codes.py.

1. A *scope* is a node whose members stay its members: the root; groups (`group`, `ordered`, and with
   `keep_groups` what stands right below the root); and every ancestor of a pinned node. A scope's items are
   its leaves and its inner scopes. All other inner nodes are dissolved. Each scope is solved by itself, the
   innermost first.
2. A pinned node, and a scope on the way to one, keeps parent and key; the others of its level share what is
   left.
3. An ordered scope keeps its items' order. One that holds pinned nodes stays as it is.
4. A scope with one item is replaced by the item.
5. What stays at its parent keeps its key. Levels are told in Smith's order, ordered scopes in theirs.
6. With a weight for listening, several arities are tried in every scope, and its own levels as scopes of
   their own (their names are short, and known); what costs least in keys and seconds stays.
7. A way may not have more than `DEPTH_MAX` levels, those of sections it links to included: where it has,
   weights are levelled until it has not.
8. An inner node over exactly the leaves that one had before keeps that one's id and words; a new one is
   named after its heaviest members.
9. Where a dissolved node's words told two members apart ("medical debt", "other debt", each with "not mine"),
   they are said with the member's.
10. With a bound on changes the tree is not built anew: see limited.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from routing.menus.check import choice_seconds
from routing.menus.codes import Bundle, cheapest, cheapest_in_order, least_presses, split, told_in_order
from routing.menus.model import (
    CHOICES_MAX,
    DEPTH_MAX,
    PROMPT_CHARACTERS_MAX,
    Act,
    Menu,
    Node,
    Texts,
    primary,
    seconds_of,
    sentence,
)

#: Items that a new level is named after, and characters of each.
NAMED_MAX = 2
NAME_CHARACTERS_MAX, NAME_CHARACTERS_MAX_CJK = 60, 20
#: By how much more weights are levelled each time, and how often: in the end all are alike.
LEVELLING, LEVELLINGS_MAX = 8.0, 14
_KEYS = "123456789"

#: Choices a level that are tried beside the most, in scopes up to so many items and in larger ones.
ARITIES_TRIED, ITEMS_TRIED_MAX, ARITIES_TRIED_OF_MANY = (2, 3, 5), 300, (4,)

#: (what it costs in key presses, what makes it) of one way to build a scope.
Try = tuple[float, Callable[[], Node]]
#: Weights of the free items -> the top level of their tree.
Plan = Callable[[list[float]], "list[Node | Bundle[Node]]"]


class Impossible(Exception):
    """No tree fulfils the constraints; the text says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What a rebuilt tree must keep to."""

    #: What stands right below the root stays together.
    keep_groups: bool = False
    #: 2 to `CHOICES_MAX`.
    choices_max: int = CHOICES_MAX
    #: Nodes that may be moved; 0: no bound.
    changes_max: int = 0
    #: A second of listening in key presses.
    listening_weight: float = 0.0
    #: Cost of moving a node for each regular access of it, key presses; counts with `changes_max`.
    stability: float = 0.0
    #: Levels above the root are never counted; longest way.
    depth_max: int = DEPTH_MAX


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a tree costs its callers, expected over its accesses."""

    presses: float = 0.0
    listening_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A node whose parent or key is another."""

    node: str
    #: Keys from the root, "3-1"; "" for a node that is not there.
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """A draft and what it brings."""

    menu: Menu
    before: Cost
    after: Cost
    #: Expected presses of the best tree of all.
    presses_optimal: float
    changes: tuple[Change, ...]
    #: Accesses counted.
    accesses: int
    #: Share of the regulars' accesses whose keys changed.
    regulars_moved: float


@dataclass(slots=True)
class Weights:
    """Accesses of each node: a leaf's own, an inner node's the sum below it."""

    of: dict[str, float] = field(default_factory=dict)

    @classmethod
    def over(cls, top: Node, accesses: Mapping[str, float]) -> Weights:
        """The weights of a tree."""
        weights = cls()
        for node in reversed(list(top.walk())):
            own = (
                float(accesses.get(node.id, 0)) if node.leaf else sum(weights.of[c.id] for c in node.children)
            )
            weights.of[node.id] = own
        return weights


def language_of(menu: Menu) -> str:
    """The language that listening is reckoned in: the one that takes longest is not known, so the first."""
    return menu.root.prompts[0][0] if menu.root.prompts else "en"


def cost_of(root: Node, accesses: Mapping[str, float], language: str) -> Cost:
    """Expected presses and listening: on each level the prompts up to one's own choice. Zeros without any
    access.
    """
    weights, presses, seconds = Weights.over(root, accesses).of, 0.0, 0.0
    for node in root.walk():
        told = 0.0
        for child in node.children:
            told += choice_seconds(child, child.digit or "1", language)
            presses += weights[child.id]
            seconds += weights[child.id] * told
    total = weights[root.id] or 1.0
    return Cost(presses=presses / total, listening_seconds=seconds / total)


def keys_of(root: Node) -> dict[str, str]:
    """Keys from the root to each node, "3-1"; "" for the root."""
    keys = {root.id: ""}
    for node in root.walk():
        for child in node.children:
            keys[child.id] = f"{keys[node.id]}-{child.digit}" if keys[node.id] else child.digit
    return keys


def _places(root: Node) -> dict[str, tuple[str, str]]:
    """Parent and key of each node below the root."""
    return {child.id: (node.id, child.digit) for node in root.walk() for child in node.children}


def changes(before: Node, after: Node) -> tuple[Change, ...]:
    """Nodes that moved, came or went; not those that a moved one took along."""
    was, now = _places(before), _places(after)
    was_keys, now_keys = keys_of(before), keys_of(after)
    moved = [id for id in {**was, **now} if was.get(id) != now.get(id)]
    return tuple(Change(node=id, before=was_keys.get(id, ""), after=now_keys.get(id, "")) for id in moved)


def section_heights(menu: Menu) -> dict[str, int]:
    """Levels below the beginning of each section, those of sections that it links to included."""
    found: dict[str, int] = {}
    left = list(menu.sections)
    while left:
        # There is no ring: of those left one links to none of the others.
        ready = [each for each in left if all(leaf.target in found for leaf in _links(each))]
        assert ready
        found |= {each.id: height(each, found) for each in ready}
        left = [each for each in left if each.id not in found]
    return found


def _links(top: Node) -> list[Node]:
    return [leaf for leaf in top.leaves() if leaf.act is Act.LINK]


def height(node: Node, sections: Mapping[str, int]) -> int:
    """Levels below a node, with the heights of the sections that are linked to."""
    if node.leaf:
        return sections[node.target] if node.act is Act.LINK else 0
    return 1 + max(height(child, sections) for child in node.children)


def summary(
    menu: Menu, draft: Node, accesses: Mapping[str, float], regulars: Mapping[str, float], choices_max: int
) -> Rebuilt:
    """A draft beside the tree it comes from."""
    counted = {leaf.id: float(accesses.get(leaf.id, 0)) for leaf in menu.root.leaves()}
    total, language = sum(counted.values()), language_of(menu)
    was, now = keys_of(menu.root), keys_of(draft)
    loyal = sum(regulars.get(id, 0.0) for id in counted)
    moved = sum(regulars.get(id, 0.0) for id in counted if was[id] != now.get(id))
    optimal = least_presses(list(counted.values()), choices_max)
    return Rebuilt(
        menu=replace(menu, root=draft, version=0),
        before=cost_of(menu.root, counted, language),
        after=cost_of(draft, counted, language),
        presses_optimal=optimal / total if total else 0.0,
        changes=changes(menu.root, draft),
        accesses=int(total),
        regulars_moved=moved / loyal if loyal else 0.0,
    )


def rebuild(
    menu: Menu,
    accesses: Mapping[str, float],
    constraints: Constraints,
    regulars: Mapping[str, float] | None = None,
) -> Rebuilt:
    """The best tree found under the constraints. Raises Impossible."""
    from routing.menus.limited import improve

    regulars = regulars or {}
    if constraints.changes_max:
        draft = improve(menu, accesses, constraints, regulars)
    else:
        draft = Builder(menu, accesses, constraints).build()
    return summary(menu, draft, accesses, regulars, constraints.choices_max)


# --- scopes ---


def scopes_of(menu: Menu, *, keep_groups: bool) -> tuple[frozenset[str], frozenset[str]]:
    """(ids of the scopes, ids of what keeps its place): rules 1 and 2."""
    scopes, fixed = {menu.root.id}, set[str]()
    parents = {child.id: node for node in menu.root.walk() for child in node.children}
    for node in menu.root.walk():
        below_root = node.id in parents and parents[node.id] is menu.root
        if not node.leaf and (node.group or node.ordered or (keep_groups and below_root)):
            scopes.add(node.id)
        if node.pinned and node is not menu.root:
            fixed.add(node.id)
            if not node.leaf:
                scopes.add(node.id)
            above = parents[node.id]
            while above is not menu.root and above.id not in fixed:
                scopes.add(above.id)
                fixed.add(above.id)
                above = parents[above.id]
    return frozenset(scopes), frozenset(fixed)


def distinct_words(menu: Menu, scope: Node, scopes: frozenset[str]) -> dict[str, Texts]:
    """Words for those of a scope's items that are called alike, by id: with those of dissolved parents
    (rule 9).
    """
    chains = list(_chains(scope, scopes, ()))
    found: dict[str, dict[str, str]] = {}
    for language, _ in menu.root.prompts:
        for id, words in _told_apart(chains, language).items():
            found.setdefault(id, {})[language] = words
    plain = {item.id: dict(item.prompts) for item, _ in chains} if found else {}
    return {id: tuple(sorted({**plain[id], **words}.items())) for id, words in found.items()}


def _chains(
    node: Node, scopes: frozenset[str], above: tuple[Node, ...]
) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    """A scope's items with the nodes between it and them, the nearest first."""
    for child in node.children:
        if child.leaf or child.id in scopes:
            yield child, above
        else:
            yield from _chains(child, scopes, (child, *above))


def _told_apart(chains: list[tuple[Node, tuple[Node, ...]]], language: str) -> dict[str, str]:
    """Longer words for those that are called alike: with the words of the parents, on one level above after
    another, that tell most of them apart.
    """
    words = {item.id: dict(item.prompts).get(language, "") for item, _ in chains}
    plain, above = dict(words), {item.id: parents for item, parents in chains}
    for _ in range(DEPTH_MAX):
        alike: dict[str, list[str]] = {}
        for id, text in words.items():
            alike.setdefault(text, []).append(id)
        better: dict[str, str] = {}
        for ids in alike.values():
            if len(ids) > 1:
                tries = [_with_parent(ids, words, above, level, language) for level in range(DEPTH_MAX)]
                best = max(tries, key=lambda told: len(set(told.values())))
                better |= best if len(set(best.values())) > 1 else {}
        if not better:
            break
        words |= better
    return {id: text for id, text in words.items() if text != plain[id]}


def _with_parent(
    ids: list[str], words: Mapping[str, str], above: Mapping[str, tuple[Node, ...]], level: int, language: str
) -> dict[str, str]:
    """Words with those of the parent so many levels above; as they are where there is none, or no room."""
    told = {id: words[id] for id in ids}
    for id in ids:
        if level < len(above[id]):
            parent = dict(above[id][level].prompts).get(language, "")
            longer = f"{parent}{'：' if primary(language) == 'zh' else ': '}{words[id]}"
            told[id] = longer if len(longer) <= PROMPT_CHARACTERS_MAX else words[id]
    return told


class Builder:
    """Builds one tree."""

    def __init__(self, menu: Menu, accesses: Mapping[str, float], constraints: Constraints) -> None:
        self._menu = menu
        self._constraints = constraints
        self._weights = Weights.over(menu.root, accesses).of
        self._language = language_of(menu)
        self._scopes, self._fixed = scopes_of(menu, keep_groups=constraints.keep_groups)
        self._heights = section_heights(menu)
        self._ids = {node.id for top in menu.tops() for node in top.walk()}
        self._plain = {node.id: node.prompts for node in menu.root.walk()}
        self._known = {_leaf_key(node): node for node in menu.root.walk() if not node.leaf}
        self._made = 0
        self._told: dict[tuple[str, Texts], float] = {}
        self._words: dict[str, dict[str, Texts]] = {}
        self._solved: dict[tuple[str, int], Node] = {}
        #: What is spent inside a solved scope, by its id.
        self._inside: dict[str, float] = {}

    def build(self) -> Node:
        """The tree. Raises Impossible."""
        return self._solve(self._menu.root, self._constraints.depth_max)

    def _solve(self, scope: Node, levels: int) -> Node:
        """A scope with its members in their new places, at most `levels` deep."""
        known = self._solved.get((scope.id, levels))
        if known is not None:
            return known
        tries = self._tries(scope, list(self._flat(scope, scope, levels)), levels)
        dissolved = any(not child.leaf and child.id not in self._scopes for child in scope.children)
        if self._constraints.listening_weight and dissolved and not scope.ordered:
            tries += self._tries(scope, [self._member(child, levels) for child in scope.children], levels)
        if not tries:
            raise Impossible(f"{scope.id!r} cannot be kept within {self._constraints.depth_max} levels")
        made = min(tries, key=lambda each: each[0])[1]()
        self._inside[made.id] = self._spent_below(made)
        self._solved[scope.id, levels] = made
        return made

    def _flat(self, scope: Node, node: Node, levels: int) -> Iterator[Node]:
        """A scope's items, its other levels dissolved, in the order they are told."""
        if scope.id not in self._words:
            self._words[scope.id] = distinct_words(self._menu, scope, self._scopes)
        for child in node.children:
            if not child.leaf and child.id not in self._scopes:
                yield from self._flat(scope, child, levels)
                continue
            item = self._member(child, levels)
            yield replace(item, prompts=self._words[scope.id].get(item.id, item.prompts))

    def _member(self, node: Node, levels: int) -> Node:
        return node if node.leaf else self._solve(node, levels - 1)

    def _tries(self, scope: Node, items: list[Node], levels: int) -> list[Try]:
        """(what it costs, what makes it) of each way to build a scope of these items. Raises Impossible."""
        held = [i for i in items if i.id in self._fixed]
        free = [i for i in items if i.id not in self._fixed]
        if len(items) == 1 and scope is not self._menu.root and scope.id not in self._fixed:
            # The item takes the scope's place, and its key where it had one.
            return [(0.0, lambda: replace(items[0], digit=scope.digit))]
        if scope.ordered and held:
            solved = {item.id: item for item in items}
            return [(0.0, lambda: self._as_it_is(scope, solved))]
        room = self._constraints.choices_max - len(held)
        if room < (1 if free else 0):
            left = (
                "no key left for the others" if room >= 0 else f"no room in {self._constraints.choices_max}"
            )
            raise Impossible(f"{scope.id!r} has {len(held)} pinned choices: there is {left}")
        inside = sum(self._inside.get(item.id, 0.0) for item in items)
        found: list[Try] = []
        for plan in self._plans(scope, held, free, room):
            entries = self._fitting(held, free, plan, levels)
            if entries is not None:
                make = functools.partial(self._made_of, scope, held, entries)
                found.append((inside + self._spent([*held, *entries], in_order=scope.ordered)[1], make))
        return found

    def _made_of(self, scope: Node, held: list[Node], entries: list[Node | Bundle[Node]]) -> Node:
        members = [*held, *(self._node(scope, e) for e in entries)]
        return self._furnish(scope, members, scope, in_order=scope.ordered)

    def _as_it_is(self, scope: Node, solved: Mapping[str, Node]) -> Node:
        children = (solved.get(c.id) or (c if c.leaf else self._as_it_is(c, solved)) for c in scope.children)
        return replace(scope, children=tuple(children))

    def _plans(self, scope: Node, held: list[Node], free: list[Node], room: int) -> Iterator[Plan]:
        """The ways in which a scope is tried to be built."""
        most, heavy = self._constraints.choices_max, self._constraints.listening_weight
        heights = [height(item, self._heights) for item in free]
        if scope.ordered:
            yield lambda weights: self._in_order(scope, weights, free, most, room)
            return
        several = heavy and len(free) > 2
        fewer = ARITIES_TRIED if len(free) <= ITEMS_TRIED_MAX else ARITIES_TRIED_OF_MANY
        for arity in (*(few for few in fewer if few < most), most) if several else (most,):
            top = max(1, min(room, arity - len(held)))
            yield functools.partial(self._cheapest, free, arity, top, heights)
        if several:
            # A choice costs its key and what is told up to it; a usual one stands for all.
            usual = sum(map(self._seconds, free)) / len(free)
            costs = [1.0 + heavy * usual * (place + 1) for place in range(most)]
            yield lambda weights: split(weights, free, costs, costs[:room])

    @staticmethod
    def _cheapest(
        free: list[Node], arity: int, top: int, heights: list[int], weights: list[float]
    ) -> list[Node | Bundle[Node]]:
        return cheapest(weights, free, arity, top, heights)

    def _in_order(
        self, scope: Node, weights: list[float], free: list[Node], arity: int, room: int
    ) -> list[Node | Bundle[Node]]:
        try:
            return cheapest_in_order(weights, free, arity, room)
        except ValueError as error:
            raise Impossible(f"{scope.id!r}: {error}") from None

    def _fitting(
        self, held: list[Node], free: list[Node], plan: Plan, levels: int
    ) -> list[Node | Bundle[Node]] | None:
        """A plan's tree; None when it gets too deep even with all weights alike."""
        weights = [self._weights[item.id] for item in free]
        level, lift = 0.0, (sum(weights) or 1.0) / LEVELLING**LEVELLINGS_MAX
        for _ in range(LEVELLINGS_MAX):
            entries = plan([weight + level for weight in weights])
            if self._deepest([*held, *entries]) + 1 <= levels:
                return entries
            level = level * LEVELLING or lift
        return None

    def _deepest(self, entries: Iterable[Node | Bundle[Node]]) -> int:
        """Levels below a level of entries."""
        return max(
            (
                height(e, self._heights) if isinstance(e, Node) else 1 + self._deepest(e.members)
                for e in entries
            ),
            default=0,
        )

    def _node(self, scope: Node, entry: Node | Bundle[Node]) -> Node:
        """An entry with its level below, named (rule 8)."""
        if isinstance(entry, Node):
            return entry
        members = [self._node(scope, member) for member in entry.members]
        made = Node(id="", children=tuple(members))
        known = self._known.get(_leaf_key(made))
        if known is not None and known.id not in self._scopes:
            made = known
        else:
            made = replace(made, id=self._fresh_id(scope), prompts=self._named(entry))
        self._weights[made.id] = sum(self._weights[m.id] for m in members)
        return self._furnish(made, members, known if made is known else None, in_order=scope.ordered)

    def _fresh_id(self, scope: Node) -> str:
        while True:
            self._made += 1
            id = f"{scope.id[:100]}.more{self._made}"
            if id not in self._ids:
                self._ids.add(id)
                return id

    def _named(self, bundle: Bundle[Node]) -> Texts:
        """Words for a new level: its heaviest items."""
        heaviest = sorted(_members(bundle), key=lambda m: (-self._weights[m.id], m.id))[:NAMED_MAX]
        languages = [language for language, _ in self._menu.root.prompts]
        return tuple(
            (lang, _joined([dict(m.prompts).get(lang, "") for m in heaviest], lang)) for lang in languages
        )

    def _furnish(self, node: Node, members: list[Node], was: Node | None, *, in_order: bool) -> Node:
        """A node with its members, told in order and with keys (rule 5); `was` is the level as it was
        before.
        """
        old = {child.id: child.digit for child in was.children} if was is not None else {}
        # Below the parent that they had, their own words are enough.
        members = [replace(m, prompts=self._plain[m.id]) if m.id in old else m for m in members]
        if not in_order:
            members = told_in_order(members, lambda m: self._weights[m.id], self._seconds)
        return replace(node, children=keyed(members, old, self._fixed))

    def _seconds(self, node: Node) -> float:
        key = (node.id, node.prompts)
        found = self._told.get(key)
        if found is None:
            found = self._told[key] = choice_seconds(node, "1", self._language)
        return found

    # --- what is spent, in key presses ---

    def _spent(
        self, level: Sequence[Node | Bundle[Node]], *, in_order: bool
    ) -> tuple[float, float, list[Node]]:
        """(weight of a level, what is spent on it and on the levels made below it, its heaviest items)."""
        if not self._constraints.listening_weight:
            return 0.0, 0.0, []
        rows: list[tuple[float, float]] = []
        below, named = 0.0, list[Node]()
        for entry in level:
            if isinstance(entry, Node):
                rows.append((self._weights[entry.id], self._seconds(entry)))
                named.append(entry)
                continue
            weight, spent, heaviest = self._spent(entry.members, in_order=in_order)
            rows.append((weight, self._seconds_of_words(heaviest)))
            below += spent
            named += heaviest
        if not in_order:
            rows.sort(key=lambda row: -row[0] / row[1])
        told, spent = 0.0, below
        for weight, seconds in rows:
            told += seconds
            spent += weight * (1.0 + self._constraints.listening_weight * told)
        heaviest = sorted(named, key=lambda n: (-self._weights[n.id], n.id))[:NAMED_MAX]
        return sum(weight for weight, _ in rows), spent, heaviest

    def _seconds_of_words(self, heaviest: list[Node]) -> float:
        """How long a new level takes to tell as a choice."""
        words = [dict(node.prompts).get(self._language, "") for node in heaviest]
        return seconds_of(sentence(_joined(words, self._language), "1", self._language), self._language)

    def _spent_below(self, node: Node) -> float:
        """What is spent inside a scope once its tree is made."""
        total, heavy = 0.0, self._constraints.listening_weight
        for each in node.walk() if heavy else ():
            told = 0.0
            for child in each.children:
                told += self._seconds(child)
                total += self._weights[child.id] * (1.0 + heavy * told)
        return total


def keyed(members: Iterable[Node], old: Mapping[str, str], fixed: frozenset[str]) -> tuple[Node, ...]:
    """Members with their keys: those that keep theirs first, then what is free, in the order they are
    told.
    """
    members = list(members)
    kept = {m.id: m.digit for m in members if m.id in fixed}
    taken = set(kept.values())
    for member in members:
        digit = old.get(member.id, "")
        if member.id not in kept and digit and digit not in taken:
            kept[member.id] = digit
            taken.add(digit)
    free = (key for key in _KEYS if key not in taken)
    return tuple(m if m.id in fixed else replace(m, digit=kept.get(m.id) or next(free)) for m in members)


def _leaf_key(node: Node) -> Any:
    return frozenset(leaf.id for leaf in node.leaves())


def _members(bundle: Bundle[Node]) -> Iterator[Node]:
    for member in bundle.members:
        if isinstance(member, Bundle):
            yield from _members(member)
        else:
            yield member


def _joined(words: list[str], language: str) -> str:
    """Words for a level of several things, short enough to be told among others."""
    chinese = primary(language) == "zh"
    longest = NAME_CHARACTERS_MAX_CJK if chinese else NAME_CHARACTERS_MAX
    told = [word if len(word) <= longest else word[:longest].rsplit(" ", 1)[0] + "…" for word in words]
    return ("、".join(told) + "等") if chinese else ", ".join(told) + " and more"
