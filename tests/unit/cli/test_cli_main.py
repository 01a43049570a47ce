"""The entry point: what is refused is one line and exit status 2, apart from what commands say with 1."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from cli import main
from cli.main import EXIT_USAGE

#: Nothing listens there.
NOWHERE = "127.0.0.1:1"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The command as a shell runs it; its exit status."""
    monkeypatch.setattr(sys, "argv", ["callmesh", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("MONGO_URI", "AMQP_URI", "MONGO_URI_FILE", "AMQP_URI_FILE", "MARKETING_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["outbound", "status", "--address", NOWHERE], f"nothing answers at {NOWHERE}"),
        (["marketing", "models", "churn", "--address", NOWHERE], f"nothing answers at {NOWHERE}"),
        (["export", "{}/out.csv", "--address", NOWHERE], f"nothing answers at {NOWHERE}"),
        (["config", "plan", "{}"], "{} has none of directory.yaml, tickets.yaml, offers.yaml"),
        (["config", "history", "{}/none"], "there is no directory {}/none"),
        (["restore", "--check", "{}/none"], "{}/none/manifest.json cannot be read: FileNotFoundError"),
        (["drill", "{}/none", "--out", "{}/x.json"], "{}/none/manifest.json cannot be read"),
        (["backup", "{}/to", "--key-file", "{}/none"], "the key file {}/none cannot be read"),
        (["backup", "{}/to", "--run-dir", "{}"], "which database?"),
        (["dead", "list", "--run-dir", "{}"], "which broker?"),
        (["canary", "--once", "--ca-file", "{}/none"], "a file that the settings name cannot be read"),
        (["canary", "--once", "--token-file", "{}/none"], "a file that the settings name cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *(word.format(tmp_path) for word in words)) == EXIT_USAGE
    told = capfd.readouterr()
    assert told.err.startswith(f"callmesh: {line.format(tmp_path)}") and told.err.count("\n") == 1
    assert not told.out and not list(tmp_path.iterdir())


def test_a_folder_of_backups_is_no_backup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("callmesh-20260302T101700Z-abcd", "callmesh-20260302T091700Z-zyxw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert run(monkeypatch, "restore", "--check", str(tmp_path)) == EXIT_USAGE
    assert "name one of them, the newest is callmesh-20260302T101700Z-abcd" in capfd.readouterr().err
