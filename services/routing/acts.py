"""Acts on a shard with their record: nothing is done by hand that the journal does not say first.

The record is committed before the act. When the act comes to nothing, a second record with `result` says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog

from chassis.callcontext import current_identity
from chassis.errors import CallmeshError
from routing.audit import Act
from routing.convert import text
from routing.front import Front
from routing.model import RecordAct

#: Longest reason of an act, characters.
REASON_CHARACTERS_MAX = 500

log = structlog.get_logger(__name__)


def checked_reason(value: str) -> str:
    """The reason that a request gives for an act. Raises InvalidArgument(reason)."""
    return text("reason", value, REASON_CHARACTERS_MAX)


@asynccontextmanager
async def acting(
    front: Front,
    shard: str,
    act: Act,
    resource: str,
    *,
    reason: str = "",
    details: Mapping[str, str] | None = None,
) -> AsyncIterator[None]:
    """Records an act of the request's identity, then lets it be done. Raises what recording raises: then it
    is not to be done.
    """
    actor = current_identity().subject
    said = dict(details or {})

    def record(**more: str) -> RecordAct:
        facts = tuple(sorted({**said, **more}.items()))
        return RecordAct(actor=actor, act=act.value, subject=resource, reason=reason, details=facts)

    await front.shards.ask(shard, record())
    try:
        yield
    except CallmeshError as error:
        try:
            await front.shards.ask(shard, record(result=error.reason))
        except CallmeshError as unrecorded:
            log.warning("result_not_recorded", act=act.value, resource=resource, error=unrecorded.reason)
        raise
