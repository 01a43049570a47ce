"""Who is calling and what that caller may do. No transport here: the server's wrapper applies it before any
handler runs.

Open mode (loopback only, for a local stack) takes every caller for "local" with all scopes. JWT mode takes a
bearer token: signed by a key of the JWKS file, for our audience, with `exp`, `sub` and a `scope` claim.
"""

from __future__ import annotations

import json
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chassis.callcontext import ANONYMOUS, Identity, current_identity
from chassis.errors import PermissionDenied, ResourceExhausted, StartError, Unauthenticated

if TYPE_CHECKING:
    from chassis.config import ServiceSettings

__all__ = [
    "ANONYMOUS",
    "AUTHENTICATED",
    "PUBLIC",
    "Authenticator",
    "Identity",
    "JwtAuthenticator",
    "OpenAuthenticator",
    "TokenBuckets",
    "authenticator",
    "authorize",
    "check_scope_table",
    "current_identity",
]

#: In a scope table: anybody may call, without a token. For health probes.
PUBLIC = "public"
#: In a scope table: any authenticated caller.
AUTHENTICATED = ""
#: Longest token that is looked at, in characters.
TOKEN_LENGTH_MAX = 8192
#: Longest subject accepted.
SUBJECT_LENGTH_MAX = 128
#: Verified tokens remembered until they expire, so that a partner's every call needs no new signature check.
TOKENS_REMEMBERED_MAX = 10_000
#: The key file is looked at again for an unknown key at most this often, seconds.
RELOAD_SECONDS_MIN = 1.0

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


class RateLimited(ResourceExhausted):
    """Too many calls by {subject}{limit}."""

    reason = "RATE_LIMITED"


class Authenticator(Protocol):
    """Tells who is calling."""

    def authenticate(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` header; a kind of Unauthenticated when there is none."""


class OpenAuthenticator:
    """Trusts everyone; settings allow it on loopback only."""

    def authenticate(self, authorization: str | None) -> Identity:
        """Always the local identity, which has every scope."""
        return _LOCAL


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise StartError(f"key file {path.name} cannot be read: {error}") from None


def _parse_keys(path: Path, text: str) -> dict[str, Any]:
    """Key id -> key; StartError when the text is malformed, empty or holds a symmetric key."""
    import jwt

    try:
        data = json.loads(text)
        if any(key.get("kty") == "oct" for key in data.get("keys", ())):
            raise StartError(f"key file {path.name}: symmetric keys are not accepted")
        keys = jwt.PyJWKSet.from_dict(data).keys
    except (ValueError, AttributeError, TypeError, jwt.PyJWTError) as error:
        raise StartError(f"key file {path.name} cannot be used: {error}") from None
    if any(not key.key_id for key in keys):
        raise StartError(f"key file {path.name}: every key needs a kid")
    return {str(key.key_id): key for key in keys}


class JwtAuthenticator:
    """Checks signed tokens against a key file, which is read again when a token names a key it does
    not know.
    """

    def __init__(self, jwks_file: str, issuer: str, audience: str, leeway_seconds: int) -> None:
        self._path = Path(jwks_file)
        self._issuer = issuer or None
        self._audience = audience
        self._leeway = leeway_seconds
        self._text = _read(self._path)
        self._keys = _parse_keys(self._path, self._text)
        self._loaded_at = time.monotonic()
        self._known: OrderedDict[str, tuple[Identity, float]] = OrderedDict()

    def authenticate(self, authorization: str | None) -> Identity:
        """The identity of a valid bearer token; TokenMissing, TokenInvalid or TokenExpired."""
        if not authorization:
            raise TokenMissing(why="send an authorization header with a bearer token")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_LENGTH_MAX:
            raise TokenInvalid(why="the authorization header must hold a bearer token")
        known = self._known.get(token)
        if known is not None and time.time() < known[1]:
            return known[0]
        return self._verify(token)

    def _verify(self, token: str) -> Identity:
        import jwt

        self._known.pop(token, None)
        try:
            claims = jwt.decode(
                token,
                self._key(token),
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
        identity = _identity(claims)
        self._known[token] = (identity, float(claims["exp"]) + self._leeway)
        while len(self._known) > TOKENS_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return identity

    def _key(self, token: str) -> Any:
        import jwt

        kid = str(jwt.get_unverified_header(token).get("kid", ""))
        if kid not in self._keys:
            self._reload()
        if kid not in self._keys:
            raise TokenInvalid(why="the token names a key that is not known")
        return self._keys[kid]

    def _reload(self) -> None:
        """Keys are rotated by replacing the file; a file that cannot be read leaves the known keys in
        force.
        """
        if time.monotonic() - self._loaded_at < RELOAD_SECONDS_MIN:
            return
        self._loaded_at = time.monotonic()
        try:
            text = _read(self._path)
            keys = self._keys if text == self._text else _parse_keys(self._path, text)
        except StartError:
            return
        if keys is not self._keys:
            # Tokens of a key that was withdrawn must not outlive it.
            self._known.clear()
        self._text, self._keys = text, keys


def _identity(claims: Mapping[str, Any]) -> Identity:
    subject, scope = claims["sub"], claims.get("scope", "")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_LENGTH_MAX:
        raise TokenInvalid(why="the token's subject is not usable")
    words = scope.split() if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenInvalid(why="the token's scope claim is not usable")
    # A token cannot carry the wildcard of the local identity.
    return Identity(subject=subject, scopes=frozenset(words) - {"*"})


def authenticator(settings: ServiceSettings) -> Authenticator:
    """What the settings ask for; StartError when the key file cannot be used."""
    if settings.auth_mode == "open":
        return OpenAuthenticator()
    return JwtAuthenticator(
        settings.auth_jwks_file, settings.auth_issuer, settings.auth_audience, settings.auth_leeway_seconds
    )


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


class TokenBuckets:
    """A rate limit for each subject: `burst` calls at once, refilled at `per_second`."""

    def __init__(self, per_second: float, burst: int, subjects_max: int) -> None:
        """Remembers at most `subjects_max` subjects; the one idle longest is forgotten and starts full
        again.
        """
        self._per_second = per_second
        self._burst = float(burst)
        self._subjects_max = subjects_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, subject: str, now: float) -> None:
        """Takes one call at `now` (monotonic seconds); RateLimited with the seconds until the next is
        free.
        """
        tokens, filled_at = self._buckets.pop(subject, (self._burst, now))
        tokens = min(self._burst, tokens + (now - filled_at) * self._per_second)
        allowed = tokens >= 1.0
        self._buckets[subject] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._subjects_max:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimited(
                subject=f"client:{subject}",
                limit=f"{self._per_second:g} calls a second",
                retry_seconds=(1.0 - tokens) / self._per_second,
            )
