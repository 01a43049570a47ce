"""`callmesh runbook`: every alert has its page, by its own name and by the page's."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cli import runbook
from cli.directory import Refused

ROOT = Path(__file__).resolve().parents[3]
app = typer.Typer()
app.command()(runbook.runbook)


def said(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    if isinstance(done.exception, Refused):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_every_alert_finds_its_page() -> None:
    files = (ROOT / "deploy" / "observability").glob("rules*.yaml")
    rules = [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text()).get("groups", ())
        for rule in group.get("rules", ())
        if "alert" in rule
    ]
    assert len(rules) > 20
    for rule in rules:
        page = (ROOT / rule["annotations"]["runbook_url"]).read_text().rstrip() + "\n"
        assert said(rule["alert"]) == said(rule["alert"].lower()) == page
    assert said("journal-slow") == said("journal-slow.md") == said("CallmeshJournalStalled")
    assert "| CallmeshCallsLost | critical |" in said()


def test_what_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CallmeshNothing", "../deploying"):
        with pytest.raises(Refused, match="there is no alert or page"):
            said(name)
    monkeypatch.setattr(runbook, "FOLDER", tmp_path)
    with pytest.raises(Refused, match="not here"):
        said("journal-slow")
