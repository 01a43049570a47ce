"""Proto <-> model. What clients say is checked here as far as form goes; what a menu must be as a whole,
check.py says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from callmesh.routing.v1 import menus_pb2 as pb
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name, resource_name
from routing.convert import duration, moment_ms, span_ms, timestamp
from routing.menus import check, engine
from routing.menus.model import Act, Index, Kind, Menu, Node, Promotion, Texts

#: Bytes of a menu, and levels of its tree that are looked at before anything else.
MENU_BYTES_MAX = 4 << 20
LEVELS_LOOKED_AT_MAX = 32
_MENU_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")
_TICKET_KIND = re.compile(r"[a-z_]{1,32}")
_SPAN_MS_MAX = 600_000
_ACTS = {name: act for act, name in check.FIELDS.items()}
#: Collections of which an action names a member.
_COLLECTIONS = {Act.QUEUE: "queues", Act.OFFER: "offers", Act.CALLBACK: "queues"}
INPUTS: dict[int, engine.Input] = {
    pb.MENU_INPUT_UNSPECIFIED: engine.Input.KEY,
    pb.MENU_INPUT_KEY: engine.Input.KEY,
    pb.MENU_INPUT_TIMEOUT: engine.Input.TIMEOUT,
    pb.MENU_INPUT_HANG_UP: engine.Input.HANG_UP,
}
_NOTICES: dict[engine.Notice, Any] = {
    notice: getattr(pb, f"MENU_NOTICE_{notice.value}") for notice in engine.Notice if notice.value
}


def menu_id(field: str, value: str) -> str:
    """An id that a client chose for a menu."""
    if not _MENU_ID.fullmatch(check_id(field, value, 63)):
        raise InvalidArgument(field=field, why="must be 1 to 63 characters of a-z, 0-9 and inner -")
    return value


def named(field: str, name: str) -> tuple[str, int]:
    """Id and version in `menus/{menu}` or `menus/{menu}@{version}`; version 0 for none."""
    plain, at, version = name[:200].partition("@")
    id = menu_id(field, parse_name(field, "menus", plain))
    if at and not (version.isascii() and version.isdigit() and 0 < int(version) < 10**9):
        raise InvalidArgument(field=field, why="must have a version of 1 or more behind the @")
    return id, int(version) if at else 0


def language(field: str, value: str) -> str:
    """A BCP 47 language, or ""."""
    if value and not _LANGUAGE.fullmatch(value):
        raise InvalidArgument(field=field, why="must be a BCP 47 language such as zh-CN")
    return value


def _texts(field: str, said: Mapping[str, str]) -> Texts:
    if len(said) > 20:
        raise InvalidArgument(field=field, why="must have at most 20 languages")
    return tuple(
        sorted((language(f"{field} key", key) or _no_language(field), text) for key, text in said.items())
    )


def _no_language(field: str) -> str:
    raise InvalidArgument(field=f"{field} key", why="must not be empty")


def _span_ms(place: str, message: Any, name: str) -> int:
    if not message.HasField(name):
        return 0
    return span_ms(f"{place}.{name}", getattr(message, name), maximum_ms=_SPAN_MS_MAX)


def _target(place: str, message: pb.MenuNode) -> tuple[Act, str]:
    name = message.WhichOneof("action")
    if name is None:
        return Act.NONE, ""
    act = _ACTS[name]
    value: str = getattr(message, name)
    field = f"{place}.{name}"
    if act in _COLLECTIONS:
        return act, parse_name(field, _COLLECTIONS[act], value)
    if act is Act.ANSWER:
        wrong = "" if message.answers else check.text_problem(value, check.ANSWER_CHARACTERS_MAX)
    elif act is Act.TICKET:
        wrong = "" if _TICKET_KIND.fullmatch(value) else "must be a kind of ticket such as complaint"
    elif act is Act.LINK:
        wrong = ""
        check_id(field, value)
    else:
        wrong = check.text_problem(value, 255)
    if wrong:
        raise InvalidArgument(field=field, why=wrong)
    return act, value


def _node(place: str, message: pb.MenuNode, level: int) -> Node:
    if level > LEVELS_LOOKED_AT_MAX:
        raise InvalidArgument(field=place, why=f"is more than {check.DEPTH_MAX} levels deep")
    act, target = _target(place, message)
    return Node(
        id=check_id(f"{place}.id", message.id),
        digit=message.digit,
        prompts=_texts(f"{place}.prompts", message.prompts),
        children=tuple(_node(f"{place}.children[{i}]", c, level + 1) for i, c in enumerate(message.children)),
        act=act,
        target=target,
        answers=_texts(f"{place}.answers", message.answers),
        pinned=message.pinned,
        ordered=message.ordered,
        group=message.group,
        prompt_span_ms=_span_ms(place, message, "prompt_duration"),
        question=check_id(f"{place}.question", message.question) if message.question else "",
        score=message.score,
        about_open_ticket=message.about_open_ticket,
    )


def _promotion(place: str, message: pb.Promotion) -> Promotion:
    return Promotion(
        id=check_id(f"{place}.id", message.id),
        offer=resource_name("offers", parse_name(f"{place}.offer", "offers", message.offer))
        if message.offer
        else "",
        prompts=_texts(f"{place}.prompts", message.prompts),
        span_ms=_span_ms(place, message, "duration"),
    )


def read_menu(id: str, message: pb.Menu, version: int = 0) -> Menu:
    """A menu that a client sent, or that is stored. Raises InvalidArgument for what cannot be read; what it
    must be as a whole is not looked at here.
    """
    if message.ByteSize() > MENU_BYTES_MAX:
        raise InvalidArgument(field="menu", why=f"must have at most {MENU_BYTES_MAX} bytes")
    if message.kind not in pb.MenuKind.values():
        raise InvalidArgument(field="menu.kind", why="is not one that this release knows")
    fallback = message.fallback_queue
    note_problem = check.text_problem(message.note, 500) if message.note else ""
    if note_problem:
        raise InvalidArgument(field="menu.note", why=note_problem)
    return Menu(
        id=id,
        version=version,
        root=_node("menu.root", message.root, 0),
        sections=tuple(_node(f"menu.sections[{i}]", s, 0) for i, s in enumerate(message.sections)),
        fallback_queue=parse_name("menu.fallback_queue", "queues", fallback) if fallback else "",
        farewells=_texts("menu.farewells", message.farewells),
        promotions=tuple(_promotion(f"menu.promotions[{i}]", p) for i, p in enumerate(message.promotions)),
        kind=Kind.SURVEY if message.kind == pb.MENU_KIND_SURVEY else Kind.SERVICE,
        note=message.note,
    )


def checked_menu(id: str, message: pb.Menu) -> Menu:
    """A menu that may run. Raises InvalidArgument naming each place at fault."""
    menu = read_menu(id, message)
    found = check.problems(menu)
    if found:
        raise InvalidArgument.many(found)
    return menu


def queues_of(menu: Menu) -> dict[str, str]:
    """Queues that a menu leads to, each with the first place that names it."""
    found = {menu.fallback_queue: "menu.fallback_queue"} if menu.fallback_queue else {}
    for place, node in check.placed(menu):
        if node.act in (Act.QUEUE, Act.CALLBACK):
            found.setdefault(node.target, f"{place}.{check.FIELDS[node.act]}")
    return found


def show_node(node: Node, *, below: bool = True) -> pb.MenuNode:
    """A node, with what is below it if wanted."""
    message = pb.MenuNode(
        id=node.id,
        digit=node.digit,
        prompts=dict(node.prompts),
        answers=dict(node.answers),
        pinned=node.pinned,
        ordered=node.ordered,
        group=node.group,
        question=node.question,
        score=node.score,
        about_open_ticket=node.about_open_ticket,
        children=[show_node(child) for child in node.children] if below else (),
    )
    if node.prompt_span_ms:
        message.prompt_duration.CopyFrom(duration(node.prompt_span_ms))
    if node.act is not Act.NONE:
        collection = _COLLECTIONS.get(node.act)
        target = resource_name(collection, node.target) if collection else node.target
        setattr(message, check.FIELDS[node.act], target)
    return message


def show_menu(menu: Menu) -> pb.Menu:
    """A version's content."""
    message = pb.Menu(
        name=resource_name("menus", menu.id),
        version=menu.version,
        root=show_node(menu.root),
        sections=[show_node(section) for section in menu.sections],
        fallback_queue=resource_name("queues", menu.fallback_queue) if menu.fallback_queue else "",
        farewells=dict(menu.farewells),
        kind=pb.MENU_KIND_SURVEY if menu.kind is Kind.SURVEY else pb.MENU_KIND_SERVICE,
        note=menu.note,
    )
    for promotion in menu.promotions:
        shown = message.promotions.add(
            id=promotion.id, offer=promotion.offer, prompts=dict(promotion.prompts)
        )
        if promotion.span_ms:
            shown.duration.CopyFrom(duration(promotion.span_ms))
    return message


