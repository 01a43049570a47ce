"""Session tokens: a whole session, signed, so that any router goes on with it and none has to remember it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Any

import msgspec

from chassis.errors import FailedPrecondition
from routing.menus.engine import Level, Notice, Outcome, Personal, State, Visit

#: Longest token read, characters: a session of the most steps, with the longest ids.
TOKEN_CHARACTERS_MAX = 32_768
_VERSION = 1
_SIGNATURE_BYTES = 16
_encoder = msgspec.msgpack.Encoder()
# A token names these by their places: new ones go to the end.
_LEVELS, _OUTCOMES, _NOTICES = list(Level), list(Outcome), list(Notice)


class InvalidMenuSession(FailedPrecondition):
    """The menu session cannot be used: {why}. Begin another."""

    reason = "INVALID_MENU_SESSION"


class MenuSessionEnded(FailedPrecondition):
    """{subject} is over: {why}."""

    reason = "MENU_SESSION_ENDED"


class _Body(msgspec.Struct, array_like=True, frozen=True):
    """What a token holds, in this order for ever; a change of it raises `_VERSION`."""

    version: int
    id: str
    menu: str
    number: int
    began_ms: int
    last_ms: int
    language: str
    caller: str
    customer: str
    call_id: str
    step: int
    level: int
    way: tuple[str, ...]
    visits: tuple[tuple[str, str, int, int], ...]
    tries: int
    outcome: int
    own: tuple[tuple[str, str], ...]
    personal: tuple[tuple[str, str], ...]
    before: bool
    times: tuple[int, ...]
    chosen_ms: int


_decoder = msgspec.msgpack.Decoder(_Body)


class SessionTokens:
    """Makes and reads tokens with one key of the whole platform."""

    def __init__(self, key: bytes, *, life_span_ms: int) -> None:
        """`life_span_ms`: a session is refused so long after its newest step, business time. ValueError for
        a key under 32 bytes.
        """
        if len(key) < 32:
            raise ValueError("the key must have at least 32 bytes")
        # A key of its own: no token of another kind can pass for one of these.
        self._key = hmac.digest(key, b"callmesh.menu-session", "sha256")
        self.life_span_ms = life_span_ms

    def seal(self, body: bytes) -> str:
        """The token of a session's body (`body_of`)."""
        return base64.urlsafe_b64encode(self._sign(body) + body).decode().rstrip("=")

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_SIGNATURE_BYTES]

    def read(self, token: str, now_ms: int) -> State:
        """The session that a token holds. Raises InvalidMenuSession: forged, damaged, too old."""
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise InvalidMenuSession(subject="session", why="it is too long")
        try:
            raw = base64.b64decode(
                token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
            )
        except (UnicodeError, binascii.Error):
            raise InvalidMenuSession(subject="session", why="it is not one of ours") from None
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(body)):
            raise InvalidMenuSession(subject="session", why="its signature is not ours")
        state = state_of(body)
        if now_ms - state.last_ms > self.life_span_ms:
            raise InvalidMenuSession(subject="session", why="it is too old")
        return state


def body_of(state: State) -> bytes:
    """A session's bytes, as a token and a record hold them."""
    personal = state.personal
    return _encoder.encode(
        _Body(
            version=_VERSION,
            id=state.id,
            menu=state.menu,
            number=state.version,
            began_ms=state.began_ms,
            last_ms=state.last_ms,
            language=state.language,
            caller=state.number,
            customer=state.customer,
            call_id=state.call_id,
            step=state.step,
            level=_LEVELS.index(state.level),
            way=state.way,
            visits=tuple((v.node, v.key, v.listened_ms, _NOTICES.index(v.notice)) for v in state.visits),
            tries=state.tries,
            outcome=_OUTCOMES.index(state.outcome),
            own=state.own,
            personal=personal.choices if personal is not None else (),
            before=personal.before if personal is not None else False,
            times=state.times,
            chosen_ms=state.chosen_ms,
        )
    )


def state_of(body: Any) -> State:
    """A session from its signed bytes. Raises InvalidMenuSession for those of another release's form."""
    try:
        read = _decoder.decode(body)
    except msgspec.MsgspecError:
        raise InvalidMenuSession(subject="session", why="another release made it") from None
    if read.version != _VERSION:
        raise InvalidMenuSession(subject="session", why="another release made it")
    return State(
        id=read.id,
        menu=read.menu,
        version=read.number,
        began_ms=read.began_ms,
        last_ms=read.last_ms,
        language=read.language,
        number=read.caller,
        customer=read.customer,
        call_id=read.call_id,
        step=read.step,
        level=_LEVELS[read.level],
        way=read.way,
        visits=tuple(Visit(node=n, key=k, listened_ms=ms, notice=_NOTICES[i]) for n, k, ms, i in read.visits),
        tries=read.tries,
        outcome=_OUTCOMES[read.outcome],
        own=read.own,
        personal=Personal(choices=read.personal, before=read.before) if read.personal else None,
        times=read.times,
        chosen_ms=read.chosen_ms,
    )
