"""Opening a connection to the broker."""

from __future__ import annotations

import time
from typing import Any

import amqp
import kombu
from kombu.transport.pyamqp import Transport

from chassis.credentials import ConnectionFile
from chassis.errors import StartError, shorten

#: Where a broker is: a connection string, or the file that has it and is read again for every connection.
Broker = str | ConnectionFile

#: How long one attempt to connect may take, seconds.
CONNECT_SECONDS_MAX = 5.0
#: How long a write may block: the broker stops reading while its memory or disk alarm lasts, seconds.
WRITE_SECONDS_MAX = 15.0
#: First and longest pause between two attempts, seconds.
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0

#: What ends a connection or channel, or says that there is none. AttributeError and the like are what py-amqp
#: raises when a connection is closed under it.
CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    amqp.AMQPError,
    OSError,
    kombu.exceptions.OperationalError,
    *Transport.connection_errors,
)


class _Connection(amqp.Connection):
    # With notices of a blocked connection enabled, py-amqp polls the socket before every single publish.
    negotiate_capabilities = {**amqp.Connection.negotiate_capabilities, "connection.blocked": False}  # noqa: RUF012


def candidates(broker: Broker) -> list[str]:
    """Connection strings to try, the right one first as far as anybody knows."""
    return [broker] if isinstance(broker, str) else broker.candidates()


def open_connection(broker: Broker, heartbeat_seconds: float = 0) -> amqp.Connection:
    """One attempt, with the second user or password where the broker refuses the first; any of
    `CONNECTION_ERRORS` when it fails. Works in threads and under eventlet.
    """
    *others, last = candidates(broker)
    for amqp_uri in others:
        try:
            return _open(amqp_uri, heartbeat_seconds)
        except amqp.AccessRefused:
            continue
    return _open(last, heartbeat_seconds)


def _open(amqp_uri: str, heartbeat_seconds: float) -> amqp.Connection:
    info = kombu.Connection(amqp_uri)
    parameters: dict[str, Any] = {
        "host": info.host,
        "userid": info.userid or "guest",
        "password": info.password or "guest",
        "virtual_host": info.virtual_host or "/",
        "ssl": info.ssl,
        "login_method": info.login_method or "PLAIN",
    }
    connection = _Connection(
        **parameters,
        heartbeat=heartbeat_seconds,
        connect_timeout=CONNECT_SECONDS_MAX,
        write_timeout=WRITE_SECONDS_MAX,
    )
    try:
        connection.connect()
    except BaseException:
        close_quietly(connection)
        raise
    return connection


def close_quietly(connection: amqp.Connection | None) -> None:
    """Closes a connection that may be broken."""
    if connection is None:
        return
    try:
        connection.collect()
    except Exception:
        # It is given up either way; py-amqp raises almost anything for a socket that has gone.
        return


def await_broker(broker: Broker, seconds: float) -> amqp.Connection:
    """Connects, trying again for `seconds`; StartError, in words for the operator, when nothing answers."""
    deadline = time.monotonic() + seconds
    pause = BACKOFF_SECONDS_MIN
    while True:
        try:
            return open_connection(broker)
        except amqp.AccessRefused as error:
            raise StartError(f"RabbitMQ refused the connection: {shorten(str(error))}") from None
        except CONNECTION_ERRORS as error:
            if time.monotonic() + pause >= deadline:
                raise StartError(
                    f"RabbitMQ did not answer within {seconds:g} s: {shorten(str(error))}"
                ) from None
        time.sleep(pause)
        pause = min(pause * 2, BACKOFF_SECONDS_MAX)
