"""Who is calling and what that caller may do. No transport here: the server's wrapper applies it before any
handler runs.

Open mode (loopback only, for a local stack) takes every caller for "local" with all scopes. JWT mode takes a
bearer token: signed by a key of the JWKS (jwks.py), for our audience, with `exp`, `sub` and a `scope` claim.
A token may be bound to the certificate of the connection, so that who steals it cannot use it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from chassis.callcontext import ANONYMOUS, Identity, current_identity
from chassis.errors import PermissionDenied, StartError, Unauthenticated
from chassis.jwks import FileKeys, Keys, KeySource, UrlKeys
from chassis.peernames import THUMBPRINT, PeerNames, peer_names

if TYPE_CHECKING:
    from chassis.config import ServiceSettings

__all__ = [
    "ANONYMOUS",
    "AUTHENTICATED",
    "PEER_SUFFIX",
    "PUBLIC",
    "Authenticator",
    "Binding",
    "Identity",
    "JwtAuthenticator",
    "OpenAuthenticator",
    "StreamTokenEnded",
    "authenticator",
    "authorize",
    "check_scope_table",
    "current_identity",
]

#: In a scope table: anybody may call, without a token. For health probes.
PUBLIC = "public"
#: In a scope table: any authenticated caller.
AUTHENTICATED = ""
#: Ends the scopes of what only the platform's own servers ask of one another. Their streams outlive tokens:
#: what is on its way on them would be asked twice each time, and a server has proven itself.
PEER_SUFFIX = ".peer"
#: Longest token that is looked at, in characters.
TOKEN_LENGTH_MAX = 8192
#: Longest subject accepted.
SUBJECT_LENGTH_MAX = 128
#: Verified tokens remembered until they expire, so that a partner's every call needs no new signature check.
TOKENS_REMEMBERED_MAX = 10_000
#: Certificates whose names are remembered.
CERTIFICATES_REMEMBERED_MAX = 1_000

#: Signatures accepted; symmetric ones never, because whoever can check them can make them.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_LOCAL = Identity(subject="local", scopes=frozenset({"*"}))


class TokenMissing(Unauthenticated):
    """The caller is not authenticated: {why}."""

    reason = "TOKEN_MISSING"


class TokenInvalid(Unauthenticated):
    """The caller is not authenticated: {why}."""

    reason = "TOKEN_INVALID"


class TokenExpired(Unauthenticated):
    """The caller is not authenticated: {why}."""

    reason = "TOKEN_EXPIRED"


class StreamTokenEnded(Unauthenticated):
    """The stream is over: {why}."""

    reason = "STREAM_TOKEN_ENDED"


class CertificateMismatch(Unauthenticated):
    """The caller is not authenticated: {why}."""

    reason = "CERTIFICATE_MISMATCH"


class Authenticator(Protocol):
    """Tells who is calling."""

    def authenticate(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` header; a kind of Unauthenticated when there is none."""

    def close(self) -> None:
        """Ends what runs in the background."""


class OpenAuthenticator:
    """Trusts everyone; settings allow it on loopback only."""

    def authenticate(self, authorization: str | None) -> Identity:
        """Always the local identity, which has every scope."""
        return _LOCAL

    def close(self) -> None:
        """Nothing runs."""


