"""Options that the commands share: each is an environment variable too, which is how `make` passes it on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.plan import HOST, PORT_BASE_DEFAULT, SERVICES, StackConfig

RUN_DIR_DEFAULT = Path(".run")

RunDir = Annotated[
    Path, typer.Option("--run-dir", envvar="RUN_DIR", help="Where the stack keeps data, logs and secrets.")
]
PortBase = Annotated[
    int, typer.Option("--port-base", envvar="PORT_BASE", help="First of the stack's ports (it uses 71).")
]
CrmAddress = Annotated[
    str, typer.Option("--address", envvar="CRM_ADDRESS", help="crm's host:port; the local stack's if empty.")
]
MarketingAddress = Annotated[
    str,
    typer.Option(
        "--address", envvar="MARKETING_ADDRESS", help="marketing's host:port; the local stack's if empty."
    ),
]
Members = Annotated[
    int, typer.Option("--members", envvar="MEMBERS", help="Members of the local MongoDB replica set: 1 or 3.")
]
Routers = Annotated[
    int, typer.Option("--routers", envvar="ROUTERS", help="Routers a region: 1, or 2 with a warm standby.")
]
Dialler = Annotated[
    str,
    typer.Option(
        "--dialler", envvar="DIALLER", help="Region whose blended agents call between calls, or none."
    ),
]


def service_at(service: str, address: str, port_base: int) -> str:
    """Where a service is: the address given, or the local stack's."""
    return address or f"{HOST}:{port_base + SERVICES[service]}"


def stack_config(
    run_dir: Path = RUN_DIR_DEFAULT,
    port_base: int = PORT_BASE_DEFAULT,
    members: int = 1,
    env: dict[str, str] | None = None,
    *,
    routers: int = 1,
    dialler: str = "",
) -> StackConfig:
    """The stack that the options and the environment (MONGO_URI, AMQP_URI) describe.

    The two URIs are no options: they may hold a password, and a command line is readable by everybody.

    Raises:
        BadStackConfig: a value out of range.
    """
    return StackConfig(
        run_dir=run_dir.expanduser().resolve(),
        port_base=port_base,
        members=members,
        routers=routers,
        dialler=dialler,
        mongo_uri=os.environ.get("MONGO_URI", ""),
        amqp_uri=os.environ.get("AMQP_URI", ""),
        env=env or {},
    )
