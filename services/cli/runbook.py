"""`callmesh runbook`: the page that an alert names, wherever the command is: the image has the pages, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cli.directory import Refused

#: In a checkout as in the image, beside the folder of the sources.
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "runbooks"
INDEX = "README"


def runbook(
    name: Annotated[
        str, typer.Argument(help="An alert's name or a page's; none for the list of alerts.")
    ] = "",
) -> None:
    """Print what to do about an alert."""
    pages = {path.stem: path for path in FOLDER.glob("*.md")}
    if not pages:
        raise Refused("the runbooks are not here: they are docs/runbooks in a checkout, and in the image")
    alerts = {
        alert.lower(): page
        for page, path in sorted(pages.items())
        for alert in alerts_of(path)
        if page != INDEX
    }
    wanted = name.removesuffix(".md")
    page = pages.get(wanted or INDEX) or pages.get(alerts.get(wanted.lower(), ""))
    if page is None:
        raise Refused(f"there is no alert or page {name[:80]!r}: `callmesh runbook` lists them")
    typer.echo(page.read_text(encoding="utf-8").rstrip())


def alerts_of(page: Path) -> list[str]:
    """The alerts that a page is about: its heading names them."""
    with page.open(encoding="utf-8") as lines:
        return re.findall(r"\bCallmesh\w+", lines.readline())
