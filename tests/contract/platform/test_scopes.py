"""Every RPC of every service needs a token and the one scope that the service's table names: asked over a
real connection, one by one.

The handlers behind are the generated ones, which answer UNIMPLEMENTED: permission is checked before
anything else is looked at, so what a handler would do is of no account. That a service serves just the RPCs
of its table is checked at its start (`auth.check_scope_table`).
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

import callmesh
import crm.scopes
import marketing.scopes
import routing.scopes
import tickets.scopes
from chassis import auditservice, eventservice
from chassis.config import ServiceSettings
from chassis.grpc_status import error_info
from chassis.server import ServiceBinding
from chassis.testing.grpc import loopback_settings
from chassis.testing.tokens import TokenMaker

OWN: Mapping[str, Mapping[str, str]] = {
    "routing": routing.scopes.SCOPES,
    "crm": crm.scopes.SCOPES,
    "tickets": tickets.scopes.SCOPES,
    "marketing": marketing.scopes.SCOPES,
    "dialler": routing.scopes.DIALLER_SCOPES,
}
#: As the servers use them: with the event log and the audit log, which every service has.
TABLES = {
    service: {**table, **eventservice.scopes(service), **auditservice.scopes(service)}
    for service, table in OWN.items()
}
ALL_SCOPES = {scope for table in TABLES.values() for scope in table.values()}
#: Calls under way at once.
TOGETHER = 32
ROOT = Path(__file__).parents[3]
#: What only reads is named like this; the rest changes something or uses something up.
READING = re.compile(
    r"/(Get|BatchGet|List|Find|Search|Lookup|Locate|Explain|Preview|Check|Validate|Compare|Evaluate|Suggest|Export"
    r"|Render|Watch|Subscribe|Simulate|Forecast|Plan)(?:[A-Z]|$)"
)


def services_of(package: str) -> Iterator[tuple[Any, Any]]:
    """(descriptor, module of the generated servicer) of every gRPC service of a package, and of those that
    all have.
    """
    for found in pkgutil.walk_packages(callmesh.__path__, "callmesh."):
        ours = found.name.startswith((f"callmesh.{package}.", "callmesh.common."))
        if ours and found.name.endswith("_pb2"):
            module = importlib.import_module(found.name)
            for descriptor in module.DESCRIPTOR.services_by_name.values():
                yield descriptor, importlib.import_module(f"{found.name}_grpc")


def bindings_of(package: str) -> list[ServiceBinding]:
    return [
        ServiceBinding(
            descriptor,
            getattr(module, f"add_{descriptor.name}Servicer_to_server"),
            getattr(module, f"{descriptor.name}Servicer")(),
        )
        for descriptor, module in services_of(package)
    ]


class Asking:
    """Calls any RPC with no request to speak of; says what it answers."""

    def __init__(self, channel: grpc.aio.Channel, methods: Mapping[str, Any]) -> None:
        self._channel = channel
        self._methods = methods
        self._turn = asyncio.Semaphore(TOGETHER)

    async def answer(self, method: str, header: Any) -> tuple[str, str, str]:
        """(status, reason, scope named)."""
        descriptor = self._methods[method]
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }
        call = kinds[descriptor.client_streaming, descriptor.server_streaming](method)
        request = _none() if descriptor.client_streaming else b""
        async with self._turn:
            try:
                made = call(request, metadata=header, timeout=60)
                if descriptor.server_streaming:
                    await made.read()
                else:
                    await made
            except grpc.aio.AioRpcError as error:
                info = error_info(error)
                assert info is not None, f"{method}: {error.code()} {error.details()}"
                return error.code().name, info.reason, info.metadata.get("scope", "")
        return "OK", "", ""

    async def answers(self, headers: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
        """Of every RPC, with the header given for it."""
        found = await asyncio.gather(*(self.answer(method, headers[method]) for method in self._methods))
        return dict(zip(self._methods, found, strict=True))


async def _none() -> Any:
    return
    yield b""


@pytest.mark.parametrize("package", TABLES)
async def test_every_rpc_needs_its_scope(package: str, grpc_server: Any, tmp_path: Path) -> None:
    maker, table, bindings = TokenMaker(), TABLES[package], bindings_of(package)
    methods = {
        f"/{one.descriptor.full_name}/{method.name}": method
        for one in bindings
        for method in one.descriptor.methods
    }
    assert set(methods) == set(table), "the table names just the RPCs of the contract"
    jwks = str(maker.write_jwks(tmp_path / "jwks.json"))
    settings = loopback_settings(ServiceSettings(service=package), auth_mode="jwt", auth_jwks_file=jwks)
    server = await grpc_server(bindings, scopes=table, settings=settings)
    scopes = sorted(set(table.values()))
    only = {scope: maker.header(scope=scope) for scope in scopes}
    every_other = {scope: maker.header(scope=sorted(ALL_SCOPES - {scope})) for scope in scopes}
    async with grpc.aio.insecure_channel(
        server.address, options=[("grpc.max_metadata_size", 64 * 1024)]
    ) as channel:
        asking = Asking(channel, methods)
        nobody = await asking.answers(dict.fromkeys(methods, ()))
        assert set(nobody.values()) == {("UNAUTHENTICATED", "TOKEN_MISSING", "")}
        denied = await asking.answers({method: every_other[table[method]] for method in methods})
        wrong = {
            method: answer
            for method, answer in denied.items()
            if answer != ("PERMISSION_DENIED", "PERMISSION_DENIED", table[method])
        }
        assert wrong == {}, "with every scope of the platform but its own"
        allowed = await asking.answers({method: only[table[method]] for method in methods})
        assert {answer[0] for answer in allowed.values()} == {"UNIMPLEMENTED"}, "with its own alone"


def test_scopes_are_named_alike_and_no_change_is_made_with_a_reading_one() -> None:
    for package, table in TABLES.items():
        assert all(re.fullmatch(rf"{package}(\.[a-z_]+)+", scope) for scope in table.values())
        changing = [
            method
            for method, scope in table.items()
            if scope.endswith(".read") and not READING.search(method)
        ]
        assert changing == [], f"{package}: these change something, and their scope ends in .read"


def test_the_diallers_token_has_the_scopes_of_what_it_calls_and_no_more() -> None:
    """Of what its source calls, and of what the chart tells operators to give it."""
    source = (ROOT / "services" / "routing" / "planning" / "dialler_main.py").read_text()
    called = set(re.findall(r"_peers\.(?:routing|directory|supervision|planning|lists)\.(\w+)\(", source))
    tables = {**TABLES["routing"], **TABLES["marketing"]}
    found = {scope for method, scope in tables.items() if method.rpartition("/")[2] in called}
    assert len(called) > 10 and found == set(routing.scopes.DIALLER_ASKS)
    assert told_by_the_chart("dialler") == found


def told_by_the_chart(part: str) -> set[str]:
    """Scopes that the comment above a part's `tokenSecret` in the chart's values names."""
    values = (ROOT / "deploy" / "helm" / "callmesh" / "values.yaml").read_text()
    told = values.partition(f"\n{part}:")[2].partition(f"tokenSecret: callmesh-{part}")[0]
    return set(re.findall(r"\b(?:routing|marketing)\.[a-z]+\.[a-z]+\b", told))


def test_the_canarys_token_has_the_scopes_of_what_it_calls_and_no_more() -> None:
    """With one too few it would never place its first call."""
    source = (ROOT / "services" / "cli" / "canary.py").read_text()
    called = set(re.findall(r"\b(?:stub|routing|AgentServiceStub\(channel\))\.([A-Z]\w+)\b", source))
    found = {scope for method, scope in TABLES["routing"].items() if method.rpartition("/")[2] in called}
    assert len(called) == 8 and found == set(routing.scopes.CANARY_ASKS)
    assert told_by_the_chart("canary") == found
