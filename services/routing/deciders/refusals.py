"""How a decider refuses: with a reason and the field that it is about. `routing.errors` has the sentences."""

from __future__ import annotations

from routing.model import Decision, Refusal


def refuse(reason: str, field: str = "") -> Decision:
    return Decision(refusal=Refusal(reason=reason, field=field))
