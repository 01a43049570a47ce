"""Place tokens: only ours, only for this call, only for a while."""

from __future__ import annotations

import jwt
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routing.tokens import TOKEN_CHARACTERS_MAX, InvalidPlaceToken, Place, PlaceTokens

KEY = b"k" * 32
NOW_MS = 1_772_000_000_000
PLACE = Place(
    call_id="c1",
    shard="beijing",
    attempt=2,
    move=3,
    waited_span_ms=45_000,
    made_ms=NOW_MS,
    priority=-3,
    credit_span_ms=120_000,
    talks=True,
)
TOKENS = PlaceTokens(KEY, life_span_ms=60_000)
CLAIMS = {
    "aud": "callmesh.place",
    "sub": "c1",
    "shd": "beijing",
    "att": 1,
    "mov": 1,
    "wtd": 1,
    "mad": NOW_MS,
}


def signed(key: bytes = KEY, algorithm: str = "HS256", **change: object) -> str:
    claims = {name: value for name, value in {**CLAIMS, **change}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm)


MADE = TOKENS.make(PLACE)
#: The same, written down: what is out there must be read by every later release.
KNOWN = "2.maJjMadiZWlqaW5nAgPNr8jPAAABnJNuOAD9zgAB1MDDc3oHU872e_CXTD9R6gWMeg"
#: Of releases before, which said nothing of conversations; nor of priority and credit.
KNOWN_OF_WAITING = "2.mKJjMadiZWlqaW5nAgPNr8jPAAABnJNuOAD9zgAB1MCf7x8pj9Sc1axxOT6aHcNa"
KNOWN_BEFORE = "2.lqJjMadiZWlqaW5nAgPNr8jPAAABnJNuOAA8eKp0n-S2nKfyvT5rn7_T"


def test_what_was_made_is_read() -> None:
    assert TOKENS.read(TOKENS.make(PLACE), "c1", NOW_MS + 60_000) == PLACE


def test_all_routers_read_it() -> None:
    assert PlaceTokens(KEY, life_span_ms=60_000).read(TOKENS.make(PLACE), "c1", NOW_MS) == PLACE


def test_its_form_stays() -> None:
    assert MADE == KNOWN


def test_a_shorter_one_is_read() -> None:
    waiting = msgspec.structs.replace(PLACE, talks=False)
    assert TOKENS.read(KNOWN_OF_WAITING, "c1", NOW_MS) == waiting
    read = TOKENS.read(KNOWN_BEFORE, "c1", NOW_MS)
    assert read == msgspec.structs.replace(waiting, priority=None, credit_span_ms=0)


def test_the_form_before_is_read() -> None:
    place = Place(call_id="c1", shard="beijing", attempt=1, move=1, waited_span_ms=1, made_ms=NOW_MS)
    assert TOKENS.read(signed(), "c1", NOW_MS) == place


@given(st.integers(0, len(MADE) - 1), st.characters(codec="ascii"))
@example(MADE.index("_"), "/")
def test_whoever_changes_a_character_has_no_token(at: int, other: str) -> None:
    changed = MADE[:at] + other + MADE[at + 1 :]
    # The last character has bits that mean nothing.
    if changed != MADE and at < len(MADE) - 1:
        with pytest.raises(InvalidPlaceToken):
            TOKENS.read(changed, "c1", NOW_MS)


BAD = {
    "nonsense": "forged",
    "three parts": "a.b.c",
    "not ascii": "ü.ü.ü",
    "nothing inside": "..",
    "another key": signed(b"x" * 32),
    "no signature": jwt.encode(CLAIMS, "", algorithm="none"),
    "another algorithm": signed(KEY * 2, "HS512"),
    "another audience": signed(aud="somebody.else"),
    "no audience": signed(aud=None),
    "no call": signed(sub=None),
    "no shard": signed(shd=None),
    "a word for a number": signed(att="many"),
    "a list for a number": signed(mov=[1]),
    "a truncated one": signed()[:-2],
    "a changed one": signed().replace(".", ".e", 1),
    "of the newer form, another key": PlaceTokens(b"x" * 32, life_span_ms=1).make(PLACE),
    "of the newer form, truncated": MADE[:-2],
    "of the newer form, nothing inside": "2.",
    "of the newer form, not ascii": "2.ü",
    "of the newer form, of another length": MADE + "A",
    "too long": "x" * (TOKEN_CHARACTERS_MAX + 1),
}


@pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidPlaceToken) as caught:
        TOKENS.read(token, "c1", NOW_MS)
    assert caught.value.reason == "INVALID_PLACE_TOKEN"
    assert token[:20] not in caught.value.message or len(token) < 4, (
        "a token is not repeated to whoever reads"
    )


def test_another_calls_token_is_refused() -> None:
    with pytest.raises(InvalidPlaceToken, match="another call"):
        TOKENS.read(TOKENS.make(PLACE), "c2", NOW_MS)


def test_an_old_one_is_refused() -> None:
    with pytest.raises(InvalidPlaceToken, match="too old"):
        TOKENS.read(TOKENS.make(PLACE), "c1", NOW_MS + 60_001)


def test_nobody_waits_less_than_nothing() -> None:
    assert TOKENS.read(signed(wtd=-5), "c1", NOW_MS).waited_span_ms == 0


@pytest.mark.parametrize("key", [b"", b"k" * 31])
def test_a_short_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        PlaceTokens(key, life_span_ms=1)


@given(st.text(max_size=300))
def test_no_text_does_more_than_be_refused(token: str) -> None:
    with pytest.raises(InvalidPlaceToken):
        TOKENS.read(token, "c1", NOW_MS)