def interval_ms(field: str, message: Any, now_ms: int, default_span_ms: int) -> tuple[int, int]:
    """Beginning and end of a request's span; the last `default_span_ms` when it has none. Raises
    InvalidArgument.
    """
    span = message.interval
    end = moment_ms(f"{field}.end_time", span.end_time) if span.HasField("end_time") else now_ms
    given = span.HasField("start_time")
    start = moment_ms(f"{field}.start_time", span.start_time) if given else end - default_span_ms
    if start >= end:
        raise InvalidArgument(field=field, why="must end after it starts")
    return start, end


def show_step(
    index: Index,
    came: engine.Step,
    told: Iterable[engine.Choice],
    prompt: str,
    farewell: str,
    token: str,
    expire_ms: int,
) -> pb.StepMenuResponse:
    """A step's answer, but for a call-back."""
    state = came.state
    over = state.outcome is not engine.Outcome.OPEN
    answer = pb.StepMenuResponse(
        session=token,
        prompt=prompt,
        done=over,
        step=state.step,
        notice=_NOTICES.get(came.notice, 0),
        expire_time=timestamp(expire_ms),
        farewell=farewell if over else "",
        version=state.version,
    )
    node = index.nodes[state.node]
    if state.outcome is engine.Outcome.FALLBACK:
        answer.node.id = node.id
        if index.menu.fallback_queue:
            answer.node.queue = resource_name("queues", index.menu.fallback_queue)
        return answer
    answer.node.CopyFrom(_brief(node))
    for choice in told if not over else ():
        answer.choices.add(
            digit=choice.digit, node=choice.node, prompt=choice.prompt, personal=choice.personal
        )
    return answer


_briefs: dict[int, tuple[Node, pb.MenuNode]] = {}
#: Nodes whose message is kept.
BRIEFS_MAX = 50_000


def _brief(node: Node) -> pb.MenuNode:
    """A node without what is below it; made once."""
    known = _briefs.get(id(node))
    # The node is kept beside its message: an id is another's once its owner is gone.
    if known is not None and known[0] is node:
        return known[1]
    if len(_briefs) >= BRIEFS_MAX:
        _briefs.clear()
    made = show_node(node, below=False)
    _briefs[id(node)] = (node, made)
    return made
