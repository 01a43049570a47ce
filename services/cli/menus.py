"""`callmesh menus`: self-service menus as files, in service, counted, rebuilt from their use, compared."""

from __future__ import annotations

import csv
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from callmesh.routing.v1 import menus_pb2 as pb
from callmesh.routing.v1 import menus_pb2_grpc
from cli.directory import ADDRESS_DEFAULT, Address, Refused, asking, load, message_of, stub_at
from cli.view import OUT

#: Deadline of a rebuild, seconds.
REBUILD_SECONDS = 60.0
DAYS_DEFAULT, DAY_SECONDS = 28, 86_400
#: Changes and nodes that are listed.
ROWS_SHOWN_MAX, PATHS_SHOWN_MAX = 40, 10
#: Rows of a file of accesses.
ACCESS_ROWS_MAX = 100_000
#: Digits of one count: what a rebuild takes has no more.
COUNT_DIGITS_MAX = 12

menus = typer.Typer(
    name="menus", help="Self-service menus: load, look, count, rebuild, compare.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Menu id, for example hotline; with @2 its version 2.")]
Version = Annotated[int, typer.Option("--version", min=0, help="A version; the running one by default.")]
Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="Sessions of so many days count.")]
Language = Annotated[str, typer.Option("--language", help="Language of the prompts shown.")]


def _stub(address: str) -> AbstractContextManager[Any]:
    """A client of the menus."""
    return stub_at(address, menus_pb2_grpc.MenuServiceStub)


def _span(days: int) -> dict[str, Any]:
    """The interval of the last days, as a request's fields. The usual one is reckoned by the platform's own
    clock.
    """
    if days == DAYS_DEFAULT:
        return {}
    return {"interval": {"start_time": {"seconds": int(time.time()) - days * DAY_SECONDS}}}


def _trial(menu: pb.Menu) -> str:
    if not menu.trial_version:
        return ""
    return f", {menu.trial_share:.0%} of the callers try version {menu.trial_version}"


def _name(name: str, version: int = 0) -> str:
    return f"menus/{name}@{version}" if version else f"menus/{name}"


@menus.command()
def apply(
    file: Annotated[Path, typer.Argument(help="YAML or JSON: id, root, sections ...")],
    address: Address = ADDRESS_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check.")] = False,
    draft: Annotated[
        bool, typer.Option("--draft", help="Load it, leave the running version in service.")
    ] = False,
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="A trial, for this share of the callers.")
    ] = 0.0,
) -> None:
    """Load a menu from a file and put it in service. A file with a fault changes nothing."""
    id, menu = read(file)
    with _stub(address) as stub:
        request = pb.CreateMenuRequest(menu_id=id, menu=menu, validate_only=dry_run)
        made = stub.CreateMenu(request, **asking())
        if dry_run:
            typer.echo(f"menus/{id} is sound: nothing was loaded")
            return
        if not draft:
            wanted = pb.PublishMenuRequest(name=_name(id), version=made.version, share=share)
            stub.PublishMenu(wanted, **asking())
    what = (
        "loaded as a draft"
        if draft
        else f"tried with {share:.0%} of the callers"
        if 0 < share < 1
        else "in service"
    )
    typer.echo(f"menus/{id}@{made.version}: {what}")


def read(file: Path) -> tuple[str, pb.Menu]:
    """Id and menu from a file in the field names of the API. Raises Refused naming file and entry."""
    said = load(file)
    if not isinstance(said, dict) or "root" not in said or not isinstance(said.get("id"), str):
        raise Refused(f"{file} must have an id and a root at its top")
    return said.pop("id"), message_of(file, said, pb.Menu())


@menus.command()
def show(
    name: Name, address: Address = ADDRESS_DEFAULT, version: Version = 0, language: Language = "zh"
) -> None:
    """Show a menu as a tree: keys, words, what the leaves do."""
    with _stub(address) as stub:
        menu = stub.GetMenu(pb.GetMenuRequest(name=_name(name, version)), **asking())
    state = "in service" if menu.published else "not in service"
    OUT.print(
        f"{menu.name}@{menu.version} ({state}{_trial(menu)}) {menu.note}", markup=False, highlight=False
    )
    for top in (menu.root, *menu.sections):
        OUT.print(drawn(top, language), markup=False, highlight=False)