class JwtAuthenticator:
    """Checks signed tokens against a key set (jwks.py)."""

    def __init__(self, keys: KeySource, issuer: str, audience: str, leeway_seconds: int) -> None:
        """An empty `issuer` accepts any that the keys sign for. Closes `keys`."""
        self._source = keys
        self._issuer = issuer or None
        self._audience = audience
        self._leeway = leeway_seconds
        self._generation = keys.generation
        #: SHA-256 of a token -> whose it is, and until when: the tokens themselves are not kept.
        self._known: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()

    def close(self) -> None:
        """Keys are not renewed any more."""
        self._source.close()

    def authenticate(self, authorization: str | None) -> Identity:
        """The identity of a valid bearer token; TokenMissing, TokenInvalid or TokenExpired."""
        if not authorization:
            raise TokenMissing(why="send an authorization header with a bearer token")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_LENGTH_MAX:
            raise TokenInvalid(why="the authorization header must hold a bearer token")
        keys = self._source.keys()
        if self._source.generation != self._generation:
            # Tokens of a key that was withdrawn must not outlive it.
            self._generation = self._source.generation
            self._known.clear()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        return self._verify(token, digest, keys)

    def _verify(self, token: str, digest: bytes, keys: Keys) -> Identity:
        import jwt

        self._known.pop(digest, None)
        try:
            claims = jwt.decode(
                token,
                self._key(token, keys),
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "sub", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired(why="the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenInvalid(why=f"the token was refused ({type(error).__name__})") from None
        ends_at = float(claims["exp"]) + self._leeway
        identity = _identity(claims, ends_at)
        self._known[digest] = (identity, ends_at)
        while len(self._known) > TOKENS_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return identity

    def _key(self, token: str, keys: Keys) -> Any:
        import jwt

        kid = str(jwt.get_unverified_header(token).get("kid", ""))
        if kid not in keys:
            self._source.missed()
            keys = self._source.keys()
        if kid not in keys:
            raise TokenInvalid(why="the token names a key that is not known")
        return keys[kid]


def _identity(claims: Mapping[str, Any], ends_at: float) -> Identity:
    subject, scope = claims["sub"], claims.get("scope", "")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_LENGTH_MAX:
        raise TokenInvalid(why="the token's subject is not usable")
    words = scope.split() if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenInvalid(why="the token's scope claim is not usable")
    # A token cannot carry the wildcard of the local identity.
    return Identity(
        subject=subject,
        scopes=frozenset(words) - {"*"},
        certificate=_confirmed(claims),
        ends_at=ends_at,
    )


def _confirmed(claims: Mapping[str, Any]) -> str:
    """The thumbprint of the certificate that the token is for (RFC 8705), "" when it is for whoever has it.
    TokenInvalid for a proof of another kind: what cannot be checked must not count as checked.
    """
    proof = claims.get("cnf")
    if proof is None:
        return ""
    thumbprint = proof.get(THUMBPRINT) if isinstance(proof, dict) else None
    if not isinstance(thumbprint, str) or not thumbprint or len(proof) != 1:
        raise TokenInvalid(why=f"the token's cnf claim must hold {THUMBPRINT} alone")
    return thumbprint


def authenticator(settings: ServiceSettings) -> Authenticator:
    """What the settings ask for; StartError when the keys cannot be had."""
    if settings.auth_mode == "open":
        return OpenAuthenticator()
    keys: KeySource
    if settings.auth_jwks_url:
        keys = UrlKeys(
            settings.auth_jwks_url,
            refresh_seconds=settings.auth_jwks_refresh_seconds,
            authority_file=settings.auth_jwks_ca_file,
            fallback=settings.auth_jwks_file,
            service=settings.service,
        )
    else:
        keys = FileKeys(settings.auth_jwks_file)
    return JwtAuthenticator(keys, settings.auth_issuer, settings.auth_audience, settings.auth_leeway_seconds)


class Binding:
    """Whether who holds a token may use it over a connection: `off` checks tokens that say so themselves
    (`cnf`), `subject` wants one of the certificate's names to be the token's subject, unless the token names
    the certificate, and `certificate` wants every token to name it.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._known: OrderedDict[bytes, PeerNames] = OrderedDict()

    def concerns(self, identity: Identity) -> bool:
        """Whether the certificate has to be looked at."""
        return self._mode != "off" or bool(identity.certificate)

    def check(self, identity: Identity, certificate: bytes | None) -> None:
        """CertificateMismatch unless the client's `certificate` (PEM, None without one) fits."""
        if certificate is None:
            raise CertificateMismatch(why="the token is bound to a certificate, and none was shown")
        peer = self._known.get(certificate)
        if peer is None:
            peer = self._known[certificate] = peer_names(certificate)
            while len(self._known) > CERTIFICATES_REMEMBERED_MAX:
                self._known.popitem(last=False)
        if identity.certificate:
            if not hmac.compare_digest(identity.certificate.encode(), peer.thumbprint.encode()):
                raise CertificateMismatch(why="the token is bound to another certificate")
        elif self._mode == "certificate":
            raise CertificateMismatch(why=f"the token must name its certificate (cnf, {THUMBPRINT})")
        elif identity.subject not in peer.names:
            raise CertificateMismatch(why="the token's subject is none of the certificate's names")


def authorize(identity: Identity, scope: str) -> None:
    """PermissionDenied unless the identity has `scope`."""
    if not identity.has(scope):
        raise PermissionDenied(scope=scope)


def check_scope_table(methods: Iterable[str], scopes: Mapping[str, str]) -> None:
    """StartError, naming them, for RPCs without a scope, for scopes of RPCs that do not exist, and for RPCs
    that are served twice: one of the two would never be asked.
    """
    counts = Counter(methods)
    served = set(counts)
    twice = sorted(method for method, count in counts.items() if count > 1)
    if twice:
        raise StartError("served twice: " + ", ".join(twice))
    missing, unknown = sorted(served - set(scopes)), sorted(set(scopes) - served)
    if missing:
        raise StartError("no scope is set for " + ", ".join(missing))
    if unknown:
        raise StartError("a scope is set for methods that do not exist: " + ", ".join(unknown))
