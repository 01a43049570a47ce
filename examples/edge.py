"""An edge: places a call, loses its stream and takes its place again, confirms, and hangs up.

    python examples/edge.py --routing 127.0.0.1:7320 --queue queues/sandbox --number +861064000000 \
        --token-file .run-sandbox-keys/partner.token

Prints one JSON object a line: what happened, and at last how the call ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
from typing import Any

from callmesh.routing.v1 import call_pb2
from callmesh_sdk import Caller, CallError, Client, Options


def say(**facts: Any) -> None:
    """One line."""
    print(json.dumps(facts, ensure_ascii=False), flush=True)


async def wait_a_little(caller: Caller) -> None:
    """Holds the place until the platform has said where it is; then the stream is dropped, as by a bad
    network.
    """
    async for event in caller.events():
        if event.WhichOneof("event") == "queued":
            say(event="queued", region=event.queued.region, attempt=caller.attempt)
            return


async def through(caller: Caller) -> str:
    """From the queue to the end of the conversation; how it ended."""
    async for event in caller.events():
        kind = event.WhichOneof("event")
        say(event=kind, attempt=caller.attempt)
        if kind == "accepted":
            answer = await caller.confirm(event)
            say(event="confirmation", confirmed=answer.confirmed, refusal=answer.refusal)
        elif kind == "connected":
            # Here media would be bridged to event.connected.agent_address.
            call = await caller.hang_up()
            return call_pb2.CallOutcome.Name(call.outcome)
        elif kind == "ended":
            return event.ended.reason or call_pb2.CallOutcome.Name(event.ended.outcome)
    return "STREAM_OVER"


async def run(options: argparse.Namespace) -> int:
    """Exit status: 0 when the call was connected and completed."""
    where = Options(
        addresses={"routing": options.routing},
        token_file=options.token_file,
        language=options.language,
    )
    async with Client(where) as client:
        call_id = options.call_id or f"edge-{uuid.uuid4()}"
        request = call_pb2.CallRequest(call_id=call_id, caller_number=options.number, queue=options.queue)
        caller = Caller(client, request)
        try:
            await wait_a_little(caller)
            outcome = await through(caller)
        except CallError as error:
            say(error=error.reason, text=str(error), fields=dict(error.fields))
            return 1
    say(call=call_id, outcome=outcome, attempts=caller.attempt)
    return 0 if outcome == "CALL_OUTCOME_COMPLETED" else 1


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--routing", nargs="+", required=True, help="host:port of routers")
    parser.add_argument("--queue", required=True, help="queues/{queue}")
    parser.add_argument("--number", default="", help="the caller's number")
    parser.add_argument("--call-id", default="", help="default: a new one")
    parser.add_argument("--token-file", default="", help="file with a bearer token")
    parser.add_argument("--language", default="en", help="of error texts")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
