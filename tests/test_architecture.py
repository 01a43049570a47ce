"""What ARCHITECTURE.md promises about processes, layout and imports, held by tests.

The import contracts (.importlinter) judge what is written; these tests start interpreters and look at what is
loaded.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("routing", "crm", "tickets", "marketing")
#: What every service's folder holds.
SERVICE_FILES = (
    *("__init__.py", "__main__.py", "config.py", "consumers.py", "convert.py", "documents.py", "engine.py"),
    *("handlers.py", "model.py", "server.py", "servicer.py", "store.py", "worker.py", "README.md"),
)
ROOT_FILES = (
    *("Makefile", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "buf.yaml"),
    *("pyproject.toml", "requirements.txt", "requirements-dev.txt", ".importlinter", ".ci/run"),
    *("docs/adr/0001-process-model.md", "docs/settings.md"),
)
FUNCTION_LINES_MAX = 70
#: Parts of the host names of package registries, apart, so that this file names none either.
REGISTRIES = [
    (".".join(parts)).encode()
    for parts in (("pypi", "org"), ("python" + "hosted", "org"), ("npm" + "js", "org"))
]
REGISTRIES += [
    b"deb.debian" + b".org",
    b"registry.npm" + b"js",
    b"ghcr" + b".io",
    b"docker" + b".io",
    b"buf" + b".build",
]


def tracked_files() -> list[Path]:
    """Every file of the project that git knows, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [p for p in paths if p.is_file()]


def python_files() -> list[Path]:
    return [p for p in tracked_files() if p.suffix == ".py"]


def modules_loaded_by(*modules: str) -> set[str]:
    """The names in sys.modules of a fresh interpreter that imported `modules`."""
    code = f"import {', '.join(modules)}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "services",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"importing {modules} failed:\n{done.stderr}"
    return set(json.loads(done.stdout.splitlines()[-1]))


def of_packages(loaded: set[str], packages: set[str]) -> list[str]:
    return sorted(name for name in loaded if name.split(".")[0] in packages)


@pytest.mark.parametrize("service", SERVICES)
def test_a_grpc_process_does_not_load_eventlet(service: str) -> None:
    loaded = modules_loaded_by(*(f"{service}.{module}" for module in ("server", "servicer", "__main__")))
    assert of_packages(loaded, {"eventlet"}) == []
    assert of_packages(loaded, {"scipy", "sklearn", "statsmodels"}) == [], "a second of every start"
    assert not {"nameko.containers", "nameko.runners"} & loaded
    assert "grpc" in loaded


@pytest.mark.parametrize("service", SERVICES)
def test_a_worker_does_not_load_grpc(service: str) -> None:
    loaded = modules_loaded_by(*(f"{service}.{module}" for module in ("worker", "consumers", "convert")))
    assert of_packages(loaded, {"grpc", "grpc_status", "grpc_health", "grpc_reflection"}) == []
    assert [name for name in loaded if name.endswith("_pb2_grpc")] == []


def rpcs_of(service: str) -> set[str]:
    """The full method names ("/package.Service/Method") in the protos of a service."""
    found = set()
    for proto in sorted((ROOT / "proto" / "callmesh" / service / "v1").glob("*.proto")):
        text = re.sub(r"//[^\n]*", "", proto.read_text())
        package = re.search(r"^package\s+([\w.]+);", text, re.M)
        assert package, proto
        for block in re.finditer(r"^service\s+(\w+)\s*\{(.*?)^\}", text, re.M | re.S):
            names = re.findall(r"\brpc\s+(\w+)", block[2])
            found |= {f"/{package[1]}.{block[1]}/{name}" for name in names}
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_every_rpc_has_a_scope(service: str) -> None:
    scopes = importlib.import_module(f"{service}.server").SCOPES
    rpcs = rpcs_of(service)
    assert rpcs, "no RPC found: the protos moved"
    assert rpcs - set(scopes) == set()
    assert all(re.fullmatch(rf"{service}\.[a-z_.:]+", scope) for scope in scopes.values()), scopes


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_the_same_layout(service: str) -> None:
    folder = ROOT / "services" / service
    assert [name for name in SERVICE_FILES if not (folder / name).is_file()] == []


def test_the_project_has_what_a_newcomer_looks_for() -> None:
    assert [name for name in ROOT_FILES if not (ROOT / name).is_file()] == []


def imported_names(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


#: What a core may import besides: msgspec's structs are values, made several times faster than dataclasses
#: (docs/adr/0009). Nothing else of it, and no I/O.
VALUES = {
    ("marketing", "engine"): {"msgspec"},
    ("marketing", "model"): {"msgspec"},
    ("routing", "engine"): {"msgspec", "msgspec.structs"},
    ("routing", "model"): {"msgspec"},
}


#: Folders of an engine's parts.
PARTS = {("routing", "engine"): {"deciders", "state"}}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("name", ["engine", "model"])
def test_engines_import_the_standard_library_and_their_own_alone(service: str, name: str) -> None:
    folder = ROOT / "services" / service
    names = {name} | PARTS.get((service, name), set())
    paths = [p for p in folder.rglob("*.py") if p.stem == name or names & {*p.relative_to(folder).parts[:-1]}]
    assert {each for path in paths for each in (path.stem, *path.parts)} >= names
    for path in paths:
        foreign = {
            imported
            for imported in imported_names(path)
            if imported.split(".")[0] not in {*sys.stdlib_module_names, service}
            and imported != "chassis.errors"
        }
        assert foreign <= VALUES.get((service, name), set()), path


def test_no_file_names_a_registry_host() -> None:
    named = [
        f"{path.relative_to(ROOT)}: {host.decode()}"
        for path in tracked_files()
        for host in REGISTRIES
        if host in path.read_bytes()
    ]
    assert named == []


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement in a file, at any depth; expressions, which hold none, are passed over."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, field, None)
        # A lambda's or a conditional expression's is one expression.
        for each in inner if isinstance(inner, list) else ():
            yield each
            yield from statements(each)


def test_no_function_is_longer_than_seventy_lines() -> None:
    long = []
    for path in python_files():
        for node in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_the_locks_are_hashed_and_name_no_place() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^([A-Za-z0-9_.-]+==\S+)[^\n]*\\\n\s+--hash=sha256:", text, re.M)
        assert len(pins) == len(re.findall(r"^[A-Za-z0-9]", text, re.M)), "a pin without a hash"
        assert not re.search(r"^--|://|@ ", text, re.M)


def test_the_settings_page_is_that_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "tools/make_settings_doc.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
