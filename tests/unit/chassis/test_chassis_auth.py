"""Who may call what."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from chassis import auth
from chassis.auth import JwtAuthenticator, OpenAuthenticator, TokenBuckets
from chassis.callcontext import Identity
from chassis.errors import PermissionDenied, StartError, Unauthenticated
from chassis.testing.tokens import AUDIENCE, TokenMaker


@pytest.fixture
def maker():
    return TokenMaker()


@pytest.fixture
def subject(maker, tmp_path):
    return JwtAuthenticator(str(maker.write_jwks(tmp_path / "jwks.json")), "https://issuer", AUDIENCE, 30)


def good(maker, **claims):
    return "Bearer " + maker.token(**{"iss": "https://issuer", **claims})


def test_open_mode_has_every_scope():
    identity = OpenAuthenticator().authenticate(None)
    assert identity.subject == "local"
    auth.authorize(identity, "anything")


def test_a_good_token(subject, maker):
    token = good(maker, subject="pbx-1", scope="routing.write crm.read")
    for _ in range(2):  # the second time from memory
        identity = subject.authenticate(token)
        assert identity == Identity(subject="pbx-1", scopes=frozenset({"routing.write", "crm.read"}))
    auth.authorize(identity, "crm.read")
    auth.authorize(identity, auth.AUTHENTICATED)
    with pytest.raises(PermissionDenied) as caught:
        auth.authorize(identity, "crm.write")
    assert caught.value.details.metadata == {"scope": "crm.write"}


def test_scopes_as_a_list_and_no_wildcard_from_outside(subject, maker):
    identity = subject.authenticate(good(maker, scope=["a", "*"]))
    assert identity.scopes == {"a"}
    with pytest.raises(PermissionDenied):
        auth.authorize(identity, "b")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": int(time.time()) - 60}, "TOKEN_EXPIRED"),
        ({"exp": None}, "TOKEN_INVALID"),
        ({"sub": None}, "TOKEN_INVALID"),
        ({"sub": ""}, "TOKEN_INVALID"),
        ({"sub": "x" * 200}, "TOKEN_INVALID"),
        ({"aud": "other"}, "TOKEN_INVALID"),
        ({"iss": "https://other"}, "TOKEN_INVALID"),
        ({"nbf": int(time.time()) + 3600}, "TOKEN_INVALID"),
        ({"scope": {"a": 1}}, "TOKEN_INVALID"),
    ],
)
def test_bad_claims(subject, maker, claims, reason):
    with pytest.raises(Unauthenticated) as caught:
        subject.authenticate(good(maker, **claims))
    assert caught.value.details.reason == reason


def test_a_token_just_past_its_time_is_forgiven_the_leeway(subject, maker):
    assert subject.authenticate(good(maker, exp=int(time.time()) - 5)).subject == "partner"


@pytest.mark.parametrize(
    "header", [None, "", "Basic abc", "Bearer", "Bearer ", "Bearer a.b.c", "Bearer " + "x" * 10000]
)
def test_what_is_no_token(subject, header):
    with pytest.raises(Unauthenticated):
        subject.authenticate(header)


def test_unsigned_symmetric_and_foreign_tokens_are_refused(subject, maker):
    claims = {"sub": "x", "aud": AUDIENCE, "exp": time.time() + 60, "iss": "https://issuer"}
    forged = [
        jwt.encode(claims, None, algorithm="none", headers={"kid": maker.kid}),
        jwt.encode(claims, maker.jwks()["keys"][0]["x"], algorithm="HS256", headers={"kid": maker.kid}),
        TokenMaker(maker.kid).token(iss="https://issuer"),
        TokenMaker("unknown").token(iss="https://issuer"),
    ]
    for token in forged:
        with pytest.raises(Unauthenticated) as caught:
            subject.authenticate("Bearer " + token)
        assert caught.value.details.reason == "TOKEN_INVALID"


def test_a_remembered_token_still_expires(subject, maker, monkeypatch):
    token = good(maker)
    subject.authenticate(token)
    later = time.time() + 3600
    monkeypatch.setattr(auth.time, "time", lambda: later)
    monkeypatch.setattr(jwt.api_jwt, "datetime", _Later(later))
    with pytest.raises(Unauthenticated, match="expired"):
        subject.authenticate(token)


class _Later:
    """Stands in for PyJWT's datetime class."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self, tz=None):
        from datetime import datetime

        return datetime.fromtimestamp(self._now, tz)


