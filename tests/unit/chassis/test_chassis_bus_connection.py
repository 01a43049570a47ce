"""Connection strings of the broker: what they ask of TLS, and that it is asked for on the wire."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chassis.bus import connection
from chassis.bus.entrypoint import BusConsumer
from chassis.testing.certificates import Authority

#: What an AMQP client says first.
HEADER = b"AMQP\x00\x00\x09\x01"
WAIT_SECONDS_MAX = 10.0


@pytest.mark.parametrize(("given", "bare", "tls"), [
    ("amqp://u:p@mq:5672//", "amqp://u:p@mq:5672//", None),
    ("amqp://u:p%40@mq/v?heartbeat=3", "amqp://u:p%40@mq/v?heartbeat=3", None),
    ("amqp://mq?cacertfile=/ca.crt", "amqp://mq", None),
    ("amqps://u:p@mq/v", "amqps://u:p@mq/v", {"server_hostname": "mq"}),
    ("amqps://u:p%2F@mq:5671/v?cacertfile=/ca.crt&heartbeat=3", "amqps://u:p%2F@mq:5671/v?heartbeat=3",
     {"server_hostname": "mq", "ca_certs": "/ca.crt"}),
    ("amqps://mq?certfile=/a.crt&keyfile=%2Fa.key", "amqps://mq",
     {"server_hostname": "mq", "certfile": "/a.crt", "keyfile": "/a.key"}),
])  # fmt: skip
def test_what_a_connection_string_says_of_tls(given: str, bare: str, tls: dict[str, str] | None) -> None:
    assert connection.without_tls(given) == (bare, tls)


@pytest.mark.parametrize(("uri", "host"), [
    ("amqp://mq//", "mq:5672"),
    ("amqps://mq", "mq:5671"),
    ("amqp://mq:5673", "mq:5673"),
])  # fmt: skip
def test_a_port_that_is_not_said_is_the_schemes(monkeypatch: pytest.MonkeyPatch, uri: str, host: str) -> None:
    asked = []

    def made(**parameters: Any) -> Any:
        asked.append(parameters["host"])
        return SimpleNamespace(connect=lambda: None)

    monkeypatch.setattr(connection, "_Connection", made)
    connection.open_connection(uri)
    assert asked == [host]


@contextmanager
def broker(folder: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(its port, what it was told first), of one that takes a single connection, over TLS, and ends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_SECONDS_MAX)

        def serve() -> None:
            with listener.accept()[0] as plain:
                plain.settimeout(WAIT_SECONDS_MAX)
                try:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        said.append(secure.recv(len(HEADER)))
                except OSError:  # it did not like the certificate, or spoke plain text
                    said.append(b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], said
        thread.join(WAIT_SECONDS_MAX)


@pytest.mark.parametrize(("host", "authority", "told"), [
    ("", "own", HEADER),
    ("elsewhere.example.com", "own", b""),
    ("", "other", b""),
    ("", "", b""),
])  # fmt: skip
def test_amqps_is_tls_with_the_brokers_own_certificate(
    tmp_path: Path, host: str, authority: str, told: bytes
) -> None:
    Authority().write(tmp_path / "own", host=host)
    Authority().write(tmp_path / "other")
    query = f"?cacertfile={tmp_path / authority / 'ca.crt'}" if authority else ""
    with broker(tmp_path / "own") as (port, said), pytest.raises(connection.CONNECTION_ERRORS):
        connection.open_connection(f"amqps://127.0.0.1:{port}//{query}")
    assert said == [told]


def test_consumers_ask_for_the_same() -> None:
    consumer = BusConsumer()
    uri = "amqps://app:one@mq/v?cacertfile=/ca.crt"
    consumer.container = SimpleNamespace(config={"AMQP_URI": uri, "HEARTBEAT": 20})
    # kombu opens a copy of it.
    opened = consumer.connection.clone()
    assert opened.ssl == {"server_hostname": "mq", "ca_certs": "/ca.crt"}
    assert (opened.heartbeat, opened.userid, opened.virtual_host) == (20, "app", "v")
    consumer.container.config["AMQP_URI"] = "amqp://mq"
    assert not consumer.connection.clone().ssl
