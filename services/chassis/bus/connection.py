"""Opening a connection to the broker.

`amqps://` means TLS: the server's certificate must be of a known authority and name the host. The string's
parameters `cacertfile`, `certfile` and `keyfile`, RabbitMQ's own words, name the authority where it is none
of the system's, and a certificate to show.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import amqp
import kombu
from kombu.transport.pyamqp import Transport

from chassis.credentials import ConnectionFile
from chassis.errors import StartError, shorten

#: Where a broker is: a connection string, or the file that has it and is read again for every connection.
Broker = str | ConnectionFile

#: Ports where a connection string names none, by its scheme.
_PORTS = {"amqps": 5671}
_PORT_PLAIN = 5672
#: Parameters of a connection string about TLS, and what py-amqp calls them.
_TLS_FILES = {"cacertfile": "ca_certs", "certfile": "certfile", "keyfile": "keyfile"}

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


def without_tls(amqp_uri: str) -> tuple[str, dict[str, str] | None]:
    """(the connection string without its parameters about TLS, what py-amqp is told of TLS); None for plain
    text. kombu itself knows neither the parameters nor, before its first connection, that `amqps` means TLS.
    """
    parts = urlsplit(amqp_uri)
    said = parse_qsl(parts.query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in said if name not in _TLS_FILES])
    bare = urlunsplit(parts._replace(query=rest)) if said else amqp_uri
    if parts.scheme != "amqps":
        return bare, None
    files = {_TLS_FILES[name]: value for name, value in said if name in _TLS_FILES}
    # With a name to look for, py-amqp checks it, and the chain always.
    return bare, {**files, "server_hostname": parts.hostname or ""}


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
    bare, tls = without_tls(amqp_uri)
    info = kombu.Connection(bare)
    port = info.port or _PORTS.get(urlsplit(bare).scheme, _PORT_PLAIN)
    parameters: dict[str, Any] = {
        "host": f"{info.hostname}:{port}",
        "userid": info.userid or "guest",
        "password": info.password or "guest",
        "virtual_host": info.virtual_host or "/",
        "ssl": tls or False,
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
