"""A CRM that follows a service's events, and goes on where it was after any end, its own included.

    python examples/follower.py --service crm --address 127.0.0.1:7140 --cursor-file crm.cursor \
        --types callmesh.crm.v1.CustomerCreated

Prints one JSON object an event. The cursor is stored after the event was dealt with: what was being dealt
with when the process died comes again, and nothing is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from callmesh.crm.v1 import events_pb2 as crm_events  # noqa: F401 (makes its types known)
from callmesh_sdk import CallError, Client, FailedPrecondition, Options, follow


def stored(path: Path) -> str:
    """The cursor of the last run; "" before the first."""
    return path.read_text().strip() if path.exists() else ""


def store(path: Path, cursor: str) -> None:
    """Replaces the cursor as a whole: a half-written one would be of no use."""
    new = path.with_suffix(".new")
    new.write_text(cursor)
    os.replace(new, path)


async def run(options: argparse.Namespace) -> int:
    """Exit status: 0 after `--count` events."""
    where = Options(
        addresses={options.service: options.address},
        token_file=options.token_file,
        language=options.language,
    )
    path, count = Path(options.cursor_file), 0
    async with Client(where) as client:
        events = follow(client, options.service, types=options.types, cursor=stored(path), oldest=True)
        try:
            async for received in events:
                event = received.event
                print(json.dumps({"id": event.id, "type": event.type, "subject": event.subject}), flush=True)
                store(path, received.cursor)
                count += 1
                if count == options.count:
                    return 0
        except FailedPrecondition as error:
            # The cursor is older than what is kept: read the resources once, then go on from here.
            print(json.dumps({"error": error.reason, **error.metadata}, ensure_ascii=False))
            return 3
        except CallError as error:
            print(json.dumps({"error": error.reason, "text": str(error)}, ensure_ascii=False))
            return 1
    return 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service", required=True, help="routing, crm, tickets or marketing")
    parser.add_argument("--address", nargs="+", required=True, help="host:port of its servers")
    parser.add_argument("--types", nargs="*", default=[], help="full names of event messages; default all")
    parser.add_argument("--cursor-file", required=True, help="where the cursor is kept")
    parser.add_argument("--count", type=int, default=0, help="how many events to take; default: for ever")
    parser.add_argument("--token-file", default="", help="file with a bearer token")
    parser.add_argument("--language", default="en", help="of error texts")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
