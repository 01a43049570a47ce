"""A small menu for the tests of menus, in the form of the API."""

from __future__ import annotations

from typing import Any

from callmesh.routing.v1 import menus_pb2 as pb
from routing.menus import convert
from routing.menus.model import Index


def node(id: str, digit: str = "", *children: pb.MenuNode, zh: str = "", **fields: Any) -> pb.MenuNode:
    """A node that says its id."""
    return pb.MenuNode(id=id, digit=digit, prompts={"en": id, "zh": zh or id}, children=children, **fields)


def hotline(**fields: Any) -> pb.Menu:
    """Bills (ask, pay), internet (slow with a diagnosis by a shared section, order), an engineer's visit,
    an open request.
    """
    root = node(
        "welcome",
        "",
        node(
            "bills",
            "1",
            node(
                "balance",
                "1",
                zh="余额",
                answer="Your balance is 5 yuan",
                answers={"zh": "余额五元", "en": "5 yuan"},
            ),
            node("pay", "2", offer="offers/autopay"),
            zh="账单",
        ),
        node(
            "internet",
            "2",
            node("slow", "1", link="diagnosis"),
            node("order", "2", queue="queues/sales"),
        ),
        node("visit", "3", callback="queues/service"),
        node("request", "4", ticket_kind="complaint", about_open_ticket=True),
    )
    section = node(
        "diagnosis",
        "",
        node("reset", "1", answer="Switch it off and on again"),
        node("expert", "2", queue="queues/service"),
    )
    base: dict[str, Any] = {
        "root": root,
        "sections": [section],
        "fallback_queue": "queues/service",
        "farewells": {"en": "Goodbye", "zh": "再见"},
    }
    return pb.Menu(**{**base, **fields})


def survey() -> pb.Menu:
    """Two questions after a call: friendliness 1 to 3, solved or not; both lead on to one second question."""
    first = node(
        "how-friendly",
        "",
        node("rude", "1", link="solved", score=1),
        node("fair", "2", link="solved", score=3),
        node("kind", "3", link="solved", score=5),
        question="friendliness",
    )
    second = node(
        "solved",
        "",
        node("yes", "1", answer="Thank you", score=5),
        node("no", "2", answer="We are sorry", score=1),
        question="solved",
    )
    return pb.Menu(root=first, sections=[second], kind=pb.MENU_KIND_SURVEY)


def index(menu: pb.Menu | None = None, version: int = 1) -> Index:
    """An index of a menu."""
    return Index.of(convert.read_menu("hotline", menu if menu is not None else hotline(), version))
