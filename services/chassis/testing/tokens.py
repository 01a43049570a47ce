"""Keys and tokens for tests of jwt mode; made on the spot, so that no key lies in the repository."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

#: Audience of the tokens, the settings' default.
AUDIENCE = "callmesh"


class TokenMaker:
    """One signing key: `write_jwks` gives its public half to a server, `token` signs."""

    def __init__(self, kid: str = "test-key") -> None:
        self.kid = kid
        self._key = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        """The key set as a server reads it."""
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "ES256"}]}

    def write_jwks(self, path: Path) -> Path:
        """Writes the key set to `path`."""
        path.write_text(json.dumps(self.jwks()))
        return path

    def token(self, subject: str = "partner", scope: str = "test", **claims: Any) -> str:
        """A token valid for ten minutes; `claims` replace or add, a claim of None is left out."""
        body = {"sub": subject, "aud": AUDIENCE, "exp": int(time.time()) + 600, "scope": scope, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, self._key, algorithm="ES256", headers={"kid": self.kid})

    def header(self, **claims: Any) -> tuple[tuple[str, str], ...]:
        """Request metadata with such a token."""
        return (("authorization", f"Bearer {self.token(**claims)}"),)
