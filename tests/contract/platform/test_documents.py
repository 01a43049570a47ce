"""What the documents tell people to open and to type is there: links, commands, `make` targets, alerts."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app

ROOT = Path(__file__).resolve().parents[3]
TEXTS = {
    page: page.read_text(encoding="utf-8")
    for folder in (".", "docs", "examples", "deploy", "services")
    for page in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
    if "node_modules" not in page.parts
}


VARIABLE = re.compile(r'"([A-Z]+_[A-Z_]+)"')


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


def test_every_option_of_a_command_is_there() -> None:
    """`callmesh dead replay QUEUE --all`: an option of that command, or of the one above it."""
    root = get_command(app)
    wrong, seen = [], 0
    for page, text in TEXTS.items():
        for line in re.findall(r"(?:^|`|bin/|-- +)callmesh ([a-z][^`\n]*)", quoted(text), re.M):
            # What follows another command on the line is that one's.
            words = re.split(r" (?:&&|\||then) |;|#", line)[0].split()
            known = options_of(root, words)
            asked = {one.partition("=")[0] for one in words if re.match("--[a-z]", one)}
            wrong += [f"{page.name}: {line}: {one}" for one in asked - known if known]
            seen += len(asked & known)
    assert wrong == []
    assert seen > 40


def options_of(command: Any, words: list[str]) -> set[str]:
    """The options of the command that a line begins with; none of one that registers when it runs."""
    found: set[str] = set()
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        found |= {"--help"} | {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return found


def test_every_test_and_setting_that_a_page_names_is_there() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    tests = {path.stem for path in files}
    tests |= {
        name for path in files for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    settings = set(re.findall(r"`([A-Z<>_]+)`", TEXTS[ROOT / "docs" / "settings.md"]))
    # What the command line alone reads from the environment.
    settings |= {
        name
        for path in (ROOT / "services" / "cli").glob("*.py")
        for name in VARIABLE.findall(path.read_text())
    }
    missing = []
    for page, text in TEXTS.items():
        # Made of the protos, whose constants look alike.
        code = "" if "api" in page.parts else quoted(text)
        for one, cut in re.findall(r"\b(test_\w+)(…|\*)?", code):
            there = any(name.startswith(one) for name in tests) if cut else one in tests
            missing += [] if there else [f"{page.name}: {one}"]
        for service, one in re.findall(r"`(ROUTING|CRM|TICKETS|MARKETING|DIALLER)(_[A-Z_]+)\b", code):
            there = {f"{service}{one}", f"<SERVICE>{one}"} & settings
            missing += [] if there else [f"{page.name}: {service}{one}"]
    assert missing == []


#: The same in every service: told once, in ARCHITECTURE.md.
EVERYWHERE = {
    *("__init__", "__main__", "config", "server", "worker", "servicer", "consumers", "inbound", "lifecycle"),
    *("scopes", "model", "engine", "handlers", "store", "documents", "convert"),
}


def test_the_page_of_each_package_tells_where_everything_is() -> None:
    missing = []
    for package in ("routing", "crm", "tickets", "marketing", "chassis", "cli"):
        folder = ROOT / "services" / package
        named = re.findall(r"`([\w*]+)(?:\.py)?`", TEXTS[folder / "README.md"])
        told = EVERYWHERE if package in ("routing", "crm", "tickets", "marketing") else {"__init__"}
        missing += [
            f"{package}: {path.name}"
            for path in sorted(folder.glob("*.py"))
            if path.stem not in told and not any(fnmatch(path.stem, name) for name in named)
        ]
    assert missing == []


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
