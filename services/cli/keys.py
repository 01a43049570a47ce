"""`callmesh keys`: keys and tokens for a trial, where no identity provider is at hand."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

#: What routers need of one another, and nobody else.
PEER_SCOPE = "routing.shards.peer"
#: How long a trial's tokens last, days.
DAYS = 30


def _write(path: Path, content: bytes) -> None:
    """A file that only its owner reads. FileExistsError when it is there: no key is replaced by accident."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def tokens() -> dict[str, tuple[str, str]]:
    """Tokens that are made, by file: (subject, scopes). No token may hold a wildcard, so an administrator's
    names every scope there is.
    """
    from chassis.auditservice import scopes as of_acts
    from chassis.eventservice import scopes as of_events
    from crm.scopes import SCOPES as CRM
    from marketing.scopes import SCOPES as MARKETING
    from routing.scopes import CANARY_ASKS, DIALLER_ASKS, DIALLER_SCOPES
    from routing.scopes import SCOPES as ROUTING
    from tickets.scopes import SCOPES as TICKETS

    tables = {"crm": CRM, "marketing": MARKETING, "routing": ROUTING, "tickets": TICKETS}
    every = {
        scope
        for one, table in tables.items()
        for scope in {**table, **of_events(one), **of_acts(one)}.values()
    } | set(DIALLER_SCOPES.values())
    return {
        "peer.token": ("routers", PEER_SCOPE),
        "dialler.token": ("dialler", " ".join(DIALLER_ASKS)),
        "canary.token": ("canary", " ".join(CANARY_ASKS)),
        "admin.token": ("admin", " ".join(sorted(every - {PEER_SCOPE, ""}))),
    }


def partner_tokens() -> dict[str, tuple[str, str]]:
    """What partners try a sandbox with: everything, and calls alone, to see what a refusal looks like."""
    everything = tokens()["admin.token"][1].split()
    personal = [f"{service}.events.personal" for service in ("crm", "marketing", "routing", "tickets")]
    return {
        "partner.token": ("partner", " ".join([*everything, *personal])),
        "limited.token": ("limited", "routing.calls.route"),
    }


def make_keys(
    folder: Path, audience: str, days: int, now_seconds: float, *, partners: bool = False
) -> list[str]:
    """Writes signing.pem, jwks.json, place-token.key and the `tokens` into `folder`, with `partners` those of
    partners as well; the names.
    """
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    kid = secrets.token_hex(8)
    public: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {
        "signing.pem": pem,
        "jwks.json": json.dumps({"keys": [{**public, "kid": kid, "use": "sig", "alg": "ES256"}]}).encode(),
        "place-token.key": secrets.token_bytes(32),
    }
    for name, (subject, scope) in (tokens() | (partner_tokens() if partners else {})).items():
        claims = {"sub": subject, "aud": audience, "scope": scope, "exp": int(now_seconds) + days * 86_400}
        files[name] = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid}).encode()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        _write(folder / name, content)
    return sorted(files)


def keys(
    folder: Annotated[
        Path, typer.Argument(help="Where they are written; a file that exists is not replaced.")
    ],
    audience: Annotated[str, typer.Option(help="Audience of the tokens (AUTH_AUDIENCE).")] = "callmesh",
    days: Annotated[int, typer.Option(min=1, max=365, help="How long the tokens last.")] = DAYS,
) -> None:
    """Make a signing key, its key set, the place tokens' key, and tokens for routers, the dialler, the
    canary and an administrator.

    For trials: in production an identity provider signs the tokens, and nobody holds one with every scope.
    """
    try:
        made = make_keys(folder, audience, days, time.time())
    except FileExistsError as error:
        typer.echo(f"{error.filename} is there already: nothing was replaced", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{folder} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    typer.echo("\n".join(str(folder / name) for name in made))
