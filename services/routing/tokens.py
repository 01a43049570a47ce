"""Place tokens: what keeps a caller's place when its stream breaks, signed so that nobody makes one up.

A token is "2." and, in base64 (RFC 4648, URL-safe, without padding), the place in msgpack followed by its
BLAKE2b of 16 bytes under the platform's key (RFC 7693): every answer about a waiting call has one, so it is
made in few steps. Tokens of before were JWTs; they are still read.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode

import jwt
import msgspec

from chassis.errors import FailedPrecondition

#: What a token begins with: the form of the rest. A JWT begins otherwise.
_FORM = "2."
#: Keeps signatures apart from whatever else is made with the same key.
_PURPOSE = b"callmesh.place"
_SIGNATURE_BYTES = 16
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
#: Longest token read.
TOKEN_CHARACTERS_MAX = 2_048


class InvalidPlaceToken(FailedPrecondition):
    """The place token of {subject} cannot be used: {why}. Open the call without it; its place is then new."""

    reason = "INVALID_PLACE_TOKEN"


class Place(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a token says. Durations, never times of day: clocks of regions may differ. The order of the fields
    is that of the token: others may only follow.
    """

    #: The call it was made for.
    call_id: str
    #: Shard that made it.
    shard: str
    #: Attempt and move of the entry.
    attempt: int
    move: int
    #: Business time waited when it was made.
    waited_span_ms: int
    #: Business time when it was made, to bound its age.
    made_ms: int
    #: Priority in force: a supervisor may have changed it. None in tokens of before.
    priority: int | None = None
    #: Waited before a conversation that was handed on: counts for the place.
    credit_span_ms: int = 0
    #: The call was in conversation there.
    talks: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Place)


class PlaceTokens:
    """Makes and reads tokens with one key of the whole platform."""

    def __init__(self, key: bytes, *, life_span_ms: int) -> None:
        """`life_span_ms`: a token older than that (business time) is refused. ValueError for a key under 32
        bytes.
        """
        if len(key) < 32:
            raise ValueError("the place token key must have at least 32 bytes")
        self._key = key
        # A key may be of any length, BLAKE2b's has at most 64 bytes.
        short = hashlib.sha256(key).digest()
        #: The key is mixed in once.
        self._mac = hashlib.blake2b(key=short, person=_PURPOSE, digest_size=_SIGNATURE_BYTES)
        self._life_span_ms = life_span_ms

    def make(self, place: Place) -> str:
        """The token of a place."""
        packed = _encoder.encode(place)
        signed = packed + self._signature(packed)
        return _FORM + binascii.b2a_base64(signed, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()

    def _signature(self, packed: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(packed)
        return mac.digest()

    def read(self, token: str, call_id: str, now_ms: int) -> Place:
        """The place that a token keeps. Raises InvalidPlaceToken: forged, damaged, of another call, too
        old.
        """
        subject = f"calls/{call_id}"
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise InvalidPlaceToken(subject=subject, why="it is too long")
        try:
            known = token.startswith(_FORM)
            place = self._opened(token.removeprefix(_FORM)) if known else self._of_jwt(token)
        except (jwt.InvalidTokenError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
            raise InvalidPlaceToken(subject=subject, why="its signature or content is not ours") from None
        if place.call_id != call_id:
            raise InvalidPlaceToken(subject=subject, why="it was made for another call")
        if now_ms - place.made_ms > self._life_span_ms:
            raise InvalidPlaceToken(subject=subject, why="it is too old")
        return place

    def _opened(self, token: str) -> Place:
        """The place in a token without its beginning. Raises ValueError (also as msgspec's)."""
        if "+" in token or "/" in token:
            # Read as "-" and "_" by the decoder, even by the strict one.
            raise ValueError("a character that no token has")
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        signed = b64decode(padded, altchars=b"-_", validate=True)
        packed, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(packed)):
            raise ValueError("the signature is another's")
        return _decoder.decode(packed)

    def _of_jwt(self, token: str) -> Place:
        """The place in a token of the form before this one. Raises whatever is wrong with it."""
        claims = jwt.decode(token, self._key, algorithms=["HS256"], audience="callmesh.place")
        return Place(
            call_id=str(claims["sub"]),
            shard=str(claims["shd"]),
            attempt=int(claims["att"]),
            move=int(claims["mov"]),
            waited_span_ms=max(0, int(claims["wtd"])),
            made_ms=int(claims["mad"]),
        )
