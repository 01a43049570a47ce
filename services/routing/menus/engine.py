"""One caller's way through a menu. Pure: the state travels in the session's token, time comes in as a number.

1. A session is on one version of its menu and stays on it.
2. `step` is a function of state, input and time, so a repeat answers the same.
3. A key that a level offers goes there. "*" goes back, "#" at the root opens the caller's own short cuts
   (elsewhere it tells the level again), "0" goes to the fallback queue, unless the level itself offers
   these keys.
4. An own short cut's key also works at the root by itself where the menu leaves it free. The menu's keys
   are never taken away.
5. A personal first level is either told before the root's choices, on keys that the root leaves free, or
   stands before the root with "9" for everything else. Saying nothing there goes on to the root. Own short
   cuts work there as at the root, and keep their keys: what is predicted takes others.
6. Three wrong keys or silences in a row, or `STEPS_MAX` steps, end in the fallback.
7. A call-back leaf asks for a time; a link goes on in its section.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from routing.announcements import announcement
from routing.menus.model import Act, Index, Node, primary, sentence

#: Steps of one session; wrong keys and silences in a row that end it.
STEPS_MAX = 64
TRIES_MAX = 3
#: Longest time that one step counts as listening, milliseconds.
LISTENED_MS_MAX = 600_000
#: Own short cuts in one menu; leaves predicted for a caller.
SHORTCUTS_MAX = 9
PERSONAL_MAX = 3
#: Key for everything else on a personal first level.
OTHERS_KEY = "9"


class Input(enum.StrEnum):
    """What a caller did."""

    KEY = "KEY"
    TIMEOUT = "TIMEOUT"
    HANG_UP = "HANG_UP"


class Level(enum.StrEnum):
    """What is being asked."""

    NODE = "NODE"
    PERSONAL = "PERSONAL"
    OWN = "OWN"
    TIMES = "TIMES"


class Outcome(enum.StrEnum):
    """How a session stands."""

    OPEN = "OPEN"
    DONE = "DONE"
    GAVE_UP = "GAVE_UP"
    FALLBACK = "FALLBACK"


class Notice(enum.StrEnum):
    """What a step's answer is about, beside the place."""

    NONE = ""
    WRONG_KEY = "WRONG_KEY"
    NO_KEY = "NO_KEY"
    FALLBACK = "FALLBACK"
    HUNG_UP = "HUNG_UP"
    SHORTCUT = "SHORTCUT"
    PERSONAL = "PERSONAL"


