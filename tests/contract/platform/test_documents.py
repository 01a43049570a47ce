"""What the documents tell people to open and to type is there: links, commands, `make` targets, alerts."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app

ROOT = Path(__file__).resolve().parents[3]
TEXTS = {
    page: page.read_text(encoding="utf-8")
    for folder in (".", "docs", "examples", "deploy", "services")
    for page in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
    if "node_modules" not in page.parts
}


def anchors(text: str) -> set[str]:
    """What a link may name in a page: its headings as a browser knows them, and what is marked."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    marked = re.findall(r'<a id="([^"]+)"', text)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings} | set(marked)


def quoted(text: str) -> str:
    """What a page has in code, by the line or in blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))


def test_every_link_leads_somewhere() -> None:
    assert len(TEXTS) > 80
    dead = []
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            known = anchors(TEXTS[target]) if target in TEXTS else {anchor}
            if "://" not in link and not (target.exists() and (not anchor or anchor in known)):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []


def test_every_command_and_target_is_there() -> None:
    told = CliRunner().invoke(app, ["--help"]).output
    commands = {*re.findall(r"^  ([a-z]+)  ", told, re.M), "demo"}
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    families = tuple(re.findall(r"^([a-z]+-)%:", makefile, re.M))
    unknown = []
    for page, text in TEXTS.items():
        code = quoted(text)
        for one in re.findall(r"(?:^|`|bin/)callmesh ([a-z]+)\b", code, re.M):
            unknown += [] if one in commands else [f"{page.name}: callmesh {one}"]
        for one in re.findall(r"(?:^|`)make ([a-z-]+)", code, re.M):
            unknown += [] if one in targets or one.startswith(families) else [f"{page.name}: make {one}"]
    assert unknown == []


def test_the_runbooks_index_has_every_alert_with_its_severity_and_page() -> None:
    index = TEXTS[ROOT / "docs" / "runbooks" / "README.md"]
    rules = "".join(path.read_text() for path in (ROOT / "deploy" / "observability").glob("rules*.yaml"))
    found = re.findall(
        r"- alert: (\w+)\n(?:.*\n)*?.*severity: (\w+).*\n(?:.*\n)*?.*runbooks/([\w-]+)\.md", rules
    )
    assert len(found) > 20
    for alert, severity, page in found:
        assert re.search(rf"^\| {alert} \| {severity} \| .* \| \[{page}\]\({page}\.md\) \|$", index, re.M), (
            alert
        )
