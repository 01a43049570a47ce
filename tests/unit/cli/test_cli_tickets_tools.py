"""`callmesh tickets` on files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app

LOG = "number,state,time,made_sla,reassignment_count\n"
LOG += "1,New,1/2/2026 10:00,true,1\n1,Closed,1/2/2026 11:00,true,1\n"


def test_a_log_becomes_figures_and_a_picture(tmp_path: Path) -> None:
    file, picture = tmp_path / "log.csv.gz", tmp_path / "map.svg"
    file.write_bytes(gzip.compress(LOG.encode()))
    done = CliRunner().invoke(app, ["tickets", "log", str(file), "--picture", str(picture), "--json"])
    found = json.loads(done.stdout)
    assert (found["tickets"], found["sla_met_ratio"], found["reassigned_ratio"]) == (1, 1.0, 1.0)
    assert {"from": "New", "to": "Closed", "count": 1} in found["steps"]
    assert picture.read_text().startswith("<svg") and ">Closed<" in picture.read_text()


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    for command, content, word in (
        ("log", "a,b\n1,2\n", "header"),
        ("check-setup", '{"flows": [{"name": "flows/x", "kind": 1, "states": []}]}', "UNKNOWN_STATE"),
        ("check-setup", "{", "is no JSON: Expecting"),
    ):
        file.write_text(content)
        done = CliRunner().invoke(app, ["tickets", command, str(file)])
        assert done.exit_code == 1 and word in done.stderr and "Traceback" not in done.output
    file.write_text('{"teams": [{"name": "teams/t", "members": [{"agent": "agents/a"}]}]}')
    assert "teams/t" in CliRunner().invoke(app, ["tickets", "check-setup", str(file)]).stdout
