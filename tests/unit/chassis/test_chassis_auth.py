"""Who may call what."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time

import jwt
import pytest

from chassis import auth
from chassis.auth import Binding, JwtAuthenticator, OpenAuthenticator
from chassis.callcontext import Identity
from chassis.errors import PermissionDenied, StartError, Unauthenticated
from chassis.jwks import KEY_SET_BYTES_MAX, KEYS_MAX, FileKeys, UrlKeys
from chassis.peernames import peer_names
from chassis.testing.certificates import Authority
from chassis.testing.tokens import AUDIENCE, TokenMaker
from chassis.testing.waiting import wait_until


@pytest.fixture
def maker():
    return TokenMaker()


@pytest.fixture
def subject(maker, tmp_path):
    keys = FileKeys(str(maker.write_jwks(tmp_path / "jwks.json")))
    return JwtAuthenticator(keys, "https://issuer", AUDIENCE, 30)


def good(maker, **claims):
    return "Bearer " + maker.token(**{"iss": "https://issuer", **claims})


def test_open_mode_has_every_scope():
    identity = OpenAuthenticator().authenticate(None)
    assert identity.subject == "local"
    auth.authorize(identity, "anything")


def test_a_good_token(subject, maker):
    ends = int(time.time()) + 60
    token = good(maker, subject="pbx-1", scope="routing.write crm.read", exp=ends)
    scopes = frozenset({"routing.write", "crm.read"})
    for _ in range(2):  # the second time from memory
        identity = subject.authenticate(token)
        assert identity == Identity(subject="pbx-1", scopes=scopes, ends_at=ends + 30)
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
        ({"cnf": "x"}, "TOKEN_INVALID"),
        ({"cnf": {}}, "TOKEN_INVALID"),
        ({"cnf": {"jwk": {}}}, "TOKEN_INVALID"),
        ({"cnf": {"x5t#S256": "x", "jkt": "y"}}, "TOKEN_INVALID"),
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
        '{"keys": [' + '{"kty": "EC"},' * KEYS_MAX + '{"kty": "EC"}]}',
        " " * (KEY_SET_BYTES_MAX + 1),
    ],
)
def test_a_key_file_that_cannot_be_used_stops_the_start(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(StartError, match=r"key file jwks\.json"):
        FileKeys(str(tmp_path / "jwks.json"))


def test_keys_need_ids_and_the_file_must_be_there(tmp_path, maker):
    keys = maker.jwks()
    del keys["keys"][0]["kid"]
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    with pytest.raises(StartError, match="kid"):
        FileKeys(str(tmp_path / "jwks.json"))
    with pytest.raises(StartError, match="cannot be read"):
        FileKeys(str(tmp_path / "none.json"))


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


def test_a_withdrawn_key_is_noticed_without_an_unknown_one(subject, maker, tmp_path, monkeypatch):
    token = good(maker)
    subject.authenticate(token)
    TokenMaker("second").write_jwks(tmp_path / "jwks.json")
    now = time.monotonic() + 60
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    with pytest.raises(Unauthenticated):
        subject.authenticate(token)


# --- a key set at an address ------------------------------------------------------------------------------


class Provider:
    """An identity provider's key set on loopback; `answer` is (status, body), None hangs up."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] | None = (404, b"")
        self.asked = threading.Condition()
        self.count = 0
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer = provider.answer
                if answer is not None:
                    self.send_response(answer[0])
                    if answer[0] == 302:
                        self.send_header("Location", "/elsewhere")
                    self.send_header("Content-Length", str(len(answer[1])))
                    self.end_headers()
                    with contextlib.suppress(OSError):
                        self.wfile.write(answer[1])
                with provider.asked:
                    provider.count += 1
                    provider.asked.notify_all()

            def log_message(self, *_):
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"

    def serve(self, maker: TokenMaker) -> None:
        self.answer = (200, json.dumps(maker.jwks()).encode())

    def wait_asked(self, count: int) -> None:
        with self.asked:
            assert self.asked.wait_for(lambda: self.count >= count, 30)


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join(30)


@pytest.fixture
def url_keys(provider):
    """Makes a source; closed at the end."""
    made = []

    def make(**changes) -> UrlKeys:
        options = {"refresh_seconds": 3600.0, "service": "test", **changes}
        made.append(UrlKeys(provider.url, **options))
        return made[-1]

    yield make
    for source in made:
        source.close()
        source._thread.join(30)


