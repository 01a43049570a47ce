"""`make audit` tells clean, vulnerable and unknown apart, and its bill of materials is whole."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.deploy.chart_renders import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """The command's code."""
    spec = importlib.util.spec_from_file_location("audit_command", ROOT / "tools" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "amqp", "version": "5.4.2", "vulns": []}
BAD = {"name": "amqp", "version": "5.4.2", "vulns": [{"id": "OSV-1", "fix_versions": ["6.0"]}]}
UNFOUND = {"name": "amqp", "skip_reason": "not found"}


@pytest.mark.parametrize(("packages", "status", "said"), [
    ([CLEAN, CLEAN], 0, "2 packages"),
    ([CLEAN, BAD], 1, "OSV-1"),
    ([UNFOUND, BAD], 1, "OSV-1"),
    ([CLEAN, UNFOUND], 2, "1 of 2"),
    ([UNFOUND], 2, "NOT DONE"),
    ([UNFOUND], 2, "AUDIT_SERVICE=osv"),
    ([], 2, "NOT DONE"),
])  # fmt: skip
def test_what_was_not_looked_up_is_not_clean(
    audit: ModuleType, packages: list[dict[str, Any]], status: int, said: str
) -> None:
    found, line = audit.verdict({"dependencies": packages})
    assert found == status and said in line


def test_a_service_that_is_away_is_told_with_what_to_do(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(audit, "ask", away)
    status, said = audit.audit({})
    assert status == audit.UNKNOWN and "no route to host" in said and "AUDIT_SERVICE=osv" in said


@contextmanager
def service(bad: str) -> Iterator[str]:
    """A vulnerability service on loopback that knows something against one package; its address."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            package = {"name": bad, "ecosystem": "PyPI"}
            fault = {
                "id": "OSV-1",
                "summary": "bad",
                "details": "bad",
                "affected": [{"package": package, "ranges": ranges}],
            }
            body = json.dumps({"vulns": [fault]} if asked["package"]["name"] == bad else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def test_a_vulnerable_package_is_found(audit: ModuleType) -> None:
    """By pip-audit itself, of the lock file's own lines."""
    if not (audit.BIN / "pip-audit").exists():
        pytest.skip("needs pip-audit")
    requirements = audit.locked(audit.REQUIREMENTS.read_text())[:2]
    good, bad = map(audit.name_of, requirements)
    with service(bad) as address:
        report = audit.ask(requirements, {"AUDIT_URL": address})
    assert {one["name"]: len(one["vulns"]) for one in report["dependencies"]} == {good: 0, bad: 1}
    assert audit.verdict(report)[0] == audit.VULNERABLE


def test_the_bill_of_materials_must_name_every_locked_package(audit: ModuleType) -> None:
    lock = (
        "amqp==5.4.2 \\\n    --hash=sha256:aa\n    # via kombu\n"
        "vine==5.1.0 ; python_version < '4' \\\n    --hash=sha256:bb\n"
    )
    hashed = [{"hashes": [{"alg": "SHA-256", "content": "aa"}]}]
    amqp = {"name": "amqp", "version": "5.4.2", "externalReferences": hashed}
    vine = {"name": "vine", "version": "5.1.0", "externalReferences": hashed}
    assert audit.check_sbom({"components": [amqp, vine]}, lock) == 2
    for wrong in ([amqp], [amqp, vine | {"version": "5.0"}], [amqp, vine | {"externalReferences": []}]):
        with pytest.raises(RuntimeError, match="vine"):
            audit.check_sbom({"components": wrong}, lock)


def test_the_product_asks_for_no_more_than_it_locks(audit: ModuleType) -> None:
    """Every line of the lock has a version and a hash: what is audited is what is installed."""
    lines = audit.locked(Path(audit.REQUIREMENTS).read_text())
    assert len(lines) > 50
    assert all("==" in line and "--hash=sha256:" in line for line in lines)