def drawn(top: pb.MenuNode, language: str) -> Tree:
    """A tree of a menu's nodes."""
    tree = Tree(_line(top, language))
    stack = [(tree, child) for child in reversed(top.children)]
    while stack:
        branch, node = stack.pop()
        below = branch.add(_line(node, language))
        stack.extend((below, child) for child in reversed(node.children))
    return tree


def _line(node: pb.MenuNode, language: str) -> str:
    words = node.prompts.get(language) or next(iter(node.prompts.values()), node.id)
    action = node.WhichOneof("action")
    does = f" -> {action} {getattr(node, action)}" if action else ""
    key = f"{node.digit}  " if node.digit else ""
    return f"{key}{words} ({node.id}){does}{' pinned' if node.pinned else ''}"


@menus.command()
def stats(
    name: Name,
    address: Address = ADDRESS_DEFAULT,
    version: Version = 0,
    days: Days = DAYS_DEFAULT,
    caller: Annotated[str, typer.Option("--caller", help="One caller's number.")] = "",
    customer: Annotated[str, typer.Option("--customer", help="One customer, customers/...")] = "",
) -> None:
    """Show what callers did: accesses, where they give up, listening time."""
    request = pb.GetMenuStatsRequest(
        name=_name(name), version=version, caller_number=caller, customer=customer, **_span(days)
    )
    with _stub(address) as stub:
        found = stub.GetMenuStats(request, **asking())
    typer.echo(
        f"{found.sessions} sessions: {found.completed} reached something, {found.given_up} gave up,"
        f" {found.fallbacks} went to the fallback"
    )
    typer.echo(
        f"{found.presses_mean:.2f} keys and {found.listening_seconds_mean:.1f} s of listening on average;"
        f" {found.callers} callers, {found.regular_callers} of them regular"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "accesses", "gave up", "wrong keys", "silences", "listened s"):
        table.add_column(heading, justify="left" if heading == "node" else "right")
    for node in sorted(found.nodes, key=lambda n: (-n.accesses, n.node))[:ROWS_SHOWN_MAX]:
        figures = (node.accesses, node.given_up, node.wrong_keys, node.timeouts)
        table.add_row(node.node, *map(str, figures), f"{node.listening.ToMilliseconds() / 1000:.1f}")
    OUT.print(table)
    for path in found.paths[:PATHS_SHOWN_MAX]:
        gave_up = f", {path.given_up} gave up" if path.given_up else ""
        typer.echo(f"{path.sessions:>8}  {' > '.join(path.nodes)}{gave_up}")


@menus.command()
def rebuild(
    name: Name,
    address: Address = ADDRESS_DEFAULT,
    version: Version = 0,
    keep_groups: Annotated[
        bool, typer.Option("--keep-groups/--free", help="What stands below the root stays together.")
    ] = True,
    changes: Annotated[
        int, typer.Option("--changes", min=0, max=200, help="Nodes that may move; 0: any.")
    ] = 0,
    choices: Annotated[int, typer.Option("--choices", min=2, max=9, help="Choices a level.")] = 9,
    listening: Annotated[
        float,
        typer.Option("--listening", min=0.0, max=10.0, help="What a second of listening weighs, in keys."),
    ] = 0.0,
    stability: Annotated[
        float,
        typer.Option("--stability", min=0.0, max=100.0, help="Cost of moving a regular access, in keys."),
    ] = 0.0,
    accesses: Annotated[
        Path | None, typer.Option("--accesses", help="CSV of leaf,count in place of the statistics.")
    ] = None,
    days: Days = DAYS_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the draft.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Show the draft's tree, too.")] = False,
    language: Language = "zh",
) -> None:
    """Rebuild a menu from its use, as a draft. Publish it with `menus publish`."""
    request = pb.RebuildMenuRequest(
        name=_name(name),
        version=version,
        keep_groups=keep_groups,
        changes_max=changes,
        choices_max=choices,
        listening_weight=listening,
        stability=stability,
        accesses=read_accesses(accesses) if accesses is not None else {},
        validate_only=dry_run,
        **_span(days),
    )
    with _stub(address) as stub:
        found = stub.RebuildMenu(request, **asking(REBUILD_SECONDS))
    _print_rebuilt(found)
    if tree:
        OUT.print(drawn(found.menu.root, language), markup=False, highlight=False)
    typer.echo(
        "nothing was stored" if dry_run else f"stored as {found.menu.name}@{found.menu.version}, a draft"
    )


