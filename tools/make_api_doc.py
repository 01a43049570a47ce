"""Writes docs/api from the protos and the services' scope tables: one page a proto file (`make api-doc`).

What a partner reads there is the protos' own comments; a change begins there.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROTOS, DOCS = ROOT / "proto", ROOT / "docs" / "api"
MADE = "<!-- Made by `make api-doc` from proto/{path}; change that and run it again. -->\n\n"
#: Written by hand.
KEPT = {"README.md", "README.zh.md"}
#: What routers say to each other is no partner's business.
INTERNAL = {"callmesh/routing/v1/shard.proto"}
PACKAGES = ("routing", "crm", "tickets", "marketing", "dialler", "common")
#: Service -> module of its scope table.
TABLES = {
    "routing": "routing.scopes",
    "crm": "crm.scopes",
    "tickets": "tickets.scopes",
    "marketing": "marketing.scopes",
}
#: Numbers in FileDescriptorProto, ServiceDescriptorProto, DescriptorProto and EnumDescriptorProto: what a
#: comment's path is made of.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
METHODS, FIELDS, NESTED, NESTED_ENUMS, VALUES = 2, 2, 3, 4, 2


def descriptors() -> Any:
    """Every proto of ours with its comments, as google.protobuf.FileDescriptorSet."""
    from google import api
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    includes = [
        PROTOS,
        Path(next(iter(api.__path__))).parent.parent,
        Path(str(resources.files("grpc_tools"))) / "_proto",
    ]
    files = sorted(str(path) for path in (PROTOS / "callmesh").rglob("*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".binpb") as out:
        arguments = ["protoc", *(f"-I{include}" for include in includes)]
        status = protoc.main(
            [*arguments, "--include_source_info", f"--descriptor_set_out={out.name}", *files]
        )
        if status:
            raise SystemExit(status)
        # Options stay unknown fields unless their modules are loaded.
        for module in ("google.api.field_behavior_pb2", "callmesh.common.v1.privacy_pb2"):
            importlib.import_module(module)
        return descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())


def scopes() -> dict[str, str]:
    """Full method name -> scope, over all services; those of the shared services are each one's own."""
    found: dict[str, str] = {}
    for module in TABLES.values():
        found.update(importlib.import_module(module).SCOPES)
    found.update(importlib.import_module("routing.scopes").DIALLER_SCOPES)
    for module in ("chassis.eventservice", "chassis.auditservice"):
        found.update(importlib.import_module(module).scopes("<service>"))
    return found


class Page:
    """One proto file as Markdown."""

    def __init__(self, file: Any, homes: Mapping[str, str], table: Mapping[str, str]) -> None:
        """`homes`: full name of every message and enum -> its page, relative to docs/api."""
        self._file = file
        self._homes = homes
        self._table = table
        self._comments = {
            tuple(location.path): location.leading_comments.strip() or location.trailing_comments.strip()
            for location in file.source_code_info.location
        }
        self._lines: list[str] = []

    def text(self) -> str:
        """The whole page."""
        path = self._file.name
        stem = Path(path).stem
        head = next(
            (
                location.leading_detached_comments[0].strip()
                if location.leading_detached_comments
                else location.leading_comments.strip()
                for location in self._file.source_code_info.location
                if list(location.path) == [12]
            ),
            "",
        )
        self._add(f"# {self._file.package}: {stem.replace('_', ' ')}", "", _prose(head), "")
        for number, service in enumerate(self._file.service):
            self._service(service, (SERVICES, number))
        for number, message in enumerate(self._file.message_type):
            self._message(message, message.name, (MESSAGES, number))
        for number, enum in enumerate(self._file.enum_type):
            self._enum(enum, enum.name, (ENUMS, number))
        return MADE.format(path=path) + "\n".join(self._lines).rstrip() + "\n"

    def _add(self, *lines: str) -> None:
        self._lines += lines

    def _service(self, service: Any, path: tuple[int, ...]) -> None:
        self._add(f"## {service.name}", "", _prose(self._comments.get(path, "")), "")
        for number, method in enumerate(service.method):
            full = f"/{self._file.package}.{service.name}/{method.name}"
            deprecated = " (deprecated)" if method.options.deprecated else ""
            asks = "stream of " * method.client_streaming + self._type(method.input_type)
            gives = "stream of " * method.server_streaming + self._type(method.output_type)
            self._add(
                f"### {service.name}.{method.name}{deprecated}",
                "",
                _prose(self._comments.get((*path, METHODS, number), "")),
                "",
                f"- method: `{full}`",
                f"- scope: `{self._table[full]}`" if full in self._table else "- scope: see the service",
                f"- request: {asks}",
                f"- answer: {gives}",
                "",
            )

    def _message(self, message: Any, name: str, path: tuple[int, ...]) -> None:
        if message.options.map_entry:
            return
        self._add(f'<a id="{name.lower()}"></a>', "", f"### message {name}", "")
        self._add(_prose(self._comments.get(path, "")), "")
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        if message.field:
            self._add("| field | type | meaning |", "|---|---|---|")
            for number, one in enumerate(message.field):
                said = self._comments.get((*path, FIELDS, number), "")
                self._add(
                    f"| `{one.name}` | {self._field_type(one, entries)} | {_cell(one, message, said)} |"
                )
            self._add("")
        for number, nested in enumerate(message.nested_type):
            self._message(nested, f"{name}.{nested.name}", (*path, NESTED, number))
        for number, enum in enumerate(message.enum_type):
            self._enum(enum, f"{name}.{enum.name}", (*path, NESTED_ENUMS, number))

    def _enum(self, enum: Any, name: str, path: tuple[int, ...]) -> None:
        self._add(f'<a id="{name.lower()}"></a>', "", f"### enum {name}", "")
        self._add(_prose(self._comments.get(path, "")), "", "| value | number | meaning |", "|---|---|---|")
        for number, value in enumerate(enum.value):
            said = self._comments.get((*path, VALUES, number), "")
            self._add(f"| `{value.name}` | {value.number} | {_line(said)} |")
        self._add("")

    def _field_type(self, field: Any, entries: Mapping[str, Any]) -> str:
        entry = entries.get(field.type_name.rpartition(".")[2]) if field.type_name else None
        if entry is not None:
            key, value = (self._plain_type(one) for one in entry.field)
            return f"map of {key} to {value}"
        plain = self._plain_type(field)
        return f"repeated {plain}" if field.label == field.LABEL_REPEATED else plain

    def _plain_type(self, field: Any) -> str:
        if field.type_name:
            return self._type(field.type_name)
        return str(field.Type.Name(field.type)).removeprefix("TYPE_").lower()

    def _type(self, full: str) -> str:
        """A type's name, linked to where it is described."""
        full = full.removeprefix(".")
        home = self._homes.get(full)
        if home is None:
            return f"`{full}`"
        short = full.partition(".v1.")[2]
        here = _home(self._file.name)
        target = "" if home == here else ("../" + home)
        return f"[{short}]({target}#{short.lower()})"


