"""Creating calls that may be repeated (AIP-155).

A create handler asks `request_key` for the key of its `request_id` and `content_fingerprint` for the digest
of what was asked, and stores both on the aggregate it creates (`chassis.mongo.create_once` does that and
answers a repeat with the first result).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from google.protobuf.message import Message

from chassis.callcontext import Identity
from chassis.errors import InvalidArgument
from chassis.ids import stable_id

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NIL = "00000000-0000-0000-0000-000000000000"


class RequestIdReused(InvalidArgument):
    """{field}: {why}."""

    reason = "REQUEST_ID_REUSED"


def request_key(identity: Identity | str, method: str, request_id: str) -> str | None:
    """The key to store for a create call, 26 characters; None when the caller gave no `request_id`.

    Bound to the caller and the method, so that two partners may use the same id. InvalidArgument(request_id)
    unless it is a UUID in its text form and not the nil UUID.
    """
    if not request_id:
        return None
    if not _UUID.fullmatch(request_id) or request_id == _NIL:
        raise InvalidArgument(
            field="request_id", why="must be a UUID such as 6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a11"
        )
    subject = identity if isinstance(identity, str) else identity.subject
    return stable_id("request", subject, method, request_id.lower())


def content_fingerprint(message: Message, ignoring: Collection[str] = ("request_id",)) -> str:
    """A digest of a request's content without the fields in `ignoring`; 32 hexadecimal characters."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in ignoring:
        if name in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(name)
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()[:32]


def check_repeat(stored_fingerprint: str | None, fingerprint: str | None) -> None:
    """RequestIdReused (INVALID_ARGUMENT on request_id) when the same request_id came with other content
    before.
    """
    if stored_fingerprint and fingerprint and stored_fingerprint != fingerprint:
        raise RequestIdReused(field="request_id", why="was used before for a request with other content")