def _print_rebuilt(found: pb.RebuildMenuResponse) -> None:
    before, after = found.presses_before, found.presses_after
    saved = f", {1 - after / before:.1%} fewer" if before else ""
    typer.echo(f"by {found.accesses} accesses: {before:.3f} keys before, {after:.3f} after{saved}")
    typer.echo(f"the best tree without any constraint takes {found.presses_optimal:.3f}")
    seconds = [span.ToMilliseconds() / 1000 for span in (found.listening_before, found.listening_after)]
    typer.echo(f"listening: {seconds[0]:.1f} s before, {seconds[1]:.1f} s after")
    moved = f"keys of {found.regulars_moved:.1%} of the regular accesses changed"
    typer.echo(f"{len(found.changes)} nodes moved; {moved}")
    for change in found.changes[:ROWS_SHOWN_MAX]:
        typer.echo(f"  {change.node}: {change.keys_before or 'new'} -> {change.keys_after or 'gone'}")


def read_accesses(file: Path) -> dict[str, int]:
    """Accesses by leaf from a file of two columns. Raises Refused naming file and row."""
    found: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8", newline="") as rows:
            for number, row in enumerate(csv.reader(rows), start=1):
                if number > ACCESS_ROWS_MAX:
                    raise Refused(f"{file} has more than {ACCESS_ROWS_MAX} rows")
                count = row[1].strip() if len(row) == 2 else ""
                if not (count.isdecimal() and len(count) <= COUNT_DIGITS_MAX):
                    got = repr(row[:3])[:80]
                    why = f"must be a leaf's id and a count of at most {COUNT_DIGITS_MAX} digits, got {got}"
                    raise Refused(f"{file}, row {number}: {why}")
                found[row[0].strip()] = found.get(row[0].strip(), 0) + int(count)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{file} cannot be read: {error}") from error
    return found


@menus.command()
def publish(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="Version.")],
    address: Address = ADDRESS_DEFAULT,
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="A trial, for this share of the callers.")
    ] = 0.0,
) -> None:
    """Put a version in service, or on trial; an older one, too."""
    with _stub(address) as stub:
        menu = stub.PublishMenu(
            pb.PublishMenuRequest(name=_name(name), version=version, share=share), **asking()
        )
    state = "in service" if menu.published else "on trial"
    typer.echo(f"{menu.name}@{version} is {state}{_trial(menu)}")


@menus.command()
def compare(
    name: Name,
    version_a: Annotated[int, typer.Argument(min=1, help="First version.")],
    version_b: Annotated[int, typer.Argument(min=1, help="Second version.")],
    address: Address = ADDRESS_DEFAULT,
    days: Days = DAYS_DEFAULT,
) -> None:
    """Compare two versions by what callers did, with 95 % intervals."""
    request = pb.CompareMenusRequest(
        name=_name(name), version_a=version_a, version_b=version_b, **_span(days)
    )
    with _stub(address) as stub:
        found = stub.CompareMenus(request, **asking())
    table = Table(box=None, pad_edge=False)
    for heading in (
        "",
        f"version {version_a}",
        f"version {version_b}",
        "difference",
        "95 % interval",
        "significant",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    a, b = found.a, found.b
    table.add_row("sessions", str(a.sessions), str(b.sessions))
    table.add_row("reached something", str(a.completed), str(b.completed))
    rates = [report.given_up / (report.sessions or 1) for report in (a, b)]
    rows = (
        ("gave up", rates[0], rates[1], found.given_up),
        ("keys", a.presses_mean, b.presses_mean, found.presses),
        ("listened s", a.listening_seconds_mean, b.listening_seconds_mean, found.listening_seconds),
    )
    for title, one, other, gap in rows:
        span = f"{gap.low:+.3f} to {gap.high:+.3f}"
        sure = "yes" if gap.significant else "no"
        table.add_row(title, f"{one:.3f}", f"{other:.3f}", f"{gap.value:+.3f}", span, sure)
    OUT.print(table)
