"""Makes the chart's README.md from the comments of values.yaml: `# --` lines say what the next key is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "callmesh"
HEAD = """# The callmesh chart

Made by `make chart-readme` from `values.yaml`; change that and run it again.

Roles, secrets and how to upgrade: [docs/deploying.md](../../../docs/deploying.md). Examples of whole
topologies: [deploy/helm/examples](../examples). What the values may be is in `values.schema.json`; a misspelt
key is refused.

| value | default | meaning |
|---|---|---|
"""


def _comments(lines: list[str]) -> dict[int, str]:
    """Line number (from 0) of a key -> what the `# --` comment above it says."""
    found: dict[int, str] = {}
    said: list[str] = []
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("# --"):
            said = [text.removeprefix("# --").strip()]
        elif text.startswith("#") and said:
            said.append(text.removeprefix("#").strip())
        else:
            if said and text:
                found[number] = " ".join(said)
            said = []
    return found


def _rows(node: yaml.Node, value: Any, path: str, comments: dict[int, str]) -> Iterator[tuple[str, Any, str]]:
    """(path, default, meaning) of every leaf and of what a comment stands above."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        if key.value == "<<":
            continue
        own, default = f"{path}{key.value}", value[key.value]
        said = comments.get(key.start_mark.line, "")
        nested = isinstance(child, yaml.MappingNode) and bool(child.value) and not child.flow_style
        if said or not nested:
            yield own, None if nested else default, said
        if nested:
            yield from _rows(child, default, f"{own}.", comments)


def readme() -> str:
    """The page."""
    text = (CHART / "values.yaml").read_text()
    node, values = yaml.compose(text), yaml.safe_load(text)
    assert node is not None
    lines = []
    for path, default, said in _rows(node, values, "", _comments(text.splitlines())):
        shown = "" if default is None else f"`{json.dumps(default)}`"
        lines.append(f"| `{path}` | {shown} | {said.replace('|', chr(92) + '|')} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Writes the page; with --check 1 when it is not up to date."""
    page = CHART / "README.md"
    if "--check" in sys.argv[1:]:
        return 0 if page.read_text() == readme() else 1
    page.write_text(readme())
    return 0


if __name__ == "__main__":
    sys.exit(main())
