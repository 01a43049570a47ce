"""Whose words lie in a ticket. Pure.

A merge or a split may bring what one customer said into a ticket of another. What is brought says whose it
is, and the ticket whose words it holds, so that an erasure finds and takes them wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from tickets.model import Attachment, CallLink, Comment, Ticket

Part = TypeVar("Part", Attachment, CallLink, Comment)


def first_customer(ticket: Ticket) -> str:
    """Whose the ticket is, whoever was merged into whom since."""
    return (*ticket.merged_from, ticket.draft.customer_id)[0]


def owner_of(ticket: Ticket) -> str:
    """Whose words a ticket holds: its first customer's, else those of whoever has its number; empty: nobody
    knows."""
    return first_customer(ticket) or ticket.draft.caller_number


def brought(parts: Iterable[Part], source: Ticket, target: Ticket) -> tuple[Part, ...]:
    """Parts of one ticket as they lie in another."""
    here, there = owner_of(source), owner_of(target)
    owned = ((part, part.owner or here) for part in parts)
    return tuple(replace(part, owner="" if owner == there else owner) for part, owner in owned)


def guests_with(ticket: Ticket, parts: Iterable[Attachment | CallLink | Comment]) -> tuple[str, ...]:
    """Whose words besides its own a ticket holds once it has what was `brought`."""
    return tuple(dict.fromkeys((*ticket.guests, *(part.owner for part in parts if part.owner))))


def without_guest(ticket: Ticket, guest: str) -> Ticket:
    """The ticket without what a guest said."""
    return replace(
        ticket,
        guests=tuple(other for other in ticket.guests if other != guest),
        calls=tuple(
            replace(c, notes="", reason="", owner="") if c.owner == guest else c for c in ticket.calls
        ),
        comments=tuple(replace(c, body="", owner="") if c.owner == guest else c for c in ticket.comments),
        attachments=tuple(file for file in ticket.attachments if file.owner != guest),
    )