def test_rotated_keys_are_found_and_withdrawn_ones_forgotten(subject, maker, tmp_path, monkeypatch):
    token = good(maker)
    subject.authenticate(token)
    successor = TokenMaker("second")
    successor.write_jwks(tmp_path / "jwks.json")
    with pytest.raises(Unauthenticated):
        subject.authenticate(good(successor))  # looked at the file a moment ago
    now = time.monotonic() + 10
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    assert subject.authenticate(good(successor)).subject == "partner"
    with pytest.raises(Unauthenticated):
        subject.authenticate(token)


def test_a_broken_key_file_leaves_the_known_keys_in_force(subject, maker, tmp_path, monkeypatch):
    (tmp_path / "jwks.json").write_text("{")
    now = time.monotonic() + 10
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    with pytest.raises(Unauthenticated):
        subject.authenticate(good(TokenMaker("unknown")))
    assert subject.authenticate(good(maker)).subject == "partner"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}',
        '{"keys": [1]}',
    ],
)
def test_a_key_file_that_cannot_be_used_stops_the_start(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(StartError, match=r"key file jwks\.json"):
        JwtAuthenticator(str(tmp_path / "jwks.json"), "", AUDIENCE, 0)


def test_keys_need_ids_and_the_file_must_be_there(tmp_path, maker):
    keys = maker.jwks()
    del keys["keys"][0]["kid"]
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    with pytest.raises(StartError, match="kid"):
        JwtAuthenticator(str(tmp_path / "jwks.json"), "", AUDIENCE, 0)
    with pytest.raises(StartError, match="cannot be read"):
        JwtAuthenticator(str(tmp_path / "none.json"), "", AUDIENCE, 0)


def test_remembered_tokens_are_bounded(subject, maker, monkeypatch):
    monkeypatch.setattr(auth, "TOKENS_REMEMBERED_MAX", 3)
    for number in range(5):
        subject.authenticate(good(maker, subject=f"s{number}"))
    assert len(subject._known) == 3


def test_the_scope_table_must_be_complete_and_exact():
    auth.check_scope_table(["/a/b", "/a/c"], {"/a/b": "x", "/a/c": ""})
    with pytest.raises(StartError, match="no scope is set for /a/b, /a/c"):
        auth.check_scope_table(["/a/b", "/a/c"], {})
    with pytest.raises(StartError, match="do not exist: /a/d"):
        auth.check_scope_table([], {"/a/d": "x"})
    with pytest.raises(StartError, match="served twice: /a/b"):
        auth.check_scope_table(["/a/b", "/a/c", "/a/b"], {"/a/b": "x", "/a/c": ""})


def test_a_bucket_empties_and_fills_again():
    buckets = TokenBuckets(per_second=2.0, burst=3, subjects_max=10)
    for _ in range(3):
        buckets.take("a", 0.0)
    with pytest.raises(auth.RateLimited) as caught:
        buckets.take("a", 0.25)
    assert caught.value.details.retry_seconds == pytest.approx(0.25)
    assert caught.value.details.quota[0].subject == "client:a"
    buckets.take("b", 0.25)
    buckets.take("a", 0.5)
    with pytest.raises(auth.RateLimited):
        buckets.take("a", 0.5)


def test_the_table_of_buckets_is_bounded():
    buckets = TokenBuckets(per_second=1.0, burst=1, subjects_max=2)
    for subject in "abc":
        buckets.take(subject, 0.0)
    with pytest.raises(auth.RateLimited):
        buckets.take("c", 0.0)
    buckets.take("a", 0.0)  # forgotten, so full again
