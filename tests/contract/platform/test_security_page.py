"""SECURITY.md shows each mitigation by a test or a document: they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_what_the_page_points_to_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    defined = {name for source in sources.values() for name in re.findall(r"def (test_\w+)", source)}
    pointed = re.findall(r"`((?:tests|docs|services)/[^`*]+|test_\w+(?:\.py)?|requirements\S*)`", text)
    assert len(pointed) > 40
    missing = {
        one for one in pointed if one not in defined and one not in sources and not (ROOT / one).exists()
    }
    assert missing == set()


def test_the_settings_it_names_are_settings() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text()
    named = re.findall(r"`([A-Z][A-Z_]{5,})[=`]", (ROOT / "SECURITY.md").read_text())
    unknown = {one for one in named if f"{one}`" not in settings} - {"INTERNAL", "UNAVAILABLE"}
    assert unknown == set()
