"""What a menu is refused for, and where the refusal points."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.routing.routing_menus import hotline, node, survey

from callmesh.routing.v1 import menus_pb2 as pb
from chassis.errors import InvalidArgument
from routing.menus import check, convert
from routing.menus.model import DEPTH_MAX, Act, Index


def chain(levels: int) -> pb.MenuNode:
    """Choices one below another; the last is a leaf."""
    below = node(f"n{levels}", "1", queue="queues/service")
    for level in range(levels - 1, 0, -1):
        below = node(f"n{level}", "1", below)
    return node("n0", "", below)


def ring() -> pb.Menu:
    """The root leads to a, a to b, b to a."""
    sections = [node("a", "", node("a1", "1", link="b")), node("b", "", node("b1", "1", link="a"))]
    return pb.Menu(root=node("r", "", node("go", "1", link="a")), sections=sections)


def to_itself() -> pb.Menu:
    return pb.Menu(
        root=node("r", "", node("go", "1", link="a")), sections=[node("a", "", node("a1", "1", link="a"))]
    )


def deep_by_links() -> pb.Menu:
    half = DEPTH_MAX // 2 + 1
    first, second = chain(half), chain(half)
    stack = [second]
    while stack:
        below = stack.pop()
        below.id = f"s-{below.id}"
        stack.extend(below.children)
    leaf = first
    while leaf.children:
        leaf = leaf.children[0]
    leaf.link = "s-n0"
    return pb.Menu(root=first, sections=[second])


def changed(change: Callable[[pb.Menu], object]) -> pb.Menu:
    menu = hotline()
    change(menu)
    return menu


def put(message: pb.MenuNode, **fields: object) -> None:
    message.MergeFrom(pb.MenuNode(**fields))  # type: ignore[arg-type]


REFUSED: dict[str, tuple[pb.Menu, str, str]] = {
    "cycle": (ring(), "menu.root", "a -> b -> a"),
    "cycle of one": (to_itself(), "menu.root", "a -> a"),
    "too deep": (
        pb.Menu(root=chain(DEPTH_MAX + 1)),
        "menu.root" + ".children[0]" * (DEPTH_MAX + 1),
        "levels deep",
    ),
    "too deep by links": (deep_by_links(), "menu.sections[0]" + ".children[0]" * 4, "links included"),
    "far too deep": (pb.Menu(root=chain(40)), "menu.root" + ".children[0]" * 33, "levels deep"),
    "unreachable": (
        changed(lambda m: m.sections.append(node("island", "", node("i1", "1", queue="queues/q")))),
        "menu.sections[1]",
        "'island' cannot be reached",
    ),
    "unreachable ring": (
        changed(lambda m: m.sections.append(node("island", "", node("i1", "1", link="island")))),
        "menu.sections[1]",
        "island -> island",
    ),
    "key taken": (
        changed(lambda m: put(m.root.children[1], digit="1")),
        "menu.root.children[1].digit",
        "'1' is taken by 'bills'",
    ),
    "no key": (
        changed(lambda m: m.root.children[0].ClearField("digit")),
        "menu.root.children[0].digit",
        "one of",
    ),
    "strange key": (
        changed(lambda m: put(m.root.children[0], digit="12")),
        "menu.root.children[0].digit",
        "one of",
    ),
    "id twice": (
        changed(lambda m: put(m.root.children[3], id="balance")),
        "menu.root.children[3].id",
        "first at menu.root.children[0].children[0]",
    ),
    "ten choices": (
        pb.Menu(root=node("r", "", *(node(f"n{k}", k, queue="queues/q") for k in "0123456789"))),
        "menu.root.children",
        "at most 9",
    ),
    "dead end": (
        changed(lambda m: m.root.children[3].ClearField("ticket_kind")),
        "menu.root.children[3]",
        "'request' is a dead end",
    ),
    "no choices": (pb.Menu(root=node("r", "")), "menu.root.children", "dead end"),
    "link to nowhere": (
        changed(lambda m: put(m.root.children[3], link="moon")),
        "menu.root.children[3].link",
        "no section 'moon'",
    ),
    "link to the root": (
        changed(lambda m: put(m.root.children[3], link="welcome")),
        "menu.root.children[3].link",
        "no section",
    ),
    "choices and an action": (
        changed(lambda m: put(m.root.children[0], queue="queues/q")),
        "menu.root.children[0].queue",
        "where there are choices",
    ),
    "too long": (
        changed(lambda m: m.root.children[0].prompts.update({"zh": "账" * 201})),
        "menu.root.children[0].prompts[zh]",
        "at most 200",
    ),
    "takes too long": (
        changed(lambda m: [each.prompts.update({"zh": "账" * 150}) for each in m.root.children]),
        "menu.root.children",
        "s to tell",
    ),
    "a language missing": (
        changed(lambda m: m.root.children[0].prompts.pop("zh")),
        "menu.root.children[0].prompts",
        "'zh'",
    ),
    "no words": (changed(lambda m: m.root.ClearField("prompts")), "menu.root.prompts", "at least one"),
    "control characters": (
        changed(lambda m: m.root.children[0].prompts.update({"zh": "a\x07"})),
        "menu.root.children[0].prompts[zh]",
        "control",
    ),
    "no language": (
        changed(lambda m: m.root.children[0].prompts.update({"not a language": "a"})),
        "menu.root.children[0].prompts key",
        "BCP 47",
    ),
    "a queue's name": (
        changed(lambda m: put(m.root.children[3], queue="q")),
        "menu.root.children[3].queue",
        "form",
    ),
    "an empty answer": (
        changed(lambda m: put(m.root.children[3], answer=" ")),
        "menu.root.children[3].answer",
        "not be empty",
    ),
    "an answer in one language alone": (
        changed(lambda m: put(m.root.children[3], answer="", answers={"zh": "好"})),
        "menu.root.children[3].answers",
        "'en'",
    ),
    "an answer nobody listens to": (
        changed(lambda m: put(m.root.children[3], answer="a" * 1_001, answers={"zh": "好", "en": "good"})),
        "menu.root.children[3].answer",
        "at most 1000",
    ),
    "a question of no survey": (
        changed(lambda m: put(m.root.children[0], question="q")),
        "menu.root.children[0].question",
        "surveys alone",
    ),
    "a kind that is none": (hotline(kind=9), "menu.kind", "not one that this release"),
    "a promotion twice": (
        changed(lambda m: m.promotions.extend([pb.Promotion(id="p", prompts={"zh": "新"})] * 2)),
        "menu.promotions[1].id",
        "twice",
    ),
    "a prompt of no time": (
        changed(lambda m: m.root.children[0].prompt_duration.FromSeconds(-1)),
        "menu.root.children[0].prompt_duration",
        "more than 0",
    ),
    "an endless promotion": (
        changed(lambda m: m.promotions.add(id="p", prompts={"zh": "新"}).duration.FromSeconds(300)),
        "menu.promotions[0].duration",
        "at most 120",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_menu_with_a_fault_is_refused_naming_its_place(name: str) -> None:
    menu, place, why = REFUSED[name]
    with pytest.raises(InvalidArgument) as caught:
        convert.checked_menu("hotline", menu)
    first = caught.value.details.field_violations[0]
    assert (first.field, why in first.description) == (place, True), first


@pytest.mark.parametrize("menu", [hotline(), survey()])
def test_what_is_stored_is_what_was_loaded(menu: pb.Menu) -> None:
    checked = convert.checked_menu("hotline", menu)
    shown = convert.show_menu(checked)
    assert convert.read_menu("hotline", pb.Menu.FromString(shown.SerializeToString())) == checked
    shown.name = ""
    expected = pb.Menu.FromString(menu.SerializeToString())
    expected.kind = expected.kind or pb.MENU_KIND_SERVICE
    assert shown == expected


def test_an_index_finds_the_way_to_a_node() -> None:
    index = Index.of(convert.checked_menu("hotline", hotline()))
    assert index.way("pay") == ("welcome", "bills", "pay") and index.levels("expert") == 3
    assert index.way("expert") == ("welcome", "internet", "slow", "diagnosis", "expert")
    assert index.nodes["slow"].act is Act.LINK


def test_a_level_of_a_menu_takes_as_long_as_its_sentences() -> None:
    root = convert.checked_menu("hotline", hotline()).root
    sentences = ["账单请按1。", "internet请按2。", "visit请按3。", "request请按4。"]
    assert check.level_seconds(root, "zh") == pytest.approx(sum(map(len, sentences)) / 4.5)
