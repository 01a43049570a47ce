"""`callmesh backup`, `callmesh restore` and `callmesh drill`: the platform's data at one instant, and back
again.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from chassis.release import RELEASE
from cli.directory import Refused
from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.stores import SERVICES, database_name, mongo_client, mongo_uri

#: Where a drill's figures are written.
REPORT = Path("build/reports/drill.json")

#: MongoDB's code for what a user may not do.
NOT_ALLOWED = 13

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", envvar="CALLMESH_BACKUP_KEY_FILE", help="32 bytes: seals the backup, or opens it."
    ),
]
Databases = Annotated[
    list[str] | None, typer.Option("--database", help="A database; all four services' by default.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No line for each collection.")]
Directory = Annotated[Path, typer.Argument(help="The backup: a directory with a manifest.json.")]


def _key(path: Path | None) -> bytes | None:
    from cli.dump_files import BadBackup, read_key

    try:
        return read_key(path)
    except BadBackup as error:
        raise Refused(str(error)) from None


@contextmanager
def _noted(client: Any, databases: list[str], method: str, resource: str) -> Iterator[None]:
    """The act in the audit log of every database that it concerns. Who may only read makes a backup all the
    same, and is told that no log knows of it.
    """
    from pymongo.errors import OperationFailure

    from chassis.acts import noted
    from cli.dead import actor

    with ExitStack() as all_of_them:
        try:
            for name in databases:
                all_of_them.enter_context(
                    noted(client[name], actor=actor(), method=method, resource=resource)
                )
        except OperationFailure as error:
            if error.code != NOT_ALLOWED:
                raise
            typer.echo("not in the audit log: this user may not write", err=True)
        yield


def backup(
    target: Annotated[
        Path, typer.Argument(help="Directory in which the backup is made, under a name of its own.")
    ],
    key_file: KeyFile = None,
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="Remove all but the newest so many; 0: none.")
    ] = 0,
    database: Databases = None,
    run_dir: RunDir = RUN_DIR_DEFAULT,
    quiet: Quiet = False,
) -> None:
    """Back up all four services' data, routing's journal included, as they were at one instant.

    The platform goes on meanwhile. Everything that was acknowledged before the command began is in the
    backup. The database is that of MONGO_URI_FILE or MONGO_URI, else of the local stack of RUN_DIR.
    """
    from cli.dump import CannotBackUp, back_up, prune
    from cli.dump_files import BadBackup

    key = _key(key_file)
    names = database or [database_name(service) for service in SERVICES]
    try:
        with mongo_client(mongo_uri(run_dir)) as client:
            told = (lambda line: None) if quiet else typer.echo
            with _noted(client, names, "callmesh backup", str(target)):
                made = back_up(client, names, target, key, release=RELEASE, told=told)
        gone = prune(target, keep) if keep else []
    except (CannotBackUp, BadBackup, OSError) as error:
        raise Refused(str(error)) from None
    for name in gone:
        typer.echo(f"removed {name}")
    typer.echo(f"{made.directory}: {made.documents} documents, {made.bytes} bytes, {made.seconds:.1f} s")


def restore(
    directory: Directory,
    key_file: KeyFile = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop what the databases hold first. There is no way back.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only look whether the backup is whole.")] = False,
    run_dir: RunDir = RUN_DIR_DEFAULT,
    quiet: Quiet = False,
) -> None:
    """Write a backup into empty databases. The services must be stopped; start them afterwards.

    Refuses databases that hold data unless --replace is given, and any database that services are connected
    to.
    """
    from cli import dump
    from cli.dump_files import BadBackup

    key = _key(key_file)
    told = (lambda line: None) if quiet else typer.echo
    try:
        if check:
            manifest = dump.verify(directory, key)
            typer.echo(f"whole: taken at {manifest['taken_at']}, release {manifest['release']}")
            return
        with mongo_client(mongo_uri(run_dir)) as client:
            done = dump.restore(client, directory, key, replace=replace, told=told)
            # Afterwards: what was recorded before would be gone, and a database must be empty for it.
            with _noted(client, list(done.manifest["databases"]), "callmesh restore", str(directory)):
                pass
    except (dump.CannotRestore, BadBackup) as error:
        raise Refused(str(error)) from None
    typer.echo(f"{done.documents} documents of {done.manifest['taken_at']} restored in {done.seconds:.1f} s")


def drill(
    directory: Annotated[
        Path | None, typer.Argument(help="A backup; by default one is made of the running platform.")
    ] = None,
    key_file: KeyFile = None,
    out: Annotated[Path, typer.Option(help="Where the figures are written.")] = REPORT,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Try a restore where it harms nobody: into a database of its own on this machine, which is gone
    afterwards.

    Tells how old the backup is (what would be lost now) and how long a restore takes, and looks whether every
    collection has its documents and indexes. Needs a `mongod` on this machine.
    """
    from chassis.localstack import MongoNode, ProcessFailed, free_ports
    from cli.dump import CannotBackUp, CannotRestore, back_up
    from cli.dump import restore as write_back
    from cli.dump_files import BadBackup, read_manifest

    key = _key(key_file)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="callmesh-drill-") as scratch:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if directory is not None:
                # Before a database is started for what is none.
                read_manifest(directory, key)
            else:
                with mongo_client(mongo_uri(run_dir)) as client:
                    made = back_up(client, [database_name(s) for s in SERVICES], Path(scratch), key)
                directory = made.directory
                figures["backup_seconds"] = round(made.seconds, 3)
            with MongoNode(Path(scratch), free_ports(1)[0]) as node, mongo_client(node.uri) as client:
                started = time.monotonic()
                done = write_back(client, directory, key)
                figures |= _compared(client, done.manifest)
                figures["restore_seconds"] = round(time.monotonic() - started, 3)
        except (CannotBackUp, CannotRestore, BadBackup, ProcessFailed, OSError) as error:
            raise Refused(str(error)) from None
    taken = datetime.fromisoformat(done.manifest["taken_at"])
    # A clock that was set back meanwhile makes no backup younger than new.
    figures["backup_age_seconds"] = max(0.0, round((datetime.now(UTC) - taken).total_seconds(), 1))
    figures["ok"] = not figures["missing"]
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        typer.echo(f"{name:24} {value}")
    if not figures["ok"]:
        raise typer.Exit(1)


def _index(said: Any) -> str:
    """An index's name and fields, in their order."""
    return f"{said['name']} ({', '.join(said['key'])})"


def _compared(client: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the restored databases hold, against the manifest."""
    from cli.dump import entries

    missing: list[str] = []
    count = size = indexes = 0
    for database, collection, entry in entries(manifest):
        held = client[database][collection].count_documents({})
        names = {_index(index) for index in client[database][collection].list_indexes()}
        wanted = {_index(index) for index in entry["indexes"]}
        if held != entry["documents"]:
            missing.append(f"{database}.{collection}: {held} of {entry['documents']} documents")
        missing += [f"{database}.{collection}: index {name}" for name in sorted(wanted - names)]
        count, size, indexes = count + held, size + entry["bytes"], indexes + len(wanted)
    return {"documents": count, "bytes": size, "indexes": indexes, "missing": missing}
