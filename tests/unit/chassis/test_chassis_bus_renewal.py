"""The consumers' connection turns to the other password when the broker refuses the first."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from nameko.messaging import QueueConsumer

from chassis.bus.entrypoint import BROKER_KEY, BusConsumer
from chassis.credentials import ConnectionFile


def test_a_refused_consumer_comes_again_with_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "uri"
    file.write_text("amqp://app:two@broker\namqp://app:one@broker\n")
    consumer = BusConsumer()
    consumer.container = SimpleNamespace(config={"AMQP_URI": "", BROKER_KEY: ConnectionFile(str(file))})

    @contextmanager
    def broker(self: Any) -> Any:
        if "two" in self.amqp_uri:
            raise amqp.AccessRefused("wrong password")
        yield "connection"

    monkeypatch.setattr(QueueConsumer, "establish_connection", broker)
    with pytest.raises(amqp.AccessRefused), consumer.establish_connection():
        pass
    with consumer.establish_connection() as connection:
        assert connection == "connection"
    # What a queue refuses later has nothing to do with the password.
    with pytest.raises(amqp.AccessRefused), consumer.establish_connection():
        raise amqp.AccessRefused("no such right")
    assert "one" in consumer.amqp_uri


def test_without_a_file_there_is_one_address() -> None:
    consumer = BusConsumer()
    consumer.container = SimpleNamespace(config={"AMQP_URI": "amqp://broker"})
    assert consumer.amqp_uri == "amqp://broker"
