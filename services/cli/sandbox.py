"""`callmesh sandbox`: a platform to try against, with people who do the same thing every time."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from cli import plan
from cli.keys import make_keys
from cli.stack import Stack, StackRuns
from cli.up import StartProgress
from cli.view import OUT

#: Apart from the ordinary local stack's.
RUN_DIR, PORT_BASE = Path(".run-sandbox"), 7300
AUDIENCE = "callmesh"
#: What tells a sandbox's folder of keys from another one.
PARTNER_TOKEN = "partner.token"
#: How long the tokens last, days; every start makes new ones.
DAYS = 30


def environment(keys: Path) -> dict[str, str]:
    """What makes a stack ask for tokens, as in production."""
    return {
        "AUTH_MODE": "jwt",
        "AUTH_JWKS_FILE": str(keys / "jwks.json"),
        "AUTH_AUDIENCE": AUDIENCE,
        "ROUTING_PEER_TOKEN_FILE": str(keys / "peer.token"),
        "ROUTING_PLACE_TOKEN_KEY_FILE": str(keys / "place-token.key"),
        "LOG_LEVEL": "warning",
    }


def write_keys(folder: Path) -> None:
    """Fresh keys with a partner's tokens: one with every scope that partners can have, one that may only
    route calls. BadStackConfig for a folder that holds something else: no other keys are lost.
    """
    if folder.exists() and not (folder / PARTNER_TOKEN).is_file():
        raise plan.BadStackConfig(f"{folder} is there and not a sandbox's: move it, or give another RUN_DIR")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_keys(folder, AUDIENCE, DAYS, time.time(), partners=True)


def where(stack: Stack, keys: Path) -> str:
    """What a partner has to know, one line each."""
    addresses = {"routing": stack.address("routing", plan.REGIONS[0])}
    addresses |= {service: stack.address(service) for service in plan.SERVICES}
    lines = [f"{service:<10}{address}" for service, address in addresses.items()]
    lines += [
        f"token     {keys / PARTNER_TOKEN} (everything), {keys / 'limited.token'} (calls alone)",
        "callers   queues/sandbox: what happens is told by the number's last digit, see docs/api/README.md",
        "desktop   agents/partner: log in, and you are called",
    ]
    return "\n".join(lines)


async def run_people(stack: Stack, keys: Path) -> None:
    """Everybody on duty, until cancelled."""
    from callmesh_sdk import Client, Options
    from cli import sandbox_people

    addresses = {"routing": [stack.address("routing", plan.REGIONS[0])]}
    async with Client(Options(addresses=addresses, token_file=str(keys / PARTNER_TOKEN))) as client:
        await sandbox_people.furnish(client)
        OUT.print("Ready. Ctrl-C ends it; nothing is left running.")
        await sandbox_people.on_duty(client)


def sandbox(
    run_dir: Annotated[
        Path, typer.Option("--run-dir", envvar="SANDBOX_RUN_DIR", help="Where its data and tokens are kept.")
    ] = RUN_DIR,
    port_base: Annotated[
        int, typer.Option("--port-base", envvar="SANDBOX_PORT_BASE", help="First of its 71 ports.")
    ] = PORT_BASE,
) -> None:
    """Start a platform of your own to try calls against: on loopback, with tokens, simulated agents and
    callers.

    Its data are its own and are discarded when it starts again. MONGO_URI and AMQP_URI are not used.
    """
    folder = run_dir.expanduser().resolve()
    keys = folder.parent / f"{folder.name}-keys"
    config = plan.StackConfig(run_dir=folder, port_base=port_base, env=environment(keys))
    progress = StartProgress()
    stack = Stack(config, on_progress=progress.note)
    if stack.running():
        # Fresh keys would shut out those who try against it.
        raise StackRuns(f"a sandbox runs in {folder}: end it first, or give another RUN_DIR")
    write_keys(keys)
    started = False
    try:
        progress.run(stack, fresh=True)
        started = True
        OUT.print(where(stack, keys), highlight=False, markup=False, soft_wrap=True)
        asyncio.run(run_people(stack, keys))
    except KeyboardInterrupt:
        OUT.print("ending")
    finally:
        if started:
            stack.stop()
