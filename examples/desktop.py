"""An agent's desktop: takes what is offered, and writes down what came of it.

    python examples/desktop.py --routing 127.0.0.1:7120 --agent agents/wang --calls 1

Prints one JSON object a line, and ends after so many calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from callmesh.routing.v1 import agent_pb2, call_pb2
from callmesh_sdk import CallError, Client, Desk, Options


def say(**facts: Any) -> None:
    """One line."""
    print(json.dumps(facts, ensure_ascii=False), flush=True)


async def work(desk: Desk, calls: int) -> None:
    """Takes calls until so many were wrapped up."""
    wrapped_up: set[str] = set()
    async for event in desk.events():
        match event.WhichOneof("event"):
            case "status":
                state = agent_pb2.AgentState.Name(event.status.state)
                say(event="status", state=state)
                if len(wrapped_up) >= calls and not event.status.calls_held:
                    await desk.close()
            case "offer":
                say(event="offer", call=event.offer.call.call_id, number=event.offer.call.caller_number)
                await desk.accept(event.offer.offer_id)
            case "connected":
                say(event="connected", call=event.connected.call.call_id)
            case "ended":
                call_id = event.ended.call_id
                await desk.wrap_up(call_id, call_pb2.Disposition(code="example", resolved=True))
                wrapped_up.add(call_id)
                say(event="ended", call=call_id, outcome=call_pb2.CallOutcome.Name(event.ended.outcome))
            case "refused":
                say(event="refused", reason=event.refused.reason, message=event.refused.message)


async def run(options: argparse.Namespace) -> int:
    """Exit status: 0 when the calls were taken."""
    where = Options(addresses={"routing": options.routing}, token_file=options.token_file)
    async with Client(where) as client:
        try:
            await work(Desk(client, options.agent), options.calls)
        except CallError as error:
            say(error=error.reason, text=str(error))
            return 1
    say(done=options.calls)
    return 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--routing", nargs="+", required=True, help="host:port of routers")
    parser.add_argument("--agent", required=True, help="agents/{agent}")
    parser.add_argument("--calls", type=int, default=1, help="how many to take")
    parser.add_argument("--token-file", default="", help="file with a bearer token")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
