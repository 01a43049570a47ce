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
from routing.model import Refusal


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


class QueueFull(ResourceExhausted):
    """The queue {subject} is full; nothing was taken, try again later."""

    reason = "QUEUE_FULL"


class NoAgentLoggedIn(FailedPrecondition):
    """Nobody who can take calls of {subject} is logged in, and the queue refuses calls then."""

    reason = "NO_AGENT_LOGGED_IN"


class _Announced(FailedPrecondition):
    """Carries its announcement whole: the settings hold it to a length that fits a trailer."""

    def _metadata(self) -> dict[str, str]:
        words = shorten(str(self.values.get("announcement") or ""), ANNOUNCEMENT_CHARACTERS_MAX)
        return {**super()._metadata(), **({"announcement": words} if words else {})}


class QueueClosed(_Announced):
    """The queue {subject} is closed; tell the caller `announcement`.

    Metadata: `announcement` in the caller's language, at most `ANNOUNCEMENT_CHARACTERS_MAX` characters.
    """

    reason = "QUEUE_CLOSED"


class RegionClosed(_Announced):
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


class RouterDraining(Unavailable):
    """This router is being stopped; open the stream again at another one, its place is kept."""

    reason = "ROUTER_DRAINING"


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


def error_of(refusal: Refusal, call_id: str = "", queue: str = "", agent: str = "") -> CallmeshError:
    """The error that a refusal of the engine means to a client."""
    match refusal.reason:
        case "CALL_NOT_FOUND":
            return CallNotFound(resource=f"calls/{call_id}")
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
            return StaleAttempt(
                subject=f"calls/{call_id}", why="a higher attempt is known; raise yours above it"
            )
        case "CALL_NOT_ATTACHED":
            return CallNotAttached(subject=f"calls/{call_id}", why="its edge could be told nothing")
        case "SAME_AGENT":
            return InvalidArgument(field=refusal.field, why="has the call already")
        case "NEWER_SESSION" | "NO_SESSION":
            return NewerSession(subject=f"agents/{agent}", why=f"its {refusal.field} number is higher")
        case "OUT_OF_RANGE" | "TOO_MANY_SKILL_SETS":
            return InvalidArgument(field=refusal.field, why=refusal.reason.lower().replace("_", " "))
        case reason:
            subject = f"calls/{call_id}" if call_id else f"agents/{agent}"
            return IllegalState(subject=subject, why=reason.lower().replace("_", " "))