def test_keys_come_from_an_address_and_an_unknown_one_is_fetched(provider, url_keys, maker):
    provider.serve(maker)
    subject = JwtAuthenticator(url_keys(), "https://issuer", AUDIENCE, 30)
    token = good(maker)
    assert subject.authenticate(token).subject == "partner"
    successor = TokenMaker("second")
    provider.serve(successor)
    with pytest.raises(Unauthenticated):
        subject.authenticate(good(successor))  # no call waits for the provider

    def known() -> bool:
        try:
            return subject.authenticate(good(successor)).subject == "partner"
        except Unauthenticated:
            return False

    wait_until(known)
    assert provider.count == 2
    with pytest.raises(Unauthenticated):
        subject.authenticate(token)
    with pytest.raises(Unauthenticated):
        subject.authenticate(good(TokenMaker("third")))
    assert provider.count == 2, "whoever names keys at random does not make us ask"


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"{"), (200, b" " * (KEY_SET_BYTES_MAX + 1)), (302, b""), None]
)
def test_known_keys_outlive_an_outage(provider, url_keys, maker, answer):
    provider.serve(maker)
    source = url_keys()
    provider.answer = answer
    source.missed()
    provider.wait_asked(2)
    wait_until(lambda: source._failures > 0)
    assert set(source.keys()) == {maker.kid} and source.generation == 1
    assert source._pause() <= 2.0, "asked again soon"


def test_a_start_without_the_provider_needs_a_file(provider, url_keys, maker, tmp_path):
    with pytest.raises(StartError, match="no key set could be fetched"):
        url_keys()
    source = url_keys(fallback=str(maker.write_jwks(tmp_path / "jwks.json")))
    assert set(source.keys()) == {maker.kid}


def test_the_address_must_show_a_certificate_of_the_authority(provider, url_keys, maker, tmp_path):
    files = Authority().write(tmp_path / "provider")
    Authority("somebody else").write(tmp_path / "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["tls_cert_file"], files["tls_key_file"])
    provider.server.socket = context.wrap_socket(provider.server.socket, server_side=True)
    provider.url = provider.url.replace("http:", "https:")
    provider.serve(maker)
    assert set(url_keys(authority_file=files["tls_ca_file"]).keys()) == {maker.kid}
    for wrong in (str(tmp_path / "stranger" / "ca.crt"), ""):
        with pytest.raises(StartError, match="no key set could be fetched"):
            url_keys(authority_file=wrong)


# --- bound to a certificate -------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    files = Authority().write(tmp_path / "client", name="pbx-1")
    return (tmp_path / "client" / "tls.crt").read_bytes() if files else b""


def bound(certificate_: bytes, **claims) -> Identity:
    return Identity(subject="pbx-1", certificate=peer_names(certificate_).thumbprint, **claims)


@pytest.mark.parametrize("mode", ["off", "subject", "certificate"])
def test_a_bound_token_counts_with_its_certificate_alone(mode, certificate, tmp_path):
    binding, identity = Binding(mode), bound(certificate)
    assert binding.concerns(identity)
    binding.check(identity, certificate)
    Authority().write(tmp_path / "other", name="pbx-1")
    for other in (None, (tmp_path / "other" / "tls.crt").read_bytes()):
        with pytest.raises(auth.CertificateMismatch) as caught:
            binding.check(identity, other)
        assert caught.value.details.reason == "CERTIFICATE_MISMATCH"


def test_a_subject_must_be_a_name_of_the_certificate(certificate):
    assert not Binding("off").concerns(Identity(subject="pbx-2"))
    binding = Binding("subject")
    for name in ("pbx-1", "localhost"):
        binding.check(Identity(subject=name), certificate)
    for name in ("pbx-2", "pbx-1 ", ""):
        with pytest.raises(auth.CertificateMismatch):
            binding.check(Identity(subject=name), certificate)
    with pytest.raises(auth.CertificateMismatch):
        Binding("certificate").check(Identity(subject="pbx-1"), certificate)


def test_remembered_certificates_are_bounded(certificate, tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "CERTIFICATES_REMEMBERED_MAX", 2)
    binding = Binding("subject")
    for number in range(3):
        Authority().write(tmp_path / str(number), name="pbx-1")
        binding.check(Identity(subject="pbx-1"), (tmp_path / str(number) / "tls.crt").read_bytes())
    assert len(binding._known) == 2
