"""`callmesh import` and `callmesh export` as commands, against a running server: dry run, mapping, a kill in
the middle, going on, the file of refused rows.
"""

from __future__ import annotations

import asyncio
import csv
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from callmesh.crm.v1 import transfer_pb2, transfer_pb2_grpc
from chassis.client import channel
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from chassis.server import ServiceBinding
from chassis.testing import FakeClock
from chassis.testing.grpc import GrpcServerFactory
from crm.app import compose
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.scopes import SCOPES
from crm.servicer import bindings
from crm.store import MongoReads, MongoStore

pytestmark = pytest.mark.integration

SERVICES = Path(__file__).resolve().parents[3] / "services"
ROWS = 6_000
#: Wide enough that the file has several pieces.
FILLER = "x" * 150


@pytest_asyncio.fixture
async def crm(mongo_uri: str, mongo_database: str, grpc_server: GrpcServerFactory) -> AsyncIterator[Any]:
    """(the server's address, the database)."""
    settings = CrmSettings(mongo_uri=mongo_uri, mongo_database=mongo_database)
    connect(settings)
    ensure_indexes(ALL_DOCUMENTS)
    database = async_database(settings)
    app = compose(MongoStore(), MongoReads(database), FakeClock(), settings.policy())
    server = await grpc_server([ServiceBinding(*part) for part in bindings(app)], scopes=SCOPES)
    yield server.address, database
    await database.client.close()
    disconnect()


async def started(*arguments: str) -> asyncio.subprocess.Process:
    env = {**os.environ, "PYTHONPATH": str(SERVICES), "COLUMNS": "200"}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *arguments),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def done(*arguments: str) -> tuple[int | None, str, str]:
    process = await started(*arguments)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def written(file: Path) -> None:
    """Good rows, and four that are not."""
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(["Name", "Mobile", "Note", "Unused"])
        for n in range(ROWS):
            writer.writerow([f"客户{n}", f"139{n:08}", "两\n行" if n == 7 else "", FILLER])
        writer.writerow(["坏号", "12", "", ""])
        writer.writerow(["重号", "13900000000", "", ""])
        writer.writerow(["", "13911111111", "", ""])
        writer.writerow(["长", "13922222222", "n" * 10_001, ""])


async def test_a_file_is_tried_imported_killed_and_finished(crm: tuple[str, Any], tmp_path: Path) -> None:
    address, database = crm
    file, refused = tmp_path / "people.csv", tmp_path / "refused.csv"
    written(file)
    maps = ["--map", "Name=display_name", "--map", "Mobile=phone_numbers[0].number", "--map", "Note=notes"]
    common = ["import", str(file), *maps, "--address", address, "--errors", str(refused)]

    code, out, err = await done(*common, "--dry-run")
    assert code == 1 and f"{ROWS} rows in, 4 refused" in out, (out, err)
    assert await database.customers.count_documents({}) == 0
    assert [row["line"] for row in read(refused)] == [str(ROWS + n) for n in (3, 4, 5, 6)]

    name = await killed(common, address)
    code, out, err = await done(*common, "--resume", name)
    assert code == 1 and f"{name}: {ROWS} rows in, 4 refused" in out, (out, err)
    assert await database.customers.count_documents({}) == ROWS
    assert [(row["line"], row["reason"], row["field"]) for row in read(refused)] == [
        (str(ROWS + 3), "INVALID_ARGUMENT", "customer.phone_numbers[0].number"),
        (str(ROWS + 4), "CLAIM_TAKEN", "customer.phone_numbers[0].number"),
        (str(ROWS + 5), "INVALID_ARGUMENT", "customer.display_name"),
        (str(ROWS + 6), "INVALID_ARGUMENT", "customer.notes"),
    ]
    refused.unlink()
    code, again, err = await done(*common, "--resume", name)
    assert (code, again) == (1, out) and len(read(refused)) == 4, (again, err)
    told = [e["id"] async for batch in database.imported.find({}) for e in batch["outbox"]]
    assert len(set(told)) == ROWS, "each creation is told, under one id however often"

    exported = tmp_path / "out.jsonl"
    code, out, _ = await done("export", str(exported), "--address", address)
    assert code == 0 and exported.read_text(encoding="utf-8").count("\n") == ROWS


async def killed(common: list[str], address: str) -> str:
    """Kills the command when a part of the file is in; the import's name."""
    process = await started(*common)
    async with channel(address) as line:
        stub = transfer_pb2_grpc.ImportServiceStub(line)
        while True:
            # Newest first: the dry run is done with.
            job = (await stub.ListImports(transfer_pb2.ListImportsRequest(page_size=1))).imports[0]
            if not job.dry_run and job.received_bytes:
                process.kill()
                break
            await asyncio.sleep(0.005)
        await process.communicate()
        job = await stub.GetImport(transfer_pb2.GetImportRequest(name=job.name))
        assert job.state == transfer_pb2.Import.STATE_RECEIVING, "killed before the end"
    return str(job.name)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


async def test_what_cannot_be_imported_is_one_line(crm: tuple[str, Any], tmp_path: Path) -> None:
    address, _ = crm
    file = tmp_path / "people.csv"
    file.write_text("Name,Name\nx,y\n", encoding="utf-8")
    code, _, err = await done("import", str(file), "--address", address)
    assert code == 2 and "different, non-empty headings" in err and "--resume imports/" in err
    code, _, err = await done("import", str(file), "--map", "Name=nope", "--address", address)
    assert code == 2 and "mappings[0].field" in err and "Traceback" not in err
