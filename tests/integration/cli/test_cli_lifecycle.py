"""`callmesh migrate` on a real database: it tells what a release lacks, makes it, and says that it did."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest
import typer
from typer.testing import CliRunner

from cli import lifecycle

pytestmark = pytest.mark.integration

app = typer.Typer()
app.command()(lifecycle.migrate)
aged = typer.Typer()
aged.command()(lifecycle.retention)


def test_what_a_release_lacks_is_told_and_made(
    mongo_uri: str,
    mongo_client: pymongo.MongoClient[dict[str, Any]],
    mongo_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One service of the four: each is asked in a process of its own."""
    monkeypatch.setattr(lifecycle, "SERVICES", ("routing",))
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    monkeypatch.setenv("ROUTING_MONGO_DATABASE", mongo_database)
    database = mongo_client[mongo_database]
    database["audit"].create_index([("nobodys", 1)])
    # Of no release, and of nobody's business to drop.
    database["leftover"].insert_one({})

    told = CliRunner().invoke(app, [])
    assert told.exit_code == 1, told.output
    lines = told.output.splitlines()
    assert any(line.startswith("routing: leftover: no retention is stated") for line in lines)
    lacking = [line for line in lines if " is missing: callmesh migrate --apply" in line]
    assert lacking and all(line.startswith("routing: audit: index (") for line in lacking)
    assert any("audit: index (nobodys 1) belongs to no release" in line for line in lines)

    made = CliRunner().invoke(app, ["--apply"])
    assert made.exit_code == 0, made.output
    said = {line.split(" is missing")[0] for line in lacking}
    assert said <= {line.removesuffix(" made") for line in made.output.splitlines()}
    live = [list(index["key"]) for index in database["audit"].list_indexes()]
    assert ["nobodys"] in live and len(live) == 2 + len(lacking)
    assert "leftover" in database.list_collection_names()
    (act,) = database["acts"].find({"method": "callmesh migrate --apply"})
    assert act["actor"].startswith("cli:") and act["outcome"] == "OK"


def test_nothing_to_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGO_URI", "mongodb://none.invalid")
    monkeypatch.setattr(lifecycle, "ask", lambda *_, **__: [])
    for words in ([], ["--apply"]):
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, done.output) == (0, "nothing to do\n")


def test_what_is_too_old_is_counted_and_removed_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each service is asked, and what is said of its answer; removing itself: test_chassis_audit.py."""
    asked: list[tuple[str, ...]] = []

    def ask(service: str, uri: str, *flags: str, seconds: float = 0.0) -> Any:
        asked.append((service, *flags))
        return {"acts": 3} if service == "crm" else {}

    monkeypatch.setenv("MONGO_URI", "mongodb://none.invalid")
    monkeypatch.setattr(lifecycle, "ask", ask)
    assert CliRunner().invoke(aged, []).output == "crm.acts: 3 too old\n"
    assert CliRunner().invoke(aged, ["--apply"]).output == "crm.acts: 3 removed\n"
    assert [flag for _, flag in asked] == ["--aged"] * 4 + ["--prune"] * 4
