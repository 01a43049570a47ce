"""Routing's own errors, and the table from the engine's refusals to them."""

from __future__ import annotations

from chassis.errors import (
    CallmeshError,
    Code,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    shorten,
)
from routing.announcements import ANNOUNCEMENT_CHARACTERS_MAX
from routing.model import (
    CALLBACK_SPAN_MAX_MS,
    CONTEXT_BYTES_MAX,
    CONTEXT_KEYS_MAX,
    Command,
    EndCall,
    FinishWrapUp,
    MonitorCall,
    Refusal,
    Reprioritize,
    RequestCallback,
    TransferCall,
)


class CallNotFound(NotFound):
    """There is no call {resource}: it never came, or ended too long ago."""

    reason = "CALL_NOT_FOUND"


class QueueNotFound(NotFound):
    """There is no queue {resource}."""

    reason = "QUEUE_NOT_FOUND"


class AgentNotFound(NotFound):
    """There is no agent {resource}."""

    reason = "AGENT_NOT_FOUND"


class RegionNotFound(NotFound):
    """There is no region {resource}."""

    reason = "REGION_NOT_FOUND"


class Announced(CallmeshError):
    """This caller is not taken; tell them `announcement`."""

    def saying(self, words: str) -> Announced:
        """The same, with the words for this caller: a shard that refuses does not know them."""
        return type(self)(**{**self.values, "announcement": words})

    def _metadata(self) -> dict[str, str]:
        # Whole: the settings hold it to a length that fits a trailer.
        words = shorten(str(self.values.get("announcement") or ""), ANNOUNCEMENT_CHARACTERS_MAX)
        return {**super()._metadata(), **({"announcement": words} if words else {})}


class QueueFull(Announced, ResourceExhausted):
    """The queue {subject} is full; nothing was taken, try again later. The caller may be told `announcement`.

    Metadata: `announcement` as in QueueClosed.
    """

    reason = "QUEUE_FULL"


class NoAgentLoggedIn(Announced, FailedPrecondition):
    """Nobody who can take calls of {subject} is logged in, and the queue refuses calls then; tell the caller
    `announcement`.

    Metadata: `announcement` as in QueueClosed.
    """

    reason = "NO_AGENT_LOGGED_IN"


class QueueClosed(Announced, FailedPrecondition):
    """The queue {subject} is closed; tell the caller `announcement`.

    Metadata: `announcement` in the caller's language, at most `ANNOUNCEMENT_CHARACTERS_MAX` characters.
    """

    reason = "QUEUE_CLOSED"


class RegionClosed(Announced, FailedPrecondition):
    """No region takes calls of {subject} at this hour; tell the caller `announcement`.

    Metadata: `announcement` as in QueueClosed; `opens_time`, RFC 3339, when the first region opens.
    """

    reason = "REGION_CLOSED"


class StaleAttempt(FailedPrecondition):
    """{subject} was opened again since: {why}."""

    reason = "STALE_ATTEMPT"


class IllegalState(FailedPrecondition):
    """{subject} is in a state that does not allow this: {why}."""

    reason = "ILLEGAL_STATE"


class CallNotAttached(FailedPrecondition):
    """Nobody holds the stream of {subject}: open it first, {why}."""

    reason = "CALL_NOT_ATTACHED"


class Unconfirmed(Unavailable):
    """{subject} was not confirmed in time, its agent is free; open its stream again, the place is kept."""

    reason = "UNCONFIRMED"


class RouterDraining(Unavailable):
    """This router is being stopped; open the stream again at another one, its place is kept."""

    reason = "ROUTER_DRAINING"
    farewell = True


class DirectoryUnread(Unavailable):
    """This router has just started and has not read the directory yet; ask another one, or again."""

    reason = "DIRECTORY_UNREAD"


class Superseded(CallmeshError):
    """{subject} is held by a newer stream: {why}."""

    code = Code.ABORTED
    reason = "SUPERSEDED"


class NewerSession(CallmeshError):
    """Another desktop has taken over {subject}: {why}."""

    code = Code.ABORTED
    reason = "NEWER_SESSION"


#: Of reasons that are told as IllegalState: what is the case, and what to do about it.
_STATES = {
    "ILLEGAL_STATE": "look at its `state` (GetCall) first",
    "OFFER_ENDED": "this offer has ended; wait for the next one",
    "CALL_ENDED": "the call has ended",
    "CALL_NOT_HELD": "this agent does not have the call",
    "NO_SESSION": "nobody is logged in as this agent",
    "QUEUE_IN_USE": "calls of this queue are not over yet",
}
#: What an act needs of a call that is in no state for it.
_NEEDS: dict[type[Command], str] = {
    EndCall: "only a conversation is ended so; for a caller who waits it is HangUp",
    TransferCall: "only a conversation can be handed on",
    MonitorCall: "only a conversation can be listened to",
    Reprioritize: "only who waits has a place to change; a conversation is handed on with TransferCall",
    RequestCallback: "only a caller who waits can be called back",
    FinishWrapUp: "the conversation has not begun",
}
#: What is wrong with a value that the engine refused.
_RANGES = {
    "attributes": f"would come to more than {CONTEXT_KEYS_MAX} keys or {CONTEXT_BYTES_MAX} bytes"
    " with what the call has",
    "not_before_time": f"must be at most {CALLBACK_SPAN_MAX_MS // 3_600_000} hours from now",
}


def error_of(
    refusal: Refusal, call_id: str = "", queue: str = "", agent: str = "", command: Command | None = None
) -> CallmeshError:
    """The error that a refusal of the engine means to a client; `command` is what was refused, if its kind
    matters.
    """
    call = f"calls/{call_id}"
    match refusal.reason:
        case "CALL_NOT_FOUND":
            return CallNotFound(resource=call)
        case "QUEUE_NOT_FOUND":
            return QueueNotFound(resource=f"queues/{queue}")
        case "AGENT_NOT_FOUND":
            return AgentNotFound(resource=f"agents/{agent}")
        case "QUEUE_FULL":
            return QueueFull(subject=f"queues/{queue}", retry_seconds=5.0)
        case "NO_AGENT_LOGGED_IN":
            return NoAgentLoggedIn(subject=f"queues/{queue}")
        case "QUEUE_CLOSED":
            return QueueClosed(subject=f"queues/{queue}", why="a supervisor closed it", announcement="")
        case "STALE_ATTEMPT" | "STALE_VERSION":
            return StaleAttempt(subject=call, why="a higher attempt is known; raise yours above it")
        case "CALL_NOT_ATTACHED":
            return CallNotAttached(subject=call, why="its edge could be told nothing")
        case "SAME_AGENT":
            return InvalidArgument(field=refusal.field, why="has the call already")
        case "NEWER_SESSION":
            return NewerSession(subject=f"agents/{agent}", why=f"its {refusal.field} number is higher")
        case "TOO_MANY_SKILL_SETS":
            field = "queue" if isinstance(command, TransferCall) else "call.skills"
            return InvalidArgument(field=field, why="makes one set of skills too many; ask for skills in use")
        case "OUT_OF_RANGE":
            return InvalidArgument(field=refusal.field, why=_RANGES.get(refusal.field, "is out of range"))
        case reason:
            why = _STATES.get(reason, reason.lower().replace("_", " "))
            if reason == "ILLEGAL_STATE" and command is not None:
                why = _NEEDS.get(type(command), why)
            return IllegalState(subject=call if call_id else f"agents/{agent}", why=why)
