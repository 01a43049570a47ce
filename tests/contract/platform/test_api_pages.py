"""The pages that partners read are those of the protos, and say of every RPC what it needs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs" / "api"


def generator() -> Any:
    """tools/make_api_doc.py as a module."""
    spec = importlib.util.spec_from_file_location("make_api_doc", ROOT / "tools" / "make_api_doc.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_of_the_protos() -> None:
    made = generator()
    stale = [
        name
        for name, text in made.pages().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != text
    ]
    assert stale == [], "run `make api-doc` and commit docs/api"
    extra = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - set(made.pages()) - made.KEPT
    assert extra == set()


def test_every_rpc_has_a_comment_and_a_scope_and_every_link_leads_somewhere() -> None:
    rpcs = 0
    for path in DOCS.rglob("*.md"):
        text = path.read_text()
        for section in re.findall(r"^### \w+\.\w+.*?(?=^#|\Z)", text, re.M | re.S):
            if "- method: `" in section:
                rpcs += 1
                assert re.search(r"\n\n[A-Z\"`]\S* .*\n\n- method", section, re.S), section
                assert "- scope: `" in section, section
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([\w.]*)\)", text):
            page = (path.parent / target).resolve() if target else path
            assert page.exists(), f"{path.name}: {target}"
            assert not anchor or f'<a id="{anchor}"></a>' in page.read_text(), f"{path.name}: {anchor}"
    assert rpcs > 200


def test_every_reason_and_setting_that_a_page_names_is_there() -> None:
    """STALE_COMMAND was told to partners, and no server has ever said it."""
    word = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
    made = ROOT / "services" / "callmesh"  # the stubs have the protos' comments
    code = [path.read_text() for path in (ROOT / "services").rglob("*.py") if made not in path.parents]
    protos = [re.sub(r"//.*", "", path.read_text()) for path in (ROOT / "proto").rglob("*.proto")]
    known = {each for text in (*code, *protos) for each in word.findall(text)}
    known |= set(word.findall((ROOT / "docs" / "settings.md").read_text()))
    # A value of an enum is told without the enum's name as well: COMPLAINT of TICKET_KIND_COMPLAINT.
    known |= {each.split("_", cut)[cut] for each in known for cut in range(1, each.count("_"))}
    # An event of a stream is told by its field: CALLBACK_SCHEDULED.
    known |= {name.upper() for text in protos for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+(?= = )", text)}
    unknown = {
        f"{path.relative_to(DOCS)}: {each}"
        for path in DOCS.rglob("*.md")
        for each in set(word.findall(path.read_text())) - known
    }
    assert unknown == set()
