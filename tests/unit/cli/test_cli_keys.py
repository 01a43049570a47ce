"""`callmesh keys`: what it makes is what servers accept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chassis.auth import JwtAuthenticator
from chassis.jwks import FileKeys
from cli.main import app
from routing.scopes import CANARY_ASKS, DIALLER_ASKS

SERVICES = {"routing", "crm", "tickets", "marketing"}


def test_servers_take_the_keys_and_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    done = CliRunner().invoke(app, ["keys", str(folder), "--audience", "trial"])
    assert done.exit_code == 0
    assert len(done.stdout.split()) == 7
    judge = JwtAuthenticator(FileKeys(str(folder / "jwks.json")), "", "trial", 30)
    peer = judge.authenticate(f"Bearer {(folder / 'peer.token').read_text()}")
    assert (peer.subject, peer.scopes) == ("routers", frozenset({"routing.shards.peer"}))
    dialler = judge.authenticate(f"Bearer {(folder / 'dialler.token').read_text()}")
    assert dialler.subject == "dialler" and dialler.scopes == set(DIALLER_ASKS)
    canary = judge.authenticate(f"Bearer {(folder / 'canary.token').read_text()}")
    assert canary.subject == "canary" and canary.scopes == set(CANARY_ASKS)
    admin = judge.authenticate(f"Bearer {(folder / 'admin.token').read_text()}")
    named = {scope.partition(".")[0] for scope in admin.scopes}
    assert admin.subject == "admin" and named == SERVICES | {"dialler"}
    assert {"routing.directory.write", "crm.customers.write", "tickets.admin"} <= admin.scopes
    assert not any(scope.endswith(".peer") for scope in admin.scopes)
    assert len((folder / "place-token.key").read_bytes()) >= 32
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


@pytest.mark.parametrize("there", ["signing.pem", "peer.token"])
def test_nothing_is_replaced(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    done = CliRunner().invoke(app, ["keys", str(tmp_path)])
    assert done.exit_code == 1 and there in done.output
    assert (tmp_path / there).read_text() == "mine"
