"""What a menu must be before it may run. Pure; every problem names its place in the request.

1. At most 9 choices a level, each with a key of its own; every id once in the menu.
2. No dead end: what has no choices does something, what has choices does nothing else, a link leads to a
   section.
3. Everything is reachable: each section is linked to from somewhere that is reachable itself.
4. No cycle: links between trees form no ring. (A caller goes back by the star key, which needs no link.)
5. No way through the menu, links included, has more than `DEPTH_MAX` levels.
6. Every choice and answer has words in every language that the root has, short enough to be listened to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from routing.menus.model import (
    ANSWER_CHARACTERS_MAX,
    CHOICES_MAX,
    DEPTH_MAX,
    KEYS,
    LANGUAGES_MAX,
    LEVEL_SECONDS_MAX,
    NODES_MAX,
    PROMOTION_SECONDS_MAX,
    PROMOTIONS_MAX,
    PROMPT_CHARACTERS_MAX,
    SECTIONS_MAX,
    Act,
    Kind,
    Menu,
    Node,
    Texts,
    primary,
    seconds_of,
    sentence,
)

#: (place in the request, what is wrong).
Problem = tuple[str, str]
#: Problems that are looked for.
PROBLEMS_MAX = 16
#: What a leaf does to the field of its message that says so.
FIELDS = {
    Act.QUEUE: "queue",
    Act.ANSWER: "answer",
    Act.TICKET: "ticket_kind",
    Act.OFFER: "offer",
    Act.TRANSFER: "transfer",
    Act.LINK: "link",
    Act.CALLBACK: "callback",
}


def tops_placed(menu: Menu) -> Iterator[tuple[str, Node]]:
    """The root and the sections, each with its place."""
    yield "menu.root", menu.root
    for i, section in enumerate(menu.sections):
        yield f"menu.sections[{i}]", section


def placed(menu: Menu) -> Iterator[tuple[str, Node]]:
    """Every node with its place, parents first."""
    stack = [*tops_placed(menu)][::-1]
    while stack:
        place, node = stack.pop()
        yield place, node
        below = [(f"{place}.children[{i}]", child) for i, child in enumerate(node.children)]
        stack.extend(reversed(below))


def problems(menu: Menu) -> list[Problem]:
    """What is wrong with a menu, at most `PROBLEMS_MAX`; empty when it may run."""
    found: list[Problem] = []
    for check in (_sizes, _ids, _nodes, _ways, _texts, _extras):
        found += check(menu)
        # What comes later relies on what came before.
        if found:
            break
    return found[:PROBLEMS_MAX]


def _sizes(menu: Menu) -> Iterator[Problem]:
    if len(menu.sections) > SECTIONS_MAX:
        yield "menu.sections", f"must have at most {SECTIONS_MAX} trees"
    count = sum(1 for _ in placed(menu))
    if count > NODES_MAX:
        yield "menu", f"must have at most {NODES_MAX} nodes, got {count}"
    if menu.root.leaf:
        yield "menu.root.children", "must not be empty: the root is a dead end"
    if not menu.root.prompts:
        yield "menu.root.prompts", "must have the languages of the menu, at least one"


def _ids(menu: Menu) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for place, node in placed(menu):
        if node.id in seen:
            yield f"{place}.id", f"{node.id!r} is there twice, first at {seen[node.id]}"
        seen.setdefault(node.id, place)


def _nodes(menu: Menu) -> Iterator[Problem]:
    sections = {section.id for section in menu.sections}
    for place, node in placed(menu):
        if len(node.children) > CHOICES_MAX:
            yield f"{place}.children", f"must have at most {CHOICES_MAX} choices, got {len(node.children)}"
        yield from _keys(place, node)
        if node.children and node.act is not Act.NONE:
            yield f"{place}.{FIELDS[node.act]}", "must not be set where there are choices"
        if node.leaf and node.act is Act.NONE:
            yield place, f"{node.id!r} is a dead end: it has neither choices nor an action"
        if node.act is Act.LINK and node.target not in sections:
            yield f"{place}.link", f"is a dead end: there is no section {node.target!r}"
        if menu.kind is not Kind.SURVEY and (node.question or node.score):
            yield f"{place}.question", "is for surveys alone"
        if not 0 <= node.score <= 5:
            yield f"{place}.score", "must be 1 to 5, or 0 for none"
        if node.question and node.leaf:
            yield f"{place}.question", "needs choices that answer it"


def _keys(place: str, node: Node) -> Iterator[Problem]:
    taken: dict[str, int] = {}
    for i, child in enumerate(node.children):
        at = f"{place}.children[{i}].digit"
        if child.digit not in KEYS:
            yield at, "must be one of 0-9, * and #"
        elif child.digit in taken:
            yield (
                at,
                f"{child.digit!r} is taken by {node.children[taken[child.digit]].id!r} of the same level",
            )
        taken.setdefault(child.digit, i)


def _ways(menu: Menu) -> Iterator[Problem]:
    """Links: no cycle, nothing unreachable, no way too long."""
    links = {top.id: _links(top) for top in menu.tops()}
    for place, top in tops_placed(menu):
        ring = _ring(top.id, links)
        if ring:
            yield place, f"leads into a cycle: {' -> '.join(ring)}"
            return
    begins = _begins(menu.root.id, links)
    for i, section in enumerate(menu.sections):
        if section.id not in begins:
            yield f"menu.sections[{i}]", f"{section.id!r} cannot be reached: no link leads there"
    for place, node, depth in _with_depths(menu, begins):
        if depth > DEPTH_MAX:
            yield place, f"{node.id!r} is {depth} levels deep, links included; {DEPTH_MAX} are the most"
            return


def _links(top: Node) -> dict[str, int]:
    """Sections that a tree leads to, with the greatest depth of a link there."""
    found: dict[str, int] = {}
    stack = [(0, top)]
    while stack:
        depth, node = stack.pop()
        if node.act is Act.LINK:
            found[node.target] = max(depth, found.get(node.target, 0))
        stack.extend((depth + 1, child) for child in node.children)
    return found


def _begins(root: str, links: dict[str, dict[str, int]]) -> dict[str, int]:
    """The greatest depth at which each tree begins that can be reached; there is no ring."""
    begins, level = {root: 0}, {root}
    while level:
        onward: set[str] = set()
        for id in level:
            for target, depth in links[id].items():
                if begins.get(target, -1) < begins[id] + depth:
                    begins[target] = begins[id] + depth
                    onward.add(target)
        level = onward
    return begins


def _with_depths(menu: Menu, begins: dict[str, int]) -> Iterator[tuple[str, Node, int]]:
    """Every node that can be reached, with its place and its greatest depth."""
    by_top = {place: top.id for place, top in tops_placed(menu)}
    for place, node in placed(menu):
        begin = begins.get(by_top[place.split(".children[")[0]])
        if begin is not None:
            yield place, node, begin + place.count(".children[")


def _ring(start: str, links: Mapping[str, Iterable[str]]) -> list[str]:
    """Ids of a ring that can be reached from `start`, the first again at its end; empty when there is
    none.
    """
    done: set[str] = set()
    way: list[str] = [start]
    turns = [iter(links.get(start, ()))]
    while way:
        onward = next(turns[-1], None)
        if onward is None:
            done.add(way.pop())
            turns.pop()
        elif onward in way:
            return [*way[way.index(onward) :], onward]
        elif onward not in done:
            way.append(onward)
            turns.append(iter(links.get(onward, ())))
    return []


def text_problem(text: str, characters_max: int) -> str:
    """What is wrong with words to be said; "" for nothing."""
    if not text.strip():
        return "must not be empty"
    if len(text) > characters_max:
        return f"must be at most {characters_max} characters, got {len(text)}"
    if any(unicodedata.category(c) == "Cc" for c in text):
        return "must not hold control characters"
    return ""


def _said(place: str, texts: Texts, characters_max: int) -> Iterator[Problem]:
    for language, text in texts:
        wrong = text_problem(text, characters_max)
        if wrong:
            yield f"{place}[{language}]", wrong


def _texts(menu: Menu) -> Iterator[Problem]:
    languages = [language for language, _ in menu.root.prompts]
    if len(languages) > LANGUAGES_MAX:
        yield "menu.root.prompts", f"must have at most {LANGUAGES_MAX} languages"
        return
    for place, node in placed(menu):
        yield from _said(f"{place}.prompts", node.prompts, PROMPT_CHARACTERS_MAX)
        missing = [language for language in languages if language not in dict(node.prompts)]
        if missing:
            yield f"{place}.prompts", f"must have words in {missing[0]!r} as the root has"
        if node.act is Act.ANSWER:
            yield from _answers(place, node, languages)
        for language in languages:
            took = level_seconds(node, language)
            if took > LEVEL_SECONDS_MAX:
                why = f"takes {took:.0f} s to tell in {language!r}; {LEVEL_SECONDS_MAX:.0f} s are the most"
                yield f"{place}.children", why


def _answers(place: str, node: Node, languages: list[str]) -> Iterator[Problem]:
    """An answer alone is for all languages that have none of their own."""
    yield from _said(f"{place}.answers", node.answers, ANSWER_CHARACTERS_MAX)
    if node.target:
        wrong = text_problem(node.target, ANSWER_CHARACTERS_MAX)
        if wrong:
            yield f"{place}.answer", wrong
        return
    spoken = {primary(language) for language, _ in node.answers}
    missing = [language for language in languages if primary(language) not in spoken]
    if missing:
        yield f"{place}.answers", f"must have words in {missing[0]!r} as the root has"


def choice_seconds(node: Node, digit: str, language: str) -> float:
    """How long a node takes to tell as a choice."""
    if node.prompt_span_ms:
        return node.prompt_span_ms / 1000
    return seconds_of(sentence(dict(node.prompts).get(language, ""), digit, language), language)


def level_seconds(node: Node, language: str) -> float:
    """How long a node's choices take to tell."""
    return sum(choice_seconds(child, child.digit, language) for child in node.children)


def _extras(menu: Menu) -> Iterator[Problem]:
    yield from _said("menu.farewells", menu.farewells, ANSWER_CHARACTERS_MAX)
    if len(menu.promotions) > PROMOTIONS_MAX:
        yield "menu.promotions", f"must have at most {PROMOTIONS_MAX} entries"
    seen: set[str] = set()
    for i, promotion in enumerate(menu.promotions[:PROMOTIONS_MAX]):
        place = f"menu.promotions[{i}]"
        if promotion.id in seen:
            yield f"{place}.id", f"{promotion.id!r} is there twice"
        seen.add(promotion.id)
        if not promotion.prompts:
            yield f"{place}.prompts", "must not be empty"
        yield from _said(f"{place}.prompts", promotion.prompts, ANSWER_CHARACTERS_MAX)
        if promotion.span_ms > PROMOTION_SECONDS_MAX * 1000:
            yield f"{place}.duration", f"must be at most {PROMOTION_SECONDS_MAX:.0f} s"
