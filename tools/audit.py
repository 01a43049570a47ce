"""What the product is made of, and whether any of it is known to be vulnerable: `make audit`.

Writes a bill of materials of the locked requirements to build/reports/sbom.json (CycloneDX) and asks a
vulnerability service about each of them; its answers go to build/reports/audit.json. AUDIT_SERVICE says which
one: `pypi` (the package index's own, the default) or `osv`, whose address AUDIT_URL may change; with
AUDIT_URL alone it is `osv`.

Ends with 0 when every package was looked up and nothing is known against it, 1 when something is, and 2 when
it cannot tell: a service that is away, or that does not know the packages, is no clean bill.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"
REQUIREMENTS = ROOT / "requirements.txt"
#: Beside this interpreter.
BIN = Path(sys.executable).parent
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
SECONDS_MAX = 600
#: What whoever could not be answered may do.
REMEDY = (
    "Run `make audit` where the service is reached: AUDIT_SERVICE=osv asks another one, AUDIT_URL=ADDRESS a"
    " mirror of that. Nothing is known of these packages until then; build/reports/sbom.json can be looked up"
    " anywhere"
)
#: Names shown of a list that may be long.
SHOWN_MAX = 10


def locked(text: str) -> list[str]:
    """The requirements of a lock file, each with its hashes."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if re.match(r"[A-Za-z0-9]", line)]


def name_of(requirement: str) -> str:
    """The package's name."""
    return re.split(r"[=\s]", requirement, maxsplit=1)[0]


# --- bill of materials ------------------------------------------------------------------------------------


def make_sbom(path: Path) -> int:
    """Writes it; the number of components.

    Raises:
        RuntimeError: it could not be made, or a locked package is not in it.
    """
    command = [
        str(BIN / "cyclonedx-py"), "requirements", str(REQUIREMENTS),
        "--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application",
        "--output-format", "JSON", "--output-reproducible", "--output-file", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    return check_sbom(json.loads(path.read_text()), REQUIREMENTS.read_text())


def check_sbom(sbom: Mapping[str, Any], lock: str) -> int:
    """The number of its components, every locked package at its locked version with a hash among them.

    Raises:
        RuntimeError: one is missing.
    """
    found = {
        (one["name"], one["version"])
        for one in sbom["components"]
        if any(reference.get("hashes") for reference in one.get("externalReferences", ()))
    }
    for requirement in locked(lock):
        name, version = re.findall(r"^([^=\s]+)==([^\s;]+)", requirement)[0]
        if (name, version) not in found:
            raise RuntimeError(f"the bill of materials lacks {name} {version}, or its hash")
    return len(sbom["components"])


# --- vulnerabilities --------------------------------------------------------------------------------------


def ask(requirements: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What pip-audit says of these requirements, as its JSON.

    Raises:
        RuntimeError: it says nothing: the service is away.
    """
    address = environment.get("AUDIT_URL", "")
    name = environment.get("AUDIT_SERVICE") or ("osv" if address else "pypi")
    service = ["--vulnerability-service", name, *(["--osv-url", address] if address else [])]
    with tempfile.TemporaryDirectory(prefix="callmesh-audit-") as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(requirements) + "\n")
        options = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(
            [str(BIN / "pip-audit"), "--requirement", str(file), "--cache-dir", folder, *options, *service],
            capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no answer"]
        raise RuntimeError(lines[-1][:300]) from None
    return report


def verdict(report: Mapping[str, Any]) -> tuple[int, str]:
    """(exit status, one line or more) of pip-audit's answer."""
    packages = report["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    bad = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in {fault['fix_versions'] or 'no version'}"
        for one in packages
        for fault in one.get("vulns", ())
    ]
    if bad:
        return VULNERABLE, "\n".join(f"audit: {line}" for line in bad)
    if skipped or not packages:
        some = ", ".join(skipped[:SHOWN_MAX])
        return UNKNOWN, (
            f"audit: NOT DONE: the vulnerability service knows nothing of {len(skipped)} of {len(packages)}"
            f" packages asked about ({some}), so it is hardly the service itself that answers here.\n{REMEDY}"
        )
    return CLEAN, f"audit: {len(packages)} packages, nothing is known against any of them"


def audit(environment: Mapping[str, str]) -> tuple[int, str]:
    """Asks about one package first, so that a service which is not there is found out at once."""
    requirements = locked(REQUIREMENTS.read_text())
    try:
        status, line = verdict(ask(requirements[:1], environment))
        if status != UNKNOWN:
            report = ask(requirements, environment)
            (REPORTS / "audit.json").write_text(json.dumps(report, indent=1) + "\n")
            status, line = verdict(report)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return UNKNOWN, f"audit: NOT DONE: the vulnerability service cannot be reached ({error}).\n{REMEDY}"
    return status, line


def main() -> int:
    """The exit status."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / "sbom.json"
    try:
        count = make_sbom(path)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        print(f"sbom: NOT MADE: {error}", file=sys.stderr)
        return UNKNOWN
    print(f"sbom: {count} components in {path.relative_to(ROOT)}")
    status, line = audit(os.environ)
    print(line, file=sys.stdout if status == CLEAN else sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