class Ended(Exception):
    """The session is over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One step: what was heard where, and what the caller did then."""

    #: Node that was heard; "" for a personal, own or time level.
    node: str
    #: Key pressed; "" for a silence, or when the caller hung up.
    key: str
    listened_ms: int
    #: What came of it.
    notice: Notice = Notice.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A key and where it leads."""

    digit: str
    #: "" where the key chooses no node.
    node: str
    prompt: str
    personal: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Personal:
    """A predicted first level."""

    #: Leaves by key, most likely first.
    choices: tuple[tuple[str, str], ...]
    #: Before the root, rather than among its choices.
    before: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A session between two steps."""

    id: str
    menu: str
    version: int
    began_ms: int
    #: When the newest answer was given.
    last_ms: int
    language: str = ""
    #: E.164, or "" when withheld.
    number: str = ""
    customer: str = ""
    call_id: str = ""
    #: Steps taken.
    step: int = 1
    level: Level = Level.NODE
    #: Nodes from the root to the place, levels jumped over left out.
    way: tuple[str, ...] = ()
    visits: tuple[Visit, ...] = ()
    #: Wrong keys and silences in a row.
    tries: int = 0
    outcome: Outcome = Outcome.OPEN
    #: Own short cuts: (key, node).
    own: tuple[tuple[str, str], ...] = ()
    personal: Personal | None = None
    #: Times to choose from, ms; chosen, 0: none, or as soon as possible.
    times: tuple[int, ...] = ()
    chosen_ms: int = 0

    @property
    def node(self) -> str:
        """Where the caller is."""
        return self.way[-1]

    @property
    def presses(self) -> int:
        """Keys pressed so far."""
        return sum(1 for visit in self.visits if visit.key)

    @property
    def listened_ms(self) -> int:
        """Time listened so far."""
        return sum(visit.listened_ms for visit in self.visits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step came to."""

    state: State
    notice: Notice = Notice.NONE


def begin(index: Index, state: State) -> State:
    """The first place: a personal level where there is one, else the root. Short cuts to nodes that this
    version does not have are left out.
    """
    own = own_of(index, state.own)
    personal = state.personal
    if personal is not None and any(node not in index.nodes for _, node in personal.choices):
        personal = None
    level = Level.PERSONAL if personal is not None and personal.before else Level.NODE
    return replace(state, own=own, personal=personal, level=level, way=(index.menu.root.id,))


def own_of(index: Index, own: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those short cuts (key, node) that lead to a node of this version."""
    return tuple((key, node) for key, node in own if node in index.nodes)[:SHORTCUTS_MAX]


def step(index: Index, state: State, did: Input, key: str, now_ms: int, times: tuple[int, ...]) -> Step:
    """One input. `times` are those that a call-back could be at, in case it is asked for. Raises Ended."""
    if state.outcome is not Outcome.OPEN:
        raise Ended
    listened = min(max(0, now_ms - state.last_ms), LISTENED_MS_MAX)
    taken = replace(state, last_ms=max(now_ms, state.last_ms), step=state.step + 1)
    if did is Input.HANG_UP:
        came = Step(state=replace(taken, outcome=Outcome.GAVE_UP), notice=Notice.HUNG_UP)
        key = ""
    elif did is Input.TIMEOUT:
        came, key = _silent(taken), ""
    else:
        came = _pressed(index, taken, key, times)
    heard = state.node if state.level is Level.NODE else ""
    visit = Visit(node=heard, key=key, listened_ms=listened, notice=came.notice)
    after = replace(came.state, visits=(*state.visits, visit))
    if after.step >= STEPS_MAX and after.outcome is Outcome.OPEN:
        return Step(state=replace(after, outcome=Outcome.FALLBACK), notice=Notice.FALLBACK)
    return Step(state=after, notice=came.notice)


def _silent(state: State) -> Step:
    if state.level is Level.PERSONAL:
        return Step(state=replace(state, level=Level.NODE))
    return _again(state, Notice.NO_KEY)


def _again(state: State, notice: Notice) -> Step:
    tries = state.tries + 1
    if tries >= TRIES_MAX:
        return Step(state=replace(state, tries=tries, outcome=Outcome.FALLBACK), notice=Notice.FALLBACK)
    return Step(state=replace(state, tries=tries), notice=notice)


def _pressed(index: Index, state: State, key: str, times: tuple[int, ...]) -> Step:
    offered = {choice.digit: choice for choice in choices(index, state)}
    found = offered.get(key)
    if found is not None:
        return _chosen(index, replace(state, tries=0), found, times)
    at_root = state.level in (Level.NODE, Level.PERSONAL) and len(state.way) == 1
    if key == "*":
        way = _back(index, state.way) if state.level in (Level.NODE, Level.TIMES) else state.way
        return Step(state=replace(state, level=Level.NODE, way=way, tries=0))
    if key == "#":
        level = Level.OWN if at_root and state.own else state.level
        return Step(state=replace(state, level=level, tries=0))
    if key == "0" and index.menu.fallback_queue:
        return Step(state=replace(state, outcome=Outcome.FALLBACK), notice=Notice.FALLBACK)
    own = dict(state.own).get(key) if at_root else None
    if own is not None and not any(child.digit == key for child in index.menu.root.children):
        return _jump(index, state, own, Notice.SHORTCUT, times)
    return _again(state, Notice.WRONG_KEY)


def _back(index: Index, way: tuple[str, ...]) -> tuple[str, ...]:
    """The way to the level before; links are no levels."""
    while len(way) > 1:
        way = way[:-1]
        if index.nodes[way[-1]].children:
            break
    return way


def _chosen(index: Index, state: State, choice: Choice, times: tuple[int, ...]) -> Step:
    match state.level:
        case Level.TIMES:
            at = state.times[int(choice.digit) - 1]
            return Step(state=replace(state, level=Level.NODE, chosen_ms=at, outcome=Outcome.DONE))
        case Level.PERSONAL if not choice.node:
            return Step(state=replace(state, level=Level.NODE))
        case Level.OWN:
            return _jump(index, state, choice.node, Notice.SHORTCUT, times)
    if choice.personal:
        return _jump(index, state, choice.node, Notice.PERSONAL, times)
    return Step(state=_enter(index, state, index.nodes[choice.node], times))


def _jump(index: Index, state: State, node: str, notice: Notice, times: tuple[int, ...]) -> Step:
    there = replace(state, level=Level.NODE, way=state.way[:1], tries=0)
    return Step(state=_enter(index, there, index.nodes[node], times), notice=notice)


def _enter(index: Index, state: State, node: Node, times: tuple[int, ...]) -> State:
    """The state at a node that was chosen."""
    way = (*state.way, node.id)
    while node.act is Act.LINK:
        node = index.nodes[node.target]
        way = (*way, node.id)
    state = replace(state, way=way)
    if node.children:
        return state
    if node.act is Act.CALLBACK and times:
        return replace(state, level=Level.TIMES, times=times)
    return replace(state, outcome=Outcome.DONE)


# --- what is said ---


def choices(index: Index, state: State) -> list[Choice]:
    """What can be pressed now, in the order it is told; prompts of times are worded by `say_time`, in the
    shell's zone.
    """
    match state.level:
        case Level.TIMES:
            return [Choice(digit=str(i + 1), node="", prompt="") for i in range(len(state.times))]
        case Level.OWN:
            return [_choice(index, state, key, node) for key, node in state.own]
        case Level.PERSONAL:
            assert state.personal is not None
            told = [_choice(index, state, key, node, personal=True) for key, node in state.personal.choices]
            return [*told, Choice(digit=OTHERS_KEY, node="", prompt=_others(state.language))]
    node = index.nodes[state.node]
    told = [_choice(index, state, child.digit, child.id) for child in node.children]
    if len(state.way) == 1 and state.personal is not None and not state.personal.before:
        mine = state.personal.choices
        told = [*(_choice(index, state, key, id, personal=True) for key, id in mine), *told]
    return told


def _choice(index: Index, state: State, key: str, id: str, *, personal: bool = False) -> Choice:
    words = announcement(index.nodes[id].prompts, state.language)
    spoken = spoken_language(index, state.language)
    return Choice(digit=key, node=id, prompt=sentence(words, key, spoken), personal=personal)


def worded(choice: Choice, words: str, language: str) -> Choice:
    """A choice with the words of the shell: those of a time."""
    return replace(choice, prompt=sentence(words, choice.digit, language))


def spoken_language(index: Index, wanted: str) -> str:
    """The menu's language that a caller hears."""
    return announcement([(language, language) for language, _ in index.menu.root.prompts], wanted)


def _others(language: str) -> str:
    words = announcement([("en", "everything else"), ("zh", "其他业务")], language or "zh")
    return sentence(words, OTHERS_KEY, announcement([("en", "en"), ("zh", "zh")], language or "zh"))


def prompt(index: Index, state: State, told: list[Choice]) -> str:
    """What is to be said now: a top's own words first, then the choices; at the end an answer's text."""
    if state.outcome is Outcome.DONE:
        return _answer(index.nodes[state.node], state.language)
    if state.outcome is not Outcome.OPEN:
        return ""
    node = index.nodes[state.node]
    begins = node.id not in index.parents and state.level is not Level.OWN
    words = [announcement(node.prompts, state.language)] if begins and state.level is not Level.TIMES else []
    if (
        state.level is Level.NODE
        and state.personal is not None
        and state.personal.before
        and len(state.way) == 1
    ):
        words = []
    return " ".join([*words, *(choice.prompt for choice in told)])


def _answer(node: Node, language: str) -> str:
    """A self-service answer's text; "" for any other leaf."""
    if node.act is not Act.ANSWER:
        return ""
    theirs = [text for text in node.answers if primary(text[0]) == primary(language)]
    return announcement(theirs, language) or node.target or announcement(node.answers, language)


def answers(index: Index, state: State) -> list[tuple[str, str, int]]:
    """Of a survey: (question, node chosen, score) in the order given; a question answered again counts
    once, as the last time.
    """
    found: dict[str, tuple[str, str, int]] = {}
    for before, after in zip(state.way, state.way[1:], strict=False):
        node = index.nodes[before]
        if node.question:
            found[node.question] = (node.question, after, index.nodes[after].score)
    return list(found.values())
