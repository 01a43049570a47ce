"""How a decider refuses: with a reason and the field that it is about. `routing.errors` has the sentences.

Here is also what several commands refuse alike.
"""

from __future__ import annotations

from routing.model import CONNECTED, Decision, Refusal
from routing.state import CallEntry, ShardState


def refuse(reason: str, field: str = "") -> Decision:
    return Decision(refusal=Refusal(reason=reason, field=field))


def conversation(s: ShardState, call_id: str) -> CallEntry | Decision:
    """A call that is talked on and whose edge holds the line; what to refuse with when there is none."""
    entry = s.calls.get(call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is not CONNECTED:
        return refuse("ILLEGAL_STATE")
    if not entry.attached or entry.callback_number:
        # Of a call-back no edge holds a line.
        return refuse("CALL_NOT_ATTACHED")
    return entry