def _prose(comment: str) -> str:
    """A comment as paragraphs; its lists stay lists."""
    return "\n".join(line.removeprefix(" ") for line in comment.splitlines())


def _line(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


def _cell(field: Any, message: Any, comment: str) -> str:
    """What a field means, and what holds for it."""
    from google.api import field_behavior_pb2  # type: ignore[import-untyped]

    from callmesh.common.v1 import privacy_pb2

    notes = [
        field_behavior_pb2.FieldBehavior.Name(behaviour).lower().replace("_", " ")
        for behaviour in field.options.Extensions[field_behavior_pb2.field_behavior]
    ]
    if field.HasField("oneof_index") and not field.proto3_optional:
        notes.append(f"one of `{message.oneof_decl[field.oneof_index].name}`")
    if field.options.Extensions[privacy_pb2.personal]:
        notes.append("personal")
    if field.options.deprecated:
        notes.append("deprecated")
    return f"*{', '.join(notes)}.* {_line(comment)}" if notes else _line(comment)


def _home(name: str) -> str:
    """The page of a proto file, relative to docs/api."""
    parts = Path(name).parts
    return f"{parts[1]}/{Path(name).stem}.md"


def _names(package: str, messages: Any, enums: Any, above: str = "") -> Iterator[str]:
    for enum in enums:
        yield f"{package}.{above}{enum.name}"
    for message in messages:
        yield f"{package}.{above}{message.name}"
        yield from _names(package, message.nested_type, message.enum_type, f"{above}{message.name}.")


def pages() -> dict[str, str]:
    """Path relative to docs/api -> text."""
    files = [
        file for file in descriptors().file if file.name.startswith("callmesh/") and file.name not in INTERNAL
    ]
    homes = {
        name: _home(file.name)
        for file in files
        for name in _names(file.package, file.message_type, file.enum_type)
    }
    table = scopes()
    made = {_home(file.name): Page(file, homes, table).text() for file in files}
    return {**made, "index.md": _index(files)}


def _index(files: Any) -> str:
    lines = ["# Every service, page by page", "", "What all of them have in common: [README](README.md).", ""]
    for package in PACKAGES:
        lines += [f"## {package}", ""]
        for file in files:
            home = _home(file.name)
            if home.startswith(f"{package}/"):
                names = ", ".join(service.name for service in file.service) or "types"
                lines.append(f"- [{Path(home).stem.replace('_', ' ')}]({home}): {names}")
        lines.append("")
    return MADE.format(path="callmesh") + "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Writes the pages; with --check it says which are not up to date and gives 1."""
    sys.path.insert(0, str(ROOT / "services"))
    wanted = pages()
    there = {
        str(path.relative_to(DOCS)): path.read_text()
        for path in DOCS.rglob("*.md")
        if str(path.relative_to(DOCS)) not in KEPT
    }
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if "--check" in arguments:
        for name in stale:
            print(f"docs/api/{name} is not that of the protos: run `make api-doc`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = DOCS / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
