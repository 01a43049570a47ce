"""Where the platform's database and broker are, as the commands of an operator find them.

`MONGO_URI_FILE` and `AMQP_URI_FILE` name files with connection strings, as the services read them;
`MONGO_URI` and `AMQP_URI` hold one; otherwise it is the local stack of the run directory. None of them is
an option: they may hold a password, and a command line is readable by everybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chassis.errors import StartError
from cli.directory import Refused

#: The services whose data make up the platform, routing's journal first.
SERVICES = ("routing", "crm", "tickets", "marketing")
#: How long a database or broker may take to answer at first, milliseconds.
ANSWER_MS_MAX = 5_000


def _given(name: str) -> list[str]:
    """What the environment says: in a file a second line, while a password is being changed."""
    from chassis.credentials import ConnectionFile

    file = os.environ.get(f"{name}_FILE", "")
    try:
        return ConnectionFile(file).candidates() if file else [os.environ.get(name, "")]
    except StartError as error:
        raise Refused(f"{name}_FILE: {error}") from None


def mongo_uri(run_dir: Path) -> str:
    """The connection string of the database. Raises Refused when nothing says it."""
    from chassis.credentials import taken
    from cli.stack import recorded_stack

    if any(given := _given("MONGO_URI")):
        return taken(given, ANSWER_MS_MAX)
    stack = recorded_stack(run_dir.expanduser().resolve())
    if stack is None or stack.config.mongo_uri:
        raise Refused("which database? set MONGO_URI or MONGO_URI_FILE, or name the RUN_DIR of a local stack")
    return stack.mongo_uri


def _broker_takes(uri: str) -> bool:
    """Whether the broker does not refuse this user and password; one that does not answer refuses nobody."""
    import amqp

    from chassis.bus.connection import CONNECTION_ERRORS, close_quietly, open_connection

    try:
        close_quietly(open_connection(uri))
    except amqp.AccessRefused:
        return False
    except CONNECTION_ERRORS:
        pass
    return True


def amqp_uri(run_dir: Path) -> str:
    """The connection string of the broker. Raises Refused when nothing says it."""
    from cli.stack import recorded_stack

    if any(given := _given("AMQP_URI")):
        return next(filter(_broker_takes, given[:-1]), given[-1])
    stack = recorded_stack(run_dir.expanduser().resolve())
    if stack is None or stack.config.amqp_uri:
        raise Refused("which broker? set AMQP_URI or AMQP_URI_FILE, or name the RUN_DIR of a local stack")
    return stack.amqp_uri


def database_name(service: str) -> str:
    """The database of a service, as its own setting says it."""
    return os.environ.get(f"{service.upper()}_MONGO_DATABASE", "") or f"callmesh_{service}"


@contextmanager
def mongo_client(uri: str) -> Iterator[Any]:
    """A client that says at once when nothing answers. Raises Refused, without the address: it may hold a
    password.
    """
    import pymongo
    from pymongo.errors import OperationFailure, PyMongoError

    try:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            uri, serverSelectionTimeoutMS=ANSWER_MS_MAX, tz_aware=True, w="majority", appname="callmesh-cli"
        )
    except (PyMongoError, ValueError) as error:
        raise Refused(f"the database's address cannot be used: {type(error).__name__}") from None
    with client:
        try:
            client.admin.command("ping")
        except PyMongoError as error:
            raise Refused(f"the database does not answer: {type(error).__name__}") from None
        try:
            yield client
        except OperationFailure as error:
            raise Refused(f"the database refuses: {type(error).__name__} ({error.code})") from None
        except PyMongoError as error:
            raise Refused(f"the database does not answer any more: {type(error).__name__}") from None
