"""What a menu is: frozen values, their bounds, and how long words take to say. No behaviour beside looking
things up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Keys that can choose something at one level, and the choices a level may have.
KEYS = frozenset("0123456789*#")
CHOICES_MAX = 9
#: Levels on any way through a menu, links included.
DEPTH_MAX = 8
#: Nodes of a menu, sections included; sections; versions that are kept of one menu.
NODES_MAX = 20_000
SECTIONS_MAX = 200
VERSIONS_MAX = 1_000
#: Characters of a node's prompt, of an answer or farewell, and languages of a menu.
PROMPT_CHARACTERS_MAX = 200
ANSWER_CHARACTERS_MAX = 1_000
LANGUAGES_MAX = 10
#: What one level may take to say, seconds: nobody listens longer.
LEVEL_SECONDS_MAX = 90.0
PROMOTIONS_MAX = 50
PROMOTION_SECONDS_MAX = 120.0

#: How fast prompts are spoken, characters a second: written Chinese, Japanese and Korean, and everything
#: else. Announcers say about 4.5 syllables, or 150 words of 6 letters with their space, in that time.
CJK_CHARACTERS_PER_SECOND = 4.5
OTHER_CHARACTERS_PER_SECOND = 15.0
_CJK = frozenset({"zh", "ja", "ko"})

Texts = tuple[tuple[str, str], ...]


class Act(enum.StrEnum):
    """What a leaf does."""

    NONE = "NONE"
    QUEUE = "QUEUE"
    ANSWER = "ANSWER"
    TICKET = "TICKET"
    OFFER = "OFFER"
    TRANSFER = "TRANSFER"
    #: Goes on in a section.
    LINK = "LINK"
    #: Calls back at a time that the caller chooses.
    CALLBACK = "CALLBACK"


class Kind(enum.StrEnum):
    """What a menu is for."""

    SERVICE = "SERVICE"
    SURVEY = "SURVEY"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node of a tree, with everything below it."""

    #: Unique in the menu.
    id: str
    #: Key that leads here from its parent; "" at the top of a tree.
    digit: str = ""
    #: (BCP 47 language, words), sorted.
    prompts: Texts = ()
    #: In the order they are told.
    children: tuple[Node, ...] = ()
    act: Act = Act.NONE
    #: What the act needs: a queue's, offer's or section's id, a kind of ticket, an address, a text.
    target: str = ""
    #: An answer's texts by language, beside `target`.
    answers: Texts = ()
    #: Never moved by a rebuild.
    pinned: bool = False
    #: Members keep their order, or stay together, in a rebuild.
    ordered: bool = False
    group: bool = False
    #: Time its prompt takes as a choice; 0: reckoned.
    prompt_span_ms: int = 0
    #: In a survey: the question that the choices answer; what being chosen means, 1 to 5.
    question: str = ""
    score: int = 0
    #: Where callers with an open ticket want to go.
    about_open_ticket: bool = False

    @property
    def leaf(self) -> bool:
        """Whether nothing is chosen below it."""
        return not self.children

    def walk(self) -> Iterator[Node]:
        """Itself and everything below, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def leaves(self) -> Iterator[Node]:
        """The leaves below, in the order they are told."""
        return (node for node in self.walk() if node.leaf)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """Something told to callers who wait."""

    id: str
    #: "offers/{offer}"; "" for mere news.
    offer: str = ""
    prompts: Texts = ()
    #: 0: reckoned from the words.
    span_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Menu:
    """One version of a menu."""

    id: str
    root: Node
    version: int = 0
    sections: tuple[Node, ...] = ()
    #: Queue id for callers who press 0 or find no way; "": the session ends.
    fallback_queue: str = ""
    farewells: Texts = ()
    promotions: tuple[Promotion, ...] = ()
    kind: Kind = Kind.SERVICE
    #: Why there is this version.
    note: str = ""

    def tops(self) -> tuple[Node, ...]:
        """The root and the sections."""
        return (self.root, *self.sections)


@dataclass(frozen=True, slots=True)
class Index:
    """A menu with its nodes by id."""

    menu: Menu
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Parent by id; tops have none.
    parents: dict[str, str] = field(default_factory=dict)
    #: Leaves about open tickets.
    about_tickets: list[str] = field(default_factory=list)
    #: A leaf that links to it, by section: one that is told early.
    links: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, menu: Menu) -> Index:
        """The index of a checked menu."""
        index = cls(menu)
        for top in menu.tops():
            for node in top.walk():
                index.nodes[node.id] = node
                if node.about_open_ticket and node.leaf:
                    index.about_tickets.append(node.id)
                for child in node.children:
                    index.parents[child.id] = node.id
        # From the root outward, so that a section's link is itself reached without passing the section.
        reached = [menu.root.id]
        for id in reached:
            for leaf in index.nodes[id].leaves():
                if leaf.act is Act.LINK and leaf.target not in index.links:
                    index.links[leaf.target] = leaf.id
                    reached.append(leaf.target)
        return index

    def way(self, id: str) -> tuple[str, ...]:
        """Ids from the root down to a node, over links."""
        way = [id]
        while (above := self.parents.get(way[-1]) or self.links.get(way[-1])) is not None:
            way.append(above)
        return tuple(reversed(way))

    def levels(self, id: str) -> int:
        """Keys that the way to a node takes."""
        return sum(1 for node in self.way(id) if node in self.parents)


def primary(language: str) -> str:
    """The primary subtag of a language, lower-case."""
    return language.partition("-")[0].casefold()


def seconds_of(text: str, language: str) -> float:
    """How long a text takes to say."""
    rate = CJK_CHARACTERS_PER_SECOND if primary(language) in _CJK else OTHER_CHARACTERS_PER_SECOND
    return len(text) / rate


def sentence(words: str, digit: str, language: str) -> str:
    """A choice as it is told."""
    match primary(language):
        case "zh":
            return f"{words}请按{spoken_key(digit, language)}。"
        case "en":
            return f"For {words}, press {spoken_key(digit, language)}."
        case _:
            return f"{words}: {digit}."


def spoken_key(digit: str, language: str) -> str:
    """A key as it is told."""
    names = {"zh": {"*": "星号键", "#": "井号键"}, "en": {"*": "star", "#": "hash"}}
    return names.get(primary(language), {}).get(digit, digit)
