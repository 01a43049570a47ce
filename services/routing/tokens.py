"""Place tokens: what keeps a caller's place when its stream breaks, signed so that nobody makes one up."""

from __future__ import annotations

import binascii
import hmac

import jwt
import msgspec

from chassis.errors import FailedPrecondition

_ALGORITHM = "HS256"
_AUDIENCE = "callmesh.place"
_encoder = msgspec.json.Encoder()


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _base64(data: bytes) -> bytes:
    """As RFC 7515 wants it: URL-safe, without padding."""
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=")


_HEADER = _base64(_encoder.encode({"alg": _ALGORITHM, "typ": "JWT"})) + b"."
#: Longest token read.
TOKEN_CHARACTERS_MAX = 2_048


class InvalidPlaceToken(FailedPrecondition):
    """The place token of {subject} cannot be used: {why}. Open the call without it; its place is then new."""

    reason = "INVALID_PLACE_TOKEN"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. Durations, never times of day: clocks of regions may differ."""

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


class PlaceTokens:
    """Makes and reads tokens with one key of the whole platform."""

    def __init__(self, key: bytes, *, life_span_ms: int) -> None:
        """`life_span_ms`: a token older than that (business time) is refused. ValueError for a key under 32
        bytes.
        """
        if len(key) < 32:
            raise ValueError("the place token key must have at least 32 bytes")
        self._key = key
        self._mac = hmac.new(key, digestmod="sha256")
        self._life_span_ms = life_span_ms

    def make(self, place: Place) -> str:
        """The token of a place."""
        claims = {
            "aud": _AUDIENCE,
            "sub": place.call_id,
            "shd": place.shard,
            "att": place.attempt,
            "mov": place.move,
            "wtd": place.waited_span_ms,
            "mad": place.made_ms,
        }
        # The library reads tokens; it makes them ten times slower than this, and each word on a call has one.
        signed = _HEADER + _base64(_encoder.encode(claims))
        return (signed + b"." + _base64(self._signature(signed))).decode()

    def _signature(self, signed: bytes) -> bytes:
        """HMAC of a key that is mixed in once: `hmac.digest` does so each time."""
        mac = self._mac.copy()
        mac.update(signed)
        return mac.digest()

    def read(self, token: str, call_id: str, now_ms: int) -> Place:
        """The place that a token keeps. Raises InvalidPlaceToken: forged, damaged, of another call, too
        old.
        """
        subject = f"calls/{call_id}"
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise InvalidPlaceToken(subject=subject, why="it is too long")
        try:
            claims = jwt.decode(token, self._key, algorithms=[_ALGORITHM], audience=_AUDIENCE)
            place = Place(
                call_id=str(claims["sub"]),
                shard=str(claims["shd"]),
                attempt=int(claims["att"]),
                move=int(claims["mov"]),
                waited_span_ms=max(0, int(claims["wtd"])),
                made_ms=int(claims["mad"]),
            )
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise InvalidPlaceToken(subject=subject, why="its signature or content is not ours") from None
        if place.call_id != call_id:
            raise InvalidPlaceToken(subject=subject, why="it was made for another call")
        if now_ms - place.made_ms > self._life_span_ms:
            raise InvalidPlaceToken(subject=subject, why="it is too old")
        return place
